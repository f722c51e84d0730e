"""A rank whose arithmetic or memory is wrong by one bit is named, and no rank is where there is none.

CROSS_CHECKS=100 plants so many faults of each kind, and makes ten times as many checks without.
"""

from __future__ import annotations

import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from injected import flip
from jobs import checkpoints, status
from support.forked import fork_server
from support.jobs import free_port
from torch import nn

from job.config.errors import FailedError
from job.config.settings import Config, Data, Runtime, Train
from job.data.batches import Batches
from job.data.datasets import Split
from job.distributed.group import Group, start
from job.training.choices import Choices
from job.training.ranks.cross_check import odd_ones_out
from job.training.step import Step

COUNT = int(os.environ.get("CROSS_CHECKS", "4"))


def make_step(group: Group) -> tuple[Step, list[Any]]:
    """A step of a small network with dropout and batch normalisation on mixed images, and this rank's parts."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (48, 32, 32, 3), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.randint(10, (48,), generator=generator), torch.arange(48))
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(512, 10)
    )  # fmt: skip
    settings = Config(train=Train(cross_check=1, mixup=0.2, batch_size=48), data=Data(augment=["flip", "rotate"]))
    own: dict[str, Any] = {"rank": group.rank, "world_size": group.world_size, "train": settings.train, "classes": 10}
    batches = Batches(split, settings.data, group.device, **own)
    step = Step(settings, model, batches, group, Choices(True, False, "flat"), pytest.fail)
    return step, next(batches.training(seed=1, epoch=1, start=0, batch_size=48, parts=1))


def plants(rank: int, ranks: int, port: int, folder: str) -> None:
    """What one rank does: compare, with one bit turned over on one of the ranks or with none."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in own.items()} | {"MASTER_ADDR": "127.0.0.1"})
    group = start(Runtime(device="cpu", threads=1), deterministic=True)
    step, parts = make_step(group)
    step(parts, 0, 0.001)
    before = {name: tensor.clone() for name, tensor in step.model.state_dict().items()}
    for number in range(10 * COUNT):
        step.cross_check(number)
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.model.state_dict().items()), "it left a trace"
    chance, found = random.Random(ranks), []
    for number, kind in enumerate(["weights", "gradient", "activation"] * COUNT):
        victim, bit, place = chance.randrange(ranks), chance.randrange(23, 31), chance.randrange(100)
        if rank == victim:
            flip(step.model, kind, bit, place)
        try:
            step.cross_check(number)
            found.append(f"{kind} {victim}: nothing")
        except FailedError as error:
            named = [int(each) for each in re.findall(r"rank (\d)", str(error))]
            expected = [0, 1] if kind == "weights" and ranks == 2 else [victim]  # of two nobody knows which is right
            if named != expected:
                found.append(f"{kind} {victim}: {error}")
        if rank == victim and kind == "weights":
            flip(step.model, kind, bit, place)
    Path(folder, f"{rank}.txt").write_text("\n".join(found))
    group.close()


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_whichever_rank_computes_or_holds_one_wrong_bit_is_named_by_all_and_nobody_where_there_is_none(
    ranks: int, tmp_path: Path
) -> None:
    port = free_port()
    started = [fork_server().Process(target=plants, args=(rank, ranks, port, str(tmp_path))) for rank in range(ranks)]
    for process in started:
        process.start()
    for process in started:
        process.join(600)
    assert [process.exitcode for process in started] == [0] * ranks
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(ranks)] == [""] * ranks


def test_what_always_differs_is_outvoted_and_of_two_nobody_knows() -> None:
    assert odd_ones_out([(1, 1), (1, 2), (1, 1)], [(1, 1), (1, 2), (1, 1)])[0] == [1]
    assert odd_ones_out([(1, 1), (1, 2)], [(1, 1), (1, 2)])[0] == [0, 1]
    assert odd_ones_out([(1, 1), (1, 2)], [(1, 1), (1, 1)])[0] == [1]
    assert odd_ones_out([(1, 1), (2, 1), (3, 1), (1, 1)], [(1, 1), (2, 1), (3, 1), (1, 1)])[0] == [0, 1, 2, 3]


def test_a_run_with_a_rank_that_miscomputes_ends_at_a_checkpoint_from_before_and_goes_on_to_the_same_bits(
    start, undisturbed, same, tmp_path
) -> None:
    run, thirds = tmp_path / "run", ("--train.batch_size", "33")
    options = (*thirds, "--train.cross_check", "3")
    job = start(*options, processes=3, faults=[{"do": "flip weights", "at": "step", "n": 15, "rank": 1}])
    assert job.wait() == [1, 1, 1], job.output
    (error,) = [line for line in job.output.splitlines() if line.startswith("error: ")]
    assert re.fullmatch(
        r"error: rank 1 of 3 on \S+ miscomputes: after step 15 it has not the weights of the other ranks", error
    )
    assert "Traceback" not in job.output
    assert status(run)["state"] == "failed"
    assert checkpoints(run)[-1] == "step-00000012", "compared before it was saved"
    assert start(*options, processes=3).wait() == [0, 0, 0]
    same(run, undisturbed(*thirds, processes=3))
