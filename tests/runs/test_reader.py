"""What stands in a run directory may be damaged, or made by somebody else: one line says so, and nothing is lost."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support import run_directories
from support.jobs import read, run_job

from job import compare, report, watch
from job.config.errors import UserError
from job.display import comparison_page
from job.evaluation import comparison
from job.runs import restored

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
    restored.class_names(run)


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
