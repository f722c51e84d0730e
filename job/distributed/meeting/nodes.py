"""What the nodes do, looked at before there are data: one that is slow holds up all."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from job.distributed import launcher

if TYPE_CHECKING:
    from job.distributed.group import Group

SLOW = 5.0
"""times slower than the median; less may be others that work on a node too"""


class Figure(NamedTuple):
    """Something that is measured of each rank; more of it is better."""

    key: str
    does: str
    unit: str
    enough: float
    """never slow"""
    useless: float = 0.0
    """always slow"""
    between: bool = False
    """this rank and the one before it"""


FIGURES = (
    Figure("gflops", "multiplies", "GFLOP/s", math.inf),
    Figure("writes", "writes to its node's disk", "MB/s", 2.0),
    Figure("hears", "hears the rank before it", "MB/s", 50.0, 0.5, between=True),
)


def nodes_looked_at(group: Group, seconds: float = 0.3) -> list[dict[str, Any]]:
    """What each rank's node can do, in rank order: ``seconds`` of multiplying, a write, an exchange with neighbours.

    Every rank must call it. What seems slow is looked at again, for longer. [] where one host's CPUs are all there is.
    """
    if group.local_world_size == group.world_size and (group.world_size == 1 or group.device.type == "cpu"):
        return []
    rows = group.gathered(_figures(group, seconds))
    return group.gathered(_figures(group, 4 * seconds)) if slow_nodes(rows) else rows


def nodes_in_words(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Each node's lowest figures."""
    found = {}
    for node in dict.fromkeys(row["node"] for row in rows):
        own = [row for row in rows if row["node"] == node]
        least = {figure: min([row[figure.key] for row in own if figure.key in row], default=None) for figure in FIGURES}
        found[node] = ", ".join(f"{f.does} at {rate:,.3g} {f.unit}" for f, rate in least.items() if rate is not None)
    return found


def slow_nodes(rows: list[dict[str, Any]]) -> dict[str, str]:
    """What is slow, in words, by node: five times slower than at least half of the ranks, and slow enough to be felt.

    A connection is slow by that end of it which has more slow ones; where that is neither, both are named.
    """
    found: dict[str, list[str]] = {}
    for figure in FIGURES:
        rates = {rank: row[figure.key] for rank, row in enumerate(rows) if figure.key in row}
        median = statistics.median_high(rates.values()) if rates else 0.0
        limit = max(figure.useless, min(figure.enough, median / SLOW))
        ends = {rank: {rows[r]["node"] for r in (rank, rank - figure.between)} for rank in rates if rates[rank] < limit}
        count = Counter(node for pair in ends.values() for node in pair)
        for rank, pair in ends.items():
            words = f"rank {rank} {figure.does} at {rates[rank]:,.3g} {figure.unit}, and the median is {median:,.3g}"
            for node in pair:
                if count[node] == max(count[end] for end in pair):
                    found.setdefault(node, []).append(words)
    return {node: "; ".join(words) for node, words in sorted(found.items())}


def writing(directory: Path, megabytes: int) -> float:
    """Seconds that it takes to write so many 2^20 bytes to the disk under ``directory``. Raises OSError."""
    block, began = os.urandom(megabytes << 20), time.perf_counter()
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - began


def _figures(group: Group, seconds: float) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    found: dict[str, Any] = {"node": launcher.node()}
    size = 4096 if group.device.type == "cuda" else 256
    matrix = torch.ones(size, size, device=group.device)
    (matrix @ matrix)[0, 0].item()  # the first time libraries are loaded
    count, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        (matrix @ matrix)[0, 0].item()  # waits for the device
        count += 1
    found["gflops"] = round(2e-9 * size**3 * count / passed, 2)
    if group.local_rank == 0:
        with contextlib.suppress(OSError):  # whoever needs that disk says so
            found["writes"] = round(1 / writing(Path(tempfile.gettempdir()), 1), 3)
    if group.local_world_size < group.world_size:
        own = torch.zeros(1 << 20, dtype=torch.uint8, device=group.device)
        heard, best = torch.empty_like(own), math.inf
        after, before = ((group.rank + step) % group.world_size for step in (1, -1))
        for _ in range(4):  # connections are made for the first one
            began = time.perf_counter()
            both = dist.P2POp(dist.isend, own, after), dist.P2POp(dist.irecv, heard, before)
            for work in dist.batch_isend_irecv(list(both)):
                work.wait()
            heard[-1].item()
            best = min(best, time.perf_counter() - began)
        found["hears"] = round(1 / best, 3)
    return found
