"""Tables of labels as people have them: what they say is what is trained on, and every mistake has its line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.images import png, table, tar, tree, windows_zip, write

from job.config.errors import UserError
from job.config.settings import Config, Data
from job.data import datasets
from job.data.datasets import Dataset


def load(root: Path, log: list[str] | None = None, seed: int = 1, **options: object) -> Dataset:
    settings = {"image_size": 8, "labels": "labels.csv", **options}
    data = Data(source="folder", root=str(root), **settings)  # type: ignore[arg-type]
    return datasets.load(data, seed=seed, log=(log if log is not None else []).append)


def counts(data: Dataset) -> list[list[int]]:
    """Images of each class, in train, validation and test."""
    sizes = (one.labels[one.indices].bincount(minlength=len(data.classes)) for one in data.splits.values())
    return [size.tolist() for size in sizes]


IMAGES = tree({"images": 12})
ROWS = [[f"images/{n}.png", ("cat", "dog")[n % 2], ("train", "train", "val", "test")[n // 3]] for n in range(12)]
EXPECTED = [[3, 3], [2, 1], [1, 2]]


def other_machine(row: list[str]) -> list[str]:
    return ["C:\\Users\\Ada\\pets\\" + row[0].replace("/", "\\"), row[1].upper(), row[2].title()]


TABLES = {
    "plain": ("labels.csv", table([["path", "label", "split"], *ROWS])),
    "of Excel": ("labels.csv", "\ufeff" + table([["Filename", "Class", "Set"], *ROWS], ";").replace("\n", "\r\n")),
    "utf-16": ("labels.csv", table([["image", "target", "split"], *ROWS], "\t").encode("utf-16")),
    "names alone": ("labels.csv", table([["file", "label", "split"], *([row[0][7:], *row[1:]] for row in ROWS)])),
    "no endings": ("labels.csv", table([["image_id", "label", "subset"], *([row[0][7:-4], *row[1:]] for row in ROWS)])),
    "another machine": ("labels.csv", table([["path", "label", "split"], *map(other_machine, ROWS)])),
    "beside": ("meta/labels.csv", table([["path", "label", "split"], *([f"../{row[0]}", *row[1:]] for row in ROWS)])),
    "quoted": ("labels.csv", table([["path", "note", "label", "split"], *([r[0], '"a, b"', *r[1:]] for r in ROWS)])),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables_as_people_have_them_say_class_and_split(name: str, tmp_path: Path) -> None:
    where, content = TABLES[name]
    files = IMAGES | {where: content.encode() if isinstance(content, str) else content}
    log: list[str] = []
    folder = load(write(tmp_path / "pets", files), log)
    assert counts(folder) == EXPECTED
    assert (folder.final, str(folder)[-9:]) == ("test", "2 classes")
    (line,) = [line for line in log if "6 train, 3 validation, 3 test images by path from" in line]
    assert "label from" in line
    if name in ("plain", "beside"):
        for archive in (tar(tmp_path / "a.tar.gz", files, "pets/"), windows_zip(tmp_path / "a.zip", files)):
            assert load(archive).fingerprint == folder.fingerprint


def test_a_table_may_lie_outside_and_without_splits_test_and_validation_are_held_out(tmp_path: Path) -> None:
    root = write(tmp_path / "pets", IMAGES | {"images/extra.png": png(99), "images/.ipynb_checkpoints/0.png": png(0)})
    rows = [["path", "label"], *(row[:2] for row in ROWS), ["images/.ipynb_checkpoints/0.png", "cat"]]
    outside = write(tmp_path, {"mine.csv": table(rows)}) / "mine.csv"
    log: list[str] = []
    data = load(root, log, labels=str(outside), hold_out="stratified")
    assert counts(data) == [[4, 4], [1, 1], [1, 1]]
    assert sum("1 files that mine.csv does not name passed over: images/extra.png" in line for line in log) == 1
    assert sum("left out 1 that desktops" in line for line in log) == 1
    outside.write_text(table([*rows[:-2], ["images/11.png", "cat"]]))
    assert load(root, labels=str(outside)).fingerprint != data.fingerprint, "another table is another data set"


def test_groups_are_never_parted_and_parted_ones_are_told(tmp_path: Path) -> None:
    rows = [[f"images/{n}.png", "cd"[n // 3 % 2], f"patient {n // 3}"] for n in range(36)]
    root = write(tmp_path / "xray", tree({"images": 36}) | {"labels.csv": table([["path", "label", "patient"], *rows])})
    for seed in range(3):
        data = load(root, seed=seed, hold_out="grouped")
        order = sorted(rows, key=lambda row: (row[1], row[0].split("/")))
        owners = [{order[index][2] for index in one.indices.tolist()} for one in data.splits.values()]
        assert sum(map(len, owners)) == 12
        assert [len(one) for one in data.splits.values()] == [24, 6, 6]
        assert not any("groups" in note for note in data.notes)
    assert any("of 12 groups are in more than one split" in note for note in load(root).notes)
    splits = [[*row, ("train", "test")[n % 3 == 0]] for n, row in enumerate(rows)]
    write(root, {"labels.csv": table([["path", "label", "patient", "split"], *splits])})
    assert any("12 of 12 groups are in more than one split" in note for note in load(root, hold_out="grouped").notes)


HEAD = "path,label,split\n"
GOOD = "images/0.png,cat,train\nimages/1.png,dog,train\n"
MISTAKES = {
    "a cell is missing": (HEAD + GOOD + "images/2.png,cat\n", "labels.csv, line 4: 2 cells under 3 titles"),
    "a comma in a name": (HEAD + GOOD + "a,b.png,cat,train\n", "labels.csv, line 4: 4 cells under 3 titles"),
    "no label": (HEAD + GOOD + "\nimages/2.png,,train\n", "labels.csv: line 5: no label"),
    "no path": (HEAD + GOOD + " ,cat,train\n", "labels.csv: line 4: no path"),
    "no such file": (HEAD + "images/20.png,cat,train\n" + GOOD, "labels.csv: line 2: there is no images/20.png"),
    "twice": (HEAD + GOOD + "./images/0.png,dog,test\n", "labels.csv: line 4: ./images/0.png stands in line 2 too"),
    "two files": (HEAD + GOOD + "same.png,cat,train\n", "line 4: same.png may be a/same.png or b/same.png"),
    "no split": (HEAD + GOOD + "images/2.png,cat,\n", "labels.csv: line 4: the split is ''"),
    "a fold": (HEAD + GOOD + "images/2.png,cat,3\n", "labels.csv: line 4: the split is '3'"),
    "many": (HEAD + GOOD + "x,c,test\n" * 4, "there is no x, line 5: there is no x, line 6: there is no x and 1 more"),
    "no titles": (GOOD, "labels.csv, line 1: no column called path, but images/0.png, cat, train"),
    "one-hot": ("image,cat,dog\nimages/0.png,1,0\n", "labels.csv, line 1: no column called label, but image, cat, dog"),
    "empty": ("", "labels.csv, line 1: no column called path, but nothing"),
    "an image": (png(1).decode("latin1"), "labels.csv, line 1: no column called path"),
    "titles alone": (HEAD, "fewer than two classes to train on: none"),
    "one class": (HEAD + GOOD.replace("dog", "cat"), "fewer than two classes to train on: cat"),
    "other classes": (HEAD + GOOD + "images/2.png,cow,test\n", "train has no cow; test has no cat, dog"),
    "endless cell": (HEAD + GOOD + '"' + "x" * 200_000, "labels.csv, line 4: field larger than field limit"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_in_a_table_is_one_line_with_its_place(name: str, tmp_path: Path) -> None:
    content, message = MISTAKES[name]
    files = IMAGES | {"a/same.png": png(50), "b/same.png": png(51), "labels.csv": content.encode("latin1")}
    with pytest.raises(UserError) as caught:
        load(write(tmp_path / "pets", files))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_that_is_not_there_or_is_none_is_one_line(tmp_path: Path) -> None:
    root = write(tmp_path / "pets", IMAGES | {"a/t.csv": "path,label\n", "b/t.csv": "path,label\n"})
    os.mkfifo(tmp_path / "pipe")
    for labels, message in {
        "nowhere.csv": "data.labels=nowhere.csv is neither on this machine nor in",
        "t.csv": "data.labels=t.csv may be a/t.csv, b/t.csv in",
        str(tmp_path / "pipe"): "pipe is no table",
        "images": "images is no table",
    }.items():
        with pytest.raises(UserError, match=message):
            load(root, labels=labels)


def test_missing_images_are_left_out_where_unreadable_ones_are(tmp_path: Path) -> None:
    rows = [["path", "label"], *(row[:2] for row in ROWS), ["images/99.png", "cat"]]
    log: list[str] = []
    data = load(write(tmp_path / "pets", IMAGES | {"labels.csv": table(rows)}), log, skip_unreadable=True)
    assert sum(map(len, data.splits.values())) == 12
    assert any("images/99.png (no such file, line 14 of" in line for line in log)


def test_classes_that_are_numbers_are_in_their_order_and_accents_of_a_mac_are_found(tmp_path: Path) -> None:
    rows = [["path", "label"], *([f"images/{n}.png", n] for n in range(12)), ["che\u0300vre.png", 3]]
    root = write(tmp_path / "pets", IMAGES | {"ch\u00e8vre.png": png(60), "labels.csv": table(rows)})
    data = load(root, validation=0.0, test=0.01)
    assert data.classes == tuple(map(str, range(12)))
    assert data.train.labels.tolist() == sorted([*range(12), 3])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"labels": "a.csv"}, "data.labels with data.source=cifar10"),
        ({"source": "folder", "hold_out": "grouped"}, "data.hold_out=grouped: give data.labels"),
        ({"source": "folder", "test": 1.0}, "data.test=1.0: must be"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_read(data: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Config(data=Data(**data))  # type: ignore[arg-type]
