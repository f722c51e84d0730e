"""What is held out: exact in number, by seed alone, of every class or by whole groups."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from job.config.errors import UserError
from job.config.settings import Data
from job.data.layout import hold_out


def draw(
    labels: Tensor | int, seed: int = 7, groups: Tensor | None = None, *, test: bool = True, **data: object
) -> tuple[Tensor, Tensor, Tensor]:
    labels = torch.zeros(labels, dtype=torch.int64) if isinstance(labels, int) else labels
    settings = Data(source="folder", labels="labels.csv", **data)  # type: ignore[arg-type]
    return hold_out.draw(labels, groups, settings, seed, test=test)


def test_the_draw_follows_from_the_seed_alone() -> None:
    train, validation, test = draw(50_000, 42, test=False)
    again, other = draw(50_000, 42, test=False)[0], draw(50_000, 43, test=False)[0]
    assert (len(train), len(validation), len(test)) == (40_000, 10_000, 0)
    assert torch.equal(train, again)
    assert not torch.equal(train, other)
    # the same on every machine and in every version, or a resumed run would train on what it is validated with
    assert validation[:5].tolist() == [6, 32, 33, 34, 35]
    assert draw(50_000, 42)[2][:5].tolist() == [6, 32, 33, 34, 35]


def test_the_draw_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    draw(100)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("how", ["random", "stratified", "grouped"])
@pytest.mark.parametrize("count", [3, 4, 5, 999, 1001])
@pytest.mark.parametrize(("validation", "test"), [(0.0, 0.0), (0.001, 0.2), (0.2, 0.001), (0.999, 0.0), (0.999, 0.999)])
def test_every_image_is_in_one_split_and_none_asked_for_is_empty(
    how: str, count: int, validation: float, test: float
) -> None:
    groups = torch.arange(count)
    parts = draw(count, groups=groups, hold_out=how, validation=validation, test=test)
    assert torch.cat(parts).sort().values.tolist() == list(range(count))
    assert [len(part) > 0 for part in parts] == [True, validation > 0, test > 0]
    assert all(part.dtype == torch.int64 and torch.equal(part, part.sort().values) for part in parts)


def test_stratified_keeps_each_classes_share_and_one_image_of_all_but_single_ones() -> None:
    sizes = [1, 2, 3, 10, 100, 1000]
    labels = torch.arange(6).repeat_interleave(torch.tensor(sizes))[torch.randperm(1116)]
    train, validation, test = (
        labels[rows].bincount(minlength=6).tolist() for rows in draw(labels, hold_out="stratified")
    )
    assert test == [0, 1, 1, 2, 20, 200]
    assert validation == [0, 0, 1, 2, 16, 160]
    assert train == [1, 1, 1, 6, 64, 640]
    assert not torch.equal(draw(labels, 1, hold_out="stratified")[0], draw(labels, 2, hold_out="stratified")[0])


@pytest.mark.parametrize("sizes", [[4] * 25, [1, 1, 98], [50, 30, 20], [97, 1, 1, 1], list(range(1, 14))])
def test_grouped_parts_no_group_and_comes_near_the_share(sizes: list[int]) -> None:
    groups = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    groups = groups[torch.randperm(len(groups))]
    drawn = set()
    for seed in range(5):
        parts = draw(len(groups), seed, groups, hold_out="grouped")
        owners = [set(groups[part].tolist()) for part in parts]
        assert all(owners)
        assert sum(map(len, owners)) == len(sizes), "a group is in two splits"
        if max(sizes) <= 10 * min(sizes):
            assert abs(len(parts[2]) - 0.2 * len(groups)) <= max(sizes) / 2 + 1
        drawn.add(tuple(parts[2].tolist()))
    assert len(drawn) > 1 or len(sizes) < 4


@pytest.mark.parametrize(
    ("labels", "groups", "data", "message"),
    [
        (1, None, {"test": 0.0}, "data.validation=0.2: cannot be held out of so few images"),
        (1, None, {}, "data.test=0.2: cannot be held out of so few images"),
        (torch.arange(5), None, {"hold_out": "stratified"}, "cannot be held out of classes of so few images"),
        (4, torch.tensor([0, 0, 1, 1]), {"hold_out": "grouped"}, "data.test=0.2: cannot be held out of so few groups"),
        (4, None, {"hold_out": "grouped"}, "a column of groups"),
    ],
)
def test_what_cannot_be_held_out_is_refused(
    labels: Tensor | int, groups: Tensor | None, data: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        draw(labels, groups=groups, **data)
