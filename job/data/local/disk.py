"""Directories that processes share: which can be written, who works in it, what it means that it is full or closed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from job.config.errors import NO_LOCKS, UserError

OTHER_PLACE = "make room there, or set data.cache to a directory on another disk"
"""how a directory that has no room, or may not be written, is mended"""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST}


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
    raise UserError(f"no directory for decoded images can be written ({tried})", "set data.cache to one that can")


@contextlib.contextmanager
def locked(path: Path, log: Callable[[str], None]) -> Iterator[bool]:
    """Hold the lock file ``path``, which the kernel lets go when the process dies.

    Gives False on a file system that knows no locks: others may be at the same work.
    """
    with disk_errors(str(path), OTHER_PLACE):
        # In a directory like /tmp nobody may "create" a file that another user has.
        descriptor = os.open(path, os.O_RDWR | (0 if path.exists() else os.O_CREAT), 0o666)
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
    """Turn "disk full", "no permission" and the like, while writing ``what``, into a ``UserError``."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL | _FORBIDDEN:
            raise UserError(f"{what} cannot be written ({error.strerror})", mend) from None
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
