"""Images that are not square, and images of more than 8 bits: what the network sees of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2 import functional as known

from job.config.settings import Data
from job.data import datasets, decoding


def encoded(values: NDArray[Any], kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind)
    return file.getvalue()


def square(content: bytes, size: int, resize: str) -> NDArray[np.int64]:
    found = decoding.read(content, size, resize)
    assert isinstance(found, bytes)
    return np.frombuffer(found, np.uint8).reshape(size, size, 3).astype(np.int64)


def photo(width: int, height: int) -> NDArray[np.uint8]:
    """Something smooth, of which each place looks different."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return (np.stack([x, y, (x - y) ** 2], 2) * 200 + 55).astype(np.uint8)


@pytest.mark.parametrize(("width", "height"), [(90, 60), (60, 90), (33, 200), (20, 14)])
def test_crop_is_torchvisions_resize_and_centre_crop(width: int, height: int) -> None:
    image = photo(width, height)
    theirs = known.resize(torch.from_numpy(image).permute(2, 0, 1), [32], antialias=True)
    theirs = known.center_crop(theirs, [32, 32]).permute(1, 2, 0).numpy().astype(np.int64)
    # Torchvision cuts at whole pixels of the resized image, half a pixel beside the middle.
    assert abs(square(encoded(image), 32, "crop") - theirs).max() <= 200 / min(width, height) + 3


@pytest.mark.parametrize(("width", "height"), [(90, 60), (60, 90), (33, 200), (20, 14), (1, 300)])
def test_pad_shows_the_whole_image_undistorted_between_black(width: int, height: int) -> None:
    found = square(encoded(photo(width, height)), 32, "pad")
    rows, columns = (found.any(2).any(axis) for axis in (1, 0))
    longer = max(width, height)
    assert (rows.sum(), columns.sum()) == (max(1, round(32 * height / longer)), max(1, round(32 * width / longer)))
    for shown in (rows, columns):
        before, behind = int(shown.argmax()), int(shown[::-1].argmax())
        assert 0 <= behind - before <= 1, "in the middle"
    whole = torch.from_numpy(photo(width, height)).permute(2, 0, 1)
    theirs = known.resize(whole, [int(rows.sum()), int(columns.sum())], antialias=True).permute(1, 2, 0).numpy()
    assert abs(found[rows][:, columns] - theirs.astype(np.int64)).max() <= 1


def test_of_a_square_image_all_ways_make_the_same() -> None:
    content = encoded(photo(50, 50))
    assert decoding.read(content, 32) == decoding.read(content, 32, "crop") == decoding.read(content, 32, "pad")


def grey(root: Path, split: str, name: str, values: list[NDArray[Any]], kind: str = "PNG") -> None:
    folder = root / split / name
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(values):
        (folder / f"{number}.{kind.lower()}").write_bytes(encoded(image, kind))


def load(root: Path, **options: Any) -> tuple[datasets.Dataset, list[str]]:
    said: list[str] = []
    data = Data(source="folder", root=str(root), image_size=8, validation=0.0, **options)
    return datasets.load(data, seed=1, log=said.append), said


@pytest.mark.parametrize(
    ("kind", "number", "low", "high"),
    [
        ("PNG", np.uint16, 0, 4095),
        ("TIFF", np.uint16, 31_000, 35_000),
        ("TIFF", np.int32, -1024, 3071),
        ("TIFF", np.float32, -0.5, 0.25),
    ],
    ids=["12 of 16 bits", "CT with an offset", "Hounsfield units", "floating point"],
)
def test_images_of_more_than_8_bits_are_seen_in_the_range_of_those_to_train_on(
    kind: str, number: Any, low: float, high: float, tmp_path: Path
) -> None:
    ramp = np.linspace(low, high, 64).reshape(8, 8).astype(number)
    dim = (low + (ramp.astype(np.float64) - low) / 2).astype(number)
    root = tmp_path / "scans"
    for split in ("train", "test"):
        grey(root, split, "ill", [ramp if split == "train" else dim, dim], kind)
        grey(root, split, "well", [dim], kind)
    grey(root, "train", "well", [np.full((8, 8), 77, np.uint8)] * 2)  # beside images of 8 bits, which stay
    dataset, said = load(root)
    assert dataset.deep == pytest.approx((ramp.min(), ramp.max()))
    assert sum("more than 8 bits: values from" in line for line in said) == 1
    images = dataset.train.images.numpy()
    steps = (np.arange(64) * 256 // 63).clip(0, 255).reshape(8, 8)
    assert abs(images[0, ..., 0].astype(int) - steps).max() <= 1
    assert (images[0] == images[0, ..., :1]).all()
    assert 120 <= images[1].max() <= 129
    assert 120 <= dataset.test.images.max() <= 129
    if kind == "PNG":
        assert (images[2] == 77).all()
    again, _ = load(root)
    assert again.deep == dataset.deep, "from the cache"


def test_a_set_of_one_grey_and_one_whose_tests_alone_are_deep_are_read(tmp_path: Path) -> None:
    for root, values in ((tmp_path / "flat", np.full((8, 8), 900, np.uint16)), (tmp_path / "mixed", photo(8, 8))):
        for name in ("a", "b"):
            grey(root, "train", name, [values])
            grey(root, "test", name, [np.full((8, 8), 65535, np.uint16)])
    assert load(tmp_path / "flat")[0].train.images.max() == 0
    mixed, _ = load(tmp_path / "mixed")
    assert mixed.deep is None
    assert (mixed.test.images == 255).all(), "the upper 8 bits"


def test_values_that_are_not_finite_are_refused() -> None:
    values = np.zeros((8, 8), np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        values[3, 4] = bad
        with pytest.raises(ValueError, match="not finite"):
            decoding.read(encoded(values, "TIFF"), 8, "squeeze", "ask")


def test_ways_to_resize_do_not_share_decoded_images(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            grey(tmp_path / "photos", split, name, [photo(16, 8)])
    fingerprints = {load(tmp_path / "photos", resize=resize)[0].fingerprint for resize in decoding.RESIZE}
    assert len(fingerprints) == 3
    assert len(list((tmp_path / "rankzero-cache").glob("photos-*[0-9a-z]-8*/"))) == 3
