"""A process that never comes, or dies before the others met it, holds none of them for long."""

from __future__ import annotations

import signal
import time

import pytest
from jobs import Job, listens


@pytest.fixture
def alone(settings, tmp_path):
    """Start one rank of two."""
    jobs = []

    def start(rank: int, *arguments: str) -> Job:
        job = Job([*settings, "--run.dir", str(tmp_path / "run"), *arguments], tmp_path / "out", processes=2)
        job.signal(signal.SIGKILL, 1 - rank)  # forked, and not yet at the meeting place
        jobs.append(job)
        return job

    yield start
    for job in jobs:
        job.signal(signal.SIGKILL)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_waits_in_vain_says_so_in_one_line_after_the_time_limit(rank, alone) -> None:
    job = alone(rank, "--runtime.timeout", "2")
    job.ranks[rank].join(60)
    assert job.ranks[rank].exitcode == 1
    lines = [line for line in job.output.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, job.output
    said = "rank 1 of 2 never came to 127.0.0.1:" if rank == 0 else "rank 1 of 2 did not meet all others at 127.0.0.1:"
    assert said in lines[0]
    assert "Traceback" not in job.output


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_waits_for_a_dead_one_ends_when_it_is_told_to(rank, alone) -> None:
    job = alone(rank)
    job.wait_for(lambda: listens(job.ranks[rank].pid))
    time.sleep(1)  # now it waits for the other, or will soon
    job.signal(signal.SIGTERM, rank)
    job.ranks[rank].join(30)
    assert job.ranks[rank].exitcode == 75, job.output
