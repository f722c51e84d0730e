"""Run directories as the job leaves them, written in milliseconds for the tests of what reads them."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from job.config.plain import to_yaml
from job.config.settings import Config, Data, Model, SeedOf, Train
from job.data.datasets import Split
from job.evaluation import metrics, samples
from job.evaluation.predictions import Predictions


def write(
    path: Path,
    *,
    classes: tuple[str, ...] = ("ant", "bee", "cat"),
    images: int = 300,
    epochs: int = 3,
    finished: bool = True,
    resumed_at: tuple[int, ...] = (),
    loss: float | None = None,
    model: str = "simple_cnn",
    seed: int = 42,
    skill: float = 0.6,
    data: str = "fingerprint",
    rare: int = 1,
    **seed_of: int,
) -> Path:
    """A run of ``epochs`` epochs of 100 steps that is right on a share ``skill`` of ``images`` test images.

    ``loss`` replaces all training losses; what the test images are depends on ``data`` alone. Each class but the first
    has a ``rare``-th of its images. What ``seed_of`` names has these seeds in place of ``seed``.
    """
    path.mkdir(parents=True)
    settings = Config(
        model=Model(name=model),
        train=Train(epochs=epochs, seed=seed, seed_of=SeedOf(**seed_of)),
        data=Data(source="shapes10"),
    )
    (path / "config.yaml").write_text(to_yaml(dataclasses.replace(settings)))
    seconds = {"startup": 10.0, "training": 75.0, "checkpoints": 1.5, "evaluation": 5.0}
    starts: list[dict[str, Any]] = [
        {"attempt": i, "started": f"2026-01-0{i}T12:00:00+0000", "step": step, "began": 1000.0 * i}
        for i, step in enumerate((0, *resumed_at), 1)
    ]
    for start, later in pairwise(starts):  # killed 50 steps later
        start |= {"seconds": seconds, "reached": later["step"] + 50}
    environment = {
        "command": ["job/train.py", "--config", "a file.yaml"],
        "git_commit": "0123abcd",
        "world_size": 2,
        "hosts": ["node1", "node2"],
        "devices": ["Some GPU", "Some GPU"],
        "attempts": starts,
    }
    (path / "environment.json").write_text(json.dumps(environment))
    with (path / "metrics.jsonl").open("w") as file:
        for step in range(50, epochs * 100 + 1, 50):
            epoch, share = (step + 99) // 100, step / (epochs * 100)
            line: dict[str, Any] = {"split": "train", "step": step, "epoch": epoch, "loss": loss or 2 - share}
            file.write(json.dumps(line | {"learning_rate": 0.001, "images_per_second": 1000.0}) + "\n")
            if step % 100 == 0:
                line = {"split": "validation", "epoch": epoch, "step": step, "train_loss": loss or 2.1 - share}
                file.write(json.dumps(line | {"loss": 2.2 - share, "accuracy": skill * share, "seconds": 0.5}) + "\n")
    state = "finished" if finished else "running"
    status = {"state": state, "step": epochs * 100, "signal": None, "error": None, "attempt": len(starts)}
    status |= {"seconds": seconds}
    (path / "status.json").write_text(json.dumps(status))
    if finished:
        _finish(path, classes, images, epochs, skill, data, seed, rare)
    return path


def _finish(
    path: Path, classes: tuple[str, ...], images: int, epochs: int, skill: float, data: str, seed: int, rare: int
) -> None:
    labels = torch.arange(images) % len(classes)
    labels[torch.arange(images) // len(classes) % rare != 0] = 0
    draw = torch.Generator().manual_seed(seed)
    wrong = torch.rand(images, generator=draw) >= skill
    offsets = torch.randint(1, max(len(classes), 2), (images,), generator=draw)
    predicted = torch.where(wrong, (labels + offsets) % len(classes), labels)
    confidence = torch.rand(images, generator=draw)
    others = (1 - confidence) / max(len(classes) - 1, 1)
    probabilities = others[:, None].repeat(1, len(classes)).scatter_(1, predicted[:, None], confidence[:, None])
    predictions = Predictions(predicted, confidence, torch.ones(images), labels, wrong.long(), probabilities)
    pixels = torch.randint(0, 256, (images, 32, 32, 3), generator=draw, dtype=torch.uint8)
    samples.keep(path, Split(pixels, labels, torch.arange(images)), predictions)
    predictions.save(path)
    best = {"split": "validation", "epoch": epochs, "step": 100 * epochs, "train_loss": 1.0, "accuracy": skill}
    result = metrics.report(
        predictions,
        classes,
        split="test",
        world_size=2,
        checkpoint=None,
        epochs=epochs,
        best_validation=best,
        parameters=1234,
        data=data,
    )
    (path / "evaluation.json").write_text(json.dumps(result))
