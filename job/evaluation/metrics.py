"""Everything per class, of the counts of one confusion matrix."""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor

from job.evaluation.predictions import Predictions
from job.runs.records import Confusion, Evaluation, Matrix, Origin

MOST_IN_MATRIX = 200
"""classes up to which ``evaluation.json`` has a confusion matrix whole; it grows with their square"""


def confusions(predictions: Predictions, classes: int) -> Tensor:
    """The cells of the confusion matrix that are not 0: [cells, 3] int64 of true class, predicted class, images."""
    cells, images = (predictions.labels * classes + predictions.predicted).unique(return_counts=True)
    return torch.stack([cells // classes, cells % classes, images], dim=1)


def class_accuracy(predictions: Predictions, classes: int) -> list[float | None]:
    """Share of each class's images that are predicted right; None without images."""
    _, images, correct = _counts(predictions, classes)
    return list(map(_ratio, correct, images))


def report(predictions: Predictions, classes: tuple[str, ...], *, split: str, **origin: Unpack[Origin]) -> Evaluation:
    """The content of ``evaluation.json``. A ratio without a denominator is None."""
    predicted, images, correct = _counts(predictions, len(classes))
    interval = wilson_interval(sum(correct), len(predictions.labels))
    assert interval is not None
    cells = confusions(predictions, len(classes))
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
        **_matrix(cells, len(classes)),
        "top_confusions": top_confusions(cells, classes),
    }


def top_confusions(cells: Tensor, classes: tuple[str, ...], most: int = 10) -> list[Confusion]:
    """The most frequent mistakes of ``confusions``: true class, predicted class, images."""
    mistakes = sorted((-n, t, p) for t, p, n in cells.tolist() if t != p)
    return [{"true": classes[t], "predicted": classes[p], "images": -n} for n, t, p in mistakes[:most]]


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


def _matrix(cells: Tensor, classes: int) -> Matrix:
    if classes > MOST_IN_MATRIX:
        return {"confusions": cells.tolist()}
    matrix = torch.zeros(classes, classes, dtype=torch.int64)
    matrix[cells[:, 0], cells[:, 1]] = cells[:, 2]
    return {"confusion_matrix": matrix.tolist()}


def _counts(predictions: Predictions, classes: int) -> tuple[list[int], list[int], list[int]]:
    """Of each class, how often it was predicted, its images, and those that are predicted right."""
    right = predictions.labels[predictions.labels == predictions.predicted]
    of_class = (predictions.predicted, predictions.labels, right)
    predicted, images, correct = (torch.bincount(found, minlength=classes).tolist() for found in of_class)
    return predicted, images, correct


def _ratio(numerator: int, denominator: int) -> float | None:
    return numerator / denominator if denominator else None
