"""Measure the job on this machine, against the reference loop, other libraries and the machine's own limits.

    python tests/benchmarks/run.py [--data.source folder --data.root PICTURES ...]

Cases take turns for some rounds, each sample a process of its own, begun as a user begins it. A sample during which
others kept the machine busy is marked and left out. Prints tables and writes them as docs/performance.md, and all
samples as docs/performance.json, or where --out says. About 25 minutes on two CPU cores; nothing is asserted.

  --rounds N          samples of each case (default 3)
  --only PATTERN      cases whose name matches this regular expression; --list prints the names
  --quick             one small sample of what matters most
  --threads N         of each single process; default: what each program takes by itself
  --contenders PYTHON an interpreter that has lightning, timm and ffcv; default: this one; what it lacks is left out
  --out FILE          the record; the page stands beside it, with .md for .json
What else is given are settings of the job, such as the pictures; default: the embedded data set.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import cases
import page
import sampling
from cases import Case, Machine, Pictures
from sampling import CommandError

from job.config import command_line
from job.config.settings import Train


def main() -> None:
    """Measure, print, write."""
    options, settings = _arguments()
    gpus = _gpus()
    bf16 = gpus > 0 or bool({"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"} & _cpu()[1])
    machine = Machine(len(os.sched_getaffinity(0)), gpus, options.threads, options.quick, bf16)
    rounds = 1 if options.quick else options.rounds
    record: dict[str, Any] = {
        "when": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": _describe(machine),
        "settings": [word for word in _joined(settings) if not word.startswith(("--data.root", "--data.cache"))],
        "rounds": rounds,
        "quick": options.quick,
        "samples": [],
        "floors": [],
        "left_out": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        pictures = _pictures(settings, Path(scratch), record, machine)
        chosen = [c for c in cases.all_cases(machine, pictures, options.contenders) if re.search(options.only, c.name)]
        if options.list:
            print("\n".join(case.name for case in chosen))
            return
        for turn in range(rounds):
            _floors(machine, record, options.only)
            for case in chosen if turn % 2 == 0 else reversed(chosen):  # what drifts meets each from both sides
                if turn < (case.rounds or rounds) and case.name not in record["left_out"]:
                    _sample(case, machine, turn, record)
            _write(record, options.out)
        if re.search(options.only, "exactness"):
            _exactness(machine, pictures, record)
    _write(record, options.out)
    print(options.out.with_suffix(".md").read_text())


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--contenders", default=sys.executable)
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "docs" / "performance.json")
    options, settings = parser.parse_known_args()
    return options, settings or ["--data.source=shapes10"]


def _sample(case: Case, machine: Machine, turn: int, record: dict[str, Any]) -> None:
    """Take one, and say how it went."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        commands = case.commands(run)
        environments = [cases.environment(machine) | extra for extra in case.environments]
        try:
            taken = sampling.take(commands, environments)
            values = case.read(run, taken.outputs)
        except (CommandError, OSError, LookupError, ValueError) as error:
            record["left_out"][case.name] = "failed"  # what it said may name places on this machine
            print(f"{case.name}: left out: {error}", flush=True)
            return
    if values.get("missing"):
        record["left_out"][case.name] = f"{values['missing']} is not installed"
        print(f"{case.name}: left out: {values['missing']} is not installed", flush=True)
        return
    what = dataclasses.asdict(dataclasses.replace(case, environments=[]))
    kept = {key: what[key] for key in ("table", "model", "precision", "loop", "processes", "batch")}
    if values.get("first_step"):
        values["first_step"] -= taken.began
    used = {
        "wall_seconds": round(taken.wall_seconds, 3),
        "cpu_seconds": round(taken.cpu_seconds, 3),
        "peak_host_bytes": taken.peak_bytes,
        "foreign_cores": None if taken.foreign_cores is None else round(taken.foreign_cores, 3),
        "load_before": round(taken.load_before, 2),
        "noisy": taken.noisy,
    }
    record["samples"].append({**kept, "round": turn + 1, **used, "values": values})
    rates = values.get("images_per_second")
    rate = f"{statistics.median(rates):,.0f} images/s, " if rates else ""
    noise = f"; not counted: others used {taken.foreign_cores:.2f} cores" if taken.noisy else ""
    print(f"{case.name}: {rate}{taken.wall_seconds:.1f} s{noise}", flush=True)


def _floors(machine: Machine, record: dict[str, Any], only: str) -> None:
    """What the machine does at best, measured in every round, and what the networks need."""
    few = ["--seconds=0.2"] if machine.quick else []
    script = [sys.executable, str(HERE / "floors.py")]
    found = {}
    if re.search(only, "floors: machine"):
        taken = sampling.take([[*script, "machine", *few]], [cases.environment(machine)])
        said = json.loads(taken.outputs[0])
        found["machine"], record["needs"] = said["rates"], said["needs"]
    for n in machine.process_counts:
        if re.search(only, f"floors: exchange {n}"):
            taken = sampling.take([[*script, "exchange", f"--processes={n}", *few]], [cases.environment(machine)])
            found[f"exchange {n}"] = json.loads(taken.outputs[0])
    if found:
        record["floors"].append(found)


def _exactness(machine: Machine, pictures: Pictures, record: dict[str, Any]) -> None:
    """The job's first epoch in fp32 beside a plain loop's over the same batches."""
    record["exactness"] = {}
    for model, data in [("simple_cnn", pictures.whole)] + ([] if machine.quick else [("vgg16", pictures.few)]):
        told = [*data, f"--model.name={model}", "--train.epochs=1"]
        own = cases.ours("exactness", model, "fp32", cases.OURS, told, machine, log_every=1)
        plain = [sys.executable, str(HERE / "exactness.py"), *told]
        try:
            with tempfile.TemporaryDirectory() as folder:
                run = Path(folder, "run")
                sampling.take(own.commands(run), [cases.environment(machine)])
                lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
                losses = [line["loss"] for line in lines if line["split"] == "train"]
                accuracy = json.loads((run / "evaluation.json").read_text())["accuracy"]
            said = json.loads(sampling.take([plain], [cases.environment(machine)]).outputs[0])
        except CommandError as error:
            record["left_out"][f"exactness: {model}"] = "failed"
            print(f"exactness: {model}: left out: {error}", flush=True)
            continue
        record["exactness"][model] = {
            "losses": [losses, said["losses"]],
            "accuracy": [accuracy, said["accuracy"]],
        }


def _pictures(settings: list[str], scratch: Path, record: dict[str, Any], machine: Machine) -> Pictures:
    """The settings for all pictures, and for smaller sets of the same ones that are written as files."""
    from PIL import Image

    from job.data import datasets

    data = command_line.parse(settings, description="").data
    dataset = datasets.load(data, Train().seed, log=lambda _: None)
    sizes = {name: len(getattr(dataset, name)) for name in ("train", "validation", "test")}
    record["data"] = {"source": data.source, **sizes, "classes": len(dataset.classes)}
    found = {}
    for name, counts in {"files": (12 if machine.quick else 50, 5), "few": (3, 1)}.items():
        for part, split, batches in zip(("train", "test"), (dataset.train, dataset.test), counts, strict=True):
            for label in dataset.classes:  # all of them, so that class numbers are the same
                (scratch / name / part / label).mkdir(parents=True)
            count = min(len(split), 128 * batches)
            for row in split.indices[:: len(split) // count][:count].tolist():  # from end to end: some of each class
                file = scratch / name / part / dataset.classes[int(split.labels[row])] / f"{row:05}.jpg"
                Image.fromarray(split.images[row].numpy()).save(file, quality=95)
        cache = f"--data.cache={scratch / 'cache'}"
        found[name] = ["--data.source=folder", f"--data.root={scratch / name}", cache, "--data.validation=0"]
    other = [word for word in _joined(settings) if not word.startswith("--data.")]
    # A checkpoint of VGG16 is written for longer than the next epoch of so few pictures takes.
    few = [*found["few"], *other, "--checkpoint.every_epochs=null"]
    return Pictures(settings, [*found["files"], *other], few)


def _joined(settings: list[str]) -> list[str]:
    """``--key=value`` for each ``--key value``."""
    words: list[str] = []
    for word in settings:
        if word.startswith("--") or not words:
            words.append(word)
        else:
            words[-1] += f"={word}"
    return words


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _cpu() -> tuple[str, set[str]]:
    """Its name, and what it can do."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    name = values.get("model name") or platform.processor() or platform.machine()
    return name, set(values.get("flags", values.get("Features", "")).split())


def _describe(machine: Machine) -> dict[str, Any]:
    """What a figure means nothing without."""
    import torch

    cpu, features = _cpu()
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16")
    git = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "cpu": cpu,
        "cores": machine.cores,
        "cpu_features": [name for name in wanted if name in features],
        "bf16": machine.bf16,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [torch.cuda.get_device_name(i) for i in range(machine.gpus)],
        "threads": machine.threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "accelerate": version("accelerate"),
        "cuda": torch.version.cuda if machine.cuda else None,
        "commit": commit or None,
    }


def _write(record: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page.to_json(record))
    page.write([record], out.with_suffix(".md"))


if __name__ == "__main__":
    main()
