"""Whoever waits for a run is told how a start of it ended: by a command, or by a message to a web address."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from typing import Any

LONGEST = 10.0
"""seconds that telling may take; then it is given up"""


def tell(how: str | None, message: dict[str, Any]) -> str | None:
    """Tell ``message`` as ``run.notify`` says: what went wrong, in words without any secret, or None.

    A command gets it as JSON on its standard input, a web address as the body of a POST. Nothing is raised.
    """
    if how is None:
        return None
    target, body = os.environ.get(how[1:], "") if how.startswith("$") else how, json.dumps(message).encode()
    if not target.strip():
        return f"run.notify: there is no {how[1:]} in the environment"
    said: list[str | None] = [f"it took more than {LONGEST:g} s"]

    def work() -> None:
        # No error is shown as it is: it may quote the address.
        try:
            if target.startswith(("http://", "https://")):
                said[0] = _post(target, body)
            else:
                said[0] = _run(shlex.split(target), body)
        except Exception as error:
            said[0] = getattr(error, "strerror", None) or type(error).__name__

    worker = threading.Thread(target=work, daemon=True)  # neither names nor slow answers have a time limit of their own
    worker.start()
    worker.join(LONGEST + 1)
    return f"run.notify: {said[0]}" if said[0] else None


def _post(address: str, body: bytes) -> str | None:
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})  # noqa: S310 (http alone)
    try:
        with urllib.request.urlopen(request, timeout=LONGEST):  # noqa: S310
            return None
    except urllib.error.HTTPError as error:
        return f"the answer was {error.code}"
    except urllib.error.URLError as error:
        return getattr(error.reason, "strerror", None) or type(error.reason).__name__


def _run(words: list[str], body: bytes) -> str | None:
    silent: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True, **silent) as command:
        try:
            command.communicate(body, timeout=LONGEST)
        except subprocess.TimeoutExpired:
            os.killpg(command.pid, signal.SIGKILL)
            return f"the command took more than {LONGEST:g} s"
    return f"the command ended with {command.returncode}" if command.returncode else None
