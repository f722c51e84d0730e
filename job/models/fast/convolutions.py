"""Convolutions in forms that CPUs compute faster: the same numbers, to rounding, from the same parameters.

oneDNN's kernels are made for many channels and large feature maps. What is here is for a few channels, and for maps of
a few pixels; tensors are channels-last.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from job.models.simple_cnn import SimpleCNN

Windows = Literal["all", "weight", "nothing"]
"""what of a small map's convolution is a matrix product over windows: all, the weight's gradient, or nothing"""

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
        weight = F.pad(self.weight, (0, 0, 0, 0, 0, x.shape[1] - self.in_channels))
        return _convolution(x, weight, self.bias)


class SmallConv2d(nn.Conv2d):
    """A 3 x 3 convolution with padding 1, for feature maps of a few pixels.

    oneDNN's kernels are far below the matrix rate there, and at 8 x 8 ahead of products again. Maps of 2 x 2 are one
    product, from all pixels to all. Up to 4 x 4 it is as ``windows`` says; what is no product is oneDNN's, which beside
    the weight's gradient is faster in contiguous memory.
    """

    windows: Windows = "nothing"

    def forward(self, x: Tensor) -> Tensor:
        """[b, in, h, w] to [b, out, h, w]."""
        b, _, h, w = x.shape
        if (h, w) == (2, 2):
            weight = self.weight.permute(0, 2, 3, 1).to(_computed_in(x))
            bias = None if self.bias is None else self.bias.repeat(4)
            out = F.linear(x.permute(0, 2, 3, 1).flatten(1), Corners.apply(weight), bias)
        elif h > 4 or w > 4 or self.windows == "nothing":
            return super().forward(x)
        elif self.windows == "weight":
            return _convolution(x, self.weight, self.bias, padding=1)
        else:
            out = F.linear(_windows(x), self.weight.permute(0, 2, 3, 1).flatten(1), self.bias)
        return out.view(b, h, w, -1).permute(0, 3, 1, 2)


class Corners(torch.autograd.Function):
    """A 3 x 3 weight [out, 3, 3, in] as [4 * out, 4 * in], from all pixels of a 2 x 2 map to all.

    The pixel in row i and column j sees all four, in a corner of its window. Gradients add up in autograd's order.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        full = weight.new_empty(4 * len(weight), 4 * weight.shape[3])
        for part, corner in zip(full.chunk(4), Corners.of(weight), strict=True):
            part.unflatten(1, (2, 2, -1)).copy_(corner)
        return full

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.new_zeros(len(gradient) // 4, 3, 3, gradient.shape[1] // 4)
        for corner, part in reversed(list(zip(Corners.of(total), gradient.chunk(4), strict=True))):
            corner += part.unflatten(1, (2, 2, -1))
        return total

    @staticmethod
    def of(weight: Tensor) -> list[Tensor]:
        return [weight[:, 1 - i : 3 - i, 1 - j : 3 - j] for i in range(2) for j in range(2)]


class OwnBackward(torch.autograd.Function):
    """``F.conv2d`` of channels-last tensors, whose input's gradient is computed in contiguous memory.

    With padding all of it is, but for the weight's gradient: a product over 3 x 3 windows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        if padding:
            x, weight = x.contiguous(), weight.contiguous()
        return F.conv2d(x, weight, bias, padding=padding).contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (for_input, for_weight, for_bias, _) = ctx.saved_tensors, ctx.needs_input_grad
        input_gradient = weight_gradient = None
        if for_input:
            input_gradient = F.conv_transpose2d(gradient.contiguous(), weight.contiguous(), padding=ctx.padding)
            input_gradient = input_gradient.contiguous(memory_format=torch.channels_last)
        if ctx.padding:
            rows = gradient.permute(0, 2, 3, 1).flatten(0, 2)  # [b * h * w, out]
            if for_weight:
                weight_gradient = (rows.t() @ _windows(x)).unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2)
            return input_gradient, weight_gradient, rows.sum(0) if for_bias else None, None
        _, weight_gradient, bias_gradient = torch.ops.aten.convolution_backward(
            gradient, x, weight, [len(weight)], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, for_weight, for_bias]
        )
        return input_gradient, weight_gradient, bias_gradient, None


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int = 0) -> Tensor:
    """``OwnBackward`` in the type that autocast, which does not know it, has convolutions compute in."""
    cast = (None if tensor is None else tensor.to(_computed_in(x)) for tensor in (x, weight, bias))
    out: Tensor = OwnBackward.apply(*cast, padding)
    return out


def _windows(x: Tensor) -> Tensor:
    """What each pixel sees: [b, c, h, w] to [b * h * w, 9 * c]."""
    h, w = x.shape[2:]
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # [b, h + 2, w + 2, c]
    return torch.cat([padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], 3).flatten(0, 2)


def _computed_in(x: Tensor) -> torch.dtype:
    """The type that autocast, where it is on, has convolutions compute in."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


C = TypeVar("C", bound=nn.Conv2d)


def use_for_few_channels(model: SimpleCNN, *, pairs: bool) -> None:
    """Make a ``FilledConv2d``, with or without ``pairs``, and a ``BackwardConv2d`` of the network's convolutions."""
    _become(model.conv1, FilledConv2d).pairs = pairs
    _become(model.conv2, BackwardConv2d)


def use_for_small_maps(model: nn.Module, windows: Windows) -> bool:
    """Make a ``SmallConv2d`` of each 3 x 3 convolution with padding 1 and nothing special; whether there was one."""
    kind = attrgetter("kernel_size", "padding", "stride", "dilation", "groups", "padding_mode")
    vggs = ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
    small = [layer for layer in model.modules() if type(layer) is nn.Conv2d and kind(layer) == vggs]
    for layer in small:
        _become(layer, SmallConv2d).windows = windows
    return bool(small)


def _become(layer: nn.Conv2d, kind: type[C]) -> C:
    """``layer``, with the parameters it has, as a ``kind``."""
    layer.__class__ = kind
    assert isinstance(layer, kind)
    return layer
