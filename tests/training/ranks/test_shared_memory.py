"""Rows in shared memory add up to the same bits on every rank, in the order of ranks."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from support.jobs import free_port

from job.config.settings import Runtime
from job.distributed.group import start
from job.training.ranks.exchange import add_in_order
from job.training.ranks.shared_memory import SharedRows


def addend(rank: int, turn: int) -> torch.Tensor:
    """Rows that give other bits when they are added in another order."""
    generator = torch.Generator().manual_seed(100 * turn + rank)
    return torch.randn(2, 1000, generator=generator) * 10.0 ** torch.randint(-3, 3, (2, 1000), generator=generator)


def in_order(ranks: int, turn: int) -> torch.Tensor:
    """The sum of all ranks' rows, one after the other."""
    total = torch.zeros(1000)
    for row in (row for rank in range(ranks) for row in addend(rank, turn)):
        total += row
    return total


def summed(rank: int, ranks: int, port: int, folder: str) -> None:
    """What one rank does."""
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in group.items()} | {"MASTER_ADDR": "127.0.0.1"})
    group = start(Runtime(device="cpu", threads=1), deterministic=True)
    rows = SharedRows(group, 2, 1000, patience=60)
    sums = []
    for turn in range(20):
        rows.own[turn % 2].copy_(addend(rank, turn))
        total = torch.empty(1000)
        add_in_order(rows.all(turn % 2), total)
        sums.append(total)
    torch.save(sums, Path(folder, f"{rank}.pt"))
    group.close()


@pytest.mark.parametrize("ranks", [2, 3])
def test_shared_rows_are_summed_in_rank_order_on_every_rank_turn_after_turn(ranks: int, tmp_path: Path) -> None:
    context, port = multiprocessing.get_context("spawn"), free_port()
    started = [context.Process(target=summed, args=(rank, ranks, port, str(tmp_path))) for rank in range(ranks)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0] * ranks
    for rank in range(ranks):
        sums = torch.load(tmp_path / f"{rank}.pt", weights_only=True)  # noqa: TID251 (what this test wrote)
        assert all(torch.equal(total, in_order(ranks, turn)) for turn, total in enumerate(sums))
