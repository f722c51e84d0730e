"""A node that is slow by far is named, with what it does slowly."""

from __future__ import annotations

import pytest

from job.distributed.meeting import nodes


@pytest.mark.parametrize(
    ("changes", "slow"),
    [
        ({}, {}),
        ({2: {"gflops": 25}}, {}),
        ({2: {"gflops": 15}}, {"n2": "rank 2 multiplies at 15 GFLOP/s, and the median is 100"}),
        ({2: {"writes": 3}}, {}),
        ({2: {"writes": 1}}, {"n2": "rank 2 writes to its node's disk at 1 MB/s, and the median is 80"}),
        ({1: {"hears": 3}, 2: {"hears": 4}}, {"n1": "rank 1 hears the rank before it at 3 MB/s"}),  # both ends are n1's
        ({0: {"hears": 3}}, {"n0": "rank 0 hears", "n3": "rank 0 hears"}),
        ({rank: {"hears": 0.1} for rank in range(4)}, {f"n{rank}": "rank" for rank in range(4)}),
    ],
)
def test_a_node_is_slow_by_far_or_not_at_all(changes: dict[int, dict[str, float]], slow: dict[str, str]) -> None:
    rows = [
        {"node": f"n{rank}", "gflops": 100, "writes": 80, "hears": 900} | changes.get(rank, {}) for rank in range(4)
    ]
    found = nodes.slow_nodes(rows)
    assert found.keys() == slow.keys()
    for node, words in slow.items():
        assert found[node].startswith(words)
