"""The gradients of all ranks become one, at once: over the network, or through memory that a host's ranks share."""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import socket
import struct
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from job.config.errors import FailedError
from job.config.settings import Config
from job.distributed.group import Group
from job.training.choices import Choices

JOIN_WITHIN = 30.0
"""seconds in which the ranks of a host find each other"""


class Exchange:
    """Takes this rank's gradients piece by piece, and gives each parameter a view of the sum over all ranks.

    In one fixed order where ``choices.exchange`` is "ordered": piece by piece, rank by rank. All ranks call the same
    methods, for as many pieces of a step.
    """

    def __init__(self, settings: Config, parameters: Sequence[nn.Parameter], group: Group, choices: Choices) -> None:
        self._parameters, self._group = parameters, group
        self._ordered = choices.exchange == "ordered"
        self._half = settings.runtime.gradients == "bf16"
        rows = settings.parts(group.world_size) if self._ordered else 1
        length = sum(parameter.numel() for parameter in parameters)
        self._shared = None
        if choices.shared_memory:
            self._shared = SharedRows(group, rows, length, settings.runtime.timeout)
        memory = self._shared.own if self._shared else torch.empty(1, rows, length, device=group.device)
        self._rows = list(memory)  # [rows, length], taken in turns
        self._room = [[views(row, parameters) for row in turn] for turn in memory]
        in_place = self._shared is None and not self._ordered
        self._total = memory[0, 0] if in_place else torch.empty(length, device=group.device)
        self.sums = views(self._total, parameters)
        """where ``give`` leaves the sum, always in the same memory"""
        self._turn = 0

    def take(self, piece: int) -> None:
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
        """Leave at each parameter the sum of what all ranks have taken for this step."""
        rows = self._rows[self._turn]
        if self._shared:
            self._shared.sum(self._turn, out=self._total)
        elif self._ordered:
            _add_in_order(self._group.rows_of_all(rows), out=self._total)
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


def _add_in_order(rows: Tensor, *, out: Tensor) -> None:
    """The sum of ``rows`` [k, n], one after the other, into ``out`` [n]: the same bits whoever holds which rows."""
    if len(rows) == 1:
        out.copy_(rows[0])
    else:
        torch.add(rows[0], rows[1], out=out)
    for row in rows[2:]:
        out += row


class SharedRows:
    """Rows of float32 of each rank of one Linux host, in memory that all of them map.

    A collective over sockets wakes one thread after the other, and each may wait for the scheduler's next tick:
    milliseconds for gradients that are copied in microseconds. Here a byte through a socket says that rows are written,
    and each rank adds all of them up by itself, in the same order.
    """

    def __init__(self, group: Group, rows: int, length: int, patience: float) -> None:
        """``rows`` [rows, length] for each rank, twice: one is written while others may still read the other.

        All ranks must call it. They wait ``patience`` seconds for each other later on. Raises FailedError on all.
        """
        size = 4 * 2 * group.world_size * rows * length
        name = group.from_rank_zero("\0rankzero-" + secrets.token_hex(16))  # in no file system: left behind by nobody
        listener = socket.socket(socket.AF_UNIX) if group.is_rank_zero else None

        def listen() -> int:
            assert listener is not None
            listener.bind(name)
            listener.listen(group.world_size)
            memory = os.memfd_create("gradients")
            try:
                os.posix_fallocate(memory, 0, size)  # here it fails if it must, and not at some step
            except OSError as error:
                raise FailedError(
                    f"no {size / 1e6:.0f} MB of memory for gradients that processes share ({error.strerror}): "
                    "use fewer processes on this host, or give the job more memory"
                ) from None
            return memory

        memory = group.guarded(listen, on=listener is not None)
        self._others: list[socket.socket] = []

        def join() -> int:
            if listener is None:
                self._others.append(socket.socket(socket.AF_UNIX))
                self._others[0].settimeout(JOIN_WITHIN)
                self._others[0].connect(name)
                return socket.recv_fds(self._others[0], 1, 1)[1][0]
            assert memory is not None
            listener.settimeout(JOIN_WITHIN)
            while len(self._others) < group.world_size - 1:
                other, _ = listener.accept()
                _, user, _ = struct.unpack("3i", other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                if user == os.getuid():  # whoever else may have seen the name
                    socket.send_fds(other, [b"\1"], [memory])
                    self._others.append(other)
            return memory

        with listener or contextlib.nullcontext():
            memory = group.guarded(join)
        assert memory is not None
        for other in self._others:
            other.settimeout(patience)
        self._leads = group.is_rank_zero
        self._memory = torch.frombuffer(mmap.mmap(memory, size), dtype=torch.float32).view(2, -1, length)
        os.close(memory)
        first = group.rank * rows
        self.own = self._memory[:, first : first + rows]
        """[2, rows, length]: what this rank adds, in turns"""

    def sum(self, turn: int, *, out: Tensor) -> None:
        """All ranks' rows of ``turn``, one after the other, into ``out`` [length]: the same bits on every rank.

        Raises ConnectionError or TimeoutError when another rank is gone or hangs.
        """
        self._meet()
        _add_in_order(self._memory[turn], out=out)

    def _meet(self) -> None:
        """Return when all ranks are here; what each wrote before can be read after. Rank zero hears of all."""
        if not self._leads:
            self._others[0].sendall(b"\1")
        for other in self._others:
            if not other.recv(1):
                raise ConnectionError("a process of this host ended")
        if self._leads:
            for other in self._others:
                other.sendall(b"\1")
