"""Fetch and verify the data set and the weights of a configuration, so that the job itself needs no network.

Run it where there is one, such as the login node:
  python job/prepare.py --config configs/vgg16.yaml

Its own options:
  --config FILE         the configuration whose data and weights are fetched (default: configs/simple_cnn.yaml)
The settings follow, by section; those of data and model matter here.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: `job` is found from anywhere, and what lies in job/ shadows nothing
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from job.config import command_line
from job.distributed import ending


def main(argv: list[str]) -> int:
    """Prepare data, then weights; returns the exit status."""
    settings = command_line.parse(argv, description=__doc__ or "")

    from job.data import datasets
    from job.display.console import Console
    from job.models import registry, weights
    from job.runs import restored

    registry.builder(settings.model.name)
    console = Console()
    dataset = datasets.load(settings.data, settings.train.seed_for("split"), console.bar, console.say)
    console.say(f"{dataset}, verified")
    for note in dataset.notes:
        console.warn(note)
    path = weights.fetch(settings.model, download=settings.data.download)
    if path is not None:
        weights.pretrained(settings.model, restored.build(settings, dataset.classes), download=False)
        console.say(f"weights {path}: fit {settings.model.name}")
    console.say("ready: training needs no network now")
    return 0


if __name__ == "__main__":
    ending.entry(main)
