"""What rank zero shows: one progress bar on a terminal, plain lines in a file; all of it also in ``log.txt``."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from rich import box
from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from job.display.text import duration, hardest_named, mistake, percent
from job.runs.records import Evaluation

PLAIN_EVERY = 30.0
"""seconds between progress lines when the output is no terminal"""
PLAIN_WIDTH = 100
"""columns when the output is no terminal"""


class Console:
    """Standard output and ``log.txt``. ``quiet`` on ranks other than zero: says nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        # A Slurm log has no width of its own; a hundred columns hold the tables.
        width = None if RichConsole().is_terminal or "COLUMNS" in os.environ else PLAIN_WIDTH
        with contextlib.suppress(AttributeError):  # a class name that the terminal has no letters for stops nothing
            sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
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

    @contextlib.contextmanager
    def progress(self, description: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        """A bar for ``total`` things of ``unit``; yields a function to call with how many more are done."""
        with self.bar(description, total, unit) as advance:
            yield lambda n: advance(n, "")

    @contextlib.contextmanager
    def bar(
        self, description: str, total: int | None, unit: str, done: int = 0, beyond: int = 0
    ) -> Iterator[Callable[[int, str], None]]:
        """Like ``progress``, with a note beside the bar, and ``beyond`` more to do after ``total``.

        The time left is to the end of both; ``done`` of ``total`` were there before.
        """
        began = said = time.monotonic()
        count, note = done, ""

        def advance(more: int, latest: str) -> str:
            """Where it stands, in words."""
            nonlocal count, note
            count, note = count + more, latest or note
            rate = (count - done) / max(time.monotonic() - began, 1e-9)
            left = f"{duration((total - count + beyond) / rate)} left" if total and rate else ""
            return "  ".join(part for part in (f"{rate:,.0f} {unit}/s", left, note) if part)

        if not self._screen.is_terminal or self._quiet:

            def line(more: int, latest: str) -> None:
                nonlocal said
                words = advance(more, latest)
                if time.monotonic() - said >= PLAIN_EVERY:
                    said = time.monotonic()
                    of = f" of {total:,}" if total else ""
                    self.say(f"{description}: {count:,}{of} {unit}  {words}")

            yield line
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[words]}"),
        )
        with Progress(*columns, console=self._screen, transient=True, refresh_per_second=4) as bars:
            task = bars.add_task(description, total=total, completed=done, words="")
            yield lambda more, latest: bars.update(task, advance=more, words=advance(more, latest))

    def _to_log(self, line: str) -> None:
        if self._quiet:
            return
        if self._log is None:
            self._early.append(line)
            return
        # A log that cannot be written is no reason to stop: the screen still has it.
        with contextlib.suppress(OSError):
            self._log.write(line + "\n")


_COLUMNS = {"accuracy": 10, "95% interval": 17, "images": 8, "precision": 11, "F1": 8, "correct": 9}
"""columns that each takes of the screen, the most important first"""


def class_table(result: Evaluation, width: int = PLAIN_WIDTH, block: str = "#") -> Table:
    """Accuracy per class with bars of ``block``; what matters less goes first where ``width`` columns are few."""
    low, high = result["interval"]
    table = Table(
        title=f"{result['split']}: {result['accuracy']:.2%} of {result['images']:,} images "
        f"(95% interval {low:.2%} to {high:.2%}), loss {result['loss']:.4f}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    longest = max(len(row["name"]) for row in result["classes"])
    name_width = min(longest, max(8, width - 24))
    room = width - name_width - 13  # less the bar
    shown = []
    for name, needed in _COLUMNS.items():
        room -= needed
        if room >= 0:
            shown.append(name)
    table.add_column("class", width=name_width, no_wrap=True)
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in result["classes"]:
        values = {
            "accuracy": percent(row["accuracy"]),
            "95% interval": " - ".join(percent(end) for end in row["interval"] or (None, None)),
            "images": f"{row['images']:,}",
            "precision": percent(row["precision"]),
            "F1": percent(row["f1"]),
            "correct": f"{row['correct']:,}",
        }
        bar = Text(block * round(10 * (row["accuracy"] or 0)), style="cyan")
        table.add_row(Text(row["name"], overflow="ellipsis"), *(values[name] for name in shown), bar)
    return table
