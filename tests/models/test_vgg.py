"""VGG is torchvision's, with a pool whose gradient is the same each time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from job.models import vgg


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_the_pool_as_a_product_is_the_pool(size: int) -> None:
    plain = nn.AdaptiveAvgPool2d(7)
    images = torch.randn(2, 512, size, size).to(memory_format=torch.channels_last)
    assert torch.allclose(vgg.MatrixPool(plain)(images), plain(images), atol=1e-6)


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_vgg_has_torchvisions_layout_and_logits(name: str) -> None:
    from torchvision.models import get_model

    ours = getattr(vgg, name)(1000).eval()
    theirs = get_model(name, weights=None, init_weights=False).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(ours(images), theirs(images), atol=1e-5)
