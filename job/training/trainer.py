"""The loop."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from job.config.errors import DivergedError, StoppedEarlyError
from job.config.plain import to_dict
from job.config.settings import Config
from job.data.batches import Batches, Part
from job.data.datasets import Dataset, to_device
from job.display.console import Console
from job.distributed import startup
from job.distributed.group import Group
from job.distributed.preemption import Preemption
from job.evaluation.metrics import class_accuracy
from job.evaluation.predictions import Predictions, predict
from job.models import fingerprint, frozen, registry, weights
from job.models.fast import form
from job.runs.checkpoint import State
from job.runs.records import ValidationLine
from job.training import optimizers
from job.training.choices import choose
from job.training.evaluated import Evaluated, require_validation
from job.training.progress import Progress
from job.training.saving import Saving
from job.training.step import Step, balanced


@dataclass
class Trainer:
    """One run on this rank, which ``saving`` keeps."""

    settings: Config
    dataset: Dataset
    group: Group
    preemption: Preemption
    console: Console
    saving: Saving

    def __post_init__(self) -> None:
        settings, dataset, group = self.settings, self.dataset, self.group
        require_validation(settings, len(dataset.validation))
        self.steps_per_epoch = math.ceil(len(dataset.train) / settings.train.batch_size)
        saved = group.guarded(lambda: self.saving.load(dataset.fingerprint), on=group.is_rank_zero)
        state = group.from_rank_zero(saved.trainer if saved else None)
        self.model, self.loaded, chosen = _network(settings, dataset, group, saved, begins=state is None)
        choices = choose(settings, self.model, dataset, group)
        self.how = f"{', '.join(chosen)}, {choices}"
        at_hand = to_device(dataset, group.device) if choices.images_on_device else dataset
        share: dict[str, Any] = {"rank": group.rank, "world_size": group.world_size}
        share |= {"train": settings.train, "classes": len(dataset.classes)}
        self.batches = {
            name: Batches(getattr(at_hand, name), settings.data, group.device, **share)
            for name in ("train", "validation", "test")
        }
        # One process reads the weights, wherever they come from, and the others have them from it.
        counts = (
            balanced(dataset.train.labels[dataset.train.indices]) if settings.train.class_weights != "none" else None
        )
        self.step = Step(settings, self.model, self.batches["train"], group, choices, self.console.warn, counts)
        self.evaluated = Evaluated(settings, self.model, group, saved.copies if saved else None)
        self.progress = Progress(schedule=[[0, settings.train.epochs]])
        if state is not None:
            self.progress = Progress(**{f.name: state[f.name] for f in dataclasses.fields(Progress) if f.name in state})
            tensors = group.broadcast(saved.optimizer if saved else {})
            optimizers.restore(self.model, self.step.optimizer, tensors)
            if group.accelerator.scaler is not None:
                group.accelerator.scaler.load_state_dict(state["scaler"])
        self._recent: list[tuple[Tensor, int]] = []  # loss and accuracy, and images, of each step since the last look
        self._last_line = time.monotonic()

    def run(self) -> Predictions:
        """Train what is left to train, then test. Raises StoppedEarlyError or FailedError."""
        startup.switch("training")
        try:
            if self.preemption.tick():  # a signal that came while torch was imported or images were decoded
                self._stop()
            while self.progress.epoch <= self.settings.train.epochs and not self._out_of_patience():
                self._train_epoch()
                with startup.spending("evaluation"):
                    self._validate()
            startup.switch("evaluation")
            predictions = self._predict(self.dataset.final, final=True)
            self._save(final=True)
            return predictions
        finally:
            self.saving.checkpoints.wait()  # whatever happened: what is being written is worth a moment

    def _train_epoch(self) -> None:
        settings, progress = self.settings.train, self.progress
        images, size = len(self.dataset.train), settings.batch_size
        self._last_line = time.monotonic()
        frozen.train(self.model)
        pieces = self.settings.parts(self.group.world_size)
        seeds = {"seed": settings.seed_for("order"), "augmentation": settings.seed_for("augmentation")}
        batches = self.batches["train"].training(
            **seeds, epoch=progress.epoch, start=progress.images, batch_size=size, parts=pieces
        )
        beyond = (settings.epochs - progress.epoch) * images
        name = f"epoch {progress.epoch}/{settings.epochs}"
        step = f"{progress.step:,}"
        with self.console.bar(name, images, "images", progress.images, beyond, step=step, loss="") as move:
            for parts in batches:
                count = min(size, images - progress.images)
                self._recent.append((self._step(parts), count))
                progress.step += 1
                self.evaluated.follow(progress.step)
                progress.images += count
                move(count, step=f"{progress.step:,}")
                end = progress.images == images
                due = self.saving.due(progress.step, progress.epoch if end else None)
                if self.saving.line_due(progress.step, end=end):
                    loss, late = self._write_line()
                    move(0, loss=f"{loss:.4f}")
                    due = due or late
                if due:
                    self._save()
                if self.preemption.tick():
                    self._stop()

    def _step(self, parts: list[Part]) -> Tensor:
        number = self.progress.step
        return self.step(parts, number, self._rate(number))

    def _rate(self, step: int) -> float:
        return optimizers.learning_rate(self.settings, step, self.steps_per_epoch, self.progress.schedule)

    def _settle(self) -> bool:
        """Read the losses since the last time, summed over ranks, and rank zero's word: True when a save is overdue.

        The one place where training waits for the device. Raises FailedError for a loss that is not finite.
        """
        progress = self.progress
        zeros = torch.zeros(2, dtype=torch.float64, device=self.group.device)
        own = fingerprint.of_weights(self.model.state_dict()) if self.group.is_rank_zero else zeros
        told = torch.cat([zeros[:1] + self.saving.overdue(), own, *(shares for shares, _ in self._recent)])
        late, high, low, *shares = self.group.sum(told).tolist()
        losses, accuracies = shares[::2], shares[1::2]
        progress.fingerprint = fingerprint.text(high, low)
        bad = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
        if bad and (self.settings.runtime.precision != "fp16" or len(bad) == len(losses) > 10):
            step = progress.step - len(losses) + 1 + bad[0]
            raise DivergedError(f"the loss is not finite at step {step}{self.saving.what_stands()}")
        progress.skipped += len(bad)
        for loss, accuracy, (_, count) in zip(losses, accuracies, self._recent, strict=True):
            if math.isfinite(loss):
                progress.add(loss, accuracy, count)
        self._recent.clear()
        return bool(late)

    def _write_line(self) -> tuple[float, bool]:
        """Write the training line for the steps since the last one: (its mean loss, whether a save is overdue)."""
        late = self._settle()
        now = time.monotonic()
        line = self.progress.line(self._rate(self.progress.step - 1), now - self._last_line)
        self._last_line = now
        self.saving.record(self.progress.step, line)
        self.saving.look_after()
        return line["loss"] or 0.0, late

    def _validate(self) -> None:
        """Validate the epoch that was just trained, and go on to the next one."""
        progress, began = self.progress, time.monotonic()
        loss = progress.epoch_loss / len(self.dataset.train)
        line = ValidationLine(split="validation", epoch=progress.epoch, step=progress.step, train_loss=loss)
        if progress.epoch_named:
            line["train_accuracy"] = progress.epoch_right / progress.epoch_named
        best = False
        if len(self.dataset.validation):
            predictions = self._predict("validation")
            line["loss"] = predictions.loss if math.isfinite(predictions.loss) else None
            line["accuracy"] = predictions.accuracy
            line["class_accuracy"] = class_accuracy(predictions, len(self.dataset.classes))
            best = progress.best is None or predictions.accuracy > progress.best.get("accuracy", 0)
            if best:
                progress.best = line.copy()
                self.evaluated.keep_best()
            progress.last = line.copy()
        line["seconds"] = round(time.monotonic() - began, 3)
        self.saving.record(progress.step, line)
        self.console.epoch(line, self.settings.train.epochs, best=best)
        progress.next_epoch()

    def _out_of_patience(self) -> bool:
        best, patience = self.progress.best, self.settings.train.patience
        over = best is not None and patience is not None and self.progress.epoch - 1 - best["epoch"] >= patience
        if over:
            self.console.say(f"no better validation accuracy in {patience} epochs (train.patience): training is done")
        return over

    def _predict(self, split: str, *, final: bool = False) -> Predictions:
        with self.evaluated.in_place(final=final):
            predictions = self._predictions(split, classes=len(self.dataset.classes) if final else 0)
        if predictions is None:
            self._stop()
        said = predictions.predicted.unique().tolist()
        if len(said) == 1 and len(predictions.labels.unique()) > 1 and (final or self.progress.epoch == 1):
            what = f"every {split} image is called {self.dataset.classes[said[0]]}"
            self.console.warn(
                f"{what}: see whether the loss falls, lower the learning rate, balance train.class_weights"
            )
        return predictions

    def _predictions(self, split: str, *, classes: int) -> Predictions | None:
        part = getattr(self.dataset, split)
        # Batch normalisation's statistics are each rank's own while training; rank zero's are those that are saved.
        for name, buffer in self.group.broadcast(dict(self.model.named_buffers())).items():
            self.model.get_buffer(name).copy_(buffer)
        labels = part.labels[part.indices]
        batches, tick = self.batches[split], self.preemption.tick
        return predict(self.model, batches, labels, self.group, tick, classes=classes)

    def _save(self, *, final: bool = False) -> None:
        self._settle()
        self.step.cross_check(self.progress.step)  # so that the newest checkpoint is one to go on from
        self.saving.save(self.progress.step, self._state, final=final)

    def _state(self) -> State:
        scaler = self.group.accelerator.scaler
        trainer = dataclasses.asdict(self.progress) | {
            "scaler": scaler.state_dict() if scaler is not None else None,
            "classes": list(self.dataset.classes),
            "data": self.dataset.fingerprint,
            "deep": self.dataset.deep and list(self.dataset.deep),
            "world_size": self.group.world_size,
            "config": to_dict(self.settings),
        }
        optimizer = optimizers.tensors_of(self.model, self.step.optimizer)
        return State(self.model.state_dict(), optimizer, trainer, self.evaluated.tensors())

    def _stop(self) -> NoReturn:
        self._save(final=True)
        self.saving.record(self.progress.step)
        raise StoppedEarlyError(self.preemption.reason)

    def final_weights(self) -> dict[str, Tensor]:
        """The weights that were tested, in the network's own form, on the CPU, for rank zero."""
        return form.own_weights(self.evaluated.final(), self.model)


def _network(
    settings: Config, dataset: Dataset, group: Group, saved: State | None, *, begins: bool
) -> tuple[nn.Module, list[str], list[str]]:
    """The network on this rank's device, which weights were loaded, and the form chosen, which is fastest there.

    Rank zero has the right weights: those of the state ``saved``, or, where a run ``begins``, those before training.
    """
    size, classes, seed = dataset.image_size, len(dataset.classes), settings.train.seed_for("weights")
    model = registry.build(settings.model, classes=classes, image_size=size, seed=seed)
    load = partial(weights.pretrained, settings.model, model, download=settings.data.download)
    loaded = group.guarded(load, on=group.is_rank_zero and begins) or []
    chosen = form.fast(model, settings, image_size=size, device=group.device)
    if saved is not None:
        weights.load(model, saved.model, name="the checkpoint's weights")
    frozen.freeze(model, settings)
    return model.to(group.device), loaded, chosen
