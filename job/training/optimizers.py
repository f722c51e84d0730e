"""How weights follow gradients: update rule, learning rate, the largest norm of a gradient, and what is remembered."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from job.config.errors import UserError
from job.config.settings import Config, Optimizer


def make_optimizer(settings: Optimizer, model: nn.Module, *, recorded: bool = False) -> torch.optim.Optimizer:
    """The optimizer over what is trained of ``model``, one fused kernel for the parameters that move alike.

    A weight that is the sum of ``copies`` weights with the same gradient moves as all of them together do: ``copies``
    times as far, and its decay, which is a share of it, no faster. ``recorded``: a CUDA graph will hold the update, and
    reads the learning rate from device memory.
    """
    alike: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for parameter in trained(model):
        copies = getattr(parameter, "copies", 1)
        factor = copies * (1 if getattr(parameter, "head", False) else settings.backbone_rate)
        decays = settings.decay_norms or parameter.ndim > 1
        alike[factor, settings.weight_decay / copies if decays else 0.0].append(parameter)
    groups: list[dict[str, object]] = [
        {"params": parameters, "factor": factor, "weight_decay": decay} for (factor, decay), parameters in alike.items()
    ]
    rate = settings.learning_rate
    for group in groups if recorded else ():
        group["lr"] = torch.tensor(rate, device=next(model.parameters()).device)
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, fused=True)
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=rate, fused=True, capturable=recorded)


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of ``model`` that are not frozen."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the next step take ``rate``."""
    for group in optimizer.param_groups:
        scaled = rate * group["factor"]
        group["lr"] = group["lr"].fill_(scaled) if isinstance(group["lr"], Tensor) else scaled


def clip(parameters: Sequence[nn.Parameter], largest: float) -> None:
    """Scale all gradients down together so that their L2 norm is ``largest`` at most, every copy counted."""
    gradients = [(p.grad, math.sqrt(getattr(p, "copies", 1))) for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm([gradient * root if root > 1 else gradient for gradient, root in gradients])
    nn.utils.clip_grads_with_norm_(parameters, largest, norm)


def learning_rate(settings: Config, step: int, steps_per_epoch: int, stretches: Sequence[Sequence[int]] = ()) -> float:
    """The rate of optimizer step ``step``, counted from 0.

    ``stretches``: the [first, last) epoch of each that a schedule was laid out for; by default the whole run is one.
    """
    peak, name = settings.optimizer.learning_rate, settings.schedule.name
    began = [stretch for stretch in stretches if stretch[0] * steps_per_epoch <= step]
    first, last = began[-1] if began and name != "constant" else (0, settings.train.epochs)
    total = (last - first) * steps_per_epoch
    step = min(step - first * steps_per_epoch, total - 1)
    warm = settings.schedule.warmup_epochs * steps_per_epoch
    if name == "onecycle" and warm == 0:
        warm = 0.2 * total
    if step < warm:
        return peak * (step + 1) / (warm + 1)
    share = (step - warm) / (total - warm)
    if name == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * share))
    return peak * (1 - share) if name == "onecycle" else peak


def extended(stretches: list[list[int]], before: int, settings: Config) -> list[list[int]]:
    """``stretches`` of ``learning_rate`` when a run of ``before`` epochs goes on with another number of them."""
    epochs, how = settings.train.epochs, settings.schedule.extended
    if epochs > before and how == "restart":
        return [*stretches, [before, epochs]]
    if epochs != before and how == "stretch":
        begun = [stretch for stretch in stretches if stretch[0] < epochs]
        return [*begun[:-1], [begun[-1][0], epochs]]
    return stretches


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state, ``<parameter name>/<key>`` to tensor."""
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {f"{names[p]}/{key}": value for p, values in optimizer.state.items() for key, value in values.items()}


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undo ``tensors_of``, onto the parameters' devices. Raises UserError for those of anything else."""
    order = {parameter: i for i, parameter in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    keys = ("momentum_buffer",) if "momentum" in optimizer.defaults else ("step", "exp_avg", "exp_avg_sq")
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    wanted = {f"{name}/{key}": () if key == "step" else shape for name, shape in shapes.items() for key in keys}
    given = {name: tensor.shape for name, tensor in tensors.items()}  # none before the first step
    wrong = [name for name in wanted | given if given and wanted.get(name) != given.get(name)]
    if wrong or any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        what = f"the checkpoint's optimizer state does not fit the model ({', '.join(wrong[:1]) or 'not float32'})"
        raise UserError(what, "restore the checkpoint from a backup, or give another --run.dir")
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        owner, _, key = name.rpartition("/")
        parameter = parameters[owner]
        if key != "step":
            # In the parameter's own memory layout: fused kernels walk both by address, and do not look at strides.
            tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        state.setdefault(order[parameter], {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
