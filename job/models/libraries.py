"""The networks of torchvision and timm, and where their weights lie. Either takes seconds to import."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from job.config.errors import UserError
from job.models.vgg import MatrixPool

Build = Callable[[int, int], nn.Module]
"""makes a network for so many classes and for images of so many pixels"""


def names(model: str) -> list[str]:
    """What the library of ``model`` has: torchvision's classifiers or, for ``timm/...``, timm's, tagged or not."""
    if model.startswith("timm/"):
        library = timm(model)
        return [f"timm/{name}" for name in (*library.list_models(), *library.list_models(pretrained=True))]
    from torchvision import models

    return list(models.list_models(module=models))


def builder(model: str) -> Build:
    """How ``model``, one of ``names``, is made."""
    return partial(_of_timm if model.startswith("timm/") else _of_torchvision, model)


def timm(model: str) -> ModuleType:
    """The library. Raises UserError where it is not installed."""
    try:
        library = importlib.import_module("timm")
    except ImportError:
        raise UserError(f"model.name={model}", "timm is not installed; `pip install timm`, or use another") from None
    return library


def _of_torchvision(model: str, classes: int, image_size: int) -> nn.Module:
    from torchvision.models import get_model

    options: dict[str, Any] = {}
    if model.startswith("vit_"):
        options["image_size"] = image_size
    elif model.startswith("maxvit_"):
        options["input_size"] = (image_size, image_size)
    elif model in ("googlenet", "inception_v3"):  # without the heads that only training from scratch had a use for
        options = {"aux_logits": False, "init_weights": True}
    network: nn.Module = get_model(model, weights=None, num_classes=classes, **options)
    for name, pool in list(network.named_modules()):
        if isinstance(pool, nn.AdaptiveAvgPool2d) and pool.output_size not in (1, (1, 1)):
            network.set_submodule(name, MatrixPool(pool))
    return network


def _of_timm(model: str, classes: int, image_size: int) -> nn.Module:
    create = partial(timm(model).create_model, model.removeprefix("timm/"), pretrained=False, num_classes=classes)
    try:
        network: nn.Module = create(img_size=image_size)
    except TypeError:  # most take any size, and know no such option
        network = create()
    return network


def timm_weights(model: str, *, download: bool) -> Path:
    """timm's file for ``model`` in the Hugging Face hub's cache. Raises UserError where it is not to be had."""
    known = timm(model).get_pretrained_cfg(model.removeprefix("timm/"))
    if known is None or not known.hf_hub_id:
        raise UserError("model.weights=imagenet", f"there are none for {model}; use null, or a file")
    from huggingface_hub import hf_hub_download

    try:
        found = hf_hub_download(known.hf_hub_id, "model.safetensors", local_files_only=not download)
    except Exception as error:  # the library has dozens
        mend = "run `python job/prepare.py` with the same settings where there is a network, or name a file"
        what = f"weights of {known.hf_hub_id} are not in the hub's cache and cannot be fetched ({type(error).__name__})"
        raise UserError(what, mend) from None
    return Path(found)
