"""Everything short of training, checked on the real configuration: what else would fail after an hour in the queue.

  python job/train.py --check [--nodes N] [--gpus-per-node M] [--config FILE] [--key.sub value ...]
  sbatch slurm/vgg16.sh --check [...]                            # the same, on the nodes themselves
On the login node say which shape the job will have; inside an allocation Slurm says it.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from job.config import command_line
from job.config.errors import BAD_INPUT, UserError, first_line
from job.config.settings import REPOSITORY, Config
from job.distributed import launcher
from job.models.footprint import checkpoint_bytes, memory_bytes, readable
from job.runs.directory import choose

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from job.data.datasets import Dataset

SIGNAL_MARGIN = 30
"""seconds beside two saves that a job wants between the warning and the end, for the step it is in and for Slurm"""


@dataclass(frozen=True)
class Shape:
    """How many processes a job will have."""

    nodes: int
    processes: int
    """on each node"""
    gpus: int
    """on each node; 0: the processes compute on CPUs"""

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    verdict: Literal["ok", "note", "problem"]
    detail: str


def main(argv: Sequence[str]) -> int:
    """Print the table and the verdict; 0 when the job can be submitted, else 2."""
    options, rest = command_line.take_options(argv, "nodes", "gpus-per-node")
    if launcher.launch_rank() != 0:  # `sbatch slurm/vgg16.sh --check` starts all ranks; one of them looks
        return 0
    settings = command_line.parse(rest, description=__doc__ or "")
    shape = read_shape(options["nodes"], options["gpus_per_node"])
    name = command_line.config_name(rest)
    asked = [f"--{option.replace('_', '-')}={value}" for option, value in options.items() if value is not None]
    checks = preflight(settings, shape, name)
    if shutil.which("sbatch") and not launcher.under_slurm():
        checks.append(_guarded("Slurm", lambda: _request(asked, name)))

    from rich.console import Console

    console = Console(highlight=False, width=None if os.isatty(1) else 120)
    console.print(table(checks, f"{name} with {shape.nodes} x {shape.processes} processes"))
    problems = sum(check.verdict == "problem" for check in checks)
    console.print(f"not ready: {problems} problem{'s' * (problems > 1)} to mend" if problems else "ready to submit")
    return BAD_INPUT if problems else 0


def read_shape(nodes: str | None, gpus_per_node: str | None) -> Shape:
    """The shape asked for, else the allocation's, else this machine's."""
    import torch

    def number(option: str, given: str | None, otherwise: int) -> int:
        if given is None:
            return otherwise
        if not given.isdigit():
            raise UserError(f"--{option} {given}", "must be a whole number")
        return int(given)

    given = launcher.allocation()
    gpus = number("gpus-per-node", gpus_per_node, given.gpus or torch.cuda.device_count())
    shape = Shape(
        nodes=number("nodes", nodes, given.nodes or 1),
        processes=(given.local_world_size if gpus_per_node is None else None) or max(1, gpus),
        gpus=gpus,
    )
    if shape.nodes < 1:
        raise UserError(f"--nodes {nodes}", "must be at least 1")
    return shape


def preflight(settings: Config, shape: Shape, name: str) -> list[Check]:
    """Every check, in the order in which a job would meet them. ``name`` is the configuration's."""
    checks = [_guarded("software", _software), _guarded("processes", lambda: _processes(settings, shape))]
    dataset: Dataset | None = None
    model: nn.Module | None = None

    def load() -> str:
        nonlocal dataset
        from job.data import datasets

        offline = dataclasses.replace(settings.data, download=False)
        dataset = datasets.load(offline, settings.train.seed, log=lambda line: None)
        return f"{dataset}, verified"

    def build() -> str:
        nonlocal model
        import torch

        from job.models import registry, weights
        from job.models.fast import form

        classes, size = (len(dataset.classes), dataset.image_size) if dataset else (10, 32)
        model = registry.build(settings.model, classes=classes, image_size=size, seed=settings.train.seed)
        weights.pretrained(settings.model, model, download=False)
        source = settings.model.weights or "random"
        device = "cuda" if shape.gpus and settings.runtime.device != "cpu" else "cpu"
        form.fast(model, settings, image_size=size, device=torch.device(device))
        return f"{settings.model.name}, {registry.count_parameters(model):,} parameters, weights: {source}"

    checks += [_guarded("data", load), _guarded("model", build)]
    if dataset is not None:
        checks.append(_guarded("plan", lambda: _plan(settings, shape, len(dataset.train))))
    if model is not None:
        size = checkpoint_bytes(settings, model)
        image_size = dataset.image_size if dataset else 32
        checks.append(_guarded("memory", lambda: _memory(settings, shape, model, image_size)))
        checks.append(_guarded("run directory", lambda: _directory(settings, name, size)))
        checks.append(_guarded("time to save", lambda: _save_time(settings, name, size)))
    return checks


def table(checks: Sequence[Check], title: str) -> Table:
    """The checks as a table."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=title, title_justify="left", title_style="bold")
    for column in ("check", "verdict", "what was found"):
        shown.add_column(column)
    styles = {"ok": "green", "note": "yellow", "problem": "red"}
    for check in checks:
        shown.add_row(check.name, Text(check.verdict, style=styles[check.verdict]), Text(check.detail))
    return shown


def _guarded(name: str, work: Callable[[], str | Check]) -> Check:
    try:
        found = work()
    except UserError as error:
        return Check(name, "problem", str(error))
    return found if isinstance(found, Check) else Check(name, "ok", found)


def _software() -> str:
    import accelerate
    import torch

    versions = f"torch {torch.__version__}, accelerate {accelerate.__version__}"
    try:
        import torchvision
        from torchvision.ops import nms

        nms(torch.zeros(1, 4), torch.zeros(1), 0.5)  # an operator that is compiled against torch
    except (ImportError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"torchvision does not fit {versions} ({first_line(error)})", "install both anew, from one index"
        ) from None
    return f"{versions}, torchvision {torchvision.__version__}"


def _processes(settings: Config, shape: Shape) -> str:
    import torch

    settings.parts(shape.world_size)
    asked = launcher.allocation().world_size
    if asked is not None and asked != shape.world_size:
        raise UserError(
            f"the launch has {asked} processes and the allocation room for {shape.world_size}",
            "launch through slurm/*.sh, which counts them",
        )
    if launcher.under_slurm() and shape.gpus > torch.cuda.device_count() and settings.runtime.device != "cpu":
        raise UserError(
            f"{shape.gpus} GPUs are allocated on this node and torch sees {torch.cuda.device_count()}",
            "check nvidia-smi and that torch is a CUDA build, or give --runtime.device cpu",
        )
    kind = "GPU" if shape.gpus and settings.runtime.device != "cpu" else "CPU"
    batch = settings.train.batch_size
    return f"{shape.world_size} on {kind}s, {batch // shape.world_size} of the global batch of {batch} each"


def _plan(settings: Config, shape: Shape, images: int) -> str:
    from job.training.optimizers import learning_rate

    steps = math.ceil(images / settings.train.batch_size)
    rate = learning_rate(settings, 0, steps)
    peak = settings.optimizer.learning_rate
    rates = f"{rate:g}" if rate == peak else f"from {rate:g} to {peak:g}"
    return (
        f"{settings.train.epochs} epochs of {steps:,} steps, {settings.optimizer.name}, learning rate {rates}"
        " whatever the number of processes"
    )


def _memory(settings: Config, shape: Shape, model: nn.Module, image_size: int) -> Check:
    import torch

    images = settings.train.batch_size // shape.world_size // settings.train.gradient_accumulation
    parts = memory_bytes(settings, model, max(1, images), image_size)
    total = sum(parts.values())
    detail = f"about {readable(total)} a process: " + ", ".join(f"{k} {readable(v)}" for k, v in parts.items() if v)
    if not (shape.gpus and torch.cuda.is_available()):
        return Check("memory", "ok", detail)
    room = torch.cuda.get_device_properties(0).total_memory
    if total > room:
        mend = "lower train.batch_size, raise train.gradient_accumulation, or use more processes"
        return Check("memory", "problem", f"{detail}; the device has {readable(room)}: {mend}")
    return Check("memory", "note" if total > 0.8 * room else "ok", f"{detail}; the device has {readable(room)}")


def _directory(settings: Config, name: str, size: int) -> Check:
    path = choose(settings.run.dir, launcher.run_name(name), same_job=True)
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{existing} cannot be written", "name another run directory with --run.dir")
    free = shutil.disk_usage(existing).free
    # One more than are kept while the newest is written, and the final weights.
    needed = (settings.checkpoint.keep + 2) * size
    detail = (
        f"{path}: {readable(free)} free, {readable(needed)} needed for {settings.checkpoint.keep} checkpoints and one"
    )
    return Check("run directory", "ok" if free >= needed else "problem", f"{detail} more ({readable(size)} each)")


def _save_time(settings: Config, name: str, size: int) -> Check:
    """Compare a save, measured with a small one, with the warning that the sbatch script asks Slurm for."""
    path = choose(settings.run.dir, launcher.run_name(name), same_job=True)
    place = next(parent for parent in (path, *path.parents) if parent.exists())
    probe, block = place / f".rankzero-probe-{os.getpid()}", os.urandom(1 << 24)
    began = time.monotonic()
    try:
        with probe.open("wb") as file:
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"{place} cannot be written ({error.strerror})", "name another --run.dir") from None
    finally:
        probe.unlink(missing_ok=True)
    seconds = (time.monotonic() - began) * size / len(block)
    needed = 2 * seconds + SIGNAL_MARGIN
    detail = f"about {seconds:.1f} s a checkpoint of {readable(size)}"
    lead = signal_lead(REPOSITORY / "slurm" / f"{name}.sh")
    if lead is None:
        return Check("time to save", "ok", f"{detail}; the job stops by itself in time")
    detail += f"; slurm/{name}.sh is warned {lead} s before its end and wants {needed:.0f} s"
    return Check("time to save", "ok" if lead >= needed else "problem", detail)


def signal_lead(script: Path) -> int | None:
    """Seconds between the warning that ``script`` asks Slurm for and its end; None when it asks for none."""
    try:
        found = re.search(r"^#SBATCH\s+--signal[= ]\S*?@(\d+)", script.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


def _request(options: list[str], name: str) -> Check:
    """Ask Slurm whether it would take the job."""
    script = REPOSITORY / "slurm" / f"{name}.sh"
    if not script.exists():
        return Check("Slurm", "note", f"there is no slurm/{name}.sh to ask about")
    if subprocess.run(["sinfo", "--noheader"], capture_output=True).returncode:
        return Check("Slurm", "note", "no cluster answers this machine")
    asked = subprocess.run(["sbatch", "--test-only", *options, script], capture_output=True, text=True)
    said = " ".join(asked.stderr.split()).removeprefix("sbatch: ")
    line = " ".join(["sbatch", *options, f"slurm/{name}.sh"])
    return Check("Slurm", "problem" if asked.returncode else "ok", f"{line}: {said}")
