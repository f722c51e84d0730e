"""Weights files: fetched, read, checked, loaded."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import pickle
import re
import socket
from pathlib import Path

import torch
from torch import Tensor, nn

from job.config.errors import UserError
from job.config.settings import Model
from job.models import libraries

_MEND = "give a .safetensors or .pth state dict"
_OLD_NAMES = {  # of DenseNet and of vision transformers
    r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)": r"\1\2",
    r"\.mlp\.linear_1\.": ".mlp.0.",
    r"\.mlp\.linear_2\.": ".mlp.3.",
}
_AUXILIARY = re.compile(r"(AuxLogits|aux\d)\.")
_POSITIONS = "encoder.pos_embedding"
_NO_WEIGHTS = {b"version https://git-lfs": "a Git LFS pointer", b"<": "a web page"}


def pretrained(settings: Model, model: nn.Module, *, download: bool) -> list[str]:
    """Load ``settings.weights`` into ``model``; a last layer for another number of classes stays as it is.

    Returns what was done, in words. Raises UserError when the file is not there, is damaged, or belongs to another
    model.
    """
    path = fetch(settings, download=download)
    if path is None:
        return []
    own = model.state_dict()
    state, below = _without_prefix(read(path), next(iter(own)))
    state = _renewed(state, own)
    head = [name for name, parameter in model.named_parameters() if getattr(parameter, "head", False)]
    fresh = [name for name in head if name not in state or state[name].shape != own[name].shape]
    if all(name not in state or state[name].shape[1:] == own[name].shape[1:] for name in fresh):
        state |= {name: own[name] for name in fresh}
    load(model, state, name=f"{settings.name} weights {path}")
    layers = ", ".join(dict.fromkeys(name.rpartition(".")[0] for name in fresh))
    return [f"weights of {path.name}{below}", *([f"{layers} new"] if fresh else [])]


def fetch(settings: Model, *, download: bool) -> Path | None:
    """The weights file on this machine, downloaded into torch.hub's cache if allowed and needed; None for random."""
    if settings.weights is None:
        return None
    if settings.weights != "imagenet":
        path = Path(settings.weights).expanduser()
        if not path.is_file():
            raise UserError(f"model.weights={settings.weights}", "no such file; give a .safetensors or .pth state dict")
        return path
    if settings.name.startswith("timm/"):
        return libraries.timm_weights(settings.name, download=download)
    from torchvision.models import get_model_weights

    try:
        url: str = get_model_weights(settings.name).DEFAULT.url
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
    """Tensors by name from safetensors or, without unpickling anything else, from a file of ``torch.save``.

    The content says what a file is, not its name. Raises UserError when it holds anything else.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(64)
            file.seek(0)
            if start[8:9] == b"{":
                from safetensors.torch import load_file

                return load_file(f"/dev/fd/{file.fileno()}")  # it takes no path that is no UTF-8
            if start.startswith((b"PK", b"\x80")):
                content = torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251 (here, and tensors only)
                return _tensors(content, path)
    except pickle.UnpicklingError:  # torch's own words are how to run what it refuses to
        raise UserError(f"weights {path} hold more than tensors", "save the network's state_dict() alone") from None
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that is a seek to before a torn one's start
            raise UserError(f"weights {path} cannot be read", error.strerror or str(error)) from None
        raise UserError(f"weights {path} are damaged, or no state dict", _MEND) from None
    for sign, kind in _NO_WEIGHTS.items():
        if start.lstrip().startswith(sign):
            raise UserError(f"weights {path} are {kind}", "fetch the file itself")
    raise UserError(f"weights {path} are no weights file", _MEND)


def _tensors(content: object, path: Path) -> dict[str, Tensor]:
    """The state dict in what was saved; the name of an envelope around it comes before each tensor's."""
    below = {"": content}
    if isinstance(content, dict):
        below |= {f"{key}.": content[key] for key in ("state_dict", "model_state_dict", "model") if key in content}
    for prefix, state in below.items():
        if isinstance(state, dict) and state and all(isinstance(tensor, Tensor) for tensor in state.values()):
            return {f"{prefix}{name}": tensor for name, tensor in state.items()}
    raise UserError(f"weights {path}", "must hold a state dict: tensors by name")


def _without_prefix(state: dict[str, Tensor], first: str) -> tuple[dict[str, Tensor], str]:
    """``state`` without what a program (``state_dict.``, ``module.``) put before every name, and what was done.

    ``first``: the name of the network's first tensor.
    """
    prefix = next((name.removesuffix(first) for name in state if name.endswith(f".{first}")), "")
    if not prefix or first in state or not all(name.startswith(prefix) for name in state):
        return state, ""
    bare = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return bare, f" (below {prefix.rstrip('.')})"


def _renewed(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` as torchvision's networks of today, such as the one whose state is ``own``, have it.

    Its files have names of older ones; heads that only training from scratch used; no counts of batches; positions of a
    vision transformer for images of another size.
    """
    for old, new in _OLD_NAMES.items():
        state = {re.sub(old, new, name): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if name in own or not _AUXILIARY.match(name)}
    state |= {name: own[name] for name in own if name.endswith(".num_batches_tracked") and name not in state}
    if _POSITIONS in own and _POSITIONS in state and state[_POSITIONS].shape != own[_POSITIONS].shape:
        from torchvision.models.vision_transformer import interpolate_embeddings

        state[_POSITIONS] = state[_POSITIONS].float()
        with contextlib.suppress(ValueError):  # of another kind of network, which is said later
            interpolate_embeddings(math.isqrt(own[_POSITIONS].shape[1] - 1), 1, state)
    return state


def load(model: nn.Module, state: dict[str, Tensor], *, name: str) -> None:
    """Copy ``state`` into ``model``, all of it or, with UserError, nothing."""
    own = model.state_dict()
    given, wanted = ({key: list(tensor.shape) for key, tensor in tensors.items()} for tensors in (state, own))
    problems = [f"{key} is missing" for key in own if key not in state]
    problems += [f"{key} is not the model's" for key in state if key not in own]
    problems += [
        f"{key} is {given[key]}, not {wanted[key]}" for key in own if given.get(key) not in (None, wanted[key])
    ]
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise UserError(f"{name} do not fit the model ({problems[0]}{more})", "set model.name to the one they are of")
    for key, tensor in own.items():
        if tensor.is_floating_point() != state[key].is_floating_point():
            problem = f"{key} is {state[key].dtype}, not {tensor.dtype}"
            raise UserError(f"{name} do not fit the model ({problem})", "give them as floating-point numbers")
        if not state[key].to(tensor.dtype).isfinite().all():
            raise UserError(f"{name} hold NaN or infinity ({key})", "the file is damaged, or its training diverged")
    put(state, model)


def put(state: dict[str, Tensor], model: nn.Module) -> None:
    """Copy ``state``, which fits, into ``model``, also where its ``load_state_dict`` wants a version, as MNASNet's."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(state[name])


def digest(state: dict[str, Tensor]) -> str:
    """SHA-256 over names and bytes: equal for equal weights, wherever they lie."""
    total = hashlib.sha256()
    for key in sorted(state):
        total.update(key.encode())
        total.update(memoryview(state[key].detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return total.hexdigest()
