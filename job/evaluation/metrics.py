"""Everything per class, of the counts of one confusion matrix."""

from __future__ import annotations

import math
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from job.evaluation.predictions import Predictions
from job.runs.records import Confusion, Evaluation, Matrix, Origin

MOST_IN_MATRIX = 200
"""classes up to which ``evaluation.json`` has a confusion matrix whole; it grows with their square"""
TOP = 5
"""the true class is to be among so many, the most probable: O. Russakovsky et al., IJCV 115 (2015), section 4"""


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
    areas = class_auc(predictions, len(classes))
    recalls = [_ratio(right, count) for right, count in zip(correct, images, strict=True)]
    f1s = [_ratio(2 * right, count + said) for right, count, said in zip(correct, images, predicted, strict=True)]
    return {
        "split": split,
        "images": len(predictions.labels),
        "loss": predictions.loss,
        "accuracy": predictions.accuracy,
        "interval": interval,
        "top5_accuracy": int((predictions.places < TOP).sum()) / len(predictions.labels),
        "macro_accuracy": _mean(recalls),
        "macro_f1": _mean(f1s),
        "calibration_error": calibration_error(predictions),
        "auc": _mean(areas),
        **origin,
        "classes": [
            {
                "name": name,
                "images": images[i],
                "correct": correct[i],
                "accuracy": recalls[i],
                "precision": _ratio(correct[i], predicted[i]),
                "recall": recalls[i],
                "f1": f1s[i],
                "auc": areas[i],
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


def calibration_error(predictions: Predictions, bins: int = 15) -> float:
    """Expected calibration error: mean distance of probability from accuracy over bins, weighted by their images.

    C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, ICML 2017, equation 3: the probability of the predicted class, in 15
    bins of equal width, each without its lower end and with its upper one.
    """
    confidence = predictions.confidence.double().numpy()
    right = (predictions.predicted == predictions.labels).numpy()
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)  # [n] bin of each image
    return math.fsum(np.abs(np.bincount(place, confidence - right))) / len(right)


def class_auc(predictions: Predictions, classes: int) -> list[float | None]:
    """Area under the ROC curve of each class against all others, by the class's probability.

    That is how often an image of the class has a higher probability than one of another class, equal ones counting half
    (J. A. Hanley and B. J. McNeil, Radiology 143, 1982, p. 29): counted in whole numbers, nothing is rounded. The mean
    over classes is that of F. Provost and P. Domingos, CeDER working paper 00-04 (2000), with equal weights, as
    scikit-learn's ``roc_auc_score(multi_class="ovr")``. None where all images or none are of the class, which
    scikit-learn refuses, and for all where probabilities were not gathered.
    """
    if predictions.probabilities is None:
        return [None] * classes
    areas: list[float | None] = []
    labels = predictions.labels.numpy()
    # Some classes at once: they lie side by side.
    for some in np.array_split(predictions.probabilities.numpy(), -(-classes // 64), axis=1):
        for column in np.ascontiguousarray(some.T):  # [n] of one class
            own = column[labels == len(areas)]
            everyone = np.sort(column)
            below, up_to = (int(np.searchsorted(everyone, own, side).sum()) for side in ("left", "right"))
            # The images of the class are among everyone: their pairs with each other count their number squared.
            areas.append(_ratio(below + up_to - len(own) ** 2, 2 * len(own) * (len(column) - len(own))))
    return areas


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


def _mean(values: list[float | None]) -> float | None:
    """Of those that there are."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _ratio(numerator: int, denominator: int) -> float | None:
    return numerator / denominator if denominator else None
