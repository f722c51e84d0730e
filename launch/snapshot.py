"""What a job began with is what it goes on with: a copy of the code and of its configuration, in its run directory.

Standard library and Python 3.8 only, like all of launch/ that runs in the batch step.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import directory
from allocation import Allocation, say

ABOUT = "snapshot.json"
"""lies at the top of a copy: the ``repository`` that it is of, its ``commit``, None without git, and whether it was
``dirty``; job/runs/environment.py reads it"""
FOLDERS = ("job", "launch", "configs", "slurm")
"""what is copied where there is no git"""
NOT_RUN = ("docs", "tests")


def own(allocation: Allocation, run: Path, program: Path, words: list[str]) -> Path:
    """The copy from which every start of this job runs, made at the first one; or ``program`` as it lies."""
    code = run / "slurm" / f"{allocation.job}.code"
    if os.environ.get("RANKZERO_WORKING_TREE") or code.resolve() == program:
        return program
    try:
        if not directory.is_own(run, allocation):  # --run.dir; with what another job of this number has left there
            shutil.rmtree(code, ignore_errors=True)
            directory.claim(run, allocation, anew=True)
        if take(repository(program), code, words):
            say(f"code and configuration are copied to {code}: every start of this job runs from there")
        return code.resolve()
    except OSError as error:
        say(f"{code} cannot be written ({error.strerror}): this start runs the code as it lies in {program}")
        return program


def take(repository: Path, into: Path, words: list[str]) -> bool:
    """Copy the program in ``repository`` to ``into``, whole or not at all: False where it is there. Raises OSError.

    That is what git tracks, as it lies there now, and untracked Python and YAML files; each ``--config`` of the command
    line ``words`` too, wherever it lies.
    """
    if into.exists():
        return False
    beside = into.with_name(f".{into.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        for name in sorted(_tracked(repository) or _found(repository)):
            if (repository / name).is_file():  # not deleted, and no submodule
                (beside / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(repository / name, beside / name)
        for number, (_, _, name) in enumerate(_configurations(words)):
            file, kept = repository / Path(name).expanduser(), _kept(beside, number, name)
            if file.is_file():
                kept.parent.mkdir(parents=True)
                shutil.copyfile(file, kept)
        about = {"repository": str(repository), **state(repository)}
        (beside / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        beside.rename(into)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return True


def pinned(program: Path, words: list[str]) -> list[str]:
    """The command line ``words`` with what the copy ``program`` has kept in place of the configurations named."""
    words = list(words)
    for number, (place, before, name) in enumerate(_configurations(words)):
        if _kept(program, number, name).is_file():
            words[place] = f"{before}{_kept(program, number, name)}"
    return words


def repository(program: Path) -> Path:
    """The repository that ``program`` is a copy of, or is."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return Path(json.loads((program / ABOUT).read_text(encoding="utf-8"))["repository"])
    return program


def _configurations(words: list[str]) -> list[tuple[int, str, str]]:
    """Of each configuration named: which word has it, what stands before it in that word, and its name."""
    pairs = [(i + 1, "", words[i + 1]) for i, word in enumerate(words[:-1]) if word == "--config"]
    return pairs + [(i, "--config=", word[9:]) for i, word in enumerate(words) if word.startswith("--config=")]


def _kept(program: Path, number: int, name: str) -> Path:
    return program / "given" / str(number) / Path(name).name


def state(repository: Path) -> dict[str, object]:
    """The ``commit``, and whether the program is ``dirty``: not as it was committed."""
    commit = _git(repository, "rev-parse", "HEAD")
    changed = _git(repository, "status", "--porcelain", "--", *FOLDERS)
    return {"commit": commit and commit.strip(), "dirty": None if changed is None else bool(changed)}


def _tracked(repository: Path) -> list[str]:
    """Files of the program by git; empty without git, or where this is no repository of its own."""
    if not (repository / ".git").exists():
        return []
    tracked = _git(repository, "ls-files", "-z", "--", ".", *(f":!{name}" for name in NOT_RUN))
    others = _git(repository, "ls-files", "-z", "--others", "--exclude-standard", "--", "*.py", "*.yaml", "*.yml")
    return [name for name in ((tracked or "") + (others or "")).split("\0") if name] if tracked else []


def _found(repository: Path) -> list[str]:
    found = [path for folder in FOLDERS for path in (repository / folder).rglob("*") if path.is_file()]
    return [str(path.relative_to(repository)) for path in found if path.parent.name != "__pycache__"]


def _git(repository: Path, *words: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(repository), *words]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return os.fsdecode(done.stdout) if done.returncode == 0 else None
