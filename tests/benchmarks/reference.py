"""The loop that the job is measured against: the tutorial's, one picture at a time through PIL, validated and tested.

    python tests/benchmarks/reference.py [--data.source folder --data.root PICTURES ...]

It takes the job's settings, of which it knows data, model.name, runtime.precision and the number of epochs. Prints a
JSON object for the first step, for each epoch and for the test.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.models import vgg16

from job.config import command_line
from job.config.settings import Config
from job.data import datasets
from job.data.datasets import Split

NORMALISE = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])


class Pictures(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Decoded pictures in memory, handed out as torchvision's CIFAR10 does: through PIL, one by one."""

    def __init__(self, split: Split) -> None:
        self.images = split.images[split.indices].numpy()
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


def network(name: str, classes: int) -> nn.Module:
    """The plain network of that name, with random weights."""
    if name == "simple_cnn":
        return Net(classes)
    model: nn.Module = vgg16(weights=None)
    model.set_submodule("classifier.6", nn.Linear(4096, classes))
    return model


def device_of(settings: Config) -> torch.device:
    """Where the settings put the work."""
    cuda = torch.cuda.is_available() and settings.runtime.device != "cpu"
    return torch.device("cuda" if cuda else "cpu")


def autocast(settings: Config) -> torch.autocast:
    """The arithmetic that the settings ask for."""
    return torch.autocast(device_of(settings).type, torch.bfloat16, enabled=settings.runtime.precision == "bf16")


def say(**values: object) -> None:
    """One JSON object on a line, at once."""
    print(json.dumps(values), flush=True)


def main() -> None:
    """Train, validate and test as the notebook does."""
    settings = command_line.parse(sys.argv[1:], description=__doc__ or "")
    dataset = datasets.load(settings.data, settings.train.seed, log=lambda _: None)
    torch.manual_seed(settings.train.seed)
    device, batch = device_of(settings), settings.train.batch_size
    model = network(settings.model.name, len(dataset.classes)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.optimizer.learning_rate)
    train = DataLoader(Pictures(dataset.train), batch_size=batch, shuffle=True)
    validation = DataLoader(Pictures(dataset.validation), batch_size=batch)
    test = DataLoader(Pictures(dataset.test), batch_size=batch)

    def predictions(loader: DataLoader[tuple[Tensor, int]]) -> Iterator[tuple[Tensor, Tensor]]:
        model.eval()
        with torch.no_grad(), autocast(settings):
            for images, labels in loader:
                yield model(images.to(device)).argmax(1).cpu(), labels
        model.train()

    first = True
    for _ in range(settings.train.epochs):
        began, total = time.perf_counter(), 0.0
        for images, labels in train:
            optimizer.zero_grad()
            with autocast(settings):
                loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            total += loss.item()
            if first:
                say(first_step=time.time())
                first = False
        trained = time.perf_counter()
        say(images_per_second=len(dataset.train) / (trained - began), loss=total / len(train))
        if len(dataset.validation):
            correct = sum(int((predicted == labels).sum()) for predicted, labels in predictions(validation))
            say(validation_accuracy=correct / len(dataset.validation), validation_seconds=time.perf_counter() - trained)
    right, counted = dict.fromkeys(dataset.classes, 0), dict.fromkeys(dataset.classes, 0)
    for predicted, labels in predictions(test):
        for guess, label in zip(predicted, labels, strict=True):
            right[dataset.classes[label]] += int(guess == label)
            counted[dataset.classes[label]] += 1
    say(
        accuracy=sum(right.values()) / len(dataset.test),
        class_accuracy={name: right[name] / counted[name] for name in counted if counted[name]},
        peak_device_bytes=torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    )


if __name__ == "__main__":
    main()
