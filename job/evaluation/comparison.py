"""Finished runs side by side: what differs, and whether by more than chance."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.config.errors import UserError
from job.config.plain import flat, recipe, to_dict
from job.config.settings import Config
from job.evaluation import predictions, reference
from job.runs import reader
from job.runs.reader import Run
from job.runs.records import Evaluation


@dataclass(frozen=True, eq=False)
class Finished:
    """A finished run, with what it said of each test image."""

    run: Run
    result: Evaluation
    name: str
    """unlike those of the others"""
    labels: NDArray[np.int64]
    """[n] true classes"""
    right: NDArray[np.bool_]
    """[n] whether the predicted class is the true one"""


def choose(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The runs to compare among ``paths`` and below them, and what is said of those that are left out.

    Two that are finished are enough; where there are fewer, nothing is left out, and ``read`` says what is wrong.
    """
    found = [run for path in paths for run in (reader.runs_below(path) or [path])]
    finished = [path for path in found if (path / "evaluation.json").exists()]
    if len(finished) < 2:
        return found, []
    left_out = [path for path in found if path not in finished and path.exists()]
    missing = [path for path in found if not path.exists()]  # a slip of the finger
    return [*finished, *missing], [
        f"{path} is {'not finished' if (path / 'config.yaml').exists() else 'no run directory'}" for path in left_out
    ]


def read(paths: Sequence[Path]) -> list[Finished]:
    """The runs in ``paths``. Raises UserError unless all are finished and were tested on the same images."""
    runs = [reader.read(path) for path in dict.fromkeys(path.resolve() for path in paths)]
    names = [run.name for run in runs]
    finished = []
    for run in runs:
        if not run.evaluation:
            state = run.status.get("state", "begun")
            raise UserError(f"{run.path} is not finished ({state})", "let it finish, or leave it out")
        said = predictions.read(run.path)
        name = run.name if names.count(run.name) == 1 else str(run.path)
        finished.append(Finished(run, run.evaluation, name, said["labels"], said["labels"] == said["predicted"]))
    for other in finished[1:]:
        _require_same_data(finished[0], other)
    return finished


def _require_same_data(first: Finished, other: Finished) -> None:
    pair = f"{first.name} and {other.name}"
    mend = "compare runs that were tested on the same images"
    ours, theirs = ([row["name"] for row in one.result["classes"]] for one in (first, other))
    if ours != theirs:
        only = sorted(set(ours) ^ set(theirs))
        what = f"only one has {', '.join(only[:3])}" if only else "their order differs"
        raise UserError(f"{pair} have different classes ({what})", mend)
    splits = [one.result["split"] for one in (first, other)]
    if len(set(splits)) > 1:
        raise UserError(f"{pair} were evaluated on different splits ({' and '.join(splits)})", mend)
    prints = [one.result.get("data") for one in (first, other)]
    if not np.array_equal(first.labels, other.labels):
        raise UserError(f"{pair} were tested on different images (their true classes differ)", mend)
    if None not in prints and prints[0] != prints[1]:
        raise UserError(f"{pair} used different data (the images' fingerprints differ)", mend)


def compare(runs: Sequence[Finished], *, pairs: bool = True) -> dict[str, Any]:
    """The content of ``comparison.json``. Differences are second less first of two runs, where ``pairs`` are wanted."""
    found = []
    if pairs:
        right = np.stack([one.right for one in runs]).astype(np.float32)
        only = (right @ (1 - right).T).astype(np.int64)  # [first, second]: images that only the first gets right
        both = itertools.combinations(range(len(runs)), 2)
        found = [_pair(runs[a], runs[b], int(only[a, b]), int(only[b, a])) for a, b in both]
    return {
        "runs": [_facts(one) for one in runs],
        "classes": [
            {"name": rows[0]["name"], "accuracy": [row["accuracy"] for row in rows]}
            for rows in zip(*(one.result["classes"] for one in runs), strict=True)
        ],
        "pairs": found,
        "repetitions": repetitions(runs),
    }


def _facts(one: Finished) -> dict[str, Any]:
    run, result = one.run, one.result
    best = result.get("best_validation")
    published = reference.published(run)
    return {
        "name": one.name,
        "path": str(run.path),
        "model": run.model,
        "seed": run.setting("train.seed"),
        "epochs": result.get("epochs"),
        "split": result["split"],
        "accuracy": result["accuracy"],
        "interval": result["interval"],
        "published": published,
        "above_published": None if published is None else result["accuracy"] - published,
        "best_validation": best.get("accuracy") if best else None,
        "images_per_second": run.images_per_second,
        "seconds": run.seconds,
        "parameters": result.get("parameters"),
        "devices": run.environment.get("devices", []),
    }


def _pair(a: Finished, b: Finished, only_a: int, only_b: int) -> dict[str, Any]:
    return {
        "first": a.name,
        "second": b.name,
        "difference": b.result["accuracy"] - a.result["accuracy"],
        "only_first_right": only_a,
        "only_second_right": only_b,
        "p": mcnemar(only_a, only_b),
    }


def mcnemar(only_first: int, only_second: int) -> float:
    """Probability of a split at least as uneven among the images that one of two models gets right and one does not,
    if both were equally good.

    Q. McNemar, Psychometrika 12 (1947), pp. 153-157; here the exact, two-sided binomial test in place of the
    chi-squared approximation, which images in the thousands do not call for.
    """
    total, fewer = only_first + only_second, min(only_first, only_second)
    # (C(total, 0) + ... + C(total, fewer)) / 2^total by logarithms: the whole numbers have thousands of digits.
    i = np.arange(fewer)
    terms = np.concatenate([[0.0], np.cumsum(np.log((total - i) / (i + 1)))]) - total * math.log(2)
    return min(1.0, 2 * float(np.exp(terms).sum()))


def repetitions(runs: Sequence[Finished]) -> list[dict[str, Any]]:
    """Groups of runs of the same recipe on different seeds: mean and standard deviation (n - 1) of their accuracy."""
    return [_spread(by_seed) for _, by_seed in by_recipe(runs) if len(by_seed) > 1]


def by_recipe(runs: Sequence[Finished]) -> list[tuple[dict[str, Any], dict[int, Finished]]]:
    """Each recipe, as settings with dotted keys, and its runs by seed."""
    groups: dict[str, tuple[dict[str, Any], dict[int, Finished]]] = {}
    for one in runs:
        settings = _recipe(one.run.config)
        # One run a seed: twice the same would count for less spread than there is.
        _, by_seed = groups.setdefault(repr(sorted(settings.items())), (settings, {}))
        by_seed.setdefault(one.run.setting("train.seed"), one)
    return list(groups.values())


def _spread(by_seed: dict[Any, Finished]) -> dict[str, Any]:
    accuracies = [one.result["accuracy"] for one in by_seed.values()]
    return {
        "runs": [one.name for one in by_seed.values()],
        "seeds": list(by_seed),
        "mean": statistics.fmean(accuracies),
        "standard_deviation": statistics.stdev(accuracies),
    }


def _recipe(settings: reader.Record) -> dict[str, Any]:
    """What repetitions share; settings of an earlier version of this program have what was added since."""
    given, known = flat(settings), flat(to_dict(Config()))
    shared = {key: given.get(key, default) for key, default in recipe(Config()).items()}
    return shared | {key: value for key, value in given.items() if key not in known}
