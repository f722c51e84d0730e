"""launch/multi_node.yaml, for people who start nodes by hand; needs no Slurm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.jobs import free_port

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
def test_two_machines_started_by_hand_form_one_job(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch/multi_node.yaml"]
    command += ["--num_processes", "2", "--main_process_port", str(free_port())]
    job = ["job/train.py", "--data.source", "shapes10", "--data.cache", str(tmp_path / "cache"), "--train.epochs", "1"]
    job += ["--run.dir", str(tmp_path / "run"), "--run.trackers", "[]", "--runtime.threads", "1"]
    machines = [
        subprocess.Popen(
            [*command, "--machine_rank", rank, *job],
            cwd=ROOT,
            env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "01"
    ]
    said = [machine.communicate(timeout=280)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["world_size"] == 2
