"""The report of a run: ``report.html``, one file that needs nothing else, and its figures as PNG files.

Made at the end of a run. To make it again, or of a run that is not finished yet:
  python job/report.py RUN [RUN ...]
  python job/report.py runs/            every run below as one page, runs/index.html; finished runs keep it up to date
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: `job` is found from anywhere, and what lies in job/ shadows nothing
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from job.config.command_line import Arguments
from job.config.errors import UserError, printable
from job.display import index_page, run_page
from job.distributed import ending
from job.runs import reader


def main(argv: list[str]) -> int:
    """Write the report of each run directory named; returns the exit status."""
    parser = Arguments(__doc__ or "")
    parser.add_argument("run", nargs="+", type=Path, help="run directory, finished or not, or a folder with some")
    for path in parser.parse_args(argv).run:
        page = index_page if reader.runs_below(path) else run_page
        try:
            print(printable(f"wrote {page.write(path)}"))
        except OSError as error:
            raise UserError(
                f"the report of {path} cannot be written ({error.strerror})", "report a copy of it"
            ) from None
    return 0


if __name__ == "__main__":
    ending.entry(main)
