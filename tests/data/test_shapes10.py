"""The embedded data set: the same everywhere, balanced, varied."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from job.config.settings import Data
from job.data import datasets, shapes10


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    cache = tmp_path_factory.mktemp("cache")
    return datasets.load(Data(source="shapes10", cache=str(cache)), seed=1, log=lambda line: None)


def test_counts(data: datasets.Dataset) -> None:
    assert data.train.images.shape == (20_000, 32, 32, 3)
    assert data.test.images.shape == (5_000, 32, 32, 3)
    assert data.train.labels.bincount().tolist() == [2_000] * 10
    assert data.test.labels.bincount().tolist() == [500] * 10
    assert len(set(data.classes)) == 10
    assert list(data.classes) == sorted(data.classes)


def test_every_machine_draws_the_same(data: datasets.Dataset) -> None:
    # sums of whole images in coarse steps: one bit of one cosine may differ, an image may not
    sums = data.test.images[:1000].numpy().sum((1, 2, 3), dtype=np.int64) // 4096
    digest = hashlib.sha256(sums.astype("<i8").tobytes()).hexdigest()[:16]
    assert digest == "525bcd72de14326d"


def test_a_image_follows_from_its_number_alone() -> None:
    together, alone = shapes10.draw(np.arange(40)), shapes10.draw(np.array([17]))
    np.testing.assert_array_equal(together[17], alone[0])


def test_no_image_of_test_is_in_train(data: datasets.Dataset) -> None:
    seen = {image.numpy().tobytes() for image in data.train.images}
    assert len(seen) == 20_000
    assert not any(image.numpy().tobytes() in seen for image in data.test.images)


def test_classes_do_not_differ_in_mean_colour(data: datasets.Dataset) -> None:
    """Or a network could tell them without looking at the shape."""
    images, labels = data.train.images[:5000].float(), data.train.labels[:5000]
    means = np.array([[images[labels == label, :, :, channel].mean() for channel in range(3)] for label in range(10)])
    assert (abs(means - means.mean(0)) < 8).all()
    assert 80 < means.mean() < 150
    assert images.std() > 50


def test_it_lies_in_the_users_cache_without_a_directory_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shapes10, "TRAIN", 250)
    monkeypatch.setattr(shapes10, "TEST", 250)
    datasets.prepare(Data(source="shapes10", root="nowhere"), log=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["rankzero"]
