"""Which images are held out of training, for the test and for validation: by seed, and by nothing else."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from job.config.errors import UserError
from job.config.settings import Data


def draw(labels: Tensor, groups: Tensor | None, data: Data, seed: int, *, test: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Ascending rows, int64, of the images to train on, to validate with and, where ``test``, to test with.

    ``labels`` and ``groups`` are int64 [n], from 0. ``data.test`` is a share of all images, ``data.validation`` one of
    those that are left. Raises ``UserError`` where a share that is not 0 would be no image, and for want of groups.
    """
    shares = [data.test if test else 0.0, data.validation]
    generator = torch.Generator().manual_seed(seed)
    if data.hold_out == "grouped":
        if groups is None:
            raise UserError("data.hold_out=grouped", "give data.labels a column of groups, such as patient or camera")
        pools = [_by_group(groups, shares, generator)]
    else:
        order = torch.randperm(len(labels), generator=generator)
        pools = [_cut(pool, shares) for pool in (_apart(order, labels) if data.hold_out == "stratified" else [order])]
    held_out, validation, train = (torch.cat(part).sort().values for part in zip(*pools, strict=True))
    for key, share, rows in zip(("data.test", "data.validation"), shares, (held_out, validation), strict=True):
        if share and not len(rows):
            what = {"grouped": "so few groups", "stratified": "classes of so few images"}.get(
                data.hold_out, "so few images"
            )
            raise UserError(f"{key}={share}", f"cannot be held out of {what}; use 0, or another data.hold_out")
    return train, validation, held_out


def number(count: int, share: float) -> int:
    """How many of ``count`` are held out: the ``share``, rounded, but one at least and never all."""
    return min(max(round(count * share), 1), count - 1) if share and count > 1 else 0


def _cut(order: Tensor, shares: list[float]) -> list[Tensor]:
    """``order`` as a share of it, a share of the rest, and what is left."""
    parts = []
    for share in shares:
        count = number(len(order), share)
        parts.append(order[:count])
        order = order[count:]
    return [*parts, order]


def _apart(order: Tensor, labels: Tensor) -> list[Tensor]:
    """The rows of each label, in ``order``."""
    return list(order[labels[order].argsort(stable=True)].split(labels.bincount().tolist()))


def _by_group(groups: Tensor, shares: list[float], generator: torch.Generator) -> list[Tensor]:
    """As ``_cut``, by whole groups: of all in random order, each that brings a part closer to its share."""
    sizes = groups.bincount().tolist()
    rows = _apart(torch.arange(len(groups)), groups)
    left: list[int] = torch.randperm(len(sizes), generator=generator).tolist()
    parts: list[Iterable[int]] = []
    for place, share in enumerate(shares):
        wanted, have = number(sum(sizes[group] for group in left), share), 0
        room = len(left) - 1 - sum(later > 0 for later in shares[place + 1 :])  # the other parts want one each
        taken: dict[int, None] = {}  # a set in order
        for group in left:
            if len(taken) < room and abs(have + sizes[group] - wanted) < abs(have - wanted):
                taken[group] = None
                have += sizes[group]
        if wanted and room > 0 and not taken:  # all are larger than twice the share
            taken[min(left, key=sizes.__getitem__)] = None
        left = [group for group in left if group not in taken]
        parts.append(taken)
    return [torch.cat([rows[group] for group in part] or [torch.arange(0)]) for part in (*parts, left)]
