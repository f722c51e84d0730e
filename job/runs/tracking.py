"""Trackers (TensorBoard, Weights & Biases, MLflow) record what ``metrics.jsonl`` holds, and the result's figures.

Each is one of accelerate's trackers with a thread of its own, which reads that file: one that fails, is slow or hangs
holds up nothing, and is sent what it has missed once it answers again, in this start of the job or a later one.
After a requeue the same tracker run goes on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from job.config.errors import first_line, printable
from job.config.plain import flat, to_dict, to_yaml
from job.config.settings import Config
from job.runs.directory import RunDirectory
from job.runs.files import whole
from job.runs.records import Evaluation

Say = Callable[[str], None]
Work = Callable[[Any], None]
"""something done with an accelerate tracker"""
Place = tuple[int, int]
"""of a line in ``metrics.jsonl``: its step, and 1 for training, 2 for validation; 0 lies before both"""

FIGURES = ("classes.png", "confusion_matrix.png")
AGAIN_AFTER = 60.0
"""seconds until a tracker that failed is started again; twice as many after each failure"""


@contextlib.contextmanager
def tracked(
    settings: Config, directory: RunDirectory | None, classes: tuple[str, ...], *, step: int, say: Say, warn: Say
) -> Iterator[Tracking | None]:
    """Track the run in ``directory`` within this context, from ``step`` on; nothing on ranks without a directory."""
    if directory is None:
        yield None
        return
    run, followers = directory.path, []
    for name in settings.run.trackers:
        if importlib.util.find_spec(name) is None:
            say(f"{name} is not installed: the run is not tracked there")
            continue
        place = _known_place(run, name) if step else (0, 0)
        if name == "tensorboard":  # its events from `step` on are hidden, for their steps are computed again
            place = min(place, (step, 0))
        followers.append(Follower(name, partial(_STARTS[name], settings, run), run, classes, place, warn))
    tracking = Tracking(run, classes, followers)
    directory.listeners.append(tracking.metric)
    patience = 2.0  # who is preempted has little time left
    try:
        yield tracking
        patience = 30.0
    finally:
        directory.listeners.remove(tracking.metric)
        tracking.close(patience)


class Tracking:
    """The trackers of one run, on rank zero."""

    def __init__(self, run: Path, classes: tuple[str, ...], followers: list[Follower]) -> None:
        self._run, self._classes, self._followers = run, classes, followers
        self.metric({})

    def metric(self, _: Mapping[str, object]) -> None:
        """There is one more line in ``metrics.jsonl``."""
        for follower in self._followers:
            follower.wake()

    def result(self, result: Evaluation, step: int) -> None:
        """Record the content of ``evaluation.json``, and the figures of the report if they were drawn."""
        parts = {"split": result["split"], "loss": result["loss"], "accuracy": result["accuracy"]}
        values = _scalars(parts | {"class_accuracy": [row["accuracy"] for row in result["classes"]]}, self._classes)
        figures = [self._run / "figures" / name for name in FIGURES]
        for follower in self._followers:
            follower.wake(lambda tracker: tracker.log(values, step=step), lambda tracker: _show(tracker, figures, step))

    def close(self, seconds: float) -> None:
        """Let the trackers finish, but wait for each no longer than ``seconds``."""
        for follower in self._followers:
            follower.close(seconds)


class Follower:
    """One tracker and the thread that sends it the lines of ``metrics.jsonl`` after ``place``."""

    def __init__(
        self, name: str, begin: Callable[[int], Any], run: Path, classes: tuple[str, ...], place: Place, warn: Say
    ) -> None:
        self._name, self._begin, self._run, self._classes = name, begin, run, classes
        self._place, self._warn = place, warn
        self._read = 0
        """bytes of ``metrics.jsonl``"""
        self._works: deque[Work] = deque()
        self._more, self._ended = threading.Event(), threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run_until_done, name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # the user may have no more threads
            self._failed(error)

    def wake(self, *works: Work) -> None:
        """There are more lines, or ``works`` to be done after them."""
        self._works.extend(works)
        self._more.set()

    def close(self, seconds: float) -> None:
        self._ended.set()
        self._more.set()
        with contextlib.suppress(RuntimeError):  # it never started
            self._thread.join(seconds)
        if self._thread.is_alive() or self._failing:
            sent = f"what metrics.jsonl holds up to step {self._place[0]}"
            self._warn(f"{self._name} has only {sent}: the rest is sent when the run goes on")

    def _run_until_done(self) -> None:
        pause = AGAIN_AFTER
        while True:
            last = self._ended.is_set()
            try:
                self._follow()
                self._failing = False
                return
            except (Exception, SystemExit) as error:
                self._failed(error)
            if last:
                return
            self._ended.wait(pause)
            pause *= 2

    def _failed(self, error: BaseException) -> None:
        if not self._failing:
            self._warn(f"{self._name} failed ({first_line(error)}): training goes on without it, and tries again")
        self._failing = True

    def _follow(self) -> None:
        """Send what there is and what comes, until the run ends."""
        tracker = self._begin(self._place[0])
        self._read, ended = 0, False
        if self._name == "tensorboard":  # which now hides what it had of that step
            self._place = (self._place[0], 0)
        try:
            while not ended:
                ended = self._ended.is_set()
                for line, place in self._lacking():
                    tracker.log(_scalars(line, self._classes), step=line["step"])
                    self._place, self._failing = place, False
                    with contextlib.suppress(OSError):
                        _remember(self._run, f"{self._name}.place", json.dumps(place))
                while self._works:
                    self._works[0](tracker)
                    self._works.popleft()
                if not ended:
                    self._more.wait()
                    self._more.clear()
        except (Exception, SystemExit):
            with contextlib.suppress(Exception, SystemExit):
                tracker.finish()
            raise
        tracker.finish()

    def _lacking(self) -> Iterator[tuple[Mapping[str, Any], Place]]:
        """The lines that have come whole since the last look, of those after the place."""
        with contextlib.suppress(FileNotFoundError), open(self._run / "metrics.jsonl", "rb") as file:
            file.seek(self._read)
            for raw in file:
                if not raw.endswith(b"\n"):
                    return
                self._read += len(raw)
                line = json.loads(raw)
                place = (line["step"], 1 + (line["split"] == "validation"))
                if place > self._place:
                    yield line, place


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

    known = _known(run, "wandb.id")
    identifier = known or uuid.uuid4().hex[:12]
    _remember(run, "wandb.id", identifier)
    tracker = WandBTracker("rankzero", id=identifier, name=printable(run.name), resume="allow", dir=run)
    tracker.start()
    if known is None:
        tracker.store_init_configuration(to_dict(settings))
    return tracker


def _mlflow(settings: Config, run: Path, step: int) -> Any:
    from accelerate.tracking import MLflowTracker

    known = _known(run, "mlflow.id")
    tracker = MLflowTracker("rankzero", run_id=known, run_name=printable(run.name))
    tracker.start()
    _remember(run, "mlflow.id", tracker.tracker.info.run_id)
    if known is None:
        tracker.store_init_configuration(flat(to_dict(settings)))
    return tracker


_STARTS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}


def _known_place(run: Path, name: str) -> Place:
    """The last line that an earlier start has sent."""
    try:
        step, split = json.loads(_known(run, f"{name}.place") or "")
    except (OSError, ValueError, TypeError):
        return 0, 0
    return int(step), int(split)


def _known(run: Path, name: str) -> str | None:
    """What an earlier start has remembered, such as the tracker's own name for this run."""
    file = run / "tracking" / name
    return file.read_text(encoding="utf-8").strip() if file.exists() else None


def _remember(run: Path, name: str, text: str) -> None:
    (run / "tracking").mkdir(exist_ok=True)
    with whole(run / "tracking" / name) as file:  # not flushed to the disk: what is sent twice does no harm
        file.write_text(text + "\n", encoding="utf-8")


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
