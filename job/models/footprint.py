"""What a model takes: bytes on the device while it is trained, bytes on the disk for each checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from job.config.errors import UserError
from job.config.settings import Config

OPTIMIZER_TENSORS = {"adam": 2, "adamw": 2, "sgd": 1}
"""state tensors an optimizer keeps for each parameter"""


def require_room(path: Path, settings: Config, model: nn.Module) -> None:
    """Raises UserError unless two checkpoints, the least that is kept, fit where the run directory ``path`` is.

    The part of the preflight that a job makes at each start; what a run already keeps counts as room.
    """
    needed = 2 * checkpoint_bytes(settings, model)
    kept = sum(file.stat().st_size for file in (path / "checkpoints").glob("step-*/*"))
    free = shutil.disk_usage(path).free
    if free + kept < needed:
        raise UserError(
            f"{readable(free)} are free in {path} and two checkpoints take {readable(needed)}",
            "make room, or give another --run.dir",
        )


def checkpoint_bytes(settings: Config, model: nn.Module) -> int:
    """Size of one checkpoint: fp32 weights, buffers, the optimizer's tensors, and copies of weights that are kept."""
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    size: int = (1 + (settings.run.weights == "best")) * weights
    size += (OPTIMIZER_TENSORS[settings.optimizer.name] + (settings.train.ema is not None)) * trained
    return size


def memory_bytes(settings: Config, model: nn.Module, images: int, image_size: int) -> dict[str, int]:
    """Estimate, by kind, of what one process holds on its device with ``images`` of ``image_size`` pixels at once.

    Activations are what the layers put out, from the first one that is trained on, once for the backward pass and a
    quarter as much again for what is alive beside it; the kernels' workspace is not counted.
    """
    outputs = 0

    def count(module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal outputs
        for tensor in output if isinstance(output, tuple) else (output,):  # attention gives its weights as well
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad and not list(module.children()):
                outputs += tensor.numel()

    training = model.training
    model.eval()  # one image has no statistics
    with register_module_forward_hook(count):
        model(torch.zeros(1, 3, image_size, image_size))
    model.train(training)
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    width = 4 if settings.runtime.precision == "fp32" else 2
    return {
        "weights": 4 * parameters,
        "gradients": 4 * trained,
        "optimizer": 4 * trained * OPTIMIZER_TENSORS[settings.optimizer.name],
        "average": 4 * trained if settings.train.ema else 0,
        "activations": int(1.25 * width * outputs * images),
        "lower-precision copies": 0 if width == 4 else 2 * parameters,
    }


def readable(count: float) -> str:
    """``1.6 GB``, in powers of ten as disks are sold and df -H shows them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
