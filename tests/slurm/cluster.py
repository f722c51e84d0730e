"""A throw-away Slurm cluster on one machine: a real controller, several node daemons, fake GPUs, its own munge.

    python tests/slurm/cluster.py            # starts one, prints how to use it, ends it on Ctrl-C

Everything lives in one temporary directory on free ports, so that it neither needs nor touches a Slurm that the
machine already has. Node names do not resolve and nothing is written to /etc/hosts. Needs root (the daemons start
steps as the submitting user) and Debian's ``slurm-wlm`` and ``munge``, or their like.

What differs from a site: one machine, process tracking by ancestry (``proctrack/linuxproc``) and no cgroups, no
accounting database, short waits. GPUs are plain files, which gives a job its count of GPUs and nothing to compute on.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

KILL_WAIT = 10
"""seconds between SIGTERM and SIGKILL; a site has 30"""
REQUEUE_DELAY = 5
"""seconds a requeued job waits, at least; a site has 120, and less than 5 counts as nothing said"""

CONFIGURATION = """\
ClusterName=throwaway
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
AuthType=auth/munge
AuthInfo=socket={directory}/munge/socket,cred_expire={requeue_delay}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={directory}/state
SlurmctldPidFile={directory}/slurmctld.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdSpoolDir={directory}/spool-%n
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmdLogFile={directory}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2
GresTypes=gpu
JobRequeue=1
ReturnToService=2
KillWait={kill_wait}
SlurmdTimeout=10
SlurmctldTimeout=10
MessageTimeout=10
TreeWidth=65533
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=work Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 State=UP
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=graceful Nodes=ALL MaxTime=INFINITE PriorityTier=1 GraceTime=20 State=UP
PartitionName=cancels Nodes=ALL MaxTime=INFINITE PriorityTier=1 GraceTime=20 PreemptMode=CANCEL State=UP
"""


class Cluster:
    """A running cluster, and the few commands a test sends to it."""

    def __init__(self, directory: Path, nodes: list[str], environment: dict[str, str]) -> None:
        self.directory = directory
        self.nodes = nodes
        self.environment = environment
        """what a client needs in its environment to speak to this cluster and no other"""

    def run(self, *command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
        """A client command; a failure raises with what it said."""
        done = subprocess.run(
            [str(part) for part in command],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=180,
            **options,  # type: ignore[call-overload]
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}: {done.stdout}")
        return done

    def submit(self, *arguments: str | Path, directory: Path, **environment: str) -> str:
        """``sbatch`` from ``directory`` with these arguments; the job's id."""
        command = ["sbatch", "--parsable", *map(str, arguments)]
        done = subprocess.run(
            command, env=self.environment | environment, cwd=directory, capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout.strip().split(";")[0]

    def job(self, job_id: str) -> dict[str, str]:
        """What the controller knows of a job: ``JobState``, ``Restarts``, ``ExitCode`` and so on."""
        text = self.run("scontrol", "show", "job", "-o", job_id).stdout
        return dict(re.findall(r"(\S+?)=(\S*)", text))

    def wait(self, job_id: str, *states: str, seconds: float = 240) -> dict[str, str]:
        """Waits until the job is in one of ``states`` (default: ended for good); what is known of it then."""
        wanted = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "DEADLINE")
        deadline = time.monotonic() + seconds
        while True:
            job = self.job(job_id)
            if job["JobState"] in wanted:
                return job
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job_id} is {job['JobState']} ({job['Reason']}) and not {wanted}")
            time.sleep(0.3)

    def start_node(self, node: str) -> None:
        """Starts a node's daemon."""
        self.run("slurmd", "-N", node, "-f", self.directory / "slurm.conf")

    def kill_node(self, node: str) -> None:
        """What a power failure does: the daemon, its step managers and all that they started, at once."""
        tasks = _carrying(f"SLURMD_NODENAME={node}", f"SLURM_CONF={self.directory}/slurm.conf")
        daemon = int((self.directory / f"slurmd-{node}.pid").read_text())
        managers = [parent for parent in map(_parent, tasks) if b"slurmstepd" in _command(parent)]
        for pid in (daemon, *managers, *tasks):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self, job_id: str) -> list[int]:
        """Every process on this machine that carries the job's id in its environment."""
        return _carrying(f"SLURM_JOB_ID={job_id}", f"SLURM_CONF={self.directory}/slurm.conf")


@contextlib.contextmanager
def cluster(nodes: int = 2, gpus: int = 2, cpus: int = 8) -> Iterator[Cluster]:
    """Starts ``nodes`` nodes of ``cpus`` CPUs and ``gpus`` fake GPUs each, yields the cluster, ends all it started."""
    directory = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    names = [f"n{i + 1}" for i in range(nodes)]
    ports = _free_ports(nodes + 1)
    _lay_out(directory, names, ports, gpus, cpus)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
    environment["SLURM_CONF"] = str(directory / "slurm.conf")
    running = Cluster(directory, names, environment)
    # Another process ends it all when its standard input does, so that a test run that is killed leaves nothing either.
    undertaker = subprocess.Popen(
        [sys.executable, __file__, "--end", directory], stdin=subprocess.PIPE, env=environment, start_new_session=True
    )
    try:
        _start(running)
        yield running
    finally:
        undertaker.communicate()


def missing() -> str | None:
    """Why no cluster can be started here; None if one can."""
    absent = [tool for tool in ("munged", "slurmctld", "slurmd", "sbatch", "srun") if shutil.which(tool) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: slurm-wlm and munge)"
    if os.geteuid() != 0:
        return "starting a Slurm cluster needs root"
    return None


def _lay_out(directory: Path, names: list[str], ports: list[int], gpus: int, cpus: int) -> None:
    # munged refuses a socket directory that others could swap, and a key that others could read.
    directory.chmod(0o755)
    (directory / "munge").mkdir(mode=0o755)
    (directory / "state").mkdir()
    key = directory / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    for name in names:
        (directory / f"spool-{name}").mkdir()
    lines = []
    devices = []
    for name, port in zip(names, ports[1:], strict=True):
        resources = f" Gres=gpu:fake:{gpus}" if gpus else ""
        lines.append(
            f"NodeName={name} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} CPUs={cpus}"
            f" RealMemory=64000 State=UNKNOWN{resources}"
        )
        for index in range(gpus):
            device = directory / f"{name}-gpu{index}"
            device.touch()
            devices.append(f"NodeName={name} Name=gpu Type=fake File={device}")
    (directory / "gres.conf").write_text("\n".join(["AutoDetect=off", *devices]) + "\n")
    # Slurm from 23.11 on can leave cgroups alone and must be told; before that it knows no such word.
    version = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, check=True).stdout.split()[-1]
    leave_alone = tuple(map(int, version.split(".")[:2])) >= (23, 11)
    (directory / "cgroup.conf").write_text("CgroupPlugin=disabled\n" if leave_alone else "")
    (directory / "slurm.conf").write_text(
        CONFIGURATION.format(
            host=socket.gethostname(),
            directory=directory,
            controller_port=ports[0],
            kill_wait=KILL_WAIT,
            requeue_delay=REQUEUE_DELAY,
            nodes="\n".join(lines),
        )
    )


def _start(running: Cluster) -> None:
    munge = running.directory / "munge"
    running.run(
        "munged",
        f"--socket={munge}/socket",
        f"--key-file={munge}/key",
        f"--pid-file={munge}/pid",
        f"--log-file={munge}/log",
        f"--seed-file={munge}/seed",
    )
    running.run("slurmctld", "-c", "-f", running.directory / "slurm.conf")
    for node in running.nodes:
        running.start_node(node)
    deadline = time.monotonic() + 60
    states: set[str] = set()
    while states != {"idle"}:
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text()[-2000:] for path in sorted(running.directory.glob("*.log")))
            raise TimeoutError(f"the cluster's nodes are {states or 'unknown'}:\n{logs}")
        time.sleep(0.2)
        with contextlib.suppress(RuntimeError):  # the controller does not answer yet
            states = set(running.run("sinfo", "-h", "-N", "-p", "work", "-o", "%t").stdout.split())


def _end(directory: Path) -> None:
    """Ends daemons, jobs and whatever else is ours, each found by the cluster's own directory, and removes that."""
    mark = str(directory).encode()
    while ours := [p for p in _processes() if mark in _command(p)] + _carrying(f"SLURM_CONF={directory}/slurm.conf"):
        for pid in ours:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    shutil.rmtree(directory, ignore_errors=True)


def _processes() -> list[int]:
    return [
        int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and int(entry.name) != os.getpid()
    ]


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _carrying(*variables: str) -> list[int]:
    """Processes with all these in their environment."""
    wanted = {variable.encode() for variable in variables}
    found = []
    for pid in _processes():
        with contextlib.suppress(OSError):
            if wanted <= set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")):
                found.append(pid)
    return found


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


if __name__ == "__main__":
    if sys.argv[1:2] == ["--end"]:
        sys.stdin.read()
        _end(Path(sys.argv[2]))
        sys.exit()
    if reason := missing():
        sys.exit(f"error: {reason}")
    with cluster() as started:
        print(f"export SLURM_CONF={started.environment['SLURM_CONF']}    # then sinfo, sbatch, ...; Ctrl-C ends it")
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
