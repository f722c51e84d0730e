"""What Slurm gave: the allocation, read from the environment and from the controller.

Standard library and Python 3.8 only, like all of launch/ that runs in the batch step.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import time
from dataclasses import dataclass
from datetime import datetime

NOT_PRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
"""what a terminal would obey, or a reader not see: the same as in job/config/errors.py, which is not to be had here"""


PROBE_WITHIN = 20.0
"""seconds"""
LOOK = 'exec 3<>"/dev/tcp/$1/$2" && echo "$(nvidia-smi -L 2>/dev/null | grep -c ^GPU) GPUs"'
"""what a task does on a node to see whether it can be used"""


class LaunchError(Exception):
    """What the user can mend: what is wrong, and how to mend it."""


@dataclass(frozen=True)
class Allocation:
    """What Slurm gave."""

    job: str
    """what scontrol calls this job; ``<array>_<task>`` in an array, where the bare id can mean the whole array"""
    cluster: str
    submitted: int
    """seconds since 1970; of a job that was requeued, when that was"""
    name: str
    restarts: int
    nodes: tuple[str, ...]
    gpus: int
    """on each node"""
    processes: int
    """ranks on each node: one a GPU; without GPUs as many as tasks were asked for, or one"""
    cpus: int
    """of a rank"""
    crowded: bool
    """fewer CPUs than ranks on a node"""
    array_task: str | None
    start_time: int | None
    end_time: int | None
    """seconds since 1970; None without a time limit"""
    again: int = 0
    """starts in this allocation before this one"""

    @property
    def world_size(self) -> int:
        return len(self.nodes) * self.processes


def read_allocation(job: str, record: str) -> Allocation:
    """The allocation as the environment and the controller's ``record`` describe it.

    Raises LaunchError for one that ranks cannot be spread over evenly.
    """
    env = os.environ
    nodes = expand(env["SLURM_JOB_NODELIST"])
    if "SLURM_GPUS_PER_TASK" in env or "gpu" in env.get("SLURM_TRES_PER_TASK", ""):  # the latter from 23.11 or so on
        raise LaunchError(
            "--gpus-per-task hides a node's other GPUs from each process: ask for them with --gpus-per-node"
        )
    gpus = gpus_per_node(record, nodes)
    tasks = tasks_per_node()
    if gpus and tasks not in (None, 1, gpus):
        raise LaunchError(
            f"{tasks} tasks a node on {gpus} GPUs a node: there is one process a GPU, so leave out --ntasks and"
            " --ntasks-per-node, or ask for as many GPUs"
        )
    processes = gpus or tasks or 1
    cpus = min(map(int, re.findall(r"(?:^|,)(\d+)", env.get("SLURM_JOB_CPUS_PER_NODE", "1"))))  # 8(x2),16
    return Allocation(
        job=job,
        cluster=env.get("SLURM_CLUSTER_NAME", ""),
        submitted=submission_time(job),
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", env.get("SLURM_JOB_NAME", "job")).lstrip(".") or "job",
        restarts=int(env.get("SLURM_RESTART_COUNT", "0")),
        nodes=nodes,
        gpus=gpus,
        processes=processes,
        cpus=max(1, cpus // processes),
        crowded=cpus < processes,
        array_task=env.get("SLURM_ARRAY_TASK_ID"),
        start_time=stamp("StartTime", record),
        end_time=stamp("EndTime", record),
    )


def expand(hosts: str) -> tuple[str, ...]:
    """``n[1-2]`` as ``("n1", "n2")``."""
    done = run_client("scontrol", "show", "hostnames", hosts)
    if done.returncode:
        raise LaunchError(f"scontrol cannot expand the node list {hosts}: {done.stderr.strip()}")
    return tuple(done.stdout.split())


def address(nodes: tuple[str, ...]) -> str:
    """Where rank zero is met: the first node's name, or Slurm's address of it where the name does not resolve."""
    if len(nodes) == 1:
        return "127.0.0.1"
    names: list[str] = re.findall(r"NodeAddr=(\S+)", run_client("scontrol", "show", "node", nodes[0]).stdout)
    for candidate in (nodes[0], *names):
        with contextlib.suppress(OSError):
            socket.getaddrinfo(candidate, None)
            return candidate
    raise LaunchError(f"the name {nodes[0]} does not resolve on itself: ask the site's administrators")


def usable(nodes: tuple[str, ...]) -> tuple[str, ...]:
    """Those of ``nodes`` on which a task starts now, reaches the first node and sees as many GPUs as any; says why not.

    The controller may take minutes to miss a node that died.
    """
    probe = ["srun", "--overlap", "--mem=0", "--mpi=none", "--nodes=1", "--ntasks=1", "--ntasks-per-node=1", "--quiet"]
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    with socket.create_server(("", 0), family=family, backlog=4096, dualstack_ipv6=both) as listener:
        look = ["bash", "-c", LOOK, "look", address(nodes), str(listener.getsockname()[1])]
        probes = {
            node: subprocess.Popen([*probe, f"--nodelist={node}", *look], stdout=subprocess.PIPE) for node in nodes
        }
        deadline = time.monotonic() + PROBE_WITHIN
        for each in probes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                each.wait(max(0.0, deadline - time.monotonic()))
            each.kill()
    found = {node: re.search(rb"(\d+) GPUs", each.communicate()[0]) for node, each in probes.items()}
    gpus = {node: int(seen[1]) for node, seen in found.items() if seen and probes[node].returncode == 0}
    most = max(gpus.values(), default=0)
    for node in nodes:
        if gpus.get(node, -1) < most:
            why = f"{gpus[node]} of {most} GPUs are seen there" if node in gpus else "no task there reaches the others"
            say(f"{node} is left out: {why}")
    return tuple(node for node in nodes if gpus.get(node) == most)


def gpus_per_node(record: str, nodes: tuple[str, ...]) -> int:
    """GPUs on each node; 0 without. Raises LaunchError where nodes differ."""
    counts: dict[str, int] = {}
    for hosts, resources in re.findall(r" Nodes=(\S+) CPU_IDs=\S+ Mem=\S+ GRES=(\S*)", record):
        count = sum(int(number) for number in re.findall(r"(?:^|,)gpu(?::[^:(,]+)?:(\d+)", resources))
        counts.update(dict.fromkeys(expand(hosts), count))
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} on {node}" for node, count in counts.items())
        raise LaunchError(f"the nodes have unequal numbers of GPUs ({listed}): ask with --gpus-per-node")
    if set(counts) == set(nodes):
        return next(iter(counts.values()))
    return int(os.environ.get("SLURM_GPUS_ON_NODE", "0"))


def tasks_per_node() -> int | None:
    """Tasks on each node if the user asked for tasks, else None. Raises LaunchError where nodes differ."""
    env = os.environ
    if "SLURM_NTASKS" not in env and "SLURM_NTASKS_PER_NODE" not in env:
        return None
    layout = env.get("SLURM_TASKS_PER_NODE", "1")  # 2(x2), or 2,1
    if "," in layout:
        raise LaunchError(f"tasks lie unevenly on the nodes ({layout}): ask with --nodes and --ntasks-per-node")
    return int(layout.split("(")[0])


def stamp(name: str, record: str) -> int | None:
    """A time of the controller's record of a job, in seconds since 1970; None where it says none."""
    found = re.search(rf"\b{name}=(\S+)", record)
    with contextlib.suppress(ValueError):
        return int(datetime.strptime(found[1], "%Y-%m-%dT%H:%M:%S").timestamp()) if found else None
    return None


def kill_wait() -> float:
    """Seconds that the site gives a process between SIGTERM and SIGKILL."""
    found = re.search(r"^KillWait\s*=\s*(\d+)", run_client("scontrol", "show", "config").stdout, re.MULTILINE)
    return float(found[1]) if found else 30.0


def submission_time(job: str) -> int:
    """When the job was queued the last time, in seconds since 1970; 0 where the controller does not say."""
    for attempt in range(7):  # as for show_job: a start that cannot be told from others loses the run
        if attempt:
            time.sleep(10)
        asked = run_client("env", "SLURM_TIME_FORMAT=%s", "squeue", "--noheader", "--jobs", job, "--format", "%V")
        if asked.returncode == 0:
            break
    return int(asked.stdout) if asked.stdout.strip().isdigit() else 0


def job_name() -> str:
    """What to call this job in ``scontrol``."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def show_job(job: str) -> str:
    """The controller's record of the job, on one line; it is asked for a minute, for it may be busy or restarting."""
    for attempt in range(7):
        if attempt:
            time.sleep(10)
        done = run_client("scontrol", "show", "job", "--details", "--oneliner", job)
        if done.returncode == 0 and "JobState=" in done.stdout:
            return done.stdout
    raise LaunchError(f"scontrol knows nothing of job {job}: {done.stderr.strip()}")


def run_client(*command: str) -> subprocess.CompletedProcess[str]:
    """A Slurm command, its output captured."""
    plain = {**os.environ, "SLURM_TIME_FORMAT": "standard"}
    return subprocess.run(command, env=plain, capture_output=True, encoding="utf-8", errors="backslashreplace")


def say(text: str) -> None:
    """One line in the Slurm log, where nothing in it is obeyed."""
    show("slurm: " + NOT_PRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text) + "\n")


def show(text: str) -> None:
    """Write to the Slurm log; what a full disk does not take is left out."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode("utf-8", "backslashreplace"))
