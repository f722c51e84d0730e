"""What a run writes while it trains: when its state is saved, and what a full disk means."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from job.config.errors import DivergedError, FailedError, UserError
from job.config.settings import Config
from job.display.console import Console
from job.distributed import cores, startup
from job.distributed.group import Group
from job.distributed.preemption import Preemption
from job.runs.checkpoint import Checkpoints, NotFiniteError, State
from job.runs.directory import DISK_FULL, RunDirectory, require_epochs
from job.runs.records import MetricsLine
from job.training.optimizers import extended


class Saving:
    """What a run writes while it trains. All ranks call it alike; rank zero, which has the ``directory``, writes."""

    def __init__(
        self, settings: Config, group: Group, preemption: Preemption, console: Console, directory: RunDirectory | None
    ) -> None:
        self._settings, self._group, self._preemption = settings, group, preemption
        self._console, self._directory = console, directory
        self.checkpoints = Checkpoints(
            directory.path / "checkpoints" if directory else None, keep=settings.checkpoint.keep, say=console.warn
        )
        self._saved_at: int | None = 0
        """step of the newest save; where a run begins is where it begins again"""
        self._last = time.monotonic()

    def load(self, fingerprint: str) -> State | None:
        """Rank zero's state to continue from, of this run's data, and ``metrics.jsonl`` cut to what it knew of.

        Raises UserError when the data are others, or when more epochs are trained than are asked for.
        """
        assert self._directory is not None
        state = self.checkpoints.load(metrics_bytes=self._directory.metrics_on_disk())
        if state is not None and state.trainer["data"] != fingerprint:
            raise UserError(
                "the data set is not the one that this run began with (its content differs)",
                "bring the old one back, or give another --run.dir",
            )
        if state is not None:
            self._go_on(state.trainer)
        self._directory.metrics_from(state.trainer["metrics_bytes"] if state else 0)
        self._saved_at = state.trainer["step"] if state else 0
        return state

    def _go_on(self, trainer: dict[str, Any]) -> None:
        """Refuse to go on from ``trainer`` under other settings; lay learning rates out for other epochs."""
        assert self._directory is not None
        saved = self._directory.require_settings(trainer["config"], "its newest checkpoint")
        before, epochs = saved.train.epochs, self._settings.train.epochs
        begun = trainer["epoch"] - (trainer["images"] == 0)
        require_epochs(self._settings, before=before, begun=begun)
        trainer["schedule"] = extended(trainer.get("schedule", [[0, before]]), before, self._settings)
        if before != epochs and self._settings.schedule.name != "constant":
            how = f"schedule.extended={self._settings.schedule.extended}"
            self._console.say(f"train.epochs {before} -> {epochs}: learning rates by {how}")

    def due(self, step: int, ended: int | None) -> bool:
        """Whether the state after optimizer step ``step`` is to be saved; ``ended`` is the epoch that ends there."""
        settings = self._settings.checkpoint
        by_step = settings.every_steps is not None and step % settings.every_steps == 0
        by_epoch = settings.every_epochs is not None and ended is not None and ended % settings.every_epochs == 0
        return by_step or by_epoch or ended == self._settings.train.epochs

    def line_due(self, step: int, *, end: bool) -> bool:
        """Whether a training line is written after optimizer step ``step``; ``end``: of its epoch."""
        return end or step % self._settings.run.log_every == 0

    def overdue(self) -> bool:
        """Whether ``checkpoint.every_seconds`` have passed since the last save; rank zero's clock counts."""
        every = self._settings.checkpoint.every_seconds
        return every is not None and time.monotonic() - self._last >= every and self._group.is_rank_zero

    def save(self, step: int, state: Callable[[], State], *, final: bool) -> None:
        """Save the state in the background, or, when it is the ``final`` save before the end, until it stands.

        All ranks raise FailedError when the final one fails.
        """
        with startup.spending("checkpoints"):
            if final:
                self._group.guarded(lambda: self._save(step, state, final=True), on=self._group.is_rank_zero)
            elif self._group.is_rank_zero:
                self._save(step, state, final=False)
        self._last = time.monotonic()

    def _save(self, step: int, state: Callable[[], State], *, final: bool) -> None:
        self.look_after(finish=final)
        assert self._directory is not None
        with self._writing(f"checkpoint at step {step}", needed=final):
            if self._directory.mend_metrics():
                self._console.warn("metrics.jsonl was deleted or changed from outside: written again")
            if self._saved_at != step:
                new = state()
                new.trainer["metrics_bytes"] = self._directory.metrics_size()
                if self.checkpoints.save(new):
                    self._saved_at = step
        if final:
            self.look_after(finish=True, needed=True)

    def record(self, step: int, line: MetricsLine | None = None) -> None:
        """Say in ``status.json`` which optimizer step is reached, and append ``line`` to ``metrics.jsonl``."""
        if self._directory is not None:
            with self._writing("run directory", needed=True):
                if line is not None:
                    self._directory.metric(line)
                roll = self._group.roll_call
                told = roll.told() if roll else {key: [value] for key, value in cores.peaks().items()}
                self._directory.status(step=step, **told)

    def look_after(self, *, finish: bool = False, needed: bool = False) -> None:
        """Hear of a save that failed in the background, and of how long saves take."""
        if finish:
            self.checkpoints.wait()
        error = self.checkpoints.failed()
        if error is not None:
            with self._writing(f"checkpoint at step {self._saved_at}", needed=needed):
                self._saved_at = None
                raise error
        self._preemption.save_took(self.checkpoints.save_seconds)

    @contextlib.contextmanager
    def _writing(self, what: str, *, needed: bool) -> Iterator[None]:
        """A full disk does not stop training while there is more to train; anything else that goes wrong does."""
        try:
            yield
        except NotFiniteError as error:
            raise DivergedError(f"{error}{self.what_stands()}") from None
        except OSError as error:
            problem = f"{what} cannot be written ({error.strerror})"
            if needed or error.errno not in DISK_FULL:
                raise FailedError(f"{problem}{self.what_stands()}") from None
            self._console.warn(f"{problem}; training goes on{self.what_stands()}")

    def what_stands(self) -> str:
        """The newest checkpoint, as the end of a message."""
        self.checkpoints.wait()
        name = self._directory.newest_checkpoint() if self._directory is not None else None
        return f"; last good checkpoint: {name}" if name else "; there is no checkpoint"
