"""The process group: who works for whom."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.forked import fork_server
from support.jobs import environment, free_port

from job.config.errors import UserError


def one_of_four(rank: int, port: int, seen: Path) -> None:
    """A process of two nodes with two processes each."""
    os.environ.clear()
    os.environ.update(environment(RANK=str(rank), LOCAL_RANK=str(rank % 2), WORLD_SIZE="4", LOCAL_WORLD_SIZE="2"))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    from job.config.settings import Runtime
    from job.distributed import group

    ours = group.start(Runtime(device="cpu"), deterministic=True)

    def fails_on_the_second_node() -> str:
        if ours.rank == 2:
            raise UserError("no data on the second node")
        return ""

    where = ours.once_a_node(lambda: f"made by {ours.rank}")
    with pytest.raises(UserError, match="no data on the second node"):
        ours.once_a_node(fails_on_the_second_node)
    (seen / str(rank)).write_text(where)
    ours.close()


def test_work_once_a_node_is_done_by_its_first_process_for_all_of_them_and_fails_for_everybody(tmp_path: Path) -> None:
    port = free_port()
    ranks = [fork_server().Process(target=one_of_four, args=(rank, port, tmp_path)) for rank in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0] * 4
    assert [(tmp_path / str(rank)).read_text() for rank in range(4)] == ["made by 0"] * 2 + ["made by 2"] * 2
