"""Weights come from where the user says, or not at all."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

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


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


WRAPPED = {
    "DataParallel": lambda state: prefixed(state, "module."),
    "torch.compile": lambda state: prefixed(state, "_orig_mod."),
    "both": lambda state: prefixed(state, "module._orig_mod."),
    "Lightning": lambda state: {"state_dict": prefixed(state, "model."), "epoch": 3},
    "torchvision": lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3},
    "parameters": lambda state: {name: nn.Parameter(tensor) for name, tensor in state.items()},
    "double": lambda state: {name: tensor.double() for name, tensor in state.items()},
    "NaN in a last layer that is left out": lambda state: (
        state | {"fc3.weight": torch.full((7, 84), math.nan), "fc3.bias": torch.zeros(7)}
    ),
}


@pytest.mark.parametrize("name", ["weights.pth", "weights.bin", "weights.safetensors"])
@pytest.mark.parametrize("kind", WRAPPED)
def test_weights_are_found_in_what_training_programs_put_around_them(kind: str, name: str, tmp_path: Path) -> None:
    state = build(seed=1).state_dict()
    torch.save(WRAPPED[kind](state), tmp_path / name)
    model = build(seed=2)
    said = weights.pretrained(Model(weights=str(tmp_path / name)), model, download=False)
    assert torch.equal(model.state_dict()["conv1.weight"], state["conv1.weight"])
    below = {"DataParallel": "module", "torch.compile": "_orig_mod", "both": "module._orig_mod"}
    below |= {"Lightning": "state_dict.model", "torchvision": "model"}
    assert said[0] == f"weights of {name}" + (f" (below {below[kind]})" if kind in below else "")
    assert said[1:] == (["fc3 new"] if "left out" in kind else [])


def test_what_a_file_is_called_does_not_matter_nor_which_of_torchs_two_formats_it_has(tmp_path: Path) -> None:
    state = build(seed=1).state_dict()
    torch.save(state, tmp_path / "old.safetensors", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "new.bin")
    for name in "old.safetensors", "new.bin":
        assert weights.digest(weights.read(tmp_path / name)) == weights.digest(state)


def changed(name: str, value: object) -> Callable[[dict[str, Tensor]], object]:
    def change(state: dict[str, Tensor]) -> object:
        tensor = state[name].clone()
        tensor.view(-1)[5] = value
        return state | {name: tensor}

    return change


HEADER = b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
REFUSED = {
    "another model": (lambda state: nn.Linear(2, 2).state_dict(), "do not fit the model"),
    "a pickle": (lambda state: {"conv1.weight": Canary()}, "hold more than tensors"),
    "a network": (lambda state: nn.Sequential(nn.Linear(3, 3)), "hold more than tensors"),
    "a list": (lambda state: list(state.items()), "must hold a state dict"),
    "nothing": (lambda state: {}, "must hold a state dict"),
    "NaN": (changed("fc1.weight", math.nan), "NaN or infinity (fc1.weight)"),
    "infinity": (changed("fc3.bias", -math.inf), "NaN or infinity (fc3.bias)"),
    "beyond fp32": (
        lambda state: {name: tensor.double() * 1e300 for name, tensor in state.items()},
        "NaN or infinity (conv1.weight)",
    ),
    "int8": (lambda state: {name: (tensor * 99).to(torch.int8) for name, tensor in state.items()}, "is torch.int8"),
    "complex": (
        lambda state: {name: tensor.to(torch.complex64) for name, tensor in state.items()},
        "is torch.complex64",
    ),
    "text": (b"hello", "no weights file"),
    "no byte": (b"", "no weights file"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 553433881\n", "a Git LFS pointer"),
    "HTML": (b"\n<!DOCTYPE html><html>Virus scan warning</html>", "a web page"),
    "giant": (len(HEADER).to_bytes(8, "little") + HEADER, "damaged"),
    "endless": ((2**62).to_bytes(8, "little") + b"{", "damaged"),
    "torn": (None, "damaged"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_weights_of_the_model_is_one_clear_error(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    content, words = REFUSED[kind]
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content(build().state_dict()) if content else build().state_dict(), path)
        if content is None:
            path.write_bytes(path.read_bytes()[:100_000])
    model = build()
    before = weights.digest(model.state_dict())
    with pytest.raises(UserError) as caught:
        weights.pretrained(Model(weights=str(path)), model, download=False)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert weights.digest(model.state_dict()) == before
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("what", ["missing", "a folder", "a pipe"])
def test_weights_that_are_no_file_are_one_clear_error(what: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    if what == "a folder":
        path.mkdir()
    elif what == "a pipe":
        os.mkfifo(path)
    with pytest.raises(UserError, match="no such file"):
        weights.pretrained(Model(weights=str(path)), build(), download=False)


def test_a_network_without_imagenet_weights_says_so() -> None:
    with pytest.raises(UserError, match="there are none for simple_cnn"):
        weights.fetch(Model(name="simple_cnn", weights="imagenet"), download=True)


def test_a_network_whose_own_loading_wants_a_version_that_files_do_not_hold_takes_weights() -> None:
    one, other = (registry.build(Model(name="mnasnet0_5"), classes=3, image_size=64, seed=seed) for seed in (1, 2))
    weights.load(other, {name: tensor.clone() for name, tensor in one.state_dict().items()}, name="the checkpoint's")
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
