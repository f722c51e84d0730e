"""The loop that the job is measured against: SimpleCNN as in the tutorial, one picture at a time through PIL.

    python tests/benchmarks/reference.py [--data.source folder --data.root PICTURES ...]

Prints images per second for each epoch, as one JSON object a line, and the test accuracy at the end.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms

from job import command_line, datasets
from job.datasets import Split

NORMALISE = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])


class Pictures(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Decoded pictures in memory, handed out as torchvision's CIFAR10 does: through PIL, one by one."""

    def __init__(self, split: Split) -> None:
        self.images = split.images.permute(0, 2, 3, 1)[split.indices].numpy()
        self.labels = split.labels[split.indices].tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return NORMALISE(Image.fromarray(self.images[index])), self.labels[index]


class Net(nn.Module):
    """The tutorial's network, in its own words."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        logits: Tensor = self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))
        return logits


def main() -> None:
    """Train as the notebook does."""
    settings = command_line.parse(sys.argv[1:], description=__doc__ or "")
    if settings.runtime.threads:
        torch.set_num_threads(settings.runtime.threads)
    dataset = datasets.load(settings.data, settings.train.seed, log=lambda _: None)
    torch.manual_seed(settings.train.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Net(len(dataset.classes)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.optimizer.learning_rate)
    train = DataLoader(Pictures(dataset.train), batch_size=settings.train.batch_size, shuffle=True)
    for _ in range(settings.train.epochs):
        began = time.perf_counter()
        total = 0.0
        for images, labels in train:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            total += loss.item()
        rate = len(dataset.train) / (time.perf_counter() - began)
        print(json.dumps({"images_per_second": rate, "loss": total / len(train)}), flush=True)
    correct = 0
    with torch.no_grad():
        for images, labels in DataLoader(Pictures(dataset.test), batch_size=settings.train.batch_size):
            correct += int((model(images.to(device)).argmax(1).cpu() == labels).sum())
    print(json.dumps({"accuracy": correct / len(dataset.test)}))


if __name__ == "__main__":
    main()
