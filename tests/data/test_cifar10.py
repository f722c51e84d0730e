"""CIFAR-10: what is found on disk, what is downloaded from a server that misbehaves, and what is refused."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from job.config.errors import UserError
from job.config.settings import REPOSITORY, Data
from job.data import cache, cifar10, datasets
from job.data.local import download

COUNT = 20
"""images in each of the six batches of the small stand-in"""


def batch(number: int) -> bytes:
    """A batch as CIFAR-10 has it: rows of 1,024 red, 1,024 green and 1,024 blue values, pickled with protocol 2."""
    data = np.random.default_rng(number).integers(0, 256, (COUNT, 3072), np.uint8)
    labels = [(number + row) % 10 for row in range(COUNT)]
    return pickle.dumps({"batch_label": f"batch {number}", "labels": labels, "data": data}, protocol=2)


BATCHES = {name: batch(number) for number, name in enumerate((*cifar10.TRAIN, *cifar10.TEST))}


def packed(batches: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in {**batches, "readme.html": b"<html>"}.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


ARCHIVE = packed(BATCHES)


def published(content: bytes = ARCHIVE, url: str = "http://127.0.0.1:9/cifar-10-python.tar.gz") -> cifar10.Published:
    """What would be published if ``content`` were CIFAR-10. Nothing listens on port 9."""
    return cifar10.Published(
        url=url,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        batches=tuple((name, hashlib.md5(content).hexdigest()) for name, content in BATCHES.items()),
    )


REAL = cifar10.PUBLISHED


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small archive in place of the real one, and no proxy between this machine and itself."""
    monkeypatch.setattr(cifar10, "PUBLISHED", published())
    monkeypatch.setenv("no_proxy", "*")


@dataclass
class Server:
    """Serves one file on a real socket, in one of several bad ways."""

    content: bytes = ARCHIVE
    ranges: bool = True
    breaks_off_after: int | None = None
    """bytes of each answer after which the connection closes"""
    stalls: bool = False
    status: int = 200
    asked: list[str | None] = field(default_factory=list)
    """the Range header of each request"""
    url: str = ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    behaviour = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            behaviour.asked.append(wanted)
            if behaviour.stalls:
                time.sleep(3)
                return
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and behaviour.ranges else 0
            body = behaviour.content[start:]
            self.send_response(206 if start else behaviour.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: behaviour.breaks_off_after])

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        behaviour.url = f"http://127.0.0.1:{httpd.server_port}/cifar-10-python.tar.gz"
        monkeypatch.setattr(cifar10, "PUBLISHED", published(url=behaviour.url))
        yield behaviour
        httpd.shutdown()
        thread.join()


def fetch(root: Path) -> bytes:
    cifar10.fetch(root, None, cache.silent, lambda line: None)
    return (root / "cifar-10-python.tar.gz").read_bytes()


def decode(root: Path, into: Path, download: bool = False) -> np.ndarray:
    into.mkdir()
    cifar10.decode(root, download, None, into, cache.silent, lambda line: None)
    return np.load(into / "train_images.npy")


# --- what is on disk


def test_the_archive_gives_images_and_labels_in_the_order_of_the_batches(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(ARCHIVE)
    images = decode(tmp_path, tmp_path / "out")
    assert images.shape == (5 * COUNT, 32, 32, 3)
    row = pickle.loads(BATCHES["data_batch_2"])["data"][3]
    np.testing.assert_array_equal(images[COUNT + 3], row.reshape(3, 32, 32).transpose(1, 2, 0))
    labels = np.load(tmp_path / "out" / "train_labels.npy")
    assert labels[COUNT : COUNT + 3].tolist() == [1, 2, 3]
    assert np.load(tmp_path / "out" / "test_labels.npy").shape == (COUNT,)


def test_the_folder_that_torchvision_leaves_gives_the_same(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(ARCHIVE)
    with tarfile.open(fileobj=io.BytesIO(ARCHIVE)) as tar:
        tar.extractall(tmp_path / "folder", filter="data")
    one = decode(tmp_path, tmp_path / "a")
    np.testing.assert_array_equal(one, decode(tmp_path / "folder", tmp_path / "b"))


def test_the_checksums_are_those_that_torchvision_has() -> None:
    theirs = pytest.importorskip("torchvision.datasets").CIFAR10
    assert REAL.url == theirs.url
    assert REAL.filename == theirs.filename
    assert REAL.folder == theirs.base_folder
    assert [list(batch) for batch in REAL.batches] == [*theirs.train_list, *theirs.test_list]


@pytest.mark.parametrize("share", [0, 0.5, 0.999])
def test_a_truncated_archive_is_named_and_never_decoded(tmp_path: Path, share: float) -> None:
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(ARCHIVE[: int(len(ARCHIVE) * share)])
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz .*damaged or truncated: delete it"):
        decode(tmp_path, tmp_path / "out")
    assert archive.exists(), "what the user put there is the user's"


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_damaged_batch_is_named(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, content in BATCHES.items():
        (folder / name).write_bytes(content)
    (folder / "data_batch_4").unlink()
    if damage == "changed":
        (folder / "data_batch_4").write_bytes(BATCHES["data_batch_4"][:-1] + b"!")
    with pytest.raises(UserError, match="data_batch_4: missing, damaged or truncated"):
        decode(tmp_path, tmp_path / "out")


class Malicious:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch owned",)


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = packed({**BATCHES, "data_batch_1": pickle.dumps({"data": Malicious(), "labels": []}, protocol=2)})
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(content)
    monkeypatch.setattr(cifar10, "PUBLISHED", published(content))
    with pytest.raises(pickle.UnpicklingError, match=r"refuses .*system"):
        decode(tmp_path, tmp_path / "out")
    assert not (tmp_path / "owned").exists()


# --- download


def test_a_missing_archive_is_downloaded_verified_and_decoded(tmp_path: Path, server: Server) -> None:
    images = decode(tmp_path / "data", tmp_path / "out", download=True)
    assert len(images) == 5 * COUNT
    assert (tmp_path / "data" / "cifar-10-python.tar.gz").read_bytes() == ARCHIVE
    assert not (tmp_path / "data" / "cifar-10-python.tar.gz.part").exists()


def test_a_server_that_breaks_off_is_continued_where_it_stopped(tmp_path: Path, server: Server) -> None:
    server.breaks_off_after = len(ARCHIVE) // 3 + 1
    assert fetch(tmp_path) == ARCHIVE
    third = server.breaks_off_after
    assert server.asked == [None, f"bytes={third}-", f"bytes={2 * third}-"]


def test_what_an_earlier_attempt_left_is_continued(tmp_path: Path, server: Server) -> None:
    (tmp_path / "cifar-10-python.tar.gz.part").write_bytes(ARCHIVE[:5000])
    assert fetch(tmp_path) == ARCHIVE
    assert server.asked == ["bytes=5000-"]


def test_a_server_that_ignores_ranges_is_read_from_the_start(tmp_path: Path, server: Server) -> None:
    server.ranges = False
    (tmp_path / "cifar-10-python.tar.gz.part").write_bytes(ARCHIVE[:5000])
    assert fetch(tmp_path) == ARCHIVE


@pytest.mark.parametrize("left", [b"x" * 5000, b"x" * len(ARCHIVE), b"x" * (len(ARCHIVE) + 9)])
def test_damage_that_an_earlier_attempt_left_is_found_and_replaced(tmp_path: Path, server: Server, left: bytes) -> None:
    (tmp_path / "cifar-10-python.tar.gz.part").write_bytes(left)
    assert fetch(tmp_path) == ARCHIVE


def test_a_server_that_always_breaks_off_is_given_up_and_what_came_is_kept(tmp_path: Path, server: Server) -> None:
    server.ranges, server.breaks_off_after = False, 7000
    with pytest.raises(UserError, match="the connection broke off"):
        fetch(tmp_path)
    assert (tmp_path / "cifar-10-python.tar.gz.part").stat().st_size == 7000
    assert len(server.asked) < 10


@pytest.mark.parametrize("content", [b"<html>Please log in</html>", bytes(len(ARCHIVE)), ARCHIVE + b"more"])
def test_another_file_than_the_published_one_is_refused(tmp_path: Path, server: Server, content: bytes) -> None:
    server.content, server.ranges = content, False
    with pytest.raises(UserError, match="could be downloaded"):
        fetch(tmp_path)
    assert not (tmp_path / "cifar-10-python.tar.gz").exists()
    server.content = ARCHIVE
    assert fetch(tmp_path) == ARCHIVE, "and the next attempt does not suffer from it"


def test_what_the_server_answers_instead_is_in_the_message(tmp_path: Path, server: Server) -> None:
    server.status = 503
    server.content = b""
    with pytest.raises(UserError, match="503 Service Unavailable"):
        fetch(tmp_path)


def test_a_server_that_says_nothing_is_given_up(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PATIENCE", 0.5)
    server.stalls = True
    started = time.monotonic()
    with pytest.raises(UserError, match=r"nothing came for 0\.5 s"):
        fetch(tmp_path)
    assert time.monotonic() - started < 3


def test_without_network_and_data_the_message_says_what_to_run_and_where_to_put_the_file(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        decode(tmp_path / "data", tmp_path / "out", download=True)
    assert time.monotonic() - started < 5
    for part in ("Connection refused", "python job/prepare.py", "cifar-10-python.tar.gz", f"{tmp_path}/data"):
        assert part in str(caught.value)


def test_a_download_that_is_not_allowed_is_not_tried(tmp_path: Path) -> None:
    data = Data(source="cifar10", root=str(tmp_path / "data"), download=False, cache=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"data\.download is false\): where there is a network run"):
        datasets.load(data, seed=1)


def test_from_nothing_to_splits_by_a_sites_own_copy_and_then_without_the_archive(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Data(source="cifar10", root=str(tmp_path / "data"), url=server.url)
    monkeypatch.setattr(cifar10, "PUBLISHED", published())
    datasets.prepare(data, log=lambda line: None)
    (tmp_path / "data" / "cifar-10-python.tar.gz").unlink()  # what is decoded is enough, on a node without network
    loaded = datasets.load(replace(data, download=False), seed=1, log=lambda line: None)
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (80, 20, 20)
    assert loaded.classes[0] == "airplane"


def test_a_root_that_cannot_be_written_is_an_error(tmp_path: Path, server: Server) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data\.root"):
        fetch(tmp_path / "file" / "data")


def test_many_at_once_download_once(tmp_path: Path, server: Server) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: fetch(tmp_path), range(4))) == {ARCHIVE}
    assert server.asked == [None]


def test_a_download_that_is_killed_is_continued(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = ARCHIVE[:2] + os.urandom((1 << 20) - 2)
    server.breaks_off_after = 1 << 19
    program = (
        "from pathlib import Path\nfrom job.data import cifar10\n"
        f"cifar10.PUBLISHED = cifar10.Published(url={server.url!r}, size={1 << 20}, sha256='0')\n"
        "import os, signal\n"
        "def die(chunk): os.kill(os.getpid(), signal.SIGKILL) if part.stat().st_size else None\n"
        f"part = Path({str(tmp_path)!r}) / 'cifar-10-python.tar.gz.part'\n"
        "from contextlib import contextmanager\n"
        "@contextmanager\n"
        "def progress(*_): yield die\n"
        "cifar10.fetch(part.parent, None, progress, print)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY)
    assert killed.returncode == -9
    left = (tmp_path / "cifar-10-python.tar.gz.part").stat().st_size
    assert left > 0
    server.breaks_off_after = None
    monkeypatch.setattr(cifar10, "PUBLISHED", published(server.content, server.url))
    assert fetch(tmp_path) == server.content
    assert server.asked[-1] == f"bytes={left}-"


def test_progress_counts_every_byte_once_also_after_a_restart(tmp_path: Path, server: Server) -> None:
    done = 0

    @contextmanager
    def progress(description: str, total: int | None, unit: str) -> Iterator[cache.Advance]:
        assert (total, unit) == (len(ARCHIVE), "B")

        def advance(amount: int) -> None:
            nonlocal done
            done += amount

        yield advance

    (tmp_path / "cifar-10-python.tar.gz.part").write_bytes(b"x" * 5000)
    cifar10.fetch(tmp_path, None, progress, lambda line: None)
    assert done == len(ARCHIVE)
