"""A stretch of a run trained once more, its weights held against what the run says of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace

from job.config.settings import Config
from job.data.datasets import Dataset
from job.display.console import Console
from job.distributed.group import Group
from job.distributed.preemption import Preemption
from job.evaluation.predictions import Predictions
from job.runs.checkpoint import State
from job.runs.records import MetricsLine
from job.training.saving import Saving
from job.training.trainer import Trainer


@dataclass(frozen=True)
class Outcome:
    """What came of a replay."""

    equal: int
    """fingerprints that are"""
    differs: tuple[int, str, str] | None
    """the first step with another one, the run's and that of now, which is "" where no such step is trained"""
    predictions: Predictions | None
    """of the test, where the replay went on to it"""


def replay(
    settings: Config,
    dataset: Dataset,
    group: Group,
    preemption: Preemption,
    console: Console,
    begin: State | None,
    known: dict[int, str],
    schedule: list[list[int]] | None,
) -> Outcome:
    """Train from ``begin``, rank zero's, or from the beginning, as long as fingerprints are those ``known`` by step.

    Where they are up to the last step of ``settings``, whose weights are tested then, so they are here. ``schedule``
    is that of the run's newest checkpoint. Raises StoppedEarlyError, having saved nothing, and FailedError.
    """
    tested = settings.run.weights == "last"
    # What decides when a run ends, and which weights it tests, and not how these are trained.
    settings = replace(
        settings, run=replace(settings.run, weights="last"), train=replace(settings.train, patience=None)
    )
    if dataset.final == "test":
        validation = dataclasses.replace(dataset.validation, indices=dataset.validation.indices[:0])
        dataset = dataclasses.replace(dataset, validation=validation)
    compared = _Compared(settings, group, preemption, console, begin, known)
    trainer = Trainer(settings, dataset, group, preemption, console, compared)
    trainer.progress.schedule = schedule or trainer.progress.schedule
    compared.goes_on = tested and settings.train.epochs * trainer.steps_per_epoch == max(known)
    preemption.attach(
        stop_file=None, max_minutes=None, end_time=lambda: None, maximum=group.maximum if group.world_size > 1 else None
    )
    predictions = None
    try:
        predictions = trainer.run()
        if compared.equal < len(known):
            step = list(known)[compared.equal]
            compared.differs = (step, known[step], "")
    except _OverError:
        pass
    return Outcome(compared.equal, compared.differs, predictions)


class _OverError(Exception):
    """There is nothing more to compare."""


class _Compared(Saving):
    """In place of what saves a run: it writes nothing, and compares. Ranks come to the same end at the same step."""

    def __init__(
        self,
        settings: Config,
        group: Group,
        preemption: Preemption,
        console: Console,
        begin: State | None,
        known: dict[int, str],
    ) -> None:
        super().__init__(settings, group, preemption, console, None)
        self._begin, self._known, self.goes_on = begin, known, False
        self.equal = 0
        self.differs: tuple[int, str, str] | None = None

    def load(self, fingerprint: str) -> State | None:
        return self._begin

    def due(self, step: int, ended: int | None) -> bool:
        return False

    def overdue(self) -> bool:
        return False

    def line_due(self, step: int, *, end: bool) -> bool:
        return step in self._known

    def save(self, step: int, state: Callable[[], State], *, final: bool) -> None:
        pass

    def record(self, step: int, line: MetricsLine | None = None) -> None:
        if line is None or line["split"] != "train":
            return
        if line["fingerprint"] != self._known[step]:
            self.differs = (step, self._known[step], line["fingerprint"])
            raise _OverError
        self.equal += 1
        if self.equal == len(self._known) and not self.goes_on:
            raise _OverError
