"""Layers that are not trained."""

from __future__ import annotations

import difflib

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from job.config.errors import UserError
from job.config.settings import Config


def freeze(model: nn.Module, settings: Config) -> None:
    """Let no gradient be computed for the parameters that ``model.freeze`` names.

    Raises UserError where it names what there is not, or leaves nothing to train; and where ``train.gradient_shards``
    leave batch normalisation, which is trained, one image at a time.
    """
    what, parameters = settings.model.freeze, dict(model.named_parameters())
    for prefix in what if isinstance(what, list) else ():
        if not any(_below(name, prefix) for name in parameters):
            known = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
            near = difflib.get_close_matches(prefix, known, 1, 0.0)
            raise UserError(f"model.freeze={prefix}: no layer of {settings.model.name}", f"did you mean {near[0]}?")
    for name, parameter in parameters.items():
        if what == "backbone":
            parameter.requires_grad_(getattr(parameter, "head", False))
        elif what is not None:
            parameter.requires_grad_(not any(_below(name, prefix) for prefix in what))
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UserError(f"model.freeze={what} leaves nothing to train", "name fewer layers")
    train(model)
    size, shards = settings.train.batch_size, settings.train.gradient_shards
    if shards and size < 2 * shards and normalised(model):
        raise UserError(
            f"train.gradient_shards={shards} with train.batch_size={size}",
            f"{settings.model.name}'s batch normalisation takes two images a shard; use {size // 2} or fewer shards",
        )


def train(model: nn.Module) -> None:
    """Training mode, but for what is frozen as a whole: there dropout and statistics rest, as in evaluation."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def normalised(model: nn.Module) -> list[nn.Module]:
    """Layers of batch normalisation that learn from what they see, of a ``model`` in training mode."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]


def moving(model: nn.Module) -> list[Tensor]:
    """Buffers of a ``model`` in training mode that a pass may change: statistics, counts, and some that stay."""
    return [buffer for module in model.modules() if module.training for buffer in module.buffers(recurse=False)]


def _below(name: str, prefix: str) -> bool:
    return f"{name}.".startswith(f"{prefix}.")
