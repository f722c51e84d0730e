"""Whatever becomes of the console, a command ends as its work does."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from support.jobs import REPOSITORY, environment

SCRIPT = """
import sys, threading, warnings
from pathlib import Path
from rich.console import Console
from job.config.errors import UserError
from job.distributed import ending

def main(argv):
    warnings.warn("such as a library's")
    thread = threading.Thread(target=lambda: print("from a thread", file=sys.stderr))
    thread.start()
    thread.join()
    for number in range(2000):
        print("a line of many, more than a pipe holds", number)
    Console().print("through rich")
    Path(argv[0]).write_bytes(b"written")
    if argv[1] == "wrong":
        raise UserError("\\x1b[31mred\\nerror: \\u202eleft \\udcf6", "mend it")
    return 0

ending.entry(main, only_shows=sys.argv[2] == "shows")
"""


def run(how: str, shell: str, file: Path, **streams: int) -> subprocess.CompletedProcess[str]:
    """``SCRIPT`` with what ``shell`` does to its output, and how it ended."""
    words = [sys.executable, "-c", SCRIPT, str(file), how]
    script = f'"$@" {shell}'
    return subprocess.run(
        ["bash", "-c", script, "bash", *words], cwd=REPOSITORY, env=environment(), encoding="utf-8", timeout=60,
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams),
    )  # fmt: skip


def gone() -> int:
    """A terminal that has hung up: what is written there is answered with EIO."""
    leader, follower = pty.openpty()
    os.close(leader)
    return follower


@pytest.mark.parametrize(
    "shell",
    ["| head -n 1; exit ${PIPESTATUS[0]}", ">/dev/full 2>/dev/full", ">&- 2>&- <&-", "2>&-", "2>/dev/full", "terminal"],
)
def test_what_cannot_be_shown_is_left_out_and_the_work_is_done(shell: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    if shell == "terminal":
        terminal = gone()
        done = run("works", "", file, stdout=terminal, stderr=terminal)
        os.close(terminal)
    else:
        done = run("works", shell, file)
    assert done.returncode == 0, done.stderr
    assert file.read_bytes() == b"written"
    assert "Traceback" not in (done.stderr or "")
    assert "Exception ignored" not in (done.stderr or "")


def test_a_command_that_only_shows_ends_with_its_reader_and_fails_on_a_full_disk(tmp_path: Path) -> None:
    done = run("shows", "| head -n 1; exit ${PIPESTATUS[0]}", tmp_path / "file")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert "error" not in done.stderr
    assert not (tmp_path / "file").exists()
    done = run("shows", ">/dev/full", tmp_path / "file")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: standard output cannot be written (No space left on device)"


def test_nothing_in_an_error_is_obeyed_by_the_terminal(tmp_path: Path) -> None:
    done = run("wrong", ">&-", tmp_path / "file")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == r"error: \x1b[31mred\nerror: \u202eleft \udcf6: mend it"
