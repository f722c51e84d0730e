"""Arms of an experiment compared seed by seed: by how much one is better, and whether that is more than chance.

Two runs of one seed share split, order of images, augmentation and, where networks are alike, initial weights. What
these do to both is not in their difference: an interval of paired differences wants far fewer runs (X. Bouthillier et
al., "Accounting for variance in machine learning benchmarks", MLSys 2021).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from job.config.errors import UserError
from job.evaluation import chance, comparison
from job.evaluation.comparison import Finished
from job.runs import reader
from job.runs.reader import Record

Arms = Mapping[str, Mapping[int, Finished]]
"""the finished runs of each arm, by seed"""
LOOKED_AT = "looked-at"
"""file in a sweep's directory: seeds were added until its question was decided, so that intervals must hold at any"""
_SEED = re.compile(r"seed-(-?\d+)")


def below(folder: Path) -> tuple[dict[str, dict[int, Finished]], list[str]]:
    """The finished runs ``<arm>/seed-<n>`` in ``folder`` by arm and seed, and what is said of each that is left out.

    Raises UserError when there are none, or those of one seed were not tested on the same images.
    """
    by_seed: dict[int, list[Path]] = {}
    left_out = []
    for path in sorted(folder.glob("*/seed-*")):
        if (found := _SEED.fullmatch(path.name)) and path.is_dir():
            run = reader.read(path) if (path / "config.yaml").exists() else None
            if run is not None and run.evaluation:
                by_seed.setdefault(int(found[1]), []).append(path)
            else:
                left_out.append(f"{path.parent.name}/{path.name} is left out: {run.state if run else 'not begun'}")
    arms: dict[str, dict[int, Finished]] = {}
    for seed, paths in sorted(by_seed.items()):
        for one in comparison.read(paths):
            arm = one.run.path.parent.name
            arms.setdefault(arm, {})[seed] = dataclasses.replace(one, name=f"{arm}/seed-{seed}")
    if not arms:
        raise UserError(f"{folder} has no finished runs <arm>/seed-<n>", "name the directory of a sweep, runs/<sweep>")
    classes = {tuple(row["name"] for row in one.result["classes"]) for runs in arms.values() for one in runs.values()}
    if len(classes) > 1:
        raise UserError(f"the runs in {folder} have different classes", "compare runs on the same data")
    return dict(sorted(arms.items())), left_out


def among(runs: Sequence[Finished]) -> dict[str, dict[int, Finished]]:
    """The recipes of ``runs`` that share two seeds with another one.

    They are called as the folders are in which a sweep put them, or by the settings in which they differ.
    """
    groups = [(settings, by_seed) for settings, by_seed in comparison.by_recipe(runs) if len(by_seed) > 1]
    groups = [
        one for one in groups if any(len(set(one[1]) & set(other[1])) > 1 for other in groups if other is not one)
    ]
    folders = [
        {one.run.path.parent.name for one in by_seed.values() if _SEED.fullmatch(one.run.name)} for _, by_seed in groups
    ]
    if all(len(names) == 1 for names in folders) and len(set().union(*folders)) == len(groups):
        return {names.pop(): by_seed for names, (_, by_seed) in zip(folders, groups, strict=True)}
    keys = dict.fromkeys(key for settings, _ in groups for key in settings)
    differ = [key for key in keys if len({repr(settings.get(key)) for settings, _ in groups}) > 1]
    return {", ".join(_called(key, settings.get(key)) for key in differ): by_seed for settings, by_seed in groups}


def _called(key: str, value: Any) -> str:
    return str(value) if key == "model.name" else f"{key.rpartition('.')[2]} {value}"


def compare(arms: Arms, *, always: bool = False) -> dict[str, Any]:
    """What ``comparison.json`` says of arms: of each, of every pair that shares seeds, and in a sentence each.

    With ``always`` intervals and p values hold however often they were looked at while seeds were added; else they
    hold for a number of seeds that was settled before.
    """
    asked = _asked(arms)
    both = [pair for pair in itertools.combinations(asked, 2) if set(arms[pair[0]]) & set(arms[pair[1]])]
    pairs = [_pair(first, second, arms, always) for first, second in both]
    known = [pair for pair in pairs if pair["p"] is not None]
    for pair, p in zip(known, chance.holm([pair["p"] for pair in known]), strict=True):
        pair["p_holm"] = p
        wanted = chance.seeds_wanted(pair["difference"], pair["deviation"], len(known), always=always)
        pair["seeds_wanted"] = wanted and max(wanted, len(pair["seeds"]) + 1)
    of_each = [_arm(name, runs) for name, runs in arms.items()]
    best, *others = _ranked([arm for arm in of_each if arm["name"] in asked])
    between = [(other, _between(best, other, pairs)) for other in others]
    return {
        "arms": of_each,
        "paired": pairs,
        "answers": [_answer(best, other, pair) for other, pair in between],
        "decided": bool(others) and all(_tells(pair, best) for _, pair in between),
        "always_valid": always,
    }


def _asked(arms: Arms) -> list[str]:
    """Names of the arms less those that differ from another only in which seeds vary: these tell where chance is."""
    questions = {name: comparison.question(next(iter(runs.values()))) for name, runs in arms.items()}
    fullest: dict[str, dict[str, int]] = {}
    for recipe, own in sorted(questions.values(), key=lambda question: len(question[1])):
        fullest.setdefault(recipe, own)
    return [name for name, (recipe, own) in questions.items() if fullest[recipe] == own]


def _arm(name: str, runs: Mapping[int, Finished]) -> Record:
    accuracies = [one.result["accuracy"] for one in runs.values()]
    seconds = [one.run.seconds for one in runs.values()]
    return {
        "name": name,
        "seeds": sorted(runs),
        "mean": float(np.mean(accuracies)),
        "standard_deviation": float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None,
        "macro_accuracy": _mean([one.result.get("macro_accuracy") for one in runs.values()]),
        "seconds": float(np.mean(seconds)),
        "parameters": next(iter(runs.values())).result.get("parameters"),
        "classes": [_mean(of_class) for of_class in zip(*map(_by_class, runs.values()), strict=True)],
    }


def _pair(first: str, second: str, arms: Arms, always: bool) -> Record:
    """Second less first, over the seeds that both have."""
    seeds = sorted(set(arms[first]) & set(arms[second]))
    a, b = ([arms[name][seed] for seed in seeds] for name in (first, second))
    gained = [two.right.astype(np.float64) - one.right for one, two in zip(a, b, strict=True)]
    differences = np.array([of_seed.mean() for of_seed in gained])
    mean, half = float(differences.mean()), None
    if len(seeds) > 1 and math.isfinite(width := float(chance.half_width(differences, always=always))):
        half = width
    same = all(
        np.array_equal(one.labels, a[0].labels) and one.result.get("data") == a[0].result.get("data") for one in a
    )
    of_images = np.mean(gained, axis=0) if same and len(gained[0]) > 1 else None
    deviation = float(differences.std(ddof=1)) if len(seeds) > 1 else None
    spreads = [float(np.std([one.result["accuracy"] for one in runs], ddof=1)) if half else 0.0 for runs in (a, b)]
    classes = [
        {"name": row["name"], "difference": _mean([_gain(one, two, i) for one, two in zip(a, b, strict=True)])}
        for i, row in enumerate(a[0].result["classes"])
    ]
    return {
        "first": first,
        "second": second,
        "seeds": seeds,
        "difference": mean,
        "half_width": half,
        "half_width_images": None if of_images is None else chance.over_images(of_images),
        "p": chance.p_value(differences, always=always) if len(seeds) > 1 else None,
        "p_holm": None,
        "deviation": deviation,
        "seeds_wanted": None,
        "unpaired_seeds": chance.unpaired(half, spreads[0], spreads[1]) if half else None,
        "classes": classes,
    }


def _ranked(arms: Sequence[Record]) -> list[str]:
    return [arm["name"] for arm in sorted(arms, key=lambda arm: -float(arm["mean"]))]


def _between(best: str, other: str, pairs: Sequence[Record]) -> Record | None:
    return next((pair for pair in pairs if {pair["first"], pair["second"]} == {best, other}), None)


def _tells(pair: Record | None, best: str) -> bool:
    """Whether ``best`` is the better of the pair by more than chance."""
    if pair is None or pair["p_holm"] is None or pair["p_holm"] >= 1 - chance.LEVEL:
        return False
    return bool((pair["difference"] > 0) == (pair["second"] == best))


def _answer(best: str, other: str, pair: Record | None) -> str:
    if pair is None:
        return f"{best} and {other} share no seed"
    count, points = len(pair["seeds"]), abs(100 * pair["difference"])
    seeds = f"{count} seed{'s' if count > 1 else ''}"
    if pair["half_width"] is None:
        return f"{seeds} cannot tell {best} from {other}: {count + 1} give a first interval"
    measured = f"{points:.1f} ± {100 * pair['half_width']:.1f} points"
    if _tells(pair, best):
        return f"{best} is better than {other} by {measured} ({seeds})"
    wanted = f"about {pair['seeds_wanted']}" if pair["seeds_wanted"] else f"more than {chance.MOST_SEEDS:,}"
    return f"{seeds} cannot tell {best} from {other} ({measured}): {wanted} would"


def _by_class(one: Finished) -> list[float | None]:
    return [row["accuracy"] for row in one.result["classes"]]


def _gain(first: Finished, second: Finished, i: int) -> float | None:
    before, after = (_by_class(one)[i] for one in (first, second))
    return None if before is None or after is None else after - before


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
