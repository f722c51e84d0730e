"""Whoever is told how a run ended: that takes a moment at most, ends nothing, and says no secret."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from job.config.errors import UserError
from job.config.settings import Config, Run
from job.display import notify

MESSAGE = {"text": "vgg16-3: finished, accuracy 80.00%"}


class Hook(BaseHTTPRequestHandler):
    """Answers with the status that the path ends in; /hang never."""

    heard: list[object] = []  # noqa: RUF012

    def do_POST(self) -> None:
        self.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.path == "/hang":
            time.sleep(3)
            return
        self.send_response(int(self.path.rpartition("/")[2]))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hook.heard = []
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("/secret/200", None),
        ("/secret/500", "the answer was 500"),
        ("/hang", "timed out|took more than|TimeoutError"),
        (":x/secret", "InvalidURL"),
        ("9/secret", "refused|OverflowError|getaddrinfo"),
    ],
)
def test_a_web_address_is_told_and_what_goes_wrong_names_no_secret(
    place: str, problem: str | None, hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "LONGEST", 0.5)
    monkeypatch.setenv("HOOK", f"{hook}{place}")
    began = time.monotonic()
    said = notify.tell("$HOOK", MESSAGE)
    assert time.monotonic() - began < 2.5
    if problem is None:
        assert said is None
        assert Hook.heard == [MESSAGE]
    else:
        assert said is not None
        assert re.search(problem, said)
        assert "secret" not in said
        assert "127.0.0.1" not in said


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("tee 'told here'", None),
        ("false", "the command ended with 1"),
        ("sh -c 'sleep 60 & sleep 60'", "the command took more than 0.5 s"),
        ("/no/such/secret", "No such file or directory"),
        ("'unclosed", "ValueError"),
        ("$NOT_SET", "there is no NOT_SET in the environment"),
        (None, None),
    ],
)
def test_a_command_is_told_and_what_goes_wrong_ends_nothing(
    command: str | None, problem: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(notify, "LONGEST", 0.5)
    assert notify.tell(command, MESSAGE) == (problem and f"run.notify: {problem}")
    if command and command.startswith("tee"):
        assert json.loads((tmp_path / "told here").read_text()) == MESSAGE


@pytest.mark.parametrize("value", ["https://hooks.example/secret", "curl -d @- http://secret", " "])
def test_an_address_is_refused_where_it_would_stand_in_files_and_is_not_repeated(value: str) -> None:
    with pytest.raises(UserError, match="environment variable") as refused:
        Config(run=Run(notify=value))
    assert "secret:" not in str(refused.value).replace("may be a secret:", "")
