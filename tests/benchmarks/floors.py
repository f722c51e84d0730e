"""What the machine can do and what a step needs: the time that no program can go below.

    python tests/benchmarks/floors.py machine [--seconds 1]       matrix rates, memory bandwidth; the networks' needs
    python tests/benchmarks/floors.py exchange [--processes 2]    all-reduce over sizes

Each prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import torch
import torch.multiprocessing as mp
from reference import network
from torch import Tensor, nn
from torch.nn import functional as F

from job.config.settings import Runtime
from job.distributed import cores
from job.distributed.group import start
from job.training.ranks.exchange import add_in_order
from job.training.ranks.shared_memory import SharedRows


def machine(seconds: float) -> dict[str, float | str]:
    """Best rates seen: fp32, tf32 and bf16 operations/s, and bytes/s of a copy, read and written.

    Of products and of convolutions: two libraries compute them, and on some CPUs one is twice as fast as the other.
    """
    cuda = torch.cuda.is_available()
    device, size = ("cuda", 8192) if cuda else ("cpu", 1024 if seconds >= 1 else 256)
    found: dict[str, float | str] = {"device": device, "threads": torch.get_num_threads()}
    kinds = [("fp32", torch.float32, "highest"), ("bf16", torch.bfloat16, "highest")]
    for name, dtype, precision in [*kinds, ("tf32", torch.float32, "high")][: 3 if cuda else 2]:
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        product = 2 * size**3 / _best(partial(torch.mm, a, b, out=out), seconds)
        images, channels = (1024, 256) if cuda else (128, 128) if seconds >= 1 else (16, 64)
        x = torch.randn(images, channels, 16, 16, device=device).to(dtype, memory_format=torch.channels_last)
        w = torch.randn(channels, channels, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
        operations = 2 * x.numel() * w[0].numel()
        with torch.no_grad():
            found[name] = max(product, operations / _best(partial(F.conv2d, x, w, padding=1), seconds))
    source = torch.ones(2**30 if cuda else 2**26, device=device)  # 4 GB, 256 MB: far more than caches hold
    target = torch.empty_like(source)
    found["bandwidth"] = 2 * source.nbytes / _best(lambda: target.copy_(source), seconds)
    return found


def _best(work: Callable[[], object], seconds: float) -> float:
    """The shortest time of one ``work`` within so many seconds, at least three times."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times)


def needs() -> dict[str, dict[str, float]]:
    """For each network at 32 x 32 and ten classes what one image and one step take.

    ``forward`` and ``training``: multiply-adds of convolutions and linear layers for an image; training adds a product
    of the same size for each weight's gradient and for each input's, but the pictures'. ``activations``: bytes of these
    layers' outputs in fp32. ``parameters``: weights and biases. ``vgg16 without its repetition`` has the first linear
    layer at 512 inputs: at this size the other 48 copies of each see the same values.
    """
    with torch.device("meta"):  # shapes are enough
        found = {name: _count(network(name, 10)) for name in ("simple_cnn", "vgg16")}
    collapsed = dict(found["vgg16"])
    less = 48 * 512 * 4096
    for key, times in (("forward", 1), ("training", 3), ("parameters", 1)):
        collapsed[key] -= times * less
    found["vgg16 without its repetition"] = collapsed
    return found


def _count(model: nn.Module) -> dict[str, float]:
    forward = inputs = outputs = 0

    def seen(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal forward, inputs, outputs
        products = output.numel() * layer.weight[0].numel()  # type: ignore[index]
        inputs += 0 if forward == 0 else products  # nobody asks for the pictures' gradient
        forward += products
        outputs += output.numel()

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(seen)
    model.eval()
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    return {
        "forward": forward,
        "training": 2 * forward + inputs,
        "activations": 4 * outputs,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


ADAM_BYTES = 28
"""for each fp32 parameter a step of Adam reads weight, gradient and two moments and writes all but the gradient"""
PICTURE_BYTES = 32 * 32 * 3


def step_seconds(need: dict[str, float], rates: dict[str, Any], *, precision: str, batch: int) -> dict[str, float]:
    """The least time of a training step of ``batch`` images, by its arithmetic and by its bytes.

    Bytes: each picture read once, each output of a layer written once and read once in the backward pass, and Adam's.
    Caches may hold some of that; a step can take less than its bytes say, but not less than its arithmetic.
    """
    # A loop may compute in the wider type where the narrow one is emulated, and slower.
    kinds = ("fp32", "tf32", "bf16") if precision == "bf16" else ("fp32", "tf32")
    rate = max(rates[kind] for kind in kinds if kind in rates)
    width = 2 if precision == "bf16" else 4
    moved = batch * (PICTURE_BYTES + 2 * need["activations"] * width / 4) + ADAM_BYTES * need["parameters"]
    return {"arithmetic": 2 * need["training"] * batch / rate, "memory": moved / rates["bandwidth"]}


def exchange(processes: int, seconds: float) -> dict[str, Any]:
    """Median seconds of an all-reduce by its bytes, over ``processes`` processes here, as the job does it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_exchange, (processes, port, seconds, results), processes)
    return {
        "processes": processes,
        "backend": "nccl" if torch.cuda.is_available() else "shared memory",
        "seconds": results.get(),
    }


def _exchange(rank: int, processes: int, port: int, seconds: float, results: Any) -> None:
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ |= {key: str(value) for key, value in group.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    group = start(Runtime(threads=1), deterministic=True)
    cores.keep_to_own(group)
    found: dict[int, float] = {}
    # Nothing; SimpleCNN; more; VGG16, each input once.
    for count in (2, 62_006, 1_000_000, 33_638_218)[: 4 if seconds >= 1 else 3]:
        tensor = torch.zeros(count, device=group.device)
        shared = None if group.device.type == "cuda" else SharedRows(group, 1, count, patience=60)
        times: list[float] = []
        # A number that all processes know, so that none waits for an exchange which the others do not begin.
        enough = max(5, min(300 if seconds >= 1 else 50, int(20_000_000 / count)))
        for turn in range(enough):
            began = time.perf_counter()
            if shared:
                shared.own[turn % 2].copy_(tensor)
                add_in_order(shared.all(turn % 2), tensor)
            else:
                group.sum(tensor)
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        found[tensor.nbytes] = statistics.median(times)
    if rank == 0:
        results.put(found)
    group.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["machine", "exchange"])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    if given.what == "machine":
        print(json.dumps({"rates": machine(given.seconds), "needs": needs()}))
    else:
        print(json.dumps(exchange(given.processes, given.seconds)))


if __name__ == "__main__":
    main()
