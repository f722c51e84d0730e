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
    epoch_loss: float = 0.0
    """sum of losses over the images of this epoch that stand in training lines"""
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
        self.epoch_loss += total
        self.losses, self.counts = [], []
        return line
