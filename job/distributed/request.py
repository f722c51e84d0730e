"""What a job asks Slurm for, whether it gets that, and if not, what there is too little of."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from job.config.errors import UserError

OPTIONS = ("nodes", "gpus-per-node", "cpus-per-task", "mem", "time", "partition")
"""options of sbatch that a check may be given in place of the script's own"""


def asked(script: Path, options: dict[str, str]) -> dict[str, str]:
    """The script's ``#SBATCH --name=value`` lines by name, and the ``options`` that win over them."""
    text = script.read_text(encoding="utf-8") if script.is_file() else ""
    return dict(re.findall(r"^#SBATCH\s+--([a-z-]+)[= ](\S+)", text, re.MULTILINE)) | options


def signal_lead(request: dict[str, str]) -> int | None:
    """Seconds between the warning that is asked for and the end; None without."""
    found = re.search(r"@(\d+)", request.get("signal", ""))
    return int(found[1]) if found else None


def answer(script: Path, options: dict[str, str]) -> tuple[bool | None, str]:
    """Whether Slurm would take the job, and what it says; None where it cannot be asked."""
    if not script.exists():
        return None, f"there is no slurm/{script.name} to ask about"
    if not shutil.which("sinfo") or subprocess.run(["sinfo", "--noheader"], capture_output=True).returncode:
        return None, "no cluster answers this machine"
    command = ["sbatch", "--test-only", *(f"--{name}={value}" for name, value in options.items()), str(script)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    said = " ".join(done.stderr.split()).removeprefix("sbatch: ")
    said = f"sbatch {' '.join([*command[2:-1], f'slurm/{script.name}'])}: {said}"
    return done.returncode == 0, said if done.returncode == 0 else said + _lacking(asked(script, options))


def _lacking(request: dict[str, str]) -> str:
    """What the nodes have too little of, as the end of a message; "" where it is not that."""
    form = "%R|%P|%D|%c|%m|%G|%l"
    done = subprocess.run(["sinfo", "--noheader", "--exact", "-o", form], capture_output=True, encoding="utf-8")
    rows = [line.split("|") for line in done.stdout.splitlines()]
    wanted = request.get("partition") or next((row[0] for row in rows if row[1].endswith("*")), None)
    kinds = [row for row in rows if row[0] == wanted]
    if not kinds:
        return f"; there is no partition {wanted}, but {', '.join(sorted({row[0] for row in rows}))}"
    lacks, enough = [], 0
    for _, _, count, cpus, memory, resources, limit in kinds:
        gpus = sum(int(number) for number in re.findall(r"gpu(?::[^:(,]+)?:(\d+)", resources))
        amounts = [
            ("CPUs a node", float(request.get("cpus-per-task", 1)), float(cpus), cpus),
            ("memory a node", megabytes(request.get("mem", "0")), float(memory), f"{int(memory) / 1024:.1f}G"),
            ("GPUs a node", float(request.get("gpus-per-node", "0").rpartition(":")[2]), float(gpus), str(gpus)),
            ("minutes", minutes(request.get("time", "0")), minutes(limit), limit),
        ]
        lacks.append([f"{name} (at most {words})" for name, needs, has, words in amounts if needs > has])
        enough += 0 if lacks[-1] else int(count)
    least = min(lacks, key=len)
    if not least and int(request.get("nodes", "1").partition("-")[0]) > enough:
        least = [f"nodes (at most {enough})"]
    return f"; partition {wanted} has too few or too little: {', '.join(least)}" if least else ""


def megabytes(text: str) -> float:
    """What Slurm makes of ``450M``, ``32G`` or ``450``."""
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", text.upper())
    if found is None:
        raise UserError(f"--mem {text}", "must be a number of megabytes, or like 32G")
    return int(found[1]) * {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1 << 20}[found[2]]


def minutes(text: str) -> float:
    """What Slurm makes of ``5``, ``5:30``, ``1:00:00``, ``2-12``, ``2-12:00:00``, and of no limit."""
    if text.lower() in ("infinite", "unlimited"):
        return float("inf")
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise UserError(f"--time {text}", "must be minutes, hours:minutes:seconds, or days-hours")
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        parts += [0] * (3 - len(parts))
    elif len(parts) < 3:
        parts = [0, *parts, *([0] if len(parts) == 1 else [])]
    return int(days or 0) * 1440 + parts[0] * 60 + parts[1] + parts[2] / 60
