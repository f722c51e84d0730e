"""Whether another checkout of this program trains the same bits: losses, weights and results of both are compared.

  git worktree add ../before COMMIT
  python tests/benchmarks/same_bits.py ../before --images cifar10-jpeg.tar.xz [--only NAME ...]
``--images`` is what data.root is for data.source "folder": SimpleCNN trains an epoch of it, VGG a few hundred of its
images. Times are left out, and so is what may differ by design: see ``LEFT_OUT``. Exit status 1 when anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from safetensors import safe_open

HERE = Path(__file__).resolve().parents[2]
FEW = {"train": 320, "test": 110}
"""images of the small set, over all classes"""
LEFT_OUT = ("images_per_second", "seconds")
"""keys of metrics lines and results: times"""
VGG = ["--model.name=vgg16", "--train.batch_size=36", "--train.epochs=2", "--optimizer.learning_rate=0.0001"]
CASES: dict[str, tuple[str, int, list[str]]] = {
    "simple_cnn": ("all", 1, []),
    "simple_cnn on 2 processes": ("all", 2, []),
    "simple_cnn on 3 processes": ("all", 3, ["--train.batch_size=126"]),
    "simple_cnn in bf16, augmented": ("few", 1, ["--runtime.precision=bf16", "--data.augment=flip_crop"]),
    "simple_cnn in 4 shards on 2 processes": ("few", 2, ["--train.gradient_shards=4"]),
    "vgg16": ("few", 1, VGG),
    "vgg16 on 2 processes": ("few", 2, VGG),
    "vgg16 on 3 processes": ("few", 3, VGG),
    "vgg16 in 4 shards on 2 processes": ("few", 2, [*VGG, "--train.gradient_shards=4"]),
    "vgg16, sgd, accumulated": ("few", 1, [*VGG, "--optimizer.name=sgd", "--train.gradient_accumulation=2"]),
    "vgg16, features once": ("few", 1, [*VGG, "--model.features_once=true"]),
    "vgg16_bn": ("few", 1, [*VGG, "--model.name=vgg16_bn"]),
    "vgg16_bn on 2 processes": ("few", 2, [*VGG, "--model.name=vgg16_bn"]),
    "vgg16_bn on 3 processes": ("few", 3, [*VGG, "--model.name=vgg16_bn"]),
    "vgg16_bn in 4 shards on 2 processes": ("few", 2, [*VGG, "--model.name=vgg16_bn", "--train.gradient_shards=4"]),
}
"""name to images, processes and options"""


def main() -> int:
    """Compare case by case; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    differing = 0
    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder, "few")
        take_few(options.images, few)
        sets = {"all": options.images.resolve(), "few": few}
        for name in options.only:
            images, processes, words = CASES[name]
            runs = [
                train(checkout, Path(folder, f"{side}-{name}"), sets[images], processes, words, Path(folder, "cache"))
                for side, checkout in (("other", options.other.resolve()), ("this", HERE))
            ]
            problems = differences(*runs)
            differing += bool(problems)
            print(f"{name}: {'; '.join(problems) or 'the same bits'}", flush=True)
    return int(differing > 0)


def take_few(archive: Path, into: Path) -> None:
    """Unpack some images of each class, the same ones each time."""
    with tarfile.open(archive) as tar:
        files = [member for member in tar if member.isreg()]
        for split, count in FEW.items():
            mine = sorted((m for m in files if f"{split}/" in f"/{m.name}"), key=lambda member: member.name)
            for member in random.Random(split).sample(mine, count):
                tar.extract(member, into, filter="data")


def train(checkout: Path, run: Path, images: Path, processes: int, words: list[str], cache: Path) -> Path:
    """One run of ``checkout`` on this machine's CPU, one thread a process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(checkout / "job" / "train.py"), "--train.epochs=1", "--run.trackers=[]"]
    command += ["--data.source=folder", f"--data.root={images}", f"--data.cache={cache}", f"--run.dir={run}"]
    surroundings = os.environ | {
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    surroundings |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [*command, "--runtime.device=cpu", *words],
            env=surroundings | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
        )
        for rank in range(processes)
    ]
    if any(process.wait() for process in started):
        raise RuntimeError(f"{' '.join(command)} failed in {checkout}")
    return run


def differences(before: Path, after: Path) -> list[str]:
    """What differs between two finished runs, in words."""
    problems = []
    lines = [
        [kept(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (before, after)
    ]
    if lines[0] != lines[1]:
        step = next((a["step"] for a, b in zip(*lines, strict=False) if a != b), "the end")
        problems.append(f"metrics.jsonl differs from step {step} on")
    results = [kept(json.loads((run / "evaluation.json").read_text())) for run in (before, after)]
    problems += [f"{key} in evaluation.json differs" for key in results[0] if results[0][key] != results[1].get(key)]
    names = [path.name for path in sorted((before / "checkpoints").iterdir())]
    for name in (
        "model.safetensors",
        *(f"checkpoints/{step}/{file}.safetensors" for step in names for file in ("model", "optimizer")),
    ):
        here, there = digests(before / name), digests(after / name)
        problems += [f"{tensor} in {name} differs" for tensor in here if here[tensor] != there.get(tensor)]
    return problems


def kept(value: Any) -> Any:
    """A record without what ``LEFT_OUT`` names, at any depth."""
    if isinstance(value, dict):
        return {key: kept(inner) for key, inner in value.items() if key not in LEFT_OUT}
    return [kept(inner) for inner in value] if isinstance(value, list) else value


def digests(file: Path) -> dict[str, str]:
    """SHA-256 of the bytes of each tensor in a safetensors file."""
    with safe_open(file, "numpy") as tensors:
        return {name: hashlib.sha256(tensors.get_tensor(name).tobytes()).hexdigest() for name in tensors.keys()}  # noqa: SIM118


if __name__ == "__main__":
    sys.exit(main())
