"""Compare finished runs: accuracy, per class, by McNemar's test, over seeds, speed, and with the published numbers.

  python job/compare.py RUN [RUN ...] [--out DIR] [--markdown FILE]        runs/* compares all that are finished
  python job/compare.py --sweep runs/SWEEP       arms of job/sweep.py, seed by seed, and what they answer
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

from rich.console import JustifyMethod
from rich.table import Table

from job.config.command_line import Arguments
from job.config.errors import UserError
from job.display import comparison_page
from job.display.console import Console, fitting, plain_table, plain_text
from job.distributed import ending
from job.evaluation import arms, comparison
from job.runs.files import write_whole


def main(argv: list[str]) -> int:
    """Compare the runs named; returns the exit status."""
    parser = Arguments(__doc__ or "")
    parser.add_argument(
        "run", nargs="*", type=Path, help="run directory, or a folder with some; unfinished ones are left out"
    )
    parser.add_argument("--sweep", type=Path, metavar="DIR", help="all finished runs <arm>/seed-<n> in DIR")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where the two files go")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too, with what ran them")
    options = parser.parse_args(argv)
    if bool(options.run) == bool(options.sweep):
        raise UserError("no runs" if not options.run else "--sweep beside runs", "name runs, or one sweep by --sweep")
    console = Console()
    if options.sweep:
        found, left_out = arms.below(options.sweep)
        for line in left_out:
            console.warn(line)
        runs = [one for by_seed in found.values() for one in by_seed.values()]
        compared = comparison.compare(runs, pairs=False) | arms.compare(found, always=_looked_at(runs))
    else:
        chosen, left_out = comparison.choose(options.run)
        for line in left_out:
            console.warn(f"left out: {line}")
        runs = comparison.read(chosen)
        compared = comparison.compare(runs)
        if found := arms.among(runs):
            compared |= arms.compare(found, always=_looked_at(runs))
    if said := comparison.of_chance(compared["sources"]):
        compared["answers"] = [*compared.get("answers", []), *said]
    for one in runs:
        if one.run.unread:
            console.warn(f"{one.name}: {one.run.left_out}")
    for table in comparison_page.tables(compared):
        console.show(partial(_drawn, table))
    files = {
        options.out / "comparison.html": comparison_page.html(compared, runs, options.out.resolve()),
        options.out / "comparison.json": json.dumps(compared, indent=1) + "\n",
    }
    if options.markdown is not None:
        files[options.markdown] = comparison_page.markdown(compared, runs)
    for file, text in files.items():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.is_symlink() or (file.exists() and not file.is_file()):  # such as /dev/stdout: as it comes
                file.write_text(text, encoding="utf-8", errors="backslashreplace")
            else:
                write_whole(file, text)
        except OSError as error:
            raise UserError(f"{file} cannot be written ({error.strerror})", "write to another place") from None
        console.say(f"wrote {file}")
    for line in compared.get("answers", []):
        console.say(line, "bold")
    return 0


def _looked_at(runs: Sequence[comparison.Finished]) -> bool:
    """Whether seeds were added to any of the runs' sweeps until they told something."""
    return any((one.run.path.parent.parent / arms.LOOKED_AT).exists() for one in runs)


def _drawn(table: comparison_page.Table, width: int) -> Table:
    """Where it is narrow, the page has the last columns."""
    least = fitting(table.head, table.rows, width)
    left = table.head[len(least) :]
    drawn = plain_table(table.caption + (f" (comparison.html has {', '.join(left)})" if left else ""))
    for i, (name, needed) in enumerate(zip(table.head, least, strict=False)):
        side: JustifyMethod = "right" if i else "left"
        drawn.add_column(plain_text(name), justify=side, overflow="fold", min_width=needed)
    for row in table.rows:
        drawn.add_row(*map(plain_text, row[: len(least)]))
    return drawn


if __name__ == "__main__":
    ending.entry(main)
