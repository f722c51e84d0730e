"""Files that stand whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Write a small text file so that readers, and a crash, see the old content or the new."""
    temporary = beside(path)
    try:
        write_file(temporary, [text.encode()])
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_left_overs(directory: Path) -> None:
    """Remove what a process that was killed had written beside. Nobody else may be writing in ``directory``."""
    for path in directory.glob(".*.*"):
        if path.suffix[1:].isdigit():
            path.unlink(missing_ok=True)


def flush_directory(path: Path) -> None:
    """Make renames in ``path`` outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems know no such thing
            raise
    finally:
        os.close(descriptor)


def write_file(path: Path, contents: list[bytes | memoryview]) -> dict[str, Any]:
    """Write a new file, flush it to the disk, and say how many ``bytes`` it has and their ``sha256``."""
    digest, size = hashlib.sha256(), 0
    with open(path, "xb", buffering=0) as file:
        for content in contents:
            view = memoryview(content)
            while len(view):  # one call writes at most 2 GiB
                chunk = view[: 1 << 26]
                written = file.write(chunk)
                digest.update(chunk[:written])
                size += written
                view = view[written:]
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def beside(path: Path) -> Path:
    """Where ``path`` is written before it is renamed. In a container the next process has the same number."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    return temporary
