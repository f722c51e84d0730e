"""Turns a Slurm allocation into a launch, and what came of the launch into a requeue or an end.

    python launch/slurm.py configs/vgg16.yaml [--key.sub value ...]        # inside an allocation; see slurm/*.sh

One ``srun`` task a rank runs ``python job/train.py`` itself, without a launcher in between: accelerate forms its group
from the environment, signals reach the ranks and exit statuses come back as they are. docs/cluster.md says more.

Runs in the batch step, on the first node, with nothing but the standard library and any Python from 3.8 on: where the
job's own Python lives in a container, this one does not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

import aftermath
import directory
import snapshot
from aftermath import BAD_INPUT, PREEMPTED, Start
from allocation import (
    Allocation,
    LaunchError,
    address,
    job_name,
    kill_wait,
    read_allocation,
    run_client,
    say,
    show,
    show_job,
    stamp,
)

PROGRAM = Path(__file__).resolve().parents[1]
"""the repository, or the copy of it that this job runs from"""
REPOSITORY = snapshot.repository(PROGRAM)
STOPS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU)
REPEAT_STOP = 5.0
"""seconds after which the STOP file is written again"""
WARNED_AT_ONCE, SHORT_JOB = 90, 1800
"""seconds: a warning within the first ones of a job that may run so long, in all, says nothing of its end"""

# Runs on the node, where SLURM_PROCID is the rank's own; in the batch shell it is always 0. The user's words arrive in
# "$@" and are never read as shell. SIGUSR1 is ignored until the job has its handler: it can come in the first seconds,
# and its default is death.
ON_NODE = 'trap "" USR1; export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID; exec "$@"'


def main(config: str, overrides: list[str]) -> int:
    """Launch, wait, and see to what follows; the exit status of the batch script."""
    if "SLURM_JOB_ID" not in os.environ:
        raise LaunchError("this is no Slurm job: submit it, sbatch slurm/vgg16.sh, or use accelerate launch by hand")
    stop = StopRequest()
    job = job_name()
    allocation = read_allocation(job, show_job(job))
    run = run_directory(allocation, overrides)
    code = snapshot.own(allocation, run, PROGRAM, ["--config", config, *overrides])
    if code != PROGRAM:
        stop.hand_over(code / "launch" / "slurm.py")
    # srun refuses these where they differ from its options.
    os.environ.pop("SLURM_CPUS_PER_TASK", None)
    os.environ.pop("SLURM_TRES_PER_TASK", None)
    words = snapshot.pinned(PROGRAM, ["--config", config, *overrides])
    arguments = [
        *words[:2],
        *defaults(allocation, overrides),
        *words[2:],
        *identity(allocation, run, overrides),
    ]
    disk = node_disk()
    if disk:
        os.environ["RANKZERO_NODE_DISK"] = disk
    status: int | Allocation = allocation
    while isinstance(status, Allocation):
        left = status
        start = aftermath.begin(left, run)
        where = os.environ["SLURM_JOB_NODELIST"] if left.nodes == allocation.nodes else ",".join(left.nodes)
        say(
            f"job {job}, start {left.restarts + left.again + 1}, in {run}: world size {left.world_size},"
            f" {left.processes} a node on {where}, {left.cpus} CPUs a process"
        )
        if not left.again:
            stop.begin(left, run)
        exit_status, messages = launch(start, arguments)
        if stop.asked:
            stop.withdraw()
        status = aftermath.settle(start, exit_status, messages, here=not stop.asked)
    # A job that comes back will want its images again.
    if disk and (status != PREEMPTED or "JobState=CANCELLED" in run_client("scontrol", "show", "job", job).stdout):
        leave_nodes(left, disk)
    return status


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
        return directory.find(REPOSITORY / "runs", allocation)
    if allocation.array_task is not None and "RANKZERO_SWEEP" not in os.environ:  # slurm/sweep.sh: one a task
        raise LaunchError(
            f"--run.dir {asked} in a job array gives every task the same directory: leave it out, and each has its own"
        )
    return (REPOSITORY / Path(asked).expanduser()).resolve()


def defaults(allocation: Allocation, overrides: list[str]) -> list[str]:
    """What the job is told unless the user, or a --config of his, says otherwise."""
    words = []
    if allocation.gpus:
        words += ["--runtime.device", "cuda"]  # a node without its driver must not train on its CPU, unnoticed
    return words


def identity(allocation: Allocation, run: Path, overrides: list[str]) -> list[str]:
    """What makes this job's run its own, and is told last."""
    words = []
    if given(overrides, "--run.dir") is None:
        words += ["--run.dir", str(run)]
    if allocation.array_task is not None and given(overrides, "--train.seed") is None:
        words += ["--train.seed", allocation.array_task]
    return words


def node_disk() -> str | None:
    """A directory of this user on every node's own disk, for the decoded images; None where the site names none.

    One process a node decodes the archive into it while the others wait, and all of them map it.
    """
    named = os.environ.get("SLURM_TMPDIR") or os.environ.get("TMPDIR") or ""
    return os.path.join(named, f"rankzero-{os.getuid()}") if os.path.isabs(named) else None


def leave_nodes(allocation: Allocation, disk: str) -> None:
    """Remove ``disk`` on all nodes, or on this one if Slurm starts nothing any more, unless another job holds it."""
    remove = ["bash", "-c", 'if [ -O "$1" ] && [ ! -L "$1" ]; then exec flock -n "$1" rm -rf -- "$1"; fi', "rm", disk]
    for command in ([*srun(allocation, tasks=1, cpus=1), "--immediate=10", *remove], remove):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            if subprocess.run(command, capture_output=True, timeout=30).returncode == 0:
                return


def environment(allocation: Allocation) -> dict[str, str]:
    """The environment of a rank, but for RANK and LOCAL_RANK, which it learns on its node."""
    told = {
        "MASTER_ADDR": address(allocation.nodes),
        "MASTER_PORT": str(port(allocation)),
        "WORLD_SIZE": str(allocation.world_size),
        "LOCAL_WORLD_SIZE": str(allocation.processes),
        "RANKZERO_WORLD_SIZE": str(allocation.world_size),
        "RANKZERO_SECRET": secrets.token_hex(),  # by which the ranks know each other
        "RANKZERO_BEGAN": str(int(time.time())),
        "OMP_NUM_THREADS": str(allocation.cpus),
        "PYTHONUNBUFFERED": "1",  # a log that is read while the job runs
    }
    if allocation.end_time is not None:
        told["RANKZERO_END_TIME"] = str(allocation.end_time)
    return {**os.environ, **told}


def port(allocation: Allocation) -> int:
    """A free port of this node, rank zero's, another one for each job and each start of it.

    Below 32768, where Linux begins to hand out ports for outgoing connections.
    """
    number = int(os.environ["SLURM_JOB_ID"]) * 7 + allocation.restarts * 131 + allocation.again * 1009
    for candidate in (15000 + (number + i) % 17000 for i in range(100)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", candidate))
            return candidate
    raise LaunchError(f"a hundred ports from {15000 + number % 17000} on are taken on this node: use another node")


def srun(allocation: Allocation, *, tasks: int, cpus: int) -> list[str]:
    """The beginning of a command that starts ``tasks`` tasks of ``cpus`` CPUs on each node.

    Says all of it, for srun does not inherit the request, or inherits another part of it in each version.
    """
    return [
        *("srun", "--export=ALL", "--mpi=none", *(["--overcommit"] if allocation.crowded else [])),
        # What ended before may still hold a dead node, and with it, for Slurm, its part of the others.
        *(["--overlap", f"--nodelist={','.join(allocation.nodes)}"] if allocation.again else []),
        f"--nodes={len(allocation.nodes)}",
        *(f"--ntasks={len(allocation.nodes) * tasks}", f"--ntasks-per-node={tasks}", f"--cpus-per-task={cpus}"),
    ]


class StopRequest:
    """SIGUSR1 (``--signal=B:USR1@...``) or its like to this process, passed on to the job as a STOP file.

    It is written again every few seconds, for a job that has just begun removes an old one: no moment is too early.
    """

    def __init__(self) -> None:
        self.file: Path | None = None
        """set once the run directory is there"""
        self.asked = False
        self.allocation: Allocation | None = None
        self.look_at = math.inf
        for number in STOPS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup keeps it ignored
                signal.signal(number, self._on_signal)
        signal.signal(signal.SIGALRM, self._write)
        signal.setitimer(signal.ITIMER_REAL, REPEAT_STOP, REPEAT_STOP)
        # Ends the batch shell of others. Whenever Slurm sends it here, it sends it to the ranks as well; wait for them.
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*STOPS, signal.SIGTERM))  # see hand_over

    def hand_over(self, program: Path) -> NoReturn:
        """Become ``program``, which is this one's copy; what is asked for meanwhile waits for its handlers."""
        signal.pthread_sigmask(signal.SIG_BLOCK, (*STOPS, signal.SIGTERM))
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self.asked:
            os.kill(os.getpid(), signal.SIGUSR1)
        os.execv(sys.executable, [sys.executable, str(program), *sys.argv[1:]])  # noqa: S606

    def begin(self, allocation: Allocation, run: Path) -> None:
        """The run directory is there, and a job that was asked to stop before that hears of it now."""
        self.allocation, self.file, self.look_at = allocation, run / "STOP", time.time()
        if self.asked and self._comes_at_once():
            self.asked = False

    def _comes_at_once(self) -> bool:
        """Whether it is Slurm's warning, and the time limit not longer than that: each start would end as it begins."""
        start, end = (self.allocation.start_time, self.allocation.end_time) if self.allocation else (None, None)
        if start is None or end is None or time.time() - start > WARNED_AT_ONCE or end - start > SHORT_JOB:
            return False
        say(
            f"SIGUSR1 at the very beginning of {(end - start) / 60:.0f} minutes is no reason to stop: the job does so"
            " by itself in time; ask for more --time, or for a later warning (--signal=B:USR1@60)"
        )
        return True

    def _look_for_end(self) -> None:
        """Tell the job when its time limit was raised: often enough, and seldom enough for the controller."""
        if self.allocation and self.allocation.end_time and self.file and time.time() >= self.look_at:
            known = self.allocation.end_time
            end = stamp("EndTime", run_client("scontrol", "show", "job", "--oneliner", self.allocation.job).stdout)
            if end is not None and end > known:
                self.allocation = dataclasses.replace(self.allocation, end_time=end)
                with contextlib.suppress(OSError):
                    (self.file.parent / "slurm" / "end-time").write_text(f"{end}\n", encoding="utf-8")
            self.look_at = time.time() + min(1800.0, max(15.0, ((end or known) - time.time()) / 4))

    def withdraw(self) -> None:
        """The job has ended: leave no STOP file for the next start."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self.asked and self.file is not None:
            with contextlib.suppress(FileNotFoundError):
                self.file.unlink()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1 and self._comes_at_once():
            return
        if not self.asked:
            say(f"{signal.Signals(number).name}: asking the job to stop and save")
        self.asked = True
        self._write(number, frame)

    def _write(self, number: int, frame: FrameType | None) -> None:
        self._look_for_end()
        if self.asked and self.file is not None:
            with contextlib.suppress(OSError):
                self.file.touch()


def launch(start: Start, arguments: list[str]) -> tuple[int, list[str]]:
    """Run the job to its end on all nodes; srun's exit status, the highest of its tasks, and the lines it said itself.

    The job's standard output goes where ours goes, each rank's standard error to a file of its own. RANKZERO_PYTHON in
    the environment names the job's Python, RANKZERO_SRUN more options for srun, such as a container.
    """
    allocation = start.allocation
    python = os.environ.get("RANKZERO_PYTHON") or sys.executable
    command = [
        *srun(allocation, tasks=allocation.processes, cpus=allocation.cpus),
        "--kill-on-bad-exit=1",
        f"--chdir={REPOSITORY}",
        f"--error={str(start.logs).replace('%', '%%')}/rank-%t.err",
        *words(os.environ.get("RANKZERO_SRUN", "")),
        *("bash", "-c", ON_NODE, "rank"),
        *(python, str(PROGRAM / "job" / "train.py"), *arguments),
    ]
    messages: list[str] = []
    with subprocess.Popen(command, env=environment(allocation), stderr=subprocess.PIPE) as step:
        abandon = threading.Timer(kill_wait() + 5, step.kill)
        for line in step.stderr or ():
            messages.append(line.decode("utf-8", "backslashreplace"))
            show(messages[-1])
            # The other ranks have so long; what srun waits for after that, five minutes perhaps, is a node that died.
            if "Terminating StepId" in messages[-1] and abandon.ident is None:
                abandon.start()
        abandon.cancel()
    return step.returncode, messages


def words(text: str) -> list[str]:
    """The words of a shell's line."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise LaunchError(f"RANKZERO_SRUN={text} cannot be read as options ({error}): unset or mend it") from None


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1], sys.argv[2:]))
    except LaunchError as error:
        show(f"error: {error}\n")
        sys.exit(BAD_INPUT)
