"""A device that miscomputes is named: now and then all ranks compute the same part of a batch, and compare.

Fleets find devices that give wrong results without any error (Dixit and others, 2021: Silent Data Corruptions at
Scale, arXiv:2102.11245). Ranks hold the same weights, so that the same part of a batch gives the same bits on all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from job.config.errors import FailedError
from job.data.batches import Part
from job.distributed import launcher
from job.distributed.group import Group
from job.models.fingerprint import digest
from job.runs import environment

Answer = tuple[int, int]
"""digests of a rank's weights and of its gradient"""


class CrossCheck:
    """Compares what ranks make of the same images with the same weights. All ranks make and call it alike."""

    def __init__(
        self, gradient: Callable[[Part, int], Sequence[Tensor]], weights: Sequence[Tensor], group: Group
    ) -> None:
        """``gradient`` of a part, given a seed for what the network draws, leaves no trace of itself."""
        self._gradient, self._weights, self._group = gradient, weights, group
        own = environment.of_process(group)
        self._where = group.gathered(
            [launcher.node(), f"{own['device']}, {own['threads']} threads, torch {own['torch']}"]
        )

    def __call__(self, part: Part, step: int) -> None:
        """Compare what all ranks make of half of one rank's ``part``, another's at each check.

        Raises FailedError on all ranks, where one's weights or gradient after ``step`` steps are not the others'.
        """
        size = self._group.world_size
        rows = self._group.gathered(part.rows[::2].tolist())[step % size]  # all would cost twice as much
        same = Part(torch.tensor(rows, device=part.rows.device), 1 / len(rows))
        first = self._answers(same, step)
        if len(set(first)) > 1:
            ranks, how = odd_ones_out(first, self._answers(same, step))
            raise FailedError(self._verdict(ranks, how, step))

    def _answers(self, part: Part, step: int) -> list[Answer]:
        own = int(digest(self._weights)), int(digest(self._gradient(part, step)))
        return [(weights, gradient) for weights, gradient in self._group.gathered(own)]

    def _verdict(self, ranks: list[int], how: str, step: int) -> str:
        size, devices = self._group.world_size, sorted({device for _, device in self._where})
        names = [f"rank {rank} of {size} on {self._where[rank][0]}" for rank in ranks]
        text = f"{' or '.join(names)} miscomputes: after step {step} {how}"
        return (
            text if len(devices) == 1 else f"{text}; or unlike devices round in ways of their own: {'; '.join(devices)}"
        )


def odd_ones_out(first: Sequence[Answer], second: Sequence[Answer]) -> tuple[list[int], str]:
    """Which ranks miscompute, and how that shows, by two ``Answer``s of each rank to the same question.

    Those that give two answers; else those that are outvoted; else nobody knows, and it is one of all.
    """
    torn = [rank for rank, answers in enumerate(zip(first, second, strict=True)) if answers[0] != answers[1]]
    if torn:
        return torn, "it computed the same twice, and the results differ"
    common, votes = Counter(first).most_common(1)[0]
    outvoted = [rank for rank, answer in enumerate(first) if answer != common]
    what = "weights" if len({weights for weights, _ in first}) > 1 else "gradient"
    if 2 * votes > len(first):
        return outvoted, f"it has not the {what} of the other ranks"
    return list(range(len(first))), f"they have not the same {what}, and no majority tells whose is right"
