"""What is done one way on one device and another way on another: decided here, and printed once."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.backends import cpu

from job.config.settings import Config
from job.data.datasets import Dataset
from job.models.fast import collapse
from job.models.fast.convolutions import Windows

Exchange = Literal["none", "flat", "overlapped", "ordered"]
"""How the gradients of ranks are summed: there is one rank; all at once after the backward pass; in the buckets of
DistributedDataParallel while it runs; in one fixed order, so that any number of processes gets the same bits."""

ONE_BUCKET = 1 << 20
"""bytes of DistributedDataParallel's first bucket: a gradient that fits it is complete before its exchange begins"""


@dataclass(frozen=True)
class Choices:
    """How this process goes about its part. The numbers are the same, to rounding, whatever is chosen."""

    pictures_on_device: bool
    collapsed: bool
    """VGG's first fully connected layer is trained as the sum of its 49 equal parts (``job.vgg``)"""
    few_channels: bool
    """SimpleCNN's convolutions are of the kinds for few channels (``job.convolutions``)"""
    pairs: bool
    """the first of them goes from pair to pair of pixels"""
    small_convolutions: Windows | None
    """VGG's convolutions of 2 x 2 pixels are matrix products, and those up to 4 x 4 as it says"""
    dropout: bool
    """random numbers of a dropout are drawn at once (``job.dropout``)"""
    graphs: bool
    """steps are CUDA graphs (``job.graphs``)"""
    exchange: Exchange
    shared_memory: bool = False
    """ranks exchange through memory that they share (``job.exchange``)"""
    remarks: tuple[str, ...] = ()
    """what was asked for and cannot be done, or does not pay"""

    def __str__(self) -> str:
        said = ["pictures on the device" if self.pictures_on_device else "pictures in host memory"]
        said += ["channels-last", "fused optimizer"]
        said += ["convolutions for few channels"] if self.few_channels else []
        said += ["two pixels at once"] if self.pairs else []
        said += ["one for the 49 equal parts of the first fully connected layer"] if self.collapsed else []
        said += ["dropout drawn at once"] if self.dropout else []
        said += {
            None: [],
            "nothing": ["2 x 2 convolutions as matrix products"],
            "weight": ["2 x 2 convolutions and 4 x 4 ones' weight gradients as matrix products"],
            "all": ["small convolutions as matrix products"],
        }[self.small_convolutions]
        said += ["steps as CUDA graphs"] if self.graphs else []
        said += {
            "none": [],
            "flat": ["gradients exchanged at once"],
            "overlapped": ["gradients exchanged during the backward pass"],
            "ordered": ["gradients summed in one order"],
        }[self.exchange]
        said += ["through shared memory"] if self.shared_memory else []
        return ", ".join([*said, *self.remarks])


def choose(
    settings: Config,
    model: nn.Module,
    dataset: Dataset,
    device: torch.device,
    world_size: int,
    *,
    one_host: bool = True,
) -> Choices:
    """What suits ``model``, as built, and ``dataset`` on ``device``; ``one_host`` has all processes, or not."""
    cuda = device.type == "cuda"
    on_device = cuda and _fits(settings, dataset, device)
    precision = settings.runtime.precision
    remarks = []
    graphs = settings.runtime.compile == "graphs"
    if graphs:
        needs = {
            "a GPU": cuda,
            "the pictures on the device": on_device,
            "bf16 or fp32": precision != "fp16",  # fp16's loss scaling looks at each step's gradient
        }
        lacking = [need for need, met in needs.items() if not met]
        graphs = not lacking
        remarks += [f"no CUDA graphs, which need {lacking[0]}"] if lacking else []
    if precision == "bf16" and not cuda and (times := _product_seconds("bf16") / _product_seconds("fp32")) > 1.1:
        remarks.append(f"no gain from bf16, whose products take {times:.1f} times as long as fp32's on this CPU")
    simple_cnn, sixteen = settings.model.name == "simple_cnn", cpu.get_cpu_capability() == "AVX512"
    # MKL computes fp32 products, and on CPUs of other makers with AVX2 alone; oneDNN's convolutions know no makers.
    intel = by_intel()
    windows: Windows = "all" if intel or not sixteen else "nothing" if precision == "fp32" else "weight"
    on_cpus_of_one_host = one_host and not cuda and sys.platform == "linux" and world_size > 1
    shared_memory = on_cpus_of_one_host and settings.runtime.gradients == "fp32"
    return Choices(
        pictures_on_device=on_device,
        collapsed=collapse.collapses(settings, model, dataset.train.images.shape[-1]),
        few_channels=not cuda and simple_cnn,
        pairs=not cuda and simple_cnn and sixteen,
        small_convolutions=None if cuda or simple_cnn else windows,
        dropout=not cuda and any(isinstance(layer, nn.Dropout) for layer in model.modules()) and not intel,
        graphs=graphs,
        exchange=_exchange(settings, model, world_size, at_once=graphs or shared_memory),
        shared_memory=shared_memory,
        remarks=tuple(remarks),
    )


def _product_seconds(precision: Literal["bf16", "fp32"]) -> float:
    """Of the fastest of some matrix products that take less than a millisecond each."""
    matrix = torch.ones(256, 256, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def by_intel() -> bool:
    """Whether this CPU is of MKL's own maker: products, and torch's random numbers, are faster with MKL there."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _fits(settings: Config, dataset: Dataset, device: torch.device) -> bool:
    """Whether the pictures are copied: when told so, or when they take less than half of the memory that is free."""
    if settings.runtime.data_on != "auto":
        return settings.runtime.data_on == "device"
    size: int = dataset.train.images.nbytes + dataset.test.images.nbytes
    return size < torch.cuda.mem_get_info(device)[0] / 2


def _exchange(settings: Config, model: nn.Module, world_size: int, *, at_once: bool) -> Exchange:
    if settings.train.gradient_shards:
        return "ordered"
    if world_size == 1:
        return "flat" if at_once and settings.train.gradient_accumulation > 1 else "none"
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return "flat" if at_once or size <= ONE_BUCKET else "overlapped"
