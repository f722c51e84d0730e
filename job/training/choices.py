"""What a step does one way here and another way there: decided once, and printed."""

from __future__ import annotations

import sys
import timeit
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from job.config.settings import Config
from job.data.datasets import Dataset
from job.distributed.group import Group
from job.models import frozen
from job.training.optimizers import trained

Sums = Literal["none", "flat", "overlapped", "ordered"]
"""How the gradients of ranks are summed: there is one rank; all at once after the backward pass; in the buckets of
DistributedDataParallel while it runs; in one fixed order, so that any number of processes gets the same bits."""

ONE_BUCKET = 1 << 20
"""bytes of DistributedDataParallel's first bucket: a gradient that fits it is complete before its exchange begins"""


@dataclass(frozen=True)
class Choices:
    """How this process goes about its steps. The numbers are the same, to rounding, whatever is chosen."""

    images_on_device: bool
    graphs: bool
    """steps are CUDA graphs (``job.training.graphs``)"""
    sums: Sums
    shared_memory: bool = False
    """ranks exchange through memory that they share (``job.training.ranks.shared_memory``)"""
    remarks: tuple[str, ...] = ()
    """what was asked for and cannot be done, does not pay, or depends on the number of processes"""

    def __str__(self) -> str:
        said = ["images on the device" if self.images_on_device else "images in host memory", "fused optimizer"]
        said += ["steps as CUDA graphs"] if self.graphs else []
        said += {
            "none": [],
            "flat": ["gradients exchanged at once"],
            "overlapped": ["gradients exchanged during the backward pass"],
            "ordered": ["gradients summed in one order"],
        }[self.sums]
        said += ["through shared memory"] if self.shared_memory else []
        return ", ".join([*said, *self.remarks])


def choose(settings: Config, model: nn.Module, dataset: Dataset, group: Group) -> Choices:
    """What suits steps of ``model`` on ``dataset``, on this rank's device and with the other ranks."""
    cuda, precision = group.device.type == "cuda", settings.runtime.precision
    on_device = cuda and _fits(settings, dataset, group.device)
    # fp16's loss scaling looks at each step's gradient.
    needs = {"a GPU": cuda, "the images on the device": on_device, "bf16 or fp32": precision != "fp16"}
    wanted = settings.runtime.compile == "graphs"
    remarks = [f"no CUDA graphs, which need {need}" for need, met in needs.items() if wanted and not met][:1]
    graphs = wanted and not remarks
    if precision == "bf16" and not cuda:
        times = _product_seconds(torch.bfloat16) / _product_seconds(torch.float32)
        what = f"no gain from bf16, whose products take {times:.1f} times as long as fp32's on this CPU"
        remarks += [what] if times > 1.1 else []
    alone = settings.train.cross_check and group.world_size == 1
    remarks += ["no comparison of ranks, for which train.cross_check needs two"] if alone else []
    if group.world_size > 1 and not settings.train.gradient_shards and frozen.normalised(model):
        remarks += ["batch normalisation by what each process sees (train.gradient_shards: by shards, on any number)"]
    on_cpus_of_one_host = not cuda and sys.platform == "linux" and 1 < group.world_size == group.local_world_size
    shared_memory = on_cpus_of_one_host and settings.runtime.gradients == "fp32"
    sums = _sums(settings, model, group.world_size, at_once=graphs or shared_memory)
    return Choices(
        images_on_device=on_device, graphs=graphs, sums=sums, shared_memory=shared_memory, remarks=tuple(remarks)
    )


def _product_seconds(kind: torch.dtype) -> float:
    """Of the fastest of some matrix products that take less than a millisecond each."""
    matrix = torch.ones(256, 256, dtype=kind)
    return min(timeit.repeat(lambda: matrix @ matrix, number=1))


def _fits(settings: Config, dataset: Dataset, device: torch.device) -> bool:
    """Whether the images are copied: when told so, or when they take less than half of the memory that is free."""
    if settings.runtime.data_on != "auto":
        return settings.runtime.data_on == "device"
    return dataset.nbytes < torch.cuda.mem_get_info(device)[0] / 2


def _sums(settings: Config, model: nn.Module, world_size: int, *, at_once: bool) -> Sums:
    if settings.train.gradient_shards:
        return "ordered"
    if world_size == 1:
        return "flat" if at_once and settings.train.gradient_accumulation > 1 else "none"
    size = sum(parameter.numel() * parameter.element_size() for parameter in trained(model))
    return "flat" if at_once or size <= ONE_BUCKET else "overlapped"
