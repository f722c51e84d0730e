"""The job's run directory: each start of the job finds it again, and no start takes that of another job.

Numbers of jobs come again: on another cluster that sees the same files, and where a controller has lost its state.
Standard library and Python 3.8 only, like all of launch/ that runs in the batch step.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from itertools import takewhile
from pathlib import Path

from allocation import Allocation, LaunchError, say


def find(runs: Path, allocation: Allocation) -> Path:
    """The job's own directory in ``runs``, made at its first start: ``<name>-<job>``, or that with a number behind."""
    name = f"{allocation.name}-{allocation.job}"
    numbered = [runs / name, *(runs / f"{name}.{number}" for number in range(2, 1000))]
    while True:
        taken = list(takewhile(_is_taken, numbered))
        for path in reversed(taken):  # the last one is of the latest job
            if is_own(path, allocation):
                return path
        # Begun before there was a memory, by a job that was requeued since.
        if taken and allocation.restarts and not _memory(taken[0], allocation).exists():
            return claim(taken[0], allocation)
        if len(taken) == len(numbered):
            raise LaunchError(f"{taken[0]} and a thousand like it exist: name another one with --run.dir")
        with contextlib.suppress(FileExistsError):  # a job of another cluster came first
            path = claim(numbered[len(taken)], allocation)
            if taken:
                say(f"{taken[-1]} is of another job that had this one's number: this one runs in {path}")
            return path


def claim(run: Path, allocation: Allocation, *, anew: bool = False) -> Path:
    """Have ``run`` remember whose it is.

    Raises FileExistsError where it remembers another job of this number, unless that is to be forgotten: ``anew``.
    """
    identity = {key: getattr(allocation, key) for key in ("cluster", "job", "submitted", "restarts")}
    try:
        _memory(run, allocation).parent.mkdir(parents=True, exist_ok=True)
        if anew:
            with contextlib.suppress(FileNotFoundError):
                (run / "slurm" / "requeues.json").unlink()
        with open(_memory(run, allocation), "w" if anew else "x", encoding="utf-8") as file:
            file.write(json.dumps(identity) + "\n")
    except FileExistsError:
        raise
    except OSError as error:
        raise LaunchError(f"{run} cannot be written ({error.strerror}): name another one with --run.dir") from None
    return run


def is_own(run: Path, allocation: Allocation) -> bool:
    """Whether an earlier start of this job ran in ``run``, or this one does.

    Slurm counts a job's starts, and calls the time at which it was queued again that of its submission.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(_memory(run, allocation).read_text(encoding="utf-8"))
        same = known["cluster"] == allocation.cluster and known["job"] == allocation.job
        return same and (
            (known["submitted"], known["restarts"]) == (allocation.submitted, allocation.restarts)
            or (known["restarts"] < allocation.restarts and known["submitted"] <= (allocation.submitted or math.inf))
        )
    return False


def _is_taken(path: Path) -> bool:
    return os.path.lexists(path) and not (path.is_dir() and not os.listdir(path))


def _memory(run: Path, allocation: Allocation) -> Path:
    return run / "slurm" / f"{allocation.job}.json"
