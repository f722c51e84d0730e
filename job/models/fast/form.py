"""The network in the form that trains fastest on this device, and its weights back in its own."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.backends import cpu

from job.config.settings import Config, Optimizer
from job.models.fast import collapse, convolutions, dropout
from job.models.simple_cnn import SimpleCNN


def fast(model: nn.Module, settings: Config, *, image_size: int, device: torch.device) -> list[str]:
    """Swap layers of ``model``, with the weights it has, for others that train the same on ``device``, to rounding.

    Parameters keep their names and, but for one of VGG's (``collapse``), their shapes. Nothing moves to ``device``.
    Returns what was done, in words. Raises UserError when ``model.features_once`` cannot be done.
    """
    said = ["channels-last"]
    if collapse.collapse(model, settings, image_size):
        said.append("one for the 49 equal parts of the first fully connected layer")
    pool_first(model)
    if device.type == "cpu":
        said += _for_cpus(model, settings)
    model.to(memory_format=torch.channels_last)
    return said


def portable(model: nn.Module, settings: Config) -> None:
    """Leave out what ``model`` does many times over, to rounding, by layers that every program knows: for export."""
    unpenalised = dataclasses.replace(settings, optimizer=Optimizer())  # nothing is trained any more
    collapse.collapse(model, unpenalised, settings.data.image_size)


def own_weights(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """``state`` of a network in the form that ``fast`` gave it as the network's own, on the CPU.

    ``model`` is that network, in either form; a ``state`` that is its own already stays what it is.
    """
    return collapse.expanded({name: tensor.cpu() for name, tensor in state.items()}, model)


def pool_first(model: nn.Module) -> None:
    """Let a ReLU before a largest-of-four pool come behind it: the same numbers, and a quarter of the work."""
    for layers in model.modules():
        if not isinstance(layers, nn.Sequential):
            continue
        for i, (first, second) in enumerate(pairwise(list(layers))):
            if isinstance(first, nn.ReLU) and isinstance(second, nn.MaxPool2d):
                layers[i], layers[i + 1] = second, first


def by_intel() -> bool:
    """Whether this CPU is of MKL's own maker: products, and torch's random numbers, are faster with MKL there."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def _for_cpus(model: nn.Module, settings: Config) -> list[str]:
    said = []
    intel, sixteen = by_intel(), cpu.get_cpu_capability() == "AVX512"
    if isinstance(model, SimpleCNN):
        convolutions.use_for_few_channels(model, pairs=sixteen)
        said += ["convolutions for few channels", *(["two pixels at once"] if sixteen else [])]
    else:
        # MKL computes fp32 products, and on CPUs of other makers with AVX2 alone; oneDNN's convolutions know no makers.
        fp32 = settings.runtime.precision == "fp32"
        windows: convolutions.Windows = "all" if intel or not sixteen else "nothing" if fp32 else "weight"
        words = {
            "nothing": "2 x 2 convolutions as matrix products",
            "weight": "2 x 2 convolutions and 4 x 4 ones' weight gradients as matrix products",
            "all": "small convolutions as matrix products",
        }
        said += [words[windows]] if convolutions.use_for_small_maps(model, windows) else []
    if not intel and dropout.use(model):
        said.append("dropout drawn at once")
    return said
