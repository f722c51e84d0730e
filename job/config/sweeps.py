"""A file that asks a question: one configuration, several arms that differ in some of its settings, several seeds."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.config import command_line, yaml_text
from job.config.errors import UserError
from job.config.plain import flat
from job.config.settings import REPOSITORY, Config

MOST_RUNS = 10_000
_NAME = re.compile(r"[\w=+,-][\w.=+,-]{0,99}")
_FORM = "give base, seeds, and arms or a grid, as configs/sweeps/ does"


@dataclass(frozen=True)
class Planned:
    """One run of a sweep."""

    arm: str
    seed: int
    words: list[str]
    """what job/train.py is told"""
    settings: Config

    @property
    def path(self) -> Path:
        """Its run directory."""
        return Path(self.settings.run.dir or "")


def read(file: Path, runs: Path = REPOSITORY / "runs", most: int | None = None) -> list[Planned]:
    """All runs of the sweep in ``file``, seed by seed, in directories ``runs/<sweep>/<arm>/seed-<n>``.

    With ``most`` they have so many seeds: those in the file, and then the numbers after the largest.
    Raises UserError, with the arm, for all that is wrong with any of them.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
        content = yaml_text.load_yaml(text, str(file))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no text in UTF-8"
        raise UserError(f"{file} cannot be read ({reason})", "name a file such as those in configs/sweeps/") from None
    if unknown := sorted(set(content) - {"base", "seeds", "arms", "grid"}):
        raise UserError(f"{file}: unknown key {unknown[0]}", _FORM)
    base, seeds, arms = _base(file, content.get("base")), content.get("seeds"), _arms(file, content)
    whole = [seed for seed in seeds if type(seed) is int] if isinstance(seeds, list) else []
    if not isinstance(seeds, list) or not whole or list(dict.fromkeys(whole)) != seeds:
        raise UserError(f"{file}: seeds={seeds}", "give a list of different whole numbers, such as [1, 2, 3]")
    _require_few(file, len(arms) * (most or len(seeds)))
    seeds = [*seeds, *(max(seeds) + i for i in range(1, (most or 0) + 1))][: most or len(seeds)]
    planned = {arm: _planned(file, base, arm, settings) for arm, settings in arms.items()}
    found = []
    for seed, arm in itertools.product(seeds, arms):
        with _of_arm(file, arm):
            found.append(_with_seed(planned[arm], seed, runs / file.stem / arm / f"seed-{seed}"))
    return found


def _require_few(file: Path, runs: int) -> None:
    if runs > MOST_RUNS:
        raise UserError(f"{file}: {runs:,} runs", f"ask for {MOST_RUNS:,} at most")


def _base(file: Path, base: Any) -> Path:
    """The configuration, named as from the folder of ``file``, or as from here."""
    found = [path for path in (file.parent / str(base), Path(str(base))) if path.is_file()]
    if not isinstance(base, str) or not found:
        raise UserError(f"{file}: base={base}", "name a configuration, as seen from this file")
    return found[0].resolve()


def _arms(file: Path, content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings with dotted keys, by arm."""
    arms, grid = content.get("arms"), content.get("grid")
    if (arms is None) == (grid is None) or not isinstance(arms or grid, dict):
        raise UserError(f"{file} must have arms or a grid, and not both", _FORM)
    if arms is None:
        columns = {key: values for key, values in flat(grid).items() if isinstance(values, list) and values}
        if len(columns) < len(flat(grid)):
            raise UserError(f"{file}: grid", "give a list of values for each key")
        _require_few(file, math.prod(map(len, columns.values())))
        points = [dict(zip(columns, point, strict=True)) for point in itertools.product(*columns.values())]
        names = [",".join(f"{key.rpartition('.')[2]}={_word(value)}" for key, value in at.items()) for at in points]
        if len(set(names)) < len(names):
            raise UserError(f"{file}: grid", "a value is given twice")
        arms = dict(zip(names, points, strict=True))
    for name, settings in arms.items():
        if not _NAME.fullmatch(str(name)):
            raise UserError(f"{file}: arm {name!r}", "is to be a directory's name: letters, digits, and -_.=+,")
        if settings is not None and not isinstance(settings, dict):
            raise UserError(f"{file}: arm {name}", "must hold settings, such as {model.name: vgg16}, or {} for base's")
    return {str(name): flat(settings or {}) for name, settings in arms.items()}


def _planned(file: Path, base: Path, arm: str, settings: dict[str, Any]) -> Planned:
    """The runs of an arm, yet without seed and directory."""
    for key in ("train.seed", "run.dir"):
        if key in settings:
            raise UserError(f"{file}: arm {arm}: {key}", "is given by the sweep itself; leave it out")
    words = [f"--config={base}", *(f"--{key}={_word(value)}" for key, value in settings.items())]
    with _of_arm(file, arm):
        return Planned(arm, 0, words, command_line.parse(words, description=""))


@contextlib.contextmanager
def _of_arm(file: Path, arm: str) -> Iterator[None]:
    """Say of a mistake where it stands."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{file}: arm {arm}: {error}") from None


def _with_seed(planned: Planned, seed: int, path: Path) -> Planned:
    settings = planned.settings
    train, run = dataclasses.replace(settings.train, seed=seed), dataclasses.replace(settings.run, dir=str(path))
    words = [*planned.words, f"--train.seed={seed}", f"--run.dir={path}"]
    return Planned(planned.arm, seed, words, dataclasses.replace(settings, train=train, run=run))


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
