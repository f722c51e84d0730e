"""What files contain, as SHA-256: remembered beside them, since a large one takes its time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from job.data.local.disk import OTHER_PLACE, disk_errors, locked, trusted, writable

if TYPE_CHECKING:
    from job.data.cache import Advance, Log, Progress


def of_file(file: Path, directories: Sequence[Path], progress: Progress, log: Log) -> str:
    """Hex SHA-256 of ``file``, remembered in ``directories`` for as long as its size and modification time stay."""
    status = file.stat()
    stamp = [status.st_size, status.st_mtime_ns]
    note = f"digest-{hashlib.sha256(os.fsencode(file.resolve())).hexdigest()[:16]}.json"

    def remembered(directory: Path) -> str | None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads((directory / note).read_text(encoding="utf-8"))
            return bytes.fromhex(known["sha256"]).hex() if known["stamp"] == stamp else None
        return None

    directories = trusted(directories, note, lambda line: None)
    if known := next(filter(None, map(remembered, directories)), None):
        return known
    directory = writable(directories)
    with locked(directory / f"{note}.lock", log):
        if known := remembered(directory):
            return known
        with file.open("rb") as stream, progress(f"hashing {file.name}", status.st_size, "B") as advance:
            total = sha256(stream, advance)
        with disk_errors(str(directory), OTHER_PLACE):
            beside = directory / f".tmp-{uuid.uuid4().hex}"
            content = {"file": ascii(str(file)), "stamp": stamp, "sha256": total}
            beside.write_text(json.dumps(content, indent=1), encoding="utf-8")
            beside.replace(directory / note)
    return total


def sha256(stream: BinaryIO, advance: Advance) -> str:
    """Hex SHA-256 of what is left in ``stream``."""
    total = hashlib.sha256()
    while chunk := stream.read(1 << 22):
        total.update(chunk)
        advance(len(chunk))
    return total.hexdigest()
