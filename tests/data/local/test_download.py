"""Several sources of one archive, on real sockets: slow, lying, breaking off, redirecting, closed to us."""

from __future__ import annotations

import hashlib
import http.server
import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from job.config.errors import UserError
from job.config.settings import Config, Data
from job.data.local import download

CONTENT = b"\x1f\x8b" + os.urandom(300_000)
JUNK = b"\x1f\x8b" + os.urandom(300_000)
PAGE = b"<html>Please log in</html>"


class Handler(http.server.BaseHTTPRequestHandler):
    """Each path is another kind of server."""

    def do_GET(self) -> None:
        kind = self.path.strip("/").split("?")[0]
        self.server.asked.append((kind, self.headers.get("Range")))  # type: ignore[attr-defined]
        if kind in ("403", "404", "503"):
            return self.send_error(int(kind))
        if kind in ("redirect", "loop"):
            self.send_response(302)
            self.send_header("Location", "/good" if kind == "redirect" else "/loop")
            return self.end_headers()
        if kind == "silent":
            time.sleep(1.5)
            return None
        if kind == "drips":
            for letter in b"HTTP/1.1 200 OK\r\nX-Wait: " + b"." * 20:
                self.wfile.write(bytes([letter]))
                time.sleep(0.1)
            return None
        body = {"page": PAGE, "longpage": PAGE * 20_000, "junk": JUNK, "shorter": CONTENT[:-9]}.get(kind, CONTENT)
        start = 0
        if (asked := self.headers.get("Range")) and kind != "norange":
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if kind != "longpage":
            self.send_header("Content-Length", str(len(body) - start + 1000 * (kind == "longer")))
        self.end_headers()
        if kind in ("broken", "norange-broken"):
            self.wfile.write(body[start:][:100_000])
        elif kind.startswith(("slow", "slower")):
            for place in range(start, len(body), 3000):
                self.wfile.write(body[place : place + 3000])
                time.sleep(0.1 if kind == "slower" else 0.03)
        elif kind == "dies":
            self.wfile.write(body[start:100_000])
            time.sleep(1.5)
        else:
            self.wfile.write(body[start:])
        return None

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads, httpd.handle_error = True, lambda *_: None  # type: ignore[method-assign]
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


CASES = {
    "the first is good": (["good", "403"], ["good"]),
    "closed": (["403", "404", "503", "good"], ["403", "404", "503", "good"]),
    "redirect": (["loop", "redirect"], ["loop", "redirect", "good"]),
    "a page of a login": (["page", "longpage", "good"], ["page", "longpage", "good"]),
    "another length": (["shorter", "good"], ["shorter", "good"]),
    "says nothing": (["silent", "good"], ["silent", "good"]),
    "its head drips": (["drips", "good"], ["drips", "good"]),
    "breaks off": (["broken"], ["broken"]),
    "dies, and the next goes on": (["dies", "good"], ["dies", "good"]),
    "slow, and the next goes on": (["slow", "good"], ["slow", "good"]),
    "slow, and the next knows no ranges": (["slow", "norange"], ["slow", "norange"]),
    "all are slow": (["slower", "slow", "403"], ["slower", "slow", "403", "slow"]),
    "the only one is slow": (["slow"], ["slow"]),
    "promises more than comes": (["longer", "good"], ["longer", "good"]),
    "lies": (["junk", "good"], ["junk", "good"]),
    "a liar in the middle": (["dies", "junk", "good"], ["dies", "junk", "good"]),
    "a file": (["file:nothing", "file:pipe", "file:copy"], []),
}


@pytest.mark.parametrize("name", CASES)
def test_whatever_sources_do_the_archive_comes_from_one_that_has_it(
    name: str, server: http.server.ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "PATIENCE", 0.6)
    sources, expected = CASES[name]
    server.asked = []  # type: ignore[attr-defined]
    (tmp_path / "copy").write_bytes(CONTENT)
    os.mkfifo(tmp_path / "pipe")
    here = f"http://127.0.0.1:{server.server_port}"
    urls = [f"file://{tmp_path}/{one[5:]}" if one.startswith("file:") else f"{here}/{one}?token=1" for one in sources]
    log: list[str] = []
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more

    with (tmp_path / "part").open("a+b") as file:
        sha256 = hashlib.sha256(CONTENT).hexdigest()
        assert download.Download(file, "x.gz", len(CONTENT), sha256, advance, log.append).run(urls)
    assert (tmp_path / "part").read_bytes() == CONTENT
    assert done == len(CONTENT)
    assert [kind for kind, _ in itertools.groupby(server.asked, key=lambda one: one[0])] == expected  # type: ignore[attr-defined]
    tried = [line for line in log if line.startswith("downloading x.gz from")]
    assert len(tried) == len(sources) - (name == "the first is good") + (name == "all are slow"), (
        "each that is tried is said"
    )
    assert "token" not in "".join(log)


def test_when_no_source_has_it_each_says_why_and_what_came_is_kept(
    server: http.server.ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PATIENCE", 0.6)
    server.asked = []  # type: ignore[attr-defined]
    urls = [f"http://127.0.0.1:{server.server_port}/{kind}" for kind in ("403", "page", "dies")]
    urls.append("http://127.0.0.1:9/refused")
    with (tmp_path / "part").open("a+b") as file:
        one = download.Download(file, "x.gz", len(CONTENT), "0", lambda _: None, lambda _: None)
        assert not one.run(urls)
    assert (tmp_path / "part").read_bytes() == CONTENT[:100_000]
    assert list(one.failed) == urls
    reasons = zip(
        one.failed.values(), ("403 Forbidden", "another file, of 26 bytes", "", "Connection refused"), strict=True
    )
    assert all(reason in why for why, reason in reasons)


@pytest.mark.parametrize(
    "url", ["", "ftp://a/b", "/srv/x.gz", "http:///x", "http://[::1/x", "http://a:b/x", "https://a b/"]
)
def test_addresses_that_cannot_be_are_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"data\.url=.*: must be null, or http"):
        Config(data=Data(url=url))
