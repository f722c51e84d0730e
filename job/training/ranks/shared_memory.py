"""Memory that the ranks of one Linux host share: each leaves its rows there, and reads everybody's."""

from __future__ import annotations

import mmap
import os
import secrets
import socket
import struct

import torch
from torch import Tensor

from job.config.errors import FailedError
from job.distributed.group import Group

JOIN_WITHIN = 30.0
"""seconds in which the ranks of a host find each other"""


class SharedRows:
    """Rows of float32 of each rank of one host, in memory that all of them map.

    A collective over sockets wakes one thread after the other, and each may wait for the scheduler's next tick:
    milliseconds for gradients that are copied in microseconds. Here a byte through a socket says that rows are written,
    and each rank adds all of them up by itself.
    """

    def __init__(self, group: Group, rows: int, length: int, patience: float) -> None:
        """``rows`` [rows, length] for each rank, twice: one is written while others may still read the other.

        All ranks must call it. They wait ``patience`` seconds for each other later on. Raises FailedError on all.
        """
        size = 4 * 2 * group.world_size * rows * length
        name = group.from_rank_zero("\0rankzero-" + secrets.token_hex(16))  # in no file system: left behind by nobody
        with socket.socket(socket.AF_UNIX) as own:
            offered = group.guarded(lambda: _offer(own, name, size, group.world_size), on=group.is_rank_zero)
            joined = group.guarded(lambda: _join(name) if offered is None else _admit(own, offered, group.world_size))
        assert joined is not None
        memory, self._others = joined
        for other in self._others:
            other.settimeout(patience)
        self._leads = group.is_rank_zero
        self._memory = torch.frombuffer(mmap.mmap(memory, size), dtype=torch.float32).view(2, -1, length)
        os.close(memory)
        first = group.rank * rows
        self.own = self._memory[:, first : first + rows]
        """[2, rows, length]: what this rank adds, in turns"""

    def all(self, turn: int) -> Tensor:
        """All ranks' rows of ``turn``, in rank order, once they are written: [world_size * rows, length].

        Raises ConnectionError or TimeoutError when another rank is gone or hangs.
        """
        self._meet()
        return self._memory[turn]

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


def _offer(listener: socket.socket, name: str, size: int, ranks: int) -> int:
    """Memory of ``size`` bytes, as a file descriptor, once ``ranks`` can ask for it under ``name``."""
    listener.bind(name)
    listener.listen(ranks)
    memory = os.memfd_create("gradients")
    try:
        os.posix_fallocate(memory, 0, size)  # here it fails if it must, and not at some step
    except OSError as error:
        raise FailedError(
            f"no {size / 1e6:.0f} MB of memory for gradients that processes share ({error.strerror}): "
            "use fewer processes on this host, or give the job more memory"
        ) from None
    return memory


def _admit(listener: socket.socket, memory: int, ranks: int) -> tuple[int, list[socket.socket]]:
    """``memory``, handed to all other ranks, and a socket to each of them."""
    listener.settimeout(JOIN_WITHIN)
    others: list[socket.socket] = []
    while len(others) < ranks - 1:
        other, _ = listener.accept()
        _, user, _ = struct.unpack("3i", other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if user == os.getuid():  # whoever else may have seen the name
            socket.send_fds(other, [b"\1"], [memory])
            others.append(other)
    return memory, others


def _join(name: str) -> tuple[int, list[socket.socket]]:
    """The memory that rank zero offers under ``name``, and a socket to rank zero."""
    leader = socket.socket(socket.AF_UNIX)
    leader.settimeout(JOIN_WITHIN)
    leader.connect(name)
    return socket.recv_fds(leader, 1, 1)[1][0], [leader]
