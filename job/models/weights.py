"""Weights files: fetched, read, checked, loaded."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

import torch
from torch import Tensor, nn

from job.config.errors import UserError, first_line
from job.config.settings import Model


def pretrained(settings: Model, model: nn.Module, *, download: bool) -> None:
    """Load ``settings.weights`` into ``model``; a last layer for another number of classes stays as it is.

    Raises UserError when the file is not there, is damaged, or belongs to another model.
    """
    path = fetch(settings, download=download)
    if path is not None:
        load(model, read(path), name=f"{settings.name} weights {path}", keep_head=True)


def fetch(settings: Model, *, download: bool) -> Path | None:
    """The weights file on this machine, downloaded into torch.hub's cache if allowed and needed; None for random."""
    if settings.weights is None:
        return None
    if settings.weights != "imagenet":
        path = Path(settings.weights).expanduser()
        if not path.is_file():
            raise UserError(f"model.weights={settings.weights}", "no such file; give a .safetensors or .pth state dict")
        return path
    from torchvision.models import get_model_weights

    try:
        url: str = get_model_weights(settings.name).IMAGENET1K_V1.url
    except ValueError:
        raise UserError("model.weights=imagenet", f"there are none for {settings.name}; use null, or a file") from None
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


def read(path: Path) -> dict[str, Tensor]:
    """Tensors by name from .safetensors or, without unpickling anything else, from .pth.

    Raises UserError when the file holds anything else.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 (here, and tensors only)
    except Exception as error:
        mend = "give a .safetensors or .pth state dict"
        raise UserError(f"weights {path} cannot be read ({first_line(error)})", mend) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"weights {path}", "must hold a state dict: tensors by name")
    return state


def load(model: nn.Module, state: dict[str, Tensor], *, name: str, keep_head: bool = False) -> None:
    """Copy ``state`` into ``model``, all of it or, with UserError, nothing.

    ``keep_head``: a last layer of another number of classes is left out, as fine-tuning wants.
    """
    own = model.state_dict()
    head = list(own)[-2:]  # weight and bias of the last layer
    if keep_head and all(key in state and state[key].shape[1:] == own[key].shape[1:] for key in head):
        state = state | {key: own[key] for key in head if state[key].shape != own[key].shape}
    given, wanted = ({key: list(tensor.shape) for key, tensor in tensors.items()} for tensors in (state, own))
    problems = [f"{key} is missing" for key in own if key not in state]
    problems += [f"{key} is not the model's" for key in state if key not in own]
    problems += [
        f"{key} is {given[key]}, not {wanted[key]}" for key in own if given.get(key) not in (None, wanted[key])
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
