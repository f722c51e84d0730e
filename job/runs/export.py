"""A run's network made ready for use: from raw pixels to class probabilities, here or, exported, elsewhere."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from job.config.errors import UserError
from job.config.settings import Config
from job.data.batches import normalisation
from job.data.decoding import RESIZE
from job.distributed.group import Group, start
from job.models import weights
from job.models.fast import form
from job.runs import files
from job.runs.restored import of_run, restore, trained_on

LARGEST_DIFFERENCE = 1e-4
"""between what the exported program gives and the network, relative to the largest: rounding, no more"""
OPSET, LARGEST_ONNX = 18, 2_000_000_000
"""of ONNX: the version of its operators, which onnxruntime has had since 1.14, and bytes of a file"""


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
    classes, _, deep = trained_on(run)
    network, _ = restore(run, settings, classes)
    return Classifier(network, settings, classes, (deep[0], deep[1]) if deep else None).to(group.device), group


def export(model: Classifier, into: Path, kept: Path, *, onnx: bool = False) -> list[str]:
    """Write weights, preprocessing and a program of ``model`` into the directory ``into``; says what was done.

    ``model.pt2`` is a torch.export program from uint8 pixels to logits for any number of images; in its place, with
    ``onnx``, ``model.onnx`` is one in ONNX to probabilities. ``model.safetensors`` holds the network's weights alone:
    it is the run's own file ``kept`` itself where both can share one. ``preprocessing.json`` says what to feed either.
    Raises UserError unless what was written, read back, gives the same numbers.
    """
    if onnx:
        _require_onnx(model)
    model = Classifier(model.network.cpu().float(), model.settings, model.classes, model.deep)
    data, name = model.settings.data, "model.onnx" if onnx else "model.pt2"
    about = {
        "model": model.settings.model.name,
        "classes": model.classes,
        "image_size": model.size,
        "colour": "RGB, uint8, transparent pictures on white, turned upright",
        "resize": f"{RESIZE[data.resize]}; bilinear, antialiased",
        "more_than_8_bits": model.deep and f"(value - {model.deep[0]}) * 256 / {model.deep[1] - model.deep[0]}, cut",
        "program": f"{name} takes pixels as uint8 [n, 3, image_size, image_size] and normalises them itself; it gives "
        + ("probabilities" if onnx else "logits"),
        "normalisation": {"value": "(pixel / 255 - mean) / std", "mean": data.mean, "std": data.std},
    }
    saved, described, program = (into / name for name in ("model.safetensors", "preprocessing.json", name))
    try:
        into.mkdir(parents=True, exist_ok=True)
        _save_weights(model, saved, kept)
        files.write_whole(described, json.dumps(about, indent=1) + "\n")
        # Images in batches of other sizes than the one that the program is made with.
        checks = [torch.randint(0, 256, (count, 3, model.size, model.size), dtype=torch.uint8) for count in (1, 7)]
        with torch.inference_mode():
            expected = [model(pixels) for pixels in checks]
        form.portable(model.network, model.settings)
        with files.whole(program) as temporary:
            (_write_onnx if onnx else _write_program)(model, temporary)
    except OSError as error:
        raise UserError(f"{into} cannot be written ({error.strerror})", "give another directory to --export") from None
    said = [f"wrote {path}" for path in (saved, described, program)]
    run = _onnx_runtime(program) if onnx else _loaded(program)
    if run is None:
        return [*said, f"{program} was not checked: onnxruntime is not installed"]
    for pixels, logits in zip(checks, expected, strict=True):
        wanted = logits.softmax(1) if onnx else logits
        difference = float((wanted - run(pixels)).abs().max() / wanted.abs().max())
        if not difference <= LARGEST_DIFFERENCE:
            raise UserError(f"{program} gives other numbers than the model (by {difference:.1e})", "do not use it")
    return said


def _save_weights(model: Classifier, path: Path, kept: Path) -> None:
    """The weights, read back; no byte is written where ``kept`` has them and its disk can give it another name."""
    state = model.network.state_dict()
    own = weights.digest(state)
    if not (kept.is_file() and weights.digest(weights.read(kept)) == own):
        files.save_weights(path, state)
    elif not (path.exists() and path.samefile(kept)):
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another disk, or one without second names
            os.link(kept, path)
        if not path.exists():
            files.save_weights(path, state)
    if weights.digest(weights.read(path)) != own:
        raise UserError(f"{path} does not hold the weights that were written", "is the disk sound?")


def _write_program(model: Classifier, path: Path) -> None:
    with open(path, "wb") as file:  # it takes no path that is no UTF-8
        torch.export.save(torch.export.export(model, (_example(model),), dynamic_shapes=_any_number()), file)


def _loaded(program: Path) -> Callable[[Tensor], Tensor]:
    with open(program, "rb") as file:
        module = torch.export.load(file).module()
    return torch.inference_mode()(module.forward)


def _require_onnx(model: Classifier) -> None:
    """Raise UserError where ``model`` cannot become a file in ONNX."""
    if importlib.util.find_spec("onnxscript") is None:
        raise UserError("--onnx: onnxscript is not installed", "pip install onnxscript onnxruntime")
    taken = sum(tensor.numel() * 4 for tensor in model.network.state_dict().values())
    if taken > LARGEST_ONNX:
        raise UserError(f"--onnx: the weights take {taken / 1e9:.1f} GB, and one file 2", "export without --onnx")


def _write_onnx(model: Classifier, path: Path) -> None:
    """https://onnx.ai/onnx/intro/concepts.html: opset ``OPSET``, input "pixels", output "probabilities"."""
    whole = nn.Sequential(model, nn.Softmax(1)).eval()
    program = torch.onnx.export(
        whole,
        (_example(model),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["pixels"],
        output_names=["probabilities"],
        dynamic_shapes=_any_number(),
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props["classes"] = json.dumps(model.classes)
    program.save(path, external_data=False)


def _onnx_runtime(program: Path) -> Callable[[Tensor], Tensor] | None:
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(program.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])


def _any_number() -> tuple[dict[int, Any]]:
    """Of the example's sizes, that which may be another."""
    return ({0: torch.export.Dim("images", min=1)},)


def _example(model: Classifier) -> Tensor:
    return torch.zeros(2, 3, model.size, model.size, dtype=torch.uint8)
