"""A published archive (.gz) is fetched from whichever source has it and is fast enough; its digest decides what is so.

None of the sources needs to be trusted, so that certificates are not checked either: behind a cluster's own proxy they
are often wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import os
import queue
import re
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE = 10.0
"""seconds without a byte after which a connection counts as dead, and over which the speed of a source is measured"""
SLOW = 300_000
"""bytes a second; a source that gives fewer is left while others may be faster"""
_GZIP = b"\x1f\x8b"  # how an archive begins, and no page of a login
_FRUITLESS = 3  # connections in a row without a new byte, after which a source counts as dead


Piece = tuple[int, bytes]
"""some bytes of a file, and their place in it"""


class _SourceError(Exception):
    """The message says why a source is left; ``rate`` are its bytes a second, where it is slow and nothing else."""

    def __init__(self, why: str, rate: float | None = None) -> None:
        super().__init__(" ".join(why.split())[:200])  # a stranger may have written it
        self.rate = rate


class _BrokenError(Exception):
    """The message says what became of a connection."""


@dataclass
class Download:
    """A file that is being fetched, on behalf of whoever holds its lock."""

    file: io.BufferedRandom
    """open for reading and appending; what stands there is continued"""
    name: str
    size: int
    sha256: str
    advance: Callable[[int], object]
    log: Callable[[str], None]
    failed: dict[str, str] = field(default_factory=dict)
    """why each source was left"""

    def run(self, sources: Sequence[str]) -> bool:
        """Fetch from the first of ``sources`` that will do, the next ones continuing; whether all is there, and right.

        Where it is not right and several sources have a part in it, each of them is tried by itself.
        """
        self.have = self.file.seek(0, os.SEEK_END)
        self.advance(self.have)
        continued, attempts = self.have > 0, [list(sources)]
        while attempts:
            group = attempts.pop(0)
            givers = self._gather(group)
            if self.have >= self.size and self._is_right():
                return True
            if self.have < self.size and not attempts:
                return False  # what came is kept
            wrong = ", ".join(map(shown, givers)) or "an earlier start"
            self.log(f"{self.name}: what came from {wrong} is not what was published, or not all; starting again")
            attempts += [rest] if (rest := [url for url in group if url not in givers]) else []
            if continued or len(givers) > 1:
                attempts += [[url] for url in givers]
            else:
                self.failed |= dict.fromkeys(givers, "it is another file than was published")
            self.advance(-self.have)
            self.file.truncate(0)
            self.have, continued = 0, False
        return False

    def _gather(self, group: Sequence[str]) -> list[str]:
        """Append until the file has its size, or no source is left; those that had a part in it, the largest first.

        When all are slow the fastest goes on.
        """
        untried, slow, givers = list(group), dict[str, float](), Counter[str]()
        last = ""
        while self.have < self.size and (untried or slow):
            if untried:
                url = untried.pop(0)
                least = SLOW if untried or slow else 0
            else:
                url, least = max(slow, key=slow.__getitem__), 0
                del slow[url]
            self.log(f"downloading {self.name} from {shown(url)}{last}")
            before = self.have
            try:
                self._take(url, least)
            except _SourceError as error:
                last = f" ({shown(url)}: {error})"
                self.failed[url] = str(error)
                if error.rate is not None:
                    slow[url] = error.rate
            givers[url] += self.have - before
        return [url for url, count in givers.most_common() if count]

    def _take(self, url: str, least: float) -> None:
        """Append what ``url`` has, over as many connections as bring something. Raises ``_SourceError``."""
        received = counted = fruitless = 0
        began = time.monotonic()

        def measure() -> None:
            nonlocal began, counted
            if (seconds := time.monotonic() - began) >= PATIENCE:
                if (rate := (received - counted) / seconds) < least:
                    raise _SourceError(f"slow, {rate / 1000:,.0f} kB/s", rate)
                began, counted = time.monotonic(), received

        while self.have < self.size:
            before, why = self.have, "the connection broke off"
            try:
                for place, chunk in _in_time(_answer(url, self.have, self.size)):
                    received += len(chunk)
                    new = chunk[max(0, self.have - place) :]  # a server may know no ranges
                    self.file.write(new)
                    self.have += len(new)
                    self.advance(len(new))
                    measure()
                    if self.have >= self.size:
                        return
            except _BrokenError as error:
                why = str(error)
            fruitless = 0 if self.have > before else fruitless + 1
            if not received or fruitless == _FRUITLESS:
                raise _SourceError(why)
            measure()

    def _is_right(self) -> bool:
        self.file.seek(0)
        return hashlib.file_digest(self.file, "sha256").hexdigest() == self.sha256


def _in_time(pieces: Generator[Piece]) -> Iterator[Piece]:
    """``pieces`` from a thread, since a name that is looked up, or a head that drips, has no time limit of its own."""
    arrived: queue.Queue[Piece | Exception | None] = queue.Queue(16)
    left = threading.Event()

    def read() -> None:
        with contextlib.closing(pieces):
            try:
                for piece in pieces:
                    arrived.put(piece)
                    if left.is_set():
                        return
                arrived.put(None)
            except Exception as error:
                arrived.put(error.with_traceback(None))  # whose frames would keep connections open

    threading.Thread(target=read, daemon=True).start()
    try:
        while (piece := arrived.get(timeout=PATIENCE)) is not None:
            if isinstance(piece, Exception):
                raise piece
            yield piece
    except queue.Empty:
        raise _BrokenError(f"nothing came for {PATIENCE:g} s") from None
    finally:
        left.set()
        with contextlib.suppress(queue.Empty):
            while True:  # whoever waits to put a piece goes on, and ends
                arrived.get_nowait()


def _answer(url: str, have: int, size: int) -> Generator[Piece]:
    """What ``url`` has from byte ``have`` on, or from the beginning where it knows no ranges."""
    if url.startswith("file:") and not Path(urllib.request.url2pathname(urllib.parse.urlsplit(url).path)).is_file():
        raise _SourceError("there is no such file")  # a pipe would be waited for
    headers = {"Range": f"bytes={have}-"} if have else {}
    unchecked = ssl.create_default_context()
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 (settings allow no other scheme)
        with urllib.request.urlopen(request, timeout=PATIENCE, context=unchecked) as answer:  # noqa: S310
            place, whole = 0, answer.headers.get("Content-Length")
            if answer.status == http.HTTPStatus.PARTIAL_CONTENT:
                told = re.fullmatch(r"bytes (\d+)-\d*/(\d+|\*)", answer.headers.get("Content-Range") or "")
                place, whole = (int(told[1]), told[2]) if told else (have, None)
            if place > have or (whole is not None and whole.isdecimal() and int(whole) != size):
                raise _SourceError(f"another file, of {whole} bytes in place of {size}")
            while chunk := answer.read1(1 << 16):
                if place == 0 and chunk[:2] != _GZIP[: len(chunk)]:
                    raise _SourceError("a page or another file in its place")
                yield place, chunk
                place += len(chunk)
    except urllib.error.HTTPError as error:
        error.close()
        raise _SourceError(f"{error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _BrokenError(str(getattr(error, "reason", error)) or type(error).__name__) from None


def shown(url: str) -> str:
    """A source as people know it, without what may be secret in its address."""
    parts = urllib.parse.urlsplit(url)
    return parts.path if parts.scheme == "file" else parts.hostname or "?"
