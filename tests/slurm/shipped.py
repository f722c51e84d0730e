"""What is shipped, as a user of a cluster has it before him."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

from cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--data.source", "shapes10", "--train.epochs", "2", "--run.log_every", "5", "--run.trackers", "[]"]
TWO_NODES = ["--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1"]


class Site:
    """A cluster, a checkout of the repository on it, a folder to submit from, and the nodes' own disk."""

    def __init__(self, cluster: Cluster, repository: Path, home: Path, scratch: Path) -> None:
        self.cluster, self.repository, self.home = cluster, repository, home
        self.disk = scratch / f"rankzero-{os.getuid()}"
        """where jobs of this user keep images on the nodes' own disk"""

    def submit(self, *options: str, script: str = "simple_cnn.sh", overrides: list[str], **environment: str) -> str:
        """``sbatch`` with these options, the shipped script and the overrides for the job; the job's id."""
        return self.cluster.submit(
            *options, self.repository / "slurm" / script, *overrides, directory=self.home, **environment
        )

    def log(self, job: str, name: str = "simple_cnn") -> str:
        """The Slurm log, which lies where the job was submitted."""
        return (self.home / f"{name}-{job}.out").read_text()

    def run(self, job: str, name: str = "simple_cnn") -> Path:
        """The job's run directory, the last of those of its number."""
        first = self.repository / "runs" / f"{name}-{job}"
        return max(first.parent.glob(f"{first.name}.*"), default=first)

    def wait_for_line(self, job: str, pattern: str, seconds: float = 200) -> str:
        """Waits until the Slurm log has ``pattern``; its first group, or all of it."""
        deadline = time.monotonic() + seconds
        while True:
            path = self.home / f"simple_cnn-{job}.out"
            if path.exists() and (found := re.search(pattern, path.read_text())):
                return found[1] if found.groups() else found[0]
            assert time.monotonic() < deadline, f"no {pattern} from job {job}:\n{self.log(job)}"
            time.sleep(0.1)

    def wait_for_step(self, job: str, step: int, seconds: float = 200) -> None:
        """Waits until the job has said that it took so many steps."""
        deadline = time.monotonic() + seconds
        while True:
            status = self.run(job) / "status.json"
            if status.exists() and json.loads(status.read_text())["step"] >= step:
                return
            assert time.monotonic() < deadline, f"job {job} is not at step {step}:\n{self.log(job)}"
            time.sleep(0.1)
