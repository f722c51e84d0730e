"""Gradients of several ranks become one: the same bits, whichever way they travel."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from support.groups import alone
from support.jobs import metrics, run_job
from torch import nn

from job.config.settings import Config, Data, Train
from job.data.batches import Batches
from job.data.datasets import Dataset, Split
from job.training.choices import choose
from job.training.ranks.exchange import Exchange, add_in_pairs
from job.training.step import Step

HERE = alone(Accelerator(cpu=True), torch.device("cpu"))
NOISE = Split(torch.randint(0, 256, (14, 8, 8, 3), dtype=torch.uint8), torch.arange(14) % 2, torch.arange(14))
DATASET = Dataset("noise", ("a", "b"), NOISE, NOISE, NOISE, "")


def test_ranks_of_one_host_and_of_two_hosts_train_the_same_bits(small: list[str], tmp_path: Path) -> None:
    found = []
    for how, local in (("through shared memory", "2"), ("at once\n", "1")):
        run = tmp_path / local
        finished = run_job(
            "train.py",
            *(*small, "--train.epochs=1", "--train.batch_size=42", "--run.log_every=1", f"--run.dir={run}"),
            processes=2,
            LOCAL_WORLD_SIZE=local,
        )
        assert finished.returncode == 0, finished.stderr
        assert how in finished.stdout.replace(", each process on its own cores", "")
        losses = [line["loss"] for line in metrics(run, "train")]
        found.append((losses, (run / "model.safetensors").read_bytes()))
    assert found[0] == found[1]


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 6, 7, 8, 12])
def test_pieces_of_one_rank_add_up_as_rows_of_many_do(shards: int) -> None:
    torch.manual_seed(shards)
    rows = torch.randn(shards, 70_000) * 10.0 ** torch.randint(-3, 3, (shards, 70_000))
    expected = torch.empty(70_000)
    add_in_pairs(rows, expected)
    assert torch.allclose(expected.double(), rows.double().sum(0), atol=1e-3)
    weight, settings = nn.Parameter(torch.zeros(70_000)), Config(train=Train(batch_size=shards, gradient_shards=shards))
    exchange = Exchange(settings, [weight], HERE, choose(settings, nn.Linear(1, 1), DATASET, HERE))
    for _ in range(2):
        exchange.begin()
        for piece, row in enumerate(rows):
            weight.grad = row.clone()
            exchange.collect(piece, 1 / shards)
        exchange.give()
        assert torch.equal(weight.grad, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_step_in_shards_moves_running_statistics_once_by_the_mean_of_its_images(momentum: float | None) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4, momentum=momentum), nn.Flatten(), nn.Linear(4, 2))
    settings = Config(train=Train(batch_size=9, gradient_shards=3), data=Data())
    batches = Batches(NOISE, settings.data, HERE.device, rank=0, world_size=1)
    step = Step(settings, model, batches, HERE, choose(settings, model, DATASET, HERE), print)
    norm, moved = model[1], []
    for number, parts in enumerate(batches.training(seed=1, epoch=1, start=0, batch_size=9, parts=3)):
        before, expected = (norm.running_mean.clone(), norm.running_var.clone()), [0.0, 0.0]
        for part in parts:
            seen = model[0](batches.fetch(part.rows)[0]).detach().transpose(0, 1).flatten(1)
            if len(part.rows) > 1:  # one image has no variance, and moves nothing
                share = len(part.rows) * part.weight * (momentum or 1 / (number + 1))
                expected[0] = expected[0] + share * (seen.mean(1) - before[0])
                expected[1] = expected[1] + share * (seen.var(1) - before[1])
        step(parts, number, 0.01)
        assert torch.allclose(norm.running_mean, before[0] + expected[0], atol=1e-6)
        assert torch.allclose(norm.running_var, before[1] + expected[1], atol=1e-6)
        assert norm.num_batches_tracked == number + 1
        moved.append([len(part.rows) for part in parts])
    assert moved == [[3, 3, 3], [2, 2, 1]]


def test_statistics_of_each_process_are_said_where_there_are_several_and_no_shards() -> None:
    two, norm = dataclasses.replace(HERE, world_size=2), nn.BatchNorm2d(4)
    said = [
        "batch normalisation by what each process sees" in str(choose(Config(train=train), model, DATASET, group))
        for group, model, train in (
            (two, norm, Train()),
            (two, norm, Train(gradient_shards=2)),
            (two, nn.BatchNorm2d(4).eval(), Train()),
            (HERE, nn.BatchNorm2d(4), Train()),
        )
    ]
    assert said == [True, False, False, False]
