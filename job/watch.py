"""Follow a run, or all runs below a folder, from anywhere that sees them, such as a login node.

  python job/watch.py RUN           until it is finished or has failed; Ctrl-C leaves it running
  python job/watch.py RUN --once    how it stands now
  python job/watch.py runs/         every run below, a line each, until none of them runs
Reads run directories and nothing else. Exit status: 0, or 1 when a run that was followed by itself has failed.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: `job` is found from anywhere, and what lies in job/ shadows nothing
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from job.config.command_line import Arguments
from job.config.errors import FAILED, UserError, printable
from job.display.console import Console, fitting, plain_text
from job.display.text import by_rank, decimals, duration, epoch_words, goodput, percent, rounded, sparkline
from job.distributed import ending
from job.runs import reader
from job.runs.reader import Run, number
from job.runs.records import ValidationLine

EVERY = 2.0
"""seconds between looks"""
SILENCE = 600.0
"""seconds without news after which a running run may be a dead one"""
EPOCHS = 8
"""latest epochs shown"""
STYLES = {"finished": "green", "failed": "red", "preempted": "yellow", "running": "cyan"}


def main(argv: list[str]) -> int:
    """Follow, or look once; returns the exit status."""
    parser = Arguments(__doc__ or "")
    parser.add_argument("run", type=Path, help="run directory, or a folder with some")
    parser.add_argument("--once", action="store_true", help="show how it stands and leave")
    options = parser.parse_args(argv)
    screen, path = RichConsole(highlight=False), options.run
    if reader.runs_below(path):
        follow(screen, looks(lambda: reader.read_below(path), once=options.once), partial(overview, path, screen))
        return 0
    looking = looks(lambda: ([reader.read(path)], []), once=options.once)
    if options.once or screen.is_terminal:
        (run,) = follow(screen, looking, lambda runs, _: view(runs[0]))
    else:
        run = tell(looking)
        for words in filter(None, (goodput(run.spent), by_rank(run.status, run.trained))):
            Console().say(words)
    if run.evaluation:
        console = Console()
        console.result(run.evaluation)
        console.say(f"report: {run.path / 'report.html'}")
    return FAILED if run.state == "failed" else 0


Look = tuple[list[Run], list[str]]
"""runs as they stand, and what is wrong with those that cannot be read"""


def looks(read: Callable[[], Look], *, once: bool = False) -> Iterator[Look]:
    """What ``read`` gives, again and again until all runs are over."""
    while True:
        look = read()
        yield look
        if once or all(map(is_over, look[0])):
            return
        time.sleep(EVERY)


def follow(screen: RichConsole, looking: Iterator[Look], drawn: Callable[[list[Run], list[str]], Any]) -> list[Run]:
    """Show each look in place of the one before it; the runs of the last one."""
    with Live(console=screen, auto_refresh=False, transient=True) as live:
        for look in looking:
            if screen.is_terminal:
                live.update(drawn(*look), refresh=True)
    screen.print(drawn(*look))
    return look[0]


def tell(looking: Iterator[Look]) -> Run:
    """Say in plain lines what is new of a run at each look; the run at the last one."""
    console, shown, state = Console(), 0, ""
    for (run,), _ in looking:
        epochs = run.lines("validation")
        for line in epochs[shown:]:
            console.say(epoch_words(cast(ValidationLine, line), run.setting("train.epochs", 0)))
        shown = len(epochs)  # fewer than before when a resumed run does some again
        if run.state != state:
            state = run.state
            console.say(f"{run.name}: {state}, {where(run)}")
    return run


def is_over(run: Run) -> bool:
    """Whether nothing more is to come; a preempted run is expected back."""
    return run.state in ("finished", "failed")


def overview(folder: Path, screen: RichConsole, runs: list[Run], problems: list[str]) -> Group:
    """A line for each run below ``folder``: how far it is, and how good; as much of it as the screen is wide."""
    head = ("run", "state", "of its steps", "loss", "accuracy", "images/s", "left")
    rows = [[printable(str(run.path.relative_to(folder))), *_stands(run)] for run in runs]
    least = fitting(head, rows, screen.width)
    columns = (
        Column(name, justify="right" if i > 1 else "left", overflow="fold", min_width=needed)
        for i, (name, needed) in enumerate(zip(head, least, strict=False))
    )
    table = Table(*columns, box=None, pad_edge=False, header_style="dim")
    for run, (name, state, *others) in zip(runs, rows, strict=True):
        cells = map(plain_text, others[: len(least) - 2])
        table.add_row(plain_text(name), plain_text(state, STYLES.get(run.state, "")), *cells)
    return Group(table, *(plain_text(f"left out: {problem}", "yellow") for problem in problems))


def _stands(run: Run) -> list[str]:
    (taken, total), rate = steps(run), run.images_per_second
    going, curve = total and not is_over(run), [line.get("loss") for line in run.lines("train")]
    return [
        run.state,
        percent(taken / total, 0) if total else "",
        decimals(curve[-1]) if curve else "",
        percent(run.accuracy, 2),
        rounded(rate),
        duration((total - taken) * run.setting("train.batch_size", 0) / rate) if going and rate else "",
    ]


def view(run: Run) -> Group:
    """How the run stands, in a screenful."""
    parts: list[Text | Table] = []
    state = plain_text(run.state, STYLES.get(run.state, ""))
    parts.append(Text.assemble(plain_text(run.name, "bold"), plain_text(f"  {run.title}  "), state))
    step, total = steps(run)
    if total:
        bar = Table.grid()
        bar.add_row(ProgressBar(total=total, completed=step, width=60))
        parts.append(bar)
    parts.append(plain_text(where(run)))
    parts += [plain_text(words, "dim") for words in (goodput(run.spent), by_rank(run.status, run.trained)) if words]
    curve = sparkline([number(line.get("loss")) for line in run.lines("train")], 60)
    if len(curve) > 1:
        parts.append(Text(curve, "cyan"))
    if run.unread:
        parts.append(plain_text(run.left_out, "yellow"))
    if run.status.get("error"):
        parts.append(plain_text(str(run.status["error"]), "red"))
    silence = time.time() - newest(run.path)
    if run.state == "running" and silence > SILENCE:
        parts.append(Text(f"no news for {duration(silence)}: it may have been killed", style="yellow"))
    if run.state == "preempted":
        reason = run.status.get("signal")
        parts.append(plain_text(f"stopped by {reason}; the same command, or its requeue, continues it"))
    epochs = run.lines("validation")
    if epochs:
        best = max(number(line.get("accuracy"), -1.0) for line in epochs)
        head = ("epoch", "training loss", "validation loss", "accuracy", "")
        table = Table(*(Column(name, justify="right") for name in head), box=None, pad_edge=False, header_style="dim")
        for line in epochs[-EPOCHS:]:
            mark = Text("best" if line.get("accuracy") == best else "", style="green")
            values = (decimals(line.get("train_loss")), decimals(line.get("loss")), percent(line.get("accuracy"), 2))
            table.add_row(str(line["epoch"]), *values, mark)
        parts.append(table)
    return Group(*parts)


def steps(run: Run) -> tuple[int, int]:
    """Optimizer steps taken, and those of the whole run; 0 while these are not known."""
    taken = max([line["step"] for line in run.metrics[-2:]] or [int(run.status.get("step", 0))])
    return taken, (run.steps_per_epoch or 0) * run.setting("train.epochs", 0)


def where(run: Run) -> str:
    """Step, loss, throughput and time left in one line."""
    (taken, total), lines, rate = steps(run), run.lines("train"), run.images_per_second
    words = [f"step {taken:,} of {total:,}" if total else f"step {taken:,}"]
    if run.metrics:
        words.append(f"epoch {run.metrics[-1]['epoch']} of {run.setting('train.epochs')}")
    if lines:
        words.append(f"loss {decimals(lines[-1].get('loss'))}")
    if rate:
        words.append(f"{rate:,.0f} images/s")
        if total and not is_over(run):
            words.append(f"{duration((total - taken) * run.setting('train.batch_size', 0) / rate)} of training left")
    if len(run.attempts) > 1:
        words.append(f"start {len(run.attempts)}")
    return ", ".join(words)


def newest(path: Path) -> float:
    """When the run last wrote something, in seconds since 1970."""
    times = [file.stat().st_mtime for name in ("metrics.jsonl", "status.json") if (file := path / name).exists()]
    if not times:
        raise UserError(f"{path} has nothing to follow yet", "look again when the job has started")
    return max(times)


if __name__ == "__main__":
    ending.entry(main, only_shows=True)
