"""The embedded data set: ten kinds of shapes, drawn from integer hashes, so that every machine draws the same.

An image follows from its number alone. Pixels need only +, -, *, /, sqrt and comparisons, which IEEE 754 fixes to the
last bit; cosines are taken of one angle per image, in float64.
"""

# NumPy types what its functions return as Any
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from job.data.cache import Contents, ImageFile, Progress

CLASSES = ("circle", "crescent", "cross", "heart", "hexagon", "pentagon", "ring", "square", "star", "triangle")
VERSION = 1
"""raised whenever an image changes"""
TRAIN, TEST = 20_000, 5_000

_SIDE = 32  # pixels
_BLOCK = 250  # images drawn at once: their planes stay in the processor's cache

Plane = NDArray[np.float32]
"""[n, 32, 32], or [n, 1, 1] for one value an image"""
Shape = Callable[[Plane, Plane], Plane]
"""coordinates with the shape around the origin to signed distances, negative inside"""


def decode(into: Path, progress: Progress) -> Contents:
    """Draw all images into the directory ``into``."""
    with progress("drawing shapes10", TRAIN + TEST, "images") as advance:
        for split, first, count in (("train", 0, TRAIN), ("test", TRAIN, TEST)):
            with ImageFile(into, split, _SIDE) as file:
                for start in range(first, first + count, _BLOCK):
                    file.append(draw(np.arange(start, start + _BLOCK)))
                    advance(_BLOCK)
                file.finish(labels(np.arange(first, first + count)))
    return Contents(CLASSES)


def labels(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Classes of the images with these numbers, int64 ``[n]``: each equally often in train and in test."""
    return numbers % len(CLASSES)


def draw(numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The images with these numbers, uint8 ``[n, 32, 32, 3]``."""
    dice = _Dice(numbers)
    down, right = (plane.astype(np.float32)[None] for plane in np.mgrid[0:_SIDE, 0:_SIDE])

    background = _paint(dice, right, down, 0, 0.6)
    foreground = _paint(dice, right, down, 0.4, 1)

    radius = dice.between(6.5, 12)
    x, y = _turned(dice, right - dice.between(12, 19), down - dice.between(12, 19), 30)
    x, y = x / radius * dice.between(0.88, 1.14), y / radius
    distance = np.empty(np.broadcast_shapes(x.shape), np.float32)
    kinds = labels(numbers)
    for kind, shape in enumerate(_SHAPES):
        mine = kinds == kind
        distance[mine] = shape(x[mine], y[mine])
    image = _blend(background, foreground, distance * radius)

    # something in front: a bar across the image, or two small discs
    x, y = _turned(dice, right - dice.between(2, 30), down - dice.between(2, 30), 180)
    bar = np.abs(x) - dice.between(0.6, 2)
    disc = np.minimum(_length(x, y), _length(x - dice.between(-14, 14), y - dice.between(4, 14))) - dice.between(1, 4)
    image = _blend(image, _paint(dice, right, down, 0, 1), np.where(dice.between(0, 1) < 0.5, bar, disc))

    for channel, noise in zip(image, dice.noise(), strict=True):
        channel += noise
    return np.rint(np.clip(np.stack(image, -1), 0, 1) * np.float32(255)).astype(np.uint8)


class _Dice:
    """Random numbers addressed by (image, how many were drawn before): a mixing hash in counter mode.

    The mixing is SplitMix64's (Steele, Lea and Flood, 2014).
    """

    def __init__(self, numbers: NDArray[np.int64]) -> None:
        self._key = _mixed(numbers.astype(np.uint64)[:, None, None] + np.uint64(VERSION << 32))
        self._draws = 0

    def between(self, low: float, high: float) -> Plane:
        """Uniform over the interval, float32 ``[n, 1, 1]``."""
        self._draws += 1
        fraction = (_mixed(self._key + np.uint64(self._draws)) >> np.uint64(40)).astype(np.float64) / 2**24
        return (low + (high - low) * fraction).astype(np.float32)

    def noise(self) -> list[Plane]:
        """Three planes ``[n, 32, 32]`` of noise around 0, each pixel's the sum of two draws of 10 bits."""
        strength = self.between(0.02, 0.12) / np.float32(1024)
        pixels = np.arange(_SIDE * _SIDE, dtype=np.uint64).reshape(_SIDE, _SIDE) + np.uint64(1 << 32)
        bits = _mixed(self._key + pixels)
        planes = []
        for shift in (0, 20, 40):
            first, second = ((bits >> np.uint64(shift + part)) & np.uint64(1023) for part in (0, 10))
            planes.append(((first + second).astype(np.float32) - np.float32(1023)) * strength)
        return planes


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _turned(dice: _Dice, x: Plane, y: Plane, most: float) -> tuple[Plane, Plane]:
    """Coordinates turned by a random angle of at most ``most`` degrees either way."""
    angle = np.deg2rad(dice.between(-most, most).astype(np.float64))
    cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    return cosine * x + sine * y, cosine * y - sine * x


def _paint(dice: _Dice, right: Plane, down: Plane, low: float, high: float) -> list[Plane]:
    """Three planes of a colour, each channel drawn from the interval, with stripes or a gradient of another."""
    x, _ = _turned(dice, right - 16, down - 16, 180)
    period = np.where(dice.between(0, 1) < 0.5, dice.between(4, 16), np.float32(90))
    phase = x / period + dice.between(0, 1)
    wave = np.abs(phase - np.floor(phase) - np.float32(0.5)) * 2
    spread = dice.between(0, 0.25)
    return [dice.between(low, high) + (2 * wave - 1) * spread * dice.between(-1, 1) for _ in range(3)]


def _blend(below: list[Plane], above: list[Plane], distance: Plane) -> list[Plane]:
    """``above`` where the signed ``distance`` in pixels is negative, with an edge one pixel wide."""
    cover = np.clip(np.float32(0.5) - distance, 0, 1)
    return [b + (a - b) * cover for b, a in zip(below, above, strict=True)]


def _length(x: Plane, y: Plane) -> Plane:
    return np.sqrt(x * x + y * y)


# Shapes of about the same area around the origin.


def _circle(x: Plane, y: Plane) -> Plane:
    return _length(x, y) - np.float32(0.88)


def _ring(x: Plane, y: Plane) -> Plane:
    return np.abs(_length(x, y) - np.float32(0.72)) - np.float32(0.24)


def _crescent(x: Plane, y: Plane) -> Plane:
    return np.maximum(_length(x, y) - 1, np.float32(0.72) - _length(x - np.float32(0.5), y))


def _cross(x: Plane, y: Plane) -> Plane:
    x, y = np.abs(x), np.abs(y)
    long, wide = np.float32(1), np.float32(0.34)
    return np.minimum(np.maximum(x - long, y - wide), np.maximum(x - wide, y - long))


def _heart(x: Plane, y: Plane) -> Plane:
    """A square on its corner, with a half disc on each of two sides."""
    half = np.float32(0.56)
    u, v = (x + y) * np.float32(0.5**0.5), (y - x) * np.float32(0.5**0.5)
    square = np.maximum(np.abs(u), np.abs(v)) - half
    return np.minimum(square, np.minimum(_length(u - half, v), _length(u, v - half)) - half)


def _polygon(corners: int, inner: float) -> Shape:
    """A regular polygon; ``inner`` is the distance of its sides from the origin."""
    angles = 2 * np.pi * np.arange(corners) / corners
    normals = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)

    def distance(x: Plane, y: Plane) -> Plane:
        farthest = normals[0, 0] * x + normals[0, 1] * y
        for across, along in normals[1:]:
            farthest = np.maximum(farthest, across * x + along * y)
        return farthest - np.float32(inner)

    return distance


def _star(x: Plane, y: Plane) -> Plane:
    """Five points, folded onto half of the one along +y, whose edge is a straight line."""
    cosine, sine = np.float32(np.cos(np.pi / 5)), np.float32(np.sin(np.pi / 5))
    x = np.abs(x)
    for _ in range(2):  # a mirror 36 degrees from +y, then the one along +y
        beyond: Plane = 2 * np.maximum(cosine * x - sine * y, 0)
        x, y = np.abs(x - beyond * cosine), y + beyond * sine
    tip, notch = np.float32(1.25), np.float32(0.55)
    across, along = tip - notch * cosine, notch * sine
    return (across * x + along * (y - tip)) / np.sqrt(across * across + along * along)


_SHAPES = (
    _circle,
    _crescent,
    _cross,
    _heart,
    _polygon(6, 0.84),
    _polygon(5, 0.82),
    _ring,
    _polygon(4, 0.79),
    _star,
    _polygon(3, 0.62),
)
