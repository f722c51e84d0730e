"""Compare finished runs: accuracy, per class, by McNemar's test, over seeds, speed, and with the published numbers.

  python job/compare.py RUN [RUN ...] [--out DIR] [--markdown FILE]
Shows tables, and writes comparison.html and comparison.json into DIR (default: the current directory). docs/results.md
is what --markdown writes.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: `job` is found from anywhere, and what lies in job/ shadows nothing
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
from collections.abc import Sequence
from functools import partial
from html import escape
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from job.config.command_line import Arguments
from job.config.errors import UserError
from job.display import figures, page, theme
from job.display.page import percent
from job.distributed import ending
from job.evaluation import comparison
from job.evaluation.comparison import Finished
from job.runs import reader

MOST_DRAWN = 6
"""runs up to which a figure tells them apart"""

_PUBLISHED = "The published numbers are the reference notebook's, for all classes together; it gives none per class."

Rows = list[list[str]]


def main(argv: list[str]) -> int:
    """Compare the runs named; returns the exit status."""
    from job.display.console import Console

    parser = Arguments(__doc__ or "")
    parser.add_argument("run", nargs="+", type=Path, help="run directory of a finished run")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where the two files go")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too, with what ran them")
    options = parser.parse_args(argv)
    runs = comparison.read(options.run)
    found = comparison.compare(runs)
    console = Console()
    for caption, head, rows in tables(found):
        console.show(partial(_table, caption, head, rows))
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "comparison.json").write_text(json.dumps(found, indent=1) + "\n")
        page.save(options.out / "comparison.html", html(found, runs))
        if options.markdown is not None:
            options.markdown.write_text(markdown(found, runs))
    except OSError as error:
        raise UserError(f"{options.out} cannot be written ({error.strerror})", "give another --out") from None
    for name in ("comparison.html", "comparison.json"):
        console.say(f"wrote {options.out / name}")
    return 0


def tables(found: dict[str, Any]) -> list[tuple[str, list[str], Rows]]:
    """What the terminal and the page show: caption, column heads and rows of each table."""
    shown = [("Runs", _RUNS, [_run_row(run) for run in found["runs"]])]
    if found["repetitions"]:
        rows = [
            [
                ", ".join(group["runs"]),
                str(len(group["seeds"])),
                percent(group["mean"], 2),
                f"{100 * group['standard_deviation']:.2f}",
            ]
            for group in found["repetitions"]
        ]
        shown.append(("Over seeds", ["runs", "seeds", "mean accuracy", "standard deviation, points"], rows))
    if found["pairs"]:
        rows = [
            [
                f"{pair['first']} / {pair['second']}",
                _points(pair["difference"]),
                str(pair["only_first_right"]),
                str(pair["only_second_right"]),
                _p(pair["p"]),
            ]
            for pair in found["pairs"]
        ]
        head = ["first / second", "points gained", "only first right", "only second right", "McNemar's p"]
        shown.append(("Pairs of runs on the same pictures", head, rows))
    names = [run["name"] for run in found["runs"]]
    two = len(names) == 2
    rows = [
        [row["name"], *(percent(value) for value in row["accuracy"])]
        + ([_points(_difference(*row["accuracy"]))] if two else [])
        for row in found["classes"]
    ]
    shown.append(("Accuracy per class", ["class", *names, *(["points gained"] if two else [])], rows))
    return shown


_RUNS = ["run", "model", "seed", "accuracy", "interval", "published", "above", "images/s", "time", "weights"]


def _run_row(run: dict[str, Any]) -> list[str]:
    low, high = run["interval"]
    return [
        run["name"],
        run["model"],
        str(run["seed"]),
        percent(run["accuracy"], 2),
        f"{100 * low:.1f}-{high:.1%}",
        percent(run["published"], 2),
        _points(run["above_published"]),
        "-" if run["images_per_second"] is None else f"{run['images_per_second']:,.0f}",
        reader.duration(run["seconds"]),
        "-" if run["parameters"] is None else f"{run['parameters']:,}",
    ]


def _table(caption: str, head: Sequence[str], rows: Rows, _width: int) -> Table:
    table = Table(
        title=caption,
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        title_justify="left",
        title_style="bold",
    )
    table.add_column(head[0], overflow="fold")
    for name in head[1:]:
        table.add_column(name, justify="right", no_wrap=name != "model", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def html(found: dict[str, Any], runs: Sequence[Finished]) -> str:
    """The comparison as a page of its own."""
    best = max(found["runs"], key=lambda run: run["accuracy"])
    images = len(runs[0].labels)
    summary = f"Tested on the same {images:,} pictures, {best['name']} is right most often: {best['accuracy']:.2%}."
    if len(runs) == 1:
        summary = f"{best['name']} is right on {best['accuracy']:.2%} of {images:,} pictures."
    if found["pairs"]:
        summary += " A small p means that two runs differ by more than chance on these pictures would explain;"
        summary += " it says nothing of other seeds."
    notes = {
        "Runs": _PUBLISHED if best["published"] is not None else "",
        "Pairs of runs on the same pictures": "McNemar's test, exact and two-sided, for each pair by itself.",
        "Over seeds": "Runs of the same recipe that differ in nothing but the seed.",
    }
    parts = []
    for caption, head, rows in tables(found):
        figure = _figure(found) if caption == "Accuracy per class" and len(runs) <= MOST_DRAWN else ""
        name = caption.split()[0].lower()
        content = page.table(caption, head, rows, titled=False)
        content = f"<div class=pair>{figure}{content}</div>" if figure else content
        parts.append(page.section(name, caption, content, notes.get(caption, "")))
    title = f"{len(runs)} runs compared" if len(runs) > 1 else "One run and the published numbers"
    body = f"""<header><p class=kicker>{escape(", ".join(run["name"] for run in found["runs"]))}</p>
<h1>{escape(title)}</h1><p class=summary>{escape(summary)}</p></header>
<main id="main">{"".join(parts)}</main>
<footer>Made by <code>python job/compare.py</code>. Intervals are Wilson's, 95%.</footer>"""
    return page.page(title, body)


def markdown(found: dict[str, Any], runs: Sequence[Finished]) -> str:
    """The tables for a page of documentation, and where the numbers come from."""
    parts = ["# Results", f"Written by `python job/compare.py RUN ... --markdown FILE`. {_PUBLISHED}"]
    for caption, head, rows in tables(found):
        lines = [
            head,
            ["---", *["---:"] * (len(head) - 1)],
            *([cell.replace("|", "\\|") for cell in row] for row in rows),
        ]
        parts += [f"## {caption}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    parts.append("## Where they ran")
    for one in runs:
        environment, devices = one.run.environment, one.run.environment.get("devices", [])
        names = ", ".join(f"{devices.count(name)} × {name}" for name in dict.fromkeys(devices))
        versions = ", ".join(f"{name} {environment[name]}" for name in ("torch", "accelerate") if name in environment)
        recipe = f"{one.run.setting('train.epochs')} epochs, batch {one.run.setting('train.batch_size')}"
        precision = one.run.setting("runtime.precision")
        parts.append(f"- {one.name}: {one.run.title}, {recipe}, {precision}; {names}; {versions}")
    return "\n\n".join(parts).replace("\n\n- ", "\n- ").replace("ran\n- ", "ran\n\n- ") + "\n"


def _figure(found: dict[str, Any]) -> str:
    with theme.style():
        drawn = figures.compared(found)
        return f"<figure>{theme.to_svg(drawn, 'compared', 'Accuracy per class of each run; the table has it')}</figure>"


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else second - first


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.2f}"


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


if __name__ == "__main__":
    ending.entry(main)
