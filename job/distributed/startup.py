"""Where the seconds of a start go: until the first step, and after it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from job.distributed import launcher

_marks: list[tuple[str, float]] = []
_spent: dict[str, float] = {}
_now = ("startup", 0.0)
"""what is being done, and since when"""
_imported = time.time()


def mark(what: str) -> None:
    """``what`` has just been done, for the first time in this process."""
    _marks.append((what, _clock()))


def switch(kind: str) -> str:
    """From now on seconds are spent on ``kind``; what they were spent on before."""
    global _now
    (before, since), now = _now, _clock()
    _spent[before] = _spent.get(before, 0.0) + now - (since or now - (time.time() - began()))
    _now = (kind, now)
    return before


@contextlib.contextmanager
def spending(kind: str) -> Iterator[None]:
    """Within, seconds are spent on ``kind``, and not on what is done around it."""
    before = switch(kind)
    try:
        yield
    finally:
        switch(before)


def spent() -> dict[str, float]:
    """Seconds by kind since ``began``: each is in one of them, "startup" at first."""
    switch(_now[0])
    return {kind: round(seconds, 3) for kind, seconds in _spent.items()}


def began() -> float:
    """When the launch under Slurm, or else this process, began, in seconds since 1970."""
    process = _process_began()
    return launcher.began() or (time.time() - (_clock() - process) if process is not None else _imported)


def _clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time()


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
