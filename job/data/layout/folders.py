"""Folders say what an image is: ``train/<class>/*``, with ``val/`` and ``test/`` or without, or ``<class>/*`` alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from job.config.errors import UserError
from job.data import archives
from job.data.archives import Member, shown

SPLITS = ("train", "validation", "test")
NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"}
NAMES |= dict.fromkeys(("val", "valid", "validation"), "validation")
"""of which split a folder is, by its name in small letters"""
EXPECTED = "give train/<class>/* with or without val/ and test/, or <class>/*, or a file of labels as data.labels"

_NAMED = 3  # files named in a message; the others are counted

Parts = tuple[str, ...]


class Place(NamedTuple):
    """What an image file counts as."""

    split: str
    """train, validation or test"""
    label: str
    path: str
    """below the folder in which the splits or the classes are"""


class Folders:
    """Says of each file of ``root`` what it counts as, and at the end what is to be said of that."""

    missing: tuple[str, ...] = ()

    def __init__(self, root: Path) -> None:
        self.root = root
        self.inside = entered(root)
        self._top, self._splits = _found(root, self.inside)
        self._names: dict[str, str] = {}  # what a split's folder is called
        self._classes: dict[str, set[str]] = {}  # by split
        self._outside: list[str] = []
        self._debris: set[str] = set()
        self._below: set[str] = set()  # directories in class folders

    def locate(self, member: Member) -> Place | None:
        """What a file counts as; None for what is no file, or is in no class folder."""
        parts, is_file = member.parts, member.content is not None
        if member.debris:
            self._debris.add("/".join(parts))
            return None
        at = self._start(parts)
        first = at + self._splits  # where the class stands
        if at < 0 or len(parts) <= first + is_file:
            if is_file:
                self._outside.append("/".join(parts))
            return None
        split = NAMES[parts[at].lower()] if self._splits else "train"
        self._classes.setdefault(split, set()).add(parts[first])
        self._below.update(parts[first + 1 : len(parts) - is_file][:1])
        return Place(split, parts[first], "/".join(parts[at:])) if is_file else None

    def _start(self, parts: Parts) -> int:
        """Where in a path a split's folder stands, or without any the class; -1 outside. Raises ``UserError`` for two
        places of splits, and for two folders of one split."""
        top = len(self._top)
        if not self._splits:
            return top if parts[:top] == self._top else -1
        at = next((i for i in (0, 1, top) if len(parts) > i and parts[i].lower() in NAMES), -1)
        if at < 0 or (parts[:at] != self._top and len(parts) <= at + 2):
            return -1
        what, mend = f"{self.root}: train/ and test/ are in more than one place", "keep one of them"
        if parts[:at] != self._top:
            here, there = (shown("/".join((*folder, ""))) for folder in (self._top, parts[:at]))
            raise UserError(f"{what}: {here!r} and {there!r}", mend)
        known = self._names.setdefault(NAMES[parts[at].lower()], parts[at])
        if known != parts[at]:
            raise UserError(f"{self.root}: {known}/ and {parts[at]}/ are one split, {NAMES[known.lower()]}", mend)
        return at

    def classes(self) -> tuple[str, ...]:
        """Class names, sorted. Raises ``UserError`` unless there are two at least, and those of train/ are all."""
        found = {split: self._classes[split] for split in SPLITS if split in self._classes}
        if not found:
            raise UserError(f"{self.root}: no images in class folders", EXPECTED)
        if "train" not in found:
            raise UserError(f"{self.root}: no train/<class>/*", EXPECTED)
        for split, folder in self._names.items():
            if split not in found and not any(path.startswith(f"{folder}/") for path in self._outside):
                raise UserError(f"{self.root}: {folder}/ is empty", "put class folders there, or take it away")
        if all(len(names) == 1 for names in found.values()):
            only = " and ".join(self.called(split, name) for split, (name,) in found.items())
            below = f": the folders below it are {named(sorted(self._below), 10)}" if self._below else ""
            raise UserError(
                f"{self.root}: only one class, {only}{below}",
                "are those the classes? then move them up" if self._below else "give two or more class folders",
            )
        require_same(self.root, found, {split: f"{folder}/" for split, folder in self._names.items()})
        return tuple(sorted(found["train"]))

    @property
    def given(self) -> set[str]:
        """The splits that there are class folders of."""
        return set(self._classes)

    def called(self, split: str, name: str = "") -> str:
        """The folder of a split, or of a class there."""
        return shown(f"{self._names[split]}/{name}" if self._splits else name)

    def notes(self, counts: Counter[str]) -> list[str]:
        """A line for each kind of decision, and of what was left out; ``counts`` are the images of each split."""
        notes = []
        if folder := self._names.get("validation") if counts["validation"] else None:
            notes.append(f"{self.root}: {counts['validation']:,} validation images are those of {folder}/")
        if not self._splits:
            where = f"{'/'.join(self._top)}/" if self._top else "it"
            folders = len(self._classes["train"])
            notes.append(f"{self.root}: no train/, so that the classes are the {folders} folders in {shown(where)}")
        if self._outside:
            count = f"{len(self._outside)} files outside class folders passed over"
            notes.append(f"{self.root}: {count}: {named(self._outside)}")
        if beside := self._beside():
            notes.append(f"{self.root}: passed over beside the folders of splits: {named(beside)}")
        if self._debris:
            count = f"left out {len(self._debris)} that desktops, editors or a NAS made"
            notes.append(f"{self.root}: {count}: {named(sorted(self._debris))}")
        return notes

    def _beside(self) -> list[str]:
        """What of a folder is not even looked into."""
        if self.inside is None:
            return []
        others = [entry for entry in archives.listed(self.root) if entry.name not in self.inside]
        return [entry.name + "/" * entry.is_dir() for entry in others if not archives.is_debris(entry.name)]


def entered(root: Path) -> list[str] | None:
    """Of a folder that has folders of splits, these, in order; None for any other, and for an archive."""
    if archives.kind(root) != "folder":
        return None
    names = [entry.name for entry in archives.listed(root) if entry.name.lower() in NAMES and entry.is_dir()]
    below = (entry for name in names for entry in archives.listed(root / name))
    return names if any(entry.is_dir() and not archives.is_debris(entry.name) for entry in below) else None


def _found(root: Path, inside: Sequence[str] | None) -> tuple[Parts, bool]:
    """The folder in which everything is, and whether that is folders of splits; else it is those of classes.

    A stream is read no further than to the first image in the class folder of a split.
    """
    folders: set[Parts] = set()
    for member in archives.members(root, inside, lambda parts: False):
        parts = member.parts
        if member.debris or member.content is None:
            continue
        for at in (0, 1):
            if len(parts) > at + 2 and parts[at].lower() in NAMES:
                return parts[:at], True
        folders.add(parts[:-1])
    top: Parts = ()
    while True:
        heads = {folder[len(top)] for folder in folders if len(folder) > len(top)}
        deep = {folder[len(top)] for folder in folders if len(folder) > len(top) + 1}
        splits = sorted(head for head in heads if head.lower() in NAMES)
        if deep.intersection(splits):
            return top, True
        if len(heads) != 1 or not deep:
            break
        top += tuple(heads)
    if splits and (len(splits) > 1 or len(heads) == 1):  # one beside others may be a class, of trains
        folders_of = " and ".join(f"{name}/" for name in splits)
        raise UserError(f"{root}: no class folders in {folders_of}", EXPECTED)
    # As classes these would be learnt without a sign of what is wrong: cat/train/*, and seg_train/cat/*.
    below = {folder[len(top) + 1] for folder in folders if len(folder) > len(top) + 1}
    inner = sorted(name for name in below if name.lower() in NAMES)
    words = {name: NAMES.keys() & re.split("[^a-z]+", name.lower()) for name in sorted(deep)}
    outer = [name for name, found in words.items() if found]
    if inner or len({NAMES[word] for found in words.values() for word in found}) > 1:
        what = f"{root}: {named(inner or outer)} look like splits"
        raise UserError(what, "call them train, val and test, with the class folders in each")
    return top, False


def require_same(source: object, classes: dict[str, set[str]], called: dict[str, str]) -> None:
    """Raise ``UserError`` where a split has classes that train has not; ``called`` are the splits' own names."""
    train = classes["train"]
    for split, names in classes.items():
        if names - train:
            ours, theirs = called.get("train", "train"), called.get(split, split)
            lacks = [f"{ours} has no {named(sorted(names - train), 10)}"]
            lacks += [f"{theirs} has no {named(sorted(train - names), 10)}"] if train - names else []
            raise UserError(
                f"{source}: the classes of {ours} and {theirs} differ: {'; '.join(lacks)}", "give both the same classes"
            )


def named(names: Sequence[str], most: int = _NAMED) -> str:
    """The first names, and how many further ones there are."""
    further = len(names) - most
    return ", ".join(map(shown, names[:most])) + (f" and {further} more" if further > 0 else "")
