"""What the launcher, Slurm or the user's shell said: rank, world size, what was asked for, when it ends.

Nobody else reads these variables. Nothing here needs torch.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import os
import re
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from job.config.errors import UserError
from job.config.yaml_text import load_yaml

RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""accelerate forms a group by these too, with ranks that the job knows nothing of"""


def settle(*, joins: bool) -> None:
    """Check what the environment says of this process's place among others, and leave there what holds.

    A process that is alone keeps none of it, so that nobody looks for others; and one of a command that ``joins`` no
    group is alone, whatever a shell, a pod or a launcher said. Raises UserError for a place that cannot be; then this
    process speaks for itself.
    """
    said = {name: value.strip() for name in (*RANKS, *MPI_SIZES) if (value := os.environ.pop(name, "")).strip()}
    if not joins:
        os.environ["RANKZERO_WORLD_SIZE"] = "1"
        return
    _whole("RANKZERO_WORLD_SIZE"), end_time()
    problem = _problem(said)
    if problem:
        raise UserError(
            f"{', '.join(f'{name}={value}' for name, value in said.items())} in the environment: {problem}",
            f"unset {' '.join(said)}, or start with accelerate launch or torchrun, which say all that is needed",
        )
    if int(said.get("WORLD_SIZE", 1)) > 1:
        os.environ |= {name: said.get(name, default) for name, default in zip(RANKS, "0101", strict=True)}


def _problem(said: dict[str, str]) -> str | None:
    """Why a process cannot have the place that it is ``said`` to have."""
    if wrong := [name for name, value in said.items() if not re.fullmatch("[0-9]{1,9}", value)]:
        return f"{wrong[0]} is no whole number"
    rank, world, local_rank, local_world = (int(said.get(name, d)) for name, d in zip(RANKS, "0101", strict=True))
    if "WORLD_SIZE" not in said and (
        rank or local_rank or local_world > 1 or any(int(said.get(n, 1)) > 1 for n in MPI_SIZES)
    ):
        return "there is no WORLD_SIZE"
    if not 1 <= local_world <= world or rank >= world or local_rank > rank:
        return "ranks count from 0 to WORLD_SIZE - 1"
    if "LOCAL_WORLD_SIZE" in said and local_rank >= local_world:
        return "local ranks count from 0 to LOCAL_WORLD_SIZE - 1"
    if world > 1:
        if missing := [n for n in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not (said.get(n) or os.environ.get(n))]:
            return f"there is no {missing[0]}"
        if not re.fullmatch("[0-9]{1,5}", port := os.environ["MASTER_PORT"].strip()) or not 0 < int(port) < 1 << 16:
            return f"MASTER_PORT={port} is no port, which is a number from 1 to 65535"
    return None


def _whole(name: str) -> int | None:
    """The number that an environment variable holds. Raises UserError for anything else."""
    value = os.environ.get(name, "").strip()
    if value and not re.fullmatch("[0-9]{1,12}", value):
        raise UserError(f"{name}={value} in the environment is no whole number", f"unset {name}")
    return int(value) if value else None


def launch_rank() -> int:
    """Rank by the launcher's word, before any group exists."""
    return int(os.environ.get("RANK", "0"))


def speaks() -> bool:
    """Whether this process says what is wrong with its command before the ranks have met.

    That is rank zero; but where no launcher ends all ranks as soon as one ends, nobody knows whether there is one.
    """
    rank = os.environ.get("RANK", "0")
    return rank == "0" or not ("TORCHELASTIC_RUN_ID" in os.environ or os.environ.get("SLURM_PROCID") == rank)


def world_size() -> int:
    """Processes of this job, by the launcher's word."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def meeting_address() -> str:
    """Where the ranks meet: ``host:port``."""
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"


def node() -> str:
    """What Slurm, or else this host, calls itself."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def secret() -> bytes | None:
    """What the launch, or the user, told every process of this job and nobody else."""
    return os.environ["RANKZERO_SECRET"].encode() if os.environ.get("RANKZERO_SECRET") else None


def run_name(config_name: str) -> str:
    """Name of the run directory when none is given. The same for a Slurm job that was requeued."""
    if job := slurm_job():
        return f"{os.environ.get('SLURM_JOB_NAME', config_name)}-{job['job']}".replace("/", "-")
    return f"{config_name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def slurm_job() -> dict[str, Any] | None:
    """What tells this start of a Slurm job, ``<array>_<task>`` in an array, from others; None outside Slurm."""
    array, task, job = (os.environ.get(f"SLURM_{name}") for name in ("ARRAY_JOB_ID", "ARRAY_TASK_ID", "JOB_ID"))
    own = {"job": f"{array}_{task}" if array and task else job, "restarts": _whole("SLURM_RESTART_COUNT") or 0}
    return {"cluster": os.environ.get("SLURM_CLUSTER_NAME", ""), **own} if job else None


def under_slurm() -> bool:
    return bool(os.environ.get("SLURM_JOB_ID"))


def started_by() -> str:
    """What started this process: "slurm", "torchrun", "accelerate" or "python"."""
    if under_slurm():
        return "slurm"
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return "python"
    return "accelerate" if any(name.startswith("ACCELERATE_") for name in os.environ) else "torchrun"


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
    return Allocation(*map(_whole, names))


def began() -> int | None:
    """When launch/ called for this process, in seconds since 1970; None where it did not."""
    return _whole("RANKZERO_BEGAN")


def end_time(run: Path | None = None) -> int | None:
    """When the allocation ends, in seconds since 1970, if anybody says.

    launch/slurm.py leaves word in the directory ``run`` when the time limit was raised.
    """
    end = _whole("RANKZERO_END_TIME") or _whole("SLURM_JOB_END_TIME")
    if end and run:
        with contextlib.suppress(OSError, ValueError):
            end = max(end, int((run / "slurm" / "end-time").read_text(encoding="utf-8")))
    return end


def node_disk() -> Path | None:
    """Where, on its own disk, this node may keep images, if the launch said so."""
    return Path(os.environ["RANKZERO_NODE_DISK"]) if os.environ.get("RANKZERO_NODE_DISK") else None


def die_with_launcher() -> None:
    """Ask the kernel for SIGTERM when the launcher dies: a killed ``accelerate launch`` leaves no orphans behind."""
    if by_launcher():
        die_with_parent()


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies, however: this process saves then, and ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def by_launcher() -> bool:
    return "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


_CHANGES_TRAINING = {
    f"ACCELERATE_{name}"
    for name in ("MIXED_PRECISION", "DYNAMO_BACKEND", "GRADIENT_ACCUMULATION_STEPS", "TORCH_DEVICE", "CPU_AFFINITY")
}


@dataclass(frozen=True)
class Asked:
    """What whoever started this process asked for; None where nobody said."""

    processes: int | None = None
    cpu: bool | None = None
    by: str = ""
    """the option, variable or file that says how many"""


def asked() -> Asked:
    """How many processes on what, by the environment or by the launcher's own command line, one process up.

    ``accelerate launch --cpu --num_processes 2`` starts one process without a word (huggingface/accelerate#2741), and
    on a machine without GPUs ``--multi_gpu`` starts as many as asked; neither tells them what was asked.
    """
    told = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on") or None
    for name in ("RANKZERO_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        tasks = _whole(name)
        if tasks is not None and (name.startswith("RANKZERO") or not (by_launcher() or "RANK" in os.environ)):
            return Asked(tasks, told, name)
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return Asked(cpu=told)
    if "launch" not in words or not any("accelerate" in word for word in words[: words.index("launch")]):
        return Asked(cpu=told)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--num_processes", "--num-processes", type=int)
    parser.add_argument("--config_file", "--config-file", type=Path)
    parser.add_argument("--cpu", "--use_cpu", "--use-cpu", action="store_true")
    parser.add_argument("--multi_gpu", "--multi-gpu", action="store_true")
    with contextlib.suppress(argparse.ArgumentError):
        options, _ = parser.parse_known_args(words[words.index("launch") + 1 :])
        # What somebody once told accelerate for all of his programs is no reason to refuse the only process.
        path = options.config_file or (_default_file() if world_size() > 1 else None)
        file: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError, UserError):
            file = load_yaml(path.read_text(encoding="utf-8"), str(path)) if path else {}
        cpu = told or options.cpu or (False if options.multi_gpu else file.get("use_cpu"))
        processes = options.num_processes or file.get("num_processes")
        by = "--num_processes" if options.num_processes else str(path or "")
        return Asked(processes if isinstance(processes, int) else None, cpu, by)
    return Asked(cpu=told)


def _default_file() -> Path:
    """Where accelerate looks for a configuration when the command names none."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(os.path.expanduser(os.environ.get("HF_HOME") or f"{cache}/huggingface"), "accelerate")
    return next((path for name in ("yaml", "json") if (path := folder / f"default_config.{name}").is_file()), folder)


def not_used(precision: str) -> list[str]:
    """What was given to this job and it does not use, a line for each: nodes, an accelerate configuration.

    Afterwards accelerate finds none of it: it would end in a traceback where DeepSpeed or FP8 is not installed, and
    train something else where it is.
    """
    told = {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE_")}
    for name in told:
        if name != "ACCELERATE_MIXED_PRECISION":  # which says who launched; what accelerate is told itself wins over it
            del os.environ[name]
    wanted = [
        f"{name}={value}"
        for name, value in told.items()
        if (name in _CHANGES_TRAINING or (name.startswith("ACCELERATE_USE_") and name != "ACCELERATE_USE_CPU"))
        and value.lower() not in ("", "no", "false", "0", "1" if name.endswith("_STEPS") else "", precision)
    ]
    lines = []
    if launch_rank() == 0 and wanted:
        lines = [f"not used: {', '.join(wanted)}; how a run trains is in its settings, such as runtime.precision"]
    if (
        world_size() == 1
        and "RANKZERO_WORLD_SIZE" not in os.environ
        and (nodes := _whole("SLURM_JOB_NUM_NODES") or 1) > 1
    ):
        lines += [f"not used: {nodes - 1} of {nodes} allocated nodes; sbatch slurm/*.sh starts processes on each"]
    return lines


def local_world_size() -> int:
    """Processes of this job on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
