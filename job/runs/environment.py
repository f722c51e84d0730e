"""What the starts of a run run on, software, devices, hosts and code; whose they are; where their time went."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from job.config.errors import UserError, first_line
from job.config.settings import REPOSITORY
from job.distributed import launcher, startup
from job.distributed.meeting.nodes import slow_nodes
from job.runs.records import Seconds

if TYPE_CHECKING:
    from job.distributed.group import Group


def of_process(group: Group) -> dict[str, Any]:
    """Versions, device, host and threads of this process, for ``environment.json``."""
    import accelerate
    import torch

    cuda, job = group.device.type == "cuda", launcher.slurm_job() or {}
    return {
        "host": socket.gethostname(),
        "device": torch.cuda.get_device_name(group.device) if cuda else _cpu_name(),
        "device_type": group.device.type,
        "launcher": launcher.started_by(),
        "arithmetic": f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}" if cuda else _instructions(),
        "threads": torch.get_num_threads(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "accelerate": accelerate.__version__,
        "slurm_job": job.get("job"),
        "slurm_restarts": job.get("restarts", 0),
    }


def of_start(processes: list[dict[str, Any]], nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """What ``environment.json`` says of this start. launch/aftermath.py leaves out nodes that are slow."""
    return {
        "began": round(startup.began(), 3),
        "command": sys.argv,
        **program(),
        "world_size": len(processes),
        "hosts": sorted({process["host"] for process in processes}),
        "devices": [process["device"] for process in processes],
        **{key: value for key, value in processes[0].items() if key not in ("host", "device")},
        "nodes": nodes,
        "slow_nodes": slow_nodes(nodes),
    }


def software() -> str:
    """The versions of what the job stands on. Raises UserError where they do not fit each other."""
    import accelerate
    import torch

    versions = f"torch {torch.__version__}, accelerate {accelerate.__version__}"
    try:
        import torchvision
        from torchvision.ops import nms

        nms(torch.zeros(1, 4), torch.zeros(1), 0.5)  # an operator that is compiled against torch
    except (ImportError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"torchvision does not fit {versions} ({first_line(error)})", "install both anew, from one index"
        ) from None
    return f"{versions}, torchvision {torchvision.__version__}"


def program() -> dict[str, Any]:
    """The program's commit and whether it is as it was committed, None where nobody knows, and a digest of ``job/``."""
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):  # where launch/ has copied it
        known = json.loads((REPOSITORY / "snapshot.json").read_text(encoding="utf-8"))
    if not known:
        commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", "job", "launch", "configs")
        known = {"commit": commit, "dirty": None if changed is None else bool(changed)}
    total = hashlib.sha256()
    for path in sorted((REPOSITORY / "job").rglob("*")):
        if path.is_file() and path.parent.name != "__pycache__":
            content = hashlib.sha256(path.read_bytes()).digest()
            total.update(os.fsencode(path.relative_to(REPOSITORY)) + b"\0" + content)
    return {"git_commit": known.get("commit"), "git_dirty": known.get("dirty"), "code": total.hexdigest()}


def other_code(before: list[dict[str, Any]], now: dict[str, Any]) -> str | None:
    """What is said of a start whose code is not that of the last one of those ``before``; None where it is."""
    if not before or before[-1].get("code", now["code"]) == now["code"]:
        return None
    was, is_ = ((start.get("git_commit") or "unknown")[:10] for start in (before[-1], now))
    return f"the code in job/ is not that of the last start (commit {was}, now {is_}): bits may differ"


def _git(*words: str) -> str | None:
    """What git says of the repository; None where it says nothing."""
    command = ["git", "--no-optional-locks", "-C", str(REPOSITORY), *words]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    return None


def in_words(processes: list[dict[str, Any]]) -> str:
    devices = Counter(process["device"] for process in processes)
    hosts = len({process["host"] for process in processes})
    first = processes[0]
    return (
        f"{len(processes)} process{'es' if len(processes) > 1 else ''} on {hosts} host{'s' if hosts > 1 else ''}: "
        + ", ".join(f"{count} x {name}" for name, count in devices.items())
        + f", {first['threads']} threads each; torch {first['torch']}, accelerate {first['accelerate']}"
    )


def is_own(memory: Path, job: dict[str, Any]) -> bool:
    """Whether ``memory`` is of an earlier start of ``job``: Slurm counts them, and takes a requeue for a submission."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(memory.read_text(encoding="utf-8"))
        same, later = known["cluster"] == job["cluster"], known["restarts"] < job["restarts"]
        return bool(known == job or (same and later and known["submitted"] <= (job["submitted"] or math.inf)))
    return False


def spending(starts: list[dict[str, Any]], status: Mapping[str, Any]) -> list[Seconds]:
    """Where the seconds of each of ``starts``, those of ``environment.json``, went, and what was waited before it.

    Of the newest one ``status`` says it. A start's training is shared out by steps: those beyond the step from which a
    later start went on were done again.
    """
    found, ended = [], None
    for i, start in enumerate(starts):
        newest = status.get("attempt") in (start.get("attempt"), None) and i + 1 == len(starts)
        said = status.get("seconds", {}) if newest else start.get("seconds", {})
        seconds: dict[str, Any] = {kind: said[kind] for kind in Seconds.__annotations__ if kind in said}
        began, reached = start.get("step", 0), status.get("step", 0) if newest else start.get("reached", 0)
        kept = max(began, min([reached, *(later["step"] for later in starts[i + 1 :] if "step" in later)]))
        row = dict(seconds)
        if seconds and "began" in start:
            trained = seconds.get("training", 0.0)
            row["repeated"] = trained * (reached - kept) / (reached - began) if reached > began else 0.0
            row["training"] = trained - row["repeated"]
            if ended is not None:
                row["waiting"] = max(0.0, start["began"] - ended)
            ended = start["began"] + sum(seconds.values())
        found.append(cast(Seconds, row))
    return found


def in_all(rows: list[Seconds]) -> Seconds:
    """The sums over all starts."""
    kinds = [kind for kind in Seconds.__annotations__ if any(kind in row for row in rows)]
    return cast(
        Seconds, {kind: round(sum(cast(Mapping[str, float], row).get(kind, 0.0) for row in rows), 3) for kind in kinds}
    )


def _instructions() -> str:
    """Those of this CPU that torch uses, and what the environment says of those that its libraries may use."""
    from torch.backends import cpu

    told = (name for name in ("ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS") if name in os.environ)
    return ", ".join([cpu.get_cpu_capability(), *(f"{name}={os.environ[name]}" for name in told)])


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        if named := re.search(r"^model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE):
            return named[1].strip()
    return "CPU"
