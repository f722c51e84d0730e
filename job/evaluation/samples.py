"""The few test images that a report shows, kept in the run directory so that it needs no data set."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from job.data.datasets import Split
    from job.evaluation.predictions import Predictions

FILE = "samples.safetensors"
GRID, MISTAKES = 36, 24  # images
_LARGEST = 128  # pixels; a report shows them small
_FIELDS = ("pictures", "labels", "predicted", "confidence")


@dataclass(frozen=True)
class Samples:
    """Some images and what the model said of them."""

    images: NDArray[np.uint8]
    """[n, H, W, 3]"""
    labels: NDArray[np.int64]
    """[n] true classes"""
    predicted: NDArray[np.int64]
    """[n]"""
    confidence: NDArray[np.float32]
    """[n] probability of the predicted class"""


def keep(run: Path, split: Split, predictions: Predictions) -> None:
    """Write the samples of ``split`` into the directory ``run``: a grid over the classes, and the worst mistakes."""
    import torch
    from torch.nn import functional as F

    from job.runs.files import save_weights

    wrong = (predictions.predicted != predictions.labels).nonzero().flatten()
    worst = wrong[predictions.confidence[wrong].argsort(descending=True, stable=True)][:MISTAKES]
    tensors = {}
    for name, positions in (("grid", torch.from_numpy(_spread(predictions.labels.numpy()))), ("mistakes", worst)):
        images = split.images[split.indices[positions]]  # [n, H, W, 3]
        if split.image_size > _LARGEST and len(images):
            large = images.permute(0, 3, 1, 2).float()
            small = F.interpolate(large, (_LARGEST, _LARGEST), mode="bilinear", antialias=True)
            images = small.round().to(torch.uint8).permute(0, 2, 3, 1)
        tensors[f"{name}_pictures"] = images
        for field in _FIELDS[1:]:
            tensors[f"{name}_{field}"] = getattr(predictions, field)[positions]
    save_weights(run / FILE, tensors)


def read(run: Path) -> dict[str, Samples]:
    """The samples "grid" and "mistakes"; nothing when the file is not there or damaged."""
    from safetensors import SafetensorError

    from job.runs.files import load_arrays

    try:
        tensors = load_arrays(run / FILE)
        return {name: Samples(*(tensors[f"{name}_{field}"] for field in _FIELDS)) for name in ("grid", "mistakes")}
    except (OSError, SafetensorError, KeyError):
        return {}


def _spread(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of GRID images drawn at random, always the same, taking classes in turn."""
    order = np.random.default_rng(0).permutation(len(labels))
    turns: defaultdict[int, Iterator[int]] = defaultdict(itertools.count)
    drawn = zip(labels[order].tolist(), order.tolist(), strict=True)
    rounds = [(next(turns[label]), label, position) for label, position in drawn]
    # Round by round; when there are more classes than places, any of them.
    first = sorted(rounds) if len(turns) <= GRID else rounds
    return np.array([position for _, _, position in first[:GRID]], np.int64)
