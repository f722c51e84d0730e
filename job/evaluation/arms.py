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
from numpy.typing import NDArray

from job.config.errors import UserError
from job.evaluation import comparison
from job.evaluation.comparison import Finished
from job.runs import reader
from job.runs.reader import Record

Arms = Mapping[str, Mapping[int, Finished]]
"""the finished runs of each arm, by seed"""
LEVEL, POWER = 0.95, 0.8
MOST_SEEDS = 1000
"""beyond which a difference is of no use"""
LOOKED_AT = "looked-at"
"""file in a sweep's directory: seeds were added until its question was decided, so that intervals must hold at any"""
SPREAD = 10.0
"""of differences, in squared deviations: always-valid intervals are narrowest for differences of three deviations"""
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
    """The recipes of ``runs``, called by the settings in which they differ, that share two seeds with another one."""
    groups = [(settings, by_seed) for settings, by_seed in comparison.by_recipe(runs) if len(by_seed) > 1]
    groups = [
        one for one in groups if any(len(set(one[1]) & set(other[1])) > 1 for other in groups if other is not one)
    ]
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
    for pair, p in zip(known, holm([pair["p"] for pair in known]), strict=True):
        pair["p_holm"] = p
        wanted = seeds_wanted(pair["difference"], pair["deviation"], len(known), always=always)
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
    }


def _pair(first: str, second: str, arms: Arms, always: bool) -> Record:
    """Second less first, over the seeds that both have."""
    seeds = sorted(set(arms[first]) & set(arms[second]))
    a, b = ([arms[name][seed] for seed in seeds] for name in (first, second))
    gained = [two.right.astype(np.float64) - one.right for one, two in zip(a, b, strict=True)]
    differences = np.array([of_seed.mean() for of_seed in gained])
    mean, half = float(differences.mean()), float(half_width(differences, always=always)) if len(seeds) > 1 else None
    half = half if half is not None and math.isfinite(half) else None
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
        "half_width_images": None if of_images is None else _of_images(of_images),
        "p": p_value(differences, always=always) if len(seeds) > 1 else None,
        "p_holm": None,
        "deviation": deviation,
        "seeds_wanted": None,
        "unpaired_seeds": _unpaired(half, spreads[0], spreads[1]) if half else None,
        "classes": classes,
    }


def _of_images(gained: NDArray[np.float64]) -> float:
    """Half of the 95% interval over test images of the mean of ``gained`` [images], by the central limit theorem."""
    return 1.959963984540054 * float(gained.std(ddof=1)) / math.sqrt(len(gained))


def half_width(differences: NDArray[np.float64], *, always: bool = False) -> NDArray[np.float64]:
    """Half of the 95% interval of the mean of paired ``differences`` [..., seeds], by ``critical``."""
    count = differences.shape[-1]
    beyond = critical(count, 1 - LEVEL, always=always)
    return np.asarray(beyond * differences.std(axis=-1, ddof=1) / math.sqrt(count))


def critical(count: int, level: float, *, always: bool = False) -> float:
    """Standard errors beyond which the mean of ``count`` paired differences lies by chance with probability ``level``.

    Of this number of seeds: Student's t, one degree less ("The probable error of a mean", Biometrika 6 (1908), p. 1).
    ``always``, that is, ever, of any number of seeds: where the test martingale of ``_evidence`` reaches 1 / level, by
    Ville's inequality; infinite for the first few seeds.
    """
    if not always:
        from scipy.stats import t

        return float(t.ppf(1 - level / 2, count - 1))
    wider, factor = 1 + SPREAD * count, ((1 + SPREAD * count) / level**2) ** (1 / count)
    return math.sqrt((count - 1) * (factor - 1) / (1 - factor / wider)) if factor < wider else math.inf


def _evidence(t: float, count: int) -> float:
    """How much likelier such a t is where differences are N(0, SPREAD) deviations than where there is none.

    Its mean is 1 without a difference, whatever the deviation, and it is a martingale as seeds are added: H. Wang and
    A. Ramdas, "Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance" (2023),
    arXiv 2310.03722, the Gaussian mixture.
    """
    wider, square = 1 + SPREAD * count, t * t / (count - 1)
    gain = count * (math.log1p(square) - math.log1p(square / wider)) - math.log(wider)
    return math.exp(min(gain / 2, 700.0))


def p_value(differences: NDArray[np.float64], *, always: bool = False) -> float:
    """Of the paired t test, two-sided: of a mean at least as far from 0 if there were no difference.

    ``always``: of one that ever was, see ``critical``. Where all differences are the same, as with few test images,
    that of the sign test: how often signs all agree.
    """
    from scipy.stats import t

    count, mean, deviation = len(differences), abs(float(differences.mean())), float(differences.std(ddof=1))
    if deviation == 0:
        return 1.0 if mean == 0 else 2.0 ** (1 - count)
    distance = mean / deviation * math.sqrt(count)
    return min(1.0, 1 / _evidence(distance, count)) if always else float(2 * t.sf(distance, count - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of several tests, so raised that one of them all is below 5% by chance in 5% of experiments.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979), p. 65.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    raised, largest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        raised[i] = largest
    return raised


def seeds_wanted(difference: float, deviation: float, tests: int = 1, *, always: bool = False) -> int | None:
    """How many seeds would tell such a ``difference`` from none four times in five, beside so many other ``tests``.

    None for more than MOST_SEEDS. The power of the paired t test, by the noncentral t distribution
    (``scipy.stats.nct``): J. Cohen, "Statistical power analysis for the behavioral sciences" (1988), section 2.
    """
    from scipy.stats import nct

    level = (1 - LEVEL) / tests
    if deviation == 0 or difference == 0:  # the sign test's
        return math.ceil(1 - math.log2(level)) if difference else None
    effect = abs(difference) / deviation
    for count in range(2, MOST_SEEDS + 1):
        if nct.sf(critical(count, level, always=always), count - 1, effect * math.sqrt(count)) >= POWER:
            return count
    return None


def _unpaired(half: float, first: float, second: float) -> int | None:
    """Seeds of each arm, other ones for each, that would give an interval as narrow as ``half``."""
    from scipy.stats import t

    spread = math.hypot(first, second)
    counts = range(2, MOST_SEEDS + 1)
    return next((n for n in counts if t.ppf((1 + LEVEL) / 2, 2 * n - 2) * spread / math.sqrt(n) <= half), None)


def _ranked(arms: Sequence[Record]) -> list[str]:
    return [arm["name"] for arm in sorted(arms, key=lambda arm: -float(arm["mean"]))]


def _between(best: str, other: str, pairs: Sequence[Record]) -> Record | None:
    return next((pair for pair in pairs if {pair["first"], pair["second"]} == {best, other}), None)


def _tells(pair: Record | None, best: str) -> bool:
    """Whether ``best`` is the better of the pair by more than chance."""
    if pair is None or pair["p_holm"] is None or pair["p_holm"] >= 1 - LEVEL:
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
    wanted = f"about {pair['seeds_wanted']}" if pair["seeds_wanted"] else f"more than {MOST_SEEDS:,}"
    return f"{seeds} cannot tell {best} from {other} ({measured}): {wanted} would"


def _gain(first: Finished, second: Finished, i: int) -> float | None:
    before, after = (one.result["classes"][i]["accuracy"] for one in (first, second))
    return None if before is None or after is None else after - before


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
