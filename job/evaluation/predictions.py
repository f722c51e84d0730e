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
AT_ONCE = {"cpu": (500, 1 << 19), "cuda": (2000, 1 << 23)}
"""images, and pixels, computed at once: on a CPU they should stay in its caches, on a GPU fit its memory"""
MOST_PROBABILITIES = 1 << 27
"""images times classes up to which every probability is gathered: half a gigabyte on rank zero"""
MOST_EXACT = 1 << 24
"""images times classes up to which they are kept as float32, beyond as float16: 64 MB, and 256 MB at most"""


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
    places: Tensor
    """[n] int64, how many classes are more probable than the true one; of equally probable ones the first are more"""
    probabilities: Tensor | None = None
    """[n, classes] float32, on rank zero; None where they are not gathered"""

    @property
    def loss(self) -> float:
        """Mean cross-entropy, in nats."""
        return math.fsum(self.losses.tolist()) / len(self.losses)

    @property
    def accuracy(self) -> float:
        """Share of images whose predicted class is the true one."""
        return int((self.predicted == self.labels).sum()) / len(self.labels)

    def save(self, run: Path) -> None:
        """Keep what was predicted in the directory ``run``; of very many probabilities half their digits."""
        tensors = {name: getattr(self, name) for name in KEPT}
        if (all_of_them := self.probabilities) is not None:
            exact = all_of_them.numel() <= MOST_EXACT
            tensors["probabilities"] = all_of_them if exact else all_of_them.half()
        files.save_weights(run / FILE, tensors)


def predict(
    model: nn.Module,
    batches: Batches,
    labels: Tensor,
    group: Group,
    tick: Callable[[], bool] = lambda: False,
    *,
    classes: int = 0,
) -> Predictions | None:
    """Run ``model`` (the unwrapped one) over a split whose true classes are ``labels`` [n].

    Every image is counted once on any number of processes, or RuntimeError is raised; all numbers are the same to the
    last bit there. ``tick`` is called after each batch on every rank; None is returned, everywhere, when it says to
    stop. The probabilities of so many ``classes`` are gathered, unless they are more than MOST_PROBABILITIES.
    """
    import torch
    from torch.nn import functional as F

    count, (most, pixels) = len(batches), AT_ONCE[group.device.type]
    at_once = max(1, min(most, pixels // batches.image_size**2))
    # One row for each of: times seen, predicted class, confidence, loss, place of the true class. Ranks fill their own
    # columns; the rest is 0.
    table = torch.zeros(5, count, dtype=torch.float64, device=group.device)
    gathers = 0 < count * classes <= MOST_PROBABILITIES
    everything = torch.empty(count, classes) if gathers and group.is_rank_zero else None
    was_training = model.training
    model.eval()
    with torch.inference_mode(), group.accelerator.autocast():
        for number, (positions, images, truth) in enumerate(batches.evaluation(at_once)):
            block = torch.zeros(at_once if gathers else 0, classes, device=group.device)
            if len(positions):
                logits = model(images).float()  # [b, classes]
                probabilities = logits.softmax(1)
                confidence, predicted = probabilities.max(1)
                losses = F.cross_entropy(logits, truth, reduction="none")
                of = [torch.ones_like(losses), predicted, confidence, losses, places(probabilities, truth)]
                table[:, positions.to(group.device)] += torch.stack([row.double() for row in of])
                if gathers:
                    block[: len(positions)] = probabilities
            if gathers:  # rank by rank, which is the split's own order
                of_all = group.rows_of_all(block)
                if everything is not None:
                    part = everything[number * len(of_all) : (number + 1) * len(of_all)]
                    part.copy_(of_all[: len(part)])
            if tick():
                model.train(was_training)
                return None
    model.train(was_training)
    seen, predicted, confidence, losses, place = group.sum(table).cpu()
    if not bool((seen == 1).all()):
        raise RuntimeError(f"evaluation counted {int(seen.sum())} of {count} images, some twice or never")
    return Predictions(predicted.long(), confidence.float(), losses.float(), labels, place.long(), everything)


def places(probabilities: Tensor, truth: Tensor) -> Tensor:
    """How many of ``probabilities`` [b, classes] come before that of the true class, ``truth`` [b]: [b] int64."""
    import torch

    own = probabilities.gather(1, truth[:, None])
    first = torch.arange(probabilities.shape[1], device=truth.device) < truth[:, None]
    return ((probabilities > own) | ((probabilities == own) & first)).sum(1)


def read(run: Path) -> dict[str, NDArray[np.int64]]:
    """What ``Predictions.save`` always keeps in ``run``, by its names. Raises UserError when it cannot be read."""
    from safetensors import SafetensorError

    try:
        return files.load_arrays(run / FILE, KEPT)
    except (OSError, SafetensorError) as error:
        what = f"{run / FILE} cannot be read ({type(error).__name__})"
        raise UserError(what, "restore it, or leave the run out") from None
