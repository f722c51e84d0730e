"""What a run directory may be continued with, what it may not, and that no job harms another one's."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import yaml
from jobs import Launched, launcher, metrics, result, sha256
from PIL import Image

STOP = [{"do": "term", "at": "step", "n": 7}]


def content(run: Path) -> dict[str, str]:
    """Every file but the lock, which names the process that looked last."""
    files = [path for path in run.rglob("*") if path.is_file() and path.name != "run.lock"]
    return {str(path.relative_to(run)): sha256(path) for path in files}


def test_another_configuration_is_refused_and_the_difference_shown(start, tmp_path) -> None:
    assert start(faults=STOP).wait() == [75]
    before = content(tmp_path / "run")
    for arguments, shown in (
        (("--train.seed", "7"), "train.seed"),
        (("--train.batch_size", "64"), "train.batch_size"),
        (("--optimizer.learning_rate", "0.1"), "optimizer.learning_rate"),
        (("--data.augment", "flip"), "data.augment"),
        (("--model.name", "vgg16"), "model.name"),
    ):
        job = start(*arguments, processes=2)
        assert job.wait()[0] == 2
        lines = [line for line in job.output.splitlines() if line.startswith("error:")]
        assert len(lines) == 1
        assert shown in lines[0]
        assert arguments[1] in lines[0]
        assert "Traceback" not in job.output
    assert content(tmp_path / "run") == before


def test_a_run_from_before_augment_was_a_list_goes_on_with_the_same_bits(start, undisturbed, same, tmp_path) -> None:
    arguments = ("--data.augment", "[flip,crop]")
    assert start(*arguments, faults=STOP).wait() == [75]
    run = tmp_path / "run"
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["data"]["augment"] = "flip_crop"
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    for checkpoint in (run / "checkpoints").iterdir():
        trainer, manifest = checkpoint / "trainer.json", checkpoint / "manifest.json"
        content = json.loads(trainer.read_text())
        content["config"]["data"]["augment"] = "flip_crop"
        trainer.write_text(json.dumps(content))
        listed = json.loads(manifest.read_text())
        listed["files"]["trainer.json"] = {"bytes": trainer.stat().st_size, "sha256": sha256(trainer)}
        manifest.write_text(json.dumps(listed))
    job = start("--data.augment", "flip_crop")
    assert job.wait() == [0], job.output
    assert "from step" in job.output
    same(run, undisturbed(*arguments))


def test_what_may_change_may_change(start, undisturbed, same, tmp_path) -> None:
    assert start(faults=STOP).wait() == [75]
    job = start(
        *("--checkpoint.every_steps", "5", "--checkpoint.keep", "3", "--runtime.timeout", "60", "--runtime.device"),
        *("cpu", "--run.max_minutes", "60", "--data.download", "false"),
    )
    assert job.wait() == [0], job.output
    same(tmp_path / "run", undisturbed())


def test_epochs_are_added_to_an_unfinished_and_to_a_finished_run(start, undisturbed, same, tmp_path) -> None:
    run = tmp_path / "run"
    assert start("--train.epochs", "1", faults=STOP).wait() == [75]
    assert start("--train.epochs", "2").wait() == [0]
    assert result(run)["epochs"] == 2
    before = content(run)
    job = start("--train.epochs", "1")
    assert job.wait() == [2]
    assert "has trained 2" in job.output
    assert content(run) == before, "a refusal takes nothing away"
    assert start("--train.epochs", "3", faults=[{"do": "kill", "at": "step", "n": 26}]).wait() == [-9]
    assert start("--train.epochs", "3").wait() == [0]
    same(run, undisturbed())


def test_under_a_cosine_other_epochs_go_on_as_schedule_extended_says_or_not_at_all(start, tmp_path) -> None:
    run, cosine = tmp_path / "run", ("--schedule.name", "cosine", "--run.log_every", "4")
    assert start("--train.epochs", "1", *cosine).wait() == [0]
    before = content(run)
    job = start("--train.epochs", "2", *cosine)
    assert job.wait() == [2]
    assert "schedule.extended" in job.output
    assert content(run) == before
    arguments = ("--train.epochs", "2", *cosine, "--schedule.extended", "restart")
    assert start(*arguments, faults=[{"do": "kill", "at": "step", "n": 18}]).wait() == [-9]
    assert start(*arguments).wait() == [0]
    rates = [line["learning_rate"] for line in metrics(run) if line["split"] == "train"]
    assert rates[: len(rates) // 2] == rates[len(rates) // 2 :], "the added epoch has a schedule of its own"


def test_without_config_yaml_the_checkpoint_tells_another_configuration_and_fewer_epochs(start, tmp_path) -> None:
    assert start(faults=[{"do": "term", "at": "step", "n": 30}]).wait() == [75]
    (tmp_path / "run" / "config.yaml").unlink()
    for arguments, shown in (
        (("--optimizer.learning_rate", "0.1"), "0.001 -> 0.1"),
        (("--train.epochs", "2"), "has trained 3"),
    ):
        job = start(*arguments)
        assert job.wait() == [2], job.output
        assert shown in job.output
        (tmp_path / "run" / "config.yaml").unlink(missing_ok=True)


def test_metrics_that_are_deleted_behind_a_live_run_are_written_again(start, undisturbed, same, tmp_path) -> None:
    run = tmp_path / "run"
    job = start(faults=[{"do": "slow", "at": "step", "n": None}])
    job.wait_for(lambda: (run / "metrics.jsonl").exists() and metrics(run))
    (run / "metrics.jsonl").unlink()
    (run / "run.lock").unlink()
    assert start().wait() == [2], "the directory itself is locked"
    assert job.wait() == [0]
    assert "written again" in job.output
    same(run, undisturbed())


def test_a_finished_run_is_shown_again_and_not_touched(start, undisturbed, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed(), run)
    before = content(run), sorted(path.stat().st_mtime_ns for path in run.rglob("*.*") if path.name != "run.lock")
    for processes in (1, 2):
        job = start(processes=processes)
        assert job.wait() == [0] * processes
        assert "test: " in job.output
        assert "epoch 1/" not in job.output
    after = content(run), sorted(path.stat().st_mtime_ns for path in run.rglob("*.*") if path.name != "run.lock")
    assert after == before


def test_a_data_set_that_has_changed_is_refused(start, settings, pictures, tmp_path) -> None:
    own = tmp_path / "pictures"
    shutil.copytree(pictures, own)
    arguments = ("--data.root", str(own), "--data.cache", str(tmp_path / "cache"))
    assert start(*arguments, faults=STOP).wait() == [75]
    Image.new("RGB", (32, 32), "red").save(own / "train" / "class0" / "0.png")
    job = start(*arguments)
    assert job.wait() == [2], job.output
    assert "the data set is not the one that this run began with" in job.output
    assert "Traceback" not in job.output
    shutil.copy(pictures / "train" / "class0" / "0.png", own / "train" / "class0" / "0.png")
    assert start(*arguments).wait() == [0]


def test_a_second_job_in_the_same_run_directory_is_refused_while_the_first_lives(
    start, undisturbed, same, tmp_path
) -> None:
    run = tmp_path / "run"
    first = start(faults=[{"do": "slow", "at": "step", "n": None}])
    first.wait_for(lambda: (run / "metrics.jsonl").exists() and metrics(run))
    second = start(processes=2)
    assert second.wait()[0] == 2, second.output
    assert first.ranks[0].exitcode is None, "it did not wait for the first to end"
    assert second.output.count("error:") == 1
    assert f"process {first.ranks[0].pid} on " in second.output
    assert "Traceback" not in second.output
    assert first.wait() == [0]
    same(run, undisturbed())


def test_a_run_directory_is_free_again_when_its_job_was_killed(start, undisturbed, same, tmp_path) -> None:
    first = start(faults=[{"do": "stop", "at": "step", "n": 9}])
    first.wait_for(lambda: Path(f"/proc/{first.ranks[0].pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    second = start()
    assert second.wait() == [2], "a job that stands still lives"
    first.signal(9)
    first.wait()
    assert start().wait() == [0]
    same(tmp_path / "run", undisturbed())


def test_no_environment_variable_finds_its_way_into_the_run_directory(start, tmp_path) -> None:
    secret = "hush-0123456789"
    assert start(environment={"WANDB_API_KEY": secret, "HF_TOKEN": secret}).wait() == [0]
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


def test_files_get_the_rights_that_the_umask_leaves(start, tmp_path) -> None:
    before = os.umask(0o027)
    try:
        job = start()  # the process that jobs are forked from has its own
        assert job.wait() == [0]
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert len(modes) == 1, "the same for every file"
    assert modes <= {0o640, 0o644}


def test_what_accelerate_finds_in_the_home_directory_and_in_the_environment_is_ignored(
    settings, undisturbed, same, tmp_path
) -> None:
    planted = tmp_path / "home" / "accelerate"
    planted.mkdir(parents=True)
    (planted / "default_config.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nmixed_precision: bf16\nuse_cpu: true\n"
        "num_processes: 1\nnum_machines: 1\n"
        "dynamo_config: {dynamo_backend: EAGER}\n"
    )
    arguments = ("--optimizer.name", "sgd", "--train.epochs", "2")
    command = [*launcher(1), "tests/faults/injected.py", *settings, *arguments, "--run.dir", str(tmp_path / "run")]
    environment = {"HF_HOME": str(tmp_path / "home"), "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}
    job = Launched(command, tmp_path / "out", **environment)
    assert job.wait() == 0, job.output
    same(tmp_path / "run", undisturbed(*arguments))


def test_who_waits_is_told_when_a_start_stops_fails_and_finishes_and_no_file_has_the_secret(start, tmp_path) -> None:
    told, run = tmp_path / "told", tmp_path / "run"
    hook = {"HOOK": f"sh -c 'echo secret-token; cat >> {told}; echo >> {told}'"}
    for faults, status in ((STOP, 75), ([{"do": "raise", "at": "step", "n": 9}], 1), ((), 0), ((), 0)):
        job = start("--run.notify", "$HOOK", faults=faults, environment=hook)
        assert job.wait() == [status], job.output
    messages = [json.loads(line) for line in told.read_text().splitlines()]
    assert [message["state"] for message in messages] == ["stopped", "failed", "finished"], "once each"
    assert [message["run"] for message in messages] == [str(run)] * 3
    assert messages[0]["text"] == "run: stopped, by SIGTERM, and saved"
    assert "accuracy" in messages[2]["text"]
    assert "notify: $HOOK" in (run / "config.yaml").read_text()
    for path in (path for path in run.rglob("*") if path.is_file()):
        assert b"secret-token" not in path.read_bytes(), path
