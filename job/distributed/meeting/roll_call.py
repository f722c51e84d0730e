"""Who is missing: the rank that died or hangs is named by those that waited for it in vain.

A rank that waits in a collective learns that somebody is missing and not who, and the one that hangs cannot say so
itself. So a thread of each rank gives rank zero a sign of life, over a connection of its own. Once contact is lost,
whoever has noticed reports, and the one that does not report is the one.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from job.config.errors import FAILED
from job.distributed import cores, ending, launcher

WINDOW = 3.0
"""seconds after a report in which the next one is awaited"""
LINE = 1 << 16
"""bytes of a message at most"""
JOB = str(Path(__file__).resolve().parents[2])


class RollCall:
    """This rank's connection to rank zero, made by ``join``."""

    def __init__(
        self, connection: socket.socket, rank: int, nodes: list[str], patience: float, members: dict[int, _Member]
    ) -> None:
        self.before_the_end: Callable[[str], None] = lambda why: None
        """told why this process ends where its main thread waits for a rank that will never come"""
        self._connection, self._rank, self._nodes, self._patience = connection, rank, nodes, patience
        self.waited = 0.0
        """seconds that this rank waited for others; rank zero is told, as of its memory, with each sign of life"""
        self._members = members
        self._main = threading.get_ident()
        self._settled, self._closed = threading.Event(), threading.Event()
        self._verdict, self._silence = "", 0.0
        threading.Thread(target=self._answer, daemon=True).start()

    def missing(self) -> str:
        """Who does not come, or why a rank failed; "" where that cannot be known.

        For each rank that has lost contact. Takes some seconds, unless a process is gone.
        """
        self._say(lost=True)
        settled = self._settled.wait(WINDOW)
        if not settled and (self._silence > 2.5 * _beat(self._nodes) or not self._settled.wait(3 * WINDOW)):
            self._verdict = _lost(self._nodes, {0: _silent(self._silence)})
        return self._verdict

    def failed(self, why: str) -> None:
        """Let the others know why this rank ends."""
        self._say(failed=why)
        self._settled.wait(WINDOW)

    def told(self) -> dict[str, list[Any]]:
        """On rank zero, peaks of memory and what was waited of all ranks, in rank order, a second or so old."""
        states = [member.state for _, member in sorted(self._members.copy().items())]
        keys = ("peak_memory", "peak_device_memory", "waited")
        every = len(states) == len(self._nodes)
        return {key: [state[key] for state in states] for key in keys if every and all(key in s for s in states)}

    def close(self) -> None:
        """After success, what becomes of the others is of no interest any more."""
        self._closed.set()

    def speaks(self) -> bool:
        """Whether this rank is the one to say what ``missing`` found: the first of those that are left."""
        return self._rank == 0 or (self._rank == 1 and self._verdict.startswith(_lost(self._nodes, {0: ""})))

    def _say(self, **state: Any) -> None:
        with contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(state).encode() + b"\n")

    def _answer(self) -> None:
        """In a thread: give signs of life, say where this rank is when asked, hear the verdict."""
        content, in_vain = b"", False
        while not (self._closed.is_set() or self._settled.is_set()):
            began = time.monotonic()
            self._say(waited=round(self.waited, 1), **cores.peaks())
            received = b""
            try:
                received = self._connection.recv(LINE)
                self._silence = 0.0
            except TimeoutError:  # while this process itself was stopped, nothing could be heard
                self._silence += min(time.monotonic() - began, 2 * _beat(self._nodes))
                if self._silence < self._patience + 2 * WINDOW:
                    continue
                in_vain = True
            except OSError:
                pass
            if not received:
                how = _silent(self._silence) if in_vain else "ended: it was killed or crashed"
                self._verdict = _lost(self._nodes, {0: how})
                self._settled.set()
            *lines, content = (content + received).split(b"\n")
            for said in map(json.loads, filter(None, lines)):
                if said is None:
                    self._say(**_whereabouts(self._main))
                else:
                    self._verdict, in_vain = said
                    self._settled.set()
        if in_vain and not self._closed.wait(WINDOW):
            self.before_the_end(self._verdict)
            if self.speaks():
                ending.complain(self._verdict)
            os._exit(FAILED)


def join(rank: int, patience: float, exchange: Callable[[bytes], list[bytes]]) -> RollCall | None:
    """Begin to call the roll; None where rank zero cannot be reached.

    ``exchange`` gives equally many bytes to all ranks and returns those of each, in rank order; every rank must call
    it. One that gives no sign of life for ``patience`` seconds ends all, wherever they wait.
    """
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    listener = socket.create_server(("", 0), family=family, backlog=4096, dualstack_ipv6=both) if rank == 0 else None
    members: dict[int, _Member] = {}
    port = listener.getsockname()[1] if listener else 0
    own = json.dumps({"node": launcher.node()[:64], "port": port, "secret": os.urandom(16).hex()})
    told = [json.loads(text) for text in exchange(own.encode().ljust(512))]
    nodes, secret = [each["node"] for each in told], told[0]["secret"]
    if listener is not None:
        threading.Thread(target=_call, args=(listener, secret, nodes, patience, members), daemon=True).start()
    try:
        connection = socket.create_connection(
            (launcher.meeting_address().rpartition(":")[0], told[0]["port"]), timeout=WINDOW
        )
        connection.sendall(json.dumps({"secret": secret, "rank": rank}).encode() + b"\n")
    except OSError:
        return None
    connection.settimeout(_beat(nodes))
    return RollCall(connection, rank, nodes, patience, members)


@dataclass
class _Member:
    """What rank zero knows of a rank."""

    connection: socket.socket
    content: bytes = b""
    """the beginning of a message"""
    silence: float = 0.0
    """seconds since its last sign of life, while this process ran"""
    gone: bool = False
    state: dict[str, Any] = field(default_factory=dict)
    """``lost``: it has noticed; ``failed``: why it failed; ``at``: where it is; ``waits``: for others, there"""


def _call(listener: socket.socket, secret: str, nodes: list[str], patience: float, members: dict[int, _Member]) -> None:
    """In a thread of rank zero: hear all ranks, and tell all who is missing once one of them asks or is silent."""
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    reports, reported, since = 0, 0.0, 0.0
    while True:
        began = time.monotonic()
        for key, _ in selector.select(WINDOW / 10 if reports else _beat(nodes)):
            if key.fileobj is listener:
                connection, _ = listener.accept()
                connection.settimeout(1)
                selector.register(connection, selectors.EVENT_READ, _Member(connection))
            else:
                _hear(key.data, members, secret)
                if key.data.gone:
                    selector.unregister(key.data.connection)
        passed = min(time.monotonic() - began, 2 * _beat(nodes))
        for member in members.values():
            member.silence += passed
        since += passed
        if since > _beat(nodes):
            since = 0.0
            _tell(members, b"\n")
        lost = sum("lost" in member.state for member in members.values())
        if lost > reports:
            if not reports:
                _tell(members, b"null\n")
            reports, reported = lost, time.monotonic()
        failed = any("failed" in member.state for member in members.values())
        sure = any(member.gone and "lost" not in member.state for member in members.values())
        in_vain = any(m.silence > patience + WINDOW and not m.gone for m in members.values())
        if failed or in_vain or (reports and (sure or time.monotonic() - reported > WINDOW)):
            _tell(members, json.dumps([_verdict(members, nodes), in_vain and not reports]).encode() + b"\n")
            return


def _hear(member: _Member, members: dict[int, _Member], secret: str) -> None:
    """Read what a connection has; nothing of one that does not know the ``secret``."""
    received = b""
    with contextlib.suppress(OSError):
        received = member.connection.recv(LINE)
    *lines, member.content = (member.content + received).split(b"\n")
    member.gone = not received or len(member.content) > LINE
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            said = json.loads(line)
            if any(member is known for known in members.values()):
                member.state |= said
                member.silence = 0.0
            elif said["secret"] == secret:
                members.setdefault(said["rank"], member)


def _tell(members: dict[int, _Member], message: bytes) -> None:
    for member in members.values():
        with contextlib.suppress(OSError):
            member.connection.sendall(message)


def _verdict(members: dict[int, _Member], nodes: list[str]) -> str:
    """Why a rank failed; else which do not come, of the surest kind alone; "" where all ranks lost contact."""
    kinds: list[dict[int, str]] = [{}, {}, {}, {}]
    for rank, member in sorted(members.items()):
        state = member.state
        if "failed" in state:
            return str(state["failed"])
        if member.gone and "lost" not in state:
            kinds[0][rank] = "ended: it was killed or crashed"
        elif member.silence > 2.5 * _beat(nodes):
            kinds[1][rank] = _silent(member.silence)
        elif "lost" not in state:
            kinds[3 if state.get("waits") else 2][rank] = f"lives and does not come: it hangs at {state.get('at')}"
    return _lost(nodes, next(filter(None, kinds), {}))


def _lost(nodes: list[str], ranks: dict[int, str]) -> str:
    """``ranks``, and how each was lost, in words; launch/aftermath.py reads them too."""
    named = [f"rank {rank} of {len(nodes)} on {nodes[rank]}, which {how}" for rank, how in ranks.items()]
    more = f"; and with {len(named) - 3} more" if len(named) > 3 else ""
    return f"lost contact with {'; '.join(named[:3])}{more}" if named else ""


def _silent(seconds: float) -> str:
    return f"gave no sign of life for {seconds:.0f} s: it is stopped, or its node or network is down"


def _beat(nodes: list[str]) -> float:
    """Seconds between signs of life: rank zero reads 25 a second at most, in 0.3% of a core."""
    return max(1.0, len(nodes) / 25)


def _whereabouts(thread: int) -> dict[str, Any]:
    """Where a thread is: the innermost line of the job, and whether it waits for other ranks there."""
    frame = sys._current_frames().get(thread)
    while frame is not None and not frame.f_code.co_filename.startswith(JOB):
        frame = frame.f_back
    if frame is None:
        return {"at": "no line of the job"}
    path = Path(frame.f_code.co_filename).relative_to(JOB)
    at = f"line {frame.f_lineno} of job/{path} ({frame.f_code.co_name})"
    return {"at": at, "waits": path.name in ("group.py", "shared_memory.py")}
