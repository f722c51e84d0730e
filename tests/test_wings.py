"""The house: imports run one way, a wing is used through its face, and rooms stay small enough to be read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.jobs import REPOSITORY

JOB = REPOSITORY / "job"
FLOORS = [{"config"}, {"distributed", "data", "models"}, {"runs"}, {"evaluation"}, {"display"}, {"training"}]
TORCH = {"data", "models", "evaluation", "training"}
"""wings that import torch at the top; a run directory is opened, read and shown without it"""
TORCH_TOO = {JOB / "runs" / "checkpoint.py", JOB / "runs" / "export.py"}
MODULES = sorted(JOB.glob("**/*.py"))


def wing_of(path: Path) -> str:
    """The wing that a module lies in, "" for a command."""
    return path.relative_to(JOB).parts[0] if path.parent != JOB else ""


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """What a module imports from ``job``: pairs of a dotted module below ``job`` and a name of it.

    Of a module that is imported as a whole these are the names that are taken from it.
    """
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("job"):
            continue
        package = (node.module or "").removeprefix("job").removeprefix(".")
        for alias in node.names:
            inner = ".".join(filter(None, (package, alias.name)))
            if not (JOB / inner.replace(".", "/")).with_suffix(".py").exists():
                yield package, alias.name
                continue
            called = alias.asname or alias.name
            for use in ast.walk(tree):
                if isinstance(use, ast.Attribute) and isinstance(use.value, ast.Name) and use.value.id == called:
                    yield inner, use.attr


def face(wing: str) -> dict[str, set[str]]:
    """The names that a wing's docstring gives away, by module."""
    text = " ".join((ast.get_docstring(ast.parse((JOB / wing / "__init__.py").read_text())) or "").split())
    return {module: set(re.findall(r"\w+", names)) for module, names in re.findall(r"([\w.]+): ([^:;]+)[;.]", text)}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(JOB)))
def test_a_module_imports_from_lower_floors_and_through_faces(path: Path) -> None:
    own = wing_of(path)
    floor = next((i for i, wings in enumerate(FLOORS) if own in wings), len(FLOORS))
    for module, name in imports(path):
        wing, _, room = module.partition(".")
        if wing == own and own:
            continue
        if (JOB / wing).with_suffix(".py").exists():
            importing = (path.name, wing)
            assert importing in (("train.py", "check"), ("sweep.py", "check")), f"{path} imports the command {wing}"
            continue
        lower = set().union(*FLOORS[:floor])
        assert wing in lower, f"{path} imports {module}, which is not below it"
        assert name in face(wing).get(room, set()), f"{path} imports {name} of {module}, which its face does not show"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(JOB)))
def test_a_module_can_be_read_at_one_sitting_and_imports_torch_only_where_that_is_meant(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    if wing_of(path) not in TORCH and path not in TORCH_TOO:
        assert not re.search(r"^(import|from) (torch|accelerate)\b", text, re.MULTILINE)


def test_a_wing_has_nine_modules_at_most() -> None:
    for folder in {path.parent for path in MODULES} - {JOB}:
        assert len([path for path in folder.glob("*.py") if not path.name.startswith("__")]) <= 9, folder


def test_the_launch_environment_is_read_in_one_place() -> None:
    for path in set(MODULES) - {JOB / "distributed" / "launcher.py"}:
        names = re.findall(
            r"\"((?:SLURM|RANKZERO|MASTER|TORCHELASTIC|ACCELERATE)_\w+|(?:LOCAL_)?(?:RANK|WORLD_SIZE))\"",
            path.read_text(),
        )
        assert not names, f"{path} reads {names}"
