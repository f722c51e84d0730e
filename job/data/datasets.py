"""A source of images becomes memory-mapped arrays, and its three splits rows of these."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from job.config.errors import UserError
from job.config.settings import Data
from job.data import cache, cifar10, folder, shapes10
from job.data.cache import Contents, Log, Progress, Stored, silent
from job.data.decoding import Deep
from job.data.layout import hold_out
from job.data.layout.folders import named
from job.data.local.disk import DiskError, keep


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
    """empty where the source has validation images and no test images"""
    fingerprint: str
    """hex SHA-256 over class names, images, labels and, where it is drawn, the test split"""
    deep: Sequence[float] | None = None
    """the two values of images of more than 8 bits that became 0 and 255, if there are any"""
    drawn: str = ""
    """in words, what of the splits is not the source's own"""
    notes: tuple[str, ...] = ()
    """what of the splits makes numbers mean less than they seem to"""

    def __str__(self) -> str:
        counts = ", ".join(f"{len(split):,} {name}" for name, split in self.splits.items())
        shape = f"3x{self.image_size}x{self.image_size}"
        return f"{self.name}: {counts} images of shape {shape}, {len(self.classes)} classes{self.drawn}"

    @property
    def image_size(self) -> int:
        """Height and width of every image, in pixels."""
        return self.train.image_size

    @property
    def splits(self) -> dict[str, Split]:
        """All three, by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def nbytes(self) -> int:
        """What the images of all splits take."""
        shared = self.test.images is self.train.images
        return self.train.images.nbytes + (0 if shared else self.test.images.nbytes)

    @property
    def final(self) -> str:
        """The split that a trained network is evaluated on: test, or validation where there is no test."""
        return "test" if len(self.test) else "validation"


def to_device(dataset: Dataset, device: torch.device) -> Dataset:
    """``dataset`` with its images and labels on ``device``; splits go on to share theirs."""
    own = {id(split.images): split for split in dataset.splits.values()}
    moved = {key: {"images": one.images.to(device), "labels": one.labels.to(device)} for key, one in own.items()}
    train, validation, test = (dataclasses.replace(one, **moved[id(one.images)]) for one in dataset.splits.values())
    return dataclasses.replace(dataset, train=train, validation=validation, test=test)


def prepare(
    data: Data, progress: Progress = silent, log: Log = print, node_disk: Path | None = None, deep: Deep = "ask"
) -> Path:
    """Download if allowed and missing, verify, and decode into the cache: where the decoded data set lies.

    Only looks at the source, and verifies what was decoded, if that has been done. Any number of processes may call it
    at once: one works, the others wait. Where ``data`` names no cache, ``node_disk`` is tried first. ``deep`` is the
    range of images of more than 8 bits, where it is not to be the data set's own. Raises ``UserError`` for missing or
    damaged data and for a cache that cannot be written.
    """
    if node_disk is not None and data.cache is None:
        try:
            keep(node_disk)
            return prepare(dataclasses.replace(data, cache=str(node_disk)), progress, log, deep=deep)
        except DiskError as error:
            log(f"{str(error).partition(': ')[0]}: the decoded images stay where the data set is")
    stored = cache.obtain(*_source(data, progress, log, deep), progress, log)
    for note in stored.notes:
        log(note)
    return stored.path


def mapped(path: Path, data: Data, seed: int) -> Dataset:
    """The data set that ``prepare`` left at ``path``, without a look at its source.

    What the source does not split itself is drawn: that depends on nothing but the settings of ``data``, ``seed``, and
    labels and groups of the images. Raises ``UserError`` if the data set cannot be seen there, or not be split.
    """
    stored = cache.read(path)
    arrays = {name: torch.from_numpy(stored.map(name)) for name in stored.arrays}
    labels, test_labels = arrays["train_labels"], arrays["test_labels"]
    count, tested, drawn, fingerprint = len(labels), len(test_labels) > 0, "", stored.fingerprint
    train, validation = torch.arange(count).split([count - (stored.validation or 0), stored.validation or 0])
    test = Split(arrays["test_images"], test_labels, torch.arange(len(test_labels)))
    if stored.validation is None:
        groups = arrays["groups"][:count] if "groups" in arrays else None
        train, validation, held_out = hold_out.draw(labels, groups, data, seed, test=not tested)
        if not tested:
            test = Split(arrays["train_images"], labels, held_out)
            fingerprint = hashlib.sha256(fingerprint.encode() + held_out.numpy().tobytes()).hexdigest()
        if not tested or data.hold_out != "random":
            drawn = (
                f"; {'validation' if tested else 'test and validation'} images are held out, {data.hold_out}, by seed"
            )
    if not len(test) and not len(validation):
        raise UserError(
            f"data.test={data.test} with data.validation={data.validation}", "hold out one of them at least"
        )
    dataset = Dataset(
        name=data.source,
        classes=stored.classes,
        train=Split(arrays["train_images"], labels, train),
        validation=Split(arrays["train_images"], labels, validation),
        test=test,
        fingerprint=fingerprint,
        deep=stored.deep,
        drawn=drawn if len(test) else f"{drawn}; the final evaluation is of the validation images",
    )
    return dataclasses.replace(dataset, notes=tuple(_notes(dataset, stored, arrays.get("groups"))))


def _notes(dataset: Dataset, stored: Stored, groups: Tensor | None) -> Iterator[str]:
    """Classes that a split lacks; images and groups that are in more than one split."""
    first = len(dataset.train.labels)
    owner = torch.full((first + len(dataset.test.labels),), -1)  # split of each row, those of test after those of train
    for number, (name, split) in enumerate(dataset.splits.items()):
        owner[split.indices + (0 if split.images is dataset.train.images else first)] = number
        images = split.labels[split.indices].bincount(minlength=len(dataset.classes))
        lacks = named([dataset.classes[label] for label in (images == 0).nonzero().flatten().tolist()], 10)
        if len(split) and lacks:
            yield (
                f"none to train on of {lacks}: all are held out"
                if name == "train"
                else (f"no {name} images of {lacks}: {name} accuracy says nothing of that")
            )
    for number, (name, split) in enumerate(dataset.splits.items()):
        twins = []
        for alike in stored.identical if name != "train" else ():
            trained = [of for row, of in alike if owner[row] == 0]
            twins += [f"{of} (is {trained[0]})" for row, of in alike if trained and owner[row] == number]
        if twins:
            yield f"{len(twins)} of {len(split):,} {name} images are also trained on, pixel for pixel: {named(twins)}"
    if groups is not None:
        pairs = torch.stack([groups, owner[: len(groups)]]).unique(dim=1)[0]  # each group once for each of its splits
        if parted := int((pairs.bincount() > 1).sum()):
            count = f"{parted} of {len(pairs.unique())} groups"
            yield f"{count} are in more than one split; what data.hold_out grouped holds out is whole groups"


def load(
    data: Data, seed: int, progress: Progress = silent, log: Log = print, node_disk: Path | None = None
) -> Dataset:
    """``prepare`` and ``mapped``, for a process that is alone."""
    return mapped(prepare(data, progress, log, node_disk), data, seed)


def _source(data: Data, progress: Progress, log: Log, deep: Deep) -> tuple[list[Path], str, Callable[[Path], Contents]]:
    """Where the decoded data set that ``data`` asks for may lie, under which name, and how it is made."""
    root = Path(os.path.abspath(Path(data.root).expanduser()))
    match data.source:
        case "shapes10":
            directories = cache.directories(None, data.cache)
            return directories, f"shapes10-{shapes10.VERSION}", partial(shapes10.decode, progress=progress)
        case "cifar10":
            build = partial(cifar10.decode, root, data.download, data.url, progress=progress, log=log)
            return cache.directories(root, data.cache), f"cifar10-{cifar10.PUBLISHED.sha256[:16]}", build
        case "folder":
            directories = cache.directories(root.parent, data.cache)
            content = partial(folder.content_digest, root, data.labels, directories, progress, log)
            before = content()

            def build_folder(into: Path) -> Contents:
                contents = folder.decode(root, data, into, progress, deep)
                if content() != before:
                    raise UserError(f"{root}: changed while it was read", "start again when it is complete")
                return contents

            options = [data.image_size, *["skip"] * data.skip_unreadable]
            options += [data.resize] * (data.resize != "squeeze")
            options += [hashlib.sha256(repr(deep).encode()).hexdigest()[:8]] * (deep != "ask")
            return directories, "-".join(map(str, (root.name[:64], before[:16], *options))), build_folder
