"""A process's own share of the cores of its host."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import psutil

from job.distributed.group import Group


def keep_to_own(group: Group) -> bool:
    """On CPUs, take a share of the host's cores for this process alone; whether that was done on every rank.

    Otherwise the threads of one that waits for a gradient wake up where another computes, and queue behind it: one
    exchange in four took milliseconds in place of half a one. Every rank must call it.
    """
    if group.world_size == 1 or group.device.type != "cpu" or sys.platform != "linux":
        return False
    import torch

    count = group.local_world_size
    first = group.rank - group.local_rank
    allowed = group.gathered(sorted(os.sched_getaffinity(0)))[first : first + count]
    threads = torch.get_num_threads()
    share = share_of_cores(allowed, group.local_rank, threads) if count > 1 else None
    if share is not None:
        keep_to(share)
    return all(group.gathered(share is not None))


def share_of_cores(allowed: Sequence[Collection[int]], local_rank: int, threads: int) -> list[int] | None:
    """The cores of a host that one of its processes should keep to, when each may use the same ones.

    ``allowed``: of each process of this host, by local rank. Neighbours share what whole cores share: caches, memory
    and, where a core counts twice, itself. None where somebody bound them already or ``threads`` are more than that.
    """
    count, cores = len(allowed), sorted(allowed[local_rank], key=_topology)
    share = cores[len(cores) * local_rank // count : len(cores) * (local_rank + 1) // count]
    return share if all(mask == allowed[0] for mask in allowed) and len(share) >= threads else None


def keep_to(cores: Sequence[int]) -> None:
    """Let all threads of this process, and those they start, run on ``cores`` alone."""
    for thread in psutil.Process().threads():
        with contextlib.suppress(OSError):  # a thread that ended meanwhile, a core that was taken away
            os.sched_setaffinity(thread.id, cores)


def _topology(core: int) -> tuple[int, ...]:
    found = []
    for name in ("physical_package_id", "core_id"):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(Path(f"/sys/devices/system/cpu/cpu{core}/topology/{name}").read_text(encoding="utf-8")))
    return (*found, core) if len(found) == 2 else (0, 0, core)
