"""Where a run stands, and what a line of ``metrics.jsonl`` says of that."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from job.runs.records import TrainLine, ValidationLine


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
    right: list[float] = field(default_factory=list)
    """images of each of these steps that were named rightly as they were learned; half ones are of an image alone"""
    epoch_loss: float = 0.0
    """sum of losses over the images of this epoch that stand in training lines"""
    epoch_right: float = 0.0
    """of these images those that were named rightly"""
    epoch_named: int = 0
    """of how many; fewer than there were where an earlier program trained some"""
    skipped: int = 0
    """steps that fp16's loss scaling left out"""
    fingerprint: str = ""
    """of rank zero's weights, when losses were last looked at"""
    schedule: list[list[int]] = field(default_factory=list)
    """[first, last) epoch of each stretch that learning rates were laid out for"""
    best: ValidationLine | None = None
    """the validation record with the highest accuracy so far"""
    last: ValidationLine | None = None
    """that of the newest epoch"""

    def add(self, loss: float, accuracy: float, count: int) -> None:
        """A step's mean loss over its ``count`` images, and its accuracy."""
        self.losses.append(loss)
        self.counts.append(count)
        self.right.append(round(2 * accuracy * count) / 2)  # exact, in whatever order ranks were summed

    def next_epoch(self) -> None:
        """The epoch is trained and validated."""
        self.epoch, self.images = self.epoch + 1, 0
        self.epoch_loss, self.epoch_right, self.epoch_named = 0.0, 0.0, 0

    def line(self, rate: float, seconds: float) -> TrainLine:
        """The training line for the steps since the last one, the last of them at learning ``rate``; forgets them."""
        images = sum(self.counts)
        total = math.fsum(loss * count for loss, count in zip(self.losses, self.counts, strict=True))
        line: TrainLine = {
            "split": "train",
            "step": self.step,
            "epoch": self.epoch,
            "loss": total / images if images else None,
            "learning_rate": rate,
            "images_per_second": round(images / seconds, 1),
            "fingerprint": self.fingerprint,
        }
        if self.skipped:
            line["skipped_steps"] = self.skipped
        named = sum(self.counts[len(self.counts) - len(self.right) :])
        if named:
            line["accuracy"] = sum(self.right) / named
        self.epoch_loss += total
        self.epoch_right, self.epoch_named = self.epoch_right + sum(self.right), self.epoch_named + named
        self.losses, self.counts, self.right = [], [], []
        return line
