"""A folder, or a tar or zip archive, becomes a stream of named files. Nothing is ever extracted to disk."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from job.config.errors import UserError

Kind = Literal["folder", "tar", "zip"]


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a folder or an archive, or one directory (``content`` None)."""

    parts: tuple[str, ...]
    """its path below the root"""
    content: bytes | Path | None
    """bytes, or where to read them"""
    cost: int
    """how much further this member brings the stream, in the unit of ``extent``"""
    stamp: tuple[int, ...] = ()
    """of a folder's file: size, and modification time in nanoseconds"""


def kind(root: Path) -> Kind:
    """What ``root`` is, told by its first bytes and not by its name. Raises ``UserError`` for anything else."""
    if root.is_dir():
        return "folder"
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


def extent(root: Path) -> tuple[int | None, str]:
    """How long the stream of ``members(root)`` is, and in which unit."""
    match kind(root):
        case "folder":
            return sum(member.cost for member in walk(root)), "files"
        case "tar":
            return root.stat().st_size, "B"
        case "zip":
            with _zip(root) as archive:
                return len(archive.infolist()), "files"


def members(root: Path) -> Iterator[Member]:
    """All files and directories, hidden ones (``.x``, ``__MACOSX``) left out.

    Raises ``UserError`` for an archive that is damaged, or that has a link or a name that points outside.
    """
    match kind(root):
        case "folder":
            yield from walk(root)
        case "tar":
            yield from _tar_members(root)
        case "zip":
            yield from _zip_members(root)


def walk(root: Path) -> Iterator[Member]:
    """Everything below ``root/train`` and ``root/test``, in sorted order, links followed.

    Raises ``UserError`` for a directory that cannot be read and for a link that leads back to where it hangs.
    """
    for entry in _listed(root):
        if entry.name in ("train", "test") and entry.is_dir():
            yield from _walk(root / entry.name, (entry.name,), ())


def listing_digest(root: Path) -> str:
    """Hex SHA-256 over path, size and modification time of every file of a folder."""
    total = hashlib.sha256()
    for member in walk(root):
        total.update(os.fsencode("\0".join(("/".join(member.parts), *map(str, member.stamp)))) + b"\n")
    return total.hexdigest()


def _walk(directory: Path, parts: tuple[str, ...], above: tuple[tuple[int, int], ...]) -> Iterator[Member]:
    entries = _listed(directory)
    status = directory.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise UserError(f"{directory}: is a link to a directory that contains it", "take the link away")
    yield Member(parts, None, 0)
    for entry in entries:
        if hidden(entry.name):
            continue
        path, below = directory / entry.name, (*parts, entry.name)
        try:
            status = entry.stat()
        except OSError:  # a link to nothing or to itself: reading it will say so
            yield Member(below, path, 1, (0, 0))
            continue
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(path, below, (*above, here))
        else:
            yield Member(below, path, 1, (status.st_size, status.st_mtime_ns))


def _listed(directory: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{directory}: {error.strerror}", "make the directory readable, or take it away") from None


def hidden(name: str) -> bool:
    """Whether a file or directory of this name is no part of the data (``.DS_Store``, ``._x``, ``__MACOSX``)."""
    return name.startswith(".") or name == "__MACOSX"


_GZIP, _XZ = b"\x1f\x8b", b"\xfd7zXZ\x00"


def _parts(archive: Path, name: str) -> tuple[str, ...] | None:
    """A member's path; None for the root and for what is hidden."""
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if name.startswith("/") or ".." in parts:
        raise UserError(
            f"{archive}: member {shown(name)} points outside the archive", "make the archive again with relative names"
        )
    return None if not parts or any(map(hidden, parts)) else parts


def shown(name: str) -> str:
    """A file name that can be printed, whatever bytes it has."""
    return name.encode("utf-8", "backslashreplace").decode()


def _refuse_link(archive: Path, name: str) -> None:
    raise UserError(
        f"{archive}: member {shown(name)} is a link or no ordinary file",
        "make the archive again with tar --dereference --hard-dereference",
    )


def _decompressed(raw: BinaryIO, start: bytes) -> _Readable:
    if start.startswith(_GZIP):
        return gzip.GzipFile(fileobj=raw)
    return lzma.open(raw) if start.startswith(_XZ) else raw


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class _Stream:
    """What tarfile reads from: keeps where the last byte was that is not zero, which tells a whole archive's end."""

    def __init__(self, file: _Readable) -> None:
        self._file = file
        self.position = 0
        self.content_end = 0

    def read(self, size: int) -> bytes:
        chunk = self._file.read(size)
        if used := len(chunk.rstrip(b"\0")):
            self.content_end = self.position + used
        self.position += len(chunk)
        return chunk


def _tar_members(archive: Path) -> Iterator[Member]:
    with archive.open("rb") as raw:
        start = raw.read(8)
        raw.seek(0)
        done = 0
        try:
            stream = _Stream(_decompressed(raw, start))
            with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]
                while (member := tar.next()) is not None:
                    tar.members = []  # it would keep a kilobyte for each
                    if (parts := _parts(archive, member.name)) is None:
                        continue
                    if not member.isdir() and not member.isreg():
                        _refuse_link(archive, member.name)
                    reader = tar.extractfile(member)
                    content = reader.read() if reader else None
                    cost, done = raw.tell() - done, raw.tell()
                    yield Member(parts, content, cost)
                last = tar.offset
            while stream.read(1 << 20):  # to the compressed stream's own checksum
                pass
        except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
            raise _damaged(archive, str(error)) from None
        # tarfile takes a torn header, or none, for the end; an archive that is whole ends with a block of zeros
        if stream.content_end > last or stream.position < last + 512:
            raise _damaged(archive, "it ends without an end mark")


def _zip(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise _damaged(archive, str(error)) from None


def _zip_members(archive: Path) -> Iterator[Member]:
    with _zip(archive) as file:
        for info in file.infolist():
            if (parts := _parts(archive, info.filename)) is None:
                continue
            mode = info.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                _refuse_link(archive, info.filename)
            try:
                content = None if info.is_dir() else file.read(info)
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
                # RuntimeError: encrypted; NotImplementedError: a compression that Python does not know
                raise _damaged(archive, f"{shown(info.filename)}: {error}") from None
            yield Member(parts, content, 1)


def _damaged(archive: Path, reason: str) -> UserError:
    return UserError(f"{archive}: damaged or truncated ({reason})", "copy, download or make it again")
