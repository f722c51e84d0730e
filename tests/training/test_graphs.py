"""Steps as CUDA graphs: the same numbers as step by step. Without a GPU, the same memory and order, and no graph."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from accelerate import Accelerator
from support.groups import alone
from torch import nn

from job.config.settings import Config, Data, Model, Optimizer, Runtime, Train
from job.data.batches import Batches
from job.data.datasets import Dataset, Split
from job.distributed.group import Group
from job.training import choices
from job.training.step import Step

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH = 16
RATES = (2**-10, 2**-9)
"""learning rates without rounding: graphs read them in float32 from memory"""


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(512, 10)
    )  # fmt: skip


def own_group() -> Group:
    return alone(Accelerator(cpu=DEVICE.type == "cpu"), DEVICE)


def weights_and_losses(settings: Config, *, graphs: bool) -> tuple[list[torch.Tensor], list[float]]:
    """Train for more than an epoch, whose last batch is smaller."""
    group = own_group()
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (BATCH * 6 + 8, 32, 32, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (len(images),), generator=generator)
    split = Split(images.to(DEVICE), labels.to(DEVICE), torch.arange(len(images)))
    batches = Batches(split, settings.data, DEVICE, rank=0, world_size=1)
    torch.manual_seed(1)
    model = network().to(DEVICE).to(memory_format=torch.channels_last)
    dataset = Dataset("random", tuple("abcdefghij"), split, split, split, "")
    chosen = dataclasses.replace(choices.choose(settings, model, dataset, group), graphs=graphs)
    if graphs and settings.train.gradient_accumulation > 1:
        chosen = dataclasses.replace(chosen, sums="flat")
    said: list[str] = []
    step, losses = Step(settings, model, batches, group, chosen, said.append), []
    for epoch in (1, 2):
        for parts in batches.training(seed=1, epoch=epoch, start=0, batch_size=BATCH, parts=settings.parts(1)):
            losses.append(step(parts, len(losses), RATES[len(losses) % 2])[0].item())
    assert said == []
    return [tensor.clone() for tensor in model.state_dict().values()], losses


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize(
    "train", [Train(), Train(gradient_accumulation=2), Train(gradient_shards=4), Train(clip_norm=0.1)]
)
def test_steps_as_graphs_train_the_same_bits(optimizer: str, train: Train) -> None:
    settings = Config(
        optimizer=Optimizer(name=optimizer, weight_decay=0.01),  # type: ignore[arg-type]
        train=dataclasses.replace(train, batch_size=BATCH),
        data=Data(augment=["flip", "crop"]),
    )
    one_by_one, losses = weights_and_losses(settings, graphs=False)
    as_graphs, same = weights_and_losses(settings, graphs=True)
    assert len(losses) == 14
    assert same == losses
    assert all(torch.equal(a, b) for a, b in zip(one_by_one, as_graphs, strict=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_graphs_are_left_out_and_it_is_said() -> None:
    settings = Config(runtime=Runtime(compile="graphs"), data=Data(source="shapes10"), model=Model())
    empty = Split(torch.empty(0, 3, 32, 32, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), torch.arange(0))
    dataset = Dataset("none", tuple("ab"), empty, empty, empty, "")
    chosen = choices.choose(settings, network(), dataset, own_group())
    assert not chosen.graphs
    assert str(chosen).endswith("no CUDA graphs, which need a GPU")
