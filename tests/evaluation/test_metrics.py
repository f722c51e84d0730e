"""Per-class results: exact counts, sound statistics."""

from __future__ import annotations

import functools
import json
import math
import time
from collections import Counter

import numpy as np
import pytest
import torch

from job.evaluation import metrics
from job.evaluation.metrics import wilson_interval
from job.evaluation.predictions import Predictions, places

CLASSES = ("cat", "dog", "empty")


def predictions() -> Predictions:
    truth = torch.tensor([0, 0, 0, 0, 1, 1])
    said = torch.tensor([0, 0, 1, 1, 1, 0])
    return Predictions(said, torch.full((6,), 0.5), torch.arange(6.0), truth, (said != truth).long())


def test_the_report_counts_what_a_person_would_count() -> None:
    result = metrics.report(predictions(), CLASSES, split="test", world_size=1)
    assert result["confusion_matrix"] == [[2, 2, 0], [1, 1, 0], [0, 0, 0]]
    assert result["images"] == 6
    assert result["accuracy"] == 0.5
    assert result["loss"] == 2.5
    cat, dog, empty = result["classes"]
    assert (cat["images"], cat["correct"], cat["accuracy"], cat["recall"]) == (4, 2, 0.5, 0.5)
    assert cat["precision"] == pytest.approx(2 / 3)
    assert cat["f1"] == pytest.approx(4 / 7)
    assert (dog["precision"], dog["recall"]) == (pytest.approx(1 / 3), 0.5)
    assert (empty["images"], empty["accuracy"], empty["precision"], empty["interval"]) == (0, None, None, None)
    assert result["top_confusions"][0] == {"true": "cat", "predicted": "dog", "images": 2}
    json.dumps(result, allow_nan=False)


def test_with_thousands_of_classes_the_matrix_is_kept_by_its_cells_which_are_no_more_than_images() -> None:
    labels, said = (
        torch.arange(4000) % 3000,
        torch.randint(0, 3000, (4000,), generator=torch.Generator().manual_seed(1)),
    )
    said[:1000] = labels[:1000]
    many = Predictions(said, torch.full((4000,), 0.5), torch.ones(4000), labels, (said != labels).long())
    result = metrics.report(many, tuple(map(str, range(3000))), split="test", world_size=1)
    assert "confusion_matrix" not in result
    counted = Counter(zip(labels.tolist(), said.tolist(), strict=True))
    assert {(true, predicted): images for true, predicted, images in result["confusions"]} == counted
    assert sum(row["correct"] for row in result["classes"]) == int((labels == said).sum())
    assert len(json.dumps(result)) < 1e6


def said_by(logits: torch.Tensor, labels: torch.Tensor) -> Predictions:
    """What a network says that gives ``logits`` [n, classes], as ``predict`` gathers it."""
    probabilities = logits.softmax(1)
    confidence, predicted = probabilities.max(1)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return Predictions(predicted, confidence, losses, labels, places(probabilities, labels), probabilities)


@pytest.mark.parametrize("kind", ["plain", "imbalanced", "ties", "saturated", "two classes", "a class never predicted"])
def test_every_metric_is_what_scikit_learn_computes(kind: str) -> None:
    import sklearn.calibration
    import sklearn.metrics

    draw = torch.Generator().manual_seed(1)
    classes = 2 if kind == "two classes" else 8
    labels = torch.randint(0, classes, (500,), generator=draw)
    if kind == "imbalanced":  # one image of the rarest class, hundreds of the commonest
        labels = (torch.rand(500, generator=draw) ** 6 * classes).long()
        labels[0] = classes - 1
    logits = torch.randn(500, classes, generator=draw)
    logits[torch.arange(500), labels] += 1
    if kind == "ties":
        logits = logits.round()
    if kind == "saturated":
        logits *= 60
    if kind == "a class never predicted":
        logits[:, 3] = -100
    said, names = said_by(logits, labels), tuple(map(str, range(classes)))
    result = metrics.report(said, names, split="test", world_size=1)
    assert said.probabilities is not None
    probabilities, truth, predicted = (part.numpy() for part in (said.probabilities, labels, said.predicted))
    exactly = functools.partial(pytest.approx, rel=1e-12)
    assert result["macro_accuracy"] == exactly(sklearn.metrics.balanced_accuracy_score(truth, predicted))
    assert result["macro_f1"] == exactly(sklearn.metrics.f1_score(truth, predicted, average="macro"))
    areas = [sklearn.metrics.roc_auc_score(truth == i, probabilities[:, i]) for i in range(classes)]
    assert [row["auc"] for row in result["classes"]] == exactly(areas)
    if classes > 2:  # of two it takes one column, and refuses rows that do not sum to 1 in its own precision
        assert result["auc"] == exactly(sum(areas) / classes)
        assert result["auc"] == exactly(
            sklearn.metrics.roc_auc_score(truth, probabilities, multi_class="ovr", labels=range(classes))
        )
        if kind not in ("ties", "saturated"):  # where it takes the last of equals, and we the first, as for accuracy
            top = sklearn.metrics.top_k_accuracy_score(truth, probabilities, k=5, labels=range(classes))
            assert result["top5_accuracy"] == exactly(top)
    else:
        assert result["top5_accuracy"] == 1
    assert (said.places == 0).sum() == (said.predicted == labels).sum()
    right, sure = predicted == truth, said.confidence.double().numpy()
    accuracy, confidence = sklearn.calibration.calibration_curve(right, sure, n_bins=15)
    counts = np.bincount(np.searchsorted(np.linspace(0, 1, 16)[1:-1], sure))
    expected = np.abs(accuracy - confidence) @ counts[counts > 0] / 500
    assert result["calibration_error"] == pytest.approx(expected, abs=1e-12)


def test_classes_without_test_images_are_left_out_of_means_and_say_so_with_null() -> None:
    logits = torch.tensor([[2.0, 0, 1, -9], [0, 1, 4, -9], [0, 2, 1, -9], [0, 3, 1, -9]])
    result = metrics.report(said_by(logits, torch.tensor([0, 0, 1, 1])), ("a", "b", "c", "d"), split="t", world_size=1)
    assert [row["auc"] for row in result["classes"]] == [0.5, 1.0, None, None]
    assert result["auc"] == 0.75
    assert result["macro_accuracy"] == 0.75
    assert result["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)  # c was predicted, d was not
    only = metrics.report(said_by(logits[:1], torch.tensor([0])), ("a", "b", "c", "d"), split="t", world_size=1)
    assert (only["auc"], only["macro_accuracy"]) == (None, 1.0)  # nothing else to tell it from


def test_of_thousands_of_classes_all_areas_are_computed_in_seconds() -> None:
    draw = torch.Generator().manual_seed(2)
    labels = torch.arange(8000) % 1000
    logits = torch.randn(8000, 1000, generator=draw)
    began = time.monotonic()
    areas = metrics.class_auc(said_by(logits, labels), 1000)
    assert time.monotonic() - began < 5
    assert sum(area or 0 for area in areas) / 1000 == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    # Values of the score interval without continuity correction, as in R. G. Newcombe, Stat. Med. 17 (1998), table I.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_intervals_agree_with_published_ones(correct: int, images: int, low: float, high: float) -> None:
    interval = wilson_interval(correct, images)
    assert interval is not None
    assert interval[0] == pytest.approx(low, abs=5e-5)
    assert interval[1] == pytest.approx(high, abs=5e-5)


def test_intervals_hold_their_proportion_and_stay_within_bounds() -> None:
    for images in (1, 3, 10, 1000):
        for correct in range(0, images + 1, max(1, images // 10)):
            interval = wilson_interval(correct, images)
            assert interval is not None
            assert 0 <= interval[0] <= correct / images <= interval[1] <= 1
            assert not math.isnan(sum(interval))
