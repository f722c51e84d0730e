"""Arms compared by seed: sentences that say what intervals hold, and no more."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from safetensors.numpy import save_file
from support import run_directories

from job.config.errors import UserError
from job.evaluation import arms, comparison


def sweep(folder: Path, skills: dict[str, float], seeds: int, images: int = 2000) -> Path:
    for arm, skill in skills.items():
        for seed in range(1, seeds + 1):
            drawn = 1000 * seed + len(arm)
            run_directories.write(folder / arm / f"seed-{seed}", images=images, skill=skill, seed=drawn, epochs=1)
    return folder


def test_half_a_point_is_found_among_simulated_predictions_and_nothing_where_there_is_nothing(tmp_path: Path) -> None:
    """Each seed's networks share most of what they get right, as networks of one seed do."""
    labels = np.zeros(10_000, np.int64)
    for arm, gain in (("reference", 0.0), ("same", 0.0), ("better", 0.005)):
        for seed in range(1, 11):
            shared = np.random.default_rng(seed)
            chance, own = shared.random(10_000), np.random.default_rng([seed, len(arm)])
            ease = 0.6 + shared.normal(0, 0.01) + gain
            # One image in twenty is decided anew by each network.
            chance = np.where(shared.random(10_000) < 0.05, own.random(10_000), chance)
            path = run_directories.write(tmp_path / arm / f"seed-{seed}", images=30, epochs=1, seed=seed)
            save_file(
                {
                    "predicted": (chance > ease).astype(np.int64),
                    "confidence": chance.astype(np.float32),
                    "labels": labels,
                },
                path / "predictions.safetensors",
            )
            result = json.loads((path / "evaluation.json").read_text())
            result["accuracy"] = float((chance <= ease).mean())
            (path / "evaluation.json").write_text(json.dumps(result))
    found, _ = arms.below(tmp_path)
    for always in (False, True):
        compared = arms.compare(found, always=always)
        said = dict(zip(("first", "second"), compared["answers"], strict=True))
        assert all(line.startswith("better is better than ") for line in said.values()), said
        assert [0.002 < abs(pair["difference"]) < 0.008 for pair in compared["paired"]].count(True) == 2
        assert compared["decided"]
        alone = arms.compare({name: found[name] for name in ("reference", "same")}, always=always)
        assert alone["answers"][0].startswith("10 seeds cannot tell ")
        assert not alone["decided"]


def test_a_difference_is_found_and_where_there_is_none_it_says_how_many_seeds_would_tell(tmp_path: Path) -> None:
    found, left_out = arms.below(sweep(tmp_path / "sweep", {"worse": 0.6, "better": 0.7, "much like": 0.602}, 4))
    compared = arms.compare(found)
    assert left_out == []
    assert len(compared["paired"]) == 3
    better, _ = compared["answers"]
    assert better.startswith(("better is better than much like by ", "better is better than worse by "))
    assert better.endswith(" points (4 seeds)")
    (pair,) = (pair for pair in compared["paired"] if {pair["first"], pair["second"]} == {"worse", "much like"})
    assert pair["p_holm"] > 0.05
    alone = arms.compare({name: found[name] for name in ("worse", "much like")})["answers"]
    assert alone[0].startswith("4 seeds cannot tell ")
    assert alone[0].endswith(" would")


def test_what_is_unfinished_is_left_out_and_said_and_other_images_are_no_pair(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "sweep", {"one": 0.6, "two": 0.7}, 2)
    run_directories.write(folder / "two" / "seed-3", finished=False)
    (folder / "one" / "seed-3").mkdir()
    found, left_out = arms.below(folder)
    assert {name: sorted(runs) for name, runs in found.items()} == {"one": [1, 2], "two": [1, 2]}
    assert left_out == ["one/seed-3 is left out: not begun", "two/seed-3 is left out: running"]
    run_directories.write(folder / "one" / "seed-4", data="other images")
    run_directories.write(folder / "two" / "seed-4", data="these images")
    with pytest.raises(UserError, match="used different data"):
        arms.below(folder)
    with pytest.raises(UserError, match="has no finished runs"):
        arms.below(tmp_path)


def test_where_each_seed_has_test_images_of_its_own_there_is_no_interval_over_images(tmp_path: Path) -> None:
    for arm, skill in (("one", 0.5), ("three", 0.6)):
        for seed in (1, 2):
            data, drawn = f"drawn by seed {seed}", 10 * seed + len(arm)
            run_directories.write(
                tmp_path / arm / f"seed-{seed}", seed=drawn, skill=skill, data=data, images=300 + seed
            )
    (pair,) = arms.compare(arms.below(tmp_path)[0])["paired"]
    assert pair["half_width_images"] is None
    assert pair["half_width"] > 0


def test_the_deviation_of_each_source_of_chance_is_that_of_runs_which_differ_in_it_alone(tmp_path: Path) -> None:
    sources, seeds = ("split", "weights", "order"), (1, 2, 3, 4)
    skills = np.random.default_rng(0).uniform(0.4, 0.7, (4, len(seeds)))
    fixed = dict.fromkeys(comparison.SOURCES, 42)
    for varied, of_arm in zip(("all", *sources), skills, strict=True):
        own = {name: seed for name, seed in fixed.items() if varied not in ("all", name)}
        for seed, skill in zip(seeds, of_arm, strict=True):
            run_directories.write(tmp_path / varied / f"seed-{seed}", seed=seed, skill=skill, images=600, **own)
    found, _ = arms.below(tmp_path)
    runs = [one for by_seed in found.values() for one in by_seed.values()]
    rows = {row["source"]: row for row in comparison.sources(runs)}
    assert sorted(rows) == ["all", "order", "split", "weights"]
    for varied, row in rows.items():
        accuracies = [one.result["accuracy"] for one in found[varied].values()]
        assert (row["runs"], row["deviation"]) == (4, pytest.approx(np.std(accuracies, ddof=1)))
        low, high = row["interval"]  # the variance's, as in a textbook
        assert scipy.stats.chi2.cdf(3 * (row["deviation"] / np.array([high, low])) ** 2, 3) == pytest.approx(
            [0.025, 0.975]
        )
    compared = arms.compare(found)  # they answer nothing else
    assert (compared["paired"], compared["answers"], compared["decided"]) == ([], [], False)
    (said,) = comparison.of_chance(comparison.sources(runs))
    assert said.startswith("chance in simple_cnn, deviation in points: ")
    assert f"order {100 * rows['order']['deviation']:.2f}" in said

    # The other way: train.seed stays, and one seed of its own differs, here beside two values of the others.
    paths = [
        run_directories.write(tmp_path / f"{seed}-{own}", seed=seed, skill=skills[seed, own], images=600, dropout=own)
        for seed in (1, 2)
        for own in (1, 2, 3)
    ]
    (row,) = comparison.sources(comparison.read(paths))
    accuracies = np.array([one.result["accuracy"] for one in comparison.read(paths)]).reshape(2, 3)
    assert row["source"] == "dropout"
    assert row["deviation"] == pytest.approx(np.sqrt(accuracies.var(1, ddof=1).mean()))


def test_any_runs_that_pair_by_seed_are_arms_called_by_what_differs(tmp_path: Path) -> None:
    paths = [
        run_directories.write(tmp_path / f"{model}-{seed}", model=model, skill=skill, seed=seed, images=2000)
        for model, skill in (("simple_cnn", 0.5), ("vgg16", 0.7))
        for seed in (1, 2, 3)
    ]
    alone = run_directories.write(tmp_path / "alone", epochs=7, images=2000)
    runs = comparison.read([*paths, alone])
    found = arms.among(runs)
    assert {name: sorted(some) for name, some in found.items()} == {"simple_cnn": [1, 2, 3], "vgg16": [1, 2, 3]}
    assert arms.compare(found)["answers"][0].startswith("vgg16 is better than simple_cnn by ")
    assert arms.among(runs[:4]) == {}
    # As a sweep lays them out they are called by its arms.
    for path in paths:
        arm, _, seed = path.name.rpartition("-")
        (tmp_path / f"arm of {arm}").mkdir(exist_ok=True)
        path.rename(tmp_path / f"arm of {arm}" / f"seed-{seed}")
    found = arms.among(comparison.read(sorted(tmp_path.glob("arm of */seed-*"))))
    assert sorted(found) == ["arm of simple_cnn", "arm of vgg16"]
