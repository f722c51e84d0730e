"""A folder or an archive of pictures, ``train/<class>/*`` and ``test/<class>/*``, becomes arrays."""

from __future__ import annotations

import io
import os
import warnings
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from job import archives
from job.archives import shown
from job.config import UserError
from job.decoded import Contents, PictureFile, Progress

SPLITS = ("train", "test")
LAYOUT = "expected train/<class>/* and test/<class>/* there, or an archive of that"

Encoded = bytes | Path
"""a file's bytes, or where to read them"""

_BLOCK = 256  # pictures a thread takes at once: handing them over one by one costs more than decoding
_BLOCK_BYTES = 1 << 24
_NAMED = 3  # files named in a message; the others are counted


def decode(root: Path, size: int, skip_unreadable: bool, into: Path, progress: Progress) -> Contents:
    """Write the pictures of ``root`` into the directory ``into`` as ``[size, size]`` RGB, sorted by class and name.

    See ``to_rgb`` for what becomes of other kinds of pictures. Of two members of the same name the later counts, as
    when an archive is extracted. Raises ``UserError`` for everything that is wrong with the folder or archive, for
    files that are no pictures unless ``skip_unreadable``, and for classes that are not the same in train and test.
    """
    layout = _Layout(root)
    splits = {split: _Split(split, PictureFile(into, split, size)) for split in SPLITS}
    workers = _cores()
    # a bomb only warns up to twice the limit; the filter is this process's, so it is set here and not in the threads
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        queue: deque[tuple[_Split, list[str], Future[_Block]]] = deque()

        def submit(split: _Split) -> None:
            queue.append((split, split.paths, pool.submit(_decode_block, split.encoded, size)))
            split.paths, split.encoded, split.bytes = [], [], 0
            if len(queue) > 2 * workers:
                collect()

        def collect() -> None:
            split, paths, block = queue.popleft()
            split.add(paths, *block.result())

        total, unit = archives.extent(root)
        with progress(f"decoding {root.name}", total, unit) as advance:
            for member in archives.members(root):
                advance(member.cost)
                if (place := layout.place(member)) is None or member.content is None:
                    continue
                split = splits[place[0]]
                split.paths.append(place[1])
                split.encoded.append(member.content)
                split.bytes += len(member.content) if isinstance(member.content, bytes) else 0
                if len(split.paths) >= _BLOCK or split.bytes >= _BLOCK_BYTES:
                    submit(split)
            for split in splits.values():
                submit(split)
            while queue:
                collect()

    classes = layout.classes()
    notes = layout.notes()
    unreadable = [line for split in splits.values() for line in split.unreadable]
    if unreadable:
        what = f"{root}: {len(unreadable)} {_files(unreadable)} no readable picture: {_named(unreadable)}"
        if not skip_unreadable:
            raise UserError(what, "take them away, or leave them out with --data.skip_unreadable true")
        notes.append(f"left out: {what}")
    for split in splits.values():
        split.finish(root, classes)
    return Contents(classes, tuple(notes))


_Block = tuple[NDArray[np.uint8], list[str | None]]
"""the pictures that could be read, [k, size, size, 3], and for each file what was wrong with it, None if nothing"""


class _Split:
    """One of train and test while it is being read."""

    def __init__(self, name: str, file: PictureFile) -> None:
        self.name, self.file = name, file
        self.paths: list[str] = []  # of the block that is being gathered
        self.encoded: list[Encoded] = []
        self.bytes = 0
        self.rows: dict[str, int] = {}  # "class/.../file" to row number in the file
        self.written = 0
        self.unreadable: list[str] = []

    def add(self, paths: list[str], images: NDArray[np.uint8], failures: list[str | None]) -> None:
        for path, failure in zip(paths, failures, strict=True):
            if failure is None:
                self.rows[path] = self.written
                self.written += 1
            else:
                self.unreadable.append(f"{self.name}/{path} ({failure})")
        self.file.append(images)

    def finish(self, root: Path, classes: Sequence[str]) -> None:
        """Sort by class and path, so that a folder and any archive of it give the same arrays."""
        number = {name: index for index, name in enumerate(classes)}
        paths = sorted(self.rows, key=lambda path: path.split("/"))
        labels = np.array([number[path.split("/", 1)[0]] for path in paths], np.int64)
        counts = np.bincount(labels, minlength=len(classes))
        if empty := [name for name, count in zip(classes, counts, strict=True) if count == 0]:
            raise UserError(
                f"{root}: no pictures in {_named([f'{self.name}/{name}' for name in empty])}",
                "put some there, or take the class away from train and test",
            )
        self.file.finish(labels, np.array([self.rows[path] for path in paths], np.int64))


class _Layout:
    """Where in the tree train/ and test/ are, and which classes they have."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._top: tuple[str, ...] | None = None  # archives often have one folder above train/ and test/
        self._classes: dict[str, set[str]] = {split: set() for split in SPLITS}
        self._outside: list[str] = []

    def place(self, member: archives.Member) -> tuple[str, str] | None:
        """A file's split and its path below that, "class/.../file"; None for what is not in a class folder."""
        parts = member.parts
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
        return split, "/".join(below)

    def _pass_over(self, member: archives.Member) -> None:
        if member.content is not None:
            self._outside.append("/".join(member.parts))

    def classes(self) -> tuple[str, ...]:
        """Class names, sorted. Raises ``UserError`` unless they are the same in train and test."""
        train, test = (self._classes[split] for split in SPLITS)
        if not train and not test:
            raise UserError(f"{self._root}: no pictures", LAYOUT)
        for split, names in self._classes.items():
            if not names:
                raise UserError(f"{self._root}: no {split}/<class>/*", LAYOUT)
        if train != test:
            lacks = [
                f"{split}/ has no {_named(sorted(missing), 10)}"
                for split, missing in (("train", test - train), ("test", train - test))
                if missing
            ]
            raise UserError(
                f"{self._root}: the classes of train/ and test/ differ: {'; '.join(lacks)}",
                "give both the same class folders",
            )
        return tuple(sorted(train))

    def notes(self) -> list[str]:
        if not self._outside:
            return []
        where = "outside train/<class>/ and test/<class>/"
        return [f"{self._root}: {len(self._outside)} files {where} passed over: {_named(self._outside)}"]


def to_rgb(image: Image.Image) -> Image.Image:
    """An upright RGB picture, 8 bits a channel, of whatever Pillow has opened.

    The orientation that a camera noted (EXIF) is applied. Grey and palette pictures become RGB; transparent ones lie
    on white; CMYK is converted without a colour profile; of 16 bits the upper 8 are kept; of an animation the first
    frame. Raises ``ValueError`` for floating-point pictures, whose range nobody knows.
    """
    if image.getexif().get(0x0112, 1) != 1:  # orientation
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise ValueError("floating-point picture")
    if image.mode.startswith("I"):  # 16 bits, some in a container of 32
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray((np.clip(wide, 0, 65535) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _decode_block(encoded: list[Encoded], size: int) -> _Block:
    images = np.empty((len(encoded), size, size, 3), np.uint8)
    failures: list[str | None] = []
    good = 0
    for item in encoded:
        try:
            images[good] = _decode(item, size)
        except Exception as error:  # Pillow raises nearly anything on a broken file
            failures.append(_reason(error))
        else:
            failures.append(None)
            good += 1
    return images[:good], failures


def _decode(encoded: Encoded, size: int) -> NDArray[np.uint8]:
    if isinstance(encoded, Path):
        if not encoded.is_file():  # a pipe would never end
            raise ValueError("no file")
        encoded = encoded.read_bytes()
    if not encoded:
        raise ValueError("empty")
    with Image.open(io.BytesIO(encoded)) as image:
        picture = to_rgb(image)
        if picture.size != (size, size):
            picture = picture.resize((size, size), Image.Resampling.BILINEAR)  # Pillow's is antialiased
        return np.asarray(picture)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "unknown format"
    if isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        return f"more than {Image.MAX_IMAGE_PIXELS} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _files(names: Sequence[str]) -> str:
    return "file is" if len(names) == 1 else "files are"


def _named(names: Sequence[str], most: int = _NAMED) -> str:
    further = len(names) - most
    return ", ".join(map(shown, names[:most])) + (f" and {further} more" if further > 0 else "")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
