"""Measure the job's training loop against the reference loop, in turn, on this machine.

    python tests/benchmarks/loops.py [--rounds 3] [--processes 1] [--data.source folder --data.root PICTURES ...]

Each round trains three epochs with the one and then with the other; an epoch's images per second count, but for the
first of each. Prints medians and the ratio, and writes them with machine and versions to ``loops.json`` here.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from rich.console import Console
from rich.table import Table

from job import command_line

HERE = Path(__file__).resolve().parent
EPOCHS = 3


def main() -> None:
    """Measure, print, write."""
    options, settings = command_line.take_options(sys.argv[1:], "rounds", "processes", "out")
    settings = settings or ["--data.source=shapes10"]
    rates: dict[str, list[float]] = {"reference loop": [], "rankzero": []}
    for _ in range(int(options["rounds"] or 3)):
        rates["reference loop"] += reference(settings)
        rates["rankzero"] += ours(settings, int(options["processes"] or 1))
    base = statistics.median(rates["reference loop"])
    table = Table(title="SimpleCNN, images per second while training")
    for column in ("loop", "median", "lowest", "highest", "ratio"):
        table.add_column(column, justify="left" if column == "loop" else "right")
    for name, found in rates.items():
        median = statistics.median(found)
        table.add_row(name, *(f"{rate:,.0f}" for rate in (median, min(found), max(found))), f"{median / base:.2f}")
    Console().print(table)
    record = {"machine": machine(), "settings": settings, "images_per_second": rates}
    Path(options["out"] or "loops.json").write_text(json.dumps(record, indent=1) + "\n")


def reference(settings: list[str]) -> list[float]:
    """Images per second of the reference loop's epochs."""
    command = [sys.executable, str(HERE / "reference.py"), *settings, f"--train.epochs={EPOCHS}"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [json.loads(line)["images_per_second"] for line in output[1:EPOCHS]]


def ours(settings: list[str], processes: int) -> list[float]:
    """Images per second of the job's epochs, from the first to the last step of each."""
    with tempfile.TemporaryDirectory() as run:
        script = str(HERE.parents[1] / "job" / "train.py")
        launch = [sys.executable, script]
        if processes > 1:
            launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
            file = str(HERE.parents[1] / "launch" / "cpu.yaml")
            launch = [*launcher, "--config_file", file, "--num_processes", str(processes), script]
        command = [*launch, *settings, f"--train.epochs={EPOCHS}", "--run.log_every=1000000", f"--run.dir={run}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [line["images_per_second"] for line in lines if line["split"] == "train"][1:]


def machine() -> dict[str, Any]:
    """What a figure means nothing without."""
    import torch

    cpu = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "name" in line]
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
