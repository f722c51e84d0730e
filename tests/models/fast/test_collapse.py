"""What is done to VGG for speed changes nothing but the last bits."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from job.config.errors import UserError
from job.config.settings import Config, Data, Model, Optimizer, Schedule, Train
from job.models import registry, vgg, weights
from job.models.fast import collapse
from job.training import optimizers

STEPS = 6


class Small(nn.Module):
    """VGG's last layers, on features of one pixel, narrow behind the layer that is collapsed."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 512, 32)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(nn.Linear(512 * 49, 6), nn.ReLU(), nn.Linear(6, 10))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


def trained(model: nn.Module, settings: Config) -> list[float]:
    """Losses of a few steps on the same pictures."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 3, 32, 32, generator=generator, dtype=torch.float64)
    labels = torch.randint(10, (16,), generator=generator)
    optimizer = optimizers.make_optimizer(settings.optimizer, model)
    losses = []
    for step in range(STEPS):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        if settings.train.clip_norm:
            optimizers.clip(list(model.parameters()), settings.train.clip_norm)
        optimizers.set_learning_rate(optimizer, optimizers.learning_rate(settings, step, STEPS))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def settings(optimizer: Optimizer, clip_norm: float | None = None) -> Config:
    train = Train(epochs=1, clip_norm=clip_norm)
    return Config(model=Model(name="vgg16"), optimizer=optimizer, train=train, schedule=Schedule(name="cosine"))


@pytest.mark.parametrize(
    ("optimizer", "clip_norm"),
    [
        (Optimizer(name="adam", learning_rate=1e-3), None),
        (Optimizer(name="adamw", learning_rate=1e-3, weight_decay=0.1), None),
        (Optimizer(name="sgd", learning_rate=1e-3, momentum=0.9), None),
        (Optimizer(name="sgd", learning_rate=1e-3, momentum=0.9, weight_decay=0.5), None),
        (Optimizer(name="sgd", learning_rate=1e-2, momentum=0.0), 0.5),
    ],
)
def test_training_the_sum_of_the_49_parts_is_training_each_of_them(
    optimizer: Optimizer, clip_norm: float | None
) -> None:
    torch.manual_seed(0)
    whole = Small().double()
    before = whole.state_dict()[collapse.LAYER].clone()
    small = copy.deepcopy(whole)
    config = settings(optimizer, clip_norm)
    assert collapse.collapses(config, small, 32)
    collapse.collapse(small)
    assert registry.count_parameters(small) == registry.count_parameters(whole)
    expected, found = trained(whole, config), trained(small, config)
    assert max(expected) - min(expected) > 1e-3  # they did learn
    assert found == pytest.approx(expected, rel=1e-11)
    left = optimizers.left_of_decay(config, STEPS, STEPS)
    for key, value in collapse.expanded(small.state_dict(), before, left).items():
        assert torch.allclose(value, whole.state_dict()[key], rtol=0, atol=1e-12), key


def test_a_collapsed_network_is_handed_back_in_torchvisions_layout_with_the_same_logits() -> None:
    model = registry.build(Model(name="vgg16"), classes=10, image_size=32, seed=1).eval()
    theirs = copy.deepcopy(model)
    before = model.state_dict()[collapse.LAYER].clone()
    collapse.collapse(model)
    assert sum(p.numel() for p in model.parameters()) == 33_638_218
    with torch.no_grad():
        weight = model.get_parameter(collapse.LAYER)
        weight += 1e-2 * torch.randn_like(weight)
    images = torch.randn(4, 3, 32, 32)
    for state in (collapse.expanded(model.state_dict(), before), collapse.expanded(model.state_dict())):
        assert sum(t.numel() for t in state.values()) == 134_301_514
        weights.load(theirs, state, name="weights")
        with torch.inference_mode():
            assert torch.allclose(
                theirs(images), model(images), rtol=1e-3, atol=1e-4 * float(model(images).abs().max())
            )


def test_features_once_trains_the_network_whose_first_layer_takes_512_features() -> None:
    torch.manual_seed(0)
    whole = Small().double()
    plain = copy.deepcopy(whole)
    first = nn.Linear(512, 6, dtype=torch.float64)
    with torch.no_grad():
        first.weight.copy_(whole.classifier[0].weight.view(6, 512, 49).sum(2))
        first.bias.copy_(whole.classifier[0].bias)
    plain.classifier[0], plain.avgpool = first, nn.Identity()
    config = settings(Optimizer(name="adam", learning_rate=1e-3, weight_decay=0.1), clip_norm=0.5)
    config = dataclasses.replace(config, model=Model(name="vgg16", features_once=True))
    assert collapse.collapses(config, whole, 32)
    collapse.collapse(whole, features_once=True)
    assert trained(whole, config) == pytest.approx(trained(plain, config), rel=1e-12)
    assert collapse.expanded(whole.state_dict())[collapse.LAYER].shape == (6, 512 * 49)


def test_features_once_where_they_are_not_repeated_is_refused() -> None:
    once = Config(model=Model(name="vgg16", features_once=True))
    with pytest.raises(UserError, match=r"features_once=true at 64 pixels: .*use data.image_size 32"):
        collapse.collapses(once, Small(), 64)
    with pytest.raises(UserError, match="features_once"):
        Config(model=Model(name="simple_cnn", features_once=True))


def test_where_the_49_parts_would_part_they_are_left_alone() -> None:
    model = Small()
    penalised = settings(Optimizer(name="adam", weight_decay=1e-4))
    assert not collapse.collapses(penalised, model, 32)
    assert not collapse.collapses(settings(Optimizer()), model, 64)  # 2 x 2 pixels behind the last pool
    assert not collapse.collapses(Config(data=Data()), registry.SimpleCNN(10), 32)


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_the_pool_as_a_product_is_the_pool(size: int) -> None:
    model = Small()
    vgg.use_matrix_pool(model)
    images = torch.randn(2, 512, size, size).to(memory_format=torch.channels_last)
    assert torch.allclose(model.avgpool(images), nn.AdaptiveAvgPool2d(7)(images), atol=1e-6)


def test_a_pool_before_its_relu_gives_the_same_bits_and_gradients() -> None:
    torch.manual_seed(0)
    behind = nn.Sequential(*registry.BUILDERS["vgg16"](10).features[2:10])  # convolution, ReLU, pool; twice
    before = copy.deepcopy(behind)
    collapse.pool_first(before)
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


def test_what_weight_decay_leaves_is_that_of_the_optimizer() -> None:
    for optimizer in (
        Optimizer(name="adamw", learning_rate=0.1, weight_decay=0.1),
        Optimizer(name="sgd", learning_rate=0.1, weight_decay=0.1),
    ):
        config = settings(optimizer)
        model = nn.Linear(1, 1, bias=False).double()
        start = model.weight.item()
        made = optimizers.make_optimizer(optimizer, model)
        for step in range(STEPS):
            model.weight.grad = torch.zeros_like(model.weight)
            optimizers.set_learning_rate(made, optimizers.learning_rate(config, step, STEPS))
            made.step()
        assert math.isclose(model.weight.item() / start, optimizers.left_of_decay(config, STEPS, STEPS), rel_tol=1e-9)
