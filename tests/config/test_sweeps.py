"""A sweep's file: every run of it, or one line that says what is wrong and in which arm."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.jobs import REPOSITORY

from job.config import sweeps
from job.config.errors import UserError

SHIPPED = sorted((REPOSITORY / "configs" / "sweeps").glob("*.yaml"))
BASE = REPOSITORY / "configs" / "quickstart.yaml"
GRID = ", ".join(f"key{i}: [1, 2, 3, 4, 5, 6, 7]" for i in range(40))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: str(file.stem))
def test_what_is_shipped_can_be_run(file: Path) -> None:
    planned = sweeps.read(file)
    assert len({run.path for run in planned}) == len(planned) >= 10
    assert [run.seed for run in planned] == sorted(run.seed for run in planned)  # the first comparisons come early
    assert all(run.path == REPOSITORY / "runs" / file.stem / run.arm / f"seed-{run.seed}" for run in planned)


def test_a_grid_is_every_combination_of_its_values_beside_the_base(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"base: {BASE}\nseeds: [3, 1]\n"
        "grid: {optimizer: {learning_rate: [0.1, 1e-3]}, train.clip_norm: [null, 1.0]}\n"
    )
    planned = sweeps.read(file, tmp_path)
    names = [f"learning_rate={rate},clip_norm={norm}" for rate in ("0.1", "0.001") for norm in ("null", "1.0")]
    assert [(run.seed, run.arm) for run in planned] == [(seed, name) for seed in (3, 1) for name in names]
    last = planned[-1].settings
    assert (last.optimizer.learning_rate, last.train.clip_norm, last.train.seed) == (0.001, 1.0, 1)
    assert last.data.source == "shapes10"
    assert planned[-1].path == tmp_path / "mine" / "learning_rate=0.001,clip_norm=1.0" / "seed-1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: nowhere.yaml\nseeds: [1]\narms: {a: {}}", "base=nowhere.yaml: name a configuration"),
        ("seeds: [1]\narms: {a: {}}", "base=None: name a configuration"),
        ("base: BASE\nseeds: [1]", "must have arms or a grid, and not both"),
        ("base: BASE\nseeds: [1]\narms: {a: {}}\ngrid: {train.epochs: [1]}", "must have arms or a grid, and not both"),
        ("base: BASE\nseeds: 5\narms: {a: {}}", "seeds=5: give a list"),
        ("base: BASE\nseeds: [1, 1]\narms: {a: {}}", "give a list of different whole numbers"),
        ("base: BASE\nseeds: [true]\narms: {a: {}}", "give a list of different whole numbers"),
        ("base: BASE\nseeds: []\narms: {a: {}}", "give a list"),
        ("base: BASE\nseeds: [1]\narms: {ok: {}, bad: {train.epoch: 1}}", "arm bad: unknown key train.epoch: did you"),
        (
            "base: BASE\nseeds: [1]\narms: {bad: {train: {epochs: x}}}",
            "arm bad: train.epochs=x: must be",
        ),
        ("base: BASE\nseeds: [1]\narms: {bad: {train.seed: 3}}", "arm bad: train.seed: is given by the sweep itself"),
        ("base: BASE\nseeds: [1]\narms: {../up: {}}", "arm '../up': is to be a directory's name"),
        ("base: BASE\nseeds: [1]\narms: {bad: 3}", "arm bad: must hold settings"),
        ("base: BASE\nseeds: [1]\ngrid: {train.epochs: 3}", "give a list of values for each key"),
        ("base: BASE\nseeds: [1]\ngrid: {train.epochs: [3, 3]}", "a value is given twice"),
        ("base: BASE\nseeds: [1]\narms: {}", "must have arms or a grid, and not both"),
        ("base: BASE\nseeds: [-1]\narms: {a: {}}", "train.seed=-1: must be"),
        (
            "base: BASE\nseeds: [1]\ngrid: {" + ", ".join(f"k{i}: [1, 2, 3, 4, 5, 6, 7]" for i in range(40)) + "}",
            "runs: ask",
        ),
        ("base: BASE\nseeds: [1]\narm: {}", "unknown key arm"),
        ("base: BASE\nseeds: [1]\narms: {a: {}, a: {}}", "key 'a' is given twice"),
        ("- 1", "must hold settings"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(text.replace("BASE", str(BASE)))
    with pytest.raises(UserError) as caught:
        sweeps.read(file)
    assert words in str(caught.value)
    assert str(file) in str(caught.value)
