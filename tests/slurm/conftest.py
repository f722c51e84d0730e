"""A cluster for all tests of this folder, a copy of what is shipped, and a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, cluster, missing

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--data.source", "shapes10", "--train.epochs", "2", "--run.log_every", "5", "--run.trackers", "[]"]
TWO_NODES = ["--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1"]


class Site:
    """A cluster, a checkout of the repository on it, and a folder of a user's own to submit from."""

    def __init__(self, cluster: Cluster, repository: Path, home: Path) -> None:
        self.cluster, self.repository, self.home = cluster, repository, home
        self.options: list[str] = []

    def submit(self, *options: str, script: str = "simple_cnn.sh", overrides: list[str], **environment: str) -> str:
        """``sbatch`` with these options, the shipped script and the overrides for the job; the job's id."""
        return self.cluster.submit(
            *options, self.repository / "slurm" / script, *overrides, directory=self.home, **environment
        )

    def log(self, job: str, name: str = "simple_cnn") -> str:
        """The Slurm log, which lies where the job was submitted."""
        return (self.home / f"{name}-{job}.out").read_text()

    def run(self, job: str, name: str = "simple_cnn") -> Path:
        """The job's run directory."""
        return self.repository / "runs" / f"{name}-{job}"

    def wait_for_step(self, job: str, step: int, seconds: float = 200) -> None:
        """Waits until the job has said that it took so many steps."""
        deadline = time.monotonic() + seconds
        while True:
            status = self.run(job) / "status.json"
            if status.exists() and json.loads(status.read_text())["step"] >= step:
                return
            assert time.monotonic() < deadline, f"job {job} is not at step {step}:\n{self.log(job)}"
            time.sleep(0.1)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two nodes of 16 CPUs and two fake GPUs; the repository's path has a space in it."""
    if reason := missing():
        pytest.skip(f"the Slurm tests start a cluster of their own: {reason}")
    directory = tmp_path_factory.mktemp("site")
    repository = directory / "rank zero"
    for folder in ("job", "launch", "slurm", "configs"):
        shutil.copytree(ROOT / folder, repository / folder, ignore=shutil.ignore_patterns("__pycache__"))
    home = directory / "home"
    home.mkdir()
    with cluster(nodes=2, gpus=2, cpus=16) as running:
        running.environment |= {"RANKZERO_PYTHON": sys.executable, "TMPDIR": str(directory), "OMP_NUM_THREADS": "1"}
        running.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{running.environment['PATH']}"
        yield Site(running, repository, home)


@pytest.fixture(scope="session")
def undisturbed(site: Site) -> Path:
    """Run directory of the tiny run on two nodes that nobody disturbed."""
    job = site.submit(*TWO_NODES, overrides=TINY)
    assert site.cluster.wait(job)["JobState"] == "COMPLETED", site.log(job)
    return site.run(job)
