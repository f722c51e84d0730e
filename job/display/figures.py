"""Figures of a run, drawn by matplotlib within ``theme.style``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from job.display.text import duration, hardest, percent, rounded, shortened
from job.display.theme import LIGHT, text_on
from job.runs.reader import Record, Run, number
from job.runs.records import Evaluation

LONGEST = 18  # characters of a class name beside an axis
MOST_POINTS = 400  # of a curve: more cannot be seen, and would make the page heavy
MOST_BARS = 100  # classes: a page is not endless
FEW = 10  # classes that are shown where there are more than have room for their counts
MOST_COUNTS = 25  # classes up to which a confusion matrix has room for its counts


class _Curves:
    """A figure of what a run measured over its epochs; over its steps until one epoch has passed."""

    def __init__(self, run: Run, ylabel: str) -> None:
        self.run, self.figure = run, Figure(figsize=(5, 3.5))
        self.axes = self.figure.subplots()
        self.axes.set(xlabel="epoch" if run.steps_per_epoch else "step", ylabel=ylabel)
        self.axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    def places(self, steps: Sequence[int]) -> NDArray[np.float64]:
        """Where these steps lie on the horizontal axis."""
        return np.array(steps, np.float64) / (self.run.steps_per_epoch or 1)

    def line(self, lines: list[Record], key: str, color: str, label: str, marker: str = "", **looks: Any) -> None:
        """A curve, averaged to what can be seen; nothing, also in the legend, where there is nothing finite."""
        x, y = self.places([line["step"] for line in lines]), np.array([number(line.get(key)) for line in lines])
        finite = np.isfinite(y).sum()
        if not finite:
            return
        if len(y) > MOST_POINTS:
            parts = np.array_split(np.arange(len(y)), MOST_POINTS)
            with np.errstate(invalid="ignore"):
                x, y = (np.array([v[part].mean() for part in parts]) for v in (x, y))
        pointed = len(y) <= 40 and marker
        if not pointed:  # one point alone makes no line
            marker = "o" if finite == 1 else ""
        (drawn,) = self.axes.plot(x, y, color=LIGHT[color], label=label, marker=marker, markersize=3.5, **looks)
        if pointed:
            words = [f"{label}, {place:g}: {value:.4g}" for place, value in zip(x, y, strict=True) if value == value]
            hover(drawn, words)

    def finished(self) -> Figure:
        """The figure with its legend, and where the run was interrupted."""
        if not self.axes.get_legend_handles_labels()[0]:
            self.axes.set(xticks=[], yticks=[])
            nothing = "nothing measured yet"
            self.axes.text(0.5, 0.5, nothing, transform=self.axes.transAxes, ha="center", color=LIGHT["muted"])
            return self.figure
        self.axes.set_xlim(left=0)
        for i, place in enumerate(self.places(self.run.resumed_at)):
            label = "" if i else "resumed"
            self.axes.axvline(place, color=LIGHT["wrong"], linewidth=1, linestyle=(0, (2, 2)), label=label)
        self.axes.legend(bbox_to_anchor=(-0.02, 1), ncols=4)
        return self.figure


def loss(run: Run) -> Figure:
    """Training loss as it went, and of each epoch, with the validation loss."""
    curves, epochs = _Curves(run, "loss (cross-entropy, nats)"), run.lines("validation")
    curves.line(run.lines("train"), "loss", "muted", "steps", linewidth=0.9, alpha=0.6)
    curves.line(epochs, "train_loss", "accent", "training", marker="o")
    curves.line(epochs, "loss", "second", "validation", marker="s")
    return curves.finished()


def learning_rate(run: Run) -> Figure:
    """The learning rate as it went."""
    curves = _Curves(run, "learning rate")
    curves.line(run.lines("train"), "learning_rate", "accent", "training")
    curves.axes.set_ylim(bottom=0)
    return curves.finished()


def accuracy(run: Run, published: float | None = None) -> Figure:
    """Validation accuracy of each epoch, the final accuracy with its interval, and the published one."""
    curves, epochs = _Curves(run, "accuracy"), run.lines("validation")
    axes = curves.axes
    curves.line(epochs, "accuracy", "second", "validation", marker="s")
    if run.evaluation and epochs:
        place, tested = curves.places([epochs[-1]["step"]]), run.evaluation["accuracy"]
        error = [[abs(tested - end)] for end in run.evaluation["interval"]]
        label = "test, 95%" if run.evaluation["split"] == "test" else "final, 95%"
        axes.errorbar(place, [tested], error, color=LIGHT["accent"], marker="D", capsize=4, ls="", label=label)
    if published is not None and epochs:
        axes.axhline(published, color=LIGHT["muted"], linewidth=1, linestyle=(0, (5, 3)), label="published")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0 if high - low > 0.04 else 1))
    return curves.finished()


def throughput(run: Run) -> Figure:
    """Images per second of training, over all processes."""
    curves, median = _Curves(run, "images a second"), run.images_per_second
    curves.line(run.lines("train"), "images_per_second", "accent", "training")
    if median is not None:
        curves.axes.axhline(median, color=LIGHT["muted"], linewidth=1.3, linestyle=(0, (1, 1.5)), label="median")
        curves.axes.set_ylim(bottom=0)
    curves.axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value < 1e5 else f"{value / 1000:,.0f} k")
    return curves.finished()


def classes(result: Evaluation, published: float | None = None, most: int = MOST_BARS) -> Figure:
    """Accuracy per class as bars with 95% intervals, the ``most`` hardest first; of ``evaluation.json``."""
    rows = hardest(result)[:most]
    figure = Figure(figsize=(5.2, 1 + 0.25 * len(rows)))
    axes = figure.subplots()
    axes.grid(False)
    places = np.arange(len(rows))
    intervals = np.array([row["interval"] or (math.nan, math.nan) for row in rows], np.float64).reshape(-1, 2)
    axes.barh(places, 1, color=LIGHT["panel"], height=0.72)
    bars = axes.barh(places, [number(row["accuracy"]) for row in rows], color=LIGHT["accent"], height=0.72)
    for bar, row in zip(bars, rows, strict=True):
        hover(bar, [f"{shortened(row['name'])}: {row['correct']:,} of {row['images']:,} images"])
    for color, width in (("paper", 4), ("ink", 1.1)):  # an edge of paper: ink on a bar is hard to see
        axes.hlines(places, *intervals.T, color=LIGHT[color], linewidth=width)
    for place, row in enumerate(rows):
        axes.text(1.02, place, percent(row["accuracy"]), va="center")
    axes.axvline(result["accuracy"], color=LIGHT["second"], linewidth=1.5, label=f"all {percent(result['accuracy'])}")
    if published is not None:
        label = f"published, all {percent(published)}"
        axes.axvline(published, color=LIGHT["muted"], linewidth=1.5, linestyle=(0, (3, 1.5)), label=label)
    axes.set_yticks(places, [shortened(row["name"], LONGEST) for row in rows], color=LIGHT["ink"])
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5), xlabel=f"share of each class's {result['split']} images")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(bbox_to_anchor=(-0.02, 1), ncols=2)
    return figure


LOOKS = tuple(zip(("accent", "second", "right", "muted", "wrong", "ink"), "osD^vP", strict=True))
"""colour and marker of each run that stands beside others"""


def compared(comparison: Record) -> Figure:
    """Accuracy per class of each run as points; ``comparison`` is ``comparison.json``, with six runs at most."""
    rows = [(row["name"], [number(share) for share in row["accuracy"]]) for row in comparison["classes"]]
    rows.sort(key=lambda row: float(np.nanmean(row[1])))
    places, count = np.arange(len(rows)), len(comparison["runs"])
    figure = Figure(figsize=(5.2, 1.1 + (0.17 + 0.08 * count) * len(rows)))
    axes = figure.subplots()
    for i, (run, (color, marker)) in enumerate(zip(comparison["runs"], LOOKS, strict=False)):
        values, label = [shares[i] for _, shares in rows], shortened(run["name"], 30)
        beside = places + 0.7 * ((i + 0.5) / count - 0.5)  # so that no point hides another
        (drawn,) = axes.plot(values, beside, ls="", marker=marker, color=LIGHT[color], label=label)
        hover(drawn, [f"{label}, {shortened(name)}: {percent(shares[i])}" for name, shares in rows])
    axes.set_yticks(places, [shortened(name, LONGEST) for name, _ in rows])
    axes.set_yticks(places[:-1] + 0.5, minor=True)
    axes.grid(visible=False, axis="y", which="major")
    axes.grid(visible=True, axis="y", which="minor")
    axes.tick_params(axis="y", which="minor", length=0)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel="accuracy")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(bbox_to_anchor=(0, 1), ncols=2)
    return figure


def intervals(comparison: Record) -> Figure:
    """Accuracy of each run with its 95% interval; ``comparison`` is ``comparison.json``, with six runs at most."""
    runs = comparison["runs"]
    figure = Figure(figsize=(5.2, 0.8 + 0.32 * len(runs)))
    axes = figure.subplots()
    for place, (run, (color, marker)) in enumerate(zip(runs, LOOKS, strict=False)):
        error = [[abs(run["accuracy"] - end)] for end in run["interval"]]
        axes.errorbar(run["accuracy"], place, xerr=error, color=LIGHT[color], marker=marker, capsize=4)
        axes.text(1.02, place, percent(run["accuracy"], 2), va="center", transform=axes.get_yaxis_transform())
    axes.set_yticks(range(len(runs)), [shortened(run["name"], LONGEST) for run in runs])
    axes.set(ylim=(len(runs) - 0.5, -0.5), xlabel="accuracy, 95% interval over test images")
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    return figure


def gains(pairs: Sequence[Record]) -> Figure:
    """Points gained in each pair of arms with the 95% interval over seeds; ``pairs`` of ``comparison.json``."""
    figure = Figure(figsize=(5.2, 0.9 + 0.32 * len(pairs)))
    axes = figure.subplots()
    axes.axvline(0, color=LIGHT["muted"], linewidth=1)
    for place, pair in enumerate(pairs):
        points, half = 100 * pair["difference"], 100 * (pair["half_width"] or 0)
        bar = axes.errorbar(points, place, xerr=half, color=LIGHT["accent"], marker="D", capsize=4)
        within = "" if pair["half_width"] is None else f" ± {half:.2f}"
        hover(bar.lines[0], [f"{pair['first']} / {pair['second']}: {points:+.2f}{within} points"])
    names = [f"{shortened(pair['first'], LONGEST)} / {shortened(pair['second'], LONGEST)}" for pair in pairs]
    axes.set_yticks(range(len(pairs)), names)
    axes.set(ylim=(len(pairs) - 0.5, -0.5), xlabel="points gained, 95% interval over seeds")
    axes.grid(visible=False, axis="y")
    return figure


def costs(rows: Sequence[Record]) -> Figure:
    """Accuracy against time and parameters of six at most, each with ``name``, ``accuracy`` and ``deviation``."""
    figure = Figure(figsize=(5, 3.5))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, key, label, worded in zip(
        panels, ("seconds", "parameters"), ("time", "parameters"), (duration, rounded), strict=True
    ):
        known = [row[key] for row in rows if row[key]]
        for row, (color, marker) in zip(rows, LOOKS, strict=False):
            looks: dict[str, Any] = {"color": LIGHT[color], "marker": marker, "ls": "", "capsize": 3}
            place = row[key] or math.nan
            drawn = axes.errorbar(place, row["accuracy"], row["deviation"], label=shortened(row["name"], 30), **looks)
            hover(drawn.lines[0], [f"{shortened(row['name'])}: {percent(row['accuracy'], 2)}, {worded(row[key])}"])
        axes.set(xscale="log", xlabel=label)
        if known:
            axes.set_xlim(min(known) / 1.6, max(known) * 1.6)
            ends = sorted({min(known), max(known)} if max(known) > 1.5 * min(known) else {max(known)})
            axes.set_xticks(ends, list(map(worded, ends)))
        axes.set_xticks([], minor=True)
    panels[0].set_ylabel("accuracy")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def overlaid(runs: Sequence[Run], names: Sequence[str], key: str, ylabel: str) -> Figure:
    """The validation ``key`` of each epoch of six runs at most, on one another."""
    curves = [_Curves(run, ylabel) for run in runs]
    first = curves[0]
    for one, name, (color, marker) in zip(curves, names, LOOKS, strict=False):
        one.axes, lines = first.axes, one.run.lines("validation")
        one.line(lines, key, color, shortened(name, 30), marker=marker)
    if key == "accuracy":
        first.axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    first.axes.legend(bbox_to_anchor=(-0.02, 1), ncols=2)
    return first.figure


def confusion(result: Evaluation, counts: list[list[int]]) -> Figure:
    """The confusion matrix ``counts`` as a heat map, coloured by the share of the true class."""
    matrix = np.array(counts, np.int64)  # [true, predicted]
    shares = row_shares(matrix)
    count = len(matrix)
    names = [shortened(row["name"], LONGEST) for row in result["classes"]]
    figure = Figure(figsize=(7, 7) if count > 6 else (4.6, 4.6))
    axes = figure.subplots()
    axes.grid(False)
    heat = LinearSegmentedColormap.from_list("heat", [LIGHT["paper"], LIGHT["heat"]])
    axes.imshow(shares, cmap=heat, vmin=0, vmax=1, interpolation="nearest")
    ticks = range(0, count, math.ceil(count / 40))
    axes.set_xticks(ticks, [names[i] for i in ticks], rotation=90 if count > 6 else 0)
    axes.set_yticks(ticks, [names[i] for i in ticks])
    axes.tick_params(length=0, labelsize=10 if count <= MOST_COUNTS else 6)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.spines[:].set_visible(False)
    if count <= MOST_COUNTS:
        size = max(5, min(10, 110 // count))
        for (row, column), images in np.ndenumerate(matrix):
            color = text_on(LIGHT["paper"], LIGHT["heat"], float(shares[row, column]))
            text = axes.text(column, row, f"{images}", ha="center", va="center", color=color, fontsize=size)
            text.set_in_layout(False)  # it lies within its cell
    return figure


def grid(images: Sequence[NDArray[np.uint8]], captions: Sequence[tuple[str, bool]]) -> Figure:
    """Images [H, W, 3], each over a caption of two lines and whether it tells of a right answer."""
    columns, rows = min(8, len(images)), math.ceil(len(images) / 8)
    figure = Figure(figsize=(1.25 * columns, 1.72 * rows))
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for i, (image, (caption, right)) in enumerate(zip(images, captions, strict=True)):
        x, y = 1.25 * (i % columns) + 0.1, 1.72 * (i // columns) + 0.08
        axes.imshow(image, extent=(x, x + 1.05, y + 1.05, y), interpolation="nearest")
        color = LIGHT["ink"] if right else LIGHT["wrong"]
        axes.text(x + 0.525, y + 1.12, caption, fontsize=7.5, ha="center", va="top", color=color)
    axes.set(xlim=(0, 1.25 * columns), ylim=(1.72 * rows, 0))
    axes.set_aspect("auto")
    return figure


def hover(artist: Artist, words: Sequence[str]) -> None:
    """Let a page say ``words`` where a pointer rests on ``artist``: one for each of its points, or one for all."""
    artist.set_gid("hover:" + json.dumps(list(words)))


def row_shares(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Counts [true, predicted] as shares of their row; 0 in an empty one."""
    shares: NDArray[np.float64] = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    return shares
