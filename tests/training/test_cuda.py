"""The way through a GPU, walked without one: tensors that have a device and a shape, and no memory.

Any operation whose tensors lie on two devices is refused as it would be there. Only the backward pass needs a real one:
gradients are put in place by hand, where and as it would leave them. (SGD's fused kernel has no such form in torch.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from support.groups import alone
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from job.config.settings import Config, Data, Model, Optimizer, Runtime, Train
from job.data.batches import Batches
from job.data.datasets import Dataset, Split, to_device
from job.distributed.group import Group
from job.evaluation.predictions import predict
from job.models import registry
from job.models.fast import form
from job.runs import files
from job.training import optimizers
from job.training.choices import choose
from job.training.step import Step

CUDA = torch.device("cuda", 0)
IMAGES = 10
BATCH = 4


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes the group of one process on a GPU that is not there."""
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)

    def make(precision: str) -> Group:
        accelerator = Accelerator(cpu=True, mixed_precision={"fp32": "no"}.get(precision, precision))
        for state in (PartialState, AcceleratorState):
            monkeypatch.setitem(state._shared_state, "device", CUDA)
        return alone(accelerator, CUDA)

    yield make
    monkeypatch.undo()  # or it would put the device back behind the reset, into a state that is half made
    AcceleratorState._reset_state(reset_partial_state=True)


def dataset(size: int = 32) -> Dataset:
    images, labels = torch.zeros(IMAGES, size, size, 3, dtype=torch.uint8), torch.zeros(IMAGES, dtype=torch.int64)
    split = Split(images, labels, torch.arange(IMAGES))
    return Dataset("none", tuple("abcdefghij"), split, split, split, "")


def backward(loss: torch.Tensor, model: nn.Module) -> None:
    """Leave at each parameter the kind of gradient that ``loss`` would."""
    assert loss.device == CUDA
    assert loss.grad_fn is not None
    for parameter in model.parameters():
        assert parameter.device == CUDA
        parameter.grad = torch.zeros_like(parameter)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the other tests walk this way")
@pytest.mark.parametrize("name", ["simple_cnn", "vgg16", "vgg16_bn"])
@pytest.mark.parametrize(
    ("precision", "augment", "optimizer", "train"),
    [
        ("fp32", [], "adam", Train(batch_size=BATCH)),
        ("bf16", ["flip", "erasing"], "adamw", Train(batch_size=BATCH, clip_norm=1.0, label_smoothing=0.1, mixup=0.2)),
        ("bf16", ["flip", "crop"], "adamw", Train(batch_size=BATCH, gradient_accumulation=2, cutmix=1.0)),
        ("fp32", ["rotate", "crop", "color"], "adam", Train(batch_size=BATCH, gradient_shards=2)),
    ],
)
def test_every_tensor_of_a_step_an_evaluation_and_a_checkpoint_is_on_the_device_where_it_must_be(
    name: str,
    precision: str,
    augment: list[Any],
    optimizer: str,
    train: Train,
    group: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Config(
        model=Model(name=name),  # type: ignore[arg-type]
        data=Data(augment=augment),
        train=train,
        optimizer=Optimizer(name=optimizer),  # type: ignore[arg-type]
        runtime=Runtime(precision=precision, data_on="device"),  # type: ignore[arg-type]
    )
    model = registry.build(settings.model, classes=10, image_size=32, seed=1)
    form.fast(model, settings, image_size=32, device=CUDA)
    own = group(precision)
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: backward(loss, model))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to(CUDA)
        there = to_device(dataset(), CUDA)
        choices = choose(settings, model, there, own)
        assert choices.images_on_device
        batches = Batches(there.train, settings.data, CUDA, rank=0, world_size=1, train=train, classes=10)
        step = Step(settings, model, batches, own, choices, pytest.fail)
        parts = settings.parts(1)
        steps = batches.training(seed=1, epoch=1, start=0, batch_size=BATCH, parts=parts)
        losses = [step(part, number, 0.1) for number, part in enumerate(steps)]
        assert len(losses) == 3
        assert {(loss.device, loss.dtype) for loss in losses} == {(CUDA, torch.float64)}
        state = optimizers.tensors_of(model, step.optimizer)
        assert {t.device for key, t in state.items() if not key.endswith("/step")} == {CUDA}
        optimizers.restore(model, step.optimizer, files.to_host(state))
        assert {t.device for t in step.optimizer.state[next(model.parameters())].values() if t.dim()} == {CUDA}
        assert {t.device.type for t in form.own_weights(model.state_dict(), model).values()} == {"cpu"}
        with pytest.raises(DataDependentOutputException):  # where it reads what the device found: there is nothing
            predict(model, batches, there.test.labels[there.test.indices], own)
