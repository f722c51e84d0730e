"""A signal, a STOP file or a time limit becomes one decision that all ranks take at the same step.

Handlers only set a flag, and stand before torch is imported: Slurm may signal a job in its first seconds.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

SIGNALS = tuple(
    getattr(signal, name)
    for name in (
        *("SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR2", "SIGXCPU", "SIGALRM", "SIGVTALRM", "SIGPROF"),
        *("SIGIO", "SIGPWR", "SIGSTKFLT"),
    )
    if hasattr(signal, name)  # some are Linux's alone
)
"""what would end this process and can be caught, but for faults of the program itself and real-time signals"""
AGREE_EVERY = 0.5
"""seconds between agreements of the ranks; each costs one small all-reduce"""
AGAIN_AFTER = 1.0
"""seconds after which a second Ctrl-C is a person's: a launcher forwards the first one to those who had it already"""
MEET_WITHIN = 10.0
"""seconds that ranks which are told to stop while they wait for each other go on waiting"""
LOOK_EVERY = 1.0
"""seconds between looks for the STOP file"""
TOLD = threading.Event()
"""a signal has come"""


class Preemption:
    """Whether to stop, and why. Made before torch is imported; ``attach`` tells it the rest."""

    def __init__(self) -> None:
        self.reason: str | None = None
        """a signal's name, "STOP file" or "time limit", once this process or the ranks together know of one"""
        self._began = time.monotonic()
        self._max_seconds = math.inf
        self._allocation_end = math.inf
        self._end_time: Callable[[], float | None] = lambda: None
        self._reserve = 30.0
        self._stop_file: Path | None = None
        self._looked_at = 0.0
        self._interrupted_at = math.inf
        self._maximum: Callable[[list[int]], list[int]] | None = None
        self._ticks = self._ticks_left = 1
        self._agreed_at = self._began
        for number in SIGNALS:
            # Under nohup a hangup is ignored, and stays so. A launch ignores others only until these handlers stand.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # an entry point holds them back until here

    def attach(
        self,
        *,
        stop_file: Path | None,
        max_minutes: float | None,
        end_time: Callable[[], float | None],
        maximum: Callable[[list[int]], list[int]] | None,
    ) -> None:
        """Tell what else ends the run.

        ``stop_file`` is given to rank zero alone. ``end_time`` of the allocation is in seconds since 1970; when it has
        come, it is asked for again, for it may have been moved.
        ``maximum`` takes the element-wise maximum over ranks of a short list of integers; None with one process.
        """
        self._stop_file = stop_file
        self._max_seconds = math.inf if max_minutes is None else 60 * max_minutes
        self._end_time = end_time
        self._read_end()
        self._maximum = maximum
        self._agreed_at = time.monotonic()

    @contextlib.contextmanager
    def while_ranks_meet(self, status: int) -> Iterator[None]:
        """Within, a signal ends the process with exit ``status`` unless the ranks meet soon.

        A rank that waits for one which died before they met waits in compiled code, where no handler runs, for as long
        as the group's time limit; and there is nothing to save yet.
        """
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        before = signal.set_wakeup_fd(writing)
        if self.reason is not None:
            os.write(writing, b"\1")

        def watch() -> None:
            os.read(reading, 1)
            if not met.is_set() and not met.wait(MEET_WITHIN):
                os._exit(status)

        met = threading.Event()
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            met.set()
            signal.set_wakeup_fd(before)
            os.write(writing, b"\1")
            watcher.join()
            os.close(reading)
            os.close(writing)

    def save_took(self, seconds: float) -> None:
        """A save takes this long: stop early enough before the allocation ends to do one, and as much again."""
        self._reserve = max(self._reserve, 2 * seconds + 10)

    def tick(self) -> bool:
        """Call once after each step or evaluation batch, on all ranks alike: True on all of them at once or on none."""
        if self._maximum is None:
            self._look()
            return self.reason is not None
        self._ticks_left -= 1
        if self._ticks_left:
            return False
        self._look()
        now = time.monotonic()
        ticks_a_second = self._ticks / max(now - self._agreed_at, 1e-6)
        self._agreed_at = now
        # The largest wish wins, so that all ranks count to the same number.
        wish = max(1, min(int(AGREE_EVERY * ticks_a_second), 2 * self._ticks, 10_000))
        stop, self._ticks = self._maximum([_REASONS.index(self.reason) if self.reason else 0, wish])
        self._ticks_left = self._ticks
        if stop:  # and if not, one that came meanwhile is for the next time
            self.reason = _REASONS[stop]
        return bool(stop)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if number in (signal.SIGINT, signal.SIGQUIT):
            now = time.monotonic()
            if now - self._interrupted_at > AGAIN_AFTER:
                os._exit(128 + number)  # the second time: at once
            self._interrupted_at = min(now, self._interrupted_at)
        self.reason = signal.Signals(number).name
        TOLD.set()

    def _read_end(self) -> None:
        # On the clock that nobody sets: the other one may be corrected while the job runs.
        end = self._end_time()
        self._allocation_end = math.inf if end is None else time.monotonic() + end - time.time()

    def _look(self) -> None:
        now = time.monotonic()
        if self.reason or now - self._looked_at < LOOK_EVERY:
            return
        self._looked_at = now
        if now >= self._allocation_end - self._reserve:
            self._read_end()
        if now - self._began >= self._max_seconds or now >= self._allocation_end - self._reserve:
            self.reason = "time limit"
        elif self._stop_file is not None and self._stop_file.exists():
            self.reason = "STOP file"


_REASONS = ("", "STOP file", "time limit", *(s.name for s in SIGNALS))
