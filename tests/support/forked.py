"""Processes forked from one that has all imported: that saves six seconds a start, and nothing else.

What is forked has done nothing of the job itself, and gets arguments, environment, directory and output of its own.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from unittest import mock

REPOSITORY = Path(__file__).resolve().parents[2]


@functools.cache
def fork_server() -> ForkServerContext:
    """One a test process: it starts with the first use, and ends with the test process."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["support.imported"])
    path = os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "tests")))
    with mock.patch.dict(os.environ, PYTHONPATH=path):  # before Python 3.13 it does not get this process's sys.path
        forkserver.ensure_running()
    return server


def start(
    command: Sequence[str], environment: Mapping[str, str], out: Path, error: Path, *, report: bool
) -> ForkServerProcess:
    """Start ``command`` (``python SCRIPT ARGUMENT...``) in the root directory, with files for what it says.

    Without ``report`` no figures and no page are drawn at the end of training.
    """
    arguments = (list(command[1:]), dict(environment), str(out), str(error), report)
    process = fork_server().Process(target=_become, args=arguments)
    process.start()
    return process


def say_to(out: str, error: str) -> None:
    """Send what this process writes from now on to the ends of two files, or of one."""
    for descriptor, path in ((1, out), (2, error)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(file, descriptor)
        os.close(file)


def _become(arguments: list[str], environment: dict[str, str], out: str, error: str, report: bool = True) -> None:
    """Be what ``python SCRIPT ARGUMENT...`` is."""
    say_to(out, error)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir("/")
    script = Path(arguments[0])
    others = [path for path in sys.path if not Path(path).is_relative_to(REPOSITORY) or "site-packages" in path]
    if not report and script.name == "train.py":
        from job.display import run_page

        run_page.write = lambda *_: None  # type: ignore[assignment]
    sys.path[:] = [str(script.parent), *others]
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")
