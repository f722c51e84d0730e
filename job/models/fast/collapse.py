"""VGG on pictures of 32 pixels without what it does 49 times over, for training.

The last feature map is 1 x 1 there. torchvision repeats it at 7 x 7 places before the first fully connected layer, so
the 49 blocks of that layer's weight see the same input, add up to one matrix and get the same gradient. Training their
sum, with a learning rate 49 times as large, is the same training, to rounding, with a quarter of the parameters.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from job.config.errors import UserError
from job.config.settings import Config
from job.models.fast import convolutions

COPIES = 49
LAYER = "classifier.0.weight"


def collapses(settings: Config, model: nn.Module, image_size: int) -> bool:
    """Whether ``collapse`` is asked for, or leaves training what it is.

    It does not for larger feature maps, whose 49 places differ, nor for Adam with an L2 penalty, which is no longer the
    same for all blocks once it is divided by the root of the second moment. (SGD's penalty and AdamW's decay are.)
    Raises UserError when it is asked for and cannot be done.
    """
    penalised = settings.optimizer.name == "adam" and settings.optimizer.weight_decay > 0
    weight = dict(model.named_parameters()).get(LAYER)
    pooled = isinstance(getattr(model, "avgpool", None), nn.AdaptiveAvgPool2d)
    fits = image_size // 32 == 1 and pooled and weight is not None and weight.shape[1] == 512 * COPIES
    if settings.model.features_once and not fits:
        raise UserError(
            f"model.features_once=true at {image_size} pixels",
            "features are repeated from 32 to 63 pixels only; use data.image_size 32, or false",
        )
    return fits and (settings.model.features_once or not penalised)


def collapse(model: nn.Module, *, features_once: bool = False) -> None:
    """Put the sum of the 49 blocks in their place, and nothing in the place of the pool.

    The new weight [4096, 512] has an attribute ``copies``, by which the optimizer and the norm of the gradient count:
    49, for torchvision's training, or 1 with ``features_once``.
    """
    old = model.get_submodule("classifier.0")
    assert isinstance(old, nn.Linear)
    new = nn.utils.skip_init(nn.Linear, old.in_features // COPIES, old.out_features, dtype=old.weight.dtype)
    with torch.no_grad():
        new.weight.copy_(_blocks(old.weight).sum(2))
        new.bias.copy_(old.bias)
    new.weight.copies = 1 if features_once else COPIES
    model.set_submodule("classifier.0", new)
    model.set_submodule("avgpool", nn.Identity())


def expanded(state: dict[str, Tensor], before: Tensor | None = None, kept: float = 1.0) -> dict[str, Tensor]:
    """``state`` of a collapsed model in torchvision's layout, and any other as it is.

    The blocks differ by as much as they did in the weight ``before`` [4096, 25088] training, times ``kept``, or not at
    all. The 49 places add up to the same logits either way.
    """
    total = state.get(LAYER)
    if total is None or total.shape[1] != 512:
        return state
    blocks = (total / COPIES)[:, :, None].expand(-1, -1, COPIES)
    if before is not None:
        old = _blocks(before)
        blocks = blocks + kept * (old - old.mean(2, keepdim=True))
    return state | {LAYER: blocks.reshape(len(total), -1)}


def _blocks(weight: Tensor) -> Tensor:
    """[out, 512 * 49] as [out, 512, 49]: channels come first when a feature map is flattened."""
    return weight.view(len(weight), -1, COPIES)


def use_small_convolutions(model: nn.Module, windows: convolutions.Windows) -> None:
    """Let VGG's convolutions do small feature maps in another way; any but the kind that VGG has is left as it is."""
    for name, layer in list(model.named_modules()):
        if type(layer) is not nn.Conv2d:
            continue
        window = (layer.kernel_size, layer.padding, layer.stride, layer.dilation)
        if window == ((3, 3), (1, 1), (1, 1), (1, 1)) and layer.groups == 1 and layer.padding_mode == "zeros":
            convolutions.use(model, name, convolutions.SmallConv2d).windows = windows


def pool_first(model: nn.Module) -> None:
    """Let a ReLU before a largest-of-four pool come behind it: the same numbers, and a quarter of the work."""
    for layers in model.modules():
        if not isinstance(layers, nn.Sequential):
            continue
        for i, (first, second) in enumerate(pairwise(list(layers))):
            if isinstance(first, nn.ReLU) and isinstance(second, nn.MaxPool2d):
                layers[i], layers[i + 1] = second, first
