"""Figures of a run, drawn by matplotlib within ``theme.style``.

matplotlib is imported inside functions: training must not wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from job.display.text import hardest, percent, shortened
from job.display.theme import LIGHT, text_on
from job.runs.reader import Record, Run, number
from job.runs.records import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST = 18  # characters of a class name beside an axis
MOST_POINTS = 400  # of a curve: more cannot be seen, and would make the page heavy
MOST_COUNTS = 25  # classes up to which a confusion matrix has room for its counts


def loss(run: Run) -> Figure:
    """Training loss as it went, and of each epoch, with the validation loss."""
    figure, axes = _axes("loss (cross-entropy, nats)")
    x, xlabel = _positions(run)
    lines = run.lines("train")
    _line(
        axes,
        x(lines),
        _values(lines, "loss"),
        color=LIGHT["muted"],
        linewidth=0.9,
        alpha=0.6,
        label="steps",
    )
    epochs = run.lines("validation")
    _line(axes, x(epochs), _values(epochs, "train_loss"), color=LIGHT["accent"], marker="o", label="training")
    _line(axes, x(epochs), _values(epochs, "loss"), color=LIGHT["second"], marker="s", label="validation")
    return _finished(figure, axes, run, x, xlabel)


def accuracy(run: Run, published: float | None = None) -> Figure:
    """Validation accuracy of each epoch, the test accuracy with its interval, and the published one."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure, axes = _axes("accuracy")
    x, xlabel = _positions(run)
    epochs = run.lines("validation")
    _line(axes, x(epochs), _values(epochs, "accuracy"), color=LIGHT["second"], marker="s", label="validation")
    if run.evaluation and epochs:
        found, (low, high) = run.evaluation["accuracy"], run.evaluation["interval"]
        error = [[found - low], [high - found]]
        axes.errorbar(
            x(epochs[-1:]), [found], error, color=LIGHT["accent"], marker="D", capsize=4, ls="", label="test, 95%"
        )
    if published is not None and epochs:
        axes.axhline(published, color=LIGHT["muted"], linewidth=1, linestyle=(0, (5, 3)), label="published")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0 if high - low > 0.04 else 1))
    return _finished(figure, axes, run, x, xlabel)


def throughput(run: Run) -> Figure:
    """Images per second of training, over all processes."""
    figure, axes = _axes("images a second")
    x, xlabel = _positions(run)
    lines = run.lines("train")
    _line(axes, x(lines), _values(lines, "images_per_second"), color=LIGHT["accent"], label="training")
    if run.images_per_second is not None:
        axes.axhline(
            run.images_per_second, color=LIGHT["muted"], linewidth=1.3, linestyle=(0, (1, 1.5)), label="median"
        )
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value < 1e5 else f"{value / 1000:,.0f} k")
    return _finished(figure, axes, run, x, xlabel)


def classes(result: Evaluation, published: float | None = None) -> Figure:
    """Accuracy per class as bars with 95% intervals, the hardest first; ``result`` is of ``evaluation.json``."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    rows = hardest(result)
    figure = Figure(figsize=(5.2, 1 + 0.25 * len(rows)))
    axes = figure.subplots()
    axes.grid(False)
    places = np.arange(len(rows))
    intervals = np.array([row["interval"] or (math.nan, math.nan) for row in rows], np.float64).reshape(-1, 2)
    axes.barh(places, 1, color=LIGHT["panel"], height=0.72)
    axes.barh(places, [number(row["accuracy"]) for row in rows], color=LIGHT["accent"], height=0.72)
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
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, borderaxespad=0.2, handlelength=1.4)
    return figure


def compared(found: Record) -> Figure:
    """Accuracy per class of each run as points; ``found`` is of ``comparison.json``, with six runs at most."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    mean = [np.nanmean([number(v) for v in row["accuracy"]] or [math.nan]) for row in found["classes"]]
    order = np.argsort(mean)
    figure = Figure(figsize=(5.2, 1.1 + 0.25 * len(order)))
    axes = figure.subplots()
    looks = zip(("accent", "second", "right", "muted", "wrong", "ink"), "osD^vP", strict=True)
    for i, (run, (color, marker)) in enumerate(zip(found["runs"], looks, strict=False)):
        values = [number(found["classes"][c]["accuracy"][i]) for c in order]
        axes.plot(
            values, np.arange(len(order)), ls="", marker=marker, color=LIGHT[color], label=shortened(run["name"], 30)
        )
    axes.set_yticks(np.arange(len(order)), [shortened(found["classes"][c]["name"], LONGEST) for c in order])
    axes.set(ylim=(len(order) - 0.5, -0.5), xlabel="accuracy")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    return figure


def confusion(result: Evaluation) -> Figure:
    """The confusion matrix as a heat map, coloured by the share of the true class; ``result`` as for ``classes``."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    matrix = np.array(result["confusion_matrix"], np.int64)  # [true, predicted]
    shares = row_shares(matrix)
    count = len(matrix)
    names = [shortened(row["name"], LONGEST) for row in result["classes"]]
    figure = Figure(figsize=(7, 7) if count > 6 else (4.6, 4.6))
    axes = figure.subplots()
    axes.grid(False)
    axes.imshow(
        shares,
        cmap=LinearSegmentedColormap.from_list("heat", [LIGHT["paper"], LIGHT["heat"]]),
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    every = max(1, math.ceil(count / 40))
    ticks = np.arange(0, count, every)
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


def grid(images: Sequence[NDArray[np.uint8]], captions: Sequence[tuple[str, bool]], columns: int = 8) -> Figure:
    """Images [H, W, 3], each over a caption of two lines and whether it tells of a right answer."""
    from matplotlib.figure import Figure

    columns = max(1, min(columns, len(images)))
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(1.25 * columns, 1.72 * max(rows, 1)))
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for i, (image, (caption, right)) in enumerate(zip(images, captions, strict=True)):
        x, y = 1.25 * (i % columns) + 0.1, 1.72 * (i // columns) + 0.08
        axes.imshow(image, extent=(x, x + 1.05, y + 1.05, y), interpolation="nearest")
        color = LIGHT["ink"] if right else LIGHT["wrong"]
        axes.text(x + 0.525, y + 1.12, caption, fontsize=7.5, ha="center", va="top", color=color)
    axes.set(xlim=(0, 1.25 * columns), ylim=(1.72 * max(rows, 1), 0))
    axes.set_aspect("auto")
    return figure


def row_shares(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Counts [true, predicted] as shares of their row; 0 in an empty one."""
    shares: NDArray[np.float64] = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    return shares


def _axes(ylabel: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5))
    axes = figure.subplots()
    axes.set_ylabel(ylabel)
    return figure, axes


def _positions(run: Run) -> tuple[Any, str]:
    """A function from metrics lines to places on the horizontal axis, and its label: epochs once one has passed."""
    per_epoch = run.steps_per_epoch
    divisor = per_epoch or 1
    return lambda lines: np.array([line["step"] / divisor for line in lines]), "epoch" if per_epoch else "step"


def _values(lines: list[Record], key: str) -> NDArray[np.float64]:
    return np.array([number(line.get(key)) for line in lines])


def _line(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], label: str, **looks: Any) -> None:
    """A curve, averaged to what can be seen; nothing, also in the legend, where there is nothing finite."""
    if not np.isfinite(y).any():
        return
    if len(y) > MOST_POINTS:
        parts = np.array_split(np.arange(len(y)), MOST_POINTS)
        with np.errstate(invalid="ignore"):
            x, y = (np.array([v[part].mean() for part in parts]) for v in (x, y))
    if len(y) > 40 or looks.get("marker") is None:
        looks.pop("marker", None)
        if np.isfinite(y).sum() == 1:
            looks["marker"] = "o"
    axes.plot(x, y, label=label, markersize=3.5, **looks)


def _finished(figure: Figure, axes: Axes, run: Run, x: Any, xlabel: str) -> Figure:
    """Axis labels, the legend, and where the run was interrupted."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(xlabel)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    handles, _ = axes.get_legend_handles_labels()
    if not handles:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "nothing measured yet", transform=axes.transAxes, ha="center", color=LIGHT["muted"])
        return figure
    axes.set_xlim(left=0)
    for i, step in enumerate(run.resumed_at):
        place = x([{"step": step}])[0]
        axes.axvline(place, color=LIGHT["wrong"], linewidth=1, linestyle=(0, (2, 2)), label="" if i else "resumed")
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1),
        ncols=4,
        borderaxespad=0.2,
        columnspacing=1.2,
        handlelength=1.4,
        fontsize=9.5,
    )
    return figure
