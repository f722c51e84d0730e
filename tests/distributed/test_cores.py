"""Processes of one host that compute on its CPUs stay out of each other's way, and where somebody else put them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.jobs import REPOSITORY, run_job

from job.distributed import cores

HERE = sorted(os.sched_getaffinity(0))
several = pytest.mark.skipif(len(HERE) < 2, reason="needs two cores")


@several
def test_processes_of_a_host_share_its_cores_out_and_leave_none() -> None:
    count = min(3, len(HERE))
    shares = [cores.share_of_cores([set(HERE)] * count, rank, threads=1) for rank in range(count)]
    assert sorted(core for share in shares for core in share or []) == HERE
    assert max(len(share or []) for share in shares) - min(len(share or []) for share in shares) <= 1


@several
def test_processes_that_somebody_bound_stay_where_they_are() -> None:
    assert cores.share_of_cores([{HERE[0]}, {HERE[1]}], 0, threads=1) is None


def test_processes_with_more_threads_than_their_share_has_cores_are_left_alone() -> None:
    assert cores.share_of_cores([set(HERE)] * 2, 0, threads=len(HERE)) is None
    assert cores.share_of_cores([set(HERE)] * (len(HERE) + 1), 0, threads=1) is None


@several
def test_all_threads_of_a_process_keep_to_its_cores_those_that_run_already_too() -> None:
    program = f"""
import os, threading
from job.distributed import cores
threading.Thread(target=threading.Event().wait, daemon=True).start()
cores.keep_to([{HERE[-1]}])
threading.Thread(target=threading.Event().wait, daemon=True).start()
print(*(os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task")), sep="|")
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert said.stdout.strip().split("|") == [f"{{{HERE[-1]}}}"] * 3


@several
def test_a_job_of_two_processes_says_that_each_has_its_own_cores(tmp_path: Path) -> None:
    told = ["--data.source=shapes10", "--train.epochs=1", "--train.batch_size=2000", "--runtime.threads=1"]
    finished = run_job("train.py", *told, f"--run.dir={tmp_path}", processes=2)
    assert finished.returncode == 0, finished.stderr
    assert "each process on its own cores" in (tmp_path / "log.txt").read_text()
