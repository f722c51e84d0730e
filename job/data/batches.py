"""A split, a distributed sampler and a device become batches.

The images lie once, as uint8, on the device or in mapped host memory; a batch is one gather and one normalisation.
Global batch k of an epoch holds the same images on any number of processes, and each process takes its share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from job.config.settings import Data
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

    def __init__(self, split: Split, settings: Data, device: torch.device, *, rank: int, world_size: int) -> None:
        self._images = split.images  # [N, H, W, 3]: an image is one run of bytes
        self.image_size = split.image_size
        self.device = split.images.device
        """where the images lie, and the rows that ``fetch`` takes"""
        self._labels = split.labels
        self._indices = split.indices
        self._device = device
        self._rank, self._world_size = rank, world_size
        self._moves = _Moves(settings.augment, split.images)
        # For each value of an image, as it lies: a product of long rows is six times faster than one by channels.
        scale, shift = normalisation(settings, device)
        self._scale, self._shift = (factor.view(1, 3).repeat(1, split.image_size**2) for factor in (scale, shift))

    def __len__(self) -> int:
        return len(self._indices)

    def training(self, *, seed: int, epoch: int, start: int, batch_size: int, parts: int) -> Iterator[list[Part]]:
        """This rank's ``parts`` of each global batch of an epoch, from the ``start``-th image of the epoch on.

        ``batch_size`` images over all ranks, fewer in the last batch. The batch is cut into ranks times parts pieces in
        one order, so that the pieces are the same for any number of ranks that has as many.
        """
        order = epoch_order(self._indices, seed=seed, epoch=epoch).to(self.device)
        self._moves.draw(seed=seed, epoch=epoch)
        first = self._rank * parts
        for begin in range(start, len(order), batch_size):
            whole = order[begin : begin + batch_size]
            shares = whole.tensor_split(self._world_size * parts)[first : first + parts]
            # In a last batch of few images a share may be empty: one image that does not count keeps ranks in step.
            yield [Part(share, 1 / len(whole)) if len(share) else Part(whole[:1], 0.0) for share in shares]

    def fetch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images [b, 3, H, W] float32, normalised and moved as in this epoch, and labels [b], on the device.

        Nothing but kernels with one shape for one number of ``rows``: a CUDA graph may hold it.
        """
        return self._normalised(self._moves.gather(self._images, rows)), self._to_device(self._labels[rows])

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


class _Moves:
    """How each image of the set is mirrored and shifted in one epoch: drawn for all at once, by its row.

    What happens to an image depends on seed, epoch and row, and not on who computes it or when. The tables stay where
    they are from epoch to epoch.
    """

    def __init__(self, augment: str, images: Tensor) -> None:
        count, self._size = images.shape[:2]
        device = images.device
        self._line = torch.arange(self._size, device=device)
        flips, shifts = augment in ("flip", "flip_crop"), augment == "flip_crop"
        self._flip = torch.zeros(count, dtype=torch.bool, device=device) if flips else None  # [N]
        # [N, 2]: rows, columns
        self._shift = torch.zeros(count, 2, dtype=torch.int64, device=device) if shifts else None

    def draw(self, *, seed: int, epoch: int) -> None:
        """Fill the tables for an epoch."""
        generator = torch.Generator().manual_seed(address(seed, "augment", epoch))
        if self._flip is not None:
            self._flip.copy_(torch.rand(len(self._flip), generator=generator) < 0.5)
        if self._shift is not None:
            most = self._size // 8
            self._shift.copy_(torch.randint(-most, most + 1, self._shift.shape, generator=generator))

    def gather(self, images: Tensor, rows: Tensor) -> Tensor:
        """Images [b, H, W, 3] at ``rows``, moved; what a shift uncovers is filled by reflection."""
        if self._flip is None:
            return images.index_select(0, rows)
        size, line = self._size, self._line
        columns = torch.where(self._flip[rows, None], size - 1 - line, line)  # [b, W]
        lines = line.expand(len(rows), -1)  # [b, H]
        if self._shift is not None:
            last, shift = size - 1, self._shift[rows]
            lines, columns = (
                last - (last - (x + shift[:, i, None]).abs()).abs() for i, x in enumerate((lines, columns))
            )
        # Pixel by pixel out of the set as one long list: a quarter of the time that indexing by three tensors takes.
        pixels = (rows[:, None, None] * size + lines[:, :, None]) * size + columns[:, None, :]  # [b, H, W]
        return images.view(-1, 3).index_select(0, pixels.view(-1)).view(len(rows), size, size, 3)


def address(*parts: object) -> int:
    """A 63-bit seed that depends on all ``parts`` and on nothing else: random numbers are addressed, not streamed."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1
