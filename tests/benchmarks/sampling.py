"""One sample: commands that run at once, what they said, what they used, and what else the machine did meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NOISE = 0.05
"""share of this process's cores that others may use while a sample is taken; more, and it does not count"""
PATIENCE = 900
"""seconds after which a command is ended"""


@dataclass(frozen=True)
class Taken:
    """What running some commands side by side showed."""

    outputs: list[str]
    """what each wrote to standard output"""
    began: float
    """when the first was started, in seconds since 1970"""
    wall_seconds: float
    """from the start of the first to the end of the last"""
    cpu_seconds: float
    """processor time of all of them and their children"""
    peak_bytes: int
    """resident memory of the largest single process, mapped files included"""
    foreign_cores: float | None
    """cores that others kept busy meanwhile, on average; None where the system does not say"""
    load_before: float
    """the machine's load average over a minute, before"""

    @property
    def noisy(self) -> bool:
        """Whether others used so much of the machine that the times say little."""
        return self.foreign_cores is not None and self.foreign_cores > NOISE * len(os.sched_getaffinity(0))


class CommandError(Exception):
    """A command failed; the message ends with its last words."""


def take(commands: Sequence[Sequence[str]], environments: Sequence[dict[str, str]]) -> Taken:
    """Run ``commands`` at once, each in its environment, and wait for all. Raises CommandError when one fails."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder, f"{i}.out") for i in range(len(commands))]
        wrong = [Path(folder, f"{i}.err") for i in range(len(commands))]
        busy, began, clock = _busy_seconds(), time.monotonic(), time.time()
        started = []
        for command, environment, out, err in zip(commands, environments, said, wrong, strict=True):
            told = environment | {"BENCHMARK_BEGAN": str(time.time())}
            with out.open("w") as stdout, err.open("w") as stderr:
                started.append(subprocess.Popen(command, env=told, stdout=stdout, stderr=stderr, cwd=folder))
        timers = [threading.Timer(PATIENCE, process.kill) for process in started]
        for timer in timers:
            timer.start()
        cpu, peak = 0.0, 0
        for process, timer in zip(started, timers, strict=True):
            _, status, used = os.wait4(process.pid, 0)  # its children that it waited for are in `used`
            process.returncode = os.waitstatus_to_exitcode(status)
            timer.cancel()
            cpu += used.ru_utime + used.ru_stime
            peak = max(peak, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
        wall = time.monotonic() - began
        busy_after = _busy_seconds()
        for process, err in zip(started, wrong, strict=True):
            if process.returncode:
                words = err.read_text().strip().splitlines()[-3:]
                raise CommandError(f"status {process.returncode}: {' / '.join(words)}")
        outputs = [out.read_text() for out in said]
    foreign = None if busy is None or busy_after is None else max(0.0, busy_after - busy - cpu) / wall
    return Taken(outputs, clock, wall, cpu, peak, foreign, load)


def _busy_seconds() -> float | None:
    """Processor time spent, by anybody, on the cores that this process may use, steal included; since boot."""
    mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    try:
        rows = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    except OSError:
        return None
    # user nice system idle iowait irq softirq steal; guests are in user
    ticks = [sum(map(int, row[1:4] + row[6:9])) for row in rows if row[0] in mine]
    return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None
