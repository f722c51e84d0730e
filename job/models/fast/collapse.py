"""VGG on images of 32 pixels without what it does 49 times over, for training.

The last feature map is 1 x 1 there. torchvision repeats it at 7 x 7 positions before the first fully connected layer,
so the 49 blocks of that layer's weight see the same input, add up to one matrix and get the same gradient. Training
their sum, with a learning rate 49 times as large, is the same training, to rounding, with a quarter of the parameters.
"""

from __future__ import annotations

from torch import Tensor, nn

from job.config.errors import UserError
from job.config.settings import Config
from job.models.vgg import MatrixPool

COPIES = 49
LAYER = "classifier.0.weight"


def collapse(model: nn.Module, settings: Config, image_size: int) -> bool:
    """Put the sum of the 49 blocks in their place, and nothing in the place of the pool; whether that was done.

    It is done where it is asked for, or leaves training what it is. It does not for larger feature maps, whose 49
    positions differ, nor for Adam with an L2 penalty, which is no longer the same for all blocks once it is divided by
    the root of the second moment. (SGD's penalty and AdamW's decay are.)

    The new weight [4096, 512] has an attribute ``copies``, by which the optimizer and the norm of the gradient count:
    49, for torchvision's training, or 1 with ``model.features_once``.
    Raises UserError when it is asked for and cannot be done.
    """
    once, weight = settings.model.features_once, dict(model.named_parameters()).get(LAYER)
    pooled = isinstance(getattr(model, "avgpool", None), MatrixPool)
    repeats = image_size // 32 == 1 and pooled and weight is not None and weight.shape[1] == 512 * COPIES
    penalised = settings.optimizer.name == "adam" and settings.optimizer.weight_decay > 0
    if once and not repeats:
        raise UserError(
            f"model.features_once=true with {settings.model.name} at {image_size} pixels",
            "VGG alone repeats features, from 32 to 63 pixels; use vgg16 with data.image_size 32, or false",
        )
    if not repeats or (penalised and not once):
        return False
    layer = model.get_submodule("classifier.0")
    assert isinstance(layer, nn.Linear)
    # Channels come first when a feature map is flattened: [out, 512 * 49] is [out, 512, 49].
    layer.weight = nn.Parameter(layer.weight.detach().unflatten(1, (-1, COPIES)).sum(2))
    layer.weight.copies = 1 if once else COPIES  # type: ignore[attr-defined]
    layer.in_features //= COPIES
    model.set_submodule("avgpool", nn.Identity())
    return True


def expanded(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """``state`` of a collapsed network in torchvision's layout, with 49 equal blocks, which give the same logits.

    ``model`` is that network, before or after it was collapsed. Any other network's ``state`` stays as it is.
    """
    total, weight = state.get(LAYER), dict(model.named_parameters()).get(LAYER)
    if total is None or weight is None or not (hasattr(weight, "copies") or weight.numel() == COPIES * total.numel()):
        return state
    return state | {LAYER: (total / COPIES)[:, :, None].expand(-1, -1, COPIES).flatten(1)}
