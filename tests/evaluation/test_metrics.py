"""Per-class results: exact counts, sound statistics."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
import torch

from job.evaluation import metrics
from job.evaluation.metrics import wilson_interval
from job.evaluation.predictions import Predictions

CLASSES = ("cat", "dog", "empty")


def predictions() -> Predictions:
    truth = torch.tensor([0, 0, 0, 0, 1, 1])
    said = torch.tensor([0, 0, 1, 1, 1, 0])
    return Predictions(said, torch.full((6,), 0.5), torch.arange(6.0), truth)


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
    many = Predictions(said, torch.full((4000,), 0.5), torch.ones(4000), labels)
    result = metrics.report(many, tuple(map(str, range(3000))), split="test", world_size=1)
    assert "confusion_matrix" not in result
    counted = Counter(zip(labels.tolist(), said.tolist(), strict=True))
    assert {(true, predicted): images for true, predicted, images in result["confusions"]} == counted
    assert sum(row["correct"] for row in result["classes"]) == int((labels == said).sum())
    assert len(json.dumps(result)) < 1e6


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
