"""Finished runs side by side: what differs, and whether by more than chance."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.config.errors import UserError
from job.config.plain import flat, recipe, to_dict
from job.config.settings import Config, SeedOf
from job.evaluation import predictions, reference
from job.runs import reader
from job.runs.reader import Run
from job.runs.records import Evaluation

SOURCES = tuple(f.name for f in dataclasses.fields(SeedOf))
"""what is drawn, each by a seed"""


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
    names = _names([run.path for run in runs])
    finished = []
    for run, name in zip(runs, names, strict=True):
        if not run.evaluation:
            state = run.status.get("state", "begun")
            raise UserError(f"{run.path} is not finished ({state})", "let it finish, or leave it out")
        said = predictions.read(run.path)
        finished.append(Finished(run, run.evaluation, name, said["labels"], said["labels"] == said["predicted"]))
    for other in finished[1:]:
        _require_same_data(finished[0], other)
    return finished


def _names(paths: Sequence[Path]) -> list[str]:
    """The end of each path that no other has."""
    most = max(len(path.parts) for path in paths)
    ends = [[Path(*path.parts[-n:]).as_posix() for path in paths] for n in range(1, most + 1)]
    return [next(end[i] for end in ends if end.count(end[i]) == 1) for i in range(len(paths))]


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
        "sources": sources(runs),
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


def question(one: Finished) -> tuple[str, dict[str, int]]:
    """The recipe of a run, and the seeds that it has beside ``train.seed``, by what they draw."""
    settings = _recipe(one.run.config)
    own = {name: settings.pop(f"train.seed_of.{name}", None) for name in SOURCES}
    return repr(sorted(settings.items())), {name: seed for name, seed in own.items() if seed is not None}


def sources(runs: Sequence[Finished]) -> list[dict[str, Any]]:
    """Where chance comes from: the deviation of accuracy over runs of a recipe that differ in one seed alone.

    One source at a time, the others fixed, as X. Bouthillier et al., "Accounting for variance in machine learning
    benchmarks" (MLSys 2021) do; pooled where the others were fixed at several values. What sources do together is the
    rest of the variance of all. Intervals: 95%, of a normal sample (``scipy.stats.chi2``).
    """
    recipes: dict[str, dict[tuple[int, ...], Finished]] = {}
    for one in runs:
        recipe, own = question(one)
        seeds = tuple(own.get(name, one.run.setting("train.seed")) for name in SOURCES)
        recipes.setdefault(recipe, {})[seeds] = one
    found = []
    for by_seeds in recipes.values():
        alone = []
        for i, name in enumerate(SOURCES):
            groups: dict[tuple[int, ...], list[float]] = {}
            for seeds, one in by_seeds.items():
                groups.setdefault(seeds[:i] + seeds[i + 1 :], []).append(one.result["accuracy"])
            alone.append(_source(name, groups.values()))
        together = [one.result["accuracy"] for one in by_seeds.values() if not question(one)[1]]
        if any(alone):
            model = next(iter(by_seeds.values())).run.model
            rows = [row for row in (*alone, _source("all", [together])) if row]
            found += [{"model": model, **row} for row in sorted(rows, key=lambda row: -row["deviation"])]
    return found


def _source(name: str, groups: Iterable[list[float]]) -> dict[str, Any] | None:
    """None where no two runs differ in this alone."""
    from scipy.stats import chi2

    several = [group for group in groups if len(group) > 1]
    free = sum(len(group) - 1 for group in several)
    if not free:
        return None
    squares = math.fsum(statistics.variance(group) * (len(group) - 1) for group in several)
    low, high = (math.sqrt(squares / float(chi2.ppf(share, free))) for share in (0.975, 0.025))
    count = sum(map(len, several))
    return {"source": name, "runs": count, "deviation": math.sqrt(squares / free), "interval": [low, high]}


def of_chance(found: Sequence[dict[str, Any]]) -> list[str]:
    """What ``sources`` found, in a sentence for each network."""
    said = []
    for model, rows in itertools.groupby(found, key=lambda row: row["model"]):
        parts = [
            f"{'all seeds' if row['source'] == 'all' else row['source']} {100 * row['deviation']:.2f}" for row in rows
        ]
        said.append(f"chance in {model}, deviation in points: {', '.join(parts)}")
    return said


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
