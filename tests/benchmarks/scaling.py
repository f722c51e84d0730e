"""A model on paper of a step on many GPUs: arithmetic, optimizer, exchange of gradients, and what hides behind what.

Every constant is measured, or stands here with its source, or is called an assumption. The same formula with this
machine's own figures is held against what was measured on it.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

ADAM_BYTES = 28
"""read and written for each fp32 parameter by a step of Adam: see floors.py"""
BUCKET_BYTES = 25 * 2**20
"""DistributedDataParallel's bucket_cap_mb: what is exchanged last can hide behind nothing"""


@dataclass(frozen=True)
class Link:
    """A way between devices."""

    bandwidth: float
    """bytes/s that one device sends while it receives as many"""
    latency: float
    """seconds for each step of a collective"""


@dataclass(frozen=True)
class Cluster:
    """Nodes of equal GPUs, each GPU with a network port of its own."""

    name: str
    gpus_per_node: int
    inside: Link
    network: Link
    arithmetic: float
    """operations/s of one GPU in training"""
    memory: float
    """bytes/s of one GPU"""
    fixed: float
    """seconds of a step that do not depend on the batch"""


H100 = Cluster(
    name="8 x H100 a node, 400 Gb/s InfiniBand for each GPU",
    gpus_per_node=8,
    # 900 GB/s both ways together (NVIDIA H100 datasheet); 3.4 us a step (NCCL, src/graph/tuning.cc, ring, Simple)
    inside=Link(450e9, 3.4e-6),
    # 400 Gb/s each way; 14 us a step over a network (the same table)
    network=Link(50e9, 14e-6),
    # 989e12 dense bf16 operations/s (datasheet), of which 35% is an assumption, for small convolutions
    arithmetic=0.35 * 989e12,
    memory=3.35e12,  # datasheet
    fixed=100e-6,  # assumption: what is left of launching when the step is one CUDA graph
)


def fitted(small: float, large: float, need: dict[str, float]) -> Cluster:
    """H100 with the figures of one GPU that explain measured seconds of steps of BATCH images.

    ``small`` is a network's that is nothing but fixed costs, ``large`` one's that ``need``s so much.
    """
    rest = large - small - ADAM_BYTES * need["parameters"] / H100.memory
    arithmetic = 2 * need["training"] * BATCH / max(rest, 1e-9)
    return dataclasses.replace(H100, fixed=small, arithmetic=arithmetic)


BATCH, LEARNING_RATE = 128, 0.001
"""of the reference recipe"""
LARGEST_KNOWN = 8192
"""global batch up to which the linear rule held for ImageNet: Goyal et al. 2017, arXiv:1706.02677, figure 1"""


def exchange_seconds(n: int, size: float, inside: Link, network: Link | None = None, per_node: int = 8) -> float:
    """All-reduce of ``size`` bytes over ``n`` devices.

    A ring in each node sends 2(g-1)/g of it (P. Patarasuk, X. Yuan, J. Parallel Distrib. Comput. 69, 2009, p. 117);
    then each GPU sums its g-th part over the m nodes, with the latency of a tree there and back.
    """
    g = min(n, per_node) if network else n
    m = math.ceil(n / g)
    seconds = 2 * (g - 1) / g * size / inside.bandwidth + 2 * (g - 1) * inside.latency
    if network and m > 1:
        seconds += 2 * (m - 1) / m * size / g / network.bandwidth + 2 * math.ceil(math.log2(m)) * network.latency
    return seconds


@dataclass(frozen=True)
class Step:
    """A training step on paper; seconds."""

    gpus: int
    batch: int
    """global"""
    compute: float
    """arithmetic, optimizer and what is fixed"""
    exchange: float
    exposed: float
    """of the exchange, what nothing hides"""

    @property
    def seconds(self) -> float:
        return self.compute + self.exposed

    @property
    def images_per_second(self) -> float:
        return self.batch / self.seconds


def step(cluster: Cluster, gpus: int, batch: int, *, multiply_adds: float, parameters: float) -> Step:
    """A step over ``batch`` images of so many multiply-adds each, with fp32 gradients of ``parameters``.

    The backward pass, two thirds of the arithmetic, hides the exchange, but for the last bucket.
    """
    arithmetic = 2 * multiply_adds * math.ceil(batch / gpus) / cluster.arithmetic
    optimizer = ADAM_BYTES * parameters / cluster.memory
    size = 4 * parameters
    links = (cluster.inside, cluster.network, cluster.gpus_per_node)
    whole = exchange_seconds(gpus, size, *links) if gpus > 1 else 0.0
    last = exchange_seconds(gpus, min(size, BUCKET_BYTES), *links) if gpus > 1 else 0.0
    exposed = max(whole - arithmetic * 2 / 3, last)
    return Step(gpus, batch, cluster.fixed + arithmetic + optimizer, whole, exposed)


def linear_rate(batch: int) -> float | None:
    """The learning rate grows with the batch (Goyal et al. 2017); None beyond what is known of that rule."""
    return LEARNING_RATE * batch / BATCH if batch <= LARGEST_KNOWN else None


def root_rate(batch: int) -> float:
    """The learning rate grows with its root, as for Adam (S. Malladi et al. 2022, arXiv:2205.10287)."""
    return LEARNING_RATE * math.sqrt(batch / BATCH)


def measured_link(processes: int, seconds: dict[str, float]) -> Link:
    """Latency and bandwidth that explain the times of an all-reduce by its bytes: of the smallest and the largest."""
    sizes = sorted(int(size) for size in seconds)
    small, large = seconds[str(sizes[0])], seconds[str(sizes[-1])]
    steps = 2 * (processes - 1)
    bandwidth = steps / processes * sizes[-1] / max(large - small, 1e-9)
    return Link(bandwidth, small / steps)
