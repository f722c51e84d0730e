"""Starting the job with faults in it, and comparing what two runs left."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import injected
import numpy as np
from PIL import Image
from support.forked import fork_server
from support.jobs import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
Fault = dict[str, Any]
PATIENCE = 180.0
"""seconds after which a process hangs, on a machine that does other things as well"""


def draw(root: Path) -> Path:
    """A folder of ten classes, each with a pattern of its own under noise: 384 pictures to train on, 96, and 150."""
    noise = np.random.default_rng(0)
    for number in range(10):
        pattern = noise.integers(0, 256, (4, 4, 3)).repeat(8, 0).repeat(8, 1)
        for split, count in (("train", 48), ("test", 15)):
            folder = root / split / f"class{number}"
            folder.mkdir(parents=True)
            for i in range(count):
                noisy = (pattern + noise.normal(0, 90, pattern.shape)).clip(0, 255).astype(np.uint8)
                Image.fromarray(noisy).save(folder / f"{i}.png")
    return root


class Job:
    """A job of ``processes`` ranks that was started and is not waited for. ``ranks`` are their processes."""

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        *,
        processes: int = 1,
        faults: Sequence[Fault] = (),
        network: str = "",
        environment: dict[str, str] | None = None,
    ) -> None:
        self.log = log
        common = {"OMP_NUM_THREADS": "1", "FAULTS": json.dumps(list(faults)), "NETWORK": network}
        if processes > 1:
            common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
            common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        common |= environment or {}
        log.touch()
        self.ranks: list[ForkServerProcess] = []
        for rank in range(processes):
            own = dict(common)
            if processes > 1:
                own |= {"RANK": str(rank), "LOCAL_RANK": str(rank % int(common["LOCAL_WORLD_SIZE"]))}
            process = fork_server().Process(target=injected.run_as, args=(list(arguments), own, str(log)))
            process.start()
            self.ranks.append(process)

    def signal(self, number: int, rank: int | None = None) -> None:
        """Send a signal to one rank, or to all."""
        for process in self.ranks if rank is None else [self.ranks[rank]]:
            if process.exitcode is None:
                with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                    os.kill(process.pid or 0, number)

    def wait(self, seconds: float = PATIENCE) -> list[int]:
        """The exit status of each rank (-9 for SIGKILL).

        When one fails the others get SIGTERM, as from the launcher. All are killed, and the test fails, when they have
        not ended after ``seconds``.
        """
        end = time.monotonic() + seconds
        told = False
        while running := [process for process in self.ranks if process.exitcode is None]:
            multiprocessing.connection.wait([process.sentinel for process in running], 1)
            if not told and any(process.exitcode for process in self.ranks):
                self.signal(signal.SIGTERM)
                told = True
            if time.monotonic() > end:
                raise AssertionError(self._autopsy(f"still ran after {seconds} s"))
        return [process.exitcode or 0 for process in self.ranks]

    @property
    def output(self) -> str:
        """What all ranks said."""
        return self.log.read_text(errors="replace")

    def wait_for(self, condition: Any, seconds: float = PATIENCE) -> None:
        """Wait until ``condition()`` holds."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end or all(process.exitcode is not None for process in self.ranks):
                raise AssertionError(self._autopsy("waited in vain"))
            time.sleep(0.01)

    def _autopsy(self, what: str) -> str:
        """End all ranks; what they did, and where they were."""
        for number in (signal.SIGRTMIN, signal.SIGCONT):
            self.signal(number)
        time.sleep(1)
        statuses = [process.exitcode for process in self.ranks]
        self.signal(signal.SIGKILL)
        return f"{what}; statuses {statuses}:\n{self.output}"


class Launched:
    """A job started by ``command`` (of ``python`` or ``accelerate``), which ends with its run directory."""

    def __init__(self, command: Sequence[str], log: Path, **environment: str) -> None:
        self.log = log
        self.command = list(command)
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                stdout=file,
                stderr=file,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
                start_new_session=True,
            )

    def wait(self, seconds: float = PATIENCE) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            for pid in self.processes:
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"still ran after {seconds} s:\n{self.output}") from None

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def processes(self) -> list[int]:
        """Those that live, launcher and ranks: the launcher puts ranks in sessions of their own."""
        found = []
        for path in Path("/proc").iterdir():
            if path.name.isdigit():
                try:
                    state = (path / "stat").read_text().rpartition(")")[2].split()[0]
                    command = (path / "cmdline").read_text().split("\0")
                except OSError:
                    continue
                if state not in "ZX" and self.command[-1] in command:
                    found.append(int(path.name))
        return sorted(found)

    def all_end(self, seconds: float = 90) -> None:
        """Wait until none of them lives."""
        end = time.monotonic() + seconds
        while self.processes:
            assert time.monotonic() < end, f"{self.processes} still live: {self.output}"
            time.sleep(0.05)
        self.process.wait()


def launcher(processes: int) -> list[str]:
    """The command that starts ``processes`` ranks of what follows it."""
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    if processes == 1:
        return [accelerate, "launch"]
    return [accelerate, "launch", "--config_file", "launch/cpu.yaml", "--num_processes", str(processes)]


def listens(pid: int) -> bool:
    """Whether a process would not simply die of SIGTERM."""
    fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool((int(fields["SigBlk"], 16) | int(fields["SigCgt"], 16)) & 1 << (signal.SIGTERM - 1))


def metrics(run: Path, *, timing: bool = False) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = () if timing else ("images_per_second", "seconds")
    return [{key: value for key, value in line.items() if key not in clock} for line in lines]


def result(run: Path) -> dict[str, Any]:
    """``evaluation.json`` without what may differ from run to run."""
    content: dict[str, Any] = json.loads((run / "evaluation.json").read_text())
    return {key: value for key, value in content.items() if key not in ("world_size", "seconds")}


def checkpoints(run: Path) -> list[str]:
    """Those that stand, whole or damaged; not what a killed process was still writing."""
    return sorted(path.name for path in (run / "checkpoints").iterdir() if not path.name.startswith("."))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def status(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "status.json").read_text())
    return content


def differences(run: Path, other: Path) -> list[str]:
    """What is not bit for bit the same in two finished runs of the same number of processes."""
    found = []
    if metrics(run) != metrics(other):
        lines = zip(metrics(run), metrics(other), strict=False)
        found.append(f"metrics.jsonl: {next((pair for pair in lines if pair[0] != pair[1]), 'number of lines')}")
    if result(run) != result(other):
        found.append("evaluation.json")
    for name in ("model.safetensors", "predictions.safetensors"):
        if sha256(run / name) != sha256(other / name):
            found.append(name)
    if checkpoints(run)[-1] != checkpoints(other)[-1]:
        found.append("last checkpoint")
        return found
    mine, theirs = (path / "checkpoints" / checkpoints(path)[-1] for path in (run, other))
    # The copies are of before or after the last validation: that checkpoint waits for a save that still goes on.
    for name in ("model.safetensors", "optimizer.safetensors"):
        if sha256(mine / name) != sha256(theirs / name):
            found.append(f"last checkpoint's {name}")
    return found
