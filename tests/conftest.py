"""What tests share: a small data set, and a cache for decoded pictures."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch come: test processes share the cores

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoded pictures, shared by all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 430 training and 103 test pictures in three classes that can be learnt: no round numbers."""
    root = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0)
    for split, counts in (("train", (143, 143, 144)), ("test", (34, 34, 35))):
        for channel, (name, count) in enumerate(zip(("blue", "green", "red"), counts, strict=True)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                values = noise.integers(0, 200, (32, 32, 3), dtype=np.uint8)
                values[:, :, 2 - channel] += 50
                Image.fromarray(values).save(root / split / name / f"{number:04d}.png")
    return root


@pytest.fixture(scope="session")
def small(pictures: Path, cache: Path) -> list[str]:
    """Options that train on ``pictures``."""
    return ["--data.source=folder", f"--data.root={pictures}", f"--data.cache={cache}", "--run.trackers=[]"]


LONGEST = ["slurm", "faults", "commands"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The folders that take longest come first, so that test processes side by side end at about the same time."""
    order = {folder: number for number, folder in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.relative_to(Path(__file__).parent).parts[0], len(LONGEST)))
