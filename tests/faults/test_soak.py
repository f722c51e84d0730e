"""What ``soak.py`` does with fifty kills, with ten."""

from __future__ import annotations

import pytest
from soak import soak


@pytest.mark.parametrize(("processes", "kills"), [(1, 7), pytest.param(2, 3, marks=pytest.mark.long)])
def test_killed_at_random_instants_runs_end_with_the_same_bits(processes, kills, settings, tmp_path) -> None:
    arguments = [*settings, "--data.augment", "[flip,crop]", "--model.name", "vgg16"]
    done, runs, found = soak(arguments, tmp_path, kills=kills, processes=[processes], network="narrow", seed=processes)
    assert done == kills
    assert runs >= 1
    assert found == []
