"""Convolutions in forms that CPUs compute faster: the same numbers, to rounding, from the same parameters.

oneDNN's kernels are made for many channels and large feature maps. What is here is for a few channels, and for maps of
a few pixels; tensors are channels-last.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LANES = 8
"""few channels are filled up with zeros to a multiple of this: vector units take eight at once, and six are slower"""


class FilledConv2d(nn.Conv2d):
    """A convolution, without padding and with stride 1, that gives channels of zeros besides its own few.

    ``pairs``: it goes from pair to pair of neighbouring pixels, and vector units that take sixteen are full.
    """

    pairs = False

    def forward(self, x: Tensor) -> Tensor:
        """[b, in, h, w] to [b, out + zeros, h', w'], for ``pairs`` of an even w and w'."""
        zeros = -self.out_channels % LANES
        weight = F.pad(self.weight, (0, 0, 0, 0, 0, 0, 0, zeros))
        bias = None if self.bias is None else F.pad(self.bias, (0, zeros))
        return _from_pair_to_pair(x, weight, bias) if self.pairs else F.conv2d(x, weight, bias)


def _from_pair_to_pair(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.conv2d``: in channels-last memory two pixels of n channels are one of 2n, and only the weight changes."""
    both: Tensor = torch.cat([F.pad(weight, (0, 1)), F.pad(weight, (1, 0))])  # the right one's begin one further
    both = both.unflatten(3, (-1, 2)).movedim(4, 1).flatten(1, 2)  # [2 * out, 2 * in, k, (k + 1) / 2]
    pairs = x.permute(0, 2, 3, 1).unflatten(2, (-1, 2)).flatten(3).permute(0, 3, 1, 2)
    out = F.conv2d(pairs, both, None if bias is None else bias.repeat(2)).permute(0, 2, 3, 1)
    return out.reshape(*out.shape[:2], -1, len(weight)).permute(0, 3, 1, 2)


class BackwardConv2d(nn.Conv2d):
    """A convolution, without padding and with stride 1, of what a ``FilledConv2d`` gave.

    Its input's gradient is computed in contiguous memory, which for few channels takes half the time.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[b, in + zeros, h, w] to [b, out, h', w']."""
        device = x.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        weight = F.pad(self.weight, (0, 0, 0, 0, 0, x.shape[1] - self.in_channels))
        bias = None if self.bias is None else self.bias.to(kind)
        out: Tensor = _Convolution.apply(x.to(kind), weight.to(kind), bias)
        return out


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        _, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient,
            x,
            weight,
            [len(weight)],
            [1, 1],
            [0, 0],
            [1, 1],
            False,
            [0, 0],
            1,
            [False, *ctx.needs_input_grad[1:]],
        )
        if not ctx.needs_input_grad[0]:
            return None, of_weight, of_bias
        of_x = F.conv_transpose2d(gradient.contiguous(), weight.contiguous())
        return of_x.contiguous(memory_format=torch.channels_last), of_weight, of_bias


class SmallConv2d(nn.Conv2d):
    """A 3 x 3 convolution with padding 1 as one matrix product, for feature maps of a few pixels.

    oneDNN's kernels are far below the matrix rate at 2 x 2 and 4 x 4 pixels; at 8 x 8 they are ahead.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[b, in, h, w] to [b, out, h, w]."""
        b, _, h, w = x.shape
        if h > 4:
            return super().forward(x)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # [b, h + 2, w + 2, in]
        windows = torch.cat([padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], 3)
        weight = self.weight.permute(0, 2, 3, 1).reshape(self.out_channels, -1)  # [out, 9 * in]
        out = F.linear(windows.reshape(b * h * w, -1), weight, self.bias)
        return out.view(b, h, w, -1).permute(0, 3, 1, 2)


C = TypeVar("C", bound=nn.Conv2d)


def use(model: nn.Module, name: str, kind: type[C]) -> C:
    """Make a ``kind`` of the convolution ``name`` of ``model``, with the same parameters."""
    old = model.get_submodule(name)
    assert isinstance(old, nn.Conv2d)
    new: C = nn.utils.skip_init(kind, old.in_channels, old.out_channels, old.kernel_size, padding=old.padding)
    new.weight, new.bias = old.weight, old.bias
    model.set_submodule(name, new)
    return new
