"""A folder, or a tar or zip archive, becomes a stream of named files. Nothing is ever extracted to disk."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import itertools
import lzma
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from job.config.errors import UserError
from job.data.decoding import LARGEST, TOO_LARGE

Kind = Literal["folder", "tar", "zip"]
_Kind = Literal["directory", "file", "other"]


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a folder or an archive, or one directory or piece of debris (``content`` None)."""

    parts: tuple[str, ...]
    """its path below the root"""
    content: bytes | Path | str | None
    """bytes, where to read them, or in words why they are not read; none where only names were asked for"""
    cost: int
    """how much further this member brings the stream, in the unit of ``extent``"""
    stamp: tuple[int, ...] = ()
    """of a folder's file: size, and modification time in nanoseconds"""
    debris: bool = False
    """of no user's making, see ``is_debris``: a file, or a directory with all that is below it"""


def kind(root: Path) -> Kind:
    """What ``root`` is, told by its first bytes and not by its name. Raises ``UserError`` for anything else."""
    if root.is_dir():
        return "folder"
    if root.exists() and not root.is_file():  # a pipe would be waited for, and a device may never end
        raise UserError(f"{root} is neither a folder nor a file", "give a folder, .tar, .tar.gz, .tar.xz or .zip")
    try:
        with root.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise UserError(f"{root}: {error.strerror}", "make it readable") from None
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if start.startswith((_GZIP, _XZ)) or start[257:262] == b"ustar":
        return "tar"
    raise UserError(f"{root}: unknown kind of archive", "give a folder, .tar, .tar.gz, .tar.xz or .zip")


def extent(root: Path, inside: Sequence[str] | None = None) -> tuple[int | None, str]:
    """How long the stream of ``members(root, inside)`` is, and in which unit."""
    match kind(root):
        case "folder":
            return sum(member.cost for member in walk(root, inside)), "files"
        case "tar":
            return root.stat().st_size, "B"
        case "zip":
            with _zip(root) as archive:
                return len(archive.infolist()), "files"


def members(
    root: Path, inside: Sequence[str] | None = None, wanted: Callable[[tuple[str, ...]], bool] = lambda parts: True
) -> Iterator[Member]:
    """All files, directories and debris; what is below debris may come as the same debris once more.

    Of a folder, what ``walk`` gives; of an archive, the content of what is ``wanted``. Raises ``UserError`` for an
    archive that is damaged or a bomb, or that has a link or a name that points outside.
    """
    match kind(root):
        case "folder":
            yield from walk(root, inside)
        case "tar":
            yield from _archived(root, _tar_entries(root), wanted)
        case "zip":
            yield from _archived(root, _zip_entries(root), wanted)


def walk(root: Path, inside: Sequence[str] | None = None) -> Iterator[Member]:
    """Everything ``below`` the directories of ``root`` that are called ``inside``; None: below ``root`` itself."""
    if inside is None:
        yield from itertools.islice(below(root), 1, None)
        return
    for name in inside:
        yield from below(root / name, (name,))


def listing_digest(root: Path, inside: Sequence[str] | None = None) -> str:
    """Hex SHA-256 over path, size and modification time of every file that ``walk`` gives, but debris."""
    total = hashlib.sha256()
    for member in walk(root, inside):
        if not member.debris:
            total.update(os.fsencode("\0".join(("/".join(member.parts), *map(str, member.stamp)))) + b"\n")
    return total.hexdigest()


def below(directory: Path, parts: tuple[str, ...] = (), above: tuple[tuple[int, int], ...] = ()) -> Iterator[Member]:
    """A directory under the name ``parts`` and everything in it, in sorted order, links followed, debris not entered.

    ``above`` are device and inode of the directories that it lies in. Raises ``UserError`` for a directory that cannot
    be read and for a link that leads back to where it hangs.
    """
    entries = listed(directory)
    status = directory.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise UserError(f"{directory}: is a link to a directory that contains it", "take the link away")
    yield Member(parts, None, 0)
    for entry in entries:
        path, inner = directory / entry.name, (*parts, entry.name)
        if is_debris(entry.name):
            yield Member(inner, None, 0, debris=True)
            continue
        try:
            status = entry.stat()
        except OSError:  # a link to nothing or to itself: reading it will say so
            yield Member(inner, path, 1, (0, 0))
            continue
        if stat.S_ISDIR(status.st_mode):
            yield from below(path, inner, (*above, here))
        else:
            yield Member(inner, path, 1, (status.st_size, status.st_mtime_ns))


def listed(directory: Path) -> list[os.DirEntry[str]]:
    """What is in a directory, by name. Raises ``UserError`` for one that cannot be read."""
    try:
        with os.scandir(directory) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{directory}: {error.strerror}", "make the directory readable, or take it away") from None


_DEBRIS = {
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("__macosx", "icon\r", "lost+found"),
    *("@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),  # of NAS
    "rankzero-cache",  # our own, beside an archive in it
}
"""in small letters"""


def is_debris(name: str) -> bool:
    """Whether a file or directory of this name was left by a desktop, an editor or a NAS; what starts with a dot is."""
    return (
        name.startswith((".", "~$"))
        or name.endswith(("~", "@SynoEAStream", "@SynoResource"))
        or name.lower() in _DEBRIS
    )


@dataclass(frozen=True, slots=True)
class _Entry:
    """What an archive says of one member."""

    name: str
    kind: _Kind
    size: int
    cost: int
    read: Callable[[], bytes]


def _archived(archive: Path, entries: Iterator[_Entry], wanted: Callable[[tuple[str, ...]], bool]) -> Iterator[Member]:
    """``entries`` judged, and read as far as they are ``wanted`` and may be images."""
    name = "its beginning"
    try:
        for entry in entries:
            name = shown(entry.name)
            parts = tuple(part for part in entry.name.split("/") if part not in ("", "."))
            if entry.name.startswith("/") or ".." in parts:
                raise UserError(
                    f"{archive}: member {name} points outside the archive", "make the archive again with relative names"
                )
            if debris := [place for place, part in enumerate(parts, 1) if is_debris(part)]:
                yield Member(parts[: debris[0]], None, entry.cost, debris=True)
            elif entry.kind == "other":
                raise UserError(
                    f"{archive}: member {name} is a link or no ordinary file",
                    "make the archive again with tar --dereference --hard-dereference",
                )
            elif entry.kind == "directory" and parts:
                yield Member(parts, None, entry.cost)
            elif parts:
                content = TOO_LARGE if entry.size > LARGEST else entry.read() if wanted(parts) else b""
                yield Member(parts, content, entry.cost)
    except UserError:
        raise
    except Exception as error:  # Python's readers raise nearly anything on a broken archive
        raise _damaged(archive, f"at {name}: {str(error) or type(error).__name__}") from None


def shown(name: str) -> str:
    """A file name that can be printed, whatever bytes it has."""
    return name.encode("utf-8", "backslashreplace").decode()


def _damaged(archive: Path, reason: str) -> UserError:
    return UserError(f"{archive}: damaged or truncated ({reason})", "copy, download or make it again")


def _refuse_bomb(archive: Path, expanded: int) -> None:
    """Raise ``UserError`` if no archive of images expands to so many bytes."""
    if expanded > max(LARGEST, 200 * archive.stat().st_size):
        what = f"{archive}: expands to more than 200 times its size, which images do not"
        raise UserError(what, "if you trust it, extract it and give the folder")


_GZIP, _XZ = b"\x1f\x8b", b"\xfd7zXZ\x00"


def _decompressed(raw: io.BufferedReader, start: bytes) -> io.BufferedIOBase:
    if start.startswith(_GZIP):
        return gzip.GzipFile(fileobj=raw)
    return lzma.LZMAFile(raw) if start.startswith(_XZ) else raw


class _Stream:
    """What tarfile reads from: keeps where the last byte was that is not zero, which tells a whole archive's end."""

    def __init__(self, archive: Path, file: io.BufferedIOBase) -> None:
        self._archive, self._file = archive, file
        self.position = 0
        self.content_end = 0

    def read(self, size: int) -> bytes:
        chunk = self._file.read(size)
        if used := len(chunk.rstrip(b"\0")):
            self.content_end = self.position + used
        self.position += len(chunk)
        _refuse_bomb(self._archive, self.position)
        return chunk


def _tar_entries(archive: Path) -> Iterator[_Entry]:
    with archive.open("rb") as raw:
        start = raw.read(8)
        raw.seek(0)
        done = 0
        stream = _Stream(archive, _decompressed(raw, start))
        with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                tar.members = []  # it would keep a kilobyte for each
                file = member.isreg() and not member.issparse()  # a sparse one may be of any size
                reader = tar.extractfile(member) if file else None
                cost, done = raw.tell() - done, raw.tell()
                kind: _Kind = "file" if file else "directory" if member.isdir() else "other"
                yield _Entry(member.name, kind, member.size, cost, reader.read if reader else bytes)
            last = tar.offset
        while stream.read(1 << 20):  # to the compressed stream's own checksum
            pass
    # tarfile takes a torn header, or none, for the end; an archive that is whole ends with a block of zeros
    if stream.content_end > last or stream.position < last + 512:
        raise _damaged(archive, "it ends without an end mark")


def _zip(archive: Path) -> zipfile.ZipFile:
    try:
        file = zipfile.ZipFile(archive)
    except Exception as error:
        raise _damaged(archive, str(error) or type(error).__name__) from None
    _refuse_bomb(archive, sum(info.file_size for info in file.infolist()))
    return file


def _zip_entries(archive: Path) -> Iterator[_Entry]:
    with _zip(archive) as file:
        # PowerShell separates by backslashes; beside slashes they are halves of letters, as in Japanese names.
        separator = "/" if any("/" in info.filename for info in file.infolist()) else "\\"
        kinds: dict[int, _Kind] = {0: "file", stat.S_IFREG: "file", stat.S_IFDIR: "directory"}
        for info in file.infolist():
            name = _zip_name(info).replace(separator, "/")
            told = "directory" if name.endswith("/") else kinds.get(stat.S_IFMT(info.external_attr >> 16), "other")
            yield _Entry(name, told, info.file_size, 1, partial(_zip_content, file, info))


def _zip_name(info: zipfile.ZipInfo) -> str:
    """A member's name. Who does not say that it is UTF-8 may mean that all the same, or the cp437 of the standard."""
    with contextlib.suppress(ValueError):
        if not info.flag_bits & 0x800:
            return info.filename.encode("cp437").decode()
    return info.filename


def _zip_content(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with file.open(info) as content:  # in small pieces: bzip2 and LZMA give all that a piece of them expands to
        return b"".join(iter(lambda: content.read(1 << 12), b""))
