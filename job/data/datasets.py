"""A source of images becomes ``Split``s of one memory-mapped array, and the split into train and validation."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from job.config.errors import UserError
from job.config.settings import Data
from job.data import cache, cifar10, folder, shapes10
from job.data.cache import Contents, Log, Progress, silent
from job.data.decoding import Deep, Range
from job.data.folder import named


@dataclass(frozen=True)
class Split:
    """The part of a data set that is trained on, validated with, or tested with."""

    images: Tensor
    """uint8 ``[N, size, size, 3]``, contiguous; mapped, and the same tensor for train and validation"""
    labels: Tensor
    """int64 ``[N]``"""
    indices: Tensor
    """int64 ``[n]``, ascending: the rows of ``images`` and ``labels`` that belong to this split"""

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def image_size(self) -> int:
        """Height and width of every image, in pixels."""
        return self.images.shape[1]


@dataclass(frozen=True)
class Dataset:
    """Images in three splits."""

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    fingerprint: str
    """hex SHA-256 over class names, images and labels"""
    deep: Range | None = None
    """values of images of more than 8 bits that became 0 and 255"""

    def __str__(self) -> str:
        counts = ", ".join(f"{len(getattr(self, name)):,} {name}" for name in ("train", "validation", "test"))
        size, rows = self.image_size, self.train.labels[self.train.indices]
        unseen = (rows.bincount(minlength=len(self.classes)) == 0).nonzero().flatten().tolist()
        names = named([self.classes[label] for label in unseen], 10)
        lack = f", none to train on of {names}: all are held out for validation" if unseen else ""
        return f"{self.name}: {counts} images of shape 3x{size}x{size}, {len(self.classes)} classes{lack}"

    @property
    def image_size(self) -> int:
        """Height and width of every image, in pixels."""
        return self.train.image_size


def to_device(dataset: Dataset, device: torch.device) -> Dataset:
    """``dataset`` with its images and labels on ``device``; train and validation go on to share theirs."""
    train, test = (
        dataclasses.replace(split, images=split.images.to(device), labels=split.labels.to(device))
        for split in (dataset.train, dataset.test)
    )
    validation = dataclasses.replace(dataset.validation, images=train.images, labels=train.labels)
    return dataclasses.replace(dataset, train=train, validation=validation, test=test)


def prepare(data: Data, progress: Progress = silent, log: Log = print, deep: Deep = "ask") -> Path:
    """Download if allowed and missing, verify, and decode into the cache: where the decoded data set lies.

    Only looks at the source, and verifies what was decoded, if that has been done. Any number of processes may call it
    at once: one works, the others wait. ``deep`` is the range of images of more than 8 bits, where it is not to be the
    data set's own. Raises ``UserError`` for missing or damaged data and for a cache that cannot be
    written.
    """
    stored = cache.obtain(*_source(data, progress, log, deep), progress, log)
    for note in stored.notes:
        log(note)
    return stored.path


def mapped(path: Path, data: Data, seed: int) -> Dataset:
    """The data set that ``prepare`` left at ``path``, without a look at its source.

    ``seed`` decides which training images are held out: that depends on nothing but ``data.validation``, ``seed`` and
    the number of images. Raises ``UserError`` if the data set cannot be seen there.
    """
    stored = cache.read(path)
    arrays = {name: torch.from_numpy(stored.map(name)) for name in cache.ARRAYS}
    labels, test_labels = arrays["train_labels"], arrays["test_labels"]
    train, validation = hold_out(len(labels), data.validation, seed)
    return Dataset(
        name=data.source,
        classes=stored.classes,
        train=Split(arrays["train_images"], labels, train),
        validation=Split(arrays["train_images"], labels, validation),
        test=Split(arrays["test_images"], test_labels, torch.arange(len(test_labels))),
        fingerprint=stored.fingerprint,
        deep=stored.deep,
    )


def load(data: Data, seed: int, progress: Progress = silent, log: Log = print) -> Dataset:
    """``prepare`` and ``mapped``, for a process that is alone."""
    return mapped(prepare(data, progress, log), data, seed)


def hold_out(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Ascending row numbers, int64, of the training and of the held-out images out of ``count``.

    Both have at least one image, unless ``share`` is 0.
    """
    if share == 0:
        return torch.arange(count), torch.arange(0)
    if count < 2:
        raise UserError(f"data.validation={share}", f"cannot be held out of {count} image; use 0")
    held_out = min(max(round(count * share), 1), count - 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[held_out:].sort().values, order[:held_out].sort().values


def _source(data: Data, progress: Progress, log: Log, deep: Deep) -> tuple[list[Path], str, Callable[[Path], Contents]]:
    """Where the decoded data set that ``data`` asks for may lie, under which name, and how it is made."""
    root = Path(os.path.abspath(Path(data.root).expanduser()))
    match data.source:
        case "shapes10":
            directories = cache.directories(None, data.cache)
            return directories, f"shapes10-{shapes10.VERSION}", partial(shapes10.decode, progress=progress)
        case "cifar10":
            build = partial(cifar10.decode, root, data.download, progress=progress, log=log)
            return cache.directories(root, data.cache), f"cifar10-{cifar10.PUBLISHED.sha256[:16]}", build
        case "folder":
            directories = cache.directories(root.parent, data.cache)
            content = partial(folder.content_digest, root, directories, progress, log)
            before = content()

            def build_folder(into: Path) -> Contents:
                contents = folder.decode(root, data.image_size, data.skip_unreadable, into, progress, data.resize, deep)
                if content() != before:
                    raise UserError(f"{root}: changed while it was read", "start again when it is complete")
                return contents

            options = [data.image_size, *["skip"] * data.skip_unreadable]
            options += [data.resize] * (data.resize != "squeeze")
            options += [hashlib.sha256(repr(deep).encode()).hexdigest()[:8]] * (deep != "ask")
            return directories, "-".join(map(str, (root.name[:64], before[:16], *options))), build_folder
