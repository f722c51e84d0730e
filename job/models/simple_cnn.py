"""The two-convolution network of PyTorch's "Training a classifier" tutorial."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class SimpleCNN(nn.Module):
    """The network of PyTorch's "Training a classifier" tutorial: 62,006 parameters at ten classes.

    Takes [b, 3, 32, 32] floats, gives [b, classes] logits.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, images: Tensor) -> Tensor:
        # ReLU after the pool gives the same values as before it, on a quarter of the elements.
        x = F.relu(F.max_pool2d(self.conv1(images), 2))  # [b, 6, 14, 14]
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # [b, 16, 5, 5]
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        logits: Tensor = self.fc3(x)
        return logits
