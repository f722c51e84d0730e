"""What checkpoints, fingerprints of weights and the agreement of the ranks cost.

  python tests/benchmarks/checkpoints.py throughput [--repeat 5]  SimpleCNN's, checkpointing every 50 steps and never
  python tests/benchmarks/checkpoints.py stall                    one checkpoint of VGG16 with Adam, 1.6 GB
  python tests/benchmarks/checkpoints.py fingerprint              of SimpleCNN's and VGG16's weights, beside 50 steps
  python tests/benchmarks/checkpoints.py agreement                of two processes, per step
Medians are printed. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist
from torch import Tensor, nn

from job.config.settings import Config, Model
from job.distributed.preemption import Preemption
from job.models import fingerprint, registry
from job.models.fast import form
from job.runs.checkpoint import Checkpoints, State
from job.training import optimizers


def throughput(repeat: int, steps: int = 200) -> None:
    """A training step in memory, with the trainer's own way of saving, alternately with and without."""
    model = registry.build(Model(), classes=10, image_size=32, seed=0).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    images = torch.randn(128, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (128,))

    def rate(store: Checkpoints | None) -> tuple[float, float]:
        """Images a second, by the clock and by the processor's time, which other processes do not stretch."""
        began, used = time.perf_counter(), time.process_time()
        for step in range(1, steps + 1):
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            if store is not None and step % 50 == 0:
                tensors = optimizers.tensors_of(model, optimizer)
                store.save(State(model.state_dict(), tensors, {"step": step, "metrics_bytes": 0}))
        if store is not None:
            store.wait()
        count = steps * len(images)
        return count / (time.perf_counter() - began), count / (time.process_time() - used)

    rate(None)
    without, with_saves = [], []
    for _ in range(repeat):
        without.append(rate(None))
        with tempfile.TemporaryDirectory() as folder:
            with_saves.append(rate(Checkpoints(Path(folder), keep=2, say=print)))
    for i, clock in enumerate(("clock", "processor time")):
        a, b = (statistics.median(rates[i] for rates in runs) for runs in (without, with_saves))
        print(f"SimpleCNN by {clock}: {a:,.0f} images/s without checkpoints, {b:,.0f} with: {1 - b / a:.1%} less")


def stall(repeat: int) -> None:
    """How long training stands still for one checkpoint of VGG16, and how long until it is on the disk."""
    model = registry.build(Model(name="vgg16"), classes=10, image_size=32, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    copying, writing = [], []
    with tempfile.TemporaryDirectory() as folder:
        store = Checkpoints(Path(folder), keep=2, say=print)
        for step in range(1, repeat + 1):
            state = State(
                model.state_dict(), optimizers.tensors_of(model, optimizer), {"step": step, "metrics_bytes": 0}
            )
            began = time.perf_counter()
            store.save(state)
            copying.append(time.perf_counter() - began)
            store.wait()
            writing.append(time.perf_counter() - began)
            error = store.failed()
            if error is not None:
                raise error
        size = sum(path.stat().st_size for path in next(Path(folder).glob("step-*")).iterdir())
    print(f"VGG16 with Adam, {size / 1e9:.2f} GB: training waits {statistics.median(copying):.2f} s in the background,")
    print(f"  {statistics.median(writing):.2f} s if it waited for the disk")


def fingerprints(repeat: int) -> None:
    """Processor time of one fingerprint, and of 50 steps of the network in the form that trains fastest here."""
    for name in ("simple_cnn", "vgg16"):
        settings = Config(model=Model(name=name))
        model = registry.build(settings.model, classes=10, image_size=32, seed=0)
        form.fast(model, settings, image_size=32, device=torch.device("cpu"))
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        images = torch.randn(128, 3, 32, 32).to(memory_format=torch.channels_last)
        labels = torch.randint(10, (128,))

        def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

        works = {
            "step": partial(step, model, optimizer, images, labels),
            "fingerprint": partial(fingerprint.of, model.state_dict()),
        }
        times: dict[str, list[float]] = {what: [] for what in works}
        for _ in range(repeat + 1):
            for what, work in works.items():
                used = time.process_time()
                for _ in range(20 if name == "simple_cnn" else 1):
                    work()
                times[what].append((time.process_time() - used) / (20 if name == "simple_cnn" else 1))
        one, seconds = (statistics.median(times[what][1:]) for what in ("fingerprint", "step"))
        print(f"{name}: {1e3 * one:.2f} ms, of 50 steps' {50e3 * seconds:,.0f} ms {one / seconds / 50:.2%}")


def agreement(rank: int, world_size: int, port: int, steps: int = 3000) -> None:
    """The cost of ``tick`` beside a step that sums a gradient of SimpleCNN's size over two processes."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    group = dist.new_group(backend="gloo")

    def maximum(values: list[int]) -> list[int]:
        tensor = torch.tensor(values)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=group)
        return tensor.tolist()

    preemption = Preemption()
    preemption.attach(stop_file=None, max_minutes=None, end_time=lambda: None, maximum=maximum)
    gradient, work = torch.randn(62_006), torch.randn(400, 400)
    ticking = whole = 0.0
    for _ in range(steps):
        began = time.perf_counter()
        for _ in range(8):  # some 10 ms, as a step of 64 images takes on one core
            work @ work
        dist.all_reduce(gradient)
        between = time.perf_counter()
        preemption.tick()
        ticking += time.perf_counter() - between
        whole += time.perf_counter() - began
    if rank == 0:
        share = f"{ticking / steps * 1e6:.1f} us of a step of {whole / steps * 1e3:.2f} ms"
        print(f"agreement of two processes: {share}, {ticking / whole:.2%}")
    dist.barrier()
    with contextlib.suppress(Exception):
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput", "stall", "fingerprint", "agreement"])
    parser.add_argument("--repeat", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if given.what == "throughput":
        throughput(given.repeat)
    elif given.what == "stall":
        stall(given.repeat)
    elif given.what == "fingerprint":
        fingerprints(given.repeat)
    else:
        torch.multiprocessing.spawn(agreement, (2, 29_600 + os.getpid() % 1000), 2)


if __name__ == "__main__":
    main()
