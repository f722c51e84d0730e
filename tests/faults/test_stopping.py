"""Told to stop, by whatever way, the job saves and ends with status 75; started again it ends with the same bits."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from jobs import Launched, checkpoints, launcher, listens, metrics, result, status

SLOW = {"do": "slow", "at": "step", "n": None, "rank": None}


def test_each_way_to_stop_saves_and_ends_with_status_75_and_the_same_bits_follow(
    start, undisturbed, same, tmp_path
) -> None:
    run = tmp_path / "run"

    def stopped(job, reason: str) -> None:
        assert job.wait() == [75], job.output
        assert f"stopped by {reason}, and saved: run the same command again to continue" in job.output
        assert "Traceback" not in job.output
        found = status(run)
        assert (found["state"], found["signal"]) == ("preempted", reason)
        assert checkpoints(run)[-1] == f"step-{found['step']:08d}"

    for action, step in (("term", 3), ("usr1", 6), ("int", 9), ("hup", 10), ("quit", 11)):
        stopped(start(faults=[{"do": action, "at": "step", "n": step}]), f"SIG{action.upper()}")
        assert status(run)["step"] == step, "after the step that was going on"
    stopped(start(faults=[{"do": "usr1", "at": "evaluation"}]), "SIGUSR1")
    stopped(start(faults=[{"do": "term", "at": "step", "n": n} for n in (14, 14, 14, 14)]), "SIGTERM")

    job = start(faults=[SLOW])
    job.wait_for(lambda: "from step" in job.output)
    (run / "STOP").touch()
    stopped(job, "STOP file")
    assert not (run / "STOP").exists()

    stopped(start("--run.max_minutes", "0.00001", faults=[SLOW]), "time limit")
    stopped(start(faults=[SLOW], environment={"RANKZERO_END_TIME": str(int(time.time()) + 31)}), "time limit")
    assert status(run)["step"] < 36
    assert start().wait() == [0]
    same(run, undisturbed())


def test_a_signal_before_the_first_step_stops_before_the_first_step(start, undisturbed, same, tmp_path) -> None:
    job = start(faults=[{"do": "term", "at": "start"}])
    assert job.wait() == [75], job.output
    assert status(tmp_path / "run")["step"] == 0
    assert start().wait() == [0]
    same(tmp_path / "run", undisturbed())


def test_a_signal_while_a_checkpoint_is_written_is_heeded_once_it_stands(start, undisturbed, same, tmp_path) -> None:
    faults = [{"do": action, "at": "optimizer.safetensors"} for action in ("term", "usr1", "term")]
    assert start(faults=faults).wait() == [75]
    assert start().wait() == [0]
    same(tmp_path / "run", undisturbed())


def test_two_processes_stop_after_the_same_step_whichever_is_told(start, undisturbed, same, tmp_path) -> None:
    run = tmp_path / "run"
    steps = []
    for rank, action in ((1, "usr1"), (0, "term"), (None, "int")):
        after = steps[-1] if steps else 0
        job = start(processes=2, faults=[SLOW, {"do": action, "at": "step", "n": after + 3, "rank": rank}])
        assert job.wait() == [75, 75], job.output
        assert "Traceback" not in job.output
        steps.append(status(run)["step"])
    job = start(processes=2, faults=[{"do": "term", "at": "evaluation", "rank": 1}])
    assert job.wait() == [75, 75], job.output
    assert start(processes=2).wait() == [0, 0]
    same(run, undisturbed(processes=2))


def test_a_signal_that_all_ranks_get_while_they_agree_to_go_on_is_not_lost(start, undisturbed, same, tmp_path) -> None:
    told = {"do": "int", "at": "agreement", "n": 3, "rank": None}
    job = start(processes=2, faults=[SLOW, told])
    assert job.wait() == [75, 75], job.output
    assert start(processes=2).wait() == [0, 0]
    same(tmp_path / "run", undisturbed(processes=2))


def test_a_second_ctrl_c_ends_at_once(start, undisturbed, same, tmp_path) -> None:
    """Here while the save that the first one asked for hangs."""
    run = tmp_path / "run"
    job = start(faults=[{"do": "int", "at": "step", "n": 3}, {"do": "hang", "at": "before rename"}])
    job.wait_for(lambda: list(run.glob("checkpoints/.tmp*/manifest.json")))
    time.sleep(1.2)  # a person's second; the launcher's comes within milliseconds
    job.signal(signal.SIGINT)
    assert job.wait(30) == [130], job.output
    assert start().wait() == [0]
    same(run, undisturbed())


def test_a_signal_that_comes_before_torch_is_imported_is_not_lost(settings, tmp_path) -> None:
    for attempt in range(10):  # a busy machine may let the job run on between two looks
        command = [sys.executable, "job/train.py", *settings, "--run.dir", str(tmp_path / f"run-{attempt}")]
        job = Launched(command, tmp_path / "out")
        pid = job.process.pid
        while not listens(pid):
            assert job.process.poll() is None, job.output
            time.sleep(0.005)
        os.kill(pid, signal.SIGSTOP)
        early = "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
        os.kill(pid, signal.SIGTERM if early else signal.SIGKILL)
        os.kill(pid, signal.SIGCONT)
        if early:
            break
    assert job.wait() == 75, job.output
    assert "Traceback" not in job.output
    assert status(tmp_path / f"run-{attempt}")["state"] == "preempted"


def launched(processes: int, settings: list[str], run: Path, log: Path, **environment: str) -> Launched:
    faults = '[{"do": "slow", "at": "step", "n": null, "rank": null}]'
    command = [*launcher(processes), "tests/faults/injected.py", *settings, "--run.dir", str(run)]
    return Launched(command, log, FAULTS=faults, **environment)


def trains(job: Launched, run: Path, step: int) -> None:
    end = time.monotonic() + 180
    while not ((run / "metrics.jsonl").exists() and any(m["step"] >= step for m in metrics(run))):
        assert job.process.poll() is None, job.output
        assert time.monotonic() < end, job.output
        time.sleep(0.02)


def test_under_the_launcher_with_two_processes_ctrl_c_and_sigkill_lead_to_a_checkpoint(
    settings, start, undisturbed, same, tmp_path
) -> None:
    run = tmp_path / "run"
    longer = ("--train.epochs", "6")  # on a busy machine many steps go by until a signal has come through the launcher
    arguments = [*settings, *longer]
    # A signal to all is one that the launcher forwards to those who had it already.
    job = launched(2, arguments, run, tmp_path / "out-0")
    trains(job, run, 5)
    for pid in job.processes:
        os.kill(pid, signal.SIGINT)
    job.all_end()
    assert status(run)["state"] == "preempted", job.output
    # A launcher that SIGKILL ends leaves nobody behind.
    before = status(run)["step"]
    job = launched(2, arguments, run, tmp_path / "out-1")
    trains(job, run, before + 5)
    assert len(job.processes) == 3
    os.kill(job.process.pid, signal.SIGKILL)
    job.wait(90)
    job.all_end()
    assert status(run)["state"] == "preempted", job.output
    assert status(run)["step"] > before
    job = start(*longer, processes=2)
    assert job.wait() == [0, 0], job.output
    same(run, undisturbed(*longer, processes=2))


def test_under_the_launcher_with_one_process_no_signal_leaves_an_orphan(
    settings, start, undisturbed, same, tmp_path
) -> None:
    run = tmp_path / "run"
    for attempt, number in enumerate((signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)):
        job = launched(1, settings, run, tmp_path / f"out-{attempt}")
        trains(job, run, 5 if attempt == 0 else status(run)["step"] + 5)
        for pid in job.processes if number == signal.SIGHUP else [job.process.pid]:  # a terminal's goes to all
            os.kill(pid, number)
        job.all_end()
        assert status(run)["state"] == "preempted", job.output
    job = start()
    assert job.wait() == [0], job.output
    same(run, undisturbed())
    assert result(run)["images"] == 150
