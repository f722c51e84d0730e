"""What the launcher, Slurm or the user's shell said: rank, world size, what was asked for, when it ends.

Nobody else reads these variables. Nothing here needs torch.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from job.config import command_line
from job.config.errors import UserError
from job.config.settings import Runtime


def launch_rank() -> int:
    """Rank by the launcher's word, before any group exists."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Processes of this job, by the launcher's word."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def meeting_address() -> str:
    """Where the ranks meet: ``host:port``."""
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"


def secret() -> bytes | None:
    """What the launch, or the user, told every process of this job and nobody else."""
    return os.environ["RANKZERO_SECRET"].encode() if os.environ.get("RANKZERO_SECRET") else None


def run_name(config_name: str) -> str:
    """Name of the run directory when none is given. The same for a Slurm job that was requeued."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job_id = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    if job_id:
        return f"{os.environ.get('SLURM_JOB_NAME', config_name)}-{job_id}".replace("/", "-")
    return f"{config_name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def under_slurm() -> bool:
    return "SLURM_JOB_ID" in os.environ


def slurm_start() -> dict[str, Any]:
    """Which Slurm job this is, and how often it was requeued."""
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    return {"slurm_job": os.environ.get("SLURM_JOB_ID"), "slurm_restarts": restarts}


@dataclass(frozen=True)
class Allocation:
    """What the launcher or Slurm gave; None where nobody said."""

    nodes: int | None
    local_world_size: int | None
    """processes on this node"""
    gpus: int | None
    """on this node"""
    world_size: int | None
    """of the launch through slurm/*.sh"""


def allocation() -> Allocation:
    """The shape of the job so far as the environment knows it."""
    names = ("SLURM_JOB_NUM_NODES", "LOCAL_WORLD_SIZE", "SLURM_GPUS_ON_NODE", "RANKZERO_WORLD_SIZE")
    return Allocation(*(int(value) if (value := os.environ.get(name)) else None for name in names))


def end_time() -> float | None:
    """When the allocation ends, in seconds since 1970, if anybody says."""
    with contextlib.suppress(KeyError, ValueError):
        return float(os.environ.get("RANKZERO_END_TIME") or os.environ["SLURM_JOB_END_TIME"])
    return None


def die_with_launcher() -> None:
    """Ask the kernel for SIGTERM when the launcher dies: a killed ``accelerate launch`` leaves no orphans behind."""
    if by_launcher() and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def by_launcher() -> bool:
    return "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


@dataclass(frozen=True)
class Asked:
    """What whoever started this process asked for; None where nobody said."""

    processes: int | None = None
    cpu: bool | None = None


def asked() -> Asked:
    """How many processes on what, by the environment or by the launcher's own command line, one process up.

    ``accelerate launch --cpu --num_processes 2`` starts one process without a word (huggingface/accelerate#2741), and
    on a machine without GPUs ``--multi_gpu`` starts as many as asked; neither tells them what was asked.
    """
    told = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on") or None
    if "RANKZERO_WORLD_SIZE" in os.environ:
        return Asked(int(os.environ["RANKZERO_WORLD_SIZE"]), told)
    if "SLURM_STEP_NUM_TASKS" in os.environ and "RANK" not in os.environ and not by_launcher():
        return Asked(int(os.environ["SLURM_STEP_NUM_TASKS"]), told)
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return Asked(cpu=told)
    if "launch" not in words or not any("accelerate" in word for word in words[: words.index("launch")]):
        return Asked(cpu=told)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--num_processes", "--num-processes", type=int)
    parser.add_argument("--config_file", "--config-file")
    parser.add_argument("--cpu", "--use_cpu", "--use-cpu", action="store_true")
    parser.add_argument("--multi_gpu", "--multi-gpu", action="store_true")
    file: dict[str, Any] = {}
    with contextlib.suppress(argparse.ArgumentError, OSError, UserError):
        options, _ = parser.parse_known_args(words[words.index("launch") + 1 :])
        if options.config_file:
            file = command_line.load_yaml(Path(options.config_file).read_text(encoding="utf-8"), options.config_file)
        cpu = told or options.cpu or (False if options.multi_gpu else file.get("use_cpu"))
        return Asked(options.num_processes or file.get("num_processes"), cpu)
    return Asked(cpu=told)


def local_world_size() -> int:
    """Processes of this job on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def on_cpu(device: str, asked_cpu: bool | None, gpus: int) -> bool:
    if device == "cpu" or (device == "auto" and asked_cpu):
        return True
    needed = local_world_size()
    if gpus < needed and (device == "cuda" or asked_cpu is False or gpus):
        raise UserError(
            f"{needed} GPU{'s were' if needed > 1 else ' was'} asked for on {socket.gethostname()} and {gpus} found",
            "check nvidia-smi and the driver, ask for fewer processes, or use the CPU with launch/cpu.yaml "
            "or --runtime.device cpu",
        )
    return gpus == 0


def threads_for(settings: Runtime, *, alone: bool) -> int:
    given = os.environ.get("OMP_NUM_THREADS", "")
    if settings.threads is not None:
        return settings.threads
    # Launchers set 1 when nobody says; only a number that comes from elsewhere is the user's.
    if given.isdigit() and int(given) > 0 and (int(given) > 1 or not by_launcher()):
        return int(given)
    if alone:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, cores // local_world_size()))
