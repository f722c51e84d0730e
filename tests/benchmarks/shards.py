"""What gradient shards cost: steps in N shards and steps without, in turns.

    python tests/benchmarks/shards.py [--networks simple_cnn,vgg16,vgg16_bn] [--precisions fp32,bf16] [--shards 4,8]
        [--processes 1,2] [--rounds 20] [--batch 128]

Images are noise. Prints a table in Markdown: medians over rounds of processor time of a step, one thread a process, on
the process that takes the longest; waiting costs no processor time, so that a busy machine changes little.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import torch

from job.config.settings import Config, Model, Runtime, Train
from job.data.batches import Batches
from job.data.datasets import Dataset, Split
from job.distributed.group import Group, start
from job.models import frozen, registry
from job.models.fast import form
from job.training.choices import choose
from job.training.step import Step


def steps(settings: Config, group: Group) -> Iterator[None]:
    """One step after the other."""
    count = settings.train.batch_size
    images = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8)
    split = Split(images, torch.arange(count) % 10, torch.arange(count))
    dataset = Dataset("noise", tuple("abcdefghij"), split, split, split, "")
    model = registry.build(settings.model, classes=10, image_size=32, seed=1)
    form.fast(model, settings, image_size=32, device=group.device)
    frozen.freeze(model, settings)
    batches = Batches(split, settings.data, group.device, rank=group.rank, world_size=group.world_size)
    step = Step(settings, model, batches, group, choose(settings, model, dataset, group), print)
    for number in range(10_000):
        for parts in batches.training(
            seed=1, epoch=1, start=0, batch_size=count, parts=settings.parts(group.world_size)
        ):
            step(parts, number, 0.001)
            yield


def measure(rank: int, given: dict[str, Any], processes: int, port: int, out: str) -> None:
    """What one process does: times of each round [rounds, 1 + shards], to a file of its own."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ |= {key: str(value) for key, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    runtime = Runtime(device="cpu", threads=1, precision=given["precision"])
    group = start(runtime, deterministic=True, static_graph=True)
    loops = [
        steps(
            Config(
                model=Model(name=given["network"]),
                train=Train(batch_size=given["batch"], gradient_shards=shards),
                runtime=runtime,
            ),
            group,
        )
        for shards in (None, *given["shards"])
    ]
    rounds = []
    for _ in range(given["rounds"] + 2):
        rounds.append([])
        for loop in loops:
            began = time.process_time()
            next(loop)
            rounds[-1].append(time.process_time() - began)
    Path(out, str(rank)).write_text(json.dumps(rounds[2:]))  # the first are for warming up
    group.close()


def medians(given: dict[str, Any], processes: int) -> list[float]:
    """Seconds of a step without shards, and with each number of them."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as out:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        context = multiprocessing.get_context("spawn")
        started = [context.Process(target=measure, args=(i, given, processes, port, out)) for i in range(processes)]
        for process in started:
            process.start()
        for process in started:
            process.join()
        ranks = [json.loads(Path(out, str(i)).read_text()) for i in range(processes)]
    longest = [[max(times) for times in zip(*rounds, strict=True)] for rounds in zip(*ranks, strict=True)]
    return [statistics.median(times) for times in zip(*longest, strict=True)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = functools.partial(str.split, sep=",")
    parser.add_argument("--networks", type=words, default=["simple_cnn", "vgg16", "vgg16_bn"])
    parser.add_argument("--precisions", type=words, default=["fp32", "bf16"])
    parser.add_argument("--shards", type=words, default=["4", "8"])
    parser.add_argument("--processes", type=words, default=["1", "2"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    shards = [int(count) for count in options.shards]
    print(" | ".join(["| network", "precision", "processes", "none, ms", *(f"{n} shards" for n in shards)]), "|")
    print("| --- | --- | ---: | ---: |" + " ---: |" * len(shards))
    for network in options.networks:
        for precision in options.precisions:
            for processes in options.processes:
                given = {"network": network, "precision": precision, "shards": shards}
                given |= {"rounds": options.rounds, "batch": options.batch}
                none, *others = medians(given, int(processes))
                more = [f"+{seconds / none - 1:.0%}" for seconds in others]
                print(" | ".join([f"| {network}", precision, processes, f"{none * 1e3:,.1f}", *more]), "|", flush=True)


if __name__ == "__main__":
    main()
