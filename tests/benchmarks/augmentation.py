"""What each augmentation costs: batches made here, and by torchvision's transforms in worker processes, in turns.

    python tests/benchmarks/augmentation.py [--rounds 5] [--sizes 32,224] [--workers N] [--share 1.0]

Images are noise in memory, so that neither has anything to decode. Prints tables in Markdown, of medians over rounds of
whole epochs, in which all cases take turns. Without workers it is processor time of one thread, the same on a busy
machine; with some it is time by the clock, of all threads here and of so many processes there. --share of the images.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.models import resnet18
from torchvision.transforms import InterpolationMode, v2

from job.config.settings import Data, Train
from job.data.batches import Batches
from job.data.datasets import Split
from job.models.simple_cnn import SimpleCNN

CLASSES = 10
EPOCHS = {32: (128, 5120), 224: (32, 512)}
"""images in a batch and in an epoch, by their size"""
CASES: dict[str, tuple[list[Any], dict[str, float]]] = {
    "none": ([], {}),
    "flip": (["flip"], {}),
    "flip, crop": (["flip", "crop"], {}),
    "resized_crop": (["resized_crop"], {}),
    "rotate": (["rotate"], {}),
    "color": (["color"], {}),
    "erasing": (["erasing"], {}),
    "mixup": ([], {"mixup": 0.2}),
    "cutmix": ([], {"cutmix": 1.0}),
    "flip, resized_crop": (["flip", "resized_crop"], {}),
    "all of them": (["flip", "crop", "resized_crop", "rotate", "color", "erasing"], {"mixup": 0.2, "cutmix": 1.0}),
}


class Items(Dataset[tuple[Tensor, int]]):
    """Images [3, H, W] one by one, transformed."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Tensor], Tensor]) -> None:
        self.images, self.labels, self.transform = images.permute(0, 3, 1, 2), labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


class Mixed:
    """Collates a batch and mixes it within itself, as torchvision's reference does."""

    def __init__(self, train: dict[str, float]) -> None:
        kinds = {"mixup": v2.MixUp, "cutmix": v2.CutMix}
        self.choice = v2.RandomChoice([kinds[name](alpha=alpha, num_classes=CLASSES) for name, alpha in train.items()])

    def __call__(self, items: list[Any]) -> Any:
        return self.choice(*default_collate(items))


def reference(split: Split, names: list[Any], train: dict[str, float], batch: int, workers: int) -> DataLoader[Any]:
    """torchvision's loader: the same changes, image by image, in workers that stay."""
    size = split.image_size
    known = {
        "resized_crop": v2.RandomResizedCrop(size, antialias=True),
        "rotate": v2.RandomRotation(15, InterpolationMode.BILINEAR),
        "crop": v2.RandomCrop(size, size // 8, padding_mode="reflect"),
        "flip": v2.RandomHorizontalFlip(),
        "color": v2.ColorJitter(0.4, 0.4, 0.4),
    }
    steps = [transform for name, transform in known.items() if name in names]
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    steps += [v2.RandomErasing(0.5)] * ("erasing" in names)
    items = Items(split.images, split.labels, v2.Compose(steps))
    collate = Mixed(train) if train else None
    return DataLoader(
        items, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0, collate_fn=collate
    )


def network(size: int) -> nn.Module:
    """What batches of this size are for: SimpleCNN, or a ResNet-18."""
    return SimpleCNN(CLASSES) if size == 32 else resnet18(num_classes=CLASSES)


def learning(split: Split, model: nn.Module, batch: int) -> Iterator[None]:
    """Two steps forward and backward, with plain batches."""
    plain = Batches(split, Data(), torch.device("cpu"), rank=0, world_size=1)
    for rows in torch.arange(2 * batch).split(batch):
        images, labels = plain.fetch(rows)
        yield F.cross_entropy(model(images), labels).backward()


def seconds(work: Callable[[], Iterable[Any]], clock: Callable[[], float]) -> float:
    """That an item of ``work`` takes."""
    began = clock()
    count = sum(1 for _ in work())
    return (clock() - began) / count


def main() -> None:
    """Measure all cases in turns and print the table of each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", default="32,224")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0)
    given = parser.parse_args()
    clock = time.perf_counter if given.workers else time.process_time
    if not given.workers:
        torch.set_num_threads(1)
    for size in map(int, given.sizes.split(",")):
        batch, count = EPOCHS[size]
        count = max(2 * batch, round(count * given.share))
        images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8)
        split = Split(images, torch.arange(count) % CLASSES, torch.arange(count))
        loops: dict[tuple[str, str], Callable[[], Iterable[Any]]] = {
            ("a step", "here"): partial(learning, split, network(size), batch)
        }
        for name, (names, train) in CASES.items():
            loops[name, "here"] = partial(here, split, Data(augment=names), Train(**train), batch)  # type: ignore[arg-type]
            loops[name, "there"] = partial(iter, reference(split, names, train, batch, given.workers))
        times: dict[tuple[str, str], list[float]] = {key: [] for key in loops}
        for number in range(given.rounds + 1):
            for key, loop in loops.items():
                took = seconds(loop, clock)
                times[key] += [took] if number else []  # the first is for warming up
        milliseconds = {key: statistics.median(values) * 1e3 for key, values in times.items()}
        plain, step = milliseconds["none", "here"], milliseconds["a step", "here"]
        what = f"{given.workers} workers, by the clock" if given.workers else "processor time of one core"
        print(
            f"\n{batch} images of {size} pixels, {what}, {given.rounds} rounds; a step of the network: {step:.3g} ms\n"
        )
        print("| `data.augment` | ms a batch | times none | of a step | torchvision's, ms | times here |")
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        for name in CASES:
            own, other = milliseconds[name, "here"], milliseconds[name, "there"]
            share = f"{own / step:.0%}"
            print(f"| {name} | {own:.3g} | {own / plain:.1f} | {share} | {other:.3g} | {other / own:.1f} |", flush=True)


def here(split: Split, data: Data, train: Train, batch: int) -> Iterator[Any]:
    """Batches of an epoch."""
    ours = Batches(split, data, torch.device("cpu"), rank=0, world_size=1, train=train, classes=CLASSES)
    for parts in ours.training(seed=1, epoch=1, start=0, batch_size=batch, parts=1):
        yield ours.fetch(parts[0].rows)


if __name__ == "__main__":
    main()
