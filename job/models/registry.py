"""The networks, and where their weights come from.

To add a network: write a function ``(classes: int) -> nn.Module`` and name it in ``BUILDERS`` (and in
``config.Model.name``).
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from job.config.errors import UserError
from job.config.settings import Model


class SimpleCNN(nn.Module):
    """The network of PyTorch's "Training a classifier" tutorial: 62,006 parameters at ten classes.

    Takes [b, 3, 32, 32] floats, gives [b, classes] logits.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, images: Tensor) -> Tensor:
        # ReLU after the pool gives the same values as before it, on a quarter of the elements.
        x = F.relu(F.max_pool2d(self.conv1(images), 2))  # [b, 6, 14, 14]
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # [b, 16, 5, 5]
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        logits: Tensor = self.fc3(x)
        return logits


def vgg16(classes: int) -> nn.Module:
    """torchvision's VGG16 with a last layer for ``classes``: 134,301,514 parameters at ten."""
    return _with_head("vgg16", classes)


def vgg16_bn(classes: int) -> nn.Module:
    """torchvision's VGG16 with batch normalisation."""
    return _with_head("vgg16_bn", classes)


def _with_head(name: str, classes: int) -> nn.Module:
    from torchvision.models import get_model  # seconds that SimpleCNN need not wait

    model: Any = get_model(name, weights=None)
    model.classifier[6] = nn.Linear(4096, classes)
    network: nn.Module = model
    return network


BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "simple_cnn": SimpleCNN,
    "vgg16": vgg16,
    "vgg16_bn": vgg16_bn,
}


def build(settings: Model, *, classes: int, image_size: int, seed: int) -> nn.Module:
    """The network with random weights that depend on ``seed`` alone.

    Raises UserError when pictures of ``image_size`` pixels do not fit it.
    """
    if settings.name == "simple_cnn" and image_size != 32:
        raise UserError(f"data.image_size={image_size}", "simple_cnn takes pictures of 32 pixels; use 32, or vgg16")
    if settings.name != "simple_cnn" and image_size < 32:
        raise UserError(f"data.image_size={image_size}", f"{settings.name} takes pictures of 32 pixels or more")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BUILDERS[settings.name](classes)


def pretrained(settings: Model, model: nn.Module, *, download: bool) -> None:
    """Load ``settings.weights`` into ``model``; a last layer for another number of classes stays as it is.

    Raises UserError when the file is not there, is damaged, or belongs to another model.
    """
    if settings.weights is None:
        return
    path = fetch_weights(settings, download=download)
    assert path is not None
    load_state_dict(model, read_state_dict(path), name=f"{settings.name} weights {path}", keep_head=True)


def fetch_weights(settings: Model, *, download: bool) -> Path | None:
    """The weights file on this machine, downloaded into torch.hub's cache if allowed and needed; None for random."""
    if settings.weights is None:
        return None
    if settings.weights != "imagenet":
        path = Path(settings.weights).expanduser()
        if not path.is_file():
            raise UserError(f"model.weights={settings.weights}", "no such file; give a .safetensors or .pth state dict")
        return path
    from torchvision.models import get_model_weights

    url: str = get_model_weights(settings.name).IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if not path.is_file():
        mend = f"run `python job/prepare.py` with the same settings where there is a network, or put {url} at {path}"
        if not download:
            raise UserError(f"no ImageNet weights at {path} and data.download=false", mend)
        path.parent.mkdir(parents=True, exist_ok=True)
        patience = socket.getdefaulttimeout()
        socket.setdefaulttimeout(10)  # a firewall that swallows packets would hold the job up for minutes
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
        except (OSError, RuntimeError) as error:
            raise UserError(f"ImageNet weights cannot be downloaded ({error})", mend) from None
        finally:
            socket.setdefaulttimeout(patience)
    return path


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name from .safetensors or, without unpickling anything else, from .pth.

    Raises UserError when the file holds anything else.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 (here, and tensors only)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"weights {path} cannot be read ({reason})", "give a .safetensors or .pth state dict") from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"weights {path}", "must hold a state dict: tensors by name")
    return state


def load_state_dict(model: nn.Module, state: dict[str, Tensor], *, name: str, keep_head: bool = False) -> None:
    """Copy ``state`` into ``model``, all of it or, with UserError, nothing.

    ``keep_head``: a last layer of another number of classes is left out, as fine-tuning wants.
    """
    own = model.state_dict()
    if keep_head:
        head = list(own)[-2:]  # weight and bias of the last layer
        if all(key in state and state[key].shape[1:] == own[key].shape[1:] for key in head):
            state = state | {key: own[key] for key in head if state[key].shape != own[key].shape}
    problems = [f"{key} is missing" for key in own if key not in state]
    problems += [f"{key} is not the model's" for key in state if key not in own]
    problems += [
        f"{key} is {list(state[key].shape)}, not {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise UserError(f"{name} do not fit the model ({problems[0]}{more})", "set model.name to the one they are of")
    model.load_state_dict(state)


def digest(state: dict[str, Tensor]) -> str:
    """SHA-256 over names and bytes: equal for equal weights, wherever they lie."""
    total = hashlib.sha256()
    for key in sorted(state):
        total.update(key.encode())
        total.update(memoryview(state[key].detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return total.hexdigest()


def count_parameters(model: nn.Module) -> int:
    """Numbers that training changes; a weight that stands for ``copies`` of its size counts as them."""
    return sum(p.numel() * getattr(p, "copies", 1) for p in model.parameters() if p.requires_grad)
