"""What rank zero shows: one progress bar on a terminal, plain lines in a file; all of it also in ``log.txt``."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TextIO

from rich import box
from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from job.config.errors import printable
from job.display.text import decimals, duration, epoch_words, hardest, hardest_named, mistake, percent, rounded, uneven
from job.runs.records import ClassRow, Evaluation, ValidationLine

PLAIN_EVERY = 30.0
"""seconds between progress lines when the output is no terminal"""
PLAIN_WIDTH = 100
"""columns when the output is no terminal"""


class Advance(Protocol):
    """Told how many more are done, and what stands beside the bar, such as ``loss="1.2345"``, from now on."""

    def __call__(self, more: int, **notes: str) -> None: ...


class Console:
    """Standard output and ``log.txt``. ``quiet`` on ranks other than zero: says nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        # A Slurm log has no width of its own; a hundred columns hold the tables.
        width = None if RichConsole().is_terminal or "COLUMNS" in os.environ else PLAIN_WIDTH
        self._screen = RichConsole(quiet=quiet, width=width, highlight=False)
        self._drawn = self._screen.is_terminal and not self._screen.is_dumb_terminal and not quiet
        self._early = io.StringIO()
        self._log: TextIO = self._early
        self._bar_began = time.monotonic()
        self._epochs_shown = False

    def log_to(self, path: Path) -> None:
        """Append all that was said, and will be, to ``path``. Logging is given up, and said, when the disk is full."""
        if self._quiet:
            return
        with contextlib.suppress(OSError):
            self._log = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 (open as long as the process)
            self._log.write(self._early.getvalue())

    def say(self, text: str, style: str = "", label: str = "") -> None:
        """One line. A terminal wraps it at words, beside ``label`` where there is one."""
        if self._quiet:
            return
        if self._drawn and label:
            line = Table.grid(padding=(0, 1))
            line.add_column(width=LABEL, style="bright_black")
            line.add_column(overflow="fold")
            line.add_row(label, plain_text(text.removeprefix(f"{label}: "), style))
            self._screen.print(line)
        else:
            self._screen.print(plain_text(text, style), soft_wrap=not self._drawn)
        self._to_log(_dated(text))

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

    def epoch(self, line: ValidationLine, epochs: int, *, best: bool = False) -> None:
        """An epoch that was trained and validated: a row of a table that grows, plain words elsewhere."""
        words = epoch_words(line, epochs) + ("  (best so far)" if best else "")
        if not self._drawn:
            self.say(words)
            return
        cells = {
            "epoch": f"{line['epoch']}/{epochs}",
            "loss": decimals(line["train_loss"]),
            "val. loss": decimals(line.get("loss")),
            "accuracy": percent(line.get("accuracy"), 2),
            "": "best" if best else "",
            "time": duration(time.monotonic() - self._bar_began),
            "step": rounded(line["step"]),
        }
        room = self._screen.width
        widths = {name: width for name, width in _EPOCH.items() if (room := room - width) >= 0}
        if not self._epochs_shown:
            self._screen.print(Text("".join(f"{name:>{width}}" for name, width in widths.items()), "bright_black"))
        row = Text("".join(f"{cells[name]:>{width}}" for name, width in widths.items()))
        row.highlight_words(["best"], "green")
        self._screen.print(row)
        self._epochs_shown = True
        self._to_log(_dated(words))

    def result(self, result: Evaluation) -> None:
        """The content of ``evaluation.json``: every class, and what is hard."""
        bar = "━─" if self._screen.encoding.startswith("utf") else "#-"
        self.show(lambda width: class_table(result, width, bar))
        mistakes = [f"{mistake(confusion)} ({confusion['images']})" for confusion in result["top_confusions"][:5]]
        self.say(f"hardest: {', '.join(hardest_named(result)) or 'none'}")
        self.say(f"most confused: {', '.join(mistakes) or 'none'}")
        if words := uneven(result):
            self.say(words)

    @contextlib.contextmanager
    def bar(
        self, description: str, total: int | None, unit: str, done: int = 0, beyond: int = 0, **notes: str
    ) -> Iterator[Advance]:
        """A bar for ``total`` things of ``unit``; yields what is told how many more are done, and ``notes`` beside it.

        ``done`` of ``total`` were there before; ``beyond`` more come after it. Every field is as wide as it gets, so
        that none jumps.
        """
        began = said = self._bar_began = time.monotonic()
        count = done

        def fields() -> dict[str, str]:
            rate = (count - done) / max(time.monotonic() - began, 1e-9)
            shown = {"": f"{count / total:4.0%}" if total else f"{count:>13,}"}
            shown |= {note: f"{note} {value:>7}" for note, value in notes.items()}
            shown["rate"] = f"{rate:>7,.0f} {unit}/s"
            if total:
                ends = {"left": total + beyond} | ({"here": total} if beyond else {})
                words = {"left": "left", "here": "of this epoch"}
                for end, things in ends.items():
                    shown[end] = f"{duration((things - count) / rate) if rate else '':>11} {words[end]}"
            return shown

        def advance(more: int, **news: str) -> None:
            nonlocal count, said
            count += more
            notes.update(news)
            if self._drawn:
                shown, room = fields(), self._screen.width - len(name) - BAR - 2
                fit = {key for key in FIELDS if key in shown and (room := room - len(shown[key]) - 2) >= 0}
                bars.update(task, advance=more, words="  ".join(shown[key] for key in shown if key in fit))
            elif time.monotonic() - said >= PLAIN_EVERY:
                said = time.monotonic()
                of, shown = f" of {total:,}" if total else "", fields()
                rest = "  ".join(" ".join(shown[key].split()) for key in shown if key)
                self.say(f"{description}: {count:,}{of} {unit}  {rest}")

        name = printable(description)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(BAR), TextColumn("{task.fields[words]}"))
        bars = Progress(*columns, console=self._screen, transient=True, refresh_per_second=4)
        task = bars.add_task(name, total=total, completed=done, words="")
        with bars if self._drawn else contextlib.nullcontext():
            yield advance

    def _to_log(self, line: str) -> None:
        # A log that cannot be written is no reason to stop: the screen still has it.
        with contextlib.suppress(OSError):
            self._log.write(printable(line) + "\n")


def _dated(text: str) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"


LABEL, BAR = 8, 16
"""columns of what stands before a line, and of a bar"""
FIELDS = ("", "left", "loss", "rate", "step", "here")
"""what stands beside a bar, the most important first"""
_EPOCH = {"epoch": 6, "loss": 8, "val. loss": 11, "accuracy": 10, "": 5, "time": 13, "step": 12}
"""columns of an epoch's row, the most important first"""
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


def class_table(result: Evaluation, width: int = PLAIN_WIDTH, bar: str = "#-") -> Table:
    """Accuracy per class with bars; what matters less goes first where ``width`` columns are few.

    ``bar`` is a piece of a bar and one of the track behind it.
    """
    low, high = result["interval"]
    rows, few = result["classes"], ""
    if len(rows) > MOST_CLASSES:
        rows, few = hardest(result)[:HARDEST], f"; the hardest {HARDEST} of {len(rows):,} classes"
    table = plain_table(
        f"{result['split']}: {result['accuracy']:.2%} of {result['images']:,} images "
        f"(95% interval {low:.2%} to {high:.2%}), loss {result['loss']:.4f}{few}"
    )
    name_width = min(max(cell_len(printable(row["name"])) for row in rows), max(8, width - 24))
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
        filled = round(10 * (row["accuracy"] or 0))
        drawn = Text.assemble((bar[0] * filled, "cyan"), (bar[1] * (10 - filled), "bright_black"))
        table.add_row(plain_text(row["name"]), *(value(row) for value in shown), drawn)
    return table


def plain_text(text: str, style: str = "") -> Text:
    """``text`` for one line or cell of a terminal, where nothing in it is obeyed or taken for markup."""
    return Text(printable(text), style)


def fitting(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """The least width of each of the first columns, as many as fit into ``width``, two at least.

    Heads fold at words and the first column, of names, anywhere; other cells are not cut.
    """
    least = [max(map(cell_len, (*name.split(), *cells, ""))) for name, *cells in zip(head, *rows, strict=True)]
    least[0] = min(least[0], 10)
    return least[: max(2, sum(end < width for end in itertools.accumulate(one + 2 for one in least)))]


def plain_table(title: str) -> Table:
    """A table with a rule below its head and no other, yet without columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.title, table.title_justify = plain_text(title, "bold"), "left"
    return table
