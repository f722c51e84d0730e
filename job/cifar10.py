"""CIFAR-10 (Krizhevsky, 2009): fetched once, verified, decoded without trusting its pickles."""

from __future__ import annotations

import hashlib
import http.client
import io
import pickle
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.config import UserError
from job.decoded import Contents, Log, PictureFile, Progress, locked, writable

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST = ("test_batch",)


@dataclass(frozen=True)
class Published:
    """What was published, byte for byte."""

    url: str = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    size: int = 170_498_071
    sha256: str = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
    folder: str = "cifar-10-batches-py"
    batches: tuple[tuple[str, str], ...] = (
        ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
        ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
        ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
        ("data_batch_4", "634d18415352ddfa80567beed471001a"),
        ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
        ("test_batch", "40351d587109b95175f43aff81a1287e"),
    )
    """file and MD5 of each batch in ``folder``, as torchvision checks them"""

    @property
    def filename(self) -> str:
        """What the archive is called on disk."""
        return self.url.rsplit("/", 1)[1]


PUBLISHED = Published()

PATIENCE = 10
"""seconds without an answer after which a connection counts as dead"""
_TRIES = 3  # connections in a row that bring no byte


def decode(
    root: Path,
    download: bool,
    into: Path,
    progress: Progress,
    log: Log,
    published: Published = PUBLISHED,
    command: str = "python job/prepare.py --config …",
) -> Contents:
    """Write the pictures below ``root`` into the directory ``into``, in the order of the batches.

    ``root`` holds the archive, or the folder that torchvision extracts from it; else the archive is downloaded if
    ``download``. Raises ``UserError`` if there is neither, or if what is there is not what was published.
    """
    batches = _find(root, published, log)
    if batches is None:
        if not download:
            raise _missing(root, published, command, "data.download is false")
        archive = fetch(root, progress, log, published, command)
        batches = _extract(archive.read_bytes(), published)
    with progress("decoding CIFAR-10", len(batches), "batches") as advance:
        for split, names in (("train", TRAIN), ("test", TEST)):
            file = PictureFile(into, split, 32)
            labels: list[int] = []
            for name in names:
                pictures, some = _unpickled(batches.pop(name))
                file.append(pictures)
                labels += some
                advance(1)
            file.finish(np.array(labels, np.int64))
    return Contents(CLASSES)


def fetch(root: Path, progress: Progress, log: Log, published: Published = PUBLISHED, command: str = "") -> Path:
    """Download the archive into ``root``, continuing what an earlier attempt left; return its path.

    The archive appears under its name only when its SHA-256 is right. Any number of processes may call this at once.
    """
    archive = root / published.filename
    writable([root])
    with locked(root / f"{archive.name}.lock", log):
        if archive.exists():  # another process was faster
            return archive
        part = archive.with_name(f"{archive.name}.part")
        with progress(f"downloading {archive.name}", published.size, "B") as advance:
            while True:
                start = part.stat().st_size if part.exists() else 0
                advance(start)
                _receive(part, published, advance, lambda why: _missing(root, published, command, why))
                if _sha256(part) == published.sha256:
                    break
                part.unlink()
                if start == 0:
                    raise UserError(f"{published.url}: not the published file", "download it elsewhere")
                log(f"{part}: was damaged, downloading again")
                advance(-published.size)
        part.replace(archive)
    return archive


def _receive(
    part: Path, published: Published, advance: Callable[[int], None], failed: Callable[[str], UserError]
) -> None:
    """Append to ``part`` until it has the published size."""
    idle = 0
    while (have := part.stat().st_size if part.exists() else 0) < published.size:
        headers = {"Range": f"bytes={have}-"} if have else {}
        request = urllib.request.Request(published.url, headers=headers)  # noqa: S310 (our own address)
        before = have
        why = "the connection broke off"
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
                if have and answer.status != 206:  # the server does not continue: from the start
                    advance(-have)
                    before = have = 0
                with part.open("ab" if have else "wb") as file:
                    while chunk := answer.read1(1 << 16):
                        file.write(chunk)
                        have += len(chunk)
                        advance(len(chunk))
                        if have > published.size:
                            raise UserError(f"{published.url}: longer than the published file", "is there a proxy?")
        except urllib.error.HTTPError as error:
            raise failed(f"{error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            why = str(getattr(error, "reason", error)) or type(error).__name__
        idle = 0 if have > before else idle + 1
        if have < published.size and (have == 0 or idle >= _TRIES):
            raise failed(why)


def _missing(root: Path, published: Published, command: str, why: str) -> UserError:
    return UserError(
        f"no CIFAR-10 in data.root={root} and none could be downloaded ({why})",
        f"on a machine with network run `{command}`, or put {published.filename} from {published.url} into {root}",
    )


def _find(root: Path, published: Published, log: Log) -> dict[str, bytes] | None:
    """The batches as verified bytes, None if there are none below ``root``."""
    archive, folder = root / published.filename, root / published.folder
    if archive.exists():
        content = archive.read_bytes()
        if hashlib.sha256(content).hexdigest() == published.sha256:
            return _extract(content, published)
        wrong = f"{archive} ({len(content)} bytes, {published.size} expected)"
    elif folder.exists():
        batches = {}
        for name, md5 in published.batches:
            batches[name] = (folder / name).read_bytes() if (folder / name).exists() else b""
            if hashlib.md5(batches[name], usedforsecurity=False).hexdigest() != md5:
                wrong = str(folder / name)
                break
        else:
            return batches
    else:
        return None
    raise UserError(f"{wrong}: not what was published", "delete it, and it will be downloaded again")


def _extract(content: bytes, published: Published) -> dict[str, bytes]:
    wanted = {f"{published.folder}/{name}": name for name in (*TRAIN, *TEST)}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        return {
            wanted[member.name]: file.read()
            for member in tar
            if member.name in wanted and (file := tar.extractfile(member)) is not None
        }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _ArraysOnly(pickle.Unpickler):
    """Rebuilds numpy arrays and plain values; anything else that a pickle could call is refused."""

    def find_class(self, module: str, name: str) -> Any:
        reconstruct = np.zeros(0).__reduce__()[0]  # its module's name depends on numpy's version
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): __import__("_codecs").encode,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"refuses {module}.{name}")
        return allowed[module, name]


def _unpickled(batch: bytes) -> tuple[NDArray[np.uint8], list[int]]:
    """Pictures uint8 ``[n, 32, 32, 3]`` and labels of a batch, which holds them as ``[n, 3 * 32 * 32]``."""
    content = _ArraysOnly(io.BytesIO(batch), encoding="latin1").load()
    return content["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), content["labels"]
