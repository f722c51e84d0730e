"""The form of a network for a device: swapped layers, the same parameters, and words for what was done."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from job.config.settings import Config, Runtime
from job.models.fast import form
from job.models.simple_cnn import SimpleCNN
from job.models.vgg import vgg16


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_parameters_keep_their_names_and_values_and_only_a_cpu_gets_forms_for_cpus(device: str) -> None:
    model = SimpleCNN(10)
    before = copy.deepcopy(model.state_dict())
    said = form.fast(model, Config(), image_size=32, device=torch.device(device))
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert said[0] == "channels-last"
    assert ("convolutions for few channels" in said) == (device == "cpu")
    assert (type(model.conv1) is nn.Conv2d) == (device == "cuda")


def test_a_network_of_ones_own_hears_only_of_what_was_done_to_it() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))
    assert form.fast(model, Config(), image_size=16, device=torch.device("cpu")) == ["channels-last"]


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
@pytest.mark.parametrize("intel", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_suits_a_cpu_depends_on_its_maker_its_vector_units_and_the_precision(
    capability: str, intel: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(form, "by_intel", lambda: intel)
    monkeypatch.setattr(form.cpu, "get_cpu_capability", lambda: capability)
    config = Config(runtime=Runtime(precision=precision))  # type: ignore[arg-type]
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Dropout(0.5), nn.Flatten(), nn.Linear(256, 2))
    said = form.fast(model, config, image_size=8, device=torch.device("cpu"))
    if intel or capability == "AVX2":
        assert said[1] == "small convolutions as matrix products"
    elif precision == "fp32":
        assert said[1] == "2 x 2 convolutions as matrix products"
    else:
        assert said[1] == "2 x 2 convolutions and 4 x 4 ones' weight gradients as matrix products"
    assert said[2:] == ([] if intel else ["dropout drawn at once"])


def test_a_pool_before_its_relu_gives_the_same_bits_and_gradients() -> None:
    torch.manual_seed(0)
    behind = nn.Sequential(*vgg16(10).features[2:10])  # convolution, ReLU, pool; twice
    before = copy.deepcopy(behind)
    form.pool_first(before)
    assert [type(layer).__name__ for layer in before[:3]] == ["Conv2d", "MaxPool2d", "ReLU"]
    assert list(before.state_dict()) == list(behind.state_dict())
    images = torch.randn(4, 64, 16, 16).to(memory_format=torch.channels_last)
    found = []
    for model in (behind, before):
        out = model(images)
        out.square().sum().backward()
        found.append([out.detach(), *(p.grad for p in model.parameters())])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
