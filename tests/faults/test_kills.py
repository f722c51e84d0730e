"""Killed with SIGKILL anywhere, a run that is continued ends with the bits of one that was never disturbed."""

from __future__ import annotations

import json

import pytest
from jobs import status

from job.runs import reader

KILLED = [-9]

INSTANTS_OF_A_SAVE = [
    "model.safetensors",
    "optimizer.safetensors",
    "trainer.json",
    "manifest.json",
    "before rename",
    "after rename",
    "retire",
]

FINE_TUNING = (
    *("--model.freeze", '["0"]', "--train.ema", "0.9", "--train.class_weights", "balanced", "--run.weights", "best"),
    *("--train.patience", "1", "--optimizer.backbone_rate", "0.5", "--optimizer.weight_decay", "0.01"),
    *("--optimizer.decay_norms", "false", "--train.mixup", "0.4", "--train.cutmix", "1"),
)


def test_killed_at_any_instant_of_a_save_ends_with_the_same_bits(start, undisturbed, same, tmp_path) -> None:
    for place in INSTANTS_OF_A_SAVE:
        job = start(faults=[{"do": "kill", "at": place, "n": 2}])
        assert job.wait() == KILLED, job.output
    assert start().wait() == [0]
    same(tmp_path / "run", undisturbed())
    assert status(tmp_path / "run")["attempt"] == len(INSTANTS_OF_A_SAVE) + 1


@pytest.mark.parametrize("place", ["model.safetensors", "before rename", "after rename"])
def test_killed_during_the_first_save_starts_again_and_ends_with_the_same_bits(
    place, start, undisturbed, same, tmp_path
) -> None:
    job = start(faults=[{"do": "kill", "at": place}])
    assert job.wait() == KILLED, job.output
    job = start()
    assert job.wait() == [0]
    assert ("from step 4" in job.output) == (place == "after rename")
    same(tmp_path / "run", undisturbed())


def test_killed_several_times_within_each_epoch_ends_with_the_same_bits(start, undisturbed, same, tmp_path) -> None:
    for step in (2, 6, 11, 13, 19, 24, 31, 36):
        job = start(faults=[{"do": "kill", "at": "step", "n": step}])
        assert job.wait() == KILLED, job.output
        assert "the code in job/ is not" not in job.output
    known = json.loads((tmp_path / "run" / "environment.json").read_text())
    known["attempts"][-1]["code"] = "0" * 64
    (tmp_path / "run" / "environment.json").write_text(json.dumps(known))
    job = start()
    assert job.wait() == [0]
    assert job.output.count("the code in job/ is not that of the last start (commit") == 1
    run = reader.read(tmp_path / "run")
    known, spent, last = run.environment["attempts"], run.spent, (run.path / "status.json").stat().st_mtime
    assert sum(spent.values()) == pytest.approx(last - known[0]["began"], abs=1.0), "each second is in one place"
    assert min(spent["training"], spent["repeated"], spent["startup"], spent["waiting"]) > 0
    assert run.status["seconds_in_all"] == spent
    same(tmp_path / "run", undisturbed())


def test_killed_while_validating_and_testing_ends_with_the_same_bits(start, undisturbed, same, tmp_path) -> None:
    for _ in range(3):
        assert start(faults=[{"do": "kill", "at": "evaluation"}]).wait() == KILLED
    assert start(faults=[{"do": "kill", "at": "evaluation", "n": 2}]).wait() == KILLED
    assert start().wait() == [0]
    same(tmp_path / "run", undisturbed())


def test_killed_between_the_final_files_ends_with_the_same_bits(start, undisturbed, same, tmp_path) -> None:
    for name in ("model.safetensors", "predictions.safetensors", "evaluation.json"):
        job = start(faults=[{"do": "kill", "at": f"wrote {name}"}])
        assert job.wait() == KILLED, f"{name}: {job.output}"
        if name != "evaluation.json":
            assert start(faults=[{"do": "kill", "at": f"named {name}"}]).wait() == KILLED
        assert not (tmp_path / "run" / "evaluation.json").exists()
    job = start()
    assert job.wait() == [0]
    same(tmp_path / "run", undisturbed())
    assert [path.name for path in (tmp_path / "run").glob(".*")] == [], "left-over temporary files"


MIXED = ("--train.mixup", "0.2", "--train.cutmix", "1")


@pytest.mark.parametrize(
    ("network", "arguments"),
    [
        (
            "narrow",
            ("--model.name", "vgg16", *MIXED, "--data.augment", "[crop,flip,resized_crop,rotate,color,erasing]"),
        ),
        ("narrow", ("--model.name", "vgg16_bn", "--data.augment", "[flip]", "--train.gradient_accumulation", "2")),
        ("", ("--optimizer.name", "sgd", "--schedule.name", "onecycle", "--train.clip_norm", "1")),
        ("", ("--optimizer.name", "adamw", "--optimizer.weight_decay", "0.1", "--schedule.name", "cosine")),
        (
            "narrow",
            (*FINE_TUNING, "--model.name", "vgg16_bn", "--data.validation", "0.24", "--train.batch_size", "28"),
        ),
    ],
    ids=["dropout and augmentation", "batch normalisation in parts", "sgd", "adamw", "fine-tuning, a last batch of 1"],
)
def test_killed_with_every_kind_of_state_ends_with_the_same_bits(
    network, arguments, start, undisturbed, same, tmp_path
) -> None:
    for step in (7, 18, 27):
        assert start(*arguments, network=network, faults=[{"do": "kill", "at": "step", "n": step}]).wait() == KILLED
    assert start(*arguments, network=network).wait() == [0]
    same(tmp_path / "run", undisturbed(*arguments, network=network))


def test_two_processes_either_of_which_is_killed_end_with_the_same_bits(start, undisturbed, same, tmp_path) -> None:
    faults = [("step", 6, 1), ("step", 7, 0), ("step", 18, 1), ("before rename", 2, 0), ("evaluation", 1, 1)]
    for point, n, rank in faults:
        job = start(processes=2, faults=[{"do": "kill", "at": point, "n": n, "rank": rank}])
        statuses = job.wait()
        assert (statuses[rank], statuses[1 - rank]) == (-9, 1), job.output
    assert start(processes=2).wait() == [0, 0]
    same(tmp_path / "run", undisturbed(processes=2))


@pytest.mark.parametrize("processes", [3])  # and 4, and more, but those take their time on two cores
def test_several_processes_add_up_in_the_same_order_after_a_kill(processes, start, undisturbed, same, tmp_path) -> None:
    arguments = ("--train.batch_size", "36", "--model.name", "vgg16", "--data.augment", "[flip,crop]")
    for step in (6, 19):
        job = start(*arguments, processes=processes, network="narrow", faults=[{"do": "kill", "at": "step", "n": step}])
        job.wait()
    job = start(*arguments, processes=processes, network="narrow")
    assert job.wait() == [0] * processes, job.output
    same(tmp_path / "run", undisturbed(*arguments, processes=processes, network="narrow"))


def test_killed_after_the_result_the_next_start_writes_what_is_missing(start, undisturbed, same, tmp_path) -> None:
    """Out of memory while the report is drawn, say. A file that somebody deleted is written as well."""
    run = tmp_path / "run"
    for place in ("named evaluation.json", "report", "report"):
        job = start(faults=[{"do": "kill", "at": place}])
        assert job.wait() == KILLED, job.output
        assert "test: " not in (run / "log.txt").read_text()
    before = {path: path.stat().st_mtime_ns for path in (run / "evaluation.json", run / "metrics.jsonl")}
    (run / "model.safetensors").unlink()
    job = start()
    assert job.wait() == [0]
    assert "what is missing is written: model.safetensors, report.html, figures, log.txt" in job.output
    assert (run / "log.txt").read_text().count("test: ") == 1
    assert (status(run)["state"], status(run)["complete"], status(run)["attempt"]) == ("finished", True, 1)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    same(run, undisturbed())
    log = (run / "log.txt").read_text()
    assert start().wait() == [0]
    assert (run / "log.txt").read_text() == log


SHARDS = ("--train.batch_size", "60", "--train.gradient_shards", "12")
FEW = ("--train.epochs", "1", "--data.validation", "0.9", "--train.batch_size", "12", "--train.gradient_shards", "4")


@pytest.mark.parametrize(
    ("network", "arguments", "kills"),
    [
        (
            "narrow",
            ("--model.name", "vgg16_bn", *SHARDS),
            ((4, "step", 5), (3, "evaluation", 1), (1, "copies.safetensors", 1)),
        ),
        pytest.param(
            "",
            ("--model.name", "resnet18", "--model.freeze", '["layer4"]', "--checkpoint.every_steps", "1", *FEW),
            ((4, "step", 1), (1, "step", 2)),
            marks=pytest.mark.long,
        ),
    ],
    ids=["vgg16_bn, shards of one image and of none", "resnet18"],
)
def test_with_all_of_fine_tuning_on_and_shards_any_number_of_processes_goes_on_with_the_same_bits(
    network, arguments, kills, start, undisturbed, same, tmp_path
) -> None:
    arguments = (*FINE_TUNING, *arguments)
    for processes, point, n in kills:
        job = start(*arguments, processes=processes, network=network, faults=[{"do": "kill", "at": point, "n": n}])
        assert -9 in job.wait(), job.output
    job = start(*arguments, processes=2, network=network)
    assert job.wait() == [0, 0], job.output
    same(tmp_path / "run", undisturbed(*arguments, network=network))
