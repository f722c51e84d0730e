"""Run the real job in real processes, and read what it leaves."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from support import forked

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT = 240


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without what a launcher or a cluster may have left in it."""
    drop = (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "ACCELERATE_",
        "SLURM_",
        "RANKZERO_",
        "TORCHELASTIC",
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith(drop)}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HOME": "/nonexistent"} | extra


def command(script: str, *arguments: object) -> list[str]:
    """``python job/<script>`` with arguments."""
    return [sys.executable, str(REPOSITORY / "job" / script), *map(str, arguments)]


def run_job(
    script: str, *arguments: object, processes: int = 1, fresh: bool = False, report: bool = False, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of the job on ``processes`` processes, as a Slurm step starts them; rank zero's output is kept.

    The exit status is the largest of all ranks. Two things take seconds and are done only where a test is about them:
    ``fresh`` processes are interpreters as a shell starts them, others are forked from one that has all imported;
    and the ``report`` at the end of training, which fresh ones always write.
    """
    local = int(extra.get("LOCAL_WORLD_SIZE", processes))
    group = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(local)}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    words = command(script, *arguments)
    end = time.monotonic() + TIMEOUT
    started: list[subprocess.Popen[bytes] | ForkServerProcess] = []
    with tempfile.TemporaryDirectory() as folder:
        files = [(Path(folder, f"out-{rank}"), Path(folder, f"error-{rank}")) for rank in range(processes)]
        try:
            for rank, (out, error) in enumerate(files):
                own = group | {"RANK": str(rank), "LOCAL_RANK": str(rank % local)} if processes > 1 else {}
                start = _start if fresh else functools.partial(forked.start, report=report)
                started.append(start(words, environment(**(own | extra)), out, error))
            status = max(_wait(process, end - time.monotonic()) for process in started)
        finally:
            for process in started:
                process.kill()
        errors = "".join(error.read_text() for _, error in files)
        return subprocess.CompletedProcess(words, status, files[0][0].read_text(), errors)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _start(words: list[str], surroundings: dict[str, str], out: Path, error: Path) -> subprocess.Popen[bytes]:
    with out.open("wb") as stdout, error.open("wb") as stderr:
        return subprocess.Popen(words, env=surroundings, stdout=stdout, stderr=stderr, cwd="/")


def _wait(process: subprocess.Popen[bytes] | ForkServerProcess, seconds: float) -> int:
    """The exit status, negative for a signal."""
    if isinstance(process, subprocess.Popen):
        return process.wait(seconds)
    process.join(seconds)
    assert process.exitcode is not None, f"still runs after {seconds:.0f} s"
    return process.exitcode


def accelerate(*arguments: object, typed: bool = False, **extra: str) -> subprocess.CompletedProcess[str]:
    """``accelerate launch`` with arguments, from another directory than the repository's.

    The launcher is forked from a process that has accelerate imported; what it starts are interpreters of their own.
    ``typed``: it is a process with that command line, which the job reads.
    """
    package = importlib.util.find_spec("accelerate")
    assert package is not None
    assert package.origin is not None
    launcher = Path(package.origin).parent / "commands" / "accelerate_cli.py"
    words = [sys.executable, str(launcher), "launch", *map(str, arguments)]
    if typed:
        return subprocess.run(
            words, env=environment(**extra), capture_output=True, text=True, timeout=TIMEOUT, cwd=tempfile.gettempdir()
        )
    with tempfile.TemporaryDirectory() as folder:
        out, error = Path(folder, "out"), Path(folder, "error")
        process = forked.start(words, environment(**extra), out, error, report=True)
        try:
            status = _wait(process, TIMEOUT)
        finally:
            process.kill()
        return subprocess.CompletedProcess(words, status, out.read_text(), error.read_text())


def metrics(run: Path, split: str | None = None) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, of one split or of all."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if split in (None, line["split"])]


def read(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text())


def the_error(finished: subprocess.CompletedProcess[str]) -> str:
    """The one line that a user's mistake is answered with, once the manners of such an answer were checked."""
    assert finished.returncode == 2, finished.stderr
    lines = finished.stderr.strip().splitlines()
    assert len(lines) == 1, finished.stderr
    assert lines[0].startswith("error: ")
    return lines[0]
