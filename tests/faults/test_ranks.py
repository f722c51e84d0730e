"""A rank that dies, hangs or computes nonsense ends all ranks soon; the cause is named once, nothing bad is saved."""

from __future__ import annotations

import json
import re
import signal
import socket

import pytest
from jobs import Launched, checkpoints, launcher, metrics, result, status

from job.runs import checkpoint


def errors(job) -> list[str]:
    return [line for line in job.output.splitlines() if line.startswith("error:")]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_raises_ends_both_and_is_named_once(rank, start, undisturbed, same, tmp_path) -> None:
    job = start(processes=2, faults=[{"do": "raise", "at": "step", "n": 7, "rank": rank}])
    assert job.wait() == [1, 1], job.output
    assert errors(job) == [f"error: rank {rank} failed: ValueError: a fault was injected at step"]
    assert status(tmp_path / "run")["state"] == "failed"
    assert "a fault was injected" in status(tmp_path / "run")["error"]
    assert start(processes=2).wait() == [0, 0]
    same(tmp_path / "run", undisturbed(processes=2))


def test_under_the_launcher_the_cause_is_named_and_all_ends_soon(settings, tmp_path) -> None:
    command = [*launcher(2), "tests/faults/injected.py", *settings, "--run.dir", str(tmp_path / "run")]
    job = Launched(command, tmp_path / "out", FAULTS='[{"do": "raise", "at": "step", "n": 7, "rank": 1}]')
    assert job.wait() == 1
    job.all_end()
    assert errors(job) == ["error: rank 1 failed: ValueError: a fault was injected at step"]


EXCHANGES = pytest.mark.parametrize(
    "environment", [{}, {"LOCAL_WORLD_SIZE": "1"}], ids=["through shared memory", "as on two hosts"]
)


@EXCHANGES
def test_a_rank_that_exits_0_early_is_no_success(environment, start, tmp_path) -> None:
    job = start(environment=environment, processes=2, faults=[{"do": "exit0", "at": "step", "n": 7, "rank": 1}])
    assert job.wait() == [1, 0], job.output
    (error,) = errors(job)
    assert re.fullmatch("error: lost contact with rank 1 of 2 on .*, which ended: it was killed or crashed", error)
    assert not (tmp_path / "run" / "evaluation.json").exists()
    assert status(tmp_path / "run")["state"] == "failed"


SILENT = r"gave no sign of life for \d+ s: it is stopped, or its node or network is down"


@pytest.mark.parametrize(
    ("hung", "fault", "how", "environment"),
    [
        (1, {"do": "stop", "at": "step", "n": 7}, SILENT, {}),
        (1, {"do": "stop", "at": "evaluation"}, SILENT, {"LOCAL_WORLD_SIZE": "1"}),
        (0, {"do": "stop", "at": "step", "n": 7}, SILENT, {"LOCAL_WORLD_SIZE": "1"}),
        (1, {"do": "stop", "at": "open"}, SILENT, {}),
        (1, {"do": "hang", "at": "batch"}, r"lives .*: it hangs at line \d+ of job/training/step.py \(_loss\)", {}),
    ],
    ids=["in a step", "while validating", "rank zero", "before the data", "in loading"],
)
def test_a_rank_that_hangs_is_given_up_and_named_by_those_that_wait(
    hung, fault, how, environment, start, undisturbed, same, tmp_path
) -> None:
    job = start("--runtime.timeout", "3", environment=environment, processes=2, faults=[fault | {"rank": hung}])
    job.ranks[1 - hung].join(120)
    assert job.ranks[1 - hung].exitcode == 1, job.output
    job.signal(signal.SIGKILL, hung)  # what the launcher does
    job.wait()
    (error,) = errors(job)
    assert re.fullmatch(rf"error: lost contact with rank {hung} of 2 on \S+, which (?:{how})", error), error
    assert status(tmp_path / "run")["state"] == ("running" if hung == 0 else "failed")
    if (hung, fault["at"]) == (1, "step"):
        assert start(processes=2).wait() == [0, 0]
        same(tmp_path / "run", undisturbed(processes=2))


def test_a_slow_node_is_named_with_its_figure_and_stops_nothing(start, tmp_path) -> None:
    throttled = [{"do": "throttle", "at": "open", "rank": 1}]
    job = start("--train.epochs", "1", environment={"LOCAL_WORLD_SIZE": "1"}, processes=2, faults=throttled)
    assert job.wait() == [0, 0], job.output
    node = socket.gethostname()  # of both
    said = re.findall(r"warning: (\S+) is slow, and holds up all: (.*)", job.output)
    assert len(said) == 1, job.output
    assert said[0][0] == node
    assert re.search(r"rank 1 multiplies at \S+ GFLOP/s, and the median is", said[0][1])
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert list(environment["slow_nodes"]) == [node]
    slow, fast = (environment["nodes"][rank]["gflops"] for rank in (1, 0))
    assert slow < fast / 5
    told = status(tmp_path / "run")
    assert len(told["waited"]) == 2
    assert all(100e6 < peak < 10e9 for peak in told["peak_memory"]), told
    assert len(told["peak_memory"]) == 2


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("what", ["nan", "inf"])
def test_numbers_that_are_not_finite_on_one_rank_stop_all_and_are_never_saved(
    what, processes, start, undisturbed, same, tmp_path
) -> None:
    rank = processes - 1
    slow = {"do": "slow", "at": "step", "n": None}  # so that no save is left out for one that is being written
    job = start(processes=processes, faults=[{"do": what, "at": "step", "n": 14, "rank": rank}, slow])
    assert job.wait() == [1] * processes, job.output
    step = 14 if what == "nan" else 15  # a gradient shows in the loss after it
    assert errors(job) == [f"error: the loss is not finite at step {step}; last good checkpoint: step-00000012"], (
        job.output
    )
    assert "Traceback" not in job.output
    run = tmp_path / "run"
    assert checkpoints(run) == ["step-00000008", "step-00000012"]
    checkpoint.read(run / "checkpoints" / "step-00000012")
    assert max(line["step"] for line in metrics(run)) < 14
    if (what, processes) == ("nan", 2):
        assert start(processes=processes).wait() == [0] * processes
        same(run, undisturbed(processes=processes))


@pytest.mark.parametrize("processes", [1, 2])
def test_an_infinite_gradient_in_the_very_last_step_is_no_finished_run(processes, start, tmp_path) -> None:
    job = start(processes=processes, faults=[{"do": "inf", "at": "step", "n": 36, "rank": processes - 1}])
    assert job.wait() == [1] * processes, job.output
    expected = r"error: weights are not finite after step 36; last good checkpoint: step-000000(28|32)"
    assert len(errors(job)) == 1
    assert re.fullmatch(expected, errors(job)[0])
    assert "Traceback" not in job.output
    assert not (tmp_path / "run" / "evaluation.json").exists()
    assert start(processes=processes).wait() == [0] * processes


def test_on_other_numbers_of_processes_it_goes_on_with_the_same_images_in_the_same_order(
    start, undisturbed, tmp_path
) -> None:
    arguments = ("--train.batch_size", "126", "--train.epochs", "8", "--checkpoint.every_steps", "1")
    run = tmp_path / "run"
    for processes, step in ((1, 6), (2, 11), (3, 18), (2, 23)):  # 4 steps an epoch: in the middle of one
        job = start(
            *arguments, processes=processes, faults=[{"do": "term", "at": "step", "n": step, "rank": processes - 1}]
        )
        assert job.wait() == [75] * processes, job.output
    assert start(*arguments).wait() == [0]
    whole = undisturbed(*arguments)
    assert len(metrics(run)) == len(metrics(whole))
    for line, expected in zip(metrics(run), metrics(whole), strict=True):
        assert line.keys() == expected.keys()
        for key in expected.keys() - {"fingerprint"}:  # which tells rounding as well
            value, most = expected[key], 0.02 if "accuracy" in key else 0
            assert line[key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-4, abs=most)), key
    found, expected = result(run), result(whole)
    assert found["images"] == expected["images"] == 150
    assert [row["images"] for row in found["classes"]] == [15] * 10
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)
