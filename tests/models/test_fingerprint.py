"""A fingerprint of weights tells every bit and where it stands, and nothing of how memory or threads are used."""

from __future__ import annotations

import math

import pytest
import torch

from job.config.settings import Config, Model
from job.models import fingerprint, registry
from job.models.fast import form


def of(*tensors: torch.Tensor) -> int:
    return int(fingerprint.digest(tensors))


def test_whatever_changes_changes_the_digest() -> None:
    draw = torch.Generator().manual_seed(0)
    first, second = (torch.randn(3, 20_001, generator=draw) for _ in range(2))
    first[0, 0], first[1, 7] = 0.0, 3.0
    flipped, swapped, far = (first.clone() for _ in range(3))
    flipped.view(torch.int32)[2, 20_000] ^= 1
    swapped[0, :2] = first[0, :2].flip(0)
    far[0, 5], far[2, 5] = first[2, 5], first[0, 5]
    signed, negated = first.clone(), first.clone()
    signed[0, 0] = -0.0
    negated[1] *= -1  # an even number of signs: products by odd numbers in 32 bits would not tell
    ones, counts = first.clone().double(), torch.tensor(5)
    seen = [of(t, second, counts) for t in (first, flipped, swapped, far, signed, negated, ones)]
    seen += [of(second, first, counts), of(first, second, counts + 1), of(first, second, counts + (1 << 40))]
    assert len(set(seen)) == len(seen)
    assert seen[0] == of(first.clone(), second, counts)


def test_one_flipped_bit_anywhere_is_seen() -> None:
    weights = torch.randn(40_000, generator=torch.Generator().manual_seed(1))
    words, before = weights.view(torch.int32), of(weights)
    seen = {before}
    for number in range(64):
        place, bit = number * 617 % 40_000, number % 32
        kept = words[place].clone()
        words[place] ^= torch.tensor(1 << bit).to(torch.int32) if bit < 31 else torch.tensor(-(1 << 31)).to(torch.int32)
        seen.add(of(weights))
        words[place] = kept
    assert len(seen) == 65
    assert of(weights) == before


@pytest.mark.parametrize("name", ["simple_cnn", "resnet18"])
def test_layout_form_and_threads_change_nothing(name: str) -> None:
    settings = Config(model=Model(name=name))
    model = registry.build(settings.model, classes=10, image_size=32, seed=3)
    own = fingerprint.of_weights(model.state_dict())
    form.fast(model, settings, image_size=32, device=torch.device("cpu"))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert fingerprint.of_weights(dict(reversed(model.state_dict().items()))).equal(own)
    finally:
        torch.set_num_threads(threads)


def test_the_digest_is_what_its_definition_says() -> None:
    """By whole numbers of Python, with the multipliers that a file of some other program would hold."""
    import numpy as np

    values = torch.tensor([1.5, -2.0, math.nan, 0.25])
    columns, rows = ([int(n) | 1 for n in np.random.PCG64(stream).random_raw(4)] for stream in (0, 1))
    words = [int(word) for word in values.view(torch.int32)]
    total = sum(word * column for word, column in zip(words, columns, strict=True)) * rows[0] % 2**64
    high, low = fingerprint.of_weights({"weight": values}).tolist()
    assert fingerprint.text(high, low) == f"{total:016x}"
