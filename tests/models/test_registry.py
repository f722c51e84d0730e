"""The networks are the reference's, and each says which images it takes."""

from __future__ import annotations

import re

import accelerate
import pytest
import torch
from torch import nn

from job.config.errors import UserError
from job.config.settings import Model
from job.models import libraries, registry, weights


def build(name: str = "simple_cnn", classes: int = 10, seed: int = 42) -> nn.Module:
    return registry.build(Model(name=name), classes=classes, image_size=32, seed=seed)


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
    ("name", "size", "near"),
    [
        ("simple_cnn", 64, ", but 32"),
        ("simple_cnn", 16, ", but 32"),
        ("vgg16", 31, ", but 32"),
        ("alexnet", 32, ", but 64"),
        ("vit_b_16", 100, ", but 96"),
        ("picky", 33, ""),
    ],
)
def test_images_that_do_not_fit_are_one_line_that_says_which_do(
    name: str, size: int, near: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    picky = nn.Sequential(nn.Flatten(), nn.Linear(3, 10))
    monkeypatch.setitem(registry.NETWORKS, "picky", lambda classes: picky)
    said = f"{name} does not take it{near}{'; give that' * bool(near)}, or another model.name"
    with pytest.raises(UserError, match=rf"^data\.image_size={size}: {re.escape(said)}$"):
        registry.build(Model(name=name), classes=10, image_size=size, seed=1)


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("resnet", "did you mean resnet"),
        ("Vgg16", "did you mean vgg16?"),
        ("efficientnet-b0", "did you mean efficientnet_b0?"),
        ("simplecnn", "did you mean simple_cnn?"),
        ("", "use one of simple_cnn"),
        ("r3d_18", "did you mean res"),
        ("timm/", ""),
        ("/", "use one of simple_cnn"),
    ],
)
def test_a_network_that_there_is_not_is_one_line_with_the_nearest(name: str, mend: str) -> None:
    with pytest.raises(UserError, match=rf"^model\.name={re.escape(name)}: .*{re.escape(mend)}"):
        registry.builder(name)


def test_the_last_layer_of_every_classifier_of_torchvision_is_found() -> None:
    found = {}
    for name in libraries.names("resnet18"):
        with accelerate.init_empty_weights():
            found[name] = registry.head(libraries.builder(name)(registry.RARE, 224))
    assert len(found) >= 80
    assert {len(names) for names in found.values()} == {1, 2}
    assert {name for name, names in found.items() if len(names) == 1} == {"maxvit_t"}, "it has no bias"
    last = {names[0].rpartition(".")[0].partition(".")[0] for names in found.values()}
    assert last == {"classifier", "fc", "head", "heads"}
