"""Everything per class, of one confusion matrix."""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor

from job.evaluation.predictions import Predictions
from job.runs.records import Confusion, Evaluation, Origin


def confusion_matrix(predictions: Predictions, classes: int) -> Tensor:
    """[classes, classes] int64 counts; rows are true classes, columns predicted ones."""
    flat = predictions.labels * classes + predictions.predicted
    return torch.bincount(flat, minlength=classes * classes).view(classes, classes)


def class_accuracy(predictions: Predictions, classes: int) -> list[float | None]:
    """Share of each class's images that are predicted right; None without images."""
    matrix = confusion_matrix(predictions, classes)
    return [_ratio(*pair) for pair in zip(matrix.diagonal().tolist(), matrix.sum(1).tolist(), strict=True)]


def report(predictions: Predictions, classes: tuple[str, ...], *, split: str, **origin: Unpack[Origin]) -> Evaluation:
    """The content of ``evaluation.json``. A ratio without a denominator is None."""
    matrix = confusion_matrix(predictions, len(classes))
    interval = wilson_interval(int(matrix.trace()), len(predictions.labels))
    assert interval is not None
    images, predicted, correct = matrix.sum(1).tolist(), matrix.sum(0).tolist(), matrix.diagonal().tolist()
    return {
        "split": split,
        "images": len(predictions.labels),
        "loss": predictions.loss,
        "accuracy": predictions.accuracy,
        "interval": interval,
        **origin,
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


def top_confusions(matrix: Tensor, classes: tuple[str, ...], most: int = 10) -> list[Confusion]:
    """The most frequent mistakes: true class, predicted class, images."""
    cells = [(-n, t, p) for t, row in enumerate(matrix.tolist()) for p, n in enumerate(row) if t != p and n]
    return [{"true": classes[t], "predicted": classes[p], "images": -n} for n, t, p in sorted(cells)[:most]]


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
