"""Trackers (TensorBoard, Weights & Biases, MLflow) record what ``metrics.jsonl`` does, and the result's figures.

Each is one of accelerate's trackers with a thread of its own: one that fails, is slow or hangs holds up nothing.
After a requeue the same tracker run goes on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import queue
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from job.config.errors import first_line
from job.config.settings import Config, flat, to_dict, to_yaml
from job.runs import reader
from job.runs.directory import RunDirectory
from job.runs.records import Evaluation

Say = Callable[[str], None]
Work = Callable[[Any], None]
"""something done with an accelerate tracker"""

FIGURES = ("classes.png", "confusion_matrix.png")


@contextlib.contextmanager
def tracked(
    settings: Config, directory: RunDirectory | None, classes: tuple[str, ...], *, step: int, say: Say, warn: Say
) -> Iterator[Tracking | None]:
    """Track the run in ``directory`` within this context, from ``step`` on; nothing on ranks without a directory."""
    if directory is None:
        yield None
        return
    run, followers = directory.path, {}
    for name in settings.run.trackers:
        if importlib.util.find_spec(name) is None:
            say(f"{name} is not installed: the run is not tracked there")
        else:
            followers[name] = Follower(name, partial(_STARTS[name], settings, run, step), warn)
    if step and "tensorboard" in followers:  # what stays of the very step from which on its events are hidden
        again = Tracking(run, classes, [followers["tensorboard"]])
        for line in reader.read_lines(run / "metrics.jsonl"):
            if line["step"] >= step:
                again.metric(line)
    tracking = Tracking(run, classes, list(followers.values()))
    directory.listeners.append(tracking.metric)
    patience = 2.0  # who is preempted has little time left
    try:
        yield tracking
        patience = 30.0
    finally:
        directory.listeners.remove(tracking.metric)
        tracking.close(patience)


@dataclass(frozen=True)
class Tracking:
    """The trackers of one run, on rank zero."""

    run: Path
    classes: tuple[str, ...]
    followers: list[Follower]

    def metric(self, line: Mapping[str, object]) -> None:
        """Record a line of ``metrics.jsonl``."""
        values = _scalars(line, self.classes)
        self._send(lambda tracker: tracker.log(values, step=line["step"]))

    def result(self, result: Evaluation, step: int) -> None:
        """Record the content of ``evaluation.json``, and the figures of the report if they were drawn."""
        whole = {"split": result["split"], "loss": result["loss"], "accuracy": result["accuracy"]}
        self.metric(whole | {"class_accuracy": [row["accuracy"] for row in result["classes"]], "step": step})
        self._send(lambda tracker: _show(tracker, [self.run / "figures" / name for name in FIGURES], step))

    def close(self, seconds: float) -> None:
        """Let the trackers finish, but wait for each no longer than ``seconds``."""
        for follower in self.followers:
            follower.close(seconds)

    def _send(self, work: Work) -> None:
        for follower in self.followers:
            follower.send(work)


class Follower:
    """One tracker and the thread that talks to it. The first failure is said, and ends it."""

    def __init__(self, name: str, start: Callable[[], Any], warn: Say) -> None:
        self._name, self._start, self._warn = name, start, warn
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._failed = False
        self._thread = threading.Thread(target=self._follow, name=name, daemon=True)
        self._thread.start()

    def send(self, work: Work) -> None:
        if not self._failed:
            self._queue.put(work)

    def close(self, seconds: float) -> None:
        self._queue.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._warn(f"{self._name} does not answer: what it has not recorded yet is lost")

    def _follow(self) -> None:
        try:
            tracker = self._start()
            while (work := self._queue.get()) is not None:
                work(tracker)
            tracker.finish()
        except (Exception, SystemExit) as error:
            self._failed = True
            self._warn(f"{self._name} failed ({first_line(error)}): the run is not tracked there any more")


def _tensorboard(settings: Config, run: Path, step: int) -> Any:
    from accelerate.tracking import TensorBoardTracker

    # Events from `step` on are hidden, for their steps are computed again.
    tracker = TensorBoardTracker("tensorboard", run, purge_step=step or None)
    tracker.start()
    if not step:
        indented = "".join(f"    {line}\n" for line in to_yaml(settings).splitlines())
        tracker.log({"configuration": indented}, step=0)
    return tracker


def _wandb(settings: Config, run: Path, step: int) -> Any:
    from accelerate.tracking import WandBTracker

    known = _known(run, "wandb")
    identifier = known or uuid.uuid4().hex[:12]
    _remember(run, "wandb", identifier)
    tracker = WandBTracker("rankzero", id=identifier, name=run.name, resume="allow", dir=run)
    tracker.start()
    if known is None:
        tracker.store_init_configuration(to_dict(settings))
    return tracker


def _mlflow(settings: Config, run: Path, step: int) -> Any:
    from accelerate.tracking import MLflowTracker

    known = _known(run, "mlflow")
    tracker = MLflowTracker("rankzero", run_id=known, run_name=run.name)
    tracker.start()
    _remember(run, "mlflow", tracker.tracker.info.run_id)
    if known is None:
        tracker.store_init_configuration(flat(to_dict(settings)))
    return tracker


_STARTS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}


def _known(run: Path, name: str) -> str | None:
    """The tracker's own name for this run, from an earlier start."""
    file = run / "tracking" / f"{name}.id"
    return file.read_text().strip() if file.exists() else None


def _remember(run: Path, name: str, identifier: str) -> None:
    (run / "tracking").mkdir(exist_ok=True)
    (run / "tracking" / f"{name}.id").write_text(identifier + "\n")


def _scalars(line: Mapping[str, object], classes: tuple[str, ...]) -> dict[str, float]:
    """The numbers of a metrics line under names such as "train/loss", with those per class under the class's name."""
    split = line["split"]
    values: dict[str, Any] = {f"{split}/{key}": value for key, value in line.items() if key not in ("split", "step")}
    for name, value in zip(classes, values.pop(f"{split}/class_accuracy", []), strict=False):
        allowed = re.sub(r"[^\w. -]", "_", name)  # by MLflow
        values[f"{split}/accuracy of {allowed}"] = value
    return {key: value for key, value in values.items() if isinstance(value, (int, float))}


def _show(tracker: Any, figures: list[Path], step: int) -> None:
    """Record those PNG files that are there as images."""
    import numpy as np
    from PIL import Image

    for path in filter(Path.exists, figures):
        if tracker.name == "mlflow":
            tracker.log_artifact(str(path), "figures")
            continue
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))[None]  # [1, H, W, 3]
        options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({f"test/{path.stem}": pixels}, step=step, **options)
