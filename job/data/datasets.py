"""A source of pictures becomes ``Split``s of one memory-mapped array, and the split into train and validation."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from job.config.errors import UserError
from job.config.settings import Data
from job.data import archives, cache, cifar10, folder, shapes10
from job.data.cache import Contents, Log, Progress, Stored, silent


@dataclass(frozen=True)
class Split:
    """The part of a data set that is trained on, validated with, or tested with."""

    images: Tensor
    """uint8 ``[N, 3, H, W]``, channels last; mapped, and the same tensor for train and validation"""
    labels: Tensor
    """int64 ``[N]``"""
    indices: Tensor
    """int64 ``[n]``, ascending: the rows of ``images`` and ``labels`` that belong to this split"""

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class Dataset:
    """Pictures in three splits."""

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    fingerprint: str
    """hex SHA-256 over class names, pictures and labels"""


def placed(dataset: Dataset, device: torch.device) -> Dataset:
    """``dataset`` with its pictures and labels on ``device``; train and validation go on to share theirs."""
    train = dataclasses.replace(
        dataset.train, images=dataset.train.images.to(device), labels=dataset.train.labels.to(device)
    )
    validation = dataclasses.replace(dataset.validation, images=train.images, labels=train.labels)
    test = dataclasses.replace(
        dataset.test, images=dataset.test.images.to(device), labels=dataset.test.labels.to(device)
    )
    return dataclasses.replace(dataset, train=train, validation=validation, test=test)


def prepare(data: Data, progress: Progress = silent, log: Log = print) -> None:
    """Download if allowed and missing, verify, and decode into the cache, so that ``load`` is quick.

    Does nothing if that has been done. Any number of processes may call it at once: one works, the others wait.
    Raises ``UserError`` for missing or damaged data and for a cache that cannot be written.
    """
    for note in _stored(data, progress, log).notes:
        log(note)


def load(data: Data, seed: int, progress: Progress = silent, log: Log = print) -> Dataset:
    """``prepare``, then map the decoded arrays; ``seed`` decides which training pictures are held out.

    The split depends on nothing but ``data.validation``, ``seed`` and the number of pictures.
    """
    stored = _stored(data, progress, log)
    for note in stored.notes:
        log(note)
    images, labels = _tensors(stored, "train")
    train, validation = hold_out(len(labels), data.validation, seed)
    test_images, test_labels = _tensors(stored, "test")
    return Dataset(
        name=data.source,
        classes=stored.classes,
        train=Split(images, labels, train),
        validation=Split(images, labels, validation),
        test=Split(test_images, test_labels, torch.arange(len(test_labels))),
        fingerprint=stored.fingerprint,
    )


def hold_out(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Ascending row numbers, int64, of the training and of the held-out pictures out of ``count``.

    Both have at least one picture, unless ``share`` is 0.
    """
    if share == 0:
        return torch.arange(count), torch.arange(0)
    if count < 2:
        raise UserError(f"data.validation={share}", f"cannot be held out of {count} picture; use 0")
    held_out = min(max(round(count * share), 1), count - 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[held_out:].sort().values, order[:held_out].sort().values


def _tensors(stored: Stored, part: str) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(stored.map(f"{part}_images"))  # [N, H, W, 3]
    return images.permute(0, 3, 1, 2), torch.from_numpy(stored.map(f"{part}_labels"))


def _stored(data: Data, progress: Progress, log: Log) -> Stored:
    """The decoded data set that ``data`` asks for, made if need be."""
    build: Callable[[Path], Contents]
    root = Path(os.path.abspath(Path(data.root).expanduser()))
    match data.source:
        case "shapes10":
            places = cache.places(None, data.cache)
            name = f"shapes10-{shapes10.VERSION}"
            build = partial(shapes10.decode, progress=progress)
        case "cifar10":
            places = cache.places(root, data.cache)
            published = cifar10.PUBLISHED
            name = f"cifar10-{published.sha256[:16]}"
            build = partial(cifar10.decode, root, data.download, progress=progress, log=log, published=published)
        case "folder":
            places = cache.places(root.parent, data.cache)
            content = _content_digest(root, places, progress, log)
            options = f"{data.image_size}{'-skip' if data.skip_unreadable else ''}"
            name = f"{root.name[:64]}-{content[:16]}-{options}"

            def decode_folder(into: Path) -> Contents:
                contents = folder.decode(root, data.image_size, data.skip_unreadable, into, progress)
                if _content_digest(root, places, progress, log) != content:
                    raise UserError(f"{root}: changed while it was read", "start again when it is complete")
                return contents

            build = decode_folder
    return cache.obtain(places, name, build, log)


def _content_digest(root: Path, places: list[Path], progress: Progress, log: Log) -> str:
    if not os.path.exists(root):  # Path.exists raises where a directory above cannot be searched
        raise UserError(f"data.root={root} does not exist or cannot be reached", folder.LAYOUT)
    if archives.kind(root) == "folder":
        return archives.listing_digest(root)
    return cache.digest(root, places, progress, log)
