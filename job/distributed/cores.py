"""A process's share of its host: device, threads, cores of its own, memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import socket
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from job.config.bounds import MOST_THREADS
from job.config.errors import UserError
from job.config.settings import Runtime
from job.distributed import launcher

if TYPE_CHECKING:
    from job.distributed.group import Group


def on_cpu(device: str, asked: launcher.Asked, gpus: int) -> bool:
    if device == "cpu" or (device == "auto" and asked.cpu):
        return True
    needed = launcher.local_world_size()
    if gpus < needed and (device == "cuda" or asked.cpu is False or gpus):
        raise UserError(
            f"{needed} GPU{'s were' if needed > 1 else ' was'} asked for on {socket.gethostname()} and {gpus} found"
            + (f" ({asked.by})" if asked.by else ""),
            "check nvidia-smi and the driver, ask for fewer processes, or use the CPU with launch/cpu.yaml "
            "or --runtime.device cpu",
        )
    return gpus == 0


def threads_for(settings: Runtime, *, alone: bool) -> int:
    if settings.threads is not None:
        return settings.threads
    given = re.match("0*([1-9][0-9]*)", os.environ.get("OMP_NUM_THREADS", "").strip())  # "4,2": 4, and 2 in each
    # Launchers set 1 when nobody says; only a number that comes from elsewhere is the user's.
    if given and (given[1] != "1" or not launcher.by_launcher()):
        if len(given[1]) > 4 or int(given[1]) > MOST_THREADS:
            raise UserError(
                f"OMP_NUM_THREADS={given[1]:.20} in the environment is more than {MOST_THREADS}",
                "unset OMP_NUM_THREADS",
            )
        return int(given[1])
    if alone:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, cores // launcher.local_world_size()))


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


def peaks() -> dict[str, int]:
    """Bytes of memory that this process has taken at most, of the host and of its device."""
    found = {"peak_memory": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    cuda = sys.modules.get("torch.cuda")
    if cuda is not None and cuda.is_initialized():
        found["peak_device_memory"] = max(map(cuda.max_memory_allocated, range(cuda.device_count())))
    return found


def keep_freed_memory() -> None:
    """Tell glibc to reuse large buffers: returning activations to the kernel each step costs a fifth of it."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
