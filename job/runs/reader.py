"""A run directory read back: what it was told, what it measured, what it found. Needs no data set and no torch."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from job.config.errors import UserError, first_line
from job.config.kinds import require
from job.config.plain import renewed
from job.config.settings import Config
from job.config.yaml_text import load_yaml
from job.runs.environment import in_all, spending
from job.runs.records import Environment, Evaluation, MetricsLine, Seconds, Status

_NAMES = {"simple_cnn": "SimpleCNN", "vgg16": "VGG16", "vgg16_bn": "VGG16 with batch norm", "cifar10": "CIFAR-10"}

Record = dict[str, Any]

_CHECKPOINT = re.compile(r"step-\d{8,}")
_OWN = re.compile(
    r"config\.yaml|(environment|status|evaluation(-[\w-]+)?)\.json|metrics\.jsonl|(model|predictions|samples)\.safetensors|"
    r"report\.html|log\.txt|run\.lock|failure-\d+\.txt|checkpoints|figures|tracking|tensorboard|wandb"
)
_ANY = re.compile(r"(?s).*")
DEEPEST = 4
"""folders between a folder and the runs that are looked for below it"""
_TRACKERS = ("tensorboard", "wandb")
"""folders whose content is not ours"""


@dataclass(frozen=True)
class Attempt:
    """One start of the run."""

    number: int
    step: int
    """optimizer steps that stood when it began; 0 for a start from scratch"""
    started: str
    """ISO 8601"""


@dataclass(frozen=True)
class Run:
    """One run directory. What an unfinished run has not written yet is empty."""

    path: Path
    config: Record
    environment: Record
    metrics: list[Record]
    unread: int
    """lines of metrics.jsonl that are damaged, and left out"""
    evaluation: Evaluation | None
    """None while the run is not finished"""
    status: Record

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def model(self) -> str:
        return str(self.setting("model.name", "unknown model"))

    @property
    def title(self) -> str:
        """Model and data, as people call them."""
        source = self.setting("data.source", "unknown data")
        data = Path(self.setting("data.root", "")).name.partition(".")[0] if source == "folder" else source
        return f"{_NAMES.get(self.model, self.model)} on {_NAMES.get(data, data)}"

    @property
    def state(self) -> str:
        """finished, running, preempted or failed."""
        return "finished" if self.evaluation else str(self.status.get("state", "running"))

    @property
    def left_out(self) -> str:
        """What is said of ``unread`` lines."""
        return f"{self.unread} damaged line{'s' if self.unread > 1 else ''} of metrics.jsonl left out"

    def setting(self, key: str, default: Any = None) -> Any:
        """A value of ``config.yaml`` by its dotted key."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None else value

    def lines(self, split: str) -> list[Record]:
        """The metrics lines of "train" or "validation"."""
        return [line for line in self.metrics if line.get("split") == split]

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps an epoch; None in the first seconds of a run."""
        starts = reversed(self.environment.get("attempts", []))
        known = (start["steps_per_epoch"] for start in starts if "steps_per_epoch" in start)
        return next(known, None) or next((line["step"] // line["epoch"] for line in self.lines("validation")), None)

    @property
    def attempts(self) -> list[Attempt]:
        return [
            Attempt(number, int(start.get("step") or 0), str(start.get("started", "")))
            for number, start in enumerate(self.environment.get("attempts", []), 1)
        ]

    @property
    def spending(self) -> list[Seconds]:
        """Where the seconds of each start went; nothing of those that did not say."""
        return spending(self.environment.get("attempts", []), self.status)

    @property
    def spent(self) -> Seconds:
        """The same over all starts."""
        return in_all(self.spending)

    @property
    def trained(self) -> float:
        """Seconds of steps of the newest start."""
        return float(self.status.get("seconds", {}).get("training", 0.0))

    @property
    def resumed_at(self) -> list[int]:
        """Steps at which the run went on after it had been interrupted, ascending."""
        return sorted({attempt.step for attempt in self.attempts if attempt.step > 0})

    @property
    def accuracy(self) -> float | None:
        """Tested; of a run that is not finished, that of its latest validation; None before either."""
        latest: Any = self.evaluation or (self.lines("validation") or [{}])[-1]
        return cast(float | None, latest.get("accuracy"))

    @property
    def images_per_second(self) -> float | None:
        """Median over the training lines: one slow line, as when a page cache is cold, does not move it."""
        rates = [number(line.get("images_per_second")) for line in self.lines("train")]
        known = [rate for rate in rates if math.isfinite(rate)]
        return statistics.median(known) if known else None

    @property
    def seconds(self) -> float:
        """Time spent training and validating, without what passed between attempts."""
        batch, before, total = self.setting("train.batch_size", 0), 0, 0.0
        for line in self.metrics:
            if line.get("split") == "validation":
                total += number(line.get("seconds"), 0.0)
            elif rate := number(line.get("images_per_second"), 0.0):
                total += (line["step"] - before) * batch / rate
                before = line["step"]
        return total


def read(path: Path) -> Run:
    """The run in ``path``, finished or not. Raises UserError when there is none, or what is there cannot be read."""
    require_run(path)
    lines = list(_lines(path / "metrics.jsonl"))
    return Run(
        path,
        configuration(path),
        read_json(path / "environment.json", Environment) or {},
        [line for line in lines if line is not None],
        lines.count(None),
        evaluation(path),
        read_json(path / "status.json", Status) or {},
    )


def runs_below(folder: Path) -> list[Path]:
    """The run directories below ``folder``, links not followed, in the order of their names."""
    if (folder / "config.yaml").exists():
        return []  # one itself
    found = []
    for place, folders, files in os.walk(folder):
        if "config.yaml" in files:
            found.append(Path(place))
        if "config.yaml" in files or len(Path(place).relative_to(folder).parts) >= DEEPEST:
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    return sorted(found)


def read_below(folder: Path) -> tuple[list[Run], list[str]]:
    """The runs below ``folder``, and what is wrong with those that cannot be read."""
    runs, problems = [], []
    for path in runs_below(folder):
        try:
            runs.append(read(path))
        except UserError as error:
            problems.append(first_line(error))
    return runs, problems


def require_run(path: Path) -> None:
    """Raise UserError unless ``path`` is a run directory, and plain."""
    try:
        problem = "" if "config.yaml" in os.listdir(path) else "there is no config.yaml"
    except OSError as error:
        problem = error.strerror or ""
    if problem:
        raise UserError(f"{path} is no run directory ({problem})", "give one, such as runs/<name>")
    require_plain(path)


def require_plain(folder: Path, own: re.Pattern[str] = _OWN) -> None:
    """Raise UserError unless all of ours in a run directory are files and directories.

    Links lead out of it: whoever was given it by somebody else would read, write and delete there.
    """
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not own.fullmatch(entry.name):
            continue
        directory = entry.is_dir(follow_symlinks=False)
        if not directory and not entry.is_file(follow_symlinks=False):
            kind = "a link" if entry.is_symlink() else "no file"
            raise UserError(f"{entry.path} is {kind}", "put the file itself there, or move it away")
        if directory and entry.name not in _TRACKERS:
            with contextlib.suppress(OSError):  # gone, in a run that lives; or not to be read, which its reader says
                require_plain(Path(entry.path), _ANY)


def configuration(run: Path) -> Record:
    """The content of ``config.yaml``. Raises UserError when it cannot be read."""
    path = run / "config.yaml"
    with _reading(path):
        content: Record = renewed(load_yaml(path.read_text("utf-8"), str(path)))
        require(content, Config)
    return content


def read_json(path: Path, kind: Any) -> Any:
    """The object, of ``kind``, in a JSON file; None when there is no file. Raises UserError for anything else."""
    with contextlib.suppress(FileNotFoundError), _reading(path):
        content = json.loads(path.read_text("utf-8"))
        require(content, kind)
        return content
    return None


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise UserError where ``path`` is damaged, or may not be read."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or first_line(error)
        raise UserError(f"{path} cannot be read ({reason})", "restore it from a backup") from None


def evaluation(run: Path) -> Evaluation | None:
    """The content of ``evaluation.json``; None while the run is not finished. Raises UserError for a damaged one."""
    path = run / "evaluation.json"
    content = cast(Evaluation | None, read_json(path, Evaluation))
    with _reading(path):
        matrix = content.get("confusion_matrix") if content else None
        if content and matrix is not None and {len(matrix), *map(len, matrix)} != {len(content["classes"])}:
            raise ValueError("confusion_matrix is not of its classes")
    return content


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in ``directory``, verified or not, oldest first: by step, for clocks lie."""
    paths = directory.iterdir() if directory.is_dir() else ()
    return sorted((path for path in paths if _CHECKPOINT.fullmatch(path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step by which a checkpoint is called: names, as text, are in its order below 100,000,000 only."""
    return int(checkpoint.name.removeprefix("step-"))


def _lines(path: Path) -> Iterator[Record | None]:
    """What stands in each line, None for a damaged one; the last may be half written while the run lives."""
    with contextlib.suppress(FileNotFoundError), _reading(path):
        *lines, _ = path.read_bytes().split(b"\n")
        for line in lines:
            try:
                record = json.loads(line)
                require(record, MetricsLine)
                yield record
            except (ValueError, RecursionError):
                yield None


def number(value: Any, missing: float = math.nan) -> float:
    """``value`` as a float; ``missing`` for what is no finite number."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else missing
