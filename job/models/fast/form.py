"""The network in the form that trains fastest on this device, and back in its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from job.config.errors import UserError
from job.config.settings import Config
from job.data.datasets import Dataset
from job.distributed.group import Group
from job.models import registry, vgg, weights
from job.models.fast import collapse, convolutions, dropout
from job.training import optimizers
from job.training.choices import Choices, choose


def build(
    settings: Config, dataset: Dataset, group: Group, saved: dict[str, Tensor] | None, *, pretrained: bool
) -> tuple[nn.Module, Choices]:
    """The network on this rank's device, and what was chosen for it.

    Its weights are ``saved`` ones in this form, or, on the rank that has none, those before training: from
    ``model.weights`` where ``pretrained``, which rank zero alone reads, else random. Raises UserError on every rank.
    """
    model = _own(settings, dataset)
    if pretrained:
        group.guarded(
            lambda: weights.pretrained(settings.model, model, download=settings.data.download), on=group.is_rank_zero
        )
    one_host = group.local_world_size == group.world_size
    choices = choose(settings, model, dataset, group.device, group.world_size, one_host=one_host)
    if choices.collapsed:
        collapse.collapse(model, features_once=settings.model.features_once)
    else:
        vgg.use_matrix_pool(model)
    collapse.pool_first(model)
    if choices.few_channels:
        convolutions.use(model, "conv1", convolutions.FilledConv2d).pairs = choices.pairs
        convolutions.use(model, "conv2", convolutions.BackwardConv2d)
    if choices.small_convolutions:
        collapse.use_small_convolutions(model, choices.small_convolutions)
    if choices.dropout:
        dropout.use(model)
    if saved is not None:
        weights.load(model, saved, name="the checkpoint's weights")
    model.to(group.device).to(memory_format=torch.channels_last)
    if settings.runtime.compile == "default":
        model.compile()
    return model, choices


def own_weights(
    model: nn.Module,
    choices: Choices,
    settings: Config,
    dataset: Dataset,
    *,
    steps: int,
    steps_per_epoch: int,
    warn: Callable[[str], None],
) -> dict[str, Tensor]:
    """The weights after ``steps`` steps in the network's own form, on the CPU: a collapsed layer is spread out."""
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    if not choices.collapsed:
        return state
    # The parts still differ by what they did before training. That is computed anew, and not carried along.
    before = _own(settings, dataset)
    try:
        weights.pretrained(settings.model, before, download=False)
    except UserError as error:
        warn(f"the first weights are gone ({error}): the 49 parts of {collapse.LAYER} are saved as equals")
        return collapse.expanded(state)
    left = optimizers.left_of_decay(settings, steps, steps_per_epoch)
    return collapse.expanded(state, before.state_dict()[collapse.LAYER], left)


def _own(settings: Config, dataset: Dataset) -> nn.Module:
    size, classes = dataset.train.images.shape[-1], len(dataset.classes)
    return registry.build(settings.model, classes=classes, image_size=size, seed=settings.train.seed)
