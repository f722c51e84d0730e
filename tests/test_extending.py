"""The examples of docs/extending.md, typed into a copy of the program."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.jobs import REPOSITORY, environment

PAGE = REPOSITORY / "docs" / "extending.md"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the program with every file and every change that the page shows."""
    copy = tmp_path_factory.mktemp("program")
    for name in ("job", "configs"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    kinds = [kind for kind, _ in blocks]
    assert kinds.count("python") == kinds.count("diff") == 3
    for kind, content in blocks:
        if kind == "python":
            path = re.match(r"# (job/\w+/\w+\.py)\n", content)
            assert path is not None
            assert not (REPOSITORY / path[1]).exists()
            (copy / path[1]).write_text(content)
        elif kind == "diff":
            done = subprocess.run(["git", "apply", "-"], input=content, text=True, cwd=copy, capture_output=True)
            assert done.returncode == 0, done.stderr
    return copy


def train(program: Path, *options: str, name: str = "run") -> Path:
    run = program / "runs" / name
    command = [sys.executable, "job/train.py", *options, "--run.trackers=[]", f"--run.dir={run}"]
    done = subprocess.run(command, cwd=program, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return run


def test_own_network_own_data_and_own_metric_work_together_as_the_page_shows(program: Path) -> None:
    noise = np.random.default_rng(0)
    arrays = {"classes": np.array(["dark", "light"])}
    for split, count in (("train", 150), ("test", 61)):
        labels = noise.integers(0, 2, count)
        values = noise.integers(0, 128, (count, 32, 32, 3)) + 100 * labels[:, None, None, None]
        arrays |= {f"{split}_images": values.astype(np.uint8), f"{split}_labels": labels}
    np.savez(program / "pictures.npz", **arrays)
    options = ["--model.name=tiny", "--data.source=arrays", "--data.root=pictures.npz", "--train.epochs=4"]
    run = train(program, *options, "--train.batch_size=16", "--optimizer.learning_rate=0.01")
    result = json.loads((run / "evaluation.json").read_text())
    assert [row["name"] for row in result["classes"]] == ["dark", "light"]
    assert result["images"] == 61
    assert result["accuracy"] > 0.8
    assert result["parameters"] == 5_418 - 8 * 33

    said = load_file(run / "predictions.safetensors")
    assert torch.equal(said["labels"], torch.from_numpy(arrays["test_labels"]))
    far = said["probabilities"].numpy() - np.eye(2)[said["labels"].numpy()]
    assert result["brier"] == pytest.approx((far**2).sum(1).mean(), abs=1e-6)


def test_own_network_takes_images_smaller_than_vggs(program: Path) -> None:
    noise = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for shade, name in ((60, "dark"), (190, "light")):
            folder = program / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 60, (20, 20, 3), dtype=np.uint8) + np.uint8(shade)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    options = ["--model.name=tiny", "--data.source=folder", "--data.root=images", "--data.image_size=16"]
    run = train(program, *options, "--train.epochs=1", "--train.batch_size=4", name="small")
    assert json.loads((run / "evaluation.json").read_text())["images"] == 8


def test_an_archive_of_the_wrong_kind_is_one_line(program: Path) -> None:
    wrong = {f"{split}_{part}": np.zeros(3) for split in ("train", "test") for part in ("images", "labels")}
    np.savez(program / "wrong.npz", classes=np.array(["a"]), **wrong)
    command = [sys.executable, "job/train.py", "--data.source=arrays", "--data.root=wrong.npz"]
    done = subprocess.run(command, cwd=program, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert "give uint8 [N, 32, 32, 3]" in done.stderr
    assert done.stderr.count("\n") == 1
