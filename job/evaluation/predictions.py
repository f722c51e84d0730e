"""What a network says of each image of a split: every image once, on any number of processes; kept, and read back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from job.config.errors import UserError
from job.runs import files

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from job.data.batches import Batches
    from job.distributed.group import Group

FILE = "predictions.safetensors"
KEPT = ("predicted", "confidence", "labels")
EVALUATION_BATCH = {"cpu": 500, "cuda": 2000}
"""images at once: on a CPU they should stay in its caches"""


@dataclass(frozen=True)
class Predictions:
    """What a model says of each image of a split, in the split's order; on the CPU, the same on every rank."""

    predicted: Tensor
    """[n] int64, class of the largest logit"""
    confidence: Tensor
    """[n] float32, its probability"""
    losses: Tensor
    """[n] float32, cross-entropy in nats"""
    labels: Tensor
    """[n] int64, true class"""

    @property
    def loss(self) -> float:
        """Mean cross-entropy, in nats."""
        return math.fsum(self.losses.tolist()) / len(self.losses)

    @property
    def accuracy(self) -> float:
        """Share of images whose predicted class is the true one."""
        return int((self.predicted == self.labels).sum()) / len(self.labels)

    def save(self, run: Path) -> None:
        """Keep all but the losses in the directory ``run``."""
        files.save_weights(run / FILE, {name: getattr(self, name) for name in KEPT})


def predict(
    model: nn.Module, batches: Batches, labels: Tensor, group: Group, tick: Callable[[], bool] = lambda: False
) -> Predictions | None:
    """Run ``model`` (the unwrapped one) over a split whose true classes are ``labels`` [n].

    Every image is counted once on any number of processes, or RuntimeError is raised. ``tick`` is called after each
    batch on every rank; None is returned, everywhere, when it says to stop.
    """
    import torch
    from torch.nn import functional as F

    count = len(batches)
    # One row for each of: times seen, predicted class, confidence, loss. Ranks fill their own columns; the rest is 0.
    table = torch.zeros(4, count, dtype=torch.float64, device=group.device)
    was_training = model.training
    model.eval()
    with torch.inference_mode(), group.accelerator.autocast():
        for positions, images, truth in batches.evaluation(EVALUATION_BATCH[group.device.type]):
            if len(positions):
                logits = model(images).float()  # [b, classes]
                confidence, predicted = logits.softmax(1).max(1)
                losses = F.cross_entropy(logits, truth, reduction="none")
                rows = torch.stack([torch.ones_like(losses), predicted.float(), confidence, losses])
                table[:, positions.to(group.device)] += rows.double()
            if tick():
                model.train(was_training)
                return None
    model.train(was_training)
    seen, predicted, confidence, losses = group.sum(table).cpu()
    if not bool((seen == 1).all()):
        raise RuntimeError(f"evaluation counted {int(seen.sum())} of {count} images, some twice or never")
    return Predictions(predicted.long(), confidence.float(), losses.float(), labels)


def read(run: Path) -> dict[str, NDArray[np.int64]]:
    """What ``Predictions.save`` kept in ``run``, by its names. Raises UserError when it cannot be read."""
    from safetensors import SafetensorError

    try:
        tensors = files.load_arrays(run / FILE)
        return {name: tensors[name] for name in KEPT}
    except (OSError, SafetensorError, KeyError) as error:
        what = f"{run / FILE} cannot be read ({type(error).__name__})"
        raise UserError(what, "restore it, or leave the run out") from None
