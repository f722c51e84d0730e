"""One optimizer step: a share of the global batch becomes a gradient, the gradient of all ranks, an update."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional as F

from job.config.settings import Config
from job.data.augment import address
from job.data.batches import Batches, Part
from job.distributed.group import Group
from job.models import frozen, weights
from job.training import optimizers
from job.training.choices import Choices
from job.training.graphs import Graphs, Warn
from job.training.ranks.cross_check import CrossCheck
from job.training.ranks.exchange import Exchange


class Step:
    """Takes one optimizer step after the other on this rank. ``model`` has rank zero's weights from here on.

    ``class_weights`` [classes]: what an image's loss counts. ``warn`` hears when CUDA graphs were chosen and cannot be
    recorded.
    """

    def __init__(
        self,
        settings: Config,
        model: nn.Module,
        batches: Batches,
        group: Group,
        choices: Choices,
        warn: Warn,
        class_weights: Tensor | None = None,
    ) -> None:
        self.settings, self.model, self.batches, self.group = settings, model, batches, group
        self.optimizer = optimizers.make_optimizer(settings.optimizer, model, recorded=choices.graphs)
        # Only fp16 has one. accelerate's own backward pass and step look for packages on the disk each time.
        self._scaler = group.accelerator.scaler or GradScaler(enabled=False)
        self._parameters = optimizers.trained(model)
        self._norms, self._buffers = frozen.normalised(model), frozen.moving(model)
        kinds = {type(module).__name__.lower() for module in model.modules()}
        self._random = any("drop" in kind or "stochastic" in kind for kind in kinds)
        self._class_weights = None if class_weights is None else class_weights.to(group.device)
        if settings.runtime.compile == "default":
            model.compile()
        self._wrapped: Any = model
        at_once = choices.sums in ("flat", "ordered")
        self._exchange = Exchange(settings, self._parameters, group, choices, self._buffers) if at_once else None
        self._graphs = None
        if choices.graphs:
            sums = self._exchange.sums if self._exchange else None
            self._graphs = Graphs(self.gradient, self.update, self._parameters, group.device, sums, warn)
        if choices.sums == "overlapped":
            self._wrapped = group.accelerator.prepare_model(model)
            if settings.runtime.gradients == "bf16":
                from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

                self._wrapped.register_comm_hook(None, bf16_compress_hook)
            self._rehearse()
        elif group.world_size > 1:
            weights.put(group.broadcast(model.state_dict()), model)
        self._last: list[Part] = []
        self._cross_check = None
        if settings.train.cross_check and group.world_size > 1:
            self._cross_check = CrossCheck(self._gradient_without_trace, self._parameters, group)

    def __call__(self, parts: list[Part], number: int, rate: float) -> Tensor:
        """Step ``number``, counted from 0, at learning rate ``rate``.

        Returns this rank's share of the mean loss over the global batch, and of the accuracy with which the network
        named its images as it learned them: float64 [2], on the device.
        """
        first, self._last = not self._last, parts
        if first or number % (self.settings.train.cross_check or 1) == 0:
            self.cross_check(number)
        optimizers.set_learning_rate(self.optimizer, rate)
        work: Step | Graphs = self._graphs if self._graphs is not None and self._graphs.fits(parts) else self
        # In float64 a sum of a few float32 values is exact, and so the same in any order.
        total = torch.zeros(2, dtype=torch.float64, device=self.group.device)
        if self._exchange:
            self._exchange.begin()
        for i, part in enumerate(parts):
            if self._random:
                piece = self.group.rank * len(parts) + i
                seed = self.settings.train.seed_for("dropout")
                torch.manual_seed(address(seed, "step", number, piece))  # for dropout and its like
            last = i == len(parts) - 1
            with contextlib.nullcontext() if last else self.group.accelerator.no_sync(self._wrapped):
                total += work.gradient(part)
            if self._exchange:
                self._exchange.collect(i, part.weight * len(part.rows))
        if self._exchange:
            began = time.perf_counter()
            self._exchange.give()
            if self.group.roll_call is not None and self.group.device.type == "cpu":  # others do not wait here
                self.group.roll_call.waited += time.perf_counter() - began
        work.update()
        self.optimizer.zero_grad()
        return total

    def gradient(self, part: Part) -> Tensor:
        """Add the part's gradient to the parameters'; its shares of the batch's mean loss and of its accuracy."""
        if len(part.rows) == 1 and self._norms:
            with _without_trace(buffer for buffer in self._buffers if buffer.is_floating_point()):
                return self.gradient(_twice(part))
        loss, right = self._loss(part, self._wrapped)
        # The wrapper averages over ranks what is to be summed: each has its share of the mean.
        ranks = self.group.world_size if self._wrapped is not self.model else 1
        whole = loss * ranks if ranks > 1 else loss
        self._scaler.scale(whole).backward()
        return torch.stack([loss.detach().double(), part.weight * right])

    def cross_check(self, number: int) -> None:
        """Have ranks compare what they compute after ``number`` steps, if they are to. Raises FailedError on all."""
        if self._cross_check is not None and self._last:
            self._cross_check(self._last[0], number)

    def _gradient_without_trace(self, part: Part, seed: int) -> Sequence[Tensor]:
        """The part's gradient with the weights of now, beside all that the steps go by."""
        torch.manual_seed(seed)
        part = _twice(part) if len(part.rows) == 1 else part
        with _without_trace(self.model.buffers()):
            loss = self._scaler.scale(self._loss(part, self.model)[0])
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        return [gradient for gradient in gradients if gradient is not None]

    def _loss(self, part: Part, network: Any) -> tuple[Tensor, Tensor]:
        """The part's share of the mean loss over the global batch, float32 [], and images that are right, float64 [].

        A mixed image is right by the class of which it has more.
        """
        images, labels = self.batches.fetch(part.rows)
        with self.group.accelerator.autocast():
            logits = network(images)
        right = (logits.argmax(1) == (labels if labels.dim() == 1 else labels.argmax(1))).sum().double()
        smoothing = self.settings.train.label_smoothing
        if self._class_weights is None:
            losses = F.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=smoothing)
            return part.weight * losses, right
        if labels.dim() == 1:
            counts = self._class_weights[labels]
        else:  # of mixed images: the sum of what both would give
            weighted = labels * self._class_weights
            counts = weighted.sum(1)
            labels = weighted / counts[:, None]
        losses = F.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=smoothing)
        return part.weight * (counts @ losses), right

    def update(self) -> None:
        """Move the weights by their gradient."""
        if self.settings.train.clip_norm is not None:
            self._scaler.unscale_(self.optimizer)
            optimizers.clip(self._parameters, self.settings.train.clip_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()

    def _rehearse(self) -> None:
        """Go forward and backward, without effect.

        DDP sums gradients in buckets, and lays these out anew after its first passes (the second, for a static graph).
        With three or more ranks the order of the terms follows from the layout: a run that is continued must not begin
        with another one than a run that was not disturbed has long left behind.
        """
        compiled = self.settings.runtime.compile == "default"  # for one shape; for others any will do
        count = self.settings.train.batch_size // self.group.world_size if compiled else 2
        rows = torch.zeros(count, dtype=torch.int64, device=self.batches.device)
        with _without_trace(self.model.buffers()):
            for _ in range(2):
                self._wrapped(self.batches.fetch(rows)[0]).sum().backward()
                self.optimizer.zero_grad()


def balanced(labels: Tensor) -> Tensor:
    """For each class in ``labels`` [n] images / (classes x its images): float32 [classes], 1 on average over images.

    A batch's sum is divided by its images, and not by their weights as ``F.cross_entropy`` would: the mean over batches
    is then that over the set, whatever the batches are.
    """
    images = labels.bincount()
    return (len(labels) / (images.count_nonzero() * images.clamp(min=1))).float()


def _twice(part: Part) -> Part:
    """One image, which has no variance, as two that count half each."""
    return dataclasses.replace(part, rows=part.rows.repeat(2), weight=part.weight / 2)


@contextlib.contextmanager
def _without_trace(buffers: Iterable[Tensor]) -> Iterator[None]:
    """Leave ``buffers`` as they are, whatever is seen within."""
    before = [(buffer, buffer.clone()) for buffer in buffers]
    yield
    for buffer, value in before:
        buffer.copy_(value)
