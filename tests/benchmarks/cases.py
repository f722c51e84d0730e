"""What is measured: which commands, with which settings, and where in what they leave the figures stand."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
OURS, REFERENCE = "rankzero", "reference loop"
CONTENDERS = ("torchvision style, files", "timm loader, files", "accelerate style, files", "Lightning", "FFCV")
"""of contenders.py; those with files read them in each epoch"""
Values = dict[str, Any]


@dataclass(frozen=True)
class Machine:
    """What there is to measure on, and how much of it to use."""

    cores: int
    gpus: int
    threads: int | None
    """of each process; None: what each program takes by itself"""
    quick: bool
    bf16: bool = True
    """whether it computes in bf16 by itself; emulated, a step of VGG16 takes minutes"""

    @property
    def cuda(self) -> bool:
        return self.gpus > 0

    @property
    def process_counts(self) -> list[int]:
        """2, 4, ... processes, as many as there are devices to run them on."""
        most = self.gpus if self.cuda else self.cores
        counts = [2**k for k in range(1, most.bit_length())]
        return counts[:1] if self.quick else counts


@dataclass(frozen=True)
class Pictures:
    """The settings that name the pictures."""

    whole: list[str]
    """all of them, as the user gave them"""
    files: list[str]
    """some of them, as picture files in a directory"""
    few: list[str]
    """three batches of them, for networks that take seconds a step"""


@dataclass(frozen=True)
class Case:
    """One thing to measure, with one or more commands that run side by side."""

    table: str
    model: str
    precision: str
    loop: str
    commands: Callable[[Path], list[list[str]]]
    """given an empty directory"""
    read: Callable[[Path, list[str]], Values]
    """given that directory and what the commands printed; a sample's values"""
    processes: int = 1
    batch: int = 128
    """global"""
    rounds: int | None = None
    """at most so many samples"""
    environments: list[dict[str, str]] = field(default_factory=lambda: [{}])

    @property
    def name(self) -> str:
        """By which it is chosen and shown."""
        return f"{self.table}: {self.model} {self.precision}, {self.loop}, {self.processes} x {self.batch}"


def all_cases(machine: Machine, pictures: Pictures, python: str) -> list[Case]:
    """All that can be measured on ``machine``; ``python`` has what the contenders need."""
    cases = [*_training(machine, pictures, python), *_processes(machine, pictures), *_starts(machine, pictures)]
    return cases + ([] if machine.quick else list(_whole_job(machine, pictures)))


def _training(machine: Machine, pictures: Pictures, python: str) -> Iterator[Case]:
    for model in ("simple_cnn",) if machine.quick else ("simple_cnn", "vgg16"):
        slow = model == "vgg16" and not machine.cuda
        for precision in ("fp32", "bf16"):
            emulated = precision == "bf16" and not machine.bf16
            if emulated and model == "vgg16":
                continue
            data = pictures.few if slow else pictures.files if emulated else pictures.whole
            told = [*data, f"--model.name={model}", f"--runtime.precision={precision}"]
            epochs = 2 if slow or emulated or machine.quick else 3
            yield _script("training", model, precision, REFERENCE, "reference.py", [*told, f"--train.epochs={epochs}"])
            for label, extra in _ways(machine):
                own = [*told, *extra, f"--train.epochs={10 if machine.cuda else epochs}"]
                yield ours("training", model, precision, f"{OURS}{label}", own, machine)
        if model == "simple_cnn" and not machine.quick:
            for name in CONTENDERS:
                data = pictures.files if "files" in name else pictures.whole
                told = [name, *data, "--train.epochs=2"]
                yield _script("training", model, "fp32", name, "contenders.py", told, python, rounds=2)


def _ways(machine: Machine) -> list[tuple[str, list[str]]]:
    """The job as it comes, and on a GPU its faster settings."""
    free, graphs = "--train.deterministic=false", "--runtime.compile=graphs"
    return [("", [])] + (
        [
            (", CUDA graphs", [graphs]),
            (", not deterministic", [free]),
            (", not deterministic, compiled", [free, "--runtime.compile=default"]),
            (", not deterministic, CUDA graphs", [free, graphs]),
        ]
        if machine.cuda
        else []
    )


def _processes(machine: Machine, pictures: Pictures) -> Iterator[Case]:
    """The same work on several processes, and beside it without any exchange: as many jobs that know of no other."""
    for model in ("simple_cnn",) if machine.quick or not machine.process_counts else ("simple_cnn", "vgg16"):
        slow = model == "vgg16" and not machine.cuda
        few, rounds = slow or machine.quick, 2 if slow else None
        told = [*(pictures.few if slow else pictures.whole), f"--model.name={model}"]
        told += [f"--train.epochs={2 if few else 10 if machine.cuda else 3}"]
        if not machine.cuda and not slow:
            threads = ["--runtime.threads=1"]
            yield ours("processes", model, "fp32", "one thread", [*told, *threads], machine)
        for n in machine.process_counts:
            for growth, batch in (("strong", 128), ("weak", 128 * n)):
                if growth == "weak" and few:
                    continue
                own = [*told, f"--train.batch_size={batch}"]
                yield ours("processes", model, "fp32", growth, own, machine, processes=n, batch=batch, rounds=rounds)
                alone = [*told, f"--train.batch_size={batch // n}"]
                yield _side_by_side(f"{growth}, no exchange", model, alone, machine, n, batch, rounds)


def _starts(machine: Machine, pictures: Pictures) -> Iterator[Case]:
    told = [*pictures.whole, "--train.epochs=20"]
    watched = [sys.executable, str(HERE / "stopwatch.py")]
    ways = [("python job/train.py", watched), ("accelerate launch", [*_launcher(1, machine), watched[1]])]
    for label, command in ways[: 1 if machine.quick else 2]:
        yield Case(
            "start-up",
            "simple_cnn",
            "fp32",
            label,
            commands=lambda run, command=command: [[*command, *told, f"--run.dir={run}"]],  # type: ignore[misc]
            read=lambda _, said: _last(said[0]),
        )
    if machine.quick:
        return
    yield _script("start-up", "simple_cnn", "fp32", REFERENCE, "reference.py", [*told, "--train.epochs=1"])
    data = pictures.whole if machine.cuda else pictures.few
    if machine.cuda:
        yield Case(
            "start-up",
            "vgg16",
            "fp32",
            "python job/train.py",
            commands=lambda run: [[*watched, *data, "--model.name=vgg16", "--train.epochs=20", f"--run.dir={run}"]],
            read=lambda _, said: _last(said[0]),
        )


def _whole_job(machine: Machine, pictures: Pictures) -> Iterator[Case]:
    told = [*pictures.whole, "--train.epochs=10"]
    yield _script("whole job", "simple_cnn", "fp32", REFERENCE, "reference.py", told, rounds=2)
    yield ours("whole job", "simple_cnn", "fp32", OURS, told, machine, rounds=2)


def _script(
    table: str,
    model: str,
    precision: str,
    loop: str,
    script: str,
    told: list[str],
    python: str = sys.executable,
    rounds: int | None = None,
) -> Case:
    command = [python, str(HERE / script), *told]
    return Case(table, model, precision, loop, lambda _: [command], lambda _, said: _printed(said[0]), rounds=rounds)


def ours(
    table: str,
    model: str,
    precision: str,
    loop: str,
    told: list[str],
    machine: Machine,
    *,
    processes: int = 1,
    batch: int = 128,
    rounds: int | None = None,
    log_every: int = 1_000_000,
) -> Case:
    """The job itself, as a user starts it, read from its run directory. One training line an epoch unless told."""
    start = _launcher(processes, machine) if processes > 1 else [sys.executable]
    command = [*start, str(REPOSITORY / "job" / "train.py"), *told, f"--run.log_every={log_every}"]

    def commands(run: Path) -> list[list[str]]:
        return [[*command, f"--run.dir={run}"]]

    return Case(table, model, precision, loop, commands, lambda run, _: _of_run(run), processes, batch, rounds)


def _side_by_side(
    loop: str, model: str, told: list[str], machine: Machine, n: int, batch: int, rounds: int | None
) -> Case:
    """``n`` jobs at once that share the machine and nothing else."""
    command = [sys.executable, str(REPOSITORY / "job" / "train.py"), *told, "--run.log_every=1000000"]
    if machine.cuda:
        environments = [{"CUDA_VISIBLE_DEVICES": str(i)} for i in range(n)]
    else:
        environments = [{"OMP_NUM_THREADS": str(max(1, machine.cores // n))}] * n

    def commands(run: Path) -> list[list[str]]:
        return [[*command, f"--run.dir={run / str(i)}"] for i in range(n)]

    def read(run: Path, _: list[str]) -> Values:
        each = [_of_run(run / str(i))["images_per_second"] for i in range(n)]
        return {"images_per_second": [sum(rates) for rates in zip(*each, strict=True)]}

    return Case("processes", model, "fp32", loop, commands, read, n, batch, rounds, environments)


def _launcher(processes: int, machine: Machine) -> list[str]:
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    if processes == 1:
        return launch
    file = "multi_gpu.yaml" if machine.cuda else "cpu.yaml"
    return [*launch, "--config_file", str(REPOSITORY / "launch" / file), "--num_processes", str(processes)]


def _of_run(run: Path) -> Values:
    """What a run directory says; the first epoch, in which everything is met for the first time, is left out."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    test = json.loads((run / "evaluation.json").read_text())
    rates = [line["images_per_second"] for line in lines if line["split"] == "train"]
    validations = [line for line in lines if line["split"] == "validation"]
    return {
        "images_per_second": rates[1:],
        "validation_seconds": [line["seconds"] for line in validations[1:] if "accuracy" in line],
        "losses": [line["train_loss"] for line in validations],
        "accuracy": test["accuracy"],
    }


def _printed(text: str) -> Values:
    """What a loop printed, in the same form."""
    lines = _json_lines(text)
    found: Values = {"missing": next((line["missing"] for line in lines if "missing" in line), None)}
    for key in ("accuracy", "first_step", "peak_device_bytes"):
        found[key] = next((line[key] for line in lines if key in line), None)
    epochs = [line for line in lines if "images_per_second" in line]
    found["images_per_second"] = [line["images_per_second"] for line in epochs[1:]]
    validations = [line["validation_seconds"] for line in lines if "validation_seconds" in line]
    found["validation_seconds"] = validations[1:]
    found["losses"] = [line["loss"] for line in epochs if "loss" in line]
    return found


def _json_lines(text: str) -> list[Values]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def _last(text: str) -> Values:
    return _json_lines(text)[-1]


def environment(machine: Machine) -> dict[str, str]:
    """This process's, without what a launcher or a cluster may have left; threads as they were asked for."""
    drop = ("RANK", "LOCAL_", "WORLD_SIZE", "ACCELERATE_", "SLURM_", "RANKZERO_", "TORCHELASTIC", "OMP_NUM_THREADS")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(drop)}
    return kept | ({"OMP_NUM_THREADS": str(machine.threads)} if machine.threads else {})
