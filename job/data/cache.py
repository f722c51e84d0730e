"""Decoded images on disk: four arrays and a description, published whole or not at all, then mapped by every process.

A stored data set is a directory of NHWC uint8 images and int64 labels for train and test, and ``about.json``; with
``groups`` as a fifth array, int64 for the rows of train and then of test, where the source has any.
It never changes once it stands under its name, so that reading one needs no lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.config.errors import UserError
from job.data.local.digests import sha256
from job.data.local.disk import OTHER_PLACE, disk_errors, flush, locked, trusted, writable

FORMAT = 1
"""Raised when the layout of a stored data set changes: older ones are then rebuilt."""

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")

_REMEMBERED = 1 << 30  # bytes of a data set, a second's work, above which it is not verified at each start
_DAYS = 7  # and how long it is believed to be sound

Advance = Callable[[int], None]
Log = Callable[[str], None]
Progress = Callable[[str, int | None, str], AbstractContextManager[Advance]]
"""Starts showing how far a long piece of work has come, from its description, its total (None: not known) and their
unit; what is entered is called with each further amount done."""


@contextlib.contextmanager
def silent(description: str, total: int | None, unit: str) -> Iterator[Advance]:
    """The progress of a process that shows none."""
    yield lambda amount: None


@dataclass(frozen=True)
class Contents:
    """What a source says about the arrays it has written."""

    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """what the user should know at every start: images left out, files passed over"""
    validation: int | None = None
    """so many of the training rows, the last ones, are the source's own validation images; None: it has none"""
    identical: Sequence[Sequence[tuple[int, str]]] = ()
    """row, of train and then of test, and name of images that are there more than once, together with their likes"""
    deep: Sequence[float] | None = None
    """the two values of images of more than 8 bits that became 0 and 255; None: no such images are there to train on"""


@dataclass(frozen=True, kw_only=True)
class Stored(Contents):
    """A sound stored data set."""

    path: Path
    arrays: tuple[str, ...]
    fingerprint: str
    """hex SHA-256 over class names, the content of all arrays and the number of validation images, if any"""

    def map(self, name: str) -> NDArray[Any]:
        """One of ``arrays``, its pages shared with every process that maps it; what a process writes is its own."""
        array: NDArray[Any] = np.load(self.path / f"{name}.npy", mmap_mode="c")
        return array


class ImageFile:
    """Writes uint8 ``[n, size, size, 3]`` to a .npy file, n growing. A context: leaving it closes the file.

    Not mapped, because a plain write meets a full disk with an error and not with a signal.
    """

    def __init__(self, directory: Path, part: str, size: int) -> None:
        self._directory, self._part, self._size = directory, part, size
        self._path = directory / f"{part}_images.npy"
        self._file = self._path.open("wb")
        self.count = 0
        """images so far"""
        self._header()

    def __enter__(self) -> ImageFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def append(self, block: NDArray[np.uint8] | bytes) -> None:
        """Add ``block``, uint8 ``[k, size, size, 3]``, or its bytes."""
        written = self._file.write(block if isinstance(block, bytes) else np.ascontiguousarray(block).data)
        self.count += written // (self._size * self._size * 3)

    def finish(self, labels: NDArray[np.int64], order: NDArray[np.int64] | None = None) -> None:
        """Close the images, kept in ``order`` (row numbers; None: all as written), and write their ``labels``."""
        self._header()
        self._file.close()
        if order is None or np.array_equal(order, np.arange(self.count)):
            np.save(self._directory / f"{self._part}_labels.npy", labels.astype(np.int64))
            return
        unordered = self._path.rename(self._path.with_suffix(".unordered"))
        images = np.load(unordered, mmap_mode="r")
        with ImageFile(self._directory, self._part, self._size) as ordered:
            for start in range(0, len(order), 1024):
                ordered.append(images[order[start : start + 1024]])
            ordered.finish(labels)
        unordered.unlink()

    def _header(self) -> None:
        # numpy leaves room for the first dimension to grow, so the header keeps its length
        self._file.seek(0)
        shape = (self.count, self._size, self._size, 3)
        np.lib.format.write_array_header_1_0(self._file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def directories(beside: Path | None, override: str | None) -> list[Path]:
    """Directories in which a decoded data set may lie, best first; ``beside`` holds the source, and is never /."""
    if override is not None:
        return [Path(override).expanduser().absolute()]
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    own = [home / "rankzero"] if home.is_absolute() else []  # a container's user may have no home
    return own if beside is None or beside == beside.parent else [beside / "rankzero-cache", *own]


def obtain(
    directories: Sequence[Path], name: str, build: Callable[[Path], Contents], progress: Progress, log: Log
) -> Stored:
    """The stored data set ``name`` from the first of ``directories`` that has it, else built in the first writable one.

    Its content is verified: who then maps it need not. ``build`` writes ``ARRAYS`` into an empty directory. Any number
    of processes may call this at once: one builds. Raises ``DiskError`` where none is of use, and what ``build`` does.
    """
    directories = trusted(directories, name, log)
    for directory in directories:
        if isinstance(stored := _look_at(directory / name, progress), Stored):
            return stored
        if stored is not None:
            log(f"{directory / name}: {stored}; decoding again")
    directory = writable(directories)
    with locked(directory / f"{name}.lock", log) as alone:
        stored = _look_at(directory / name, progress)
        if isinstance(stored, Stored):  # built while this process waited
            return stored
        if stored is not None:
            (directory / name).rename(directory / f"{name}.tmp-{uuid.uuid4().hex}")
        for entry in directory.iterdir():
            if alone and entry.name.startswith(f"{name}.tmp-"):  # damaged, or of a process that was killed
                shutil.rmtree(entry, ignore_errors=True)
        stored = _publish(directory / name, build, log)
        if older := _older(directory, name):
            size = sum(file.stat().st_size for path in older for file in path.iterdir()) / 1e6
            log(f"what it was before takes {size:,.0f} MB; once no run uses it: rm -r {shlex.join(map(str, older))}")
        return stored


def read(path: Path) -> Stored:
    """The stored data set at ``path``, where it was obtained. Raises ``UserError`` if it is not there, or not sound."""
    if isinstance(stored := _look_at(path), Stored):
        return stored
    raise UserError(f"{path}: {stored or 'not there'}, and was just made", "is the disk sound, and one for the node?")


def _publish(final: Path, build: Callable[[Path], Contents], log: Log) -> Stored:
    """Build in a sibling, make it durable, and rename it into place."""
    working = final.with_name(f"{final.name}.tmp-{uuid.uuid4().hex}")
    try:
        with disk_errors(f"decoded images in {final.parent}", OTHER_PLACE):
            working.mkdir()
            contents = build(working)
            names = [*ARRAYS, *(name for name in ("groups",) if (working / f"{name}.npy").exists())]
            arrays = {name: np.load(working / f"{name}.npy", mmap_mode="r") for name in names}
            hashes = {name: hashlib.sha256(array.data).hexdigest() for name, array in arrays.items()}
            about = {
                "format": FORMAT,
                **dataclasses.asdict(contents),
                "sizes": {name: (working / f"{name}.npy").stat().st_size for name in names},
                "sha256": hashes,
                "fingerprint": _fingerprint(contents.classes, hashes, contents.validation),
                "described": _described(contents.notes, contents.identical, contents.deep),
            }
            (working / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
            for path in (*working.iterdir(), working):
                flush(path)
            try:
                working.rename(final)
            except OSError as error:  # published meanwhile from a machine that does not see our lock
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            flush(final.parent)
    finally:
        shutil.rmtree(working, ignore_errors=True)
    stored = read(final)
    log(f"decoded images kept in {final}")
    return stored


def _older(directory: Path, name: str) -> list[Path]:
    """Stored data sets, of any image size, of other content than ``name`` but of a source of the same name."""
    version = r"-[0-9a-f]{16}-\d+(-\w+)*"
    source = re.sub(rf"{version}$", "", name)
    alike = (path for path in sorted(directory.iterdir()) if re.fullmatch(re.escape(source) + version, path.name))
    return [path for path in alike if not path.name.startswith(name[: len(source) + 17])]


def _fingerprint(classes: Sequence[str], hashes: dict[str, str], validation: int | None) -> str:
    given = [] if validation is None else [validation]
    return hashlib.sha256(json.dumps([classes, hashes, *given]).encode()).hexdigest()


def _described(*parts: object) -> str:
    return hashlib.sha256(json.dumps([part for part in parts if part is not None]).encode()).hexdigest()


def _look_at(path: Path, progress: Progress | None = None) -> Stored | str | None:
    """What lies at ``path``: a sound stored data set, in words what is wrong with it, or None where nothing does.

    With ``progress`` the content of all arrays is verified.
    """
    if not os.path.exists(path):
        return None
    try:
        about = json.loads((path / "about.json").read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            return f"stored in format {about['format']}, this is {FORMAT}"
        hashes, notes, identical = about["sha256"], about["notes"], about.get("identical")
        if identical is None and any("passed over" in note for note in notes):
            return "of an older version, which passed over what may count now"
        for name in {*ARRAYS, *hashes}:
            if (path / f"{name}.npy").stat().st_size != about["sizes"][name]:
                return f"damaged ({name}.npy has the wrong size)"
        stored = Stored(
            path=path,
            arrays=tuple(hashes),
            classes=tuple(about["classes"]),
            notes=tuple(notes),
            validation=about.get("validation"),
            identical=identical or (),
            deep=about.get("deep"),
            fingerprint=str(about["fingerprint"]),
        )
        whole = stored.fingerprint == _fingerprint(stored.classes, hashes, stored.validation)
        whole = whole and (identical is None or about["described"] == _described(notes, identical, stored.deep))
        damaged = _damaged(stored, hashes, progress) if whole and progress else None
        return stored if whole and not damaged else f"damaged ({damaged or 'about.json'} is not what was written)"
    except Exception as error:  # JSON of any kind, and what NumPy raises on a broken head
        return f"damaged ({type(error).__name__}: {error})"


def _damaged(stored: Stored, hashes: dict[str, str], progress: Progress) -> str | None:
    """The first file whose content is not what its digest says; None where all are.

    That a large data set is sound is remembered beside it for ``_DAYS``, and while its files are not touched.
    """
    found = [(stored.path / f"{name}.npy").stat() for name in hashes]
    stamp = [[file.st_size, file.st_ino, file.st_mtime_ns, file.st_ctime_ns] for file in found]
    total = sum(file.st_size for file in found)
    note = stored.path.with_name(f"{stored.path.name}.verified")
    with contextlib.suppress(OSError, ValueError):
        recent = time.time() - note.stat().st_mtime < 86400 * _DAYS
        if total > _REMEMBERED and recent and json.loads(note.read_text(encoding="utf-8")) == stamp:
            return None
    with progress(f"verifying {stored.path.name}", total, "B") as advance:
        for name in hashes:
            array, kind = stored.map(name), np.uint8 if name.endswith("images") else np.int64
            # Read, and not as mapped: a bad sector would be a signal.
            with open(stored.path / f"{name}.npy", "rb") as stream:
                stream.seek(-array.nbytes, os.SEEK_END)
                if sha256(stream, advance) != hashes[name] or array.dtype != kind or not array.flags.c_contiguous:
                    return f"{name}.npy"
    with contextlib.suppress(OSError):  # where it cannot be written the next start verifies again
        if total > _REMEMBERED:
            note.unlink(missing_ok=True)  # it may be a link
            note.write_text(json.dumps(stamp), encoding="utf-8")
    return None
