"""A plain loop over the batches that the job trains on: what the job must say as well, to rounding.

    python tests/benchmarks/exactness.py [the job's settings]

Pictures are taken one by one, normalised in two steps, and go through the tutorial's network or torchvision's VGG16 in
contiguous memory and fp32 with Adam as it comes. Only initial weights, the order of the pictures and the seed of each
step's dropout are the job's. Prints the loss of each step and the test accuracy as one JSON object.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import torch
from reference import Pictures, device_of, network, say
from torch.nn import functional as F
from torch.utils.data import DataLoader

from job.config import command_line
from job.data import batches, datasets
from job.data.augment import address
from job.models import registry


def main() -> None:
    """Train one epoch, then test."""
    settings = command_line.parse(sys.argv[1:], description=__doc__ or "")
    torch.backends.cudnn.allow_tf32 = False
    seed, batch, device = settings.train.seed, settings.train.batch_size, device_of(settings)
    dataset = datasets.load(settings.data, seed, log=lambda _: None)
    pictures = Pictures(dataset.train)
    place = {int(row): i for i, row in enumerate(dataset.train.indices)}
    model = network(settings.model.name, len(dataset.classes))
    theirs = registry.build(settings.model, classes=len(dataset.classes), image_size=32, seed=seed)
    model.load_state_dict(theirs.state_dict())
    model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.optimizer.learning_rate)
    order = [place[int(row)] for row in batches.epoch_order(dataset.train.indices, seed=seed, epoch=1)]
    losses = []
    for step in range(-(-len(order) // batch)):
        drawn = [pictures[i] for i in order[step * batch : (step + 1) * batch]]
        images = torch.stack([image for image, _ in drawn]).to(device)
        labels = torch.tensor([label for _, label in drawn]).to(device)
        torch.manual_seed(address(seed, "step", step, 0))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(images.to(device)).argmax(1).cpu() == labels).sum())
            for images, labels in DataLoader(Pictures(dataset.test), batch_size=500)
        )
    say(losses=losses, accuracy=right / len(dataset.test))


if __name__ == "__main__":
    main()
