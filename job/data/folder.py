"""A folder or an archive of images becomes arrays, as its folders or a table of labels say what each image is."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from job.config.errors import UserError
from job.config.settings import Data
from job.data import archives, decoding
from job.data.archives import shown
from job.data.cache import Contents, ImageFile, Log, Progress
from job.data.decoding import Deep, Encoded, Pixels, Range, Reader
from job.data.layout.folders import EXPECTED, SPLITS, Folders, Place, entered, named
from job.data.layout.labels import Labels, digest_outside
from job.data.local import digests

_BLOCK = 256  # images a process takes at once: handing them over one by one costs more than decoding
_BLOCK_BYTES = 1 << 24


def decode(root: Path, data: Data, into: Path, progress: Progress, deep: Deep = "ask") -> Contents:
    """Write the images of ``root`` into the directory ``into`` as ``data`` wants them, sorted by class and path.

    Validation images of a folder or table come after those to train on. See ``decoding.read`` for what becomes of other
    kinds of images. Of two members of the same name the later counts, as when an archive is extracted. Where there are
    deep images and ``deep`` does not say their range, all is read twice: it is that of the images to train on. Raises
    ``UserError`` for everything that is wrong with the folder or archive and with the table ``data.labels``, for files
    that are no images unless ``data.skip_unreadable``, and for classes of which there is nothing to train on.
    """
    try:
        return _decode(root.absolute(), data, into, progress, deep)
    except _DeepError as found:
        return _decode(root.absolute(), data, into, progress, found.deep)


class _DeepError(Exception):
    """There are deep images, whose range is ``deep``: None where there are none among those to train on."""

    def __init__(self, deep: Range | None) -> None:
        self.deep = deep


def _decode(root: Path, data: Data, into: Path, progress: Progress, deep: Deep) -> Contents:
    labels, size, skip_unreadable = data.labels, data.image_size, data.skip_unreadable
    layout = Labels(root, labels, skip_missing=skip_unreadable) if labels else Folders(root)
    with ImageFile(into, "train", size) as train, ImageFile(into, "test", size) as test:
        files = {"train": train, "validation": train, "test": test}
        reading = decoding.readers(size, min(decoding.cores(), 32), data.resize, deep)
        rows, pixels, unreadable = _read_all(root, reading, layout, files, progress)
        classes = layout.classes()
        counts = Counter(place.split for place in rows)
        notes = layout.notes(counts)
        if unreadable:
            are = "file is not a readable image" if len(unreadable) == 1 else "files are not readable images"
            what = f"{root}: {len(unreadable)} {are}: {named(unreadable)}"
            if not skip_unreadable:
                raise UserError(what, "take them away, or leave them out with --data.skip_unreadable true")
            notes.append(f"left out: {what}")
        present = {(place.split, place.label) for place in rows}
        empty = [layout.called("train", name) for name in classes if ("train", name) not in present]
        empty += [layout.called(split) for split in layout.given if not counts[split]]
        if empty:
            raise UserError(f"{root}: no images in {named(empty)}", "put some there, or take it away")
        number = {name: index for index, name in enumerate(classes)}
        # By class and path, so that a folder and any archive of it give the same arrays.
        places = sorted(rows, key=lambda one: (SPLITS.index(one.split), number[one.label], one.path.split("/")))
        for part, file in (("train", train), ("test", test)):
            own = [place for place in places if files[place.split] is file]
            order = np.array([rows[place] for place in own], np.int64)
            pixels[part] = pixels[part][order]
            file.finish(np.array([number[place.label] for place in own], np.int64), order)
    if isinstance(layout, Labels) and layout.has_groups:
        _, groups = np.unique([layout.group(place.path) for place in places], return_inverse=True)
        np.save(into / "groups.npy", groups.astype(np.int64))
    identical = _identical(np.concatenate(list(pixels.values())), [place.path for place in places])
    known = deep if isinstance(deep, tuple) else None
    if known:
        low, high = known
        notes.append(f"{root}: grey images of more than 8 bits: values from {low:g} to {high:g} become 0 to 255")
    return Contents(classes, tuple(notes), counts["validation"] or None, identical, known)


def content_digest(root: Path, labels: str | None, directories: Sequence[Path], progress: Progress, log: Log) -> str:
    """Hex SHA-256 that changes with the files of ``root`` and with the table ``labels``.

    That of an archive is remembered in ``directories``. Raises ``UserError`` if there is none that can be reached.
    """
    if not os.path.exists(root):  # Path.exists raises where a directory above cannot be searched
        raise UserError(f"data.root={root} does not exist or cannot be reached", EXPECTED)
    if archives.kind(root) == "folder":
        whole = archives.listing_digest(root, None if labels else entered(root))
    else:
        whole = digests.of_file(root, directories, progress, log)
    return whole if labels is None else hashlib.sha256(f"{whole}{digest_outside(root, labels)}".encode()).hexdigest()


def _read_all(
    root: Path,
    reading: AbstractContextManager[Reader],
    layout: Folders | Labels,
    files: dict[str, ImageFile],
    progress: Progress,
) -> tuple[dict[Place, int], dict[str, NDArray[np.uint64]], list[str]]:
    """Read serially, decode in parallel, collect in order.

    The row in its file of each image; of each file, digests of the pixels of its rows; and what could not be read, with
    the reasons.
    """
    rows: dict[Place, int] = {}
    digests = {part: array("Q") for part in ("train", "test")}
    ranges: dict[str, list[Range]] = {split: [] for split in files}  # of deep images
    unreadable: dict[str, list[str]] = {split: [] for split in files}
    queue: deque[tuple[list[Place], Future[Pixels]]] = deque()
    places: list[Place] = []  # of the block that is being gathered
    block: list[Encoded] = []
    held = 0  # bytes in it
    processes = min(decoding.cores(), 32)
    total, unit = archives.extent(root, layout.inside)
    with reading as read, progress(f"decoding {root.name}", total, unit) as advance:

        def collect(most: int) -> None:
            while len(queue) > most:
                begun, pixels = queue.popleft()
                for place, image in zip(begun, pixels.result(), strict=True):
                    if isinstance(image, str):
                        unreadable[place.split].append(f"{place.path} ({image})")
                        continue
                    if isinstance(image, tuple):
                        ranges[place.split].append(image)
                        continue
                    rows[place] = files[place.split].count
                    files[place.split].append(image)
                    digest = hashlib.blake2b(image, digest_size=8).digest()
                    digests["test" if place.split == "test" else "train"].append(int.from_bytes(digest))

        for member in archives.members(root, layout.inside):
            advance(member.cost)
            if (place := layout.locate(member)) is None or member.content is None:
                continue
            if isinstance(member.content, str):
                unreadable[place.split].append(f"{place.path} ({member.content})")
                continue
            places.append(place)
            block.append(member.content)
            held += len(member.content) if isinstance(member.content, bytes) else 0
            if len(block) == _BLOCK or held >= _BLOCK_BYTES:
                queue.append((places, read(block)))
                # bounds the memory, whatever the disk and the decoders do
                collect(2 * processes if held < 2 * _BLOCK_BYTES else 0)
                places, block, held = [], [], 0
        queue.append((places, read(block)))
        collect(0)
    if any(ranges.values()):
        own = ranges["train"]
        raise _DeepError((min(low for low, _ in own), max(high for _, high in own)) if own else None)
    found = {part: np.array(values, np.uint64) for part, values in digests.items()}
    return rows, found, [*layout.missing, *(one for split in SPLITS for one in unreadable[split])]


def _identical(digests: NDArray[np.uint64], names: Sequence[str]) -> list[list[tuple[int, str]]]:
    """Row and name of all images that are there more than once, together with their likes."""
    _, inverse, counts = np.unique(digests, return_inverse=True, return_counts=True)
    alike: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)
    for row in np.flatnonzero(counts[inverse] > 1).tolist():
        alike[int(inverse[row])].append((row, shown(names[row])))
    return list(alike.values())
