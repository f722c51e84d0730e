"""What came of one start of the job: a verdict, a record of a failure, and a requeue or none.

Standard library and Python 3.8 only, like all of launch/ that runs in the batch step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allocation import Allocation, run_client, say, show, show_job, usable

FINISHED, FAILED, BAD_INPUT, PREEMPTED = 0, 1, 2, 75
"""exit statuses of job/train.py"""
LOST = re.compile(
    r"^error: (?:lost contact with )?rank (\d+)[\d, ]* of \d+ (?:on \S+(?:, which | (?=misc))|(?=never came))(.*)",
    re.MULTILINE,
)
"""what job/ has found out"""
MISCOMPUTES = re.compile(r"rank \d+ of \d+ on (\S+) miscomputes: .*")
"""what job/training/ranks/cross_check.py says of one rank alone"""
PATIENCE = 3
"""requeues in a row that bring no new checkpoint, after which the job gives up"""


@dataclass(frozen=True)
class Start:
    """One start of the job in its run directory, and how that looked before."""

    allocation: Allocation
    run: Path
    logs: Path
    """each rank's standard error, and ``failure.txt``"""
    status: dict[str, object]
    checkpoint: str | None


@dataclass(frozen=True)
class Failure:
    """How one rank ended."""

    rank: int
    node: str
    how: str
    """in srun's words"""
    status: int | None
    """exit status; None when a signal ended it"""


def begin(allocation: Allocation, run: Path) -> Start:
    """Make room for a start's files, and remember what was there before it."""
    again = f".{allocation.again}" if allocation.again else ""
    logs = run / "slurm" / f"{allocation.job}.{allocation.restarts}{again}"
    logs.mkdir(parents=True, exist_ok=True)
    return Start(allocation, run, logs, read_json(run / "status.json"), newest_checkpoint(run))


def settle(start: Start, exit_status: int, messages: list[str], *, here: bool) -> int | Allocation:
    """Say what came of a start and see to what follows.

    That is the exit status of the batch script; or, after a failure that need not end this allocation, what is left of
    it to start again ``here``. ``exit_status`` is srun's, the highest of its tasks; ``messages`` are the lines it wrote
    itself. What status.json says of this start outranks both: a process can still die after all its work is done. One
    that dies between the result and the report comes back to write what is missing.
    """
    failures = read_failures(messages)
    after = read_json(start.run / "status.json")
    state = after.get("state") if after != start.status else None
    if exit_status == FINISHED or (state == "finished" and after.get("complete", True)):
        show_errors(start, 0)
        return end(start, "finished", FINISHED)
    stopped = exit_status == PREEMPTED and all(failure.status == PREEMPTED for failure in failures)
    if stopped or state == "preempted":
        show_errors(start, 0)
        reason = f"stopped after step {after.get('step')} ({after.get('signal')})"
        return come_back(start, reason, PREEMPTED, here=False)
    # srun ends the other ranks, so that the highest status is not always the first.
    if BAD_INPUT in (exit_status, failures[0].status if failures else None):
        # Rank zero says it for all, but not what another's node lacks.
        ranks = [0, *(failure.rank for failure in failures)]
        show_errors(start, next((rank for rank in ranks if re.search("^error: ", error_text(start, rank), re.M)), 0))
        return end(start, "not started again: the input has to be mended first", BAD_INPUT)
    exit_status = exit_status if 0 < exit_status < 256 else FAILED
    reason = record_failure(start, failures, messages)
    if not after and exit_status == FAILED:
        return end(start, f"not started again, for it never began: {reason}", FAILED)
    starved = out_of_memory([*messages, *managers_words(start)])
    if starved:
        more = more_memory(show_job(start.allocation.job), max(after.get("peak_memory") or [0]))
        reason += f"; {more}, and {continue_by_hand(start)}"
    recurs = starved and newest_checkpoint(start.run) == start.checkpoint
    if recurs or (state == "failed" and after.get("recurs")):
        return end(start, f"not started again, for it would end the same way: {reason}", exit_status)
    return come_back(start, reason, exit_status, here=here)


def come_back(start: Start, reason: str, exit_status: int, *, here: bool) -> int | Allocation:
    """Start again here, or requeue the job under its own id, unless Slurm has other plans with it or it gets nowhere.

    Here it goes on in seconds. A second start without a new checkpoint is better made elsewhere.
    """
    job = start.allocation.job
    record = show_job(job)
    state = re.search(r"JobState=(\w+)", record)
    if state is None or state[1] != "RUNNING":
        # Cancelled, preempted, over its limit or on a dead node: Slurm has decided already whether it comes back.
        return end(start, f"Slurm has ended the job ({state[1] if state else 'unknown'}): {reason}", exit_status)
    if cancels(record):
        verdict = f"Slurm preempts the job, and is told to cancel it then: {reason}: {continue_by_hand(start)}"
        return end(start, verdict, exit_status)
    progressed = newest_checkpoint(start.run) != start.checkpoint
    idle = 0 if progressed else idle_requeues(start) + 1
    if idle > PATIENCE:
        return end(start, f"given up, for {idle} starts in a row brought no new checkpoint: {reason}", FAILED)
    count = {"job": job, "without_checkpoint": idle}
    (start.run / "slurm" / "requeues.json").write_text(json.dumps(count) + "\n", encoding="utf-8")
    how_often = f" ({idle} of at most {PATIENCE} times without a new checkpoint)" if idle else ""
    left = fitting(start) if here and idle <= 1 else ()
    if left:
        end(start, f"started again at once on {', '.join(left)}{how_often}: {reason}", exit_status)
        return dataclasses.replace(start.allocation, nodes=left, again=start.allocation.again + 1)
    done = run_client("scontrol", "requeue", job)  # sends SIGTERM, and time to say so
    if done.returncode:
        why = done.stderr.strip()
        return end(start, f"not requeued ({why}): {reason}: {continue_by_hand(start)}", exit_status)
    return end(start, f"requeued{how_often}: {reason}", PREEMPTED)


def out_of_memory(messages: list[str]) -> bool:
    """Whether Slurm, or the kernel by its order, ended a process for the memory that it took."""
    return re.search(r"Out Of Memory|oom[-_ ]?kill|memory limit", "".join(messages), re.IGNORECASE) is not None


def managers_words(start: Start) -> list[str]:
    """What Slurm's step managers wrote to the ranks' standard errors: some say only there why they end a step."""
    texts = [error_text(start, rank) for rank in range(start.allocation.world_size)]
    return [line for text in texts for line in text.splitlines() if line.startswith("slurmstepd")]


def more_memory(record: str, peak: int) -> str:
    """What to ask for, by the controller's record of the job, when that was too little; ``peak``: bytes of a rank."""
    seen = f" (a rank had taken {peak / 1e6:,.0f} MB when it last said so)" if peak else ""
    found = re.search(r" MinMemory(Node|CPU)=([\d.]+)([KMGT])", record)
    if found is None:
        return f"the memory of its node was not enough{seen}: ask for a larger one, or use more nodes"
    option = "mem" if found[1] == "Node" else "mem-per-cpu"
    limit, twice = f"{found[2]}{found[3]}", f"{2 * float(found[2]):g}{found[3]}"
    return f"--{option}={limit} was not enough{seen}: ask for more, such as --{option}={twice}"


def continue_by_hand(start: Start) -> str:
    return f"submit again with --run.dir {start.run} to continue"


def fitting(start: Start) -> tuple[str, ...]:
    """The nodes that are left, as many as the run's batch divides over; () where it never began."""
    with contextlib.suppress(OSError):
        text = (start.run / "config.yaml").read_text(encoding="utf-8")
        found = re.findall(r"^  (batch_size|gradient_accumulation|gradient_shards): (\d+)$", text, re.MULTILINE)
        number = {name: int(value) for name, value in found}
        nodes = healthy(start.run, usable(start.allocation.nodes))
        for count in range(len(nodes), 0, -1):
            size = count * start.allocation.processes
            parts = number.get("gradient_shards") or size * number["gradient_accumulation"]
            if parts % size == 0 and number["batch_size"] % parts == 0:
                return nodes[:count]
    return ()


def healthy(run: Path, nodes: tuple[str, ...]) -> tuple[str, ...]:
    """Those of ``nodes`` that the newest start did not find slow, nor to miscompute; all if it did so of all."""
    slow = read_json(run / "environment.json").get("slow_nodes")
    wrong = MISCOMPUTES.fullmatch(str(read_json(run / "status.json").get("error")))
    unfit = (slow if isinstance(slow, dict) else {}) | ({wrong[1]: "it miscomputes"} if wrong else {})
    found = [node for node in nodes if node in unfit]
    if len(found) == len(nodes):
        return nodes
    for node in found:
        say(f"{node} is left out: {unfit[node]}")
    return tuple(node for node in nodes if node not in found)


def cancels(record: str) -> bool:
    """Whether the job is being preempted, in its grace time, by a site that cancels what it preempts."""
    partition = re.search(r" Partition=(\S+)", record)
    if not partition or not re.search(r" PreemptTime=\d", record):
        return False
    mode = re.search(r" PreemptMode=(\S+)", run_client("scontrol", "show", "partition", "-o", partition[1]).stdout)
    return mode is not None and "CANCEL" in mode[1]


def end(start: Start, verdict: str, exit_status: int) -> int:
    """Tidy up, say the last word, and return ``exit_status``."""
    for path in start.logs.glob("rank-*.err"):
        if not path.stat().st_size:
            path.unlink()
    if os.listdir(start.run) == ["slurm"] and exit_status in (FINISHED, BAD_INPUT):
        shutil.rmtree(start.run)  # no run ever began in it
    say(verdict)
    return exit_status


def read_json(path: Path) -> dict[str, Any]:
    """What a file of the run directory says; empty if there is none."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def newest_checkpoint(run: Path) -> str | None:
    """Name of the newest checkpoint, or None."""
    with contextlib.suppress(OSError):
        steps = [(int(name[5:]), name) for name in os.listdir(run / "checkpoints") if re.fullmatch(r"step-\d+", name)]
        return max(steps)[1] if steps else None
    return None


def idle_requeues(start: Start) -> int:
    """How often in a row this job was requeued without a new checkpoint."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads((start.run / "slurm" / "requeues.json").read_text(encoding="utf-8"))
        return int(content["without_checkpoint"]) if content["job"] == start.allocation.job else 0
    return 0


def read_failures(messages: list[str]) -> list[Failure]:
    """The tasks that failed, in the order in which srun heard of it."""
    failures = []
    for line in messages:
        for node, ranks, how in re.findall(r"^srun: error: (\S+): tasks? ([\d,-]+): (.*)", line):
            status = re.fullmatch(r"Exited with exit code (\d+)", how)
            for part in ranks.split(","):
                first, _, last = part.partition("-")
                for rank in range(int(first), int(last or first) + 1):
                    failures.append(Failure(rank, node, how, int(status[1]) if status else None))
    return failures


def record_failure(start: Start, failures: list[Failure], messages: list[str]) -> str:
    """Write down who failed first, where, after which step and with what traceback; one line that names the file.

    Ranks that only lost contact to that one, or were then ended by srun, are passed over. What they say of it counts:
    one that hangs fails last, or never.
    """

    def followed(failure: Failure) -> bool:
        told = "Traceback" in error_text(start, failure.rank)
        return failure.how.startswith("Terminated") or (failure.status is not None and not told)

    # Of a node that is gone srun says nothing else, and then ends the ranks on the others.
    dead = re.findall(r"^srun: error: Node failure on (\S+)$", "".join(messages), re.MULTILINE)
    nodes, each = start.allocation.nodes, start.allocation.processes
    gone = [Failure(nodes.index(node) * each, node, "Node failure", None) for node in dead if node in nodes]
    found = min(gone + failures, key=followed, default=Failure(0, "an unknown node", "srun failed", None))
    lost = LOST.search(error_text(start, 0) + error_text(start, 1))
    if lost and not (found.rank == int(lost[1]) and lost[2].startswith("ended")):  # of that srun knows more
        found = Failure(int(lost[1]), nodes[int(lost[1]) // each], lost[2], None)
    step = read_json(start.run / "status.json").get("step", 0)
    size = start.allocation.world_size
    text = f"rank {found.rank} of {size} on {found.node} failed first, after step {step}: {found.how}"
    report = start.logs / "failure.txt"
    errors = error_text(start, found.rank)
    content = f"{text}\n\nstandard error of rank {found.rank}:\n{errors}\nsrun:\n{''.join(messages)}"
    with contextlib.suppress(OSError):  # the log has it as well
        report.write_bytes(content.encode("utf-8", "backslashreplace"))
    show_errors(start, found.rank)
    return f"{text}; see {report}"


def error_text(start: Start, rank: int) -> str:
    """What a rank wrote to its standard error."""
    with contextlib.suppress(OSError):
        return (start.logs / f"rank-{rank}.err").read_text(encoding="utf-8", errors="replace")
    return ""


def show_errors(start: Start, rank: int, lines: int = 60) -> None:
    """Copy the end of a rank's standard error to the Slurm log."""
    show("".join(error_text(start, rank).splitlines(keepends=True)[-lines:]))
