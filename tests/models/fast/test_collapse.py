"""VGG's first fully connected layer, trained as the sum of its 49 parts, is trained as torchvision's is."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from job.config.errors import UserError
from job.config.settings import Config, Model, Optimizer, Schedule, Train
from job.models import registry, vgg, weights
from job.models.fast import form
from job.training import optimizers

STEPS = 6
LAYER = "classifier.0.weight"


class Small(nn.Module):
    """VGG's last layers, on features of one pixel, narrow behind the layer that is collapsed."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 512, 32)
        self.avgpool = vgg.MatrixPool(nn.AdaptiveAvgPool2d(7))
        self.classifier = nn.Sequential(nn.Linear(512 * 49, 6), nn.ReLU(), nn.Linear(6, 10))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


def fast(model: nn.Module, config: Config, image_size: int = 32) -> list[str]:
    return form.fast(model, config, image_size=image_size, device=torch.device("cpu"))


def trained(model: nn.Module, settings: Config) -> list[float]:
    """Losses of a few steps on the same images."""
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
    small = copy.deepcopy(whole)
    config = settings(optimizer, clip_norm)
    assert "one for the 49 equal parts of the first fully connected layer" in fast(small, config)
    assert registry.count_parameters(small) == registry.count_parameters(whole)
    expected, found = trained(whole, config), trained(small, config)
    assert max(expected) - min(expected) > 1e-3  # they did learn
    assert found == pytest.approx(expected, rel=1e-11)
    for key, value in form.own_weights(small.state_dict(), small).items():
        reached = whole.state_dict()[key]
        if key == LAYER:  # saved as equals: what the parts differed by from the first step on makes no difference
            reached = reached.unflatten(1, (-1, 49)).mean(2).repeat_interleave(49, 1)
        assert torch.allclose(value, reached, rtol=0, atol=1e-12), key


def test_a_collapsed_network_is_handed_back_in_torchvisions_layout_with_the_same_logits() -> None:
    theirs = registry.build(Model(name="vgg16"), classes=10, image_size=32, seed=1).eval()
    model = copy.deepcopy(theirs)
    fast(model, settings(Optimizer()))
    assert sum(p.numel() for p in model.parameters()) == 33_638_218
    with torch.no_grad():
        weight = model.get_parameter(LAYER)
        weight += 1e-2 * torch.randn_like(weight)
    images = torch.randn(4, 3, 32, 32)
    for either in (model, theirs):
        state = form.own_weights(model.state_dict(), either)
        assert sum(t.numel() for t in state.values()) == 134_301_514
    assert form.own_weights(state, theirs) == state
    weights.load(theirs, state, name="weights")
    with torch.inference_mode():
        assert torch.allclose(theirs(images), model(images), rtol=1e-3, atol=1e-4 * float(model(images).abs().max()))


def test_weights_of_another_network_with_a_layer_of_that_name_and_width_stay_what_they_are() -> None:
    model = nn.Module()
    model.classifier = nn.Sequential(nn.Linear(512, 10))
    assert form.own_weights(model.state_dict(), model)[LAYER].shape == (10, 512)


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
    fast(whole, config)
    assert trained(whole, config) == pytest.approx(trained(plain, config), rel=1e-12)
    assert form.own_weights(whole.state_dict(), whole)[LAYER].shape == (6, 512 * 49)


def test_features_once_where_they_are_not_repeated_is_refused() -> None:
    once = Config(model=Model(name="vgg16", features_once=True))
    with pytest.raises(
        UserError, match=r"features_once=true with vgg16 at 64 pixels: .*use vgg16 with data.image_size 32"
    ):
        fast(Small(), once, 64)
    with pytest.raises(UserError, match=r"features_once=true with simple_cnn at 32 pixels: VGG alone"):
        fast(registry.SimpleCNN(10), Config(model=Model(name="simple_cnn", features_once=True)))


def test_where_the_49_parts_would_part_they_are_left_alone() -> None:
    model = Small()
    fast(model, settings(Optimizer(name="adam", weight_decay=1e-4)))
    fast(model, settings(Optimizer()), 64)  # 2 x 2 pixels behind the last pool
    assert model.state_dict()[LAYER].shape == (6, 512 * 49)
