"""What the ranks found becomes one sum, at once: over the network, or through memory that a host's ranks share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from job.config.settings import Config
from job.distributed.group import Group
from job.training.choices import Choices
from job.training.ranks.shared_memory import SharedRows

AT_ONCE = 1 << 16
"""numbers of each row that are added up before the next: they stay in a core's cache"""


class Exchange:
    """Collects this rank's gradients piece by piece, and gives each parameter a view of the sum over all ranks.

    As was chosen: "ordered" in one fixed order whoever has which pieces (``add_in_pairs``), and ``buffers`` then move
    as far as the pieces move them on average; through shared memory, which takes one host with all ranks. All ranks
    call the same methods, for as many pieces of a step.
    """

    def __init__(
        self,
        settings: Config,
        parameters: Sequence[nn.Parameter],
        group: Group,
        choices: Choices,
        buffers: Sequence[Tensor] = (),
    ) -> None:
        self._parameters, self._group, self._ordered = parameters, group, choices.sums == "ordered"
        self._half, self._recorded = settings.runtime.gradients == "bf16", choices.graphs
        self._statistics = [buffer for buffer in buffers if self._ordered and buffer.is_floating_point()]
        self._counts = [buffer for buffer in buffers if self._ordered and not buffer.is_floating_point()]
        self._pieces = settings.parts(group.world_size) if self._ordered else 1
        self._block = self._pieces & -self._pieces  # as many, a power of two, are added up before anybody else's
        rows, tensors = self._pieces // self._block, [*parameters, *self._statistics]
        length = sum(tensor.numel() for tensor in tensors)
        self._shared = SharedRows(group, rows, length, settings.runtime.timeout) if choices.shared_memory else None
        memory = self._shared.own if self._shared else torch.empty(1, rows, length, device=group.device)
        self._rows = list(memory)  # [rows, length], taken in turns
        self._room = [[views(row, tensors) for row in turn] for turn in memory]
        in_place = not self._shared and (not self._ordered or group.world_size * rows == 1)
        self._total = memory[0, 0] if in_place else torch.empty(length, device=group.device)
        total = views(self._total, tensors)
        self.sums, self._moves = total[: len(parameters)], total[len(parameters) :]
        """``sums``: where ``give`` leaves each parameter's, always in the same memory"""
        self._waiting: list[list[Tensor]] = []  # sums of fewer and fewer pieces, each for that of as many more
        self._turn = 0

    def begin(self) -> None:
        """Before the first pass of a step."""
        self._before = [buffer.clone() for buffer in self._statistics]
        self._counted = [buffer.clone() for buffer in self._counts]

    def collect(self, piece: int, share: float) -> None:
        """Move away what the pass over this rank's ``piece``, a ``share`` of the batch, has left.

        Those are the gradients at the parameters and, in order, the moves of the buffers, which are put back.
        """
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        if not self._ordered:
            (torch._foreach_add_ if piece else torch._foreach_copy_)(self._room[self._turn][0], found)
            return
        if self._recorded and self._block > 1:  # the next pass leaves its own in the same memory
            found = [gradient.clone() for gradient in found]
        if self._statistics:
            moves = torch._foreach_sub(self._statistics, self._before)
            torch._foreach_mul_(moves, share)
            found += moves
            torch._foreach_copy_(self._statistics, self._before)
        if self._counts and piece + 1 < self._pieces:  # a step counts once
            torch._foreach_copy_(self._counts, self._counted)
        size, room = 1, self._room[self._turn][piece // self._block]
        while size < self._block and (piece + 1) % (2 * size) == 0:
            earlier, size = self._waiting.pop(), 2 * size
            sums = earlier if size < self._block else room
            for one, other, total in zip(earlier, found, sums, strict=True):
                torch.add(one, other, out=total)
            found = sums
        if size < self._block:
            self._waiting.append(found)
        elif found is not room:
            torch._foreach_copy_(room, found)

    def give(self) -> None:
        """Leave at each parameter the sum of what all ranks have collected for this step, and move the buffers."""
        own = self._rows[self._turn]
        if self._ordered:
            add_in_pairs(self._shared.all(self._turn) if self._shared else self._group.rows_of_all(own), self._total)
        elif self._shared:
            add_in_order(self._shared.all(self._turn), self._total)
        elif self._half:
            self._total.copy_(self._group.sum(own[0].bfloat16()))
        else:
            self._group.sum(self._total)
        self._turn = (self._turn + 1) % len(self._rows)
        for parameter, total in zip(self._parameters, self.sums, strict=True):
            parameter.grad = total
        if self._statistics:
            torch._foreach_add_(self._statistics, self._moves)


def add_in_pairs(rows: Tensor, out: Tensor) -> None:
    """The sum of ``rows`` [k, n] into ``out`` [n], in an order by which k / 2^i neighbours may be added up before.

    As long as their number is even, rows become sums of two neighbours; what is left is added one after the other.
    """
    for some, total in zip(rows.split(AT_ONCE, 1), out.split(AT_ONCE), strict=True):
        while len(some) % 2 == 0:
            some = some[::2] + some[1::2]
        add_in_order(some, total)


def add_in_order(rows: Tensor, out: Tensor) -> None:
    """The sum of ``rows`` [k, n], one after the other, into ``out`` [n]: the same bits whoever holds which rows."""
    if len(rows) == 1:
        out.copy_(rows[0])
    else:
        torch.add(rows[0], rows[1], out=out)
    for row in rows[2:]:
        out += row


def views(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """``flat`` [p] cut into one view for each tensor, in its shape and memory layout."""
    pieces = flat.split([tensor.numel() for tensor in tensors])
    return [p.as_strided(q.shape, q.stride()) for p, q in zip(pieces, tensors, strict=True)]
