"""What a start of the job runs on: software, devices, hosts, and the program's own commit."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job.config.settings import REPOSITORY
from job.distributed import launcher

if TYPE_CHECKING:
    from job.distributed.group import Group


def of_process(group: Group) -> dict[str, Any]:
    """Versions, device, host and threads of this process, for ``environment.json``. No environment variables."""
    import accelerate
    import torch

    cuda = group.device.type == "cuda"
    return {
        "host": socket.gethostname(),
        "device": torch.cuda.get_device_name(group.device) if cuda else _cpu_name(),
        "device_type": group.device.type,
        "launcher": launcher.started_by(),
        "threads": torch.get_num_threads(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "accelerate": accelerate.__version__,
        **launcher.slurm_start(),
    }


def of_start(processes: list[dict[str, Any]]) -> dict[str, Any]:
    """What ``environment.json`` says of this start."""
    git = ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {
        "command": sys.argv,
        "git_commit": commit,
        "world_size": len(processes),
        "hosts": sorted({process["host"] for process in processes}),
        "devices": [process["device"] for process in processes],
        **{key: value for key, value in processes[0].items() if key not in ("host", "device")},
    }


def in_words(processes: list[dict[str, Any]]) -> str:
    devices = Counter(process["device"] for process in processes)
    hosts = len({process["host"] for process in processes})
    first = processes[0]
    return (
        f"{len(processes)} process{'es' if len(processes) > 1 else ''} on {hosts} host{'s' if hosts > 1 else ''}: "
        + ", ".join(f"{count} x {name}" for name, count in devices.items())
        + f", {first['threads']} threads each; torch {first['torch']}, accelerate {first['accelerate']}"
    )


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        if named := re.search(r"^model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE):
            return named[1].strip()
    return "CPU"
