"""Which run directory is whose, and what is copied into it, by launch/ and by the job itself; needs no Slurm."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from shipped import ROOT

sys.path.append(str(ROOT / "launch"))
import allocation
import directory as launch_directory
import snapshot

from job.config.errors import UserError
from job.runs import directory

JOB: dict[str, Any] = {"cluster": "here", "job": "3", "submitted": 1000, "restarts": 0}


def by_launch(runs: Path, job: dict[str, Any]) -> Path:
    names = {field.name for field in dataclasses.fields(allocation.Allocation)}
    return launch_directory.find(runs, allocation.Allocation(**{**dict.fromkeys(names), "name": "vgg16", **job}))


def by_job(runs: Path, job: dict[str, Any]) -> Path:
    return directory.choose(None, f"vgg16-{job['job']}", job, lambda said: None)


@pytest.mark.parametrize("find", [by_launch, by_job])
@pytest.mark.parametrize(
    ("lives", "name"),
    [
        ([JOB], "vgg16-3"),
        ([JOB, JOB], "vgg16-3"),  # two commands in one allocation
        ([JOB, JOB | {"restarts": 1, "submitted": 1500}, JOB | {"restarts": 4, "submitted": 1900}], "vgg16-3"),
        ([JOB, JOB | {"restarts": 1, "submitted": 0}], "vgg16-3"),  # the controller did not say
        ([JOB, JOB | {"submitted": 2000}], "vgg16-3.2"),  # numbers that began anew
        ([JOB, JOB | {"cluster": "there"}], "vgg16-3.2"),
        ([JOB, JOB | {"submitted": 2000}, JOB | {"submitted": 2500, "restarts": 1}], "vgg16-3.2"),
        ([JOB, JOB | {"cluster": "there", "restarts": 1}], "vgg16-3.2"),
        ([JOB | {"submitted": 2000}, JOB | {"submitted": 1000, "restarts": 1}], "vgg16-3.2"),
        ([JOB | {"job": "3_1"}, JOB | {"job": "3_1", "restarts": 1, "submitted": 1500}], "vgg16-3_1"),
        ([None, JOB], "vgg16-3.2"),  # what there was before there was a memory
        ([None, JOB | {"restarts": 1}], "vgg16-3"),
        ([None, JOB, JOB | {"restarts": 1, "submitted": 1500}], "vgg16-3.2"),
        (["a file", JOB], "vgg16-3.2"),
        (["damaged", JOB | {"restarts": 1}], "vgg16-3.2"),
    ],
)
def test_a_job_finds_its_own_directory_and_never_takes_that_of_another_of_its_number(
    find: Any, lives: list[Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "REPOSITORY", tmp_path)
    runs, found = tmp_path / "runs", Path()
    for life in lives:
        if isinstance(life, dict):
            found = find(runs, life)
        elif life == "a file":
            runs.mkdir()
            (runs / "vgg16-3").touch()
        else:
            (runs / "vgg16-3" / "slurm").mkdir(parents=True)
            (runs / "vgg16-3" / "config.yaml").touch()
            if life:
                (runs / "vgg16-3" / "slurm" / "3.json").write_text("[")
    assert found == runs / name


@pytest.mark.parametrize("find", [by_launch, by_job])
def test_where_no_run_directory_can_be_made_one_line_says_so(
    find: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "REPOSITORY", tmp_path)
    (tmp_path / "runs").touch()
    with pytest.raises((UserError, allocation.LaunchError), match=r"cannot be written .*--run\.dir"):
        find(tmp_path / "runs", JOB)


def test_a_snapshot_has_the_code_as_it_lies_and_the_configurations_and_no_data(tmp_path: Path) -> None:
    here, copy = tmp_path / "re po", tmp_path / "copy"
    for name in ("job/a.py", "job/gone.py", "own/b.py", "docs/c.md", "tests/d.py", "configs/e.yaml", ".gitignore"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("ignored.yaml\n__pycache__\n")
    (tmp_path / "mine.yaml").write_text("mine")

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", here, "-c", "user.name=a", "-c", "user.email=a", *words], check=True)

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "x")
    assert snapshot.state(here)["dirty"] is False
    (here / "job" / "a.py").write_text("changed")
    (here / "job" / "gone.py").unlink()
    for name in ("job/new.py", "data.tar", "configs/ignored.yaml", "job/__pycache__/a.pyc"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text("new")
    words = ["--config", "configs/ignored.yaml", "--config=../mine.yaml", "--config", "missing.yaml", "--config"]
    assert snapshot.take(here, copy, words)
    assert not snapshot.take(here, copy, words)
    found = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    code = {"job/a.py", "own/b.py", "configs/e.yaml", "job/new.py", ".gitignore", "snapshot.json"}
    assert found == code | {"given/0/ignored.yaml", "given/2/mine.yaml"}
    assert (copy / "job" / "a.py").read_text() == "changed"
    pinned = snapshot.pinned(copy, words)
    assert pinned[1:3] == [f"{copy}/given/0/ignored.yaml", f"--config={copy}/given/2/mine.yaml"]
    assert (pinned[0], pinned[3:]) == (words[0], words[3:])
    about = json.loads((copy / "snapshot.json").read_text())
    assert (len(about["commit"]), about["dirty"], snapshot.repository(copy)) == (40, True, here)
    shutil.rmtree(here / ".git")
    assert snapshot.take(here, tmp_path / "without git", [])
    found = {str(path.relative_to(tmp_path / "without git")) for path in (tmp_path / "without git").rglob("*.*")}
    assert found == {"job/a.py", "job/new.py", "configs/e.yaml", "configs/ignored.yaml", "snapshot.json"}
