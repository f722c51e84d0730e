"""Runs side by side, as tables for a terminal, a page of its own, and a page of documentation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.figure import Figure

from job.config.errors import printable
from job.display import figures, theme
from job.display.text import NOTHING, decimals, duration, percent, rounded, tally
from job.evaluation.comparison import Finished
from job.runs.reader import Record

MOST_DRAWN = 6
"""runs up to which a figure tells them apart"""
MOST_SIDE_BY_SIDE = 12
"""runs up to which every pair is shown, and a column of each fits; ``comparison.json`` has all"""

COSTS = "Accuracy against time, and against the number of parameters; the table has it"
_PUBLISHED = "The published numbers are the reference notebook's, for all classes together; it gives none per class."


class Table(NamedTuple):
    """What a terminal and a page show."""

    name: str
    caption: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""


def tables(comparison: Record) -> list[Table]:
    """All tables of the content of ``comparison.json``."""
    runs, repetitions, pairs = (comparison[part] for part in ("runs", "repetitions", "pairs"))
    few, note = len(runs) <= MOST_SIDE_BY_SIDE, "for each pair by itself."
    if not few:
        best = max(runs, key=lambda run: run["accuracy"])["name"]
        pairs, note = [pair for pair in pairs if best in (pair["first"], pair["second"])], f"of each run with {best}."
    shown = [_arms(comparison), _paired(comparison), _paired_classes(comparison)] if "arms" in comparison else []
    shown += [
        _sources(comparison["sources"]),
        _runs(runs),
        _repetitions([] if shown else repetitions),
        _pairs(pairs, note),
    ]
    shown += [_classes(comparison)] if len(comparison.get("arms", runs)) <= MOST_SIDE_BY_SIDE else []
    return [table for table in shown if table.rows]


def html(comparison: Record, runs: Sequence[Finished], beside: Path) -> str:
    """The comparison as a page of its own, which links the reports of runs as seen from the directory ``beside``."""
    drawn = {}
    if len(runs) <= MOST_DRAWN:
        names = [one.name for one in runs]
        with theme.style():
            figured = {
                "intervals": (figures.intervals(comparison), "Accuracy of each run with its 95% interval"),
                "loss": (_overlaid(runs, names, "loss", "validation loss"), "Validation loss after each epoch"),
                "curves": (_overlaid(runs, names, "accuracy", "accuracy"), "Validation accuracy after each epoch"),
                "accuracy": (figures.compared(comparison), "Accuracy per class of each run; the table has it"),
            }
            drawn = {name: theme.to_svg(figure, name, spoken) for name, (figure, spoken) in figured.items() if figure}
    with theme.style():
        if "arms" in comparison:
            drawn |= _of_arms(comparison)
        elif len(runs) <= MOST_DRAWN:
            drawn["costs"] = theme.to_svg(
                figures.costs([run | {"deviation": None} for run in comparison["runs"]]), "costs", COSTS
            )
    reports = {one.name: one.run.path / "report.html" for one in runs}
    return theme.render(
        "comparison.html.jinja",
        runs=comparison["runs"],
        answers=comparison.get("answers", []),
        arms=comparison.get("arms", []),
        images=len(runs[0].labels),
        tables=tables(comparison),
        drawn=drawn,
        links={name: os.path.relpath(path, beside) for name, path in reports.items() if path.exists()},
    )


def _of_arms(comparison: Record) -> dict[str, Markup]:
    arms, pairs = comparison["arms"], _best_pairs(comparison)[:MOST_DRAWN]
    rows = [arm | {"accuracy": arm["mean"], "deviation": arm["standard_deviation"]} for arm in arms]
    drawn = {}
    if pairs:
        spoken = "Points gained in each pair of arms with its 95% interval; the table has it"
        drawn["gains"] = theme.to_svg(figures.gains(pairs), "gains", spoken)
    if len(rows) <= MOST_DRAWN:
        drawn["costs"] = theme.to_svg(figures.costs(rows), "costs", COSTS)
    return drawn


def _overlaid(runs: Sequence[Finished], names: Sequence[str], key: str, ylabel: str) -> Figure | None:
    """None where no run was validated."""
    measured = any(key in line for one in runs for line in one.run.lines("validation"))
    return figures.overlaid([one.run for one in runs], names, key, ylabel) if measured else None


def markdown(comparison: Record, runs: Sequence[Finished]) -> str:
    """The tables for a page of documentation, and where the numbers come from."""
    parts = ["# Results", f"Written by `python job/compare.py RUN ... --markdown FILE`. {_PUBLISHED}"]
    for table in tables(comparison):
        lines = [
            table.head,
            ["---", *["---:"] * (len(table.head) - 1)],
            *([cell.replace("|", "\\|") for cell in row] for row in table.rows),
        ]
        parts += [f"## {table.caption}", "\n".join(printable(f"| {' | '.join(line)} |") for line in lines)]
    return "\n\n".join([*parts, "## Where they ran", "\n".join(map(_where, runs))]) + "\n"


def _table(name: str, caption: str, rows: list[dict[str, str]], note: str = "") -> Table:
    """A table of rows that have the same keys: these are its head."""
    return Table(name, caption, list(rows[0] if rows else []), [list(row.values()) for row in rows], note)


def _where(one: Finished) -> str:
    run, environment = one.run, one.run.environment
    versions = ", ".join(f"{name} {environment[name]}" for name in ("torch", "accelerate") if name in environment)
    recipe = f"{run.setting('train.epochs')} epochs, batch {run.setting('train.batch_size')}"
    devices = tally(environment.get("devices", []))
    return printable(f"- {one.name}: {run.title}, {recipe}, {run.setting('runtime.precision')}; {devices}; {versions}")


def _runs(runs: list[Record]) -> Table:
    rows = [
        {
            "run": run["name"],
            "model": run["model"],
            "seed": str(run["seed"]),
            "accuracy" if run["split"] == "test" else f"{run['split']} accuracy": percent(run["accuracy"], 2),
            "interval": f"{100 * run['interval'][0]:.1f}-{run['interval'][1]:.1%}",
            "published": percent(run["published"], 2),
            "above": _points(run["above_published"]),
            "images/s": rounded(run["images_per_second"]),
            "time": duration(run["seconds"]),
            "weights": rounded(run["parameters"]),
        }
        for run in runs
    ]
    return _table("runs", "Runs", rows, _PUBLISHED if any(run["published"] for run in runs) else "")


def _repetitions(groups: list[Record]) -> Table:
    rows = [
        {
            "runs": ", ".join(group["runs"]),
            "seeds": str(len(group["seeds"])),
            "mean accuracy": percent(group["mean"], 2),
            "standard deviation, points": f"{100 * group['standard_deviation']:.2f}",
        }
        for group in groups
    ]
    return _table("over", "Over seeds", rows, "Runs of the same recipe that differ in nothing but the seed.")


def _sources(found: list[Record]) -> Table:
    whole = {row["model"]: row["deviation"] for row in found if row["source"] == "all"}
    rows = [
        {
            "model": row["model"],
            "differs": "all seeds" if row["source"] == "all" else f"{row['source']} alone",
            "runs": str(row["runs"]),
            "deviation, points": f"{100 * row['deviation']:.2f}",
            "95%": f"{100 * row['interval'][0]:.2f}-{100 * row['interval'][1]:.2f}",
            "of the variance": percent((row["deviation"] / of_all) ** 2, 0)
            if (of_all := whole.get(row["model"]))
            else NOTHING,
        }
        for row in found
    ]
    note = "Runs of one recipe that differ in one seed alone. What sources do together is the rest."
    return _table("sources", "Where chance comes from", rows, note)


def _arms(comparison: Record) -> Table:
    rows = [
        {
            "arm": arm["name"],
            "seeds": str(len(arm["seeds"])),
            "mean accuracy": percent(arm["mean"], 2),
            "deviation, points": NOTHING
            if arm["standard_deviation"] is None
            else f"{100 * arm['standard_deviation']:.2f}",
            "macro accuracy": percent(arm["macro_accuracy"], 2),
            "time": duration(arm["seconds"]),
            "weights": rounded(arm["parameters"]),
        }
        for arm in sorted(comparison["arms"], key=lambda arm: -arm["mean"])
    ]
    return _table("arms", "Arms", rows)


def _best_pairs(comparison: Record) -> list[Record]:
    """All pairs of few arms; of many, those of the best one."""
    best = max(comparison["arms"], key=lambda arm: arm["mean"])["name"]
    few = len(comparison["arms"]) <= MOST_DRAWN
    return [pair for pair in comparison["paired"] if few or best in (pair["first"], pair["second"])]


def _paired(comparison: Record) -> Table:
    def half(value: float | None) -> str:
        return NOTHING if value is None else f"± {100 * value:.2f}"

    rows = [
        {
            "first / second": f"{pair['first']} / {pair['second']}",
            "seeds": str(len(pair["seeds"])),
            "points gained": _points(pair["difference"]),
            "95%, other seeds": half(pair["half_width"]),
            "95%, other images": half(pair["half_width_images"]),
            "p (Holm)": _chance(pair["p_holm"]),
            "seeds if unpaired": rounded(pair["unpaired_seeds"]),
        }
        for pair in _best_pairs(comparison)
    ]
    how = "always valid, since seeds were added until it was decided" if comparison["always_valid"] else "Student's t"
    return _table(
        "paired",
        "Arms against each other, paired by seed",
        rows,
        "Second less first. The larger of the two intervals is where chance comes from: what other seeds would give on "
        f"these test images ({how}), and what other test images would give of these runs.",
    )


def _paired_classes(comparison: Record) -> Table:
    pairs = _best_pairs(comparison)[:MOST_DRAWN]
    names = [row["name"] for row in pairs[0]["classes"]] if pairs else []
    head = ["class", *(f"{pair['first']} / {pair['second']}" for pair in pairs)]
    rows = [[name, *(_points(pair["classes"][i]["difference"]) for pair in pairs)] for i, name in enumerate(names)]
    return Table("gains", "Points gained per class, mean over seeds", head, rows)


def _pairs(pairs: list[Record], which: str) -> Table:
    rows = [
        {
            "first / second": f"{pair['first']} / {pair['second']}",
            "points gained": _points(pair["difference"]),
            "only first right": rounded(pair["only_first_right"]),
            "only second right": rounded(pair["only_second_right"]),
            "McNemar's p": _chance(pair["p"]),
        }
        for pair in pairs
    ]
    return _table("pairs", "Pairs of runs on the same images", rows, f"McNemar's test, exact and two-sided, {which}")


def _classes(comparison: Record) -> Table:
    names = [row["name"] for row in comparison["classes"]]
    if arms := comparison.get("arms"):
        rows = [[name, *(percent(arm["classes"][i]) for arm in arms)] for i, name in enumerate(names)]
        return Table("accuracy", "Accuracy per class, mean over seeds", ["class", *(arm["name"] for arm in arms)], rows)
    head = ["class", *(run["name"] for run in comparison["runs"])]
    rows = [[name, *map(percent, row["accuracy"])] for name, row in zip(names, comparison["classes"], strict=True)]
    if len(comparison["runs"]) == 2:
        head.append("points gained")
        for cells, row in zip(rows, comparison["classes"], strict=True):
            cells.append(_points(None if None in row["accuracy"] else row["accuracy"][1] - row["accuracy"][0]))
    return Table("accuracy", "Accuracy per class", head, rows)


def _chance(p: float | None) -> str:
    return "< 0.0001" if p is not None and p < 0.0001 else decimals(p)


def _points(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:+.2f}"
