"""The table of networks.

To add one: write a function ``(classes: int) -> nn.Module`` and name it in ``NETWORKS``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

import torch
from accelerate import init_empty_weights
from torch import nn

from job.config.errors import UserError
from job.config.settings import Model
from job.models import libraries
from job.models.simple_cnn import SimpleCNN
from job.models.vgg import vgg16, vgg16_bn

NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "simple_cnn": SimpleCNN,
    "vgg16": vgg16,
    "vgg16_bn": vgg16_bn,
}
"""networks of this job; those of torchvision and timm come on top"""

SIZES = (32, 64, 96, 128, 160, 192, 224, 256, 299, 384, 448, 512)
"""pixels that are looked at for those that fit a network"""
RARE = 1009
"""classes of a network that is only looked at: what has so many rows is its last layer"""


def builder(name: str) -> libraries.Build:
    """How the network ``name`` is made. Raises UserError, with the nearest, where there is none."""
    if name in NETWORKS:
        return lambda classes, _: NETWORKS[name](classes)
    known = libraries.names(name)
    if name not in known:
        near = difflib.get_close_matches(name, [*NETWORKS, *known], 1, 0.4)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(NETWORKS)}, or one of torchvision's"
        raise UserError(f"model.name={name}: there is no such network", hint)
    return libraries.builder(name)


def build(settings: Model, *, classes: int, image_size: int, seed: int) -> nn.Module:
    """The network in its own form, with random weights that depend on ``seed`` alone.

    Parameters of its last layer have a true attribute ``head``. Raises UserError when there is no such network, or
    when images of ``image_size`` x ``image_size`` pixels do not fit it.
    """
    make = builder(settings.name)
    sketch = _sketch(make, image_size)
    if sketch is None:
        by_distance = sorted(SIZES, key=lambda size: abs(size - image_size))
        near = next((f", but {size}; give that" for size in by_distance if _sketch(make, size)), "")
        raise UserError(
            f"data.image_size={image_size}", f"{settings.name} does not take it{near}, or another model.name"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make(classes, image_size)
    for name in head(sketch):
        model.get_parameter(name).head = True  # type: ignore[attr-defined]
    return model


def _sketch(make: libraries.Build, image_size: int) -> nn.Module | None:
    """The network for ``RARE`` classes, without memory; None where images of ``image_size`` pixels do not fit it."""
    try:
        with init_empty_weights(), torch.inference_mode():
            model = make(RARE, image_size).eval().to("meta")
            model(torch.empty(1, 3, image_size, image_size, device="meta"))
    except (RuntimeError, AssertionError, ValueError):
        return None
    return model


def head(sketch: nn.Module) -> list[str]:
    """Names of the parameters of the last layer of a network for ``RARE`` classes."""
    return [name for name, parameter in sketch.named_parameters() if parameter.shape[:1] == (RARE,)]


def count_parameters(model: nn.Module) -> int:
    """Numbers that training changes; a weight that stands for ``copies`` of its size counts as them."""
    return sum(map(_numbers, (p for p in model.parameters() if p.requires_grad)))


def described(model: nn.Module) -> str:
    """``5,130 of 11,181,642 parameters trained``."""
    trained, whole = count_parameters(model), sum(map(_numbers, model.parameters()))
    return f"{trained:,} of {whole:,} parameters trained" if trained < whole else f"{whole:,} parameters"


def _numbers(parameter: nn.Parameter) -> int:
    return parameter.numel() * int(getattr(parameter, "copies", 1))
