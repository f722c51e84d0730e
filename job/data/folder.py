"""A folder or an archive of images, ``train/<class>/*`` and ``test/<class>/*``, becomes arrays."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from job.config.errors import UserError
from job.data import archives, cache, decoding
from job.data.archives import shown
from job.data.cache import Contents, ImageFile, Log, Progress
from job.data.decoding import Deep, Encoded, Pixels, Range, Reader

SPLITS = ("train", "test")
LAYOUT = "expected train/<class>/* and test/<class>/* there, or an archive of that"

_BLOCK = 256  # images a process takes at once: handing them over one by one costs more than decoding
_BLOCK_BYTES = 1 << 24
_NAMED = 3  # files named in a message; the others are counted


def decode(
    root: Path, size: int, skip_unreadable: bool, into: Path, progress: Progress, resize: str, deep: Deep = "ask"
) -> Contents:
    """Write the images of ``root`` into the directory ``into`` as ``[size, size]`` RGB, sorted by class and name.

    See ``decoding.read`` for what becomes of other kinds of images. Of two members of the same name the later
    counts, as when an archive is extracted. Raises ``UserError`` for everything that is wrong with the folder or
    archive, for files that are no images unless ``skip_unreadable``, and for classes that differ between train and
    test. Where there are deep images and ``deep`` does not say their range, all is read twice: it is that of the
    training images.
    """
    try:
        return _decode(root.absolute(), size, skip_unreadable, into, progress, resize, deep)
    except _DeepError as found:
        return _decode(root.absolute(), size, skip_unreadable, into, progress, resize, found.deep)


class _DeepError(Exception):
    """There are deep images, whose range is ``deep``: None where there are none among the training images."""

    def __init__(self, deep: Range | None) -> None:
        self.deep = deep


def _decode(
    root: Path, size: int, skip_unreadable: bool, into: Path, progress: Progress, resize: str, deep: Deep
) -> Contents:
    layout = _Layout(root)
    with ImageFile(into, "train", size) as train, ImageFile(into, "test", size) as test:
        files = {"train": train, "test": test}
        reading = decoding.readers(size, min(decoding.cores(), 32), resize, deep)
        rows, unreadable = _read_all(root, reading, layout, files, progress)
        classes, notes = layout.classes(), layout.notes()
        if unreadable:
            are = "file is not a readable image" if len(unreadable) == 1 else "files are not readable images"
            what = f"{root}: {len(unreadable)} {are}: {named(unreadable)}"
            if not skip_unreadable:
                raise UserError(what, "take them away, or leave them out with --data.skip_unreadable true")
            notes.append(f"left out: {what}")
        for split, file in files.items():
            file.finish(*_sorted(root, split, rows[split], classes))
    if not isinstance(deep, tuple):
        return Contents(classes, tuple(notes))
    low, high = deep
    notes.append(f"{root}: grey images of more than 8 bits: values from {low:g} to {high:g} become 0 to 255")
    return Contents(classes, tuple(notes), deep)


def content_digest(root: Path, directories: Sequence[Path], progress: Progress, log: Log) -> str:
    """Hex SHA-256 that changes with the files of ``root``; an archive's is remembered in ``directories``.

    Raises ``UserError`` if there is none that can be reached.
    """
    if not os.path.exists(root):  # Path.exists raises where a directory above cannot be searched
        raise UserError(f"data.root={root} does not exist or cannot be reached", LAYOUT)
    if archives.kind(root) == "folder":
        return archives.listing_digest(root)
    return cache.digest(root, directories, progress, log)


def _read_all(
    root: Path,
    reading: AbstractContextManager[Reader],
    layout: _Layout,
    files: dict[str, ImageFile],
    progress: Progress,
) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Read serially, decode in parallel, collect in order.

    By split, the row in its file of each "class/.../file"; and what could not be read, with the reasons.
    """
    rows: dict[str, dict[str, int]] = {split: {} for split in files}
    unreadable: dict[str, list[str]] = {split: [] for split in files}
    queue: deque[tuple[list[tuple[str, str]], Future[Pixels]]] = deque()
    paths: list[tuple[str, str]] = []  # of the block that is being gathered
    block: list[Encoded] = []
    held = 0  # bytes in it
    ranges: list[tuple[str, Range]] = []  # of deep images, each with its split
    processes = min(decoding.cores(), 32)
    total, unit = archives.extent(root)
    with reading as read, progress(f"decoding {root.name}", total, unit) as advance:

        def collect(most: int) -> None:
            while len(queue) > most:
                names, pixels = queue.popleft()
                for (split, path), image in zip(names, pixels.result(), strict=True):
                    if isinstance(image, str):
                        unreadable[split].append(f"{split}/{path} ({image})")
                    elif isinstance(image, tuple):
                        ranges.append((split, image))
                    else:
                        rows[split][path] = files[split].count
                        files[split].append(image)

        for member in archives.members(root):
            advance(member.cost)
            if (path := layout.locate(member)) is None or member.content is None:
                continue
            if isinstance(member.content, str):
                unreadable[path[0]].append(f"{'/'.join(path)} ({member.content})")
                continue
            paths.append(path)
            block.append(member.content)
            held += len(member.content) if isinstance(member.content, bytes) else 0
            if len(block) == _BLOCK or held >= _BLOCK_BYTES:
                queue.append((paths, read(block)))
                # bounds the memory, whatever the disk and the decoders do
                collect(2 * processes if held < 2 * _BLOCK_BYTES else 0)
                paths, block, held = [], [], 0
        queue.append((paths, read(block)))
        collect(0)
    if ranges:
        own = [one for split, one in ranges if split == "train"]
        raise _DeepError((min(low for low, _ in own), max(high for _, high in own)) if own else None)
    return rows, [*unreadable["train"], *unreadable["test"]]


def _sorted(
    root: Path, split: str, rows: dict[str, int], classes: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels and rows by class and path, so that a folder and any archive of it give the same arrays."""
    number = {name: index for index, name in enumerate(classes)}
    paths = sorted(rows, key=lambda path: path.split("/"))
    labels = np.array([number[path.split("/", 1)[0]] for path in paths], np.int64)
    counts = np.bincount(labels, minlength=len(classes))
    if empty := [f"{split}/{name}" for name, count in zip(classes, counts, strict=True) if count == 0]:
        raise UserError(
            f"{root}: no images in {named(empty)}", "put some there, or take the class away from train and test"
        )
    return labels, np.array([rows[path] for path in paths], np.int64)


class _Layout:
    """Where in the tree train/ and test/ are, and which classes they have."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._top: tuple[str, ...] | None = None  # archives often have one folder above train/ and test/
        self._classes: dict[str, set[str]] = {split: set() for split in SPLITS}
        self._outside: list[str] = []
        self._debris: set[str] = set()
        self._below: set[str] = set()  # directories in class folders

    def locate(self, member: archives.Member) -> tuple[str, str] | None:
        """A file's split and its path below that, "class/.../file"; None for what is not in a class folder."""
        parts = member.parts
        if member.debris:
            self._debris.add("/".join(parts))
            return None
        if parts[0] in SPLITS:
            top: tuple[str, ...] = ()
        elif len(parts) > 1 and parts[1] in SPLITS:
            top = parts[:1]
        else:
            self._pass_over(member)
            return None
        if self._top is None:
            self._top = top
        if top != self._top:
            raise UserError(
                f"{self._root}: train/ and test/ are in more than one place: {shown('/'.join((*self._top, '')))!r} "
                f"and {shown('/'.join((*top, '')))!r}",
                "keep one of them",
            )
        split, *below = parts[len(top) :]
        is_file = member.content is not None
        if len(below) < 1 + is_file:
            self._pass_over(member)
            return None
        self._classes[split].add(below[0])
        self._below.update(below[1 : len(below) - is_file][:1])
        return split, "/".join(below)

    def _pass_over(self, member: archives.Member) -> None:
        if member.content is not None:
            self._outside.append("/".join(member.parts))

    def classes(self) -> tuple[str, ...]:
        """Class names, sorted. Raises ``UserError`` unless they are the same in train and test, and two at least."""
        train, test = (self._classes[split] for split in SPLITS)
        if not train and not test:
            raise UserError(f"{self._root}: no images", LAYOUT)
        for split, names in self._classes.items():
            if not names:
                raise UserError(f"{self._root}: no {split}/<class>/*", LAYOUT)
        if len(train) == len(test) == 1:
            only = " and ".join(f"{split}/{shown(name)}" for split, (name,) in self._classes.items())
            folders = f": the folders below it are {named(sorted(self._below), 10)}" if self._below else ""
            raise UserError(
                f"{self._root}: only one class, {only}{folders}",
                "are those the classes? then move them up" if self._below else "give two or more class folders",
            )
        if train != test:
            lacks = [
                f"{split}/ has no {named(sorted(missing), 10)}"
                for split, missing in (("train", test - train), ("test", train - test))
                if missing
            ]
            raise UserError(
                f"{self._root}: the classes of train/ and test/ differ: {'; '.join(lacks)}",
                "give both the same class folders",
            )
        return tuple(sorted(train))

    def notes(self) -> list[str]:
        """What was left out, a line for each kind of it."""
        notes = []
        if self._outside:
            count = f"{len(self._outside)} files outside train/<class>/ and test/<class>/ passed over"
            notes.append(f"{self._root}: {count}: {named(self._outside)}")
        if self._debris:
            count = f"left out {len(self._debris)} that desktops, editors or a NAS made"
            notes.append(f"{self._root}: {count}: {named(sorted(self._debris))}")
        return notes


def named(names: Sequence[str], most: int = _NAMED) -> str:
    """The first names, and how many further ones there are."""
    further = len(names) - most
    return ", ".join(map(shown, names[:most])) + (f" and {further} more" if further > 0 else "")
