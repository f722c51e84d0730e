"""Layouts that people have: each gives the images of each class and split that it says, and one line of how."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from support.images import png, tar, tree, windows_zip, write

from job.config.errors import UserError
from job.config.settings import Data
from job.data import datasets
from job.data.datasets import Dataset


def load(root: Path, log: list[str] | None = None, seed: int = 1, **options: object) -> Dataset:
    data = Data(source="folder", root=str(root), **{"image_size": 8, **options})  # type: ignore[arg-type]
    return datasets.load(data, seed=seed, log=(log if log is not None else []).append)


def counts(data: Dataset) -> list[list[int]]:
    """Images of each class, in train, validation and test."""
    sizes = (one.labels[one.indices].bincount(minlength=len(data.classes)) for one in data.splits.values())
    return [size.tolist() for size in sizes]


def failure(root: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        load(root, **options)
    return str(caught.value)


THREE = {"train/cat": 5, "train/dog": 4, "val/cat": 3, "val/dog": 2, "test/cat": 2, "test/dog": 1}
DRAWN = "; test and validation images are held out, stratified, by seed"
FINAL = "; the final evaluation is of the validation images"
LAYOUTS = {
    "three": (THREE, [[5, 4], [3, 2], [2, 1]], "", "5 validation images are those of val/"),
    "upper": (
        {name.title().replace("Val", "Valid"): count for name, count in THREE.items()},
        [[5, 4], [3, 2], [2, 1]],
        "",
        "5 validation images are those of Valid/",
    ),
    "long": ({"training/a": 3, "training/b": 3, "testing/a": 1, "testing/b": 2}, [[2, 3], [1, 0], [1, 2]], "", ""),
    "no test": (
        {"train/cat": 5, "train/dog": 4, "validation/cat": 3, "validation/dog": 2},
        [[5, 4], [3, 2], [0, 0]],
        FINAL,
        "of validation/",
    ),
    "train": ({"train/cat": 10, "train/dog": 5}, [[6, 3], [2, 1], [2, 1]], DRAWN, ""),
    "flat": (
        {"cat": 10, "dog": 5},
        [[6, 3], [2, 1], [2, 1]],
        DRAWN,
        "no train/, so that the classes are the 2 folders in it",
    ),
    "trains": ({"car": 10, "train": 5}, [[6, 3], [2, 1], [2, 1]], DRAWN, "the 2 folders in it"),
    "deep": ({"a/b/cat": 10, "a/b/dog/x": 5}, [[6, 3], [2, 1], [2, 1]], DRAWN, "the 2 folders in a/b/"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_gives_its_images_of_each_class_and_split_and_says_so(name: str, tmp_path: Path) -> None:
    """As a folder, as a zip made on Windows, and as a tar below a top folder, with what a Mac and a NAS left there."""
    folders, expected, drawn, note = LAYOUTS[name]
    options = {"hold_out": "stratified", "validation": 0.25} if "held out" in drawn else {}
    files = tree(folders)
    debris = {"._pets": b"mac", "@eaDir/pets@SynoEAStream": b"nas"}
    debris |= {f"{folder}/{name}": b"debris" for folder in folders for name in (".DS_Store", "Thumbs.db")}
    debris |= {"rankzero-cache/old/train_images.npy": b"ours", "__MACOSX/x.png": b"mac", "desktop.ini": b"windows"}
    roots = {
        "": write(tmp_path / "pets", files),
        "zip": windows_zip(tmp_path / "pets.zip", files | debris),
        "pets/": tar(tmp_path / "pets.tar.gz", debris | files, top="pets/"),
    }
    fingerprints = set()
    for top, root in roots.items():
        log: list[str] = []
        data = load(root, log, **options)
        assert counts(data) == expected
        assert str(data).endswith(f"2 classes{drawn}")
        assert data.final == ("validation" if name == "no test" else "test")
        where = note.replace("in it", "in pets/").replace("in a/b/", "in pets/a/b/") if top == "pets/" else note
        assert not note or sum(where in line for line in log) == 1
        assert sum(f"left out {5 + 2 * len(folders)} that desktops" in line for line in log) == bool(top)
        assert not any("passed over" in line for line in log)
        fingerprints.add(data.fingerprint)
    assert len(fingerprints) == 1


def test_train_and_test_alone_are_what_they_were_in_earlier_versions(tmp_path: Path) -> None:
    folders = {f"{split}/{name}": count for split, count in (("train", 3), ("test", 2)) for name in ("cat", "dog")}
    archive = windows_zip(tmp_path / "pets.zip", tree(folders))
    data = load(archive, validation=0.34)
    assert data.fingerprint == "1ea1a37919b0e484d25b50728b2e43ad25da43f88899e28cdd115222ff07c3f0"
    assert data.validation.indices.tolist() == [1, 5]
    (kept,) = (tmp_path / "rankzero-cache").glob("*/about.json")
    assert kept.parent.name == f"pets.zip-{hashlib.sha256(archive.read_bytes()).hexdigest()[:16]}-8"


def test_what_an_earlier_version_decoded_stays_valid_unless_it_passed_files_over(tmp_path: Path) -> None:
    archive = tar(tmp_path / "pets.tar.gz", tree(THREE))
    load(archive)
    (kept,) = (tmp_path / "rankzero-cache").glob("*/about.json")
    older = {key: value for key, value in json.loads(kept.read_text()).items() if key not in ("identical", "described")}
    log: list[str] = []
    kept.write_text(json.dumps(older))
    load(archive, log)
    assert not any("again" in line for line in log)
    kept.write_text(json.dumps(older | {"notes": ["5 files outside train/<class>/ and test/<class>/ passed over"]}))
    load(archive, log)
    assert sum("of an older version, which passed over what may count now; decoding again" in line for line in log) == 1


@pytest.mark.parametrize("archived", [False, True])
def test_nothing_is_passed_over_without_a_word(archived: bool, tmp_path: Path) -> None:
    files = tree({"train/cat": 5, "train/dog": 5, "extra": 2, "test": 3}) | {"README.md": b"pets", ".DS_Store": b""}
    log: list[str] = []
    load(tar(tmp_path / "pets.tar.gz", files) if archived else write(tmp_path / "pets", files), log)
    said = "\n".join(log)
    if archived:
        assert "6 files outside class folders passed over: extra/0.png, extra/1.png, test/0.png and 3 more" in said
    else:
        assert "3 files outside class folders passed over: test/0.png, test/1.png, test/2.png" in said
        assert "passed over beside the folders of splits: README.md, extra/" in said


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a/train/cat": 1, "a/train/dog": 1, "b/train/cat": 1}, "more than one place: 'a/' and 'b/'"),
        ({"train/cat": 1, "train/dog": 1, "val/cat": 1, "Valid/cat": 1}, "Valid/ and val/ are one split, validation"),
        ({"train": 2, "test": 2}, "no class folders in test/ and train/"),
        ({"images": 3}, "only one class, images"),
        ({"cat/train": 1, "cat/test": 1, "dog/train": 1, "dog/test": 1}, "test, train look like splits"),
        ({"seg_train/cat": 1, "seg_train/dog": 1, "seg_test/cat": 1}, "seg_test, seg_train look like splits"),
        ({"test/cat": 1, "test/dog": 1}, "no train/<class>/*"),
        ({"train/cat": 2, "train/dog": 2, "val/Dog": 1, "val/cat": 1}, "train/ has no Dog; val/ has no dog"),
        ({"train/cat": 2, "train/dog": 2, "test/.": 0}, "test/ is empty"),
        ({".": 3}, "no images in class folders"),
    ],
)
def test_what_is_no_layout_is_one_line(files: dict[str, int], message: str, tmp_path: Path) -> None:
    root = write(tmp_path / "pets", tree(files))
    for folder in files:
        (root / folder).mkdir(parents=True, exist_ok=True)
    assert message in failure(root)


def test_classes_that_lack_test_or_validation_images_are_told(tmp_path: Path) -> None:
    root = write(
        tmp_path / "pets", tree({"train/a": 2, "train/b": 2, "train/c": 2, "val/a": 1, "val/c": 1, "test/b": 1})
    )
    (root / "test" / "a").mkdir()
    assert load(root).notes == (
        "no validation images of b: validation accuracy says nothing of that",
        "no test images of a, c: test accuracy says nothing of that",
    )


def test_without_test_and_validation_there_is_nothing_to_evaluate(tmp_path: Path) -> None:
    root = write(tmp_path / "pets", tree({"cat": 5, "dog": 5}))
    assert "data.test=0.0 with data.validation=0.0" in failure(root, test=0.0, validation=0.0)
    assert load(root, test=0.0).final == "validation"
    one, other = load(root, seed=1), load(root, seed=2)
    assert one.fingerprint != other.fingerprint, "tested on other images"
    assert one.fingerprint == load(root, seed=1, validation=0.5).fingerprint


def test_identical_images_in_train_and_test_are_counted_and_named(tmp_path: Path) -> None:
    files = tree({"train/cat": 4, "train/dog": 4, "val/cat": 2, "val/dog": 2, "test/cat": 2, "test/dog": 2})
    files |= {"test/cat/same.png": files["train/cat/0.png"], "train/dog/twice.png": files["train/dog/1.png"]}
    files |= {"test/dog/again.png": files["train/cat/0.png"], "val/dog/1.png": files["train/dog/1.png"]}
    for _ in range(2):
        assert load(write(tmp_path / "pets", files)).notes == (
            "1 of 4 validation images are also trained on, pixel for pixel: val/dog/1.png (is train/dog/1.png)",
            "2 of 6 test images are also trained on, pixel for pixel: test/cat/same.png (is train/cat/0.png), "
            "test/dog/again.png (is train/cat/0.png)",
        )
    flat = tree({"cat": 5, "dog": 5}) | {f"dog/copy{number}.png": png(2) for number in range(5)}
    data = load(write(tmp_path / "flat", flat), seed=3, test=0.5, validation=0.0)
    copies = {2, *range(10, 15)}  # cat/2.png, and its copies after five other dogs
    tested = len(copies.intersection(data.test.indices.tolist()))
    assert 0 < tested < 6
    assert data.notes[0].startswith(f"{tested} of 8 test images are also trained on")
