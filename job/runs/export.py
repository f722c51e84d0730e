"""A run's network made ready for use: from raw pixels to class probabilities, here or, exported, elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from job.config.errors import UserError
from job.config.settings import Config
from job.data.batches import normalisation
from job.data.decoding import RESIZE
from job.distributed.group import Group, start
from job.models import weights
from job.runs import files
from job.runs.restored import class_names, deep_range, of_run, restore

LARGEST_DIFFERENCE = 1e-4
"""between logits of the exported program and the network's, relative to the largest logit: rounding, no more"""


class Classifier(nn.Module):
    """Pixels, uint8 [b, 3, size, size] in RGB, to logits, float32 [b, classes]; normalises by itself."""

    def __init__(
        self, network: nn.Module, settings: Config, classes: tuple[str, ...], deep: tuple[float, float] | None
    ) -> None:
        super().__init__()
        self.network, self.deep = network.eval(), deep
        self.settings, self.classes, self.size = settings, classes, settings.data.image_size
        constants = normalisation(settings.data, torch.device("cpu"))
        self.scale, self.shift = (nn.Buffer(constant, persistent=False) for constant in constants)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.network(torch.addcmul(self.shift, pixels, self.scale)).float()
        return logits

    def probabilities(self, pixels: Tensor, group: Group) -> Tensor:
        """Softmax of the logits of ``pixels`` [n, 3, size, size], [n, classes] on the CPU."""
        with torch.inference_mode(), group.accelerator.autocast():
            logits: Tensor = self(pixels.to(group.device))
            return logits.softmax(1).cpu()


def restored(run: Path) -> tuple[Classifier, Group]:
    """The classifier of a run directory on this machine's device. Raises UserError when it has no weights yet."""
    settings, _ = of_run(str(run), [], "")
    group = start(settings.runtime, deterministic=False)
    classes = class_names(run)
    network, _ = restore(run, settings, classes)
    return Classifier(network, settings, classes, deep_range(run)).to(group.device), group


def export(model: Classifier, into: Path) -> list[Path]:
    """Write weights, preprocessing and a program of ``model`` into the directory ``into``; returns the files' paths.

    ``model.pt2`` is a torch.export program from uint8 pixels to logits for any number of images;
    ``model.safetensors`` holds the network's weights alone; ``preprocessing.json`` says what to feed either.
    Raises UserError unless what was written, read back, gives the same logits.
    """
    model = Classifier(model.network.cpu().float(), model.settings, model.classes, model.deep)
    example = torch.randint(0, 256, (2, 3, model.size, model.size), dtype=torch.uint8)
    data = model.settings.data
    about = {
        "model": model.settings.model.name,
        "classes": model.classes,
        "image_size": model.size,
        "colour": "RGB, uint8, transparent pictures on white, turned upright",
        "resize": f"{RESIZE[data.resize]}; bilinear, antialiased",
        "more_than_8_bits": model.deep and f"(value - {model.deep[0]}) * 256 / {model.deep[1] - model.deep[0]}, cut",
        "program": "model.pt2 takes pixels as uint8 [n, 3, image_size, image_size] and normalises them itself",
        "normalisation": {"value": "(pixel / 255 - mean) / std", "mean": data.mean, "std": data.std},
    }
    saved, described, program = (into / name for name in ("model.safetensors", "preprocessing.json", "model.pt2"))
    try:
        into.mkdir(parents=True, exist_ok=True)
        files.save_weights(saved, model.network.state_dict())
        files.write_whole(described, json.dumps(about, indent=1) + "\n")
        dynamic = {"pixels": {0: torch.export.Dim("images", min=1)}}
        with files.whole(program) as temporary, open(temporary, "wb") as file:
            torch.export.save(torch.export.export(model, (example,), dynamic_shapes=dynamic), file)
    except OSError as error:
        raise UserError(f"{into} cannot be written ({error.strerror})", "give another directory to --export") from None
    _check(model, saved, program)
    return [saved, described, program]


def _check(model: Classifier, saved: Path, program: Path) -> None:
    """Read the exported files back and compare, on random images in batches of other sizes than the example's."""
    if weights.digest(weights.read(saved)) != weights.digest(model.network.state_dict()):
        raise UserError(f"{saved} does not hold the weights that were written", "is the disk sound?")
    with open(program, "rb") as file:  # it takes no path that is no UTF-8
        loaded = torch.export.load(file).module()
    for count in (1, 7):
        pixels = torch.randint(0, 256, (count, 3, model.size, model.size), dtype=torch.uint8)
        with torch.inference_mode():
            logits, exported = model(pixels), loaded(pixels)
        difference = float((logits - exported).abs().max() / logits.abs().max())
        if not difference <= LARGEST_DIFFERENCE:
            raise UserError(f"{program} gives other logits than the model (by {difference:.1e})", "do not use it")
