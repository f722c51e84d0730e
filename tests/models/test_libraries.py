"""Networks of torchvision train, stop, go on and are handed back as those of this job are."""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torchvision.models import VisionTransformer, get_model_weights

from job.config.errors import UserError
from job.config.settings import Config, Model
from job.models import frozen, libraries, registry, weights
from job.models.fast import form
from job.runs import checkpoint
from job.training import optimizers
from job.training.optimizers import make_optimizer


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("squeezenet1_1", 48),  # its last layer is a convolution
        ("shufflenet_v2_x0_5", 32),
        ("mobilenet_v3_small", 32),
        ("regnet_x_400mf", 64),
        ("googlenet", 64),  # it has auxiliary heads
        ("swin_t", 32),
    ],
)
def test_a_network_takes_steps_and_goes_on_from_a_checkpoint_with_the_same_bits(
    name: str, size: int, tmp_path: Path
) -> None:
    settings = Config(model=Model(name=name))
    images, labels = torch.randn(4, 3, size, size), torch.tensor([0, 1, 2, 0])

    own = registry.build(settings.model, classes=3, image_size=size, seed=1)

    def fresh() -> torch.nn.Module:
        model = copy.deepcopy(own)
        form.fast(model, settings, image_size=size, device=torch.device("cpu"))
        frozen.freeze(model, settings)
        return model

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> float:
        torch.manual_seed(5)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    model = fresh()
    optimizer = make_optimizer(settings.optimizer, model)
    assert step(model, optimizer) != step(model, optimizer)
    state = checkpoint.State(model.state_dict(), optimizers.tensors_of(model, optimizer), {"step": 2})
    written = checkpoint.write(tmp_path, state)
    again = fresh()
    weights.load(again, weights.read(written / "model.safetensors"), name="the checkpoint's weights")
    other = make_optimizer(settings.optimizer, again)
    optimizers.restore(again, other, weights.read(written / "optimizer.safetensors"))
    assert step(again, other) == step(model, optimizer)
    weights.load(own.eval(), form.own_weights(again.state_dict(), again), name="its weights")
    with torch.inference_mode():
        assert torch.allclose(own(images), again.eval()(images), rtol=1e-3, atol=1e-4)


def with_auxiliary_heads_and_old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As torchvision's own files of GoogLeNet are."""
    kept = {name: tensor.half() for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    return {f"module.{name}": t for name, t in kept.items()} | {"module.aux1.fc2.weight": torch.zeros(1000, 1024)}


def of_a_dense_net_of_before(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As torchvision's own files of DenseNets are."""
    for kind in ("norm", "conv"):
        state = {name.replace(f".{kind}1.", f".{kind}.1."): tensor for name, tensor in state.items()}
    return state


@pytest.mark.parametrize(
    ("name", "change", "size", "same"),
    [
        ("googlenet", with_auxiliary_heads_and_old_names, 64, "conv1.conv.weight"),
        ("densenet121", of_a_dense_net_of_before, 32, "features.denseblock1.denselayer1.norm1.weight"),
    ],
)
def test_weights_files_of_torchvision_as_they_are_fit_with_a_new_last_layer(
    name: str, change: object, size: int, same: str, tmp_path: Path
) -> None:
    settings, path = Model(name=name, weights=str(tmp_path / "weights.pth")), tmp_path / "weights.pth"
    theirs = registry.build(settings, classes=4, image_size=size, seed=1).state_dict()
    torch.save(change(theirs), path)  # type: ignore[operator]
    ours = registry.build(settings, classes=3, image_size=size, seed=2)
    said = weights.pretrained(settings, ours, download=False)
    assert said[0].startswith("weights of weights.pth")
    assert said[1] == {"googlenet": "fc new", "densenet121": "classifier new"}[name]
    assert torch.allclose(ours.state_dict()[same], theirs[same], atol=1e-3)


def test_weights_of_a_vision_transformer_fit_images_of_another_size_and_have_their_old_names(tmp_path: Path) -> None:
    def small(size: int) -> torch.nn.Module:
        options = {"num_layers": 1, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64, "num_classes": 3}
        return VisionTransformer(image_size=size, patch_size=16, **options)

    theirs, ours = small(64).state_dict(), small(96)
    theirs["encoder.pos_embedding"].fill_(0.25)
    old = {name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): t for name, t in theirs.items()}
    torch.save(old, tmp_path / "weights.pth")
    weights.pretrained(Model(name="vit", weights=str(tmp_path / "weights.pth")), ours, download=False)
    loaded = ours.state_dict()
    for name in theirs.keys() - {"encoder.pos_embedding"}:
        assert torch.equal(loaded[name], theirs[name]), name
    assert torch.allclose(loaded["encoder.pos_embedding"], torch.full((1, 37, 32), 0.25))


def test_every_imagenet_file_of_torchvision_has_a_name_with_its_digest() -> None:
    for name in libraries.names("resnet18"):
        assert re.search(r"-[0-9a-f]{8,}\.pth$", get_model_weights(name).DEFAULT.url), name


def test_timm_where_it_is_not_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"^model\.name=timm/resnet18: timm is not installed; `pip install timm`"):
        registry.builder("timm/resnet18")


def test_a_network_of_timm_is_built_and_its_last_layer_found() -> None:
    pytest.importorskip("timm")
    for name, last in (("timm/resnet18", "fc"), ("timm/vit_tiny_patch16_224", "head")):
        model = registry.build(Model(name=name), classes=3, image_size=64, seed=1)
        assert {n.rpartition(".")[0] for n, p in model.named_parameters() if getattr(p, "head", False)} == {last}
    with pytest.raises(UserError, match=r"no such network: did you mean timm/resnet"):
        registry.builder("timm/resnet18.nonsense")
