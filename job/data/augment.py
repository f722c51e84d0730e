"""Training images are changed at random, and mixed with others, in whole batches where the network is.

What happens to an image depends on seed, epoch and its row in the set, and on nothing else: not on who computes it,
when, or beside which others. For each epoch it is drawn for all images at once into tables, which stay where they are
in memory; a batch looks its rows up there. Arithmetic is by element, so that it gives the same bits in any batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from job.config.settings import Augmentation, Train
from job.data.datasets import Split

CROPPED_AREA, CROPPED_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""of "resized_crop": share of the image, height to width (Szegedy et al. 2014, arXiv:1409.4842; as torchvision's)"""
ERASED_AREA, ERASED_RATIO, ERASED = (0.02, 0.4), (0.3, 1 / 0.3), 0.5
"""of "erasing": share of the image, height to width, share of the images (Zhong et al. 2017, arXiv:1708.04896)"""
DEGREES = 15.0
"""of "rotate": at most, to either side"""
COLOUR = 0.4
"""of "color": contrast, brightness and saturation are multiplied by 1 - this to 1 + this"""


class Augment:
    """How each image of a set is changed in one epoch.

    In this order, whichever ``names`` there are: a box of the image is enlarged to all of it (resized_crop), turned
    (rotate), shifted by up to an eighth of its side (crop) and, every other one, mirrored (flip); its colours change
    (color); once it is normalised, in half of them a box becomes the mean (erasing). Beyond its edges lies the image's
    reflection. ``device`` is where the network is; ``images`` uint8 [N, size, size, 3] may lie elsewhere.
    """

    def __init__(self, names: Sequence[Augmentation], images: Tensor, device: torch.device) -> None:
        self._names = frozenset(names)
        self._images, self._size = images, images.shape[1]
        self._line = torch.arange(self._size, device=images.device)
        self._line_there = self._line.to(device)
        warps = not self._names.isdisjoint(("resized_crop", "rotate"))

        def table(wanted: bool, at: torch.device, kind: torch.dtype, *shape: int) -> Tensor | None:
            return torch.zeros(len(images), *shape, dtype=kind, device=at) if wanted else None

        # Whole pixels move as they are fetched, which costs next to nothing, unless more than that is to be done.
        self._flip = table("flip" in names and not warps, images.device, torch.bool)
        self._shift = table("crop" in names and not warps, images.device, torch.int64, 2)  # rows, columns
        self._map = table(warps, device, torch.float32, 2, 3)
        self._colour = table("color" in names, device, torch.float32, 3)
        self._hole = table("erasing" in names, device, torch.int64, 4)

    def draw(self, *, seed: int, epoch: int) -> None:
        """Fill the tables for an epoch."""
        names, count, size = self._names, len(self._images), self._size
        moves = torch.Generator().manual_seed(address(seed, "augment", epoch))
        flip, shift = torch.zeros(1, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.int64)
        if "flip" in names:
            flip = torch.rand(count, generator=moves) < 0.5
        if "crop" in names:
            shift = torch.randint(-(size // 8), size // 8 + 1, (count, 2), generator=moves)
        if self._flip is not None:
            self._flip.copy_(flip)
        if self._shift is not None:
            self._shift.copy_(shift)
        if self._map is not None:
            box, degrees = np.array([[0.0, 0.0, 1.0, 1.0]]), np.zeros(1)
            if "resized_crop" in names:
                box = _boxes(count, CROPPED_AREA, CROPPED_RATIO, _chance(seed, "resized_crop", epoch))
            if "rotate" in names:
                degrees = _chance(seed, "rotate", epoch).uniform(-DEGREES, DEGREES, count)
            maps = warp(torch.from_numpy(box), torch.from_numpy(degrees), shift * 2 / size, flip)
            self._map.copy_(maps)
        if self._colour is not None:
            factors = _chance(seed, "color", epoch).uniform(1 - COLOUR, 1 + COLOUR, (count, 3))
            self._colour.copy_(torch.from_numpy(factors))
        if self._hole is not None:
            chance = _chance(seed, "erasing", epoch)
            box = (_boxes(count, ERASED_AREA, ERASED_RATIO, chance) * size).round()
            self._hole.copy_(torch.from_numpy(box * (chance.random((count, 1)) < ERASED)))

    def gather(self, rows: Tensor) -> Tensor:
        """Images [b, H, W, 3] at ``rows`` as they lie, mirrored and shifted where nothing else moves them."""
        if self._flip is None and self._shift is None:
            return self._images.index_select(0, rows)
        size, line = self._size, self._line
        lines = columns = line.expand(len(rows), -1)  # [b, H] and [b, W]
        if self._flip is not None:
            columns = torch.where(self._flip[rows, None], size - 1 - line, line)
        if self._shift is not None:
            last, shift = size - 1, self._shift[rows]
            lines, columns = (
                last - (last - (x + shift[:, i, None]).abs()).abs() for i, x in enumerate((lines, columns))
            )
        # Pixel by pixel out of the set as one long list: a quarter of the time that indexing by three tensors takes.
        pixels = (rows[:, None, None] * size + lines[:, :, None]) * size + columns[:, None, :]  # [b, H, W]
        return self._images.view(-1, 3).index_select(0, pixels.view(-1)).view(len(rows), size, size, 3)

    def changed(self, images: Tensor, rows: Tensor) -> Tensor:
        """``images`` [b, H, W, 3] that were gathered at ``rows``, both on the device: warped, in other colours."""
        if self._map is not None:
            images = warped(images.float(), self._map[rows])
        if self._colour is not None:
            images = coloured(images.float(), self._colour[rows])
        return images

    def erased(self, images: Tensor, rows: Tensor) -> Tensor:
        """``images`` [b, 3, H, W], normalised so that 0 is the mean, without their holes, in place."""
        if self._hole is not None:
            images.masked_fill_(_inside(self._hole[rows], self._line_there), 0.0)
        return images


def warp(box: Tensor, degrees: Tensor, shift: Tensor, flip: Tensor) -> Tensor:
    """The affine maps [n, 2, 3] from pixels of the changed image to those of its source, as (x, y) in [-1, 1].

    ``box`` [n, 4] of the source in [0, 1], turned against the clock by ``degrees`` [n], its ``shift`` [n, 2] by rows
    and columns in units of half a side, ``flip`` [n]. Each may have n = 1 for all.
    """
    top, left, bottom, right = box.unbind(1)
    height, width, angle = bottom - top, right - left, degrees.deg2rad()
    (down, across), mirror = shift.unbind(1), 1 - 2 * flip.float()
    cos, sin = angle.cos(), angle.sin()
    rows = [
        (width * cos * mirror, -width * sin, width * (cos * across - sin * down) + left + right - 1),
        (height * sin * mirror, height * cos, height * (sin * across + cos * down) + top + bottom - 1),
    ]
    return torch.stack([torch.stack(torch.broadcast_tensors(*row), 1) for row in rows], 1)


def warped(images: Tensor, maps: Tensor) -> Tensor:
    """``images`` [b, H, W, 3] float32 by ``maps`` [b, 2, 3]: bilinear, reflected, rounded to whole values."""
    size = images.shape[1]
    line = (torch.arange(size, device=images.device) * 2 + 1) / size - 1  # the centres of pixels
    across, down, at = maps[..., None, None].unbind(2)
    places = across * line + down * line[:, None] + at  # [b, 2, H, W]
    source = images.permute(0, 3, 1, 2)
    moved = F.grid_sample(source, places.permute(0, 2, 3, 1), padding_mode="reflection", align_corners=False)
    return moved.round_().permute(0, 2, 3, 1)


def coloured(images: Tensor, factors: Tensor) -> Tensor:
    """``images`` [b, H, W, 3] float32, whole values in [0, 255], with ``factors`` [b, 3] of contrast, brightness and
    saturation, in this order: as torchvision's ``adjust_contrast``, ``adjust_brightness``, ``adjust_saturation``.

    Contrast is the distance from the image's mean grey, saturation that from each pixel's own grey.
    """
    contrast, brightness, saturation = factors[..., None, None, None].unbind(1)
    sums = images.sum((1, 2), dtype=torch.float64)  # of whole numbers, and so the same in any order
    mean = _grey(sums / images.shape[1] ** 2).float().view(-1, 1, 1, 1)
    images = torch.lerp(mean, images, contrast).clamp_(0, 255)
    images = images.mul_(brightness).clamp_(0, 255)
    return torch.lerp(_grey(images)[..., None], images, saturation).clamp_(0, 255)


def _grey(colours: Tensor) -> Tensor:
    """Brightness [...] of ``colours`` [..., 3] (ITU-R BT.601)."""
    red, green, blue = colours.unbind(-1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def _boxes(
    count: int, area: tuple[float, float], ratio: tuple[float, float], chance: np.random.Generator
) -> NDArray[np.float64]:
    """Random boxes [n, 4] in an image of side 1: top, left, bottom, right.

    Area and logarithm of height to width are uniform, and drawn again until the box fits; so is its place.
    """
    sides, todo = np.empty((count, 2)), np.arange(count)
    while len(todo):
        areas = chance.uniform(*area, size=len(todo))
        ratios = np.exp(chance.uniform(np.log(ratio[0]), np.log(ratio[1]), len(todo)))
        sides[todo] = np.sqrt(np.stack([areas * ratios, areas / ratios], 1))
        todo = todo[(sides[todo] > 1).any(1)]
    corner = chance.random((count, 2)) * (1 - sides)
    return np.concatenate([corner, corner + sides], 1)


def _chance(seed: int, name: str, epoch: int) -> np.random.Generator:
    return np.random.default_rng(address(seed, name, epoch))


def _inside(boxes: Tensor, line: Tensor) -> Tensor:
    """Which pixels of ``line`` x ``line`` lie in ``boxes`` [b, 4] (top, left, bottom, right): bool [b, 1, H, W]."""
    first, last = boxes[:, :2, None], boxes[:, 2:, None]
    down, across = ((line >= first) & (line < last)).unbind(1)  # [b, H] and [b, W]
    return (down[:, :, None] & across[:, None]).unsqueeze(1)


class Mix:
    """Each training image as a mixture with another one, its partner, that has its own changes of this epoch.

    mixup (Zhang et al. 2017, arXiv:1710.09412): share * image + (1 - share) * partner, the share from
    Beta(``train.mixup``, ``train.mixup``). cutmix (Yun et al. 2019, arXiv:1905.04899): a box of the partner lies on the
    image; what it takes, before it is cut at the edges, is 1 - a share from Beta(``train.cutmix``, ``train.cutmix``).
    Where both are wanted each image has one of them, by a coin. Labels become their mixture by what is left of the
    image; partners are the training images in another order, so that each is one once an epoch.
    """

    def __init__(self, train: Train, split: Split, classes: int, device: torch.device) -> None:
        count, self._size = split.images.shape[:2]
        self._alphas, self._indices = (train.mixup, train.cutmix), split.indices
        self.partners = torch.zeros(count, dtype=torch.int64, device=split.images.device)
        """[N] rows of the set"""
        self._shares = torch.zeros(count, 2, device=device)  # of the image: in all, and outside of the partner's box
        self._box = torch.zeros(count, 4, dtype=torch.int64, device=device) if train.cutmix else None
        self._line, self._classes = torch.arange(self._size, device=device), torch.arange(classes, device=device)

    def draw(self, *, seed: int, epoch: int) -> None:
        """Fill the tables for an epoch."""
        chance, size, indices = _chance(seed, "mix", epoch), self._size, self._indices
        mixup, cutmix = self._alphas
        partners = indices[torch.from_numpy(chance.permutation(len(indices)))]
        pasted = chance.random(len(indices)) < (0.5 if mixup and cutmix else 1.0 if cutmix else 0.0)
        alphas = np.where(pasted, cutmix, mixup)
        share = chance.beta(alphas, alphas)
        half = ((size * np.sqrt(1 - share)).astype(np.int64) // 2 * pasted)[:, None]
        centre = chance.integers(0, size, (len(indices), 2))
        first, last = (centre - half).clip(0, size), (centre + half).clip(0, size)
        share = np.where(pasted, 1 - (last - first).prod(1) / size**2, share)
        shares = np.stack([share, np.where(pasted, 1, share)], 1)
        tables = [(self.partners, partners), (self._shares, torch.from_numpy(shares))]
        if self._box is not None:
            tables.append((self._box, torch.from_numpy(np.concatenate([first, last], 1))))
        for table, drawn in tables:
            table.index_copy_(0, indices.to(table.device), drawn.to(table))

    def images(self, own: Tensor, partners: Tensor, rows: Tensor) -> Tensor:
        """Images [b, 3, H, W] at ``rows`` mixed with their ``partners``."""
        share = self._shares[rows, 1].view(-1, 1, 1, 1)
        if self._box is not None:
            share = share.masked_fill(_inside(self._box[rows], self._line), 0.0)
        return torch.lerp(partners, own, share)

    def labels(self, own: Tensor, partners: Tensor, rows: Tensor) -> Tensor:
        """Probabilities [b, classes] of the labels [b] at ``rows`` and their ``partners``'."""
        one, other = ((labels[:, None] == self._classes).float() for labels in (own, partners))
        return torch.lerp(other, one, self._shares[rows, :1])


def address(*parts: object) -> int:
    """A 63-bit seed that depends on all ``parts`` and on nothing else: random numbers are addressed, not streamed."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1
