"""Which signals are a wish to stop, and which are not ours."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from support.jobs import REPOSITORY, environment

from job.distributed import launcher
from job.distributed.preemption import LOOK_EVERY, SIGNALS, Preemption

SCRIPT = """
import os, signal
from job.distributed.preemption import Preemption

preemption = Preemption()
for number in sorted(signal.valid_signals()):
    handler = signal.getsignal(number)
    if handler == preemption._on_signal:
        preemption.reason = None
        os.kill(os.getpid(), number)
        assert preemption.reason == signal.Signals(number).name
    elif handler == signal.SIG_DFL:
        print(signal.Signals(number).name if number < signal.SIGRTMIN else "real-time", end=" ")
"""
LEFT = {"SIGKILL", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGCONT", "SIGCHLD", "SIGURG", "SIGWINCH", "real-time"}
FAULTS = {"SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGSEGV", "SIGSYS"}


def left(*prefix: str) -> set[str]:
    """The signals that do what they do by default once the handlers stand."""
    command = [*prefix, sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_all_that_would_end_the_run_and_is_no_fault_of_its_own_asks_it_to_stop_and_nohup_is_respected() -> None:
    assert left() == LEFT | FAULTS
    ignored = ("sh", "-c", """trap "" HUP USR1; exec "$@" """, "sh")
    assert left(*ignored) == LEFT | FAULTS, "a hangup is ignored still, and SIGUSR1 is not any more"


def test_the_end_of_an_allocation_that_was_moved_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKZERO_END_TIME", str(int(time.time()) + 20))  # less than the 30 s for a save
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        preemption = Preemption()
        preemption.attach(stop_file=None, max_minutes=None, end_time=partial(launcher.end_time, tmp_path), maximum=None)
        (tmp_path / "slurm").mkdir()
        (tmp_path / "slurm" / "end-time").write_text(f"{time.time() + 600:.0f}\n")
        assert not preemption.tick()
        (tmp_path / "slurm" / "end-time").unlink()
        preemption.attach(stop_file=None, max_minutes=None, end_time=partial(launcher.end_time, tmp_path), maximum=None)
        time.sleep(LOOK_EVERY)
        assert preemption.tick()
        assert preemption.reason == "time limit"
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
