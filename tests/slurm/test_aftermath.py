"""What launch/aftermath.py makes of what Slurm says where the throw-away cluster cannot: memory that has a limit."""

from __future__ import annotations

import sys

import pytest
from shipped import ROOT

sys.path.insert(0, str(ROOT / "launch"))
import aftermath


@pytest.mark.parametrize(
    ("line", "starved"),
    [
        ("srun: error: n2: task 0: Out Of Memory\n", True),
        (
            "slurmstepd: error: Detected 1 oom_kill event in StepId=7.1..\n",
            True,
        ),
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.1\n", True),
        ("slurmstepd: error: StepId=7.1 exceeded memory limit (460800 > 450000), being killed\n", True),
        ("srun: error: n2: task 0: Killed\n", False),
    ],
)
def test_out_of_memory_is_told_from_other_ends(line: str, starved: bool) -> None:
    assert aftermath.out_of_memory(["srun: launch/slurm: _step_signal: Terminating StepId=7.1\n", line]) is starved


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            " MinMemoryNode=450M Min",
            "--mem=450M was not enough: ask for more, such as --mem=900M",
        ),
        (" MinMemoryCPU=1.50G ", "--mem-per-cpu=1.50G was not enough: ask for more, such as --mem-per-cpu=3G"),
        (" MinMemoryNode=0 ", "the memory of its node was not enough: ask for a larger one, or use more nodes"),
    ],
)
def test_what_to_ask_for_instead_is_said(record: str, said: str) -> None:
    assert aftermath.more_memory(record) == said
