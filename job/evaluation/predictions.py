"""Logits become one exact confusion matrix across ranks; everything per class derives from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from job.data.batches import Batches
from job.distributed.group import Group

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

    def class_accuracy(self, classes: int) -> list[float | None]:
        """The same share for each of ``classes`` classes; None without images."""
        matrix = confusion_matrix(self, classes)
        return [_ratio(*pair) for pair in zip(matrix.diagonal().tolist(), matrix.sum(1).tolist(), strict=True)]


def predict(
    model: nn.Module, batches: Batches, labels: Tensor, group: Group, tick: Callable[[], bool] = lambda: False
) -> Predictions | None:
    """Run ``model`` (the unwrapped one) over a split whose true classes are ``labels`` [n].

    Every image is counted once on any number of processes, or RuntimeError is raised. ``tick`` is called after each
    batch on every rank; None is returned, everywhere, when it says to stop.
    """
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


def confusion_matrix(predictions: Predictions, classes: int) -> Tensor:
    """[classes, classes] int64 counts; rows are true classes, columns predicted ones."""
    flat = predictions.labels * classes + predictions.predicted
    return torch.bincount(flat, minlength=classes * classes).view(classes, classes)


def report(predictions: Predictions, classes: tuple[str, ...], *, split: str, **context: Any) -> dict[str, Any]:
    """The content of ``evaluation.json``. A ratio without a denominator is None."""
    matrix = confusion_matrix(predictions, len(classes))
    images, predicted, correct = matrix.sum(1).tolist(), matrix.sum(0).tolist(), matrix.diagonal().tolist()
    return {
        "split": split,
        "images": len(predictions.labels),
        "loss": predictions.loss,
        "accuracy": predictions.accuracy,
        "interval": wilson_interval(sum(correct), len(predictions.labels)),
        **context,
        "classes": [
            {
                "name": name,
                "images": images[i],
                "correct": correct[i],
                "accuracy": _ratio(correct[i], images[i]),
                "precision": _ratio(correct[i], predicted[i]),
                "recall": _ratio(correct[i], images[i]),
                "f1": _ratio(2 * correct[i], images[i] + predicted[i]),
                "interval": wilson_interval(correct[i], images[i]),
            }
            for i, name in enumerate(classes)
        ],
        "confusion_matrix": matrix.tolist(),
        "top_confusions": top_confusions(matrix, classes),
    }


def top_confusions(matrix: Tensor, classes: tuple[str, ...], most: int = 10) -> list[dict[str, Any]]:
    """The most frequent mistakes: true class, predicted class, images."""
    cells = [(int(n), t, p) for t, row in enumerate(matrix) for p, n in enumerate(row) if t != p and n]
    return [
        {"true": classes[t], "predicted": classes[p], "images": n}
        for n, t, p in sorted(cells, key=lambda cell: (-cell[0], cell[1], cell[2]))[:most]
    ]


def wilson_interval(correct: int, images: int, z: float = 1.959963984540054) -> list[float] | None:
    """95% score interval for a proportion (E. B. Wilson, JASA 22, 1927, p. 209); None without images."""
    if images == 0:
        return None
    p = correct / images
    centre = (p + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * math.sqrt(p * (1 - p) / images + z * z / (4 * images * images))
    # At the ends the formula gives exactly 0 or 1, which rounding may miss.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == images else min(1.0, centre + half)
    return [low, high]


def _ratio(numerator: int, denominator: int) -> float | None:
    return numerator / denominator if denominator else None
