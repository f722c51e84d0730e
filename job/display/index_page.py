"""The runs below a folder as one page, ``index.html``, from which each run's report is a click away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from job.display import theme
from job.display.text import heights
from job.runs import reader
from job.runs.files import write_whole
from job.runs.reader import Run, number

MOST_POINTS = 60
"""of a curve that is as wide as a word"""


class Row(NamedTuple):
    """A run, as a line of the page."""

    run: Run
    name: str
    """its path below the folder"""
    report: str
    """its report's, if it has one"""
    started: str
    curve: str
    """its training loss as the points of a polyline, 100 wide and 20 high"""


SORTED: dict[str, tuple[Callable[[Row], Any], bool]] = {
    "newest first": (lambda row: row.started, True),
    "most accurate first": (lambda row: number(row.run.accuracy, -1.0), True),
    "by name": (lambda row: row.name, False),
    "by model": (lambda row: row.run.title, False),
    "by state": (lambda row: row.run.state, False),
}
"""orders of the page, by what and whether from the highest on; it opens in the first"""


def write(folder: Path) -> Path:
    """Write ``index.html`` into ``folder``; returns its path. Raises OSError when it cannot be written."""
    runs, problems = reader.read_below(folder)
    rows = [_row(run, folder) for run in runs]
    orders = [sorted(range(len(rows)), key=lambda i: key(rows[i]), reverse=down) for key, down in SORTED.values()]
    page = folder / "index.html"
    html = theme.render(
        "index.html.jinja",
        folder=folder.resolve().name,
        rows=[(rows[i], [order.index(i) for order in orders]) for i in orders[0]],
        orders=list(SORTED),
        problems=problems,
    )
    write_whole(page, html)
    return page


def _row(run: Run, folder: Path) -> Row:
    losses = heights([number(line.get("loss")) for line in run.lines("train")], MOST_POINTS)
    curve = " ".join(f"{100 * i / max(len(losses) - 1, 1):.1f},{19 - 18 * y:.1f}" for i, y in enumerate(losses))
    report = run.path / "report.html"
    return Row(
        run,
        name=str(run.path.relative_to(folder)),
        report=str(report.relative_to(folder)) if report.exists() else "",
        started=run.attempts[0].started if run.attempts else "",
        curve=curve if len(losses) > 1 else "",
    )
