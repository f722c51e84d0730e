"""A cluster for all tests of this folder, a copy of what is shipped, and a run that nobody disturbed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import cluster, missing
from shipped import ROOT, TINY, TWO_NODES, Site

REPORT = """import os
def write(path):
    if os.environ.pop("TOO_MUCH_MEMORY", None) and not (path / "figures").exists():
        (path / "figures").mkdir()
        os.kill(os.getpid(), 9)
    return path
"""


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two nodes of 16 CPUs and two fake GPUs; the repository's path has a space in it."""
    if reason := missing():
        pytest.skip(f"the Slurm tests start a cluster of their own: {reason}")
    directory = tmp_path_factory.mktemp("site")
    repository = directory / "rank zero"
    for folder in ("job", "launch", "slurm", "configs"):
        shutil.copytree(ROOT / folder, repository / folder, ignore=shutil.ignore_patterns("__pycache__"))
    # Drawing a report takes seconds of each job, and says nothing here; or too much memory, once.
    (repository / "job" / "display" / "run_page.py").write_text(REPORT)
    home, scratch = directory / "home", directory / "scratch"
    home.mkdir()
    scratch.mkdir()
    with cluster(nodes=2, gpus=2, cpus=16) as running:
        running.environment |= {"RANKZERO_PYTHON": sys.executable, "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"}
        running.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{running.environment['PATH']}"
        yield Site(running, repository, home, scratch)


@pytest.fixture(scope="session")
def undisturbed(site: Site) -> Path:
    """Run directory of the tiny run on two nodes that nobody disturbed."""
    job = site.submit(*TWO_NODES, overrides=TINY)
    assert site.cluster.wait(job)["JobState"] == "COMPLETED", site.log(job)
    return site.run(job)
