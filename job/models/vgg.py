"""torchvision's VGG16."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def vgg16(classes: int) -> nn.Module:
    """torchvision's VGG16 with a last layer for ``classes``: 134,301,514 parameters at ten."""
    return _for_classes("vgg16", classes)


def vgg16_bn(classes: int) -> nn.Module:
    """torchvision's VGG16 with batch normalisation."""
    return _for_classes("vgg16_bn", classes)


def _for_classes(name: str, classes: int) -> nn.Module:
    from torchvision.models import get_model  # seconds that SimpleCNN need not wait

    model: nn.Module = get_model(name, weights=None)
    model.set_submodule("avgpool", MatrixPool(model.get_submodule("avgpool")))
    model.set_submodule("classifier.6", nn.Linear(4096, classes))
    return model


class MatrixPool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as one matrix product, whose gradient is the same each time.

    CUDA's own adds in whatever order threads come, and refuses to where only deterministic kernels are allowed.
    """

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] to [b, c, *output_size]."""
        b, c, h, w = x.shape
        with torch.no_grad():
            weights = self.pool(torch.eye(h * w, dtype=x.dtype, device=x.device).view(h * w, 1, h, w))
        pooled: Tensor = x.flatten(2) @ weights.flatten(1)
        return pooled.view(b, c, *weights.shape[2:])
