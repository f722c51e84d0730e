"""The networks are the reference's, and each says which images it takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from job.config.errors import UserError
from job.config.settings import Model
from job.models import registry, weights


def build(name: str = "simple_cnn", classes: int = 10, seed: int = 42) -> nn.Module:
    return registry.build(Model(name=name), classes=classes, image_size=32, seed=seed)  # type: ignore[arg-type]


def test_simple_cnn_is_the_tutorial_network() -> None:
    model = build()
    assert registry.count_parameters(model) == 62_006
    reference = nn.Sequential(
        *(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )
    reference.load_state_dict(dict(zip(reference.state_dict(), model.state_dict().values(), strict=True)))
    images = torch.randn(5, 3, 32, 32)
    assert torch.allclose(model(images), reference(images), atol=1e-6)


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = weights.digest(build().state_dict())
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert weights.digest(build().state_dict()) == first
    assert torch.equal(torch.random.get_rng_state(), state)
    assert weights.digest(build(seed=43).state_dict()) != first


@pytest.mark.parametrize(
    ("name", "size", "takes"),
    [
        ("simple_cnn", 64, "simple_cnn takes images of 32 pixels; give that"),
        ("simple_cnn", 16, "simple_cnn takes images of 32 pixels; give that"),
        ("vgg16", 31, "vgg16 takes images of 32 or more pixels; give that"),
        ("between", 33, "between takes images of 8 to 32 pixels; give that"),
    ],
)
def test_images_that_do_not_fit_are_one_line_that_says_which_do(
    name: str, size: int, takes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.NETWORKS, "between", registry.Network(registry.SimpleCNN, smallest=8, largest=32))
    with pytest.raises(UserError, match=rf"^data\.image_size={size}: {takes}, or another model\.name$"):
        registry.build(Model(name=name), classes=10, image_size=size, seed=1)  # type: ignore[arg-type]
