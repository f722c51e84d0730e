"""The ranks prove to each other that they belong to one launch, before anything else is said, and what their nodes do.

Whoever reaches the meeting place first takes a rank there: the store and gloo ask nobody who he is. So each rank shows
that it knows a secret of the launch or of the user, by a MAC (RFC 2104) over a random number of every rank.

One node that is slow holds up all: before there are data, each rank multiplies, writes, and hears its neighbour.
"""

from __future__ import annotations

import contextlib
import hmac
import math
import os
import secrets
import stat
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from job.config.errors import UserError
from job.distributed import launcher

if TYPE_CHECKING:
    from job.distributed.group import Group

LENGTH = 32
"""bytes of a random number, of a proof, and of the user's secret"""
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


def strangers(secret: bytes, rank: int, exchange: Callable[[bytes], list[bytes]]) -> list[int]:
    """The ranks that do not know ``secret``.

    ``exchange`` gives ``LENGTH`` bytes to all ranks and returns those of each, in rank order. Every rank must call it.
    """
    challenge = b"".join(exchange(secrets.token_bytes(LENGTH)))
    proofs = [
        hmac.digest(secret, other.to_bytes(4, "big") + challenge, "sha256") for other in range(len(challenge) // LENGTH)
    ]
    return [
        other for other, proof in enumerate(exchange(proofs[rank])) if not hmac.compare_digest(proof, proofs[other])
    ]


def users_secret() -> bytes:
    """Random bytes in a file that only this user can read, made by the first process that asks.

    It lies in the home directory, which most clusters share between nodes; without one, on this host's own disk.
    Raises UserError where others can read or replace it.
    """
    places = [Path(tempfile.gettempdir(), f"rankzero-{os.getuid()}")]
    with contextlib.suppress(RuntimeError):  # a container's user may have no home
        places.insert(0, Path.home() / ".rankzero")
    for place in places:
        try:
            return _kept(place / "secret")
        except OSError as error:
            problem = error
    raise UserError(
        f"no secret can be kept in {places[0]} ({problem.strerror})", "set RANKZERO_SECRET, the same for every process"
    )


def _kept(path: Path) -> bytes:
    """The secret at ``path``, made if it is not there: whole or not at all, and one for all who ask at once."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    if not path.exists():
        with tempfile.NamedTemporaryFile(dir=path.parent) as fresh:  # readable by nobody else
            fresh.write(secrets.token_bytes(LENGTH))
            fresh.flush()
            with contextlib.suppress(FileExistsError):
                os.link(fresh.name, path)
    with open(path, "rb") as file:
        for status, others in (path.parent.lstat(), 0o022), (os.fstat(file.fileno()), 0o077):
            if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & others:
                raise UserError(f"others can read or replace {path}", f"remove {path.parent}: it is made anew")
        secret = file.read()
    if len(secret) != LENGTH:
        raise UserError(f"{path} is damaged", f"remove {path.parent}: it is made anew")
    return secret


def arrive(patience: timedelta) -> Callable[[], list[int]]:
    """Leave word at the meeting place, which is rank zero's, that this rank has come; what tells rank zero who has not.

    Raises what torch does where the place cannot be reached.
    """
    if launcher.world_size() == 1 or launcher.by_launcher():  # whose agents met before, in a store of their own
        return list
    import torch.distributed as dist

    rank, (host, _, port) = launcher.launch_rank(), launcher.meeting_address().rpartition(":")
    # The one that the process group makes in this process is then the same.
    store = dist.TCPStore(
        host, int(port), is_master=rank == 0, timeout=patience, wait_for_workers=False, multi_tenant=True
    )
    store.set(f"came/{rank}", "")
    return lambda: [other for other in range(launcher.world_size()) if not (rank or store.check([f"came/{other}"]))]


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
