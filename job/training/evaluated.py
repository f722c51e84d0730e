"""The weights that are evaluated and written: those that are trained, their average, or those of the best epoch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from job.config.errors import UserError
from job.config.settings import Config
from job.distributed.group import Group
from job.runs.checkpoint import AVERAGE, BEST, below


class Evaluated:
    """Copies of what training changes in ``model``, beside the model itself. All ranks call it alike.

    Each rank has the average, on its device; rank zero alone has the best, on the host.
    """

    def __init__(self, settings: Config, model: nn.Module, group: Group, saved: dict[str, Tensor] | None) -> None:
        """``saved``: what ``tensors`` gave on rank zero; None where a run begins, and on other ranks."""
        self._decay, self._model, self._group = settings.train.ema, model, group
        self._wants_best = settings.run.weights == "best"
        self._best = below(BEST, saved or {})
        self._average: dict[str, Tensor] = {}
        if self._decay is not None:
            start = below(AVERAGE, saved or {}) or {name: t.detach().clone() for name, t in self._moving().items()}
            self._average = {name: tensor.to(group.device) for name, tensor in group.broadcast(start).items()}

    def follow(self, step: int) -> None:
        """Let the average move towards the weights that optimizer step ``step``, counted from 1, has left."""
        if self._decay is not None:
            own = self._moving()
            kept = min(self._decay, step / (step + 9))  # or the first weights, which are noise, would weigh for long
            torch._foreach_lerp_([self._average[name] for name in own], list(own.values()), 1 - kept)

    def keep_best(self) -> None:
        """Keep what an evaluation sees now, where the best is asked for."""
        if self._wants_best and self._group.is_rank_zero:
            self._best = {name: tensor.to("cpu", copy=True) for name, tensor in self._now().items()}

    @contextlib.contextmanager
    def in_place(self, *, final: bool) -> Iterator[None]:
        """The model with the weights that are evaluated, in the ``final`` evaluation the best, if they are kept."""
        shown = self._group.broadcast(self._best) if final and self._wants_best else self._average
        own = {name: tensor for name, tensor in self._model.state_dict().items() if name in shown}
        before = {name: tensor.clone() for name, tensor in own.items()}
        for name, tensor in own.items():
            tensor.copy_(shown[name])
        yield
        for name, tensor in own.items():
            tensor.copy_(before[name])

    def final(self) -> dict[str, Tensor]:
        """The weights that the final evaluation sees, on rank zero."""
        return self._best or self._now()

    def tensors(self) -> dict[str, Tensor]:
        """What is kept, by names that tell of which kind it is, on rank zero."""
        kinds = ((AVERAGE, self._average), (BEST, self._best))
        return {f"{kind}{name}": tensor for kind, tensors in kinds for name, tensor in tensors.items()}

    def _now(self) -> dict[str, Tensor]:
        return self._model.state_dict() | self._average

    def _moving(self) -> dict[str, Tensor]:
        """What training changes bit by bit: parameters that are not frozen, and statistics."""
        parameters = {name: p.data for name, p in self._model.named_parameters() if p.requires_grad}
        return parameters | {name: b for name, b in self._model.named_buffers() if b.is_floating_point()}


def caveats(settings: Config, final: str) -> tuple[str, ...]:
    """What makes the ``final`` split's accuracy mean less than it seems to, in words."""
    if settings.run.weights != "best" or final != "validation":
        return ()
    return ("the best weights were chosen by the validation images that they are tested on: expect less on others",)


def require_validation(settings: Config, images: int) -> None:
    """Raise UserError where validation decides something and there are no ``images`` for it."""
    wanted = ["train.patience"] if settings.train.patience else []
    wanted += ["run.weights=best"] if settings.run.weights == "best" else []
    if wanted and not images:
        raise UserError(f"{' and '.join(wanted)} without validation images", "give data.validation a share of them")
