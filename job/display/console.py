"""What rank zero shows: one progress bar on a terminal, plain lines in a file; all of it also in ``log.txt``."""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TextIO

from rich import box
from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from job.config.errors import printable
from job.display.text import duration, hardest, hardest_named, mistake, percent, rounded, uneven
from job.runs.records import ClassRow, Evaluation

PLAIN_EVERY = 30.0
"""seconds between progress lines when the output is no terminal"""
PLAIN_WIDTH = 100
"""columns when the output is no terminal"""


class Advance(Protocol):
    """Told how many more are done, and at times what to note beside the bar."""

    def __call__(self, more: int, note: str = "") -> None: ...


class Console:
    """Standard output and ``log.txt``. ``quiet`` on ranks other than zero: says nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        # A Slurm log has no width of its own; a hundred columns hold the tables.
        width = None if RichConsole().is_terminal or "COLUMNS" in os.environ else PLAIN_WIDTH
        self._screen = RichConsole(quiet=quiet, width=width, highlight=False)
        self._early = io.StringIO()
        self._log: TextIO = self._early

    def log_to(self, path: Path) -> None:
        """Append all that was said, and will be, to ``path``. Logging is given up, and said, when the disk is full."""
        if self._quiet:
            return
        with contextlib.suppress(OSError):
            self._log = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 (open as long as the process)
            self._log.write(self._early.getvalue())

    def say(self, text: str, style: str = "") -> None:
        """One line."""
        if self._quiet:
            return
        self._screen.print(plain_text(text, style), soft_wrap=True)
        self._to_log(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")

    def warn(self, text: str) -> None:
        """One line that asks for attention."""
        self.say(f"warning: {text}", "yellow")

    def show(self, draw: Callable[[int], Table]) -> None:
        """The table that ``draw`` makes for a width in columns: for the screen, and for the log."""
        if self._quiet:
            return
        self._screen.print(draw(self._screen.width))
        plain = RichConsole(file=io.StringIO(), width=PLAIN_WIDTH, no_color=True, force_terminal=False)
        with plain.capture() as capture:
            plain.print(draw(PLAIN_WIDTH))
        for line in capture.get().rstrip().splitlines():
            self._to_log(line.rstrip())

    def result(self, result: Evaluation) -> None:
        """The content of ``evaluation.json``: every class, and what is hard."""
        block = "━" if self._screen.encoding.startswith("utf") else "#"
        self.show(lambda width: class_table(result, width, block))
        mistakes = [f"{mistake(confusion)} ({confusion['images']})" for confusion in result["top_confusions"][:5]]
        self.say(f"hardest: {', '.join(hardest_named(result))}")
        self.say(f"most confused: {', '.join(mistakes) or 'none'}")
        if words := uneven(result):
            self.say(words)

    @contextlib.contextmanager
    def bar(self, description: str, total: int | None, unit: str, done: int = 0, beyond: int = 0) -> Iterator[Advance]:
        """A bar for ``total`` things of ``unit``; yields what is told how many more are done, and a note beside it.

        ``done`` of ``total`` were there before. The time left is to the end of ``beyond`` more after ``total`` as well.
        """
        began = said = time.monotonic()
        count, latest = done, ""

        def advance(more: int, note: str = "") -> None:
            nonlocal count, latest, said
            count, latest, now = count + more, note or latest, time.monotonic()
            rate = (count - done) / max(now - began, 1e-9)
            left = f"{duration((total - count + beyond) / rate)} left" if total and rate else ""
            words = "  ".join(part for part in (f"{rate:,.0f} {unit}/s", left, latest) if part)
            if drawn:
                bars.update(task, advance=more, words=words)
            elif now - said >= PLAIN_EVERY:
                said = now
                of = f" of {total:,}" if total else ""
                self.say(f"{description}: {count:,}{of} {unit}  {words}")

        words = TextColumn("{task.fields[words]}")
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), words)
        drawn = self._screen.is_terminal and not self._quiet
        bars = Progress(*columns, console=self._screen, transient=True, refresh_per_second=4)
        task = bars.add_task(printable(description), total=total, completed=done, words="")
        with bars if drawn else contextlib.nullcontext():
            yield advance

    def _to_log(self, line: str) -> None:
        # A log that cannot be written is no reason to stop: the screen still has it.
        with contextlib.suppress(OSError):
            self._log.write(printable(line) + "\n")


MOST_CLASSES, HARDEST = 100, 25
"""with more classes than that a terminal shows so many; ``evaluation.json`` has all"""
_COLUMNS: dict[str, tuple[int, Callable[[ClassRow], str]]] = {
    "accuracy": (10, lambda row: percent(row["accuracy"])),
    "95% interval": (17, lambda row: " - ".join(map(percent, row["interval"] or (None, None)))),
    "images": (8, lambda row: rounded(row["images"])),
    "precision": (11, lambda row: percent(row["precision"])),
    "F1": (8, lambda row: percent(row["f1"])),
    "correct": (9, lambda row: rounded(row["correct"])),
}
"""columns that each takes of the screen and what stands there, the most important first"""


def class_table(result: Evaluation, width: int = PLAIN_WIDTH, block: str = "#") -> Table:
    """Accuracy per class with bars of ``block``; what matters less goes first where ``width`` columns are few."""
    low, high = result["interval"]
    rows, few = result["classes"], ""
    if len(rows) > MOST_CLASSES:
        rows, few = hardest(result)[:HARDEST], f"; the hardest {HARDEST} of {len(rows):,} classes"
    table = plain_table(
        f"{result['split']}: {result['accuracy']:.2%} of {result['images']:,} images "
        f"(95% interval {low:.2%} to {high:.2%}), loss {result['loss']:.4f}{few}"
    )
    name_width = min(max(len(printable(row["name"])) for row in rows), max(8, width - 24))
    room = width - name_width - 13  # less the bar
    table.add_column("class", width=name_width, no_wrap=True)
    shown = []
    for name, (needed, value) in _COLUMNS.items():
        room -= needed
        if room >= 0:
            shown.append(value)
            table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in rows:
        bar = Text(block * round(10 * (row["accuracy"] or 0)), style="cyan")
        table.add_row(plain_text(row["name"]), *(value(row) for value in shown), bar)
    return table


def plain_text(text: str, style: str = "") -> Text:
    """``text`` for one line or cell of a terminal, where nothing in it is obeyed or taken for markup."""
    return Text(printable(text), style)


def plain_table(title: str) -> Table:
    """A table with a rule below its head and no other, yet without columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.title, table.title_justify = plain_text(title, "bold"), "left"
    return table
