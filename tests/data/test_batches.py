"""Which image is where: the same global batches on any number of processes, every image once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from job.config.settings import Data
from job.data.batches import Batches, epoch_order
from job.data.datasets import Split

COUNT, SIZE = 103, 16


def split(count: int = COUNT) -> Split:
    generator = torch.Generator().manual_seed(1)
    base = torch.randint(0, 256, (COUNT, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    labels = torch.arange(COUNT)  # so that a label tells which image it came with
    return Split(base, labels, torch.arange(count))


def batches(rank: int = 0, world_size: int = 1, augment: tuple[str, ...] = (), count: int = COUNT) -> Batches:
    settings = Data(augment=list(augment))  # type: ignore[arg-type]
    device = torch.device("cpu")
    return Batches(split(count), settings, device, rank=rank, world_size=world_size)


def epoch(
    world_size: int,
    *,
    start: int = 0,
    batch_size: int = 24,
    parts: int = 1,
    augment: tuple[str, ...] = (),
    seed: int = 1,
):
    """Per global batch: (labels, images, weights of the images) over all ranks, in rank order."""
    ranks = [batches(rank, world_size, augment) for rank in range(world_size)]
    epochs = [r.training(seed=1, epoch=3, start=start, batch_size=batch_size, parts=parts) for r in ranks]
    for shares in zip(*epochs, strict=True):
        every = [(rank, part) for rank, share in zip(ranks, shares, strict=True) for part in share]
        every = [(rank, part) for rank, part in every if part.weight]  # without those that keep ranks in step
        images, labels = zip(*(rank.fetch(part.rows) for rank, part in every), strict=True)
        weights = torch.cat([torch.full((len(part.rows),), part.weight) for _, part in every])
        yield torch.cat(labels), torch.cat(images), weights


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_global_batches_are_the_same_on_any_number_of_processes_and_parts(world_size: int, parts: int) -> None:
    one = list(epoch(1, augment=("flip", "crop")))
    many = list(epoch(world_size, parts=parts, augment=("flip", "crop")))
    assert len(one) == len(many) == 5
    for (labels, images, _), (other_labels, other_images, weights) in zip(one, many, strict=True):
        assert torch.equal(labels, other_labels)
        assert torch.equal(images, other_images)
        assert torch.allclose(weights, torch.full_like(weights, 1 / len(labels)))


@pytest.mark.parametrize("count", [1, 23, 24, 25, 48, 103])
@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_every_image_is_trained_on_once_an_epoch(count: int, world_size: int) -> None:
    seen: list[Tensor] = []
    total = 0.0
    for rank in range(world_size):
        one = batches(rank, world_size, count=count)
        for share in one.training(seed=1, epoch=1, start=0, batch_size=24, parts=1):
            for part in share:
                seen += [one.fetch(part.rows)[1]] if part.weight else []
                total += part.weight * len(part.rows)
    assert torch.cat(seen).sort().values.tolist() == list(range(count))
    assert total == pytest.approx(-(-count // 24))  # each global batch weighs one


def test_an_epoch_goes_on_where_it_stopped_on_another_number_of_processes() -> None:
    whole = list(epoch(2, augment=("flip",)))
    rest = list(epoch(3, start=48, augment=("flip",)))
    assert len(rest) == 3
    for (labels, images, _), (other_labels, other_images, _) in zip(whole[2:], rest, strict=True):
        assert torch.equal(labels, other_labels)
        assert torch.equal(images, other_images)


def test_order_differs_between_epochs_and_seeds_and_repeats_for_the_same() -> None:
    indices = torch.arange(COUNT)
    first = epoch_order(indices, seed=1, epoch=1)
    assert torch.equal(first, epoch_order(indices, seed=1, epoch=1))
    assert not torch.equal(first, epoch_order(indices, seed=1, epoch=2))
    assert not torch.equal(first, epoch_order(indices, seed=2, epoch=1))


def test_images_may_be_changed_by_another_seed_than_they_are_ordered_by() -> None:
    flipped = batches(augment=("flip",))

    def first(**seeds: int) -> tuple[list[int], list[float]]:
        ((part,), *_) = flipped.training(**seeds, epoch=1, start=0, batch_size=20, parts=1)
        return part.rows.tolist(), flipped.fetch(part.rows)[0].tolist()

    rows, images = first(seed=1)
    assert first(seed=1, augmentation=1) == (rows, images)
    assert first(seed=1, augmentation=2)[0] == rows
    assert first(seed=1, augmentation=2)[1] != images
    assert first(seed=2, augmentation=1)[0] != rows


def test_images_are_normalised_as_by_the_reference() -> None:
    labels, images, _ = next(epoch(1))
    pixels = split().images[labels].permute(0, 3, 1, 2).float()
    assert torch.allclose(images, (pixels / 255 - 0.5) / 0.5, atol=1e-6)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_flip_mirrors_about_half_of_the_images_and_others_stay() -> None:
    plain = {int(n): i for labels, images, _ in epoch(1) for n, i in zip(labels, images, strict=True)}
    flipped = {
        int(n): i for labels, images, _ in epoch(1, augment=("flip",)) for n, i in zip(labels, images, strict=True)
    }
    mirrored = [n for n in plain if torch.equal(flipped[n], plain[n].flip(2))]
    same = [n for n in plain if torch.equal(flipped[n], plain[n])]
    assert len(mirrored) + len(same) == COUNT
    assert 30 < len(mirrored) < 73


def test_a_crop_shifts_by_at_most_an_eighth_and_fills_by_reflection() -> None:
    plain = {int(n): i for labels, images, _ in epoch(1) for n, i in zip(labels, images, strict=True)}
    found = set()
    for labels, images, _ in epoch(1, augment=("flip", "crop")):
        for number, image in zip(labels, images, strict=True):
            original = plain[int(number)]
            padded = torch.nn.functional.pad(original[None], (2, 2, 2, 2), mode="reflect")[0]
            matches = [
                (row, column, flip)
                for row in range(5)
                for column in range(5)
                for flip in (False, True)
                if torch.equal(image, (padded.flip(2) if flip else padded)[:, row : row + SIZE, column : column + SIZE])
            ]
            assert matches, "an image that is no crop of its reflected self"
            found |= set(matches)
    assert len(found) > 30


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 128])
@pytest.mark.parametrize("batch_size", [7, 1000])
def test_evaluation_sees_every_image_once_and_ranks_keep_step(world_size: int, batch_size: int) -> None:
    rounds = set()
    seen = []
    for rank in range(world_size):
        produced = list(batches(rank, world_size).evaluation(batch_size))
        rounds.add(len(produced))
        for positions, images, labels in produced:
            assert torch.equal(positions, labels)
            assert len(images) == len(labels)
            seen.append(labels)
    assert len(rounds) == 1
    assert torch.cat(seen).sort().values.tolist() == list(range(COUNT))
