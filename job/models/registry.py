"""The table of networks.

To add one: write a function ``(classes: int) -> nn.Module`` and name it in ``NETWORKS`` (and in
``config.settings.Model.name``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from job.config.errors import UserError
from job.config.settings import Model
from job.models.simple_cnn import SimpleCNN
from job.models.vgg import vgg16, vgg16_bn


@dataclass(frozen=True)
class Network:
    """How a network is built for so many classes, and the images that it takes."""

    build: Callable[[int], nn.Module]
    smallest: int = 1
    """height and width in pixels of the smallest images"""
    largest: int | None = None
    """of the largest; None: any"""


NETWORKS = {
    "simple_cnn": Network(SimpleCNN, smallest=32, largest=32),
    "vgg16": Network(vgg16, smallest=32),
    "vgg16_bn": Network(vgg16_bn, smallest=32),
}


def build(settings: Model, *, classes: int, image_size: int, seed: int) -> nn.Module:
    """The network in its own form, with random weights that depend on ``seed`` alone.

    Raises UserError when images of ``image_size`` x ``image_size`` pixels do not fit it.
    """
    network = NETWORKS[settings.name]
    smallest, largest = network.smallest, network.largest
    if image_size < smallest or (largest is not None and image_size > largest):
        beyond = " or more" if largest is None else f" to {largest}" if largest > smallest else ""
        raise UserError(
            f"data.image_size={image_size}",
            f"{settings.name} takes images of {smallest}{beyond} pixels; give that, or another model.name",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network.build(classes)


def count_parameters(model: nn.Module) -> int:
    """Numbers that training changes; a weight that stands for ``copies`` of its size counts as them."""
    return sum(p.numel() * getattr(p, "copies", 1) for p in model.parameters() if p.requires_grad)
