"""A split, a distributed sampler and a device become batches.

The images lie once, as uint8, on the device or in mapped host memory; a batch is one gather and one normalisation.
Global batch k of an epoch holds the same images on any number of processes, and each process takes its share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from job.config.settings import Data, Train
from job.data.augment import Augment, Mix, address
from job.data.datasets import Split


@dataclass(frozen=True)
class Part:
    """What one process computes at once of a global batch."""

    rows: Tensor
    """[b] int64, which images of the set; ``Batches.fetch`` has them"""
    weight: float
    """makes the sum of losses over this part its share in the mean over the global batch"""


class Batches:
    """The images of one split, on ``device`` or on the host, as batches of this rank on ``device``."""

    def __init__(
        self,
        split: Split,
        settings: Data,
        device: torch.device,
        *,
        rank: int,
        world_size: int,
        train: Train | None = None,
        classes: int = 0,
    ) -> None:
        self._split, self._settings, self._train, self._classes = split, settings, train, classes
        self._images = split.images  # [N, H, W, 3]: an image is one run of bytes
        self.image_size = split.image_size
        self.device = split.images.device
        """where the images lie, and the rows that ``fetch`` takes"""
        self._labels = split.labels
        self._indices = split.indices
        self._device = device
        self._rank, self._world_size = rank, world_size
        # For each value of an image, as it lies: a product of long rows is six times faster than one by channels.
        scale, shift = normalisation(settings, device)
        self._scale, self._shift = (factor.view(1, 3).repeat(1, split.image_size**2) for factor in (scale, shift))

    def __len__(self) -> int:
        return len(self._indices)

    @cached_property  # validation and test need no tables
    def _augment(self) -> Augment:
        return Augment(self._settings.augment, self._images, self._device)

    @cached_property
    def _mix(self) -> Mix | None:
        if self._train is None or not (self._train.mixup or self._train.cutmix):
            return None
        return Mix(self._train, self._split, self._classes, self._device)

    def training(
        self, *, seed: int, epoch: int, start: int, batch_size: int, parts: int, augmentation: int | None = None
    ) -> Iterator[list[Part]]:
        """This rank's ``parts`` of each global batch of an epoch, from the ``start``-th image of the epoch on.

        ``batch_size`` images over all ranks, fewer in the last batch. The batch is cut into ranks times parts pieces in
        one order, so that the pieces are the same for any number of ranks that has as many. Images are changed by the
        seed ``augmentation``, where that is not ``seed``.
        """
        order = epoch_order(self._indices, seed=seed, epoch=epoch).to(self.device)
        changes = seed if augmentation is None else augmentation
        self._augment.draw(seed=changes, epoch=epoch)
        if self._mix is not None:
            self._mix.draw(seed=changes, epoch=epoch)
        first = self._rank * parts
        for begin in range(start, len(order), batch_size):
            whole = order[begin : begin + batch_size]
            shares = whole.tensor_split(self._world_size * parts)[first : first + parts]
            # In a last batch of few images a share may be empty: one image that does not count keeps ranks in step.
            yield [Part(share, 1 / len(whole)) if len(share) else Part(whole[:1], 0.0) for share in shares]

    def fetch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images [b, 3, H, W] float32, normalised and changed as in this epoch, and their labels, on the device.

        Labels are int64 [b], or where images are mixed the probabilities [b, classes] of classes. Nothing but kernels
        with one shape for one number of ``rows``: a CUDA graph may hold it.
        """
        images, labels = self._changed(rows), self._to_device(self._labels[rows])
        if self._mix is None:
            return images, labels
        partners, there = self._mix.partners[rows], self._to_device(rows)
        other = self._to_device(self._labels[partners])
        return self._mix.images(images, self._changed(partners), there), self._mix.labels(labels, other, there)

    def _changed(self, rows: Tensor) -> Tensor:
        images, there = self._to_device(self._augment.gather(rows)), self._to_device(rows)
        return self._augment.erased(self._normalised(self._augment.changed(images, there)), there)

    def evaluation(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(positions in the split [b], images, labels) of every ``world_size``-th batch: no padding, no image twice.

        The batches are the same on any number of processes, so that an image's result is the same to the last bit.
        Ranks yield the same number of times; a batch may be empty.
        """
        rows = self._indices.to(self.device)
        for begin in range(0, len(self), batch_size * self._world_size):
            first = begin + batch_size * self._rank
            positions = torch.arange(len(self))[first : first + batch_size]
            mine = rows[first : first + batch_size]
            images = self._images.index_select(0, mine)
            yield positions, self._normalised(images), self._to_device(self._labels[mine])

    def _normalised(self, images: Tensor) -> Tensor:
        values = self._to_device(images).flatten(1).float()
        normalised = torch.addcmul(self._shift, values, self._scale).view(images.shape)
        return normalised.permute(0, 3, 1, 2)  # [b, 3, H, W] in channels-last memory

    def _to_device(self, tensor: Tensor) -> Tensor:
        if tensor.device.type == self._device.type:
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)


def normalisation(settings: Data, device: torch.device) -> tuple[Tensor, Tensor]:
    """(scale, shift), each [1, 3, 1, 1] float32: values v in [0, 255] become v * scale + shift.

    That is (v / 255 - mean) / std as one multiplication and one addition.
    """
    scale = 1 / (255 * torch.tensor(settings.std, device=device).view(1, 3, 1, 1))
    return scale, -torch.tensor(settings.mean, device=device).view(1, 3, 1, 1) * 255 * scale


def epoch_order(indices: Tensor, *, seed: int, epoch: int) -> Tensor:
    """``indices`` [n] in the order of an epoch, the same on all ranks."""
    generator = torch.Generator().manual_seed(address(seed, "order", epoch))
    return indices[torch.randperm(len(indices), generator=generator)]
