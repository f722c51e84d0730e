"""Which weights are evaluated, and what an image of a rare class counts."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from support.groups import alone
from torch import Tensor, nn
from torch.nn import functional as F

from job.config.errors import UserError
from job.config.settings import Config, Data, Run, Train
from job.data.batches import Batches, Part
from job.data.datasets import Split
from job.training.choices import Choices
from job.training.evaluated import Evaluated, caveats, require_validation
from job.training.step import Step, balanced


def evaluated(model: nn.Module, saved: dict[str, Tensor] | None = None, ema: float | None = 0.9) -> Evaluated:
    settings = Config(train=Train(ema=ema), run=Run(weights="best"))
    return Evaluated(settings, model, alone(Accelerator(cpu=True), torch.device("cpu")), saved)


def test_the_average_is_evaluated_in_place_of_the_weights_which_come_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    first = model[0].weight.detach().clone()
    copies = evaluated(model)
    expected = first.clone()
    for step in range(1, 100):
        model[0].weight.data += 0.1
        copies.follow(step)
        kept = min(0.9, step / (step + 9))
        expected = kept * expected + (1 - kept) * model[0].weight.detach()
    trained = model[0].weight.detach().clone()
    with copies.in_place(final=False):
        assert torch.allclose(model[0].weight, expected, atol=1e-5)
    assert torch.equal(model[0].weight, trained)


def test_the_best_by_the_very_images_that_are_evaluated_is_said_to_be_flattered() -> None:
    best, last = Config(run=Run(weights="best")), Config()
    assert [len(caveats(one, split)) for one in (best, last) for split in ("test", "validation")] == [0, 1, 0, 0]


@pytest.mark.parametrize("ema", [None, 0.9])
def test_the_best_is_what_validation_saw_and_is_found_again_after_a_stop(ema: float | None) -> None:
    model = nn.Linear(2, 2)
    copies = evaluated(model, ema=ema)
    model.weight.data.fill_(1)
    copies.follow(1)
    with copies.in_place(final=False):
        seen = model.weight.detach().clone()
    copies.keep_best()
    model.weight.data.fill_(2)
    copies.follow(2)
    again = evaluated(model, copies.tensors(), ema=ema)
    for one in (copies, again):
        with one.in_place(final=True):
            assert torch.equal(model.weight, seen)
        assert torch.equal(model.weight, torch.full((2, 2), 2.0))
        assert torch.equal(one.final()["weight"], seen)


def test_validation_that_decides_needs_images() -> None:
    for settings in (Config(train=Train(patience=2)), Config(run=Run(weights="best"))):
        require_validation(settings, 1)
        with pytest.raises(UserError, match="without validation images: give"):
            require_validation(settings, 0)


def step(model: nn.Module, labels: Tensor, *, weights: Tensor | None = None) -> Step:
    split = Split(torch.randint(0, 256, (len(labels), 8, 8, 3), dtype=torch.uint8), labels, torch.arange(len(labels)))
    batches = Batches(split, Data(), torch.device("cpu"), rank=0, world_size=1)
    group = alone(Accelerator(cpu=True), torch.device("cpu"))
    return Step(Config(), model, batches, group, Choices(False, False, "none"), print, weights)


def test_balanced_weights_give_each_class_the_same_say() -> None:
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 2, 2, 3])
    weights = balanced(labels)
    assert weights.tolist() == pytest.approx([9 / (3 * 6), 9 / 3, 9 / (3 * 2), 9 / 3])
    assert weights[labels].mean() == pytest.approx(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    one = step(model, labels, weights=weights)
    loss, accuracy = one.gradient(Part(torch.arange(9), 1 / 9))
    images, _ = one.batches.fetch(torch.arange(9))
    assert accuracy.item() == pytest.approx((model(images).argmax(1) == labels).double().mean().item())
    whole = F.cross_entropy(model(images), labels, weight=weights)  # torch's, of all images: the same
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6)
    ours = model[1].weight.grad.clone()
    model.zero_grad()
    whole.backward()
    assert torch.allclose(ours, model[1].weight.grad, atol=1e-6)


def test_one_image_alone_passes_batch_normalisation_and_leaves_no_trace_there() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    one = step(model, torch.tensor([0, 1, 1]))
    before = model[1].running_mean.clone()
    assert one.gradient(Part(torch.tensor([2]), 1.0)).isfinite().all()
    assert one.gradient(Part(torch.tensor([2]), 1.0))[1] in (0, 0.5, 1), "counted once"
    assert torch.equal(model[1].running_mean, before)
    assert one.gradient(Part(torch.tensor([0, 2]), 0.5)).isfinite().all()
    assert not torch.equal(model[1].running_mean, before)
