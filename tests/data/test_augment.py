"""What is done to training images: as torchvision does it, addressed by row, and the same however they are shared."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as known

from job.config.settings import Data, Train
from job.data import augment
from job.data.batches import Batches
from job.data.datasets import Split

EVERYTHING = ["flip", "crop", "resized_crop", "rotate", "color", "erasing"]
COUNT, SIZE = 60, 24
CPU = torch.device("cpu")


def smooth(count: int, size: int = SIZE) -> Tensor:
    """Images as they are photographed, uint8 [n, size, size, 3]: neighbours resemble each other."""
    noise = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(1)) * 255
    return F.interpolate(noise, (size, size), mode="bicubic").clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def split() -> Split:
    return Split(smooth(COUNT), torch.arange(COUNT), torch.arange(0, COUNT, 2))


def epoch(names: list[Any], world_size: int = 1, parts: int = 1, batch: int = 12, number: int = 1, **train: Any) -> Any:
    """Images and labels of an epoch in the order of the global batches."""
    told = Train(**train)
    ranks = [
        Batches(split(), Data(augment=names), CPU, rank=rank, world_size=world_size, train=told, classes=COUNT)
        for rank in range(world_size)
    ]
    given = [rank.training(seed=1, epoch=number, start=0, batch_size=batch, parts=parts) for rank in ranks]
    pairs = [
        rank.fetch(part.rows)
        for shares in zip(*given, strict=True)
        for rank, share in zip(ranks, shares, strict=True)
        for part in share
        if part.weight
    ]
    images, labels = zip(*pairs, strict=True)
    return torch.cat(images), torch.cat(labels)


MIXED = {"mixup": 0.4, "cutmix": 1.0}


@pytest.mark.parametrize(
    ("names", "train"), [*(([name], {}) for name in EVERYTHING), ([], MIXED), (EVERYTHING, MIXED)], ids=str
)
def test_an_image_is_changed_the_same_by_whomever_in_whatever_batch_and_anew_each_epoch(names: Any, train: Any) -> None:
    images, labels = epoch(names, **train)
    for world_size, parts in ((2, 1), (3, 2)):
        others, other_labels = epoch(names, world_size, parts, **train)
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)
    one_by_one, _ = epoch(names, batch=1, **train)
    assert torch.equal(images, one_by_one)
    assert not torch.equal(images, epoch(names, number=2, **train)[0])
    assert not torch.equal(images, epoch([])[0])
    assert images.isfinite().all()


def maps(count: int = 1, **changes: Any) -> Tensor:
    """The map of some changes and of no others."""
    still = {"box": torch.tensor([[0.0, 0, 1, 1]]), "degrees": torch.zeros(1), "shift": torch.zeros(1, 2)}
    return augment.warp(**(still | {"flip": torch.zeros(1, dtype=torch.bool)} | changes)).expand(count, 2, 3)


def test_what_is_not_warped_stays_to_the_bit() -> None:
    for size in (8, 32, 96, 224):
        images = smooth(2, size).float()
        assert torch.equal(augment.warped(images, maps(2)), images)


@pytest.mark.parametrize("degrees", [-15.0, -3.3, 7.0, 15.0])
def test_a_turned_image_is_torchvisions_of_its_reflected_self(degrees: float) -> None:
    images = smooth(3)
    ours = augment.warped(images.float(), maps(3, degrees=torch.tensor([degrees])))
    reflected = known.pad(images.permute(0, 3, 1, 2).float(), [SIZE // 2], padding_mode="symmetric")
    turned = known.rotate(reflected, degrees, InterpolationMode.BILINEAR)
    theirs = known.center_crop(turned, [SIZE, SIZE]).permute(0, 2, 3, 1)
    assert (ours - theirs).abs().max() <= 0.51, "more than rounding"


@pytest.mark.parametrize(("top", "left", "height", "width"), [(0, 0, 12, 20), (3, 5, 9, 7), (0, 0, SIZE, SIZE)])
def test_an_enlarged_box_is_torchvisions_but_at_its_edge_which_sees_what_lies_beyond(
    top: int, left: int, height: int, width: int
) -> None:
    images = smooth(3)
    box = torch.tensor([[top, left, top + height, left + width]]) / SIZE
    ours = augment.warped(images.float(), maps(3, box=box)).permute(0, 3, 1, 2)
    theirs = known.resized_crop(
        images.permute(0, 3, 1, 2).float(), top, left, height, width, [SIZE, SIZE], antialias=False
    )
    assert (ours - theirs)[..., 3:-3, 3:-3].abs().max() <= 0.51
    assert (ours - theirs).abs().max() < 40


def test_flips_and_shifts_are_those_of_whole_pixels_where_more_is_done() -> None:
    images = smooth(2)
    changes = {"shift": torch.tensor([[3, -2]]) * 2 / SIZE, "flip": torch.tensor([True])}
    ours = augment.warped(images.float(), maps(2, **changes))
    there = images.flip(2).float()
    assert torch.equal(ours[:, : SIZE - 3, : SIZE - 2], there[:, 3:, 2:])


def test_colours_change_as_torchvisions_do() -> None:
    images = smooth(4)
    factors = torch.tensor([[0.6, 1.4, 0.7], [1.4, 0.6, 1.3], [1.0, 1.0, 1.0], [1.4, 1.4, 1.4]])
    ours = augment.coloured(images.float(), factors)
    for image, (contrast, brightness, saturation), found in zip(images, factors.tolist(), ours, strict=True):
        # On values in [0, 1] torchvision rounds nothing.
        theirs = known.adjust_contrast(image.permute(2, 0, 1).float() / 255, contrast)
        theirs = known.adjust_saturation(known.adjust_brightness(theirs, brightness), saturation)
        assert torch.allclose(found, theirs.permute(1, 2, 0) * 255, atol=0.01)
    assert torch.equal(ours[2], images[2].float())


@pytest.mark.parametrize(
    ("area", "ratio"),
    [(augment.CROPPED_AREA, augment.CROPPED_RATIO), (augment.ERASED_AREA, augment.ERASED_RATIO)],
    ids=["resized_crop", "erasing"],
)
def test_boxes_lie_in_the_image_and_have_the_areas_and_forms_of_the_paper(area: Any, ratio: Any) -> None:
    top, left, bottom, right = augment._boxes(20_000, area, ratio, np.random.default_rng(1)).T
    height, width = bottom - top, right - left
    assert min(top.min(), left.min()) >= 0
    assert max(bottom.max(), right.max()) <= 1
    for values, (low, high) in (((height * width), area), ((height / width), ratio)):
        assert low <= values.min() + 1e-9
        assert values.max() <= high + 1e-9
        assert values.min() < low + 0.02 * (high - low)
        assert values.max() > high - 0.15 * (high - low)
    assert np.corrcoef(top, height)[0, 1] < 0
    assert np.abs(np.median(top / (1 - height + 1e-12)) - 0.5) < 0.02


def test_half_of_the_images_lose_a_box_to_the_mean() -> None:
    images, _ = epoch(["erasing"])
    plain, _ = epoch([])
    changed = (images != plain).any(1)  # [n, H, W]
    assert 8 <= int(changed.flatten(1).any(1).sum()) <= 22
    for image, where in zip(images, changed, strict=True):
        assert not image[:, where].any(), "0 is the mean"
        rows, columns = where.any(1), where.any(0)
        gap = [list(group) for _, group in itertools.groupby([*rows.tolist(), False, *columns.tolist()])]
        assert sum(group[0] for group in gap) <= 2, "one box"


@pytest.mark.parametrize("train", [{"mixup": 0.3}, {"cutmix": 1.0}, {"mixup": 0.3, "cutmix": 1.0}])
def test_images_and_labels_are_mixed_in_the_same_shares_with_partners_from_the_whole_training_split(train: Any) -> None:
    own, labels = epoch([])
    image_of = dict(zip(labels.tolist(), own, strict=True))
    partners, pasted = [], 0
    for mixture, shares, label in zip(*epoch([], **train), labels.tolist(), strict=True):
        assert float(shares.sum()) == pytest.approx(1)
        others = [other for other in shares.nonzero().flatten().tolist() if other != label]
        partners += others
        image, share = image_of[label], float(shares[label])
        other = image_of[others[0]] if others else image
        if torch.allclose(mixture, share * image + (1 - share) * other, atol=1e-5):
            continue
        of_image, of_other = (mixture == image).all(0), (mixture == other).all(0)
        assert (of_image | of_other).all()
        assert share == pytest.approx(1 - float(of_other.float().mean()), abs=0.03)  # some pixels of both are alike
        pasted += 1
    assert len(set(partners)) == len(partners) > 20, "each is a partner once"
    assert (pasted > 5) == ("cutmix" in train)
    assert (pasted < 20) == ("mixup" in train)


def test_shares_follow_the_beta_distribution_and_partners_are_the_training_images_in_another_order() -> None:
    count = 20_000
    many = Split(torch.zeros(count, 8, 8, 3, dtype=torch.uint8), torch.zeros(count).long(), torch.arange(0, count, 2))
    mix = augment.Mix(Train(mixup=0.4), many, 2, CPU)
    mix.draw(seed=1, epoch=1)
    shares = mix._shares[many.indices, 0].double()
    assert shares.mean().item() == pytest.approx(0.5, abs=0.01)
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.03)
    partners = mix.partners[many.indices]
    assert torch.equal(partners.sort().values, many.indices)
    assert not torch.equal(partners, many.indices)
    for alpha in (1e-300, 1e-3, 99.0):
        extreme = augment.Mix(Train(mixup=alpha, cutmix=alpha), many, 2, CPU)
        extreme.draw(seed=1, epoch=1)
        assert extreme._shares.isfinite().all()


def test_the_loss_of_mixed_labels_is_the_weighted_sum_of_both_losses() -> None:
    _, shares = epoch([], mixup=1.0)
    logits = torch.randn(len(shares), COUNT, generator=torch.Generator().manual_seed(3))
    weight = torch.rand(COUNT, generator=torch.Generator().manual_seed(4))
    for told in ({}, {"label_smoothing": 0.1}):
        loss = F.cross_entropy(logits, shares, reduction="none", **told)
        each = torch.stack(
            [F.cross_entropy(logits, torch.full((len(shares),), c), reduction="none", **told) for c in range(COUNT)],
            1,
        )
        assert torch.allclose(loss, (shares * each).sum(1), atol=1e-5)
    weighted = F.cross_entropy(logits, shares, weight=weight, reduction="sum")
    assert torch.isclose(weighted, -(shares * weight * logits.log_softmax(1)).sum())
