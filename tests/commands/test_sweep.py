"""An experiment of several arms: each run once, in its place, whatever becomes of the others, and an answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import run_directories
from support.jobs import REPOSITORY, read, run_job, the_error

from job import compare, sweep
from job.config.errors import UserError


def test_a_sweep_runs_every_arm_goes_on_past_one_that_fails_and_leaves_what_is_finished(
    small: list[str], tmp_path: Path
) -> None:
    given = dict(word.removeprefix("--").split("=", 1) for word in small)
    given |= {"train.epochs": "1", "train.batch_size": "128", "runtime.threads": "1"}
    common = ", ".join(f"{key}: {value}" for key, value in given.items())
    file, runs = tmp_path / "rates.yaml", tmp_path / "runs"
    base = f"base: {REPOSITORY / 'configs' / 'simple_cnn.yaml'}\nseeds: [7]\n"
    broken = f"  broken: {{{common}, optimizer.learning_rate: 1.0e+30}}\n"
    file.write_text(f"{base}arms:\n  good: {{{common}}}\n{broken}")
    done = run_job("sweep.py", file, "--runs", runs, "--jobs", 2)
    assert done.returncode == 1, done.stderr
    assert "rates: 2 runs, 0 finished before" in done.stdout
    assert "error: broken, seed 7: the loss is not finite at step " in done.stderr
    good = runs / "rates" / "good" / "seed-7"
    assert f"good, seed 7: {read(good / 'evaluation.json')['accuracy']:.2%} in " in done.stdout
    assert [arm["name"] for arm in read(runs / "rates" / "comparison.json")["arms"]] == ["good"]

    before = {path: path.stat().st_mtime_ns for path in good.rglob("*")}
    file.write_text(f"{base}arms:\n  good: {{{common}}}\n")
    again = run_job("sweep.py", file, "--runs", runs)
    assert (again.returncode, again.stderr) == (0, "")
    assert "rates: 1 runs, 1 finished before" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in good.rglob("*")} == before

    told = run_job("sweep.py", file, "--runs", runs, "--task", 1).stdout.splitlines()
    assert told[0] == f"--config={REPOSITORY / 'configs' / 'simple_cnn.yaml'}"
    assert told[-2:] == ["--train.seed=7", f"--run.dir={good}"]
    file.write_text(f"{base}arms:\n  good: {{{common}, train.label_smoothing: 0.1}}\n")
    changed = the_error(run_job("sweep.py", file, "--runs", runs))
    assert "holds a run of another configuration (train.label_smoothing: 0.0 -> 0.1)" in changed


def test_no_seed_is_added_to_what_is_decided_and_no_more_than_allowed_to_what_is_not(tmp_path: Path) -> None:
    """What is finished is looked at as if it had just been run."""
    file, runs = tmp_path / "which.yaml", tmp_path / "runs"
    (tmp_path / "base.yaml").write_text("data: {source: shapes10}\ntrain: {epochs: 1}\n")
    file.write_text(
        "base: base.yaml\nseeds: [1, 2, 3, 4]\narms: {small: {}, large: {model.name: vgg16}, like: {model.name: vgg13}}"
    )
    given = {"small": ("simple_cnn", 0.5), "large": ("vgg16", 0.7), "like": ("vgg13", 0.69)}
    for arm, (model, skill) in given.items():
        for seed in (1, 2, 3, 4):
            path, drawn = runs / "which" / arm / f"seed-{seed}", {"seed": seed, "images": 1000, "skill": skill}
            run_directories.write(path, model=model, epochs=1, **drawn)
    undecided = run_job("sweep.py", file, "--runs", runs, "--until-decided")  # at most the seeds of the file
    assert (undecided.returncode, undecided.stderr) == (0, "")
    assert "which: at most 12 runs, 12 finished before\nnot decided with 4 seeds, the most" in undecided.stdout
    assert "4 seeds cannot tell large from like (" in undecided.stdout
    page = (runs / "which" / "comparison.html").read_text()
    assert "always valid, since seeds were added" in page
    for words in ("Points gained in each pair of arms", "Accuracy against time, and against the number of parameters"):
        assert f'aria-label="{words}' in page
    assert compare.main([str(runs / "which"), "--out", str(tmp_path)]) == 0
    assert read(tmp_path / "comparison.json")["always_valid"]  # however its runs are named

    file.write_text("base: base.yaml\nseeds: [1, 2]\narms: {small: {}, large: {model.name: vgg16}}")
    decided = run_job("sweep.py", file, "--runs", runs, "--until-decided", 20)
    assert "which: at most 40 runs, 8 finished before\ndecided\n" in decided.stdout  # and no run begins
    assert "large is better than small by " in decided.stdout

    file.write_text("base: base.yaml\nseeds: [1, 2]\narms: {small: {}}")
    wrong = {"give 2 seeds or more": ["1"], "neither --count": ["3", "--count"], "give the sweep another one": ["3"]}
    for words, options in wrong.items():
        with pytest.raises(UserError, match=words):
            sweep.main([str(file), "--until-decided", *options])
