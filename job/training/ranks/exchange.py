"""The gradients of all ranks become one, at once: over the network, or through memory that a host's ranks share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from job.config.settings import Config
from job.distributed.group import Group
from job.training.choices import Choices
from job.training.ranks.shared_memory import SharedRows, add_in_order


class Exchange:
    """Collects this rank's gradients piece by piece, and gives each parameter a view of the sum over all ranks.

    As was chosen: "ordered" in one fixed order, piece by piece, rank by rank; through shared memory, which takes one
    host with all ranks. All ranks call the same methods, for as many pieces of a step.
    """

    def __init__(self, settings: Config, parameters: Sequence[nn.Parameter], group: Group, choices: Choices) -> None:
        self._parameters, self._group, self._ordered = parameters, group, choices.sums == "ordered"
        self._half = settings.runtime.gradients == "bf16"
        rows = settings.parts(group.world_size) if self._ordered else 1
        length = sum(parameter.numel() for parameter in parameters)
        self._shared = SharedRows(group, rows, length, settings.runtime.timeout) if choices.shared_memory else None
        memory = self._shared.own if self._shared else torch.empty(1, rows, length, device=group.device)
        self._rows = list(memory)  # [rows, length], taken in turns
        self._room = [[views(row, parameters) for row in turn] for turn in memory]
        in_place = self._shared is None and not self._ordered
        self._total = memory[0, 0] if in_place else torch.empty(length, device=group.device)
        self.sums = views(self._total, parameters)
        """where ``give`` leaves the sum, always in the same memory"""
        self._turn = 0

    def collect(self, piece: int) -> None:
        """Move the gradients away that the pass over this rank's ``piece`` has left at the parameters."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        room = self._room[self._turn][piece if self._ordered else 0]
        if piece == 0 or self._ordered:
            torch._foreach_copy_(room, gradients)
        else:
            torch._foreach_add_(room, gradients)
        for parameter in self._parameters:
            parameter.grad = None

    def give(self) -> None:
        """Leave at each parameter the sum of what all ranks have collected for this step."""
        rows = self._rows[self._turn]
        if self._shared:
            self._shared.sum(self._turn, out=self._total)
        elif self._ordered:
            add_in_order(self._group.rows_of_all(rows), out=self._total)
        elif self._half:
            self._total.copy_(self._group.sum(rows[0].bfloat16()))
        else:
            self._group.sum(self._total)
        self._turn = (self._turn + 1) % len(self._rows)
        for parameter, total in zip(self._parameters, self.sums, strict=True):
            parameter.grad = total


def views(flat: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """``flat`` [p] cut into one view for each parameter, in its shape and memory layout."""
    pieces = flat.split([parameter.numel() for parameter in parameters])
    return [p.as_strided(q.shape, q.stride()) for p, q in zip(pieces, parameters, strict=True)]
