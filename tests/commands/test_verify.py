"""A run is trained once more, and whatever is not as it was is found, and named."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ledger
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.jobs import REPOSITORY, environment, metrics, read, run_job, the_error

from job import verify
from job.config.errors import UserError
from job.runs import reader

STEPS = 18  # of two epochs


@pytest.fixture(scope="module")
def run(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs of nine steps, with dropout's place taken by augmentation, in two shards."""
    path = tmp_path_factory.mktemp("runs") / "run"
    options = ["--train.epochs=2", "--train.batch_size=40", "--run.log_every=4", "--train.gradient_shards=2"]
    options += ["--train.ema=0.9", "--data.augment=[flip,crop]", "--schedule.name=cosine", "--run.weights=last"]
    finished = run_job("train.py", *small, *options, f"--run.dir={path}")
    assert finished.returncode == 0, finished.stderr
    return path


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A run to be changed."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_a_run_is_equal_from_the_beginning_to_its_result_and_from_a_checkpoint_on_more_processes(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    steps = [line["step"] for line in metrics(run, "train")]
    assert steps == [4, 8, 9, 12, 16, STEPS]
    assert len({line["fingerprint"] for line in metrics(run, "train")}) == len(steps)
    whole = run_job("verify.py", run)
    assert (whole.returncode, whole.stderr) == (0, "")
    accuracy = read(run / "evaluation.json")["accuracy"]
    said = f"equal, 6 fingerprints and the accuracy of {accuracy:.2%} on the test images over {STEPS} steps"
    assert whole.stdout.splitlines()[-1] == said
    some = run_job("verify.py", run, "--steps=9:16", processes=2)
    assert (some.returncode, some.stderr) == (0, "")
    assert some.stdout.splitlines()[-1] == "equal, 2 fingerprints over 7 steps"
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def reseed(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("seed: 42", "seed: 43"))


def flip(run: Path, name: str) -> None:
    """One bit, the last of a tensor's first number, such as no training would notice."""
    checkpoint = run / "checkpoints" / "step-00000009"
    tensors = load_file(checkpoint / name)
    tensors[max(tensors)].view(-1)[:1].view(torch.int32)[0] ^= 1
    save_file(tensors, checkpoint / name)
    manifest = read(checkpoint / "manifest.json")
    content = (checkpoint / name).read_bytes()
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def forge(run: Path, **changes: Any) -> None:
    """Another fingerprint at step 4, by a start on other software."""
    text = (run / "metrics.jsonl").read_text()
    line = metrics(run)[0]
    (run / "metrics.jsonl").write_text(text.replace(line["fingerprint"], "0123456789abcdef"))
    known = read(run / "environment.json")
    known["attempts"][0] |= changes
    (run / "environment.json").write_text(json.dumps(known))


SAME = "software, hardware, threads and code are what they were"
NOT_SAVED = "step-00000009 is not what the run saved: its tensors are not those that training had"
TAMPERED: dict[str, tuple[Callable[[Path], None], str, str, str]] = {
    "seed": (reseed, "0:9", "step 4 differs", "train.seed: 42 -> 43 in config.yaml"),
    "seed, from a checkpoint": (reseed, "9:18", "step 12 differs", "train.seed: 42 -> 43 in config.yaml"),
    "weights": (partial(flip, name="model.safetensors"), "9:12", NOT_SAVED, SAME),
    "moments": (partial(flip, name="optimizer.safetensors"), "9:12", NOT_SAVED, SAME),
    "average": (partial(flip, name="copies.safetensors"), "9:12", NOT_SAVED, SAME),
    "torch": (partial(forge, torch="1.0"), "0:4", "step 4 differs: 0123456789abcdef -> ", "torch 1.0 -> 2."),
    "hardware": (partial(forge, threads=3, devices=["Z80"]), "0:4", "differs", "threads 3 -> 1; devices Z80 ->"),
    "nothing else": (forge, "0:4", "step 4 differs", SAME),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_what_was_changed_is_found_at_its_step_and_named(name: str, copy: Path) -> None:
    change, steps, where, why = TAMPERED[name]
    change(copy)
    verified = run_job("verify.py", copy, "--steps", steps, "--runtime.threads=1")
    assert (verified.returncode, verified.stderr) == (1, "")
    *_, found, reason = verified.stdout.splitlines()
    assert where in found
    assert why in reason


def test_a_changed_line_of_code_is_found_and_named(run: Path, tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "job", tmp_path / "job", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "configs").mkdir()
    step = tmp_path / "job" / "training" / "step.py"
    text = step.read_text()
    changed = text.replace("return part.weight * ", "return 1.0000002 * part.weight * ")
    assert changed != text
    step.write_text(changed)
    words = [sys.executable, str(tmp_path / "job" / "verify.py"), str(run), "--steps=0:4"]
    verified = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=240)
    assert (verified.returncode, verified.stderr) == (1, "")
    *_, found, reason = verified.stdout.splitlines()
    assert found.startswith("step 4 differs")
    assert "code in job/" in reason


BAD = {
    "no such step": (["--steps=5:9"], "there is no checkpoint at step 5: begin at 0 or 9 or 18"),
    "between lines": (
        ["--steps=0:3"],
        "no fingerprint to compare in steps 0 to 3: the next are at 4, 8, 9, the last",
    ),
    "beyond": (["--steps=18:27"], "no fingerprint to compare in steps 18 to 27: the last is at 18"),
    "backwards": (["--steps=9:4"], "no fingerprint to compare in steps 9 to 4"),
    "no steps": (["--steps=4"], "--steps 4: must be A:B"),
    "other settings": (["--train.seed=1"], "not the run's (train.seed: 42 -> 1): leave them out"),
    "how it trains": (["--train.epochs=3"], "not the run's (how it trains): leave them out"),
    "unknown": (["--train.sed=1"], "did you mean train.seed?"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_verified_is_said_before_anything_is_trained(name: str, run: Path) -> None:
    words, problem = BAD[name]
    with pytest.raises(UserError) as told:
        verify.main([str(run), *words])
    assert problem in str(told.value)


def test_a_run_of_an_earlier_program_or_of_more_processes_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="no run is named"):
        verify.main(["--steps=0:9"])
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("gradient_shards: 2", "gradient_shards: null"))
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="trained on 1 process, these are 3, and without"):
        verify.main([str(copy)])
    lines = [{key: value for key, value in line.items() if key != "fingerprint"} for line in metrics(copy)]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match="holds no fingerprints of weights"):
        verify.main([str(copy)])


def test_other_images_are_refused(copy: Path, cache: Path) -> None:
    evaluation = read(copy / "evaluation.json") | {"data": "0" * 64}
    (copy / "evaluation.json").write_text(json.dumps(evaluation))
    assert "the images are not those that" in the_error(run_job("verify.py", copy, "--steps=0:4"))


def test_a_run_is_published_without_names_and_read_back(run: Path, pictures: Path, tmp_path: Path) -> None:
    ledger.publish(run, tmp_path / "ledger")
    text = "".join(path.read_text() for path in (tmp_path / "ledger").iterdir())
    for name in (str(run.parent), str(pictures.parent), socket.gethostname(), str(Path.home())):
        assert f'"{name}' not in text
        assert f"{name}/" not in text
    assert restored_to(tmp_path / "ledger") == restored_to(run)
    with pytest.raises(UserError, match="no checkpoint at step 9: begin at 0"):
        verify.main([str(tmp_path / "ledger"), "--steps=9:18"])


def restored_to(path: Path) -> tuple[object, ...]:
    """What a reader of ``path`` compares."""
    found = reader.read(path)
    return found.metrics, found.evaluation, found.environment["torch"], found.setting("train.gradient_shards")


LEDGERS = sorted(path.parent for path in (REPOSITORY / "docs" / "runs").glob("*/config.yaml"))


@pytest.mark.parametrize("published", LEDGERS, ids=lambda path: path.name)
def test_what_is_published_names_no_machine_and_holds_all_that_verify_needs(published: Path) -> None:
    assert {path.name for path in published.iterdir()} == {
        *("config.yaml", "metrics.jsonl", "environment.json", "evaluation.json")
    }
    text = "".join(path.read_text() for path in published.iterdir())
    assert not re.search(r"(?<!\w)[/~]\w+/", text)
    assert set(read(published / "environment.json")["hosts"]) == {"node0"}
    lines = metrics(published, "train")
    assert all(re.fullmatch("[0-9a-f]{16}", line["fingerprint"]) for line in lines)
    assert lines[-1]["step"] == metrics(published, "validation")[-1]["step"]


def test_a_published_run_is_computed_anew_or_verify_names_what_is_other_here() -> None:
    """Where torch and the processor are those that it was published from, its bits are these; else they may be."""
    published = REPOSITORY / "docs" / "runs" / "quickstart"
    then = read(published / "environment.json")
    verified = run_job("verify.py", published, "--steps=0:50")
    assert verified.stderr == ""
    if verified.returncode:
        *_, found, reason = verified.stdout.splitlines()
        assert re.fullmatch("step 50 differs: [0-9a-f]{16} -> [0-9a-f]{16}", found)
        assert re.search("devices|instructions|torch", reason), "the same platform, and other bits: publish it anew"
        assert then["threads"] == 1
    else:
        assert verified.stdout.splitlines()[-1] == "equal, 1 fingerprint over 50 steps"


MANY: dict[str, tuple[list[str], int, tuple[int, ...]]] = {
    "shards": (["--train.gradient_shards=4", "--train.mixup=0.2", "--train.ema=0.9"], 2, (1, 2, 4)),
    "threads": (["--runtime.threads=2", "--optimizer.name=sgd", "--optimizer.weight_decay=0.001"], 1, (1,)),
    "processes": (["--train.clip_norm=1", "--checkpoint.every_steps=7", "--run.weights=best"], 2, (2,)),
    "bf16": (["--runtime.precision=bf16", "--schedule.name=onecycle", "--train.gradient_accumulation=2"], 1, (1,)),
}


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_there_are_no_false_alarms(small: list[str], tmp_path: Path) -> None:
    """REPLAYS=200: so many stretches drawn at random, of four kinds of runs, each trained in two starts."""
    draw = random.Random(0)
    for name, (options, processes, _) in MANY.items():
        for epochs in (2, 3) if "onecycle" not in str(options) else (3,):
            words = [*small, "--train.batch_size=40", "--run.log_every=4", *options, f"--train.epochs={epochs}"]
            finished = run_job("train.py", *words, f"--run.dir={tmp_path / name}", processes=processes)
            assert finished.returncode == 0, finished.stderr
    for number in range(int(os.environ.get("REPLAYS", "12"))):
        name = list(MANY)[number % len(MANY)]
        run = tmp_path / name
        saved = [int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir()]
        lines = [line["step"] for line in metrics(run, "train")]
        first = draw.choice([0, *(step for step in saved if step < max(lines))])
        last = draw.choice([step for step in lines if step > first])
        processes = draw.choice(MANY[name][2])
        verified = run_job("verify.py", run, f"--steps={first}:{last}", processes=processes)
        assert (verified.returncode, verified.stderr) == (0, ""), f"{number} {name} {first}:{last}: {verified.stdout}"
        print(f"{number} {name} {first}:{last} on {processes}: {verified.stdout.splitlines()[-1]}", flush=True)
