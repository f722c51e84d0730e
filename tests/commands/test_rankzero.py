"""The commands by name, as an installed package has them."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support import run_directories
from support.jobs import REPOSITORY, environment, run_job


def rankzero(*words: object, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    given = environment(PYTHONPATH=str(REPOSITORY))
    command = [sys.executable, "-m", "job", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=given)


def test_a_command_by_name_is_the_same_command(tmp_path: Path) -> None:
    run = run_directories.write(tmp_path / "run", finished=False)
    named, script = rankzero("watch", run, "--once", cwd=tmp_path), run_job("watch.py", run, "--once")
    assert (named.returncode, named.stdout) == (0, script.stdout)
    nowhere = rankzero("watch", tmp_path / "nothing")
    assert nowhere.returncode == 2
    assert nowhere.stderr.startswith(f"error: {tmp_path / 'nothing'} is no run directory")


@pytest.mark.parametrize("words", [(), ("--help",), ("nonsense",)])
def test_without_a_command_it_lists_them_all_and_of_a_wrong_one_says_so_in_one_line(words: tuple[str, ...]) -> None:
    done = rankzero(*words)
    wrong = words == ("nonsense",)
    assert done.returncode == (2 if wrong else 0)
    said = done.stderr if wrong else done.stdout
    assert all(path.stem in said for path in (REPOSITORY / "job").glob("[a-z]*.py"))
    assert said.count("\n") == 1 or not wrong


def test_the_package_installs_it() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"rankzero": "job.__main__:main"}


def test_a_shell_completes_commands_and_settings() -> None:
    script = f"""eval "$('{sys.executable}' -m job --completion)"
        words=$(complete -p rankzero); words=${{words#*"'"}}; compgen -W "${{words%"'"*}}" -- "$1" """
    for begun, completed in (("ver", ["verify"]), ("--train.seed_of.w", ["--train.seed_of.weights"])):
        done = subprocess.run(
            ["bash", "-c", script, "bash", begun], capture_output=True, text=True, env=environment(), cwd=REPOSITORY
        )
        assert (done.stdout.split(), done.stderr) == (completed, "")
