"""Turns a Slurm allocation into a launch, and what came of the launch into a requeue or an end.

    python launch/slurm.py configs/vgg16.yaml [--key.sub value ...]        # inside an allocation; see slurm/*.sh

One ``srun`` task a rank runs ``python job/train.py`` itself, without a launcher in between: accelerate forms its group
from the environment, signals reach the ranks and exit statuses come back as they are. docs/cluster.md says more.

Runs in the batch step, on the first node, with nothing but the standard library and any Python from 3.8 on: where the
job's own Python lives in a container, this one does not.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType

REPOSITORY = Path(__file__).resolve().parents[1]
FINISHED, FAILED, BAD_INPUT, PREEMPTED = 0, 1, 2, 75
"""exit statuses of job/train.py"""
PATIENCE = 3
"""requeues in a row that bring no new checkpoint, after which the job gives up"""
REPEAT_STOP = 5.0
"""seconds between looks whether the STOP file is still there: a job that has just begun removes old ones"""

# Runs on the node, where SLURM_PROCID is the rank's own; in the batch shell it is always 0. The user's words arrive in
# "$@" and are never read as shell. SIGUSR1 is ignored until the job has its handler: it can come in the first seconds,
# and its default is death.
ON_NODE = 'trap "" USR1; export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID; exec "$@"'


class LaunchError(Exception):
    """What the user can mend: what is wrong, and how to mend it."""


@dataclass(frozen=True)
class Allocation:
    """What Slurm gave."""

    job: str
    """what scontrol calls this job; ``<array>_<task>`` in an array, where the bare id can mean the whole array"""
    name: str
    restarts: int
    nodes: tuple[str, ...]
    processes: int
    """ranks on each node: its GPUs, or its tasks where there are none"""
    cpus: int
    """CPUs of a rank"""
    array_task: str | None
    end_time: int | None
    """seconds since 1970; None without a time limit"""

    @property
    def world_size(self) -> int:
        return len(self.nodes) * self.processes


@dataclass(frozen=True)
class Outcome:
    """What came of one attempt."""

    kind: str
    """finished, preempted, bad input or crashed"""
    exit_status: int
    explanation: str


def main(config: str, overrides: list[str]) -> int:
    """Launch, wait, and see to what follows; the exit status of the batch script."""
    if "SLURM_JOB_ID" not in os.environ:
        raise LaunchError("this is no Slurm job: submit it, sbatch slurm/vgg16.sh, or use accelerate launch by hand")
    job = job_name()
    record = show_job(job)
    allocation = read_allocation(job, record)
    run = run_directory(allocation, overrides)
    arguments = ["--config", config, *defaults(allocation, run, overrides), *overrides]
    logs = run / "slurm" / f"{job}.{allocation.restarts}"
    logs.mkdir(parents=True, exist_ok=True)
    say(
        f"job {job}, start {allocation.restarts + 1}, in {run}: {allocation.world_size} processes,"
        f" {allocation.processes} on each of {os.environ['SLURM_JOB_NODELIST']}, {allocation.cpus} CPUs each"
    )
    before, checkpoint = status(run), newest_checkpoint(run)
    exit_status, messages = launch(allocation, run, logs, arguments)
    outcome = judge(exit_status, before, status(run))
    replay(logs, outcome, messages)
    if outcome.kind in ("finished", "bad input"):
        tidy(run, logs)
        say(outcome.explanation)
        return outcome.exit_status
    if outcome.kind == "crashed":
        outcome = Outcome(outcome.kind, outcome.exit_status, record_failure(run, logs, allocation, messages))
    return come_back(allocation, run, outcome, progressed=newest_checkpoint(run) != checkpoint)


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
    return subprocess.run(command, capture_output=True, text=True)


# --- the allocation -------------------------------------------------------------------------------------------------


def read_allocation(job: str, record: str) -> Allocation:
    """The allocation as the environment and the controller's ``record`` describe it.

    Raises LaunchError for one that ranks cannot be spread over evenly.
    """
    env = os.environ
    nodes = expand(env["SLURM_JOB_NODELIST"])
    if "SLURM_GPUS_PER_TASK" in env:
        raise LaunchError(
            "--gpus-per-task hides a node's other GPUs from each process: ask for them with --gpus-per-node"
        )
    gpus = gpus_per_node(record, nodes)
    tasks = tasks_per_node(env)
    if gpus and tasks not in (None, 1, gpus):
        raise LaunchError(
            f"{tasks} tasks a node on {gpus} GPUs a node: there is one process a GPU, so leave out --ntasks and"
            " --ntasks-per-node, or ask for as many GPUs"
        )
    processes = gpus or tasks or 1
    cpus = int(env.get("SLURM_CPUS_ON_NODE", "1"))
    return Allocation(
        job=job,
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", env.get("SLURM_JOB_NAME", "job")).lstrip(".") or "job",
        restarts=int(env.get("SLURM_RESTART_COUNT", "0")),
        nodes=nodes,
        processes=processes,
        cpus=max(1, cpus // processes),
        array_task=env.get("SLURM_ARRAY_TASK_ID"),
        end_time=end_time(job),
    )


def expand(hosts: str) -> tuple[str, ...]:
    """``n[1-2]`` as ``("n1", "n2")``."""
    done = run_client("scontrol", "show", "hostnames", hosts)
    if done.returncode:
        raise LaunchError(f"scontrol cannot expand the node list {hosts}: {done.stderr.strip()}")
    return tuple(done.stdout.split())


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


def tasks_per_node(env: os._Environ[str]) -> int | None:
    """Tasks on each node if the user asked for tasks, else None. Raises LaunchError where nodes differ."""
    if "SLURM_NTASKS" not in env and "SLURM_NTASKS_PER_NODE" not in env:
        return None
    layout = env.get("SLURM_TASKS_PER_NODE", "1")  # 2(x2), or 2,1
    if "," in layout:
        raise LaunchError(f"tasks lie unevenly on the nodes ({layout}): ask with --nodes and --ntasks-per-node")
    return int(layout.split("(")[0])


def end_time(job: str) -> int | None:
    """When the time limit ends the job, in seconds since 1970. Slurm sets the variable from 22.05.9 or so on."""
    given = os.environ.get("SLURM_JOB_END_TIME", "")
    if given.isdigit():
        return int(given)
    text = run_client("squeue", "--noheader", "--jobs", job, "--format", "%e").stdout.strip()
    with contextlib.suppress(ValueError):
        return int(datetime.strptime(text, "%Y-%m-%dT%H:%M:%S").timestamp())
    return None


# --- what the job is told -------------------------------------------------------------------------------------------


def given(overrides: list[str], key: str) -> str | None:
    """The last value that the user gives ``key`` (``--key value`` or ``--key=value``), or None."""
    value = None
    for i, word in enumerate(overrides):
        if word == key and i + 1 < len(overrides):
            value = overrides[i + 1]
        elif word.startswith(f"{key}="):
            value = word.partition("=")[2]
    return value


def run_directory(allocation: Allocation, overrides: list[str]) -> Path:
    """The job's run directory: the same after a requeue, another one for each task of an array."""
    asked = given(overrides, "--run.dir")
    if asked is None:
        return REPOSITORY / "runs" / f"{allocation.name}-{allocation.job}"
    if allocation.array_task is not None:
        raise LaunchError(
            f"--run.dir {asked} in a job array gives every task the same directory: leave it out, and each has its own"
        )
    return (REPOSITORY / Path(asked).expanduser()).resolve()


def defaults(allocation: Allocation, run: Path, overrides: list[str]) -> list[str]:
    """What the job is told unless the user says otherwise."""
    words = []
    if given(overrides, "--run.dir") is None:
        words += ["--run.dir", str(run)]
    if allocation.array_task is not None and given(overrides, "--train.seed") is None:
        words += ["--train.seed", allocation.array_task]
    if given(overrides, "--data.cache") is None:
        local = local_disk(allocation)
        words += ["--data.cache", str(local)] if local else []
    return words


def local_disk(allocation: Allocation) -> Path | None:
    """A directory on every node's own disk for the decoded pictures; None where the site names none.

    One process a node decodes the archive into it while the others wait, and all of them map it.
    """
    named = os.environ.get("SLURM_TMPDIR") or os.environ.get("TMPDIR")
    if not named or not os.path.isabs(named):
        return None
    local = Path(named) / "rankzero"
    nodes = str(len(allocation.nodes))
    done = run_client("srun", "--export=ALL", "--mpi=none", "--nodes", nodes, "--ntasks", nodes, "--ntasks-per-node=1",
                      "--cpus-per-task=1", "mkdir", "-p", "--", str(local))  # fmt: skip
    if done.returncode:
        say(f"{local} cannot be made on every node, so the decoded pictures stay where the data set is")
        return None
    return local


def environment(allocation: Allocation) -> dict[str, str]:
    """The environment of a rank, but for RANK and LOCAL_RANK, which it learns on its node."""
    told = {
        "MASTER_ADDR": address(allocation.nodes),
        "MASTER_PORT": str(port(allocation)),
        "WORLD_SIZE": str(allocation.world_size),
        "LOCAL_WORLD_SIZE": str(allocation.processes),
        "RANKZERO_WORLD_SIZE": str(allocation.world_size),
        "OMP_NUM_THREADS": str(allocation.cpus),
        "PYTHONUNBUFFERED": "1",  # a log that is read while the job runs
    }
    if allocation.end_time is not None:
        told["RANKZERO_END_TIME"] = str(allocation.end_time)
    return {**os.environ, **told}


def address(nodes: tuple[str, ...]) -> str:
    """Where rank zero is met: the first node's name, or Slurm's address of it where the name does not resolve."""
    if len(nodes) == 1:
        return "127.0.0.1"
    for candidate in (
        nodes[0],
        *re.findall(r"NodeAddr=(\S+)", run_client("scontrol", "show", "node", nodes[0]).stdout),
    ):
        with contextlib.suppress(OSError):
            socket.getaddrinfo(candidate, None)
            return candidate
    raise LaunchError(f"the name {nodes[0]} does not resolve on itself: ask the site's administrators")


def port(allocation: Allocation) -> int:
    """A free port of this node, rank zero's, another one for each job and each start of it.

    Below 32768, where Linux begins to hand out ports for outgoing connections.
    """
    number = int(os.environ["SLURM_JOB_ID"]) * 7 + allocation.restarts * 131
    for candidate in (15000 + (number + i) % 17000 for i in range(100)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", candidate))
            return candidate
    raise LaunchError(f"a hundred ports from {15000 + number % 17000} on are taken on this node: use another node")


# --- the launch -----------------------------------------------------------------------------------------------------


def launch(allocation: Allocation, run: Path, logs: Path, arguments: list[str]) -> tuple[int, list[str]]:
    """Run the job to its end on all nodes; srun's exit status, the highest of its tasks, and what srun said.

    SIGUSR1 to this process (``--signal=B:USR1@...``) becomes a STOP file. It is written again until the job has ended,
    so that no moment is too early for it. SIGTERM needs no forwarding: whenever Slurm sends it here, it sends it to the
    ranks as well.
    """
    python = os.environ.get("RANKZERO_PYTHON") or sys.executable
    command = [
        "srun", "--export=ALL", "--mpi=none", "--kill-on-bad-exit=1",
        f"--nodes={len(allocation.nodes)}", f"--ntasks={allocation.world_size}",
        f"--ntasks-per-node={allocation.processes}", f"--cpus-per-task={allocation.cpus}", f"--chdir={REPOSITORY}",
        f"--error={str(logs).replace('%', '%%')}/rank-%t.err",
        "bash", "-c", ON_NODE, "rank", python, str(REPOSITORY / "job" / "train.py"), *arguments,
    ]  # fmt: skip
    stopping = False

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            say(f"{signal.Signals(number).name}: asking the job to stop and save")
        with contextlib.suppress(OSError):
            (run / "STOP").touch()

    signal.signal(signal.SIGUSR1, stop)
    signal.signal(signal.SIGALRM, lambda number, frame: stop(number, frame) if stopping else None)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, REPEAT_STOP, REPEAT_STOP)
    messages = []
    with subprocess.Popen(
        command, env=environment(allocation), stderr=subprocess.PIPE, text=True
    ) as srun:
        for line in srun.stderr or ():
            messages.append(line)
            print(line, end="", file=sys.stderr, flush=True)
    signal.setitimer(signal.ITIMER_REAL, 0)
    if stopping:
        with contextlib.suppress(OSError):
            (run / "STOP").unlink()
    return srun.returncode, messages


def status(run: Path) -> dict[str, object]:
    """What status.json says; empty if there is none."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads((run / "status.json").read_text())
        return content if isinstance(content, dict) else {}
    return {}


def newest_checkpoint(run: Path) -> str | None:
    """Name of the newest checkpoint, or None."""
    with contextlib.suppress(OSError):
        steps = [(int(name[5:]), name) for name in os.listdir(run / "checkpoints") if re.fullmatch(r"step-\d+", name)]
        return max(steps)[1] if steps else None
    return None


def judge(exit_status: int, before: dict[str, object], after: dict[str, object]) -> Outcome:
    """What the attempt came to, from srun's exit status and from status.json before and after it.

    What the file says of this attempt outranks the status: a process may still be killed after all its work is saved.
    """
    state = after.get("state") if after != before else None
    if exit_status == FINISHED or state == "finished":
        return Outcome("finished", 0, "finished")
    if exit_status == PREEMPTED or state == "preempted":
        return Outcome("preempted", PREEMPTED, f"stopped after step {after.get('step')} ({after.get('signal')})")
    if exit_status == BAD_INPUT:
        return Outcome("bad input", BAD_INPUT, "not started again: the input has to be mended first")
    return Outcome("crashed", exit_status if 0 < exit_status < 256 else FAILED, "")


# --- what is left behind --------------------------------------------------------------------------------------------


def error_text(logs: Path, rank: int, lines: int = 60) -> str:
    """The end of a rank's standard error."""
    with contextlib.suppress(OSError):
        return "".join((logs / f"rank-{rank}.err").read_text(errors="replace").splitlines(keepends=True)[-lines:])
    return ""


def replay(logs: Path, outcome: Outcome, messages: list[str]) -> None:
    """Copy the standard error that matters to the Slurm log: rank zero's, or that of the rank that failed first."""
    rank = (first_failure(logs, messages) or (0, "", ""))[0] if outcome.kind == "crashed" else 0
    sys.stderr.write(error_text(logs, rank))
    sys.stderr.flush()


def first_failure(logs: Path, messages: list[str]) -> tuple[int, str, str] | None:
    """Rank, node and end of the task that failed first, from what srun said in order; None if it said nothing.

    A rank that only lost its peers says so, and is passed over while there is another one.
    """
    failures = []
    for line in messages:
        found = re.match(r"srun: error: (\S+): tasks? ([\d,-]+): (.*)", line)
        for part in found[2].split(",") if found else ():
            first, _, last = part.partition("-")
            failures += [(rank, found[1], found[3]) for rank in range(int(first), int(last or first) + 1)]

    def followed(failure: tuple[int, str, str]) -> bool:
        lost_peers = re.search(r"[Cc]onnection (closed|reset)|remote process exited", error_text(logs, failure[0]))
        return failure[2].startswith("Terminated") or lost_peers is not None

    return min(failures, key=followed, default=None)


def record_failure(run: Path, logs: Path, allocation: Allocation, messages: list[str]) -> str:
    """Write down who failed first, where, at which step and with what traceback; one line that names the file."""
    rank, node, end = first_failure(logs, messages) or (0, "an unknown node", "srun failed")
    step = status(run).get("step", "unknown")
    text = f"rank {rank} of {allocation.world_size} on {node} failed first, after step {step}: {end}"
    report = logs / "failure.txt"
    said = "".join(messages)
    report.write_text(f"{text}\n\nstandard error of rank {rank}:\n{error_text(logs, rank, 1000)}\nsrun:\n{said}")
    return f"{text}; see {report}"


def tidy(run: Path, logs: Path) -> None:
    """Remove empty error files, and a run directory in which no run ever began."""
    for path in logs.glob("rank-*.err"):
        if not path.stat().st_size:
            path.unlink()
    if os.listdir(run) == ["slurm"]:
        shutil.rmtree(run)


# --- coming back ----------------------------------------------------------------------------------------------------


def come_back(allocation: Allocation, run: Path, outcome: Outcome, *, progressed: bool) -> int:
    """Requeue the job under its own id, unless Slurm has other plans with it or it gets nowhere."""
    state = re.search(r"JobState=(\w+)", show_job(allocation.job))
    if state is None or state[1] != "RUNNING":
        # Cancelled, preempted, at its limit or on a dead node: Slurm has decided already whether it comes back.
        say(f"{outcome.explanation}; Slurm has ended the job ({state[1] if state else 'unknown'})")
        return outcome.exit_status
    idle = 0 if progressed else idle_requeues(run, allocation.job) + 1
    if idle > PATIENCE:
        say(f"{outcome.explanation}; given up: {idle} starts in a row brought no new checkpoint")
        return FAILED
    (run / "slurm" / "requeues.json").write_text(json.dumps({"job": allocation.job, "without_checkpoint": idle}))
    without = f", {idle} of at most {PATIENCE} times without a new checkpoint" if idle else ""
    say(f"{outcome.explanation}; requeued{without}")
    done = run_client("scontrol", "requeue", allocation.job)  # which may end this process at once
    if done.returncode:
        say(f"could not be requeued ({done.stderr.strip()}): submit again with --run.dir {run} to continue")
        return outcome.exit_status
    return PREEMPTED


def idle_requeues(run: Path, job: str) -> int:
    """How often in a row this job was requeued without a new checkpoint."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads((run / "slurm" / "requeues.json").read_text())
        return int(content["without_checkpoint"]) if content["job"] == job else 0
    return 0


def say(text: str) -> None:
    """One line in the Slurm log."""
    print(f"slurm: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1], sys.argv[2:]))
    except LaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
