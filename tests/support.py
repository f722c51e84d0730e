"""Run the real job in real processes, and read what it leaves."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
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
    script: str, *arguments: object, processes: int = 1, timeout: float = TIMEOUT, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of the job on ``processes`` processes, as a Slurm step starts them; rank zero's output is kept.

    The exit status is the largest of all ranks.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
    started = []
    for rank in range(processes):
        ranked = group | {"MASTER_PORT": port, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        started.append(
            subprocess.Popen(
                command(script, *arguments),
                env=environment(**(ranked | extra)),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd="/",
            )
        )
    outputs = [process.communicate(timeout=timeout) for process in started]
    status = max(process.returncode for process in started)
    return subprocess.CompletedProcess(started[0].args, status, outputs[0][0], "".join(error for _, error in outputs))


def accelerate(*arguments: object, timeout: float = TIMEOUT, **extra: str) -> subprocess.CompletedProcess[str]:
    """``accelerate launch`` with arguments, from another directory than the repository's."""
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *map(str, arguments)],
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd="/",
    )


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
