"""Samples of a record become figures: medians over those that count, with their spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import scaling

Record = dict[str, Any]
Samples = list[dict[str, Any]]
NETWORKS = {"simple_cnn": "SimpleCNN", "vgg16": "VGG16"}
OURS, REFERENCE = "rankzero", "reference loop"


@dataclass(frozen=True)
class Table:
    """Cells as they are shown, a title, and what must be known to read them."""

    title: str
    text: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def paragraphs(table: Table) -> list[str]:
    """Its text without the line breaks of the source."""
    return [" ".join(part.split()) for part in table.text.split("\n\n") if part.strip()]


@dataclass(frozen=True)
class Figure:
    """Some samples of one quantity."""

    values: list[float]
    """of the samples that count"""
    disturbed: bool
    """whether others used the machine during each of them, so that there is nothing better"""

    @property
    def middle(self) -> float:
        return statistics.median(self.values) if self.values else math.nan

    def __str__(self) -> str:
        return number(self.middle) + ("*" if self.disturbed else "")

    @property
    def spread(self) -> str:
        """Lowest and highest."""
        return f"{number(min(self.values))} to {number(max(self.values))}" if self.values else ""


def network(model: str) -> str:
    """The row of needs by which a network's floor goes: without work that changes nothing."""
    return "vgg16 without its repetition" if model == "vgg16" else model


def find(record: Record, table: str, **wanted: object) -> Samples:
    return [
        sample
        for sample in record["samples"]
        if sample["table"] == table and all(sample[key] == value for key, value in wanted.items())
    ]


def loops(record: Record, table: str, model: str, precision: str) -> list[str]:
    """The loops that there are samples of, the reference first."""
    found = {s["loop"]: None for s in find(record, table, model=model, precision=precision)}
    return sorted(found, key=lambda loop: (loop.startswith(OURS), loop != REFERENCE))


def distinct(record: Record, table: str, model: str | None = None) -> Samples:
    """The first sample of each case."""
    found: dict[tuple[object, ...], dict[str, Any]] = {}
    for sample in find(record, table, **({"model": model} if model else {})):
        keys = ("model", "precision", "loop", "processes", "batch")
        found.setdefault(tuple(sample[key] for key in keys), sample)
    order = ("one thread", "strong", "strong, no exchange", "weak", "weak, no exchange")
    return sorted(
        found.values(), key=lambda s: (s["model"], s["processes"], order.index(s["loop"]) if s["loop"] in order else -1)
    )


def figure(samples: Samples, what: str) -> Figure:
    """One quantity over samples: of each the median; of those that were left undisturbed, if there are any."""
    quiet = [sample for sample in samples if not sample["noisy"]]
    values = [value for value in (value(sample, what) for sample in quiet or samples) if not math.isnan(value)]
    return Figure(values, disturbed=bool(samples) and not quiet)


def value(sample: dict[str, Any], what: str) -> float:
    values = sample["values"]
    if what == "wall":
        wall: float = sample["wall_seconds"]
        return wall
    if what == "first step":
        first: float = values.get("first_step") or values.get("reached", {}).get("first step", math.nan)
        return first
    found = values.get({"rate": "images_per_second", "validation": "validation_seconds"}.get(what, what))
    if isinstance(found, list):
        return statistics.median(found) if found else math.nan
    return math.nan if found is None else float(found)


def best_rates(record: Record) -> dict[str, float]:
    """The best of all rounds: disturbance only ever lowers a rate."""
    found: dict[str, float] = {}
    for floor in record["floors"]:
        for kind, rate in floor.get("machine", {}).items():
            if isinstance(rate, float):
                found[kind] = max(found.get(kind, 0.0), rate)
    return found


def links_of(record: Record) -> dict[int, scaling.Link]:
    """What explains the all-reduces, by the number of processes: of the medians over rounds."""
    found = {}
    for key in {key for floor in record["floors"] for key in floor if key.startswith("exchange")}:
        n = int(key.split()[1])
        runs = [floor[key]["seconds"] for floor in record["floors"] if key in floor]
        found[n] = scaling.measured_link(n, {size: statistics.median(run[size] for run in runs) for size in runs[0]})
    return found


def number(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ratio(a: float, b: float) -> str:
    return "" if math.isnan(a) or math.isnan(b) else f"{a / b:.2f}"
