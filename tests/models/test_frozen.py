"""What is frozen is not trained, costs nothing, and is named as the network names it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from job.config.errors import UserError
from job.config.settings import Config, Model, Optimizer, Train
from job.models import footprint, frozen, registry
from job.training import optimizers
from job.training.optimizers import make_optimizer, set_learning_rate


def frozen_network(what: Any, **changes: Any) -> tuple[nn.Module, Config]:
    settings = Config(model=Model(name="resnet18", freeze=what), **changes)
    model = registry.build(settings.model, classes=5, image_size=32, seed=1)
    frozen.freeze(model, settings)
    return model, settings


def test_a_frozen_backbone_costs_no_gradient_no_optimizer_and_rests() -> None:
    model, settings = frozen_network("backbone")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = make_optimizer(settings.optimizer, model)
    features: list[bool] = []
    model.get_submodule("avgpool").register_forward_hook(lambda _m, _i, out: features.append(out.requires_grad))
    for _ in range(2):
        frozen.train(model)
        model(torch.randn(2, 3, 32, 32)).sum().backward()
        optimizer.step()
    assert features == [False, False], "no autograd before the last layer"
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"fc.weight", "fc.bias"}, "statistics are frozen too"
    tensors = optimizers.tensors_of(model, optimizer)
    assert {name.rpartition("/")[0] for name in tensors} == {"fc.weight", "fc.bias"}
    optimizers.restore(model, make_optimizer(settings.optimizer, model), tensors)
    assert registry.described(model) == "2,565 of 11,179,077 parameters trained"
    memory = footprint.memory_bytes(settings, model, 1, 32)
    assert memory["gradients"] == 4 * 2_565
    assert memory["activations"] == int(1.25 * 4 * 5)


def test_layers_are_frozen_by_name_with_all_below_and_no_others() -> None:
    model, _ = frozen_network(["conv1", "layer1.0", "bn1"])
    still = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {name.split(".")[0] for name in still} == {"conv1", "bn1", "layer1"}
    assert all(name.startswith(("conv1.", "bn1.", "layer1.0.")) for name in still)
    frozen.train(model)
    training = {name: module.training for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert not training["bn1"]
    assert not training["layer1.0.bn2"]
    assert training["layer1.1.bn1"]


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (["layer5"], "model.freeze=layer5: no layer of resnet18: did you mean layer"),
        (["layer"], "model.freeze=layer: no layer of resnet18: did you mean layer"),
        (["fc", "features"], "model.freeze=features: no layer of resnet18"),
        (["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"], "leaves nothing to train"),
    ],
)
def test_what_cannot_be_frozen_is_one_line(what: list[str], says: str) -> None:
    with pytest.raises(UserError) as caught:
        frozen_network(what)
    assert says in str(caught.value)


def test_shards_of_one_image_are_refused_where_batch_normalisation_learns() -> None:
    with pytest.raises(UserError, match="resnet18's batch normalisation takes two images a shard; use 2 or fewer"):
        frozen_network(None, train=Train(batch_size=5, gradient_shards=5))
    frozen_network("backbone", train=Train(batch_size=5, gradient_shards=5))


def test_groups_of_parameters_have_their_own_rate_and_decay() -> None:
    options = Optimizer(backbone_rate=0.1, weight_decay=0.5, decay_norms=False, name="adamw")
    model, _ = frozen_network(None, optimizer=options)
    made = make_optimizer(options, model)
    set_learning_rate(made, 0.02)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {names[p]: (group["lr"], group["weight_decay"]) for group in made.param_groups for p in group["params"]}
    assert len(found) == len(names)
    assert found["fc.weight"] == (0.02, 0.5)
    assert found["fc.bias"] == (0.02, 0)
    assert found["conv1.weight"] == (pytest.approx(0.002), 0.5)
    assert found["layer4.1.bn2.weight"] == (pytest.approx(0.002), 0)
