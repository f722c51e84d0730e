"""Comparing runs: exact numbers, and no comparison of what cannot be compared."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support import run_directories
from support.browser import Browser
from support.jobs import run_job

from job import compare
from job.config.errors import UserError
from job.data.cifar10 import CLASSES as CIFAR10
from job.display import comparison_page, run_page
from job.evaluation import comparison
from job.evaluation.comparison import mcnemar


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three seeds of one recipe and one run of another, on the same 10,000 images."""
    folder = tmp_path_factory.mktemp("runs")
    kinds: dict[str, dict[str, Any]] = {f"small-{seed}": {"seed": seed, "skill": 0.57} for seed in (1, 2, 3)}
    kinds["vgg"] = {"model": "vgg16", "skill": 0.8, "seed": 9}
    return {
        name: run_directories.write(folder / name, classes=CIFAR10, images=10_000, **kind)
        for name, kind in kinds.items()
    }


def compared(*paths: Path) -> dict[str, Any]:
    return comparison.compare(comparison.read(paths))


def test_mcnemars_test_is_the_exact_two_sided_binomial_test() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 5) == 1
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(9, 1) == mcnemar(1, 9)
    assert mcnemar(0, 6) == pytest.approx(2 / 2**6)
    # With many images it comes close to the chi-squared approximation with continuity correction (3.841: p = 0.05).
    assert mcnemar(452, 513) == pytest.approx(0.0535, abs=2e-4)
    assert mcnemar(0, 100_000) == 0


def test_pairs_count_the_images_that_only_one_run_has_right(runs: dict[str, Path]) -> None:
    found = compared(runs["small-1"], runs["vgg"])
    (pair,) = found["pairs"]
    accuracies = [run["accuracy"] for run in found["runs"]]
    assert pair["difference"] == pytest.approx(accuracies[1] - accuracies[0])
    assert pair["only_second_right"] - pair["only_first_right"] == round(10_000 * pair["difference"])
    assert pair["p"] < 1e-6
    for row, name in zip(found["classes"], CIFAR10, strict=True):
        assert row["name"] == name
        assert len(row["accuracy"]) == 2


def test_runs_of_one_recipe_on_several_seeds_have_mean_and_standard_deviation(runs: dict[str, Path]) -> None:
    found = compared(*runs.values())
    (group,) = found["repetitions"]
    assert group["runs"] == ["small-1", "small-2", "small-3"]
    accuracies = [run["accuracy"] for run in found["runs"][:3]]
    mean = sum(accuracies) / 3
    assert group["mean"] == pytest.approx(mean)
    assert group["standard_deviation"] == pytest.approx((sum((a - mean) ** 2 for a in accuracies) / 2) ** 0.5)


def test_a_run_of_an_earlier_version_with_fewer_settings_is_of_the_same_recipe(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    old = run_directories.write(tmp_path / "old", classes=CIFAR10, images=10_000, seed=7)
    kept = [line for line in (old / "config.yaml").read_text().splitlines() if "label_smoothing" not in line]
    (old / "config.yaml").write_text("\n".join(kept))
    assert len(compared(runs["small-1"], old)["repetitions"]) == 1


def test_a_seed_that_ran_twice_counts_once(runs: dict[str, Path], tmp_path: Path) -> None:
    again = run_directories.write(tmp_path / "again", classes=CIFAR10, images=10_000, seed=1, skill=0.57)
    (group,) = compared(runs["small-1"], again, runs["small-2"])["repetitions"]
    assert group["runs"] == ["small-1", "small-2"]


def test_each_run_stands_against_the_published_number_of_its_model(runs: dict[str, Path]) -> None:
    found = compared(runs["small-1"], runs["vgg"])
    assert [run["published"] for run in found["runs"]] == [0.58, 0.8015]
    for run in found["runs"]:
        assert run["above_published"] == pytest.approx(run["accuracy"] - run["published"])


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"classes": (*CIFAR10[:9], "lorry")}, "have different classes (only one has lorry, truck)"),
        ({"classes": CIFAR10[::-1]}, "have different classes (their order differs)"),
        ({"images": 9999}, "were tested on different images"),
        ({"data": "another"}, "used different data"),
        ({"finished": False}, "is not finished (running)"),
    ],
    ids=["classes", "order", "images", "fingerprint", "not finished"],
)
def test_what_cannot_be_compared_is_refused_with_the_reason(
    runs: dict[str, Path], other: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    settings = {"classes": CIFAR10, "images": 10_000} | other
    path = run_directories.write(tmp_path / "other", **settings)
    done = run_job("compare.py", runs["small-1"], path, "--out", tmp_path)
    assert done.returncode == 2
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "comparison.json").exists()


def test_all_of_a_folder_are_compared_but_for_what_is_unfinished_or_no_run_and_that_is_said(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs"
    for seed in (1, 2):
        run_page.write(run_directories.write(folder / f"seed {seed}", seed=seed))
    run_directories.write(folder / "begun", finished=False)
    (folder / "index.html").write_text("")
    assert compare.main([*map(str, sorted(folder.iterdir())), "--out", str(folder / "out")]) == 0
    said = capsys.readouterr().out
    assert f"left out: {folder / 'begun'} is not finished" in said
    assert f"left out: {folder / 'index.html'} is no run directory" in said
    page = (folder / "out" / "comparison.html").read_text()
    assert 'href="../seed%201/report.html"' in page
    assert page.count("<svg") == 5
    assert compare.main([str(folder), "--out", str(folder / "out")]) == 0
    with pytest.raises(UserError, match="no run directory"):
        compare.main([*map(str, sorted(folder.glob("seed*"))), str(folder / "sed 3")])


def test_runs_that_are_right_equally_often_are_told_as_equal_and_no_point_hides_another(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    twins = [run_directories.write(tmp_path / name) for name in ("one", "two")]
    compare.main([*map(str, twins), "--out", str(tmp_path)])
    page = (tmp_path / "comparison.html").read_text()
    assert "one and two are equally right most often" in " ".join(page.split())
    drawing = page[page.index('aria-label="Accuracy per class') :]
    points = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*><title>(?:one|two), ', drawing)
    assert len(points) == len(set(points)) == 6


def test_the_command_shows_tables_and_writes_page_and_json(runs: dict[str, Path], tmp_path: Path) -> None:
    done = run_job("compare.py", *runs.values(), "--out", tmp_path / "new", "--markdown", tmp_path / "results.md")
    assert done.returncode == 0, done.stderr
    for words in ("80.15%", "McNemar's p", "< 0.0001", "standard deviation", "airplane", "small-3"):
        assert words in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 110
    assert json.loads((tmp_path / "new" / "comparison.json").read_text()) == compared(*runs.values())
    lines = (tmp_path / "results.md").read_text().splitlines()
    (row,) = [line for line in lines if line.startswith("| vgg |")]
    assert "80.15%" in row
    assert all(line.count("|") == 6 for line in lines if line.startswith(("| class", "| airplane", "| truck")))
    assert "exact and two-sided" in (tmp_path / "new" / "comparison.html").read_text()


def test_the_tables_go_where_markdown_points_be_it_a_pipe_or_a_link(runs: dict[str, Path], tmp_path: Path) -> None:
    done = run_job("compare.py", runs["small-1"], "--out", tmp_path, "--markdown", "/dev/stdout")
    assert done.returncode == 0, done.stderr
    assert "| small-1 |" in done.stdout
    (tmp_path / "link.md").symlink_to(tmp_path / "target.md")
    done = run_job("compare.py", runs["small-1"], "--out", tmp_path, "--markdown", tmp_path / "link.md")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "link.md").is_symlink()
    assert "| small-1 |" in (tmp_path / "target.md").read_text()


def test_of_many_runs_each_stands_beside_the_best_and_the_file_has_all_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = [run_directories.write(tmp_path / f"{i}", images=100, skill=0.3 + 0.02 * i, seed=i) for i in range(14)]
    assert compare.main([*map(str, many), "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert len(found["pairs"]) == 14 * 13 // 2
    best = max(found["runs"], key=lambda run: run["accuracy"])["name"]
    shown = [line for line in capsys.readouterr().out.splitlines() if " / " in line and "first /" not in line]
    assert len(shown) == 13
    assert all(best in line.split() for line in shown)


@pytest.mark.parametrize("width", [40, 80])
def test_where_it_is_narrow_columns_are_left_to_the_page_by_name_and_no_number_is_cut(
    runs: dict[str, Path],
    width: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert compare.main([*map(str, runs.values()), "--out", str(tmp_path)]) == 0
    said, _, _ = capsys.readouterr().out.partition("wrote ")
    assert max(map(len, said.splitlines())) <= width
    for name in CIFAR10:
        assert len(re.findall(rf"^ {name} +\d+\.\d% ", said, re.MULTILINE)) == 1
    assert "(comparison.html has" in " ".join(said.split())


def test_a_file_that_cannot_be_written_is_named_in_one_line(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_job("compare.py", runs["small-1"], "--out", tmp_path, "--markdown", tmp_path / "file" / "results.md")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'file' / 'results.md'} cannot be written")
    assert done.stderr.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"file", "comparison.html", "comparison.json"}


def test_runs_of_the_same_name_are_told_apart_and_one_named_twice_is_one(runs: dict[str, Path], tmp_path: Path) -> None:
    path = run_directories.write(tmp_path / "small-1", classes=CIFAR10, images=10_000)
    names = [one.name for one in comparison.read([path, runs["small-1"], path])]
    assert names == [f"{one.parent.name}/small-1" for one in (path, runs["small-1"])]


@pytest.mark.parametrize("width", [400, 1600])
def test_in_a_browser_the_page_complains_of_nothing_fetches_nothing_and_fits(
    window: Browser, runs: dict[str, Path], width: int, tmp_path: Path
) -> None:
    read = comparison.read(list(runs.values()))
    file = tmp_path / "comparison.html"
    file.write_text(comparison_page.html(comparison.compare(read), read, tmp_path))
    window.open(file, width=width)
    assert window.complaints() == []
    assert window.requests() == [file.as_uri()]
    assert window.run("return document.documentElement.scrollWidth") == width
