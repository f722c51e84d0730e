"""Directories that processes share: which can be written, who works in it, what it means that it is full or closed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from job.config.errors import NO_LOCKS, UserError

OTHER_PLACE = "make room there, or set data.cache to a directory on another disk"
"""how a directory that has no room, or may not be written, is mended"""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ELOOP}
_held: list[int] = []


class DiskError(UserError):
    """A directory has no room, may not be written, or is not one to be trusted."""


def keep(directory: Path) -> None:
    """Make ``directory``, for this user alone, and hold a lock on it that keeps it as long as this process lives.

    Raises DiskError where it is another user's, a link, or where others may write in it or take its place.
    """
    with disk_errors(str(directory), OTHER_PLACE):
        directory.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with contextlib.suppress(FileExistsError):
                directory.mkdir(mode=0o700)
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            _held.append(descriptor)
            found, above = os.fstat(descriptor), directory.parent.stat()
            if found.st_uid != os.geteuid() or found.st_mode & 0o022 or _anybody_may_rename(above):
                raise DiskError(f"{directory} belongs to another user, or others may write there", OTHER_PLACE)
            with contextlib.suppress(OSError):  # a file system without locks: nobody removes it
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            with contextlib.suppress(FileNotFoundError):  # removed while this process waited
                if os.path.samestat(found, directory.stat()):
                    return


def trusted(directories: Sequence[Path], name: str, log: Callable[[str], None]) -> list[Path]:
    """Those of ``directories`` in which ``name`` was, or will be, put by this user, by root, or by people let in.

    Not by a stranger: in a directory that everybody may write, such as /tmp, anybody can be first with a name.
    """
    sound = [directory for directory in directories if not _strange(directory / name)]
    for directory in directories:
        if directory not in sound:
            log(f"{directory} is not used: everybody may write there, and what is found may be a stranger's")
    if directories and not sound:
        raise DiskError(f"decoded images cannot be kept in {directories[0]}, where everybody may write", OTHER_PLACE)
    return sound


def _strange(path: Path) -> bool:
    for each in (path, path.parent):
        with contextlib.suppress(OSError):
            found = each.lstat()
            theirs = found.st_uid not in (os.geteuid(), 0) or found.st_mode & 0o002 or stat.S_ISLNK(found.st_mode)
            if each.parent.stat().st_mode & 0o002 and theirs:
                return True
    return False


def _anybody_may_rename(directory: os.stat_result) -> bool:
    return bool(directory.st_mode & 0o002 and not directory.st_mode & stat.S_ISVTX)


def writable(directories: Sequence[Path]) -> Path:
    """The first of ``directories`` that can be written, created; one without any write permission is read-only."""
    for directory in directories:
        existing = next(parent for parent in (directory, *directory.absolute().parents) if os.path.exists(parent))
        if not existing.stat().st_mode & 0o222:  # root could write there, but somebody meant it not to be
            continue
        with contextlib.suppress(OSError):
            directory.mkdir(parents=True, exist_ok=True)
            probe = directory / f".tmp-{uuid.uuid4().hex}"  # access(2) is wrong on some network file systems
            probe.touch()
            probe.unlink()
            return directory
    tried = ", ".join(map(str, directories)) or "no home directory"
    raise DiskError(f"no directory for decoded images can be written ({tried})", "set data.cache to one that can")


@contextlib.contextmanager
def locked(path: Path, log: Callable[[str], None]) -> Iterator[bool]:
    """Hold the lock file ``path``, which the kernel lets go when the process dies.

    Gives False on a file system that knows no locks: others may be at the same work.
    """
    with disk_errors(str(path), OTHER_PLACE):
        # In a directory like /tmp nobody may "create" a file that another user has.
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | (0 if path.exists() else os.O_CREAT), 0o666)
    alone = True
    try:
        with contextlib.suppress(OSError):
            os.fchmod(descriptor, 0o666)  # for other users of a shared directory
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"waiting for another process that holds {path}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            log(f"{path} cannot be locked ({error.strerror}): another process may do the same work")
            alone = False
        yield alone
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk_errors(what: str, mend: str) -> Iterator[None]:
    """Turn "disk full", "no permission" and the like, while writing ``what``, into a ``DiskError``."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL | _FORBIDDEN:
            raise DiskError(f"{what} cannot be written ({error.strerror})", mend) from None
        raise


def flush(path: Path) -> None:
    """Have the content of a file, or the names in a directory, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems know no such thing of a directory
            raise
    finally:
        os.close(descriptor)
