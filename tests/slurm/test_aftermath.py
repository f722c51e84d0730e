"""What launch/aftermath.py makes of what Slurm says where the throw-away cluster cannot: memory that has a limit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

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
    assert aftermath.more_memory(record, 0) == said
    seen = " was not enough (a rank had taken 412 MB when it last said so): ask"
    assert aftermath.more_memory(record, 412_000_000) == said.replace(" was not enough: ask", seen)


@pytest.mark.parametrize(
    ("environment", "left", "said"),
    [
        (None, "n1 n2 n3", ""),
        ({"slow_nodes": {}}, "n1 n2 n3", ""),
        ({"slow_nodes": {"n2": "rank 1 multiplies"}}, "n1 n3", "slurm: n2 is left out: rank 1 multiplies\n"),
        ({"slow_nodes": {"n9": "of another allocation"}}, "n1 n2 n3", ""),
        ({"slow_nodes": dict.fromkeys(("n1", "n2", "n3"), "all of them")}, "n1 n2 n3", ""),
        ({"slow_nodes": "damaged"}, "n1 n2 n3", ""),
    ],
)
def test_nodes_that_were_slow_are_left_out_of_the_next_start(
    environment: object, left: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if environment is not None:
        (tmp_path / "environment.json").write_text(json.dumps(environment))
    assert " ".join(aftermath.healthy(tmp_path, ("n1", "n2", "n3"))) == left
    assert capfd.readouterr().err == said


@pytest.mark.parametrize(
    ("error", "left"),
    [
        ("rank 1 of 3 on n2 miscomputes: after step 9 it has not the gradient of the other ranks", "n1 n3"),
        ("rank 0 of 2 on n1 or rank 1 of 2 on n2 miscomputes: after step 9 they have not the same", "n1 n2 n3"),
        ("rank 1 failed: ValueError: rank 1 of 3 on n2 miscomputes", "n1 n2 n3"),
        (None, "n1 n2 n3"),
    ],
)
def test_the_node_of_a_rank_that_miscomputes_is_named_and_left_out_where_it_is_known(error, left, tmp_path) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"state": "failed", "error": error}))
    assert " ".join(aftermath.healthy(tmp_path, ("n1", "n2", "n3"))) == left
    named = aftermath.LOST.findall(f"error: {error}\n")
    assert named == ([("1", error.removeprefix("rank 1 of 3 on n2 "))] if left == "n1 n3" else [])


def test_who_never_came_is_named_and_who_waited_is_not() -> None:
    (lost,) = aftermath.LOST.findall("error: rank 3, 4 of 8 never came to n1:15007 (Timed out): see whether\n")
    assert lost[0] == "3"
    assert lost[1].startswith("never came to n1:15007")
    assert not aftermath.LOST.findall("error: rank 1 of 8 did not meet all others at n1:15007 (refused): see\n")


def test_what_slurm_wrote_to_a_ranks_own_errors_alone_is_heard_and_what_the_job_wrote_is_not(tmp_path: Path) -> None:
    line = "slurmstepd-n1: error: StepId=1.0 exceeded memory limit (530329600 > 524288000), being killed"
    (tmp_path / "rank-1.err").write_text(f"warning: near the memory limit\n{line}\n")
    allocation = SimpleNamespace(world_size=2)
    start = aftermath.Start(allocation, tmp_path, tmp_path, {}, None)  # type: ignore[arg-type]
    assert aftermath.managers_words(start) == [line]
    assert aftermath.out_of_memory([line])
