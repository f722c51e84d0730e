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
from pathlib import Path
from typing import Any

from job.config.errors import first_line
from job.config.settings import Config, flat, to_dict, to_yaml
from job.runs import reader
from job.runs.directory import RunDirectory
from job.runs.records import Evaluation, MetricsLine

Work = Callable[[Any], None]
"""something done with an accelerate tracker"""

IMAGES = ("classes", "confusion_matrix")


@contextlib.contextmanager
def tracked(
    settings: Config,
    directory: RunDirectory | None,
    classes: tuple[str, ...],
    *,
    step: int,
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> Iterator[Tracking | None]:
    """Track the run in ``directory`` within this context, from ``step`` on; nothing on ranks without a directory."""
    if directory is None:
        yield None
        return
    tracking = Tracking(settings, directory.path, classes, step=step, say=say, warn=warn)
    directory.listeners.append(tracking.metric)
    patience = 2.0  # who is preempted has little time left
    try:
        yield tracking
        patience = 30.0
    finally:
        directory.listeners.remove(tracking.metric)
        tracking.close(patience)


class Tracking:
    """The trackers of one run, on rank zero. ``step``: where this start goes on from."""

    def __init__(
        self,
        settings: Config,
        run: Path,
        classes: tuple[str, ...],
        *,
        step: int,
        say: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self._run, self._classes = run, classes
        self._followers: list[_Follower] = []
        for name in settings.run.trackers:
            if importlib.util.find_spec(name) is None:
                say(f"{name} is not installed: the run is not tracked there")
            else:
                self._followers.append(_Follower(name, _STARTS[name](settings, run, classes, step), warn))

    def metric(self, line: MetricsLine) -> None:
        """Record a line of ``metrics.jsonl``."""
        self._log(_scalars(line, self._classes), line["step"])

    def result(self, result: Evaluation, step: int) -> None:
        """Record the content of ``evaluation.json``, and the figures of the report if they were drawn."""
        accuracies = [row["accuracy"] for row in result["classes"]]
        whole = {key: result[key] for key in ("split", "loss", "accuracy")} | {"class_accuracy": accuracies}
        self._log(_scalars(whole, self._classes), step)
        figures = {name: self._run / "figures" / f"{name}.png" for name in IMAGES}
        for follower in self._followers:
            follower.send(lambda tracker: _show(tracker, {k: p for k, p in figures.items() if p.exists()}, step))

    def close(self, seconds: float) -> None:
        """Let the trackers finish, but wait for each no longer than ``seconds``."""
        for follower in self._followers:
            follower.close(seconds)

    def _log(self, values: dict[str, float], step: int) -> None:
        for follower in self._followers:
            follower.send(lambda tracker: tracker.log(values, step=step))


class _Follower:
    """One tracker and the thread that talks to it. The first failure is said, and ends it."""

    def __init__(self, name: str, start: Callable[[], Any], warn: Callable[[str], None]) -> None:
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
            reason = first_line(error) or type(error).__name__
            self._warn(f"{self._name} failed ({reason}): the run is not tracked there any more")


def _tensorboard(settings: Config, run: Path, classes: tuple[str, ...], step: int) -> Callable[[], Any]:
    # Events from `step` on are hidden, for their steps are computed again; what stays of that very step is told again.
    kept = [line for line in reader.read_lines(run / "metrics.jsonl") if step and line["step"] >= step]

    def start() -> Any:
        from accelerate.tracking import TensorBoardTracker

        tracker = TensorBoardTracker("tensorboard", run, purge_step=step or None)
        tracker.start()
        for line in kept:
            tracker.log(_scalars(line, classes), step=line["step"])
        if not step:
            indented = "".join(f"    {line}\n" for line in to_yaml(settings).splitlines())
            tracker.log({"configuration": indented}, step=0)
        return tracker

    return start


def _wandb(settings: Config, run: Path, classes: tuple[str, ...], step: int) -> Callable[[], Any]:
    def start() -> Any:
        from accelerate.tracking import WandBTracker

        known = _known(run, "wandb")
        identifier = known or uuid.uuid4().hex[:12]
        _remember(run, "wandb", identifier)
        tracker = WandBTracker("rankzero", id=identifier, name=run.name, resume="allow", dir=run)
        tracker.start()
        if known is None:
            tracker.store_init_configuration(to_dict(settings))
        return tracker

    return start


def _mlflow(settings: Config, run: Path, classes: tuple[str, ...], step: int) -> Callable[[], Any]:
    def start() -> Any:
        from accelerate.tracking import MLflowTracker

        known = _known(run, "mlflow")
        tracker = MLflowTracker("rankzero", run_id=known, run_name=run.name)
        tracker.start()
        _remember(run, "mlflow", tracker.tracker.info.run_id)
        if known is None:
            tracker.store_init_configuration(flat(to_dict(settings)))
        return tracker

    return start


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


def _show(tracker: Any, figures: dict[str, Path], step: int) -> None:
    """Record PNG files as images."""
    import numpy as np
    from PIL import Image

    if tracker.name == "mlflow":
        for path in figures.values():
            tracker.log_artifact(str(path), "figures")
        return
    for name, path in figures.items():
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))[None]  # [1, H, W, 3]
        options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({f"test/{name}": pixels}, step=step, **options)
