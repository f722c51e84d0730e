"""The run directory: whose it is, what runs in it, and what stands in its small files. Used by rank zero alone."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, TextIO, cast

from job.config import command_line
from job.config.errors import NO_LOCKS, UserError
from job.config.plain import differences, to_yaml
from job.config.settings import REPOSITORY, Config
from job.distributed import startup
from job.runs.environment import in_all, is_own, other_code, spending
from job.runs.files import remove_left_overs, tolerating, write_whole
from job.runs.reader import checkpoints, configuration, evaluation, read_json, require_plain
from job.runs.records import Environment, Evaluation, MetricsLine, Status

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class RunDirectory:
    """An opened run directory, locked for the life of this process.

    Raises UserError when it cannot be written, when another job lives in it, or when it holds a run of another
    configuration. A small file that is damaged is passed over, and written anew: ``warn`` is told.
    """

    def __init__(self, path: Path, settings: Config, warn: Callable[[str], None] = lambda _: None) -> None:
        self.path, self._warn = path, warn
        with _writable(path):
            path.mkdir(parents=True, exist_ok=True)
            require_plain(path)
            (path / "checkpoints").mkdir(exist_ok=True)
            self._lock = _lock(path / "run.lock")
            remove_left_overs(path)
            write_whole(path / ".probe", "")
            (path / ".probe").unlink()
        self._before = before = self._sound(lambda: read_json(path / "status.json", Status)) or {}
        self._past = (self._sound(lambda: read_json(path / "environment.json", Environment)) or {}).get("attempts", [])
        if self._past and "seconds" in before and self._past[-1].get("attempt") == before["attempt"]:
            self._past[-1] |= {"seconds": before["seconds"], "reached": before["step"]}
        self.result: Evaluation | None = self._sound(lambda: evaluation(path))
        """The content of ``evaluation.json`` when the run was opened; None while it is not finished"""
        self.attempt: int = before.get("attempt", len(self._past)) + 1
        """1 for the first start in this directory"""
        self._status = Status(
            state="running", step=before.get("step", 0), signal=None, error=None, attempt=self.attempt
        )
        self._compare(settings)
        self._environment: dict[str, Any] = {}
        self._metrics, self._size = -1, 0
        self._known = bytearray()
        self.listeners: list[Callable[[MetricsLine], None]] = []
        """what else is told of each line of ``metrics.jsonl``"""

    def _sound(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except UserError as error:
            self._warn(f"passing over {str(error).rpartition(':')[0]}")
            return None

    def status(self, **changes: Any) -> None:
        """Bring ``status.json`` up to date. A full disk is no reason to stop training; raises any other OSError."""
        self._status = cast(Status, {**self._status, "seconds": startup.spent(), **changes})
        if self._environment:
            self._status["seconds_in_all"] = in_all(spending(self._environment["attempts"], self._status))
        with tolerating(*DISK_FULL):
            write_whole(self.path / "status.json", json.dumps(self._status, indent=1) + "\n")

    def failed(self, message: str, *, recurs: bool = False) -> None:
        """Record, where that is possible at all, that the run has failed, and whether it would do so again."""
        with contextlib.suppress(OSError):
            self.status(state="failed", error=message, recurs=recurs)

    def begin(self, settings: Config, environment: dict[str, Any]) -> None:
        """Record what runs here. Raises UserError when that cannot be written."""
        if changed := other_code(self._past, environment):
            self._warn(changed)
        content = environment | {"attempt": self.attempt, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        # A finished run is to go on, with more epochs: its result goes first.
        finished = (self.path / "evaluation.json").exists()
        gone = [self.path / name for name in ("evaluation.json", "report.html")] if finished else []
        with _writable(self.path):
            for path in (*gone, self.path / "STOP"):
                path.unlink(missing_ok=True)
            write_whole(self.path / "config.yaml", to_yaml(settings))
            self._environment = content | {"attempts": [*self._past, content]}
            write_whole(self.path / "environment.json", json.dumps(self._environment, indent=1))
            self.status()

    def begins_at(self, step: int, steps_per_epoch: int) -> None:
        """Record, for who looks on, that this start goes on from optimizer step ``step``."""
        with contextlib.suppress(OSError):
            self._environment["attempts"][-1] |= {"step": step, "steps_per_epoch": steps_per_epoch}
            write_whole(self.path / "environment.json", json.dumps(self._environment, indent=1))

    def metrics_from(self, size: int) -> None:
        """Open ``metrics.jsonl`` for appending after its first ``size`` bytes: what a checkpoint knew of."""
        with _writable(self.path):
            self._metrics = os.open(self.path / "metrics.jsonl", os.O_RDWR | os.O_CREAT, 0o666)
        with open(self._metrics, "rb", closefd=False) as file:
            self._known = bytearray(file.read(size))
        del self._known[self._known.rfind(b"\n") + 1 :]  # where lines were lost
        self._size = len(self._known)
        os.ftruncate(self._metrics, self._size)

    def metrics_on_disk(self) -> int:
        """Bytes of ``metrics.jsonl``, before it is opened."""
        path = self.path / "metrics.jsonl"
        return path.stat().st_size if path.exists() else 0

    def metric(self, line: MetricsLine) -> None:
        """Append one line to ``metrics.jsonl``, or keep it for later while the disk is full."""
        self._known += (json.dumps(line, allow_nan=False) + "\n").encode()
        with tolerating(*DISK_FULL):
            self._write_metrics()
        for listener in self.listeners:
            listener(line)

    def metrics_size(self) -> int:
        """Bytes of ``metrics.jsonl``, all of which are on the disk now. Raises OSError when they cannot be."""
        self._write_metrics()
        os.fsync(self._metrics)
        return self._size

    def mend_metrics(self) -> bool:
        """Write ``metrics.jsonl`` anew where it was deleted, replaced or cut behind our back: whether it was.

        Raises OSError when it cannot be written.
        """
        path = self.path / "metrics.jsonl"
        ours = os.fstat(self._metrics)
        if path.exists() and os.path.samestat(path.stat(), ours) and ours.st_size == self._size:
            return False
        write_whole(path, self._known.decode())
        os.close(self._metrics)
        self._metrics, self._size = os.open(path, os.O_RDWR), len(self._known)
        return True

    def _write_metrics(self) -> None:
        written = self._size
        try:
            while written < len(self._known):
                written += os.pwrite(self._metrics, self._known[written:], written)
        except OSError:
            os.ftruncate(self._metrics, self._size)  # no half lines
            raise
        self._size = written

    def stopped(self, reason: str) -> None:
        """Record that the run was stopped for ``reason``, its state saved."""
        self.status(state="preempted", signal=reason)
        (self.path / "STOP").unlink(missing_ok=True)

    def newest_checkpoint(self) -> str | None:
        """Name of the newest checkpoint in place, verified or not."""
        paths = checkpoints(self.path / "checkpoints")
        return paths[-1].name if paths else None

    def finish(self, result: Evaluation) -> None:
        """Write ``evaluation.json``, which makes the run a finished one."""
        write_whole(self.path / "evaluation.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
        self.status(state="finished", complete=False)

    def lacks(self) -> list[str]:
        """What a start that was ended after it had the result has not written, ``log.txt`` to its end, or is gone."""
        said = self._before.get("state") == "finished" and self._before.get("complete", True)
        files = [name for name in ("model.safetensors", "report.html", "figures") if not (self.path / name).exists()]
        return files if said else [*files, "log.txt"]

    def completed(self) -> None:
        """Record that nothing of a finished run is left to do."""
        self.status(**{**(self._before if self.result else {}), "state": "finished", "error": None, "complete": True})

    def _compare(self, settings: Config) -> None:
        if self.result and (trained := self.result.get("epochs", 0)):
            require_epochs(settings, before=trained, begun=trained)
        self._settings = settings
        with contextlib.suppress(FileNotFoundError):
            self.require_settings(configuration(self.path), str(self.path / "config.yaml"))

    def require_settings(self, saved: dict[str, Any], name: str) -> Config:
        """The settings ``saved`` in ``name``. Raises UserError, with the difference, where they are of another run."""
        before = command_line.from_dict(saved, name)
        changed = differences(before, self._settings)
        if changed:
            raise UserError(
                f"run directory {self.path} holds a run of another configuration ({'; '.join(changed)})",
                "give its settings to continue it, or another --run.dir",
            )
        return before


def choose(path: str | None, name: str, job: dict[str, Any] | None, say: Callable[[str], None]) -> Path:
    """The run directory to use: the given one, or ``runs/<name>``, with a number after it if that is taken.

    A Slurm ``job`` finds its own by ``slurm/<job>.json``, as in launch/directory.py. ``say`` hears of another job's.
    """
    if path is not None:
        return Path(path).expanduser().resolve()
    first, sign = REPOSITORY / "runs" / name, "." if job else "-"
    numbered = [first, *(first.with_name(f"{name}{sign}{number}") for number in range(2, 1000))]
    taken = list(takewhile(os.path.lexists, numbered))
    memory = Path("slurm", f"{job['job']}.json") if job else None
    if job and memory:
        asked = ["env", "SLURM_TIME_FORMAT=%s", "squeue", "--noheader", "--jobs", job["job"], "--format", "%V"]
        said = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
        job = {"submitted": int(said) if said.isdigit() else 0} | job  # 0: the controller does not say
        if own := next((run for run in reversed(taken) if is_own(run / memory, job)), None):
            return own
        if taken and job["restarts"] and not (first / memory).exists():
            return first  # begun before there was a memory, by a job that was requeued since
    for candidate in numbered[len(taken) :]:
        with _writable(candidate), contextlib.suppress(FileExistsError):
            candidate.mkdir(parents=True)
            if job and memory:
                (candidate / "slurm").mkdir()
                write_whole(candidate / memory, json.dumps(job) + "\n")
            if job and taken:
                say(f"{taken[-1]} is of another job that had this one's number")
            return candidate
    raise UserError(f"{first} and a thousand like it exist", "name another one with --run.dir")


def require_epochs(settings: Config, *, before: int, begun: int) -> None:
    """Raise UserError where a run that was to train ``before`` epochs, and has ``begun`` so many, cannot go on so."""
    epochs, schedule = settings.train.epochs, settings.schedule
    if begun > epochs:
        mend = f"this run has trained {begun}, the last perhaps in part; give as many or more, or another --run.dir"
        raise UserError(f"train.epochs={epochs}", mend)
    if epochs != before and schedule.name != "constant" and schedule.extended is None:
        raise UserError(
            f"train.epochs={epochs}, but schedule.name={schedule.name} was laid out for {before}",
            "say what is wanted by schedule.extended: finish, restart or stretch",
        )


def _lock(path: Path) -> tuple[int, TextIO]:
    """Hold ``path``, and the directory that it lies in, locked until this process ends, however it ends.

    The directory too: a file can be deleted. The file too: NFS locks no directories.
    """
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (open as long as the process)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        for each in (directory, file.fileno()):
            with tolerating(*NO_LOCKS):
                fcntl.flock(each, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        raise UserError(f"{owner} runs in {path.parent}", "wait for it, stop it, or give another --run.dir") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return directory, file


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[None]:
    """Raise UserError where run directory ``path`` cannot be written."""
    try:
        yield
    except OSError as error:
        in_the_way = error.errno in (errno.EISDIR, errno.EEXIST, errno.ENOTDIR)
        which = f"{Path(error.filename2 or error.filename).name}: " if in_the_way else ""
        what = f"run directory {path} cannot be written ({which}{error.strerror})"
        raise UserError(what, "name another one with --run.dir") from None
