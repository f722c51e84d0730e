"""The table of networks.

To add a network: write a function ``(classes: int) -> nn.Module`` and name it in ``BUILDERS`` (and in
``config.Model.name``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from job.config.errors import UserError
from job.config.settings import Model
from job.models.simple_cnn import SimpleCNN
from job.models.vgg import vgg16, vgg16_bn

BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "simple_cnn": SimpleCNN,
    "vgg16": vgg16,
    "vgg16_bn": vgg16_bn,
}


def build(settings: Model, *, classes: int, image_size: int, seed: int) -> nn.Module:
    """The network with random weights that depend on ``seed`` alone.

    Raises UserError when pictures of ``image_size`` pixels do not fit it.
    """
    if settings.name == "simple_cnn" and image_size != 32:
        raise UserError(f"data.image_size={image_size}", "simple_cnn takes pictures of 32 pixels; use 32, or vgg16")
    if settings.name != "simple_cnn" and image_size < 32:
        raise UserError(f"data.image_size={image_size}", f"{settings.name} takes pictures of 32 pixels or more")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BUILDERS[settings.name](classes)


def count_parameters(model: nn.Module) -> int:
    """Numbers that training changes; a weight that stands for ``copies`` of its size counts as them."""
    return sum(p.numel() * getattr(p, "copies", 1) for p in model.parameters() if p.requires_grad)
