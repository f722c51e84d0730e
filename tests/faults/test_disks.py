"""A disk that is full, read-only or gone: training goes on where it can, and no broken checkpoint is the newest."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import checkpoints, metrics, status

from job.runs import checkpoint

SLOW = [{"do": "slow", "at": "step", "n": None}]


@pytest.fixture
def disk(as_root, tmp_path) -> Iterator[Path]:
    """A small file system that is really full when it is full."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"no file system can be mounted here: {mount.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], capture_output=True, check=False)


def fill(disk: Path, *, leave: int = 0) -> Path:
    """Take all the room but ``leave`` bytes."""
    ballast = disk / "ballast"
    with open(ballast, "ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(ballast, max(0, ballast.stat().st_size - leave))
    return ballast


def test_while_the_disk_is_full_training_goes_on_and_nothing_is_lost(start, undisturbed, same, disk) -> None:
    run = disk / "run"
    job = start(run=run, faults=SLOW)
    job.wait_for(lambda: run.exists() and "step-00000008" in checkpoints_of(run))
    ballast = fill(disk)
    job.wait_for(lambda: "No space left on device); training goes on; last good checkpoint: step-" in job.output)
    newest = checkpoints_of(run)[-1]
    checkpoint.read(run / "checkpoints" / newest)  # raises unless it is whole
    assert not list((run / "checkpoints").glob(".tmp*")), "what could not be finished takes no room"
    job.wait_for(lambda: job.output.count("training goes on") >= 2)
    ballast.unlink()
    assert job.wait() == [0], job.output
    same(run, undisturbed())
    assert status(run)["state"] == "finished"


def checkpoints_of(run: Path) -> list[str]:
    return [name for name in checkpoints(run) if name.startswith("step")] if (run / "checkpoints").exists() else []


def test_a_disk_that_stays_full_ends_the_run_with_status_1_and_the_last_checkpoint_intact(
    start, undisturbed, same, disk
) -> None:
    run = disk / "run"
    job = start(run=run, faults=SLOW)
    job.wait_for(lambda: run.exists() and "step-00000016" in checkpoints_of(run))
    ballast = fill(disk)
    assert job.wait() == [1]
    newest = checkpoints_of(run)[-1]
    checkpoint.read(run / "checkpoints" / newest)
    lines = [line for line in job.output.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "No space left on device" in lines[0]
    assert newest in lines[0]
    assert "Traceback" not in job.output
    ballast.unlink()
    assert start(run=run).wait() == [0]
    same(run, undisturbed())


def test_a_disk_that_is_full_when_the_job_is_told_to_stop_gives_status_1(start, undisturbed, same, disk) -> None:
    run = disk / "run"
    job = start(run=run, faults=SLOW, processes=2)
    job.wait_for(lambda: run.exists() and "step-00000008" in checkpoints_of(run))
    ballast = fill(disk)
    job.signal(signal.SIGTERM)
    assert job.wait() == [1, 1], job.output
    assert job.output.count("error:") == 1
    assert "Traceback" not in job.output
    newest = checkpoints_of(run)[-1]
    checkpoint.read(run / "checkpoints" / newest)
    ballast.unlink()
    assert start(run=run, processes=2).wait() == [0, 0]
    same(run, undisturbed(processes=2))


def test_a_disk_without_room_for_the_results_gives_status_1_and_the_next_start_writes_them(
    start, undisturbed, same, disk
) -> None:
    run = disk / "run"
    arguments = ("--checkpoint.every_steps", "null", "--checkpoint.every_epochs", "100")
    job = start(*arguments, run=run, processes=2, faults=[{"do": "stop", "at": "manifest.json"}])
    job.wait_for(lambda: (run / "checkpoints").exists() and list((run / "checkpoints").glob(".tmp*/manifest.json")))
    ballast = fill(disk, leave=100_000)
    job.signal(signal.SIGCONT, 0)
    assert job.wait() == [1, 1], job.output
    assert "error: the results cannot be written (No space left on device)" in job.output
    assert "Traceback" not in job.output
    assert not (run / "evaluation.json").exists()
    ballast.unlink()
    assert start(*arguments, run=run, processes=2).wait() == [0, 0]
    same(run, undisturbed(processes=2))


def test_a_disk_that_is_full_from_the_start_is_an_error_of_one_line(start, disk) -> None:
    fill(disk)
    job = start(run=disk / "run", processes=2)
    assert job.wait()[0] == 2
    assert job.output.count("error:") == 1
    assert "No space left on device" in job.output
    assert "Traceback" not in job.output


def test_a_read_only_run_directory_is_refused_before_training(start, disk) -> None:
    (disk / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    job = start(run=disk / "run")
    assert job.wait() == [2]
    assert "cannot be written (Read-only file system): name another one with --run.dir" in job.output
    assert "epoch 1" not in job.output


def test_a_directory_that_turns_read_only_ends_the_run_and_says_so(as_root, start, undisturbed, same, tmp_path) -> None:
    run = tmp_path / "run"
    job = start(faults=SLOW, processes=2)
    job.wait_for(lambda: "step-00000008" in checkpoints_of(run))
    over = run / "checkpoints"
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(over)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        assert job.wait() == [1, 1]
    finally:
        subprocess.run(["umount", "-l", str(over)], check=True)
    assert job.output.count("error:") == 1
    assert "(Read-only file system)" in job.output
    assert "Traceback" not in job.output
    assert start(processes=2).wait() == [0, 0]
    same(run, undisturbed(processes=2))


@pytest.mark.parametrize("gone", ["renamed", "deleted"])
def test_a_run_directory_that_vanishes_ends_the_run_at_the_next_line(gone, start, tmp_path) -> None:
    run = tmp_path / "run"
    job = start("--checkpoint.every_steps", "null", faults=SLOW)
    job.wait_for(lambda: (run / "metrics.jsonl").exists() and metrics(run))
    run.rename(tmp_path / "elsewhere")
    if gone == "deleted":
        shutil.rmtree(tmp_path / "elsewhere")
    assert job.wait() == [1]
    lines = [line for line in job.output.splitlines() if line.startswith("error:")]
    assert lines == ["error: run directory cannot be written (No such file or directory); there is no checkpoint"]
    assert "Traceback" not in job.output
    assert not run.exists()
