"""A fingerprint of tensors: 64 bits that follow from every bit of theirs and from where it stands.

Multilinear hashing (Lemire and Kaser, "Strongly universal string hashing is fast", 2014): the sum, modulo 2^64, of the
tensors' 32-bit words, each times an odd number of its place's own. A sum of whole numbers is the same in any order, so
that every device may add as it likes. Two tensors that differ have the same one by a chance of 2^-32 at most, whatever
differs; it is no seal against somebody who looks for such a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

ROW = 1 << 14
"""words that are multiplied at once on a CPU: few enough for its cache, and for torch to use one thread"""
ROWS = 256
"""rows that are multiplied at once elsewhere, for 32 MiB of products"""


def digest(tensors: Sequence[Tensor]) -> Tensor:
    """Of ``tensors`` on one device, in this order, in whatever memory layout they lie: int64 [], there."""
    words = [_words(tensor) for tensor in tensors]
    small = [flat for flat in words if len(flat) <= ROW]
    sums = []
    for flat in [*([torch.cat(small)] if small else []), *(flat for flat in words if len(flat) > ROW)]:
        for piece in flat.split(ROW if flat.device.type == "cpu" else ROW * ROWS):
            full = piece if len(piece) % ROW == 0 else F.pad(piece, (0, -len(piece) % ROW))
            sums.append((full.view(-1, ROW) * _odd(0, ROW, flat.device)).sum(1))
    rows = torch.cat(sums) if sums else torch.zeros(0, dtype=torch.int64)
    return (rows * _odd(1, len(rows), rows.device)).sum()


def of_weights(weights: dict[str, Tensor]) -> Tensor:
    """``digest`` of a network's parameters and buffers in the order of their names, as two whole numbers below 2^32.

    float64 [2], so that it travels with losses; ``text`` writes it.
    """
    number = digest([weights[name] for name in sorted(weights)])
    return torch.stack([number >> 32 & 0xFFFFFFFF, number & 0xFFFFFFFF]).double()


def of(weights: dict[str, Tensor]) -> str:
    """The same, written, for who can wait for the device."""
    return text(*of_weights(weights).tolist())


def text(high: float, low: float) -> str:
    """What ``of_weights`` gave, as 16 hexadecimal digits."""
    return f"{int(high):08x}{int(low):08x}"


def _words(tensor: Tensor) -> Tensor:
    """The bits of ``tensor`` as whole numbers, [n]; images and filters channels last, as training keeps them."""
    flat = (tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor).detach().reshape(-1)
    return flat.view({1: torch.uint8, 2: torch.int16}.get(flat.element_size(), torch.int32))


@cache
def _odd(stream: int, count: int, device: torch.device) -> Tensor:
    """The first odd numbers of a random ``stream``: int64 [count]. numpy promises that they stay what they are."""
    numbers = np.random.PCG64(stream).random_raw(count).astype(np.uint64) | np.uint64(1)
    return torch.from_numpy(numbers.view(np.int64)).to(device)
