"""A run directory read back: what it was told, what it measured, what it found. Needs no data set and no torch."""

from __future__ import annotations

import contextlib
import json
import math
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from job.config import command_line
from job.config.errors import UserError
from job.runs.records import Evaluation

_NAMES = {"simple_cnn": "SimpleCNN", "vgg16": "VGG16", "vgg16_bn": "VGG16 with batch norm", "cifar10": "CIFAR-10"}

Record = dict[str, Any]

_CHECKPOINT = re.compile(r"step-\d{8,}")


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
    def resumed_at(self) -> list[int]:
        """Steps at which the run went on after it had been interrupted, ascending."""
        return sorted({attempt.step for attempt in self.attempts if attempt.step > 0})

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
    """The run in ``path``, finished or not. Raises UserError when there is none."""
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path} is no run directory (there is no config.yaml)", "give one, such as runs/<name>")
    return Run(
        path,
        command_line.load_yaml((path / "config.yaml").read_text(), str(path / "config.yaml")),
        read_json(path / "environment.json"),
        list(read_lines(path / "metrics.jsonl")),
        evaluation(path),
        read_json(path / "status.json"),
    )


def read_json(path: Path) -> Record:
    """The object in a JSON file; empty when the file is not there, is being written, or is damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def evaluation(run: Path) -> Evaluation | None:
    """The content of ``evaluation.json``; None while the run is not finished."""
    return cast(Evaluation, read_json(run / "evaluation.json")) or None


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in ``directory``, verified or not, oldest first: by step, for clocks lie."""
    paths = directory.iterdir() if directory.is_dir() else ()
    return sorted((path for path in paths if _CHECKPOINT.fullmatch(path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step by which a checkpoint is called: names, as text, are in its order below 100,000,000 only."""
    return int(checkpoint.name.removeprefix("step-"))


def read_lines(path: Path) -> Iterator[Record]:
    """The whole lines of a JSONL file; the last may be half written while the run lives."""
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and isinstance(record.get("step"), int):
                    yield record


def number(value: Any, missing: float = math.nan) -> float:
    """``value`` as a float; ``missing`` for what is no finite number."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else missing
