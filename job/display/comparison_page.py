"""Runs side by side, as tables for a terminal, a page of its own, and a page of documentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from job.display import figures, theme
from job.display.text import NOTHING, decimals, duration, percent, rounded, tally
from job.evaluation.comparison import Finished

MOST_DRAWN = 6
"""runs up to which a figure tells them apart"""

_PUBLISHED = "The published numbers are the reference notebook's, for all classes together; it gives none per class."


class Table(NamedTuple):
    """What a terminal and a page show."""

    name: str
    caption: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""


def tables(found: dict[str, Any]) -> list[Table]:
    """All tables of ``found``, the content of ``comparison.json``."""
    shown = [_runs(found["runs"])]
    if found["repetitions"]:
        shown.append(_repetitions(found["repetitions"]))
    if found["pairs"]:
        shown.append(_pairs(found["pairs"]))
    return [*shown, _classes(found)]


def html(found: dict[str, Any], runs: Sequence[Finished]) -> str:
    """The comparison as a page of its own."""
    figure = None
    if len(runs) <= MOST_DRAWN:
        with theme.style():
            figure = theme.to_svg(
                figures.compared(found), "compared", "Accuracy per class of each run; the table has it"
            )
    best = max(found["runs"], key=lambda run: run["accuracy"])
    return theme.render(
        "comparison.html.jinja",
        runs=found["runs"],
        best=best,
        images=len(runs[0].labels),
        tables=tables(found),
        figure=figure,
    )


def markdown(found: dict[str, Any], runs: Sequence[Finished]) -> str:
    """The tables for a page of documentation, and where the numbers come from."""
    parts = ["# Results", f"Written by `python job/compare.py RUN ... --markdown FILE`. {_PUBLISHED}"]
    for table in tables(found):
        lines = [
            table.head,
            ["---", *["---:"] * (len(table.head) - 1)],
            *([cell.replace("|", "\\|") for cell in row] for row in table.rows),
        ]
        parts += [f"## {table.caption}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    return "\n\n".join([*parts, "## Where they ran", "\n".join(map(_where, runs))]) + "\n"


def _where(one: Finished) -> str:
    run, environment = one.run, one.run.environment
    versions = ", ".join(f"{name} {environment[name]}" for name in ("torch", "accelerate") if name in environment)
    recipe = f"{run.setting('train.epochs')} epochs, batch {run.setting('train.batch_size')}"
    devices = tally(environment.get("devices", []))
    return f"- {one.name}: {run.title}, {recipe}, {run.setting('runtime.precision')}; {devices}; {versions}"


def _runs(runs: list[dict[str, Any]]) -> Table:
    head = ["run", "model", "seed", "accuracy", "interval", "published", "above", "images/s", "time", "weights"]
    rows = [
        [
            *(run["name"], run["model"], str(run["seed"]), percent(run["accuracy"], 2)),
            f"{100 * run['interval'][0]:.1f}-{run['interval'][1]:.1%}",
            *(percent(run["published"], 2), _points(run["above_published"]), rounded(run["images_per_second"])),
            *(duration(run["seconds"]), rounded(run["parameters"])),
        ]
        for run in runs
    ]
    return Table("runs", "Runs", head, rows, _PUBLISHED if any(run["published"] for run in runs) else "")


def _repetitions(groups: list[dict[str, Any]]) -> Table:
    head = ["runs", "seeds", "mean accuracy", "standard deviation, points"]
    rows = [
        [
            *(", ".join(group["runs"]), str(len(group["seeds"])), percent(group["mean"], 2)),
            f"{100 * group['standard_deviation']:.2f}",
        ]
        for group in groups
    ]
    return Table("over", "Over seeds", head, rows, "Runs of the same recipe that differ in nothing but the seed.")


def _pairs(pairs: list[dict[str, Any]]) -> Table:
    head = ["first / second", "points gained", "only first right", "only second right", "McNemar's p"]
    rows = [
        [
            *(f"{pair['first']} / {pair['second']}", _points(pair["difference"])),
            *(rounded(pair[f"only_{which}_right"]) for which in ("first", "second")),
            "< 0.0001" if pair["p"] < 0.0001 else decimals(pair["p"]),
        ]
        for pair in pairs
    ]
    note = "McNemar's test, exact and two-sided, for each pair by itself."
    return Table("pairs", "Pairs of runs on the same images", head, rows, note)


def _classes(found: dict[str, Any]) -> Table:
    head = ["class", *(run["name"] for run in found["runs"])]
    rows = [[row["name"], *map(percent, row["accuracy"])] for row in found["classes"]]
    if len(found["runs"]) == 2:
        head.append("points gained")
        for cells, (first, second) in zip(rows, (row["accuracy"] for row in found["classes"]), strict=True):
            cells.append(_points(None if first is None or second is None else second - first))
    return Table("accuracy", "Accuracy per class", head, rows)


def _points(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:+.2f}"
