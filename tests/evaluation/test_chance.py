"""Intervals and tests that hold what they promise, in simulated experiments."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from job.evaluation import chance


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_where_there_is_no_difference_95_percent_of_the_intervals_say_so(seeds: int) -> None:
    """10,000 sweeps; what a seed does to both arms is larger than what it does to one."""
    draw = np.random.default_rng(seeds)
    shared = draw.normal(0.6, 0.02, (10_000, seeds))
    first, second = (
        draw.binomial(10_000, shared + draw.normal(0, 0.003, shared.shape)) / 10_000 for _ in ("first", "second")
    )
    differences = second - first
    covered = np.abs(differences.mean(1)) <= chance.half_width(differences)
    assert 0.94 <= covered.mean() <= 0.96


def told(effect: float, most: int, tests: int = 1) -> tuple[float, float]:
    """The share of 10,000 sweeps of at most so many seeds, looked at after each one, that tell some difference; and how
    many seeds they took. ``effect`` is in deviations, of the first of so many pairs of arms."""
    drawn = np.random.default_rng(most).standard_normal((tests, 10_000, most))
    drawn[0] += effect
    seeds = np.arange(1, most + 1)
    mean = drawn.cumsum(-1) / seeds
    deviation = np.sqrt(((drawn**2).cumsum(-1) - seeds * mean**2)[..., 1:] / seeds[:-1])
    distance = np.abs(mean[..., 1:]) / deviation * np.sqrt(seeds[1:])
    beyond = [chance.critical(count, 0.05 / tests, always=True) for count in seeds[1:]]
    tells = (distance >= beyond).any(0)
    return float(tells.any(-1).mean()), float(np.where(tells.any(-1), tells.argmax(-1) + 2, most).mean())


@pytest.mark.parametrize(("most", "tests"), [(5, 1), (20, 1), (50, 1), (20, 6)])
def test_looked_at_after_each_seed_5_percent_of_sweeps_at_most_tell_a_difference_where_there_is_none(
    most: int, tests: int
) -> None:
    assert told(0.0, most, tests)[0] <= 0.05
    alike = np.random.default_rng(0).standard_normal((200, most)) * 0.003
    for differences in alike:  # the interval, the p value and the bound say the same
        told_apart = abs(differences.mean()) > chance.half_width(differences, always=True)
        assert told_apart == (chance.p_value(differences, always=True) < 0.05)


def test_half_a_point_is_told_after_few_seeds_and_large_differences_after_three() -> None:
    """Paired differences of SimpleCNN have a deviation of some 0.4 points."""
    found, seeds = told(0.5 / 0.4, 50)
    assert found > 0.999
    assert seeds == pytest.approx(10.6, abs=0.5)
    assert told(20.0, 50)[1] == pytest.approx(3, abs=0.1)
    wanted = chance.seeds_wanted(0.005, 0.004, always=True)
    assert wanted is not None
    assert chance.seeds_wanted(0.005, 0.004) < wanted <= 16


def test_p_values_and_corrections_are_those_of_scipy_and_of_the_paper() -> None:
    first, second = np.array([0.61, 0.6, 0.63, 0.58]), np.array([0.62, 0.63, 0.63, 0.6])
    assert chance.p_value(second - first) == pytest.approx(scipy.stats.ttest_rel(second, first).pvalue)
    low, high = scipy.stats.ttest_rel(second, first).confidence_interval(0.95)
    assert chance.half_width(second - first) == pytest.approx((high - low) / 2)
    assert chance.holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert chance.holm([]) == []
    # J. Cohen (1988): an effect of 0.5 standard deviations wants 34 pairs at 80%.
    assert chance.seeds_wanted(0.005, 0.01) == 34
    assert chance.seeds_wanted(0.0, 0.01) is None
    assert chance.seeds_wanted(0.005, 0.0) == 6  # 1 / 32 is the first below 5%
    assert chance.seeds_wanted(0.005, 0.01, tests=6) > 34
