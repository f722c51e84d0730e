"""Weights come from where the user says, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from job.config.errors import UserError
from job.config.settings import Model
from job.models import registry, weights


def build(name: str = "simple_cnn", classes: int = 10, seed: int = 42) -> nn.Module:
    return registry.build(Model(name=name), classes=classes, image_size=32, seed=seed)  # type: ignore[arg-type]


def test_vgg16_takes_imagenet_weights_from_torch_hubs_cache_and_a_new_last_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import vgg16

    theirs = vgg16(weights=None, init_weights=False).state_dict()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(theirs, tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    settings = Model(name="vgg16", weights="imagenet")
    ours = registry.build(settings, classes=10, image_size=32, seed=42)
    assert registry.count_parameters(ours) == 134_301_514
    head = {key: value.clone() for key, value in ours.state_dict().items() if key.startswith("classifier.6")}
    weights.pretrained(settings, ours, download=False)
    for key, value in ours.state_dict().items():
        assert torch.equal(value, head[key] if key in head else theirs[key]), key


def test_absent_imagenet_weights_are_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    settings = Model(name="vgg16", weights="imagenet")
    with pytest.raises(UserError, match=r"job/prepare\.py.*or put https://.*vgg16-397923af\.pth at"):
        weights.fetch(settings, download=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there: a machine without a network
    with pytest.raises(UserError, match=r"cannot be downloaded .*job/prepare\.py"):
        weights.fetch(settings, download=True)
    assert not list((tmp_path / "hub" / "checkpoints").glob("*"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_come_from_a_state_dict_in_either_format(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    state = build(seed=1).state_dict()
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    model = build(seed=2)
    weights.pretrained(Model(weights=str(path)), model, download=False)
    assert weights.digest(model.state_dict()) == weights.digest(state)


def test_weights_of_another_number_of_classes_keep_all_but_the_last_layer(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(build(classes=7, seed=1).state_dict(), path)
    model = build(seed=2)
    before = model.state_dict()["fc3.weight"].clone()
    weights.pretrained(Model(weights=str(path)), model, download=False)
    assert torch.equal(model.state_dict()["fc3.weight"], before)
    assert torch.equal(model.state_dict()["conv1.weight"], torch.load(path)["conv1.weight"])  # noqa: TID251


class Canary:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("canary"),))


@pytest.mark.parametrize("content", ["another model", "a pickle", "no file", "a list", "text", "torn"])
def test_weights_that_do_not_fit_are_one_clear_error(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = tmp_path / "weights.pth"
    if content == "another model":
        torch.save(nn.Linear(2, 2).state_dict(), path)
    elif content == "a pickle":
        torch.save({"conv1.weight": Canary()}, path)
    elif content == "a list":
        torch.save([torch.zeros(1)], path)
    elif content == "text":
        path.write_text("hello")
    elif content == "torn":
        torch.save(build().state_dict(), path)
        path.write_bytes(path.read_bytes()[:1000])
    model = build()
    before = weights.digest(model.state_dict())
    with pytest.raises(UserError) as caught:
        weights.pretrained(Model(weights=str(path)), model, download=False)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert weights.digest(model.state_dict()) == before
    assert not (tmp_path / "canary").exists()


def test_a_network_without_imagenet_weights_says_so() -> None:
    with pytest.raises(UserError, match="there are none for simple_cnn"):
        weights.fetch(Model(name="simple_cnn", weights="imagenet"), download=True)
