"""What a launcher, a pod or a forgotten export says of a process's place is checked together, and spoken of."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from support.jobs import accelerate, environment, run_job, the_error

from job.config.errors import UserError
from job.config.settings import Runtime
from job.distributed import cores, launcher

MEETING = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch):
    """Replace the environment."""

    def tell(**variables: str) -> None:
        monkeypatch.setattr(os, "environ", environment(**variables))

    return tell


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"RANK": "1"}, "RANK=1 in the environment: there is no WORLD_SIZE: unset RANK, or start with accelerate"),
        ({"RANK": "-1"}, "RANK is no whole number"),
        ({"RANK": "²"}, "RANK is no whole number"),
        ({"RANK": "9" * 5001}, "RANK is no whole number"),
        ({"LOCAL_RANK": "1"}, "there is no WORLD_SIZE"),
        ({"LOCAL_WORLD_SIZE": "4"}, "there is no WORLD_SIZE"),
        ({"PMI_SIZE": "4"}, "there is no WORLD_SIZE: unset PMI_SIZE"),
        ({"RANK": "1", "WORLD_SIZE": "1"}, "count from 0 to WORLD_SIZE - 1: unset RANK WORLD_SIZE"),
        ({"WORLD_SIZE": "0"}, "count from 0"),
        ({"WORLD_SIZE": "2", **MEETING}, "there is no RANK: unset WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", **MEETING}, "count from 0"),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1", **MEETING}, "local ranks count"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "29500"}, "there is no MASTER_ADDR"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": ""}, "there is no MASTER_PORT"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "65536"}, "MASTER_PORT=65536"),
        ({"RANKZERO_WORLD_SIZE": "two"}, "RANKZERO_WORLD_SIZE=two in the environment is no whole number: unset RANKZ"),
        ({"RANKZERO_END_TIME": "soon"}, "unset RANKZERO_END_TIME"),
    ],
)
def test_a_place_that_cannot_be_is_refused_with_the_variables_to_unset_and_then_forgotten(
    variables, says, told
) -> None:
    told(**variables)
    with pytest.raises(UserError) as caught:
        launcher.settle(joins=True)
    assert says in str(caught.value)
    assert launcher.launch_rank() == 0  # so that it is spoken of
    told(**variables)
    launcher.settle(joins=False)
    assert (launcher.launch_rank(), launcher.world_size(), launcher.asked().processes) == (0, 1, 1)


def test_what_says_that_a_process_is_alone_is_ignored_and_what_says_the_same_for_several_is_completed(told) -> None:
    for alone in ({"RANK": ""}, {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, {"WORLD_SIZE": " 1 "}):
        told(**alone, MASTER_PORT="none")
        launcher.settle(joins=True)
        assert not set(os.environ) & set(launcher.RANKS)  # or accelerate would look for others
    told(RANK="2", WORLD_SIZE="3", **MEETING)  # a pod of three, each with one process
    launcher.settle(joins=True)
    assert [os.environ[name] for name in launcher.RANKS] == ["2", "3", "0", "1"]


def test_numbers_of_threads_that_a_shell_said_are_taken_ignored_or_refused(told) -> None:
    for text, threads in (("3", 3), ("4,2", 4), ("", 1), ("0", 1), ("many", 1), ("-2", 1), ("²", 1)):
        told(OMP_NUM_THREADS=text)
        assert cores.threads_for(Runtime(), alone=True) == threads
    told(OMP_NUM_THREADS="1000000")
    with pytest.raises(UserError, match="OMP_NUM_THREADS=1000000 in the environment is more than 1024: unset"):
        cores.threads_for(Runtime(), alone=True)


def test_a_mistake_is_spoken_of_at_once_by_whoever_is_told_to_be_rank_one_of_a_group_that_nobody_launched() -> None:
    began = time.monotonic()
    pod = {"RANK": "1", "WORLD_SIZE": "3", **MEETING}
    assert "unset RANK" in the_error(run_job("train.py", "--check", RANK="1"))
    assert "unknown key" in the_error(run_job("train.py", "--train.epoks=3", **pod))
    assert "unknown key" in the_error(run_job("train.py", "--check", "--train.epoks=3", **pod))
    for command in ("watch.py", "compare.py", "report.py"):
        assert "is no run directory" in the_error(run_job(command, "/nonexistent", **pod))
    assert time.monotonic() - began < 30
    assert run_job("prepare.py", "--data.source=shapes10", **pod).returncode == 0


def test_what_an_accelerate_configuration_asks_of_training_is_not_done_and_said_in_one_line(
    small: list[str], tmp_path: Path
) -> None:
    wanted = ("USE_DEEPSPEED", "USE_FSDP", "USE_MEGATRON_LM", "USE_PARALLELISM_CONFIG", "CPU_AFFINITY")
    variables = {f"ACCELERATE_{name}": "true" for name in wanted} | {"ACCELERATE_MIXED_PRECISION": "fp8"}
    variables |= {"ACCELERATE_TORCH_DEVICE": "cuda:9", "ACCELERATE_USE_CPU": "perhaps", "ACCELERATE_DEBUG_MODE": "?"}
    done = run_job("train.py", *small, "--train.epochs=1", f"--run.dir={tmp_path / 'run'}", **variables)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("not used: "))
    assert all(f"ACCELERATE_{name}=true" in line for name in wanted)
    assert "ACCELERATE_MIXED_PRECISION=fp8" in line


def test_processes_for_gpus_that_somebody_told_accelerate_of_are_no_processes_on_a_cpu(tmp_path: Path) -> None:
    file = tmp_path / "accelerate" / "default_config.yaml"
    file.parent.mkdir()
    file.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nnum_processes: 2\nnum_machines: 1\n"
        "use_cpu: false\nmixed_precision: bf16\nfsdp_config: {fsdp_version: 2}\n"
    )
    script = Path(launcher.__file__).parents[1] / "train.py"
    done = accelerate("-q", "--main_process_port=0", script, typed=True, HF_HOME=str(tmp_path), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "2 GPUs were asked for on" in errors[0]
    assert f"0 found ({file})" in errors[0]


def test_one_process_on_several_allocated_nodes_is_told_of_the_idle_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    assert launcher.not_used("fp32") == ["not used: 1 of 2 allocated nodes; sbatch slurm/*.sh starts processes on each"]
    monkeypatch.setenv("RANKZERO_WORLD_SIZE", "1")  # as on the one that is left of two
    assert launcher.not_used("fp32") == []
