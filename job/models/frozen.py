"""Layers that are not trained."""

from __future__ import annotations

import difflib

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from job.config.errors import UserError
from job.config.settings import Config


def freeze(model: nn.Module, settings: Config) -> None:
    """Let no gradient be computed for the parameters that ``model.freeze`` names.

    Raises UserError where it names what there is not, or leaves nothing to train; and where ``train.gradient_shards``
    meets batch normalisation that is trained, whose statistics are of what one process sees.
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
    if settings.train.gradient_shards and normalised(model):
        mend = (
            f"statistics of {settings.model.name}'s batch normalisation depend on who sees what; freeze it, or use null"
        )
        raise UserError(f"train.gradient_shards={settings.train.gradient_shards}", mend)


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


def _below(name: str, prefix: str) -> bool:
    return f"{name}.".startswith(f"{prefix}.")
