"""What rank zero shows: one progress bar on a terminal, plain lines in a file; all of it also in ``log.txt``."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

PLAIN_EVERY = 30.0
"""seconds between progress lines when the output is no terminal"""


class Console:
    """Standard output and ``log.txt``. ``quiet`` on ranks other than zero: says nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        # A Slurm log has no width of its own; a hundred columns hold the tables.
        width = None if RichConsole().is_terminal or "COLUMNS" in os.environ else 100
        self._screen = RichConsole(quiet=quiet, width=width, highlight=False, soft_wrap=False)
        self._log: TextIO | None = None
        self._early: list[str] = []

    def log_to(self, path: Path) -> None:
        """Append all that was said, and will be, to ``path``. Logging is given up, and said, when the disk is full."""
        if self._quiet:
            return
        with contextlib.suppress(OSError):
            self._log = open(path, "a", buffering=1)  # noqa: SIM115 (open as long as the process)
        for line in self._early:
            self._to_log(line)

    def say(self, text: str, style: str = "") -> None:
        """One line."""
        self._screen.print(Text(text, style=style), soft_wrap=True)
        self._to_log(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")

    def warn(self, text: str) -> None:
        """One line that asks for attention."""
        self.say(f"warning: {text}", "yellow")

    def show(self, table: Table) -> None:
        """A table, in colour on the screen and plain in the log."""
        self._screen.print(table)
        if self._quiet:
            return
        plain = RichConsole(file=None, width=100, no_color=True, force_terminal=False)
        with plain.capture() as capture:
            plain.print(table)
        for line in capture.get().rstrip().splitlines():
            self._to_log(line)

    @contextlib.contextmanager
    def progress(self, description: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        """A bar for ``total`` things of ``unit``; yields a function to call with how many more are done."""
        with self.bar(description, total, unit) as advance:
            yield lambda n: advance(n, "")

    @contextlib.contextmanager
    def bar(
        self, description: str, total: int | None, unit: str, done: int = 0
    ) -> Iterator[Callable[[int, str], None]]:
        """Like ``progress``, with a note beside the bar."""
        began = said = time.monotonic()
        count = done
        if not self._screen.is_terminal or self._quiet:

            def line(n: int, note: str) -> None:
                nonlocal count, said
                count += n
                if time.monotonic() - said >= PLAIN_EVERY:
                    said = time.monotonic()
                    rate = (count - done) / (said - began)
                    left = f", {(total - count) / rate:,.0f} s left" if total and rate else ""
                    of = f" of {total:,}" if total else ""
                    self.say(f"{description}: {count:,}{of} {unit}, {rate:,.0f} a second{left} {note}".rstrip())

            yield line
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
            TextColumn("{task.fields[rate]}", style="cyan"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._screen, transient=True, refresh_per_second=4) as bars:
            task = bars.add_task(description, total=total, completed=done, note="", rate="")

            def move(n: int, note: str) -> None:
                nonlocal count
                count += n
                rate = (count - done) / max(time.monotonic() - began, 1e-9)
                bars.update(task, advance=n, note=note, rate=f"{rate:,.0f} {unit}/s")

            yield move

    def _to_log(self, line: str) -> None:
        if self._quiet:
            return
        if self._log is None:
            self._early.append(line)
            return
        # A log that cannot be written is no reason to stop: the screen still has it.
        with contextlib.suppress(OSError):
            self._log.write(line + "\n")


def class_table(result: dict[str, Any]) -> Table:
    """Accuracy per class, as a table with bars, of the content of ``evaluation.json``."""
    low, high = result["interval"]
    table = Table(
        title=f"{result['split']}: {result['accuracy']:.2%} of {result['images']:,} images "
        f"(95% interval {low:.2%} to {high:.2%}), loss {result['loss']:.4f}",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("class")
    for name in ("images", "correct", "accuracy", "95% interval", "precision", "recall", "F1"):
        table.add_column(name, justify="right")
    table.add_column("")
    for row in result["classes"]:
        low, high = row["interval"] or (None, None)
        table.add_row(
            Text(row["name"]),
            f"{row['images']:,}",
            f"{row['correct']:,}",
            _percent(row["accuracy"]),
            f"{_percent(low)} - {_percent(high)}",
            _percent(row["precision"]),
            _percent(row["recall"]),
            _percent(row["f1"]),
            Text("#" * round(10 * (row["accuracy"] or 0)), style="cyan"),
        )
    return table


def confusions(result: dict[str, Any], most: int = 5) -> str:
    """The most frequent mistakes in one line."""
    found = [f"{c['true']} taken for {c['predicted']} ({c['images']})" for c in result["top_confusions"][:most]]
    return "most confused: " + (", ".join(found) or "none")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
