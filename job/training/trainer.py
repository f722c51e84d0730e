"""The loop."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from job.config.errors import DivergedError, FailedError, StoppedEarlyError, UserError
from job.config.settings import Config, to_dict
from job.data.batches import Batches, Part
from job.data.datasets import Dataset, placed
from job.display.console import Console
from job.distributed.group import Group
from job.distributed.preemption import Preemption
from job.evaluation import predictions
from job.evaluation.metrics import class_accuracy
from job.models import registry, weights
from job.models.fast import form
from job.runs import checkpoint
from job.runs.checkpoint import Checkpoints, NotFiniteError, State
from job.runs.directory import DISK_FULL, RunDirectory
from job.training.choices import choose
from job.training.optimizers import learning_rate
from job.training.step import Step


@dataclass
class Progress:
    """Where the run stands: with the tensors, all that the next step depends on."""

    step: int = 0
    """optimizer steps taken"""
    epoch: int = 1
    """the epoch that is trained or validated, from 1"""
    images: int = 0
    """images of this epoch that were trained on; position, whatever the number of processes"""
    losses: list[float] = field(default_factory=list)
    """mean loss of each step since the last training line"""
    counts: list[int] = field(default_factory=list)
    """images of each of these steps"""
    epoch_loss: float = 0.0
    """sum of losses over the images of this epoch that stand in training lines"""
    skipped: int = 0
    """steps that fp16's loss scaling left out"""
    best: dict[str, Any] | None = None
    """the validation record with the highest accuracy so far"""


class Trainer:
    """One run on this rank. ``directory`` is given on rank zero alone, which alone reads and writes there."""

    def __init__(
        self,
        settings: Config,
        dataset: Dataset,
        *,
        group: Group,
        preemption: Preemption,
        console: Console,
        directory: RunDirectory | None,
    ) -> None:
        self.settings, self.dataset, self.group = settings, dataset, group
        self.preemption, self.console, self.directory = preemption, console, directory
        self.steps_per_epoch = math.ceil(len(dataset.train) / settings.train.batch_size)
        self.parts = settings.parts(group.world_size)
        self.checkpoints = Checkpoints(
            directory.path / "checkpoints" if directory else None, keep=settings.checkpoint.keep, say=console.warn
        )
        saved = group.guarded(self._load, on=group.is_rank_zero)
        state = group.from_rank_zero(saved.trainer if saved else None)
        size, classes = dataset.train.images.shape[-1], len(dataset.classes)
        self.model = registry.build(settings.model, classes=classes, image_size=size, seed=settings.train.seed)
        if state is None:
            group.guarded(
                lambda: weights.pretrained(settings.model, self.model, download=settings.data.download),
                on=group.is_rank_zero,
            )
        said = form.fast(self.model, settings, image_size=size, device=group.device)
        if saved is not None:
            weights.load(self.model, saved.model, name="the checkpoint's weights")
        self.model.to(group.device)
        choices = choose(settings, self.model, dataset, group)
        self.how = f"{', '.join(said)}, {choices}"
        at_hand = placed(dataset, group.device) if choices.images_on_device else dataset
        self.batches = {
            name: Batches(
                getattr(at_hand, name), settings.data, group.device, rank=group.rank, world_size=group.world_size
            )
            for name in ("train", "validation", "test")
        }
        # One process reads the weights, wherever they come from, and the others have them from it.
        self.step = Step(settings, self.model, self.batches["train"], group, choices, console.warn)
        self.optimizer = self.step.optimizer
        self.progress = Progress()
        if state is not None:
            self.progress = Progress(**{f.name: state[f.name] for f in dataclasses.fields(Progress)})
            tensors = group.broadcast(saved.optimizer if saved else {})
            checkpoint.restore_optimizer(self.model, self.optimizer, tensors)
            if group.accelerator.scaler is not None:
                group.accelerator.scaler.load_state_dict(state["scaler"])
        self._recent: list[Tensor] = []
        self._saved_at: int | None = self.progress.step  # where a run began is where it begins again
        self._last_save = self._last_line = time.monotonic()

    def run(self) -> predictions.Predictions:
        """Train what is left to train, then test. Raises StoppedEarlyError or FailedError."""
        try:
            if self.preemption.tick():  # a signal that came while torch was imported or pictures were decoded
                self._stop()
            while self.progress.epoch <= self.settings.train.epochs:
                self._train_epoch()
                self._validate()
            found = self._predict("test")
            self._save(final=True)
            return found
        finally:
            self.checkpoints.wait()  # whatever happened: what is being written is worth a moment

    def _train_epoch(self) -> None:
        settings, progress = self.settings.train, self.progress
        images = len(self.dataset.train)
        self._last_line = time.monotonic()
        self.model.train()
        beyond = (settings.epochs - progress.epoch) * images
        name = f"epoch {progress.epoch}/{settings.epochs}"
        with self.console.bar(name, images, "images", progress.images, beyond) as move:
            for parts in self.batches["train"].training(
                seed=settings.seed,
                epoch=progress.epoch,
                start=progress.images,
                batch_size=settings.batch_size,
                parts=self.parts,
            ):
                self._recent.append(self._step(parts))
                count = min(settings.batch_size, images - progress.images)
                progress.step += 1
                progress.images += count
                progress.counts.append(count)
                move(count, "")
                end = progress.images == images
                due = self._due(end)
                if end or progress.step % self.settings.run.log_every == 0:
                    loss, late = self._write_line()
                    move(0, f"loss {loss:.4f}")
                    due = due or late
                if due:
                    self._save()
                if self.preemption.tick():
                    self._stop()

    def _step(self, parts: list[Part]) -> Tensor:
        number = self.progress.step
        return self.step(parts, number, learning_rate(self.settings, number, self.steps_per_epoch))

    def _settle(self) -> bool:
        """Read the losses since the last time, summed over ranks; True when rank zero finds a save overdue.

        The one place where training waits for the device. Raises FailedError for a loss that is not finite.
        """
        every = self.settings.checkpoint.every_seconds
        overdue = every is not None and time.monotonic() - self._last_save >= every and self.group.is_rank_zero
        message = torch.stack([*self._recent, torch.tensor(overdue, dtype=torch.float64, device=self.group.device)])
        *losses, late = self.group.sum(message).tolist()
        progress = self.progress
        first = progress.step - len(losses) + 1
        bad = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
        if bad and (self.settings.runtime.precision != "fp16" or len(bad) == len(losses) > 10):
            raise DivergedError(f"the loss is not finite at step {first + bad[0]}{self._what_is_saved()}")
        progress.skipped += len(bad)
        before = len(progress.losses)
        for i in reversed(bad):
            del losses[i], progress.counts[before + i]
        progress.losses += losses
        self._recent.clear()
        return bool(late)

    def _write_line(self) -> tuple[float, bool]:
        """Write the training line for the steps since the last one: (its mean loss, whether a save is overdue)."""
        late = self._settle()
        progress, now = self.progress, time.monotonic()
        images = sum(progress.counts)
        total = math.fsum(loss * count for loss, count in zip(progress.losses, progress.counts, strict=True))
        record: dict[str, Any] = {
            "split": "train",
            "step": progress.step,
            "epoch": progress.epoch,
            "loss": total / images if images else None,
            "learning_rate": learning_rate(self.settings, progress.step - 1, self.steps_per_epoch),
            "images_per_second": round(images / (now - self._last_line), 1),
        }
        if progress.skipped:
            record["skipped_steps"] = progress.skipped
        progress.epoch_loss += total
        progress.losses, progress.counts = [], []
        self._last_line = now
        if self.directory is not None:
            with self._writing("run directory", needed=True):
                self.directory.metric(record)
                self.directory.status(step=progress.step)
            self._look_after_saves()
        return total / max(images, 1), late

    def _validate(self) -> None:
        """Validate the epoch that was just trained, and go on to the next one."""
        progress, began = self.progress, time.monotonic()
        record: dict[str, Any] = {"split": "validation", "epoch": progress.epoch, "step": progress.step}
        record["train_loss"] = progress.epoch_loss / len(self.dataset.train)
        line = f"epoch {progress.epoch}/{self.settings.train.epochs}  step {progress.step:,}"
        line += f"  train loss {record['train_loss']:.4f}"
        if len(self.dataset.validation):
            found = self._predict("validation")
            record |= {"loss": _finite(found.loss), "accuracy": found.accuracy}
            record["class_accuracy"] = class_accuracy(found, len(self.dataset.classes))
            line += f"  validation loss {found.loss:.4f}  accuracy {found.accuracy:.2%}"
            if progress.best is None or found.accuracy > progress.best["accuracy"]:
                progress.best = dict(record)
                line += "  (best so far)"
        record["seconds"] = round(time.monotonic() - began, 3)
        if self.directory is not None:
            with self._writing("run directory", needed=True):
                self.directory.metric(record)
        self.console.say(line)
        progress.epoch, progress.images, progress.epoch_loss = progress.epoch + 1, 0, 0.0

    def _predict(self, split: str) -> predictions.Predictions:
        part = getattr(self.dataset, split)
        # Batch normalisation's statistics are each rank's own while training; rank zero's are those that are saved.
        for name, buffer in self.group.broadcast(dict(self.model.named_buffers())).items():
            self.model.get_buffer(name).copy_(buffer)
        found = predictions.predict(
            self.model, self.batches[split], part.labels[part.indices], self.group, self.preemption.tick
        )
        if found is None:
            self._stop()
        assert found is not None
        return found

    def _due(self, end: bool) -> bool:
        settings, progress = self.settings.checkpoint, self.progress
        if settings.every_steps is not None and progress.step % settings.every_steps == 0:
            return True
        if not end:
            return False
        by_epoch = settings.every_epochs is not None and progress.epoch % settings.every_epochs == 0
        return by_epoch or progress.epoch == self.settings.train.epochs

    def _save(self, *, final: bool = False) -> None:
        """Save the state in the background, or, when it is the ``final`` save before the end, until it stands.

        Reached by all ranks; rank zero writes. All raise FailedError when the final one fails.
        """
        self._settle()
        problem = None
        if self.directory is not None:
            try:
                self._look_after_saves(finish=final)
                with self._writing(f"checkpoint at step {self.progress.step}", needed=final):
                    if self._saved_at != self.progress.step and self.checkpoints.save(self._state(self.directory)):
                        self._saved_at = self.progress.step
                if final:
                    self._look_after_saves(finish=True, needed=True)
            except FailedError as error:
                problem = error
        if final:
            problem = self.group.from_rank_zero(problem)
        if problem is not None:
            raise problem
        self._last_save = time.monotonic()

    def _state(self, directory: RunDirectory) -> State:
        scaler = self.group.accelerator.scaler
        trainer = dataclasses.asdict(self.progress) | {
            "metrics_bytes": directory.metrics_size(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "classes": list(self.dataset.classes),
            "data": self.dataset.fingerprint,
            "world_size": self.group.world_size,
            "config": to_dict(self.settings),
        }
        optimizer = checkpoint.optimizer_tensors(self.model, self.optimizer)
        return State(self.model.state_dict(), optimizer, trainer)

    def _look_after_saves(self, *, finish: bool = False, needed: bool = False) -> None:
        """Hear of a save that failed in the background, and of how long saves take."""
        if finish:
            self.checkpoints.wait()
        error = self.checkpoints.failed()
        if error is not None:
            with self._writing(f"checkpoint at step {self._saved_at}", needed=needed):
                self._saved_at = None
                raise error
        self.preemption.save_took(self.checkpoints.save_seconds)

    @contextlib.contextmanager
    def _writing(self, what: str, *, needed: bool) -> Iterator[None]:
        """A full disk does not stop training while there is more to train; anything else that goes wrong does."""
        try:
            yield
        except NotFiniteError as error:
            raise DivergedError(f"{error}{self._what_is_saved()}") from None
        except OSError as error:
            problem = f"{what} cannot be written ({error.strerror})"
            if needed or error.errno not in DISK_FULL:
                raise FailedError(f"{problem}{self._what_is_saved()}") from None
            self.console.warn(f"{problem}; training goes on{self._what_is_saved()}")

    def _what_is_saved(self) -> str:
        self.checkpoints.wait()
        name = self.checkpoints.newest() if self.directory is not None else None
        return f"; last good checkpoint: {name}" if name else "; there is no checkpoint"

    def _stop(self) -> None:
        self._save(final=True)
        if self.directory is not None:
            with self._writing("run directory", needed=True):
                self.directory.status(step=self.progress.step)
        raise StoppedEarlyError(self.preemption.reason)

    def _load(self) -> State | None:
        """The state to continue from, checked to be of this run's data, with the metrics that it knew of."""
        assert self.directory is not None
        state = self.checkpoints.load(metrics_bytes=self.directory.metrics_on_disk())
        if state is not None and state.trainer["data"] != self.dataset.fingerprint:
            raise UserError(
                "the data set is not the one that this run began with (its content differs)",
                "bring the old one back, or give another --run.dir",
            )
        if state is not None and state.trainer["epoch"] > self.settings.train.epochs + 1:
            raise UserError(
                f"train.epochs={self.settings.train.epochs}",
                f"this run has trained {state.trainer['epoch'] - 1} epochs; give as many or more, or another --run.dir",
            )
        self.directory.metrics_from(state.trainer["metrics_bytes"] if state else 0)
        return state

    def final_weights(self) -> dict[str, Tensor]:
        """The network's weights in its own form, on the CPU, for rank zero."""
        return form.own_weights(self.model.state_dict(), self.model)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
