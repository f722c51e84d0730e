"""What stands in a run directory may be damaged, or made by somebody else: one line says so, and nothing is lost."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import run_directories
from support.jobs import read, run_job

from job import compare, report, watch
from job.config.errors import UserError
from job.config.settings import Config, Data, Train
from job.display import comparison_page
from job.display.text import goodput
from job.evaluation import comparison
from job.runs import reader, restored
from job.runs.directory import RunDirectory
from job.training import optimizers

FREE = ("config.yaml", "environment.json")
"""in which no key need be there"""
SMALL = ("config.yaml", "metrics.jsonl", "evaluation.json", "status.json", "environment.json")
FLIPS = 10


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, "run" and "other"."""
    folder = tmp_path_factory.mktemp("runs")
    run_directories.write(folder / "run", resumed_at=(100,))
    run_directories.write(folder / "other", seed=7)
    return folder


def opened(run: Path) -> None:
    """What evaluate.py and predict.py read before the weights."""
    restored.of_run(str(run), [], "")
    restored.trained_on(run)


def tables(run: Path) -> None:
    """What compare.py shows before it draws."""
    comparison_page.tables(comparison.compare(comparison.read([run, run.with_name("other")])))


READERS: list[Callable[[Path], object]] = [lambda run: watch.main([str(run), "--once"]), tables, opened]
DRAWING: list[Callable[[Path], object]] = [
    lambda run: compare.main([str(run), str(run.with_name("other")), f"--out={run.with_name('out')}"]),
    lambda run: report.main([str(run)]),
]
"""take a second"""


@pytest.mark.parametrize("name", SMALL)
def test_whichever_bit_of_a_small_file_is_flipped_the_commands_read_it_or_name_it(name: str, runs: Path) -> None:
    file = runs / "run" / name
    content, draw = file.read_bytes(), random.Random(name)
    try:
        for number in range(FLIPS):
            place, bit = draw.randrange(len(content)), draw.randrange(8)
            file.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            for reads in READERS + (DRAWING if number == 0 else []):
                try:
                    reads(runs / "run")
                except UserError as error:
                    said = str(error)
                    assert str(file) in said or "run and other" in said, (place, bit)
    finally:
        file.write_bytes(content)


CONTENTS = {
    "empty": b"",
    "NUL": b"\0" * 100,
    "no UTF-8": b'{"state": "\xff\xfe"}\n',
    "another kind": b"[1, 2]\n",
    "nested deeply": b"[" * 100_000,
    "a giant number": b'{"step": 1' + b"0" * 5000 + b"}\n",
    "infinite": b'{"step": Infinity, "loss": 1e999}\n',
    "epoch 0": b'{"split": "validation", "epoch": 0, "step": 1, "train_loss": 1.0}\n',
}


@pytest.mark.parametrize("name", SMALL)
def test_a_small_file_of_anything_else_is_one_line_that_names_it(
    name: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "run", run)
    for content in list(CONTENTS.values())[: 5 if name in FREE else None]:
        (run / name).write_bytes(content)
        if name == "metrics.jsonl":
            assert watch.main([str(run), "--once"]) == 0
            assert ("left out" in capsys.readouterr().out) == bool(content.count(b"\n"))
            continue
        with pytest.raises(UserError, match=name):
            watch.main([str(run), "--once"])
    (run / name).unlink()
    (run / name).mkdir()
    with pytest.raises(UserError, match=name):
        watch.main([str(run), "--once"])
    (run / name).rmdir()
    os.mkfifo(run / name)  # would be waited for
    with pytest.raises(UserError, match=f"{name} is no file"):
        watch.main([str(run), "--once"])


def test_a_run_goes_on_past_small_files_that_are_damaged_and_writes_them_anew(small: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [*small, "--train.epochs=1", f"--run.dir={run}"]
    assert run_job("train.py", *options).returncode == 0
    result = read(run / "evaluation.json")
    for name, content in zip(("status.json", "environment.json", "evaluation.json"), CONTENTS.values(), strict=False):
        (run / name).write_bytes(content)
    done = run_job("train.py", *options)
    assert done.returncode == 0, done.stderr
    assert [done.stdout.count(f"passing over {run / name}") for name in SMALL[2:]] == [1, 1, 1]
    assert read(run / "evaluation.json") == result
    assert read(run / "status.json")["state"] == "finished"
    assert len(read(run / "environment.json")["attempts"]) == 1


LINKS = ("config.yaml", "metrics.jsonl", "status.json", "model.safetensors", "log.txt", "run.lock", "failure-0.txt")
LINKS += ("checkpoints", "figures", "tracking", "tensorboard", "checkpoints/step-00000009", "figures/loss.png")


@pytest.mark.parametrize("name", LINKS)
def test_a_link_out_of_a_run_directory_is_refused_and_nothing_is_touched_where_it_leads(
    name: str, runs: Path, tmp_path: Path
) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    shutil.copytree(runs / "run", run)
    outside.mkdir()
    (outside / "step-00000001").write_text("{}")
    (run / name).parent.mkdir(exist_ok=True)
    shutil.rmtree(run / name, ignore_errors=True)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(outside if "." not in name else outside / "step-00000001")
    for opens in (reader.read, opened, lambda run: RunDirectory(run, Config())):
        with pytest.raises(UserError, match=f"{name} is a link"):
            opens(run)
    assert [(path.name, path.read_text()) for path in outside.iterdir()] == [("step-00000001", "{}")]


def test_a_run_directory_below_a_link_is_one_like_others(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to(runs)
    (tmp_path / "mine").symlink_to(runs / "run")
    for run in (tmp_path / "runs" / "run", tmp_path / "mine"):
        assert reader.read(run).evaluation


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"split": "validation"}, ""),
        ({"fingerprint": "other"}, "fingerprint -> other"),
        ({"split": "train", "fingerprint": "other"}, "fingerprint -> other"),
        ({"classes": ("ant", "bee", "dog")}, "only the run has class cat; only the data have class dog"),
        ({"classes": ("bee", "ant", "cat")}, "another order"),
        ({"split": "validation", "settings": Config(train=Train(seed=3))}, "train.seed: 42 -> 3"),
        ({"split": "train", "settings": Config(data=Data(validation=0.5))}, "data.validation: 0.2 -> 0.5"),
        ({"settings": Config(train=Train(seed=3))}, ""),
    ],
)
def test_a_run_is_evaluated_on_images_of_its_classes_that_it_was_not_trained_on(
    changes: dict[str, Any], said: str, runs: Path
) -> None:
    given = {"settings": Config(), "split": "test", "classes": ("ant", "bee", "cat"), "fingerprint": "fingerprint"}
    given |= changes
    with pytest.raises(UserError, match=said) if said else contextlib.nullcontext():
        restored.require_data(runs / "run", **given)  # type: ignore[arg-type]


def test_moments_that_do_not_fit_the_network_never_reach_the_optimizer() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    good = optimizers.tensors_of(model, optimizer)
    optimizers.restore(model, optimizer, good)
    name = "weight/exp_avg"
    for bad in (
        {key: tensor for key, tensor in good.items() if key != name},
        good | {name: torch.zeros(3)},
        good | {name: good[name].double()},
        good | {"weight/step": torch.zeros(3)},
        good | {"other/exp_avg": torch.zeros(3)},
    ):
        with pytest.raises(UserError, match="does not fit the model"):
            optimizers.restore(model, optimizer, bad)


def test_where_the_time_of_a_run_went_adds_up_whoever_was_killed(tmp_path: Path) -> None:
    """Started at 1000 and killed at step 60; killed before it said anything; went on from 40; now at 90."""
    run = run_directories.write(tmp_path / "run", finished=False)
    spent = {"startup": 5.0, "training": 60.0, "checkpoints": 2.0, "evaluation": 3.0}
    starts = [
        {"attempt": 1, "began": 1000.0, "step": 0, "reached": 60, "seconds": spent},
        {"attempt": 2, "began": 1100.0},
        {"attempt": 3, "began": 1200.0, "step": 40},
    ]
    now = {"state": "running", "step": 90, "signal": None, "error": None, "attempt": 3}
    (run / "environment.json").write_text(json.dumps({"attempts": starts}))
    (run / "status.json").write_text(json.dumps(now | {"seconds": spent | {"training": 50.0}}))
    first, silent, last = reader.read(run).spending
    assert first == spent | {"training": 40.0, "repeated": 20.0}
    assert silent == {}
    assert last == spent | {"training": 50.0, "repeated": 0.0, "waiting": 130.0}
    whole = reader.read(run).spent
    assert sum(whole.values()) == 1260.0 - 1000.0, "from the first command to the last word"
    assert goodput(whole) == (
        "69.2% of 2 min 10 s trained steps that count; steps done again 20 s, start-up 10 s, checkpoints 4.0 s,"
        " evaluation 6.0 s, and 2 min 10 s of waiting between starts"
    )
    # Killed between its first words in one file and in the other: what is said is of the start before.
    (run / "status.json").write_text(json.dumps(now | {"attempt": 2, "seconds": spent}))
    assert reader.read(run).spending[2] == {}
