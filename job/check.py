"""Everything short of training, checked on the real configuration: what else would fail after an hour in the queue.

  python job/train.py --check [--nodes N] [--gpus-per-node M] [--config FILE] [--key.sub value ...]
  sbatch slurm/vgg16.sh --check [...]                            # the same, on the nodes themselves
On the login node say which shape the job will have; inside an allocation Slurm says it.

Its own options:
  --nodes N             hosts that the job will have
  --gpus-per-node M     GPUs, and so processes, on each
  --cpus-per-task, --mem, --time, --partition     as sbatch has them
The settings follow, by section.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from job.config import command_line
from job.config.errors import BAD_INPUT, UserError
from job.config.settings import REPOSITORY, Config
from job.data import datasets
from job.display.console import plain_text
from job.distributed import launcher, request
from job.distributed.group import start
from job.distributed.meeting.nodes import nodes_in_words, nodes_looked_at, slow_nodes, writing
from job.models import frozen, registry, weights
from job.models.fast import form
from job.models.footprint import checkpoint_bytes, memory_bytes, readable
from job.runs import environment
from job.training.evaluated import require_validation
from job.training.optimizers import learning_rate

if TYPE_CHECKING:
    from torch import nn

Result = TypeVar("Result")

STYLES = {"ok": "green", "note": "yellow", "problem": "red"}
REPORT = 150 << 20
"""bytes that the figures of a report take on rank zero"""
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

    def on_gpus(self, settings: Config) -> bool:
        return self.gpus > 0 and settings.runtime.device != "cpu"


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    verdict: Literal["ok", "note", "problem"]
    detail: str


class Note(str):
    """What stops nothing and should be known."""


def main(argv: Sequence[str]) -> int:
    """Print the table and the verdict; 0 when the job can be submitted, else 2."""
    given, rest = command_line.take_options(argv, *request.OPTIONS)
    options = {name.replace("_", "-"): value for name, value in given.items() if value is not None}
    settings = command_line.parse(rest, description=__doc__ or "")
    nodes = _nodes(settings) if launcher.world_size() > 1 else []
    if not launcher.speaks():  # `sbatch slurm/vgg16.sh --check` starts all ranks; one of them does the rest
        return 0
    shape = read_shape(options.get("nodes"), options.get("gpus-per-node"))
    name = command_line.config_name(rest)
    script = REPOSITORY / "slurm" / f"{name}.sh"
    asked = {} if launcher.under_slurm() else request.asked(script, options)
    checks = nodes + preflight(settings, shape, name, asked)
    if shutil.which("sbatch") and not launcher.under_slurm():
        taken, said = request.answer(script, options)
        checks.append(Check("Slurm", "note" if taken is None else "ok" if taken else "problem", said))
    title = plain_text(f"{name} with {shape.nodes} x {shape.processes} processes", "bold")
    table = Table("check", "verdict", "what was found", title=title, title_justify="left")
    for check in checks:
        table.add_row(check.name, Text(check.verdict, style=STYLES[check.verdict]), plain_text(check.detail))
    console = Console(highlight=False, width=None if os.isatty(1) else 120)
    console.print(table)
    problems = sum(check.verdict == "problem" for check in checks)
    console.print(f"not ready: {problems} problem{'s' * (problems > 1)} to mend" if problems else "ready to submit")
    return BAD_INPUT if problems else 0


def read_shape(nodes: str | None, gpus_per_node: str | None) -> Shape:
    """The shape asked for, else the allocation's, else this machine's."""
    import torch

    for option, value in (("nodes", nodes), ("gpus-per-node", gpus_per_node)):
        if value is not None and not re.fullmatch("[0-9]{1,6}", value):
            raise UserError(f"--{option} {value}", "must be a whole number")
    given = launcher.allocation()
    gpus = int(gpus_per_node or given.gpus or torch.cuda.device_count())
    processes = (given.local_world_size if gpus_per_node is None else None) or max(1, gpus)
    shape = Shape(nodes=int(nodes or given.nodes or 1), processes=processes, gpus=gpus)
    if shape.nodes < 1:
        raise UserError(f"--nodes {nodes}", "must be at least 1")
    return shape


def _nodes(settings: Config) -> list[Check]:
    """A line for each node of this launch, looked at for longer than each start does. Every rank must call it."""
    group = start(settings.runtime, deterministic=settings.train.deterministic)
    rows = nodes_looked_at(group, 3.0)
    group.close()
    slow, words = slow_nodes(rows), nodes_in_words(rows)
    return [Check(f"node {node}", "note" if node in slow else "ok", slow.get(node, words[node])) for node in words]


def preflight(settings: Config, shape: Shape, name: str, asked: dict[str, str]) -> list[Check]:
    """Every check, in the order in which a job would meet them. ``asked``: of Slurm; ``name``: the configuration's."""
    checks: list[Check] = []
    _look(checks, "software", environment.software)
    _look(checks, "processes", lambda: _processes(settings, shape))
    data, disk = dataclasses.replace(settings.data, download=False), launcher.node_disk()
    load = partial(datasets.load, data, settings.train.seed_for("split"), node_disk=disk)
    dataset = _look(checks, "data", lambda: load(log=lambda line: None), lambda dataset: f"{dataset}, verified")
    for note in dataset.notes if dataset else ():
        checks.append(Check("data", "note", note))
    classes = len(dataset.classes) if dataset else 10
    found = _look(checks, "model", lambda: _model(settings, shape, classes), operator.itemgetter(1))
    if dataset is not None:
        _look(checks, "plan", lambda: _plan(settings, len(dataset.train), len(dataset.validation)))
    if found is not None:
        model = found[0]
        size, path = checkpoint_bytes(settings, model), REPOSITORY / "runs" / launcher.run_name(name)
        path = path if settings.run.dir is None else Path(settings.run.dir).expanduser().resolve()
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        images = settings.train.batch_size // shape.world_size // settings.train.gradient_accumulation
        parts = memory_bytes(settings, model, max(1, images), settings.data.image_size)
        if shape.on_gpus(settings):
            _look(checks, "GPU memory", lambda: _memory(parts))
        host = 0 if shape.on_gpus(settings) else sum(parts.values())
        _look(checks, "memory", lambda: _host_memory(host, shape, asked))
        _look(checks, "run directory", lambda: _directory(path, existing, settings.checkpoint.keep, size))
        _look(checks, "time to save", lambda: _save_time(existing, name, size, asked))
    return checks


def _look(
    checks: list[Check], name: str, work: Callable[[], Result], words: Callable[[Result], str] = str
) -> Result | None:
    """Add what ``work`` comes to, or why it cannot, to ``checks``."""
    try:
        result = work()
    except UserError as error:
        checks.append(Check(name, "problem", str(error)))
        return None
    checks.append(Check(name, "note" if isinstance(result, Note) else "ok", words(result)))
    return result


def _processes(settings: Config, shape: Shape) -> str:
    import torch

    settings.parts(shape.world_size)
    asked = launcher.allocation().world_size
    if asked is not None and asked != shape.world_size:
        raise UserError(
            f"the launch has {asked} processes and the allocation room for {shape.world_size}",
            "launch through slurm/*.sh, which counts them",
        )
    if launcher.under_slurm() and shape.on_gpus(settings) and shape.gpus > torch.cuda.device_count():
        raise UserError(
            f"{shape.gpus} GPUs are allocated on this node and torch sees {torch.cuda.device_count()}",
            "check nvidia-smi and that torch is a CUDA build, or give --runtime.device cpu",
        )
    kind = "GPU" if shape.on_gpus(settings) else "CPU"
    batch = settings.train.batch_size
    return f"{shape.world_size} on {kind}s, {batch // shape.world_size} of the global batch of {batch} each"


def _model(settings: Config, shape: Shape, classes: int) -> tuple[nn.Module, str]:
    """The model as it would be trained, with the weights that it would start from, and that in words."""
    import torch

    size, device = settings.data.image_size, torch.device("cuda" if shape.on_gpus(settings) else "cpu")
    model = registry.build(settings.model, classes=classes, image_size=size, seed=settings.train.seed_for("weights"))
    loaded = weights.pretrained(settings.model, model, download=False)
    form.fast(model, settings, image_size=size, device=device)
    frozen.freeze(model, settings)
    return model, f"{settings.model.name}, {registry.described(model)}, {', '.join(loaded) or 'random weights'}"


def _plan(settings: Config, images: int, validation: int) -> str:
    require_validation(settings, validation)
    steps = math.ceil(images / settings.train.batch_size)
    rate = learning_rate(settings, 0, steps)
    peak = settings.optimizer.learning_rate
    rates = f"{rate:g}" if rate == peak else f"from {rate:g} to {peak:g}"
    return (
        f"{settings.train.epochs} epochs of {steps:,} steps, {settings.optimizer.name}, learning rate {rates}"
        " whatever the number of processes"
    )


def _host_memory(model: int, shape: Shape, asked: dict[str, str]) -> str:
    """What the processes of a node take besides their GPUs: libraries and data, which lie in this one too, and more."""
    one = psutil.Process().memory_info().rss + model + REPORT
    needed = shape.processes * one / 2**20
    detail = f"about {readable(one)} a process: libraries, data, {readable(REPORT)} to draw the report"
    if shape.gpus:
        detail += "; what CUDA takes, a gigabyte or more, is not counted"
    if "mem" not in asked or not (given := request.megabytes(asked["mem"])):
        return detail
    return _sound(given >= needed, f"{detail}; {needed:,.0f}M a node, and --mem={asked['mem']}")


def _memory(parts: dict[str, int]) -> str:
    import torch

    total = sum(parts.values())
    detail = f"about {readable(total)} a process: " + ", ".join(f"{k} {readable(v)}" for k, v in parts.items() if v)
    if not torch.cuda.is_available():
        return detail
    room = torch.cuda.get_device_properties(0).total_memory
    detail += f"; the device has {readable(room)}"
    if total > room:
        raise UserError(detail, "lower train.batch_size, raise train.gradient_accumulation, or use more processes")
    return Note(detail) if total > 0.8 * room else detail


def _directory(path: Path, existing: Path, keep: int, size: int) -> str:
    """Whether there is room at ``existing``, the part of ``path`` that is there, for checkpoints of ``size``."""
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{existing} cannot be written", "name another run directory with --run.dir")
    free = shutil.disk_usage(existing).free
    needed = (keep + 2) * size  # one more than are kept while the newest is written, and the final weights
    room = f"{path}: {readable(free)} free, {readable(needed)} needed"
    return _sound(free >= needed, f"{room} for {keep} checkpoints and one more ({readable(size)} each)")


def _save_time(existing: Path, name: str, size: int, asked: dict[str, str]) -> str:
    """Compare a save, measured with a small one, with the warning that the sbatch script asks Slurm for."""
    try:
        seconds = writing(existing, 16) * size / 2**24
    except OSError as error:
        raise UserError(f"{existing} cannot be written ({error.strerror})", "name another --run.dir") from None
    needed = 2 * seconds + SIGNAL_MARGIN
    detail = f"about {seconds:.1f} s a checkpoint of {readable(size)}"
    lead = request.signal_lead(asked or request.asked(REPOSITORY / "slurm" / f"{name}.sh", {}))
    if lead is None:
        return f"{detail}; the job stops by itself in time"
    detail += f"; slurm/{name}.sh is warned {lead} s before its end and wants {needed:.0f} s"
    if 60 * request.minutes(asked.get("time", "unlimited")) <= lead + SIGNAL_MARGIN:
        return Note(f"{detail}; but with --time={asked['time']} it is warned as it begins, and stops by itself instead")
    return _sound(lead >= needed, detail)


def _sound(fine: bool, detail: str) -> str:
    """``detail``, which is a problem unless things are ``fine``."""
    if not fine:
        raise UserError(detail)
    return detail
