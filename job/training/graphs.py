"""CUDA graphs: the kernels of a step, once launched one by one, are launched again all at once.

A step of a small network is some fifty kernels of a few microseconds; launching them takes longer than running them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from job.config.errors import first_line
from job.data.batches import Part

Warn = Callable[[str], None]
WARM_UP = 3
"""steps that run kernel by kernel before the graphs are recorded: in them libraries choose kernels and get memory"""


@dataclass
class Graphs:
    """A step's work as two graphs: images to gradient, and gradient to update. Between them ranks may exchange.

    Both are recorded at the first step after ``WARM_UP`` of its size; steps of another size do not fit.
    ``exchanged``: where ranks leave each parameter's gradient for the update, if they do. ``warn`` hears when CUDA
    cannot record, and then no step fits. Where there is no CUDA the work is called in place of a graph, in the same
    order and on the same memory.
    """

    take_gradient: Callable[[Part], Tensor]
    update: Callable[[], Any]
    parameters: Sequence[nn.Parameter]
    device: torch.device
    exchanged: Sequence[Tensor] | None
    warn: Warn
    _steps: int = 0
    _part: Part | None = None
    """the memory that the graph reads its rows from"""

    def fits(self, parts: list[Part]) -> bool:
        """Whether graphs do this step."""
        sizes = {(len(part.rows), part.weight) for part in parts}
        if len(sizes) == 1:
            self._steps += 1
            if self._steps == WARM_UP + 1:  # once: where it fails then, it fails
                self._record(parts[0])
        return self._part is not None and sizes == {(len(self._part.rows), self._part.weight)}

    def gradient(self, part: Part) -> Tensor:
        """As a step's ``gradient``; what it returns, and the gradients, stand until the next call."""
        assert self._part is not None
        self._part.rows.copy_(part.rows)
        loss: Tensor
        loss, gradients = self._run_gradient()
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return loss

    def _record(self, part: Part) -> None:
        own = Part(part.rows.clone(), part.weight)

        def gradients() -> tuple[Tensor, list[Tensor | None]]:
            return self.take_gradient(own), [parameter.grad for parameter in self.parameters]

        try:
            self._run_gradient = recorded(gradients, self.device)
            if self.exchanged is not None:
                for parameter, gradient in zip(self.parameters, self.exchanged, strict=True):
                    parameter.grad = gradient
            self.update = recorded(self.update, self.device)
            self._part = own
        except RuntimeError as error:
            reason = first_line(error)
            self.warn(f"CUDA cannot record the step as a graph ({reason}): its kernels are launched one by one")
        for parameter in self.parameters:
            parameter.grad = None


def recorded(work: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """``work`` as one launch, which returns the same tensors each time; ``work`` itself where there is no CUDA.

    It is recorded now and not run. Raises RuntimeError when it waits for the device or cannot be recorded otherwise.
    """
    if device.type != "cuda":
        return work
    graph = torch.cuda.CUDAGraph()
    # This thread's calls alone count: NCCL's watchdog asks the device how it does from its own.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = work()

    def replay() -> Any:
        graph.replay()
        return result

    return replay
