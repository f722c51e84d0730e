"""The job with a stopwatch in it: when each part of a start was done, counted from the command.

    python tests/benchmarks/stopwatch.py [the job's settings]                      or under accelerate launch

Ends with the STEPS-th step, and prints on rank zero one JSON object: seconds at which each stage was reached, in order,
and the peak of the device's memory. BENCHMARK_BEGAN in the environment is when the command was given.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

STARTED = time.time()
BEGAN = float(os.environ.get("BENCHMARK_BEGAN", STARTED))
STEPS = 20

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY)]

reached: dict[str, float] = {}


def note(stage: str) -> None:
    """The job says that ``stage`` is done: in the place of its own ``startup.mark``."""
    reached[stage] = time.time() - BEGAN
    if stage == "data":  # now that the job has imported its trainer, and before it makes one
        from job.training.trainer import Trainer

        original = Trainer._step

        def step(*arguments: Any) -> Any:
            loss = original(*arguments)
            reached.setdefault("first step", time.time() - BEGAN)
            end_after_steps()
            return loss

        Trainer._step = step  # type: ignore[assignment, method-assign]


def end_after_steps() -> None:
    """Print and leave, once enough steps were made for memory to have peaked."""
    global steps
    steps += 1
    if steps < STEPS:
        return
    import torch

    if int(os.environ.get("RANK", "0")) == 0:
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        print(json.dumps({"reached": reached, "peak_device_bytes": peak}), flush=True)
    time.sleep(0.2)  # the other ranks end by themselves, or the launcher reports a failure
    os._exit(0)


steps = 0

if __name__ == "__main__":
    reached["until the script begins"] = STARTED - BEGAN
    from job.distributed import startup

    startup.mark = note  # type: ignore[assignment]
    runpy.run_path(str(REPOSITORY / "job" / "train.py"), run_name="__main__")
