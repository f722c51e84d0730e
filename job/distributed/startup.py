"""Where the seconds go from the command to the first step."""

from __future__ import annotations

import time

import psutil

_marks: list[tuple[str, float]] = []


def mark(what: str) -> None:
    """``what`` has just been done, for the first time in this process."""
    _marks.append((what, time.time()))


def summary() -> str:
    """``3.1 s: interpreter 0.1, ...``: since the process began, and from each mark to the next."""
    times = [psutil.Process().create_time(), *(at for _, at in _marks)]
    spent = [f"{what} {end - start:.1f}" for (what, end), start in zip(_marks, times, strict=False)]
    return f"{times[-1] - times[0]:.1f} s: {', '.join(spent)}"
