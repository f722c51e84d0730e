"""What chance alone does to differences: intervals, p values, and how many seeds would tell more."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LEVEL, POWER = 0.95, 0.8
MOST_SEEDS = 1000
"""beyond which a difference is of no use"""
SPREAD = 10.0
"""of differences, in squared deviations: always-valid intervals are narrowest for differences of three deviations"""


def over_images(gained: NDArray[np.float64]) -> float:
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


def unpaired(half: float, first: float, second: float) -> int | None:
    """Seeds of each arm, other ones for each, that would give an interval as narrow as ``half``."""
    from scipy.stats import t

    spread = math.hypot(first, second)
    counts = range(2, MOST_SEEDS + 1)
    return next((n for n in counts if t.ppf((1 + LEVEL) / 2, 2 * n - 2) * spread / math.sqrt(n) <= half), None)
