"""Runs job/train.py's main with faults at chosen instants. Only tests start the job through this file.

``FAULTS`` in the environment is a JSON list of ``{"do": ACTION, "at": POINT, "n": 1, "rank": 0}``. At the ``n``-th time
that rank ``rank`` (null: every rank) comes to ``at``, it does ``do``.

Points: ``open`` (the run directory is about to be), ``start`` (of the loop), ``batch`` (its images are about to be
read), ``step`` (before an optimizer step; ``n`` is its number in the whole run),
``agreement`` (of two or more ranks on whether to stop, when all have said and none has heard),
``evaluation`` (before an evaluation batch), ``report`` (in place of drawing it), those that ``job.checkpoint.reached``
names, ``wrote NAME`` (a file of the run directory is written beside, and not yet renamed), ``named NAME`` (it is).
Actions: kill, stop (SIGSTOP), term, usr1, int, hup, quit, raise, exit0, nan (this rank's loss), inf (a gradient),
flip weights, flip activation, flip gradient (one bit, once), slow (wait a tenth of a second), hang (wait a minute),
throttle (run a twentieth of the next three seconds).
``NETWORK=narrow``: "vgg16" is a narrow network with dropout, "vgg16_bn" one with batch normalisation.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (2, 1)]

import torch
from support.forked import say_to
from torch import nn

from job import train
from job.data.batches import Batches, Part
from job.distributed import ending, launcher
from job.distributed.group import Group
from job.evaluation import predictions as evaluation
from job.models import registry
from job.runs import checkpoint, files
from job.training import trainer

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "usr1": signal.SIGUSR1, "int": signal.SIGINT}
SIGNALS |= {"hup": signal.SIGHUP, "quit": signal.SIGQUIT}
WAITS = {"slow": 0.1, "hang": 60}
"""seconds"""


def install(faults: list[dict[str, Any]], network: str = "") -> None:
    """Put ``faults`` in place, in this process."""
    mine = [fault for fault in faults if fault.get("rank", 0) in (None, launcher.launch_rank())]
    times: Counter[str] = Counter()

    def come_to(point: str, n: int | None = None) -> list[str]:
        times[point] += 1
        due = [f for f in mine if f["at"] == point and f.get("n", 1) in (None, times[point] if n is None else n)]
        return [fault["do"] for fault in due if not act(fault["do"], point)]

    step, predictions = trainer.Trainer._step, Batches.evaluation
    run, write, replace = trainer.Trainer.run, files.write_file, Path.replace
    maximum, fetch, open_run = Group.maximum, Batches.fetch, train._train

    def injected_open(*arguments: Any) -> None:
        come_to("open")
        open_run(*arguments)

    def injected_fetch(self: Batches, rows: torch.Tensor) -> Any:
        come_to("batch")
        return fetch(self, rows)

    def injected_run(self: trainer.Trainer) -> evaluation.Predictions:
        come_to("start")
        return run(self)

    def injected_step(self: trainer.Trainer, parts: list[Part]) -> torch.Tensor:
        doing = come_to("step", self.progress.step + 1)
        if "nan" in doing:
            parts = [dataclasses.replace(parts[0], weight=float("nan")), *parts[1:]]
        if "inf" in doing:
            weight = next(self.model.parameters())
            handle = weight.register_hook(lambda gradient: torch.full_like(gradient, float("inf")))
        for what in doing:
            if what.startswith("flip "):
                flip(self.model, what.removeprefix("flip "))
        total = step(self, parts)
        if "inf" in doing:
            handle.remove()
        return total

    def injected_maximum(self: Group, values: list[int]) -> list[int]:
        result = maximum(self, values)
        come_to("agreement")
        return result

    def injected_evaluation(self: Batches, batch_size: int) -> Any:
        for batch in predictions(self, batch_size):
            come_to("evaluation")
            yield batch

    def injected_write(path: Path, contents: Any) -> dict[str, Any]:
        result = write(path, contents)
        if path.name.startswith("."):
            come_to(f"wrote {path.name[1:].removesuffix(f'.{os.getpid()}')}")
        return result

    def injected_replace(self: Path, target: Path) -> Path:
        result = replace(self, target)
        come_to(f"named {Path(target).name}")
        return result

    trainer.Trainer.run = injected_run  # type: ignore[method-assign]
    trainer.Trainer._step = injected_step  # type: ignore[method-assign]
    Group.maximum = injected_maximum  # type: ignore[method-assign]
    Batches.fetch = injected_fetch  # type: ignore[method-assign, assignment]
    train._train = injected_open
    Batches.evaluation = injected_evaluation  # type: ignore[method-assign]
    checkpoint.reached = come_to  # type: ignore[assignment]
    files.write_file = injected_write
    train._report = lambda *_: come_to("report") and None  # which takes seconds that say nothing here
    Path.replace = injected_replace  # type: ignore[method-assign, assignment]
    if network == "narrow":
        registry.NETWORKS |= {"vgg16": narrow, "vgg16_bn": narrow_bn}


def flip(model: nn.Module, what: str, bit: int = 26, place: int = 0) -> None:
    """Turn one bit over of the first layer's weights, or the next time of their gradient or of the logits."""
    layers = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
    weights = next(layers[0].parameters(recurse=False))

    def turned(tensor: torch.Tensor) -> torch.Tensor:
        wrong = tensor.detach().clone(memory_format=torch.contiguous_format)
        wrong.view(-1).view(torch.int32)[place % wrong.numel()] ^= 1 << bit
        return wrong

    def in_output(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        handle.remove()
        return output + (turned(output) - output.detach())

    def in_gradient(gradient: torch.Tensor) -> torch.Tensor:
        handle.remove()
        return turned(gradient)

    if what == "weights":
        weights.data.copy_(turned(weights))
    else:
        handle = (
            weights.register_hook(in_gradient) if what == "gradient" else layers[-1].register_forward_hook(in_output)
        )


def act(what: str, point: str) -> bool:
    """Do ``what``; False when that is for the caller to do."""
    if what == "stop":  # to this thread: another one would let it run on for a while
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
    elif what in SIGNALS:
        os.kill(os.getpid(), SIGNALS[what])
    elif what == "raise":
        raise ValueError(f"a fault was injected at {point}")
    elif what == "exit0":
        os._exit(0)
    elif what in WAITS:
        time.sleep(WAITS[what])
    elif what == "throttle":
        throttled = os.getpid()
        if not os.fork():
            for _ in range(15):
                for number, seconds in ((signal.SIGSTOP, 0.19), (signal.SIGCONT, 0.01)):
                    os.kill(throttled, number)
                    time.sleep(seconds)
            os._exit(0)
    else:
        return False
    return True


def narrow(classes: int) -> nn.Module:
    """VGG's kinds of layers, dropout included, at a size for tests."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(),
        nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, classes),
    )  # fmt: skip


def narrow_bn(classes: int) -> nn.Module:
    """The same with batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(4),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(),
        nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, classes),
    )  # fmt: skip


def run_as(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """Become the job: in a process forked by ``forked.fork_server``."""
    say_to(output, output)
    os.environ.update(environment)
    faulthandler.register(signal.SIGRTMIN, all_threads=True)  # for the output of a test that waited in vain
    sys.argv = ["job/train.py", *arguments]
    main()


def main() -> None:
    install(json.loads(os.environ.get("FAULTS", "[]")), os.environ.get("NETWORK", ""))
    ending.entry(train.main, joins=True)


if __name__ == "__main__":
    main()
