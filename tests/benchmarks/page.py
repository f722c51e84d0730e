"""The record of a measurement becomes docs/performance.md: every number on that page comes from the record.

python tests/benchmarks/page.py [docs/performance.json ...]      writes the page beside the first
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent)]

from figures import Table, paragraphs
from tables import tables

Record = dict[str, Any]

INTRODUCTION = """# Performance

Written by `python tests/benchmarks/run.py` from `{files}`: measure again, never edit. Cases took turns in one run;
a figure is the median over its undisturbed samples, with the lowest and the highest. A rate is of one whole epoch, the
first of each process left out. Compare within a run: on another machine, or another day, everything is different.
"""


def write(records: Sequence[Record], path: Path, files: Sequence[str] = ()) -> None:
    """Write the page of ``records``, one after the other."""
    path.write_text(markdown(records, files or [path.with_suffix(".json").name]))


def markdown(records: Sequence[Record], files: Sequence[str]) -> str:
    """The page."""
    parts = [INTRODUCTION.format(files="`, `".join(files))]
    for record in records:
        if len(records) > 1:
            machine = record["machine"]
            parts.append(f"# On {(machine['gpus'] or [machine['cpu']])[0]}\n")
        parts += [_markdown_table(table) for table in tables(record)]
    return "\n".join(parts)


def _markdown_table(table: Table) -> str:
    lines = [f"## {table.title}", ""]
    for paragraph in paragraphs(table):
        lines += [textwrap.fill(paragraph, 118, break_long_words=False, break_on_hyphens=False), ""]
    if table.rows:
        right = [any(row[i][:1].isdigit() for row in table.rows) for i in range(len(table.columns))]
        widths = [max(3, *(len(row[i]) for row in [table.columns, *table.rows])) for i in range(len(table.columns))]
        rule = ["-" * (width - 1) + (":" if to_right else "-") for width, to_right in zip(widths, right, strict=True)]
        for row in (table.columns, rule, *table.rows):
            cells = zip(row, widths, right, strict=True)
            lines.append("| " + " | ".join(c.rjust(w) if to_right else c.ljust(w) for c, w, to_right in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def to_json(record: Record) -> str:
    """The record, a sample a line, so that versions of it can be compared."""
    samples = ",\n  ".join(json.dumps(sample) for sample in record["samples"])
    rest = {key: value for key, value in record.items() if key != "samples"}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in rest.items()]
    lines.append(f' "samples": [\n  {samples}\n ]' if samples else ' "samples": []')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    default = Path(__file__).resolve().parents[2] / "docs" / "performance.json"
    files = [Path(word) for word in sys.argv[1:]] or [default]
    records = [json.loads(file.read_text()) for file in files]
    write(records, files[0].with_suffix(".md"), [file.name for file in files])


if __name__ == "__main__":
    main()
