"""Where the seconds go from the command to the first step."""

from __future__ import annotations

import os
import time
from pathlib import Path

_marks: list[tuple[str, float]] = []


def mark(what: str) -> None:
    """``what`` has just been done, for the first time in this process."""
    _marks.append((what, time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time()))


def summary() -> str:
    """``3.1 s: interpreter 0.1, ...``: since the process began, and from each mark to the next."""
    began = _process_began()
    times = [began or _marks[0][1], *(at for _, at in _marks)]
    spent = [f"{what} {end - start:.1f}" for (what, end), start in zip(_marks, times, strict=False)]
    return f"{times[-1] - times[0]:.1f} s: {', '.join(spent)}"


def _process_began() -> float | None:
    """On the clock of ``mark``; None where the system does not say. psutil counts from a boot time in whole seconds."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None
