"""Random numbers drawn at once are those that nn.Dropout draws one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from job.models.fast import dropout
from job.models.fast.form import by_intel


def dropped(layer: nn.Module, kind: torch.dtype, *shape: int) -> list[Tensor]:
    """What the layer makes of ones, their gradient, and the random number that comes next."""
    torch.manual_seed(7)
    x = torch.ones(shape, dtype=kind, requires_grad=True)
    out = layer(x)
    out.sum().backward()
    assert x.grad is not None
    return [out.detach(), x.grad, torch.rand(1)]


@pytest.mark.skipif(by_intel(), reason="torch draws at once itself there, and other numbers")
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.5, 0.1, 0.3, 0.9, 0.0, 1.0])
@pytest.mark.parametrize("shape", [(128, 512), (37, 5), (1, 3), (0, 4)])
def test_dropout_drawn_at_once_is_nn_dropout_bit_for_bit(p: float, kind: torch.dtype, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Dropout(p))
    expected = dropped(model, kind, *shape)
    assert dropout.use(model)
    assert type(model[0]) is dropout.Dropout
    for a, b in zip(expected, dropped(model, kind, *shape), strict=True):
        assert torch.equal(a, b)


def test_dropout_drawn_at_once_keeps_its_share_and_the_mean_and_only_while_training() -> None:
    layer = dropout.Dropout(0.25)
    out, gradient, _ = dropped(layer, torch.float32, 1000, 100)
    assert torch.equal(out, gradient)
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert float(out.mean()) == pytest.approx(1, abs=0.01)
    x = torch.randn(3, 4)
    assert torch.equal(layer.eval()(x), x)
