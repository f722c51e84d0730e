"""The group of a process that is alone, on whatever device."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from job.distributed.group import Group


def alone(accelerator: Accelerator, device: torch.device) -> Group:
    """A group of one, which needs no other process to meet."""
    return Group(
        accelerator=accelerator,
        device=device,
        rank=0,
        world_size=1,
        local_rank=0,
        set_up_group=None,
        control_group=None,
    )
