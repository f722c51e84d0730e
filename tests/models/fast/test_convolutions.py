"""The forms in which CPUs compute convolutions give what nn.Conv2d gives, and so do their gradients."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from job.models.fast import convolutions
from job.models.fast.convolutions import Windows
from job.models.simple_cnn import SimpleCNN


def results(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Logits and the gradients of images and parameters."""
    x = images.clone(memory_format=torch.preserve_format).requires_grad_()
    out = model(x)
    out.square().sum().backward()
    assert x.grad is not None
    return [out.detach(), x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


def channels_last(*shape: int, kind: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=kind).to(memory_format=torch.channels_last)


def simple_cnn(*, pairs: bool | None = None, kind: torch.dtype = torch.float64) -> nn.Module:
    """As it is built, or in the forms for few channels."""
    torch.manual_seed(42)
    model = SimpleCNN(10).to(kind)
    if pairs is not None:
        convolutions.use_for_few_channels(model, pairs=pairs)
    return model.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("pairs", [False, True])
def test_simple_cnn_in_forms_for_few_channels_has_the_same_logits_gradients_and_weights(pairs: bool) -> None:
    torch.manual_seed(0)
    images = channels_last(5, 3, 32, 32)
    plain, fast = simple_cnn(), simple_cnn(pairs=pairs)
    for (name, a), (other, b) in zip(plain.state_dict().items(), fast.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)
    for a, b in zip(results(plain, images), results(fast, images), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_simple_cnn_in_bf16_is_as_far_from_exact_in_forms_for_few_channels_as_in_its_own() -> None:
    torch.manual_seed(0)
    images = channels_last(64, 3, 32, 32, kind=torch.float32)
    exact = results(simple_cnn(), images.double())
    apart = []
    for pairs in (None, False, True):
        with torch.autocast("cpu", torch.bfloat16):
            found = results(simple_cnn(pairs=pairs, kind=torch.float32), images)
        apart.append([float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)])
    for own, fast in pairwise(apart):
        assert all(b < 1.5 * a + 1e-6 for a, b in zip(own, fast, strict=True))


@pytest.mark.parametrize("windows", ["all", "weight", "nothing"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_a_convolution_of_a_small_map_is_the_convolution_and_has_its_gradients(size: int, windows: Windows) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(5, 7, 3, padding=1)).double().to(memory_format=torch.channels_last)
    fast = copy.deepcopy(plain)
    assert convolutions.use_for_small_maps(fast, windows)
    assert list(fast.state_dict()) == list(plain.state_dict())
    images = channels_last(3, 5, size, size)
    for a, b in zip(results(plain, images), results(fast, images), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("windows", ["all", "weight", "nothing"])
@pytest.mark.parametrize("size", [2, 4])
def test_a_convolution_of_a_small_map_in_bf16_is_as_far_from_exact_as_nn_conv2d(size: int, windows: Windows) -> None:
    torch.manual_seed(0)
    images = channels_last(32, 64, size, size, kind=torch.float32)
    plain = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1)).to(memory_format=torch.channels_last)
    fast = copy.deepcopy(plain)
    assert convolutions.use_for_small_maps(fast, windows)
    exact = results(copy.deepcopy(plain).double(), images.double())
    apart = []
    for model in (plain, fast):
        with torch.autocast("cpu", torch.bfloat16):
            found = results(model, images)
        apart.append([float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)])
    assert all(b < 1.5 * a + 1e-6 for a, b in zip(*apart, strict=True))


def test_convolutions_of_another_kind_than_vggs_are_left_as_they_are() -> None:
    others = [
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=1, stride=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    ]
    model = nn.Sequential(*others, nn.Conv2d(4, 4, 3, padding=1))
    assert not convolutions.use_for_small_maps(nn.Sequential(*others), "all")
    assert convolutions.use_for_small_maps(model, "all")
    assert list(model)[:-1] == others
    assert type(model[-1]) is convolutions.SmallConv2d
