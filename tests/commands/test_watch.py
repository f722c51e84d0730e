"""Following a run by its directory alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from support import run_directories
from support.jobs import REPOSITORY, command, environment, run_job

from job import watch
from job.runs import reader


def shown(path: Path) -> str:
    screen = Console(width=100, force_terminal=False)
    with screen.capture() as capture:
        screen.print(watch.view(reader.read(path)))
    return capture.get()


def test_a_running_run_shows_step_loss_throughput_time_left_and_epochs(tmp_path: Path) -> None:
    run = run_directories.write(tmp_path / "run", finished=False)
    config = (run / "config.yaml").read_text().replace("epochs: 3", "epochs: 5")
    (run / "config.yaml").write_text(config)
    text = shown(run)
    # 200 steps of 128 images are left, at 1,000 images a second
    for words in (
        "step 300 of 500",
        "epoch 3 of 5",
        "loss 1.0000",
        "1,000 images/s",
        "26 s of training left",
        "running",
    ):
        assert words in text, words
    (best,) = [line for line in text.splitlines() if "best" in line]
    assert best.split()[0] == "3"


def test_a_run_without_news_for_long_is_doubted(tmp_path: Path) -> None:
    run = run_directories.write(tmp_path / "run", finished=False)
    assert "no news" not in shown(run)
    for name in ("metrics.jsonl", "status.json"):
        os.utime(run / name, (time.time() - 3600,) * 2)
    assert "no news for 1 h 0 min: it may have been killed" in shown(run)


def test_a_run_that_has_just_begun_is_shown(tmp_path: Path) -> None:
    run = run_directories.write(tmp_path / "run", finished=False)
    (run / "metrics.jsonl").write_text("")
    assert "step 300" in shown(run)


@pytest.mark.parametrize(("state", "status"), [("failed", 1), ("finished", 0)])
def test_the_exit_status_tells_how_the_run_ended(state: str, status: int, tmp_path: Path) -> None:
    run = run_directories.write(tmp_path / "run", finished=state == "finished")
    if state == "failed":
        status_now = {"state": "failed", "step": 7, "signal": None, "error": "out of memory", "attempt": 1}
        (run / "status.json").write_text(json.dumps(status_now))
    done = run_job("watch.py", run)
    assert done.returncode == status, done.stderr
    assert f"run: {state}" in done.stdout
    assert ("hardest: " in done.stdout) == (state == "finished")


def test_it_starts_as_a_module_too_and_looks_once(tmp_path: Path) -> None:
    run = run_directories.write(tmp_path / "run", finished=False)
    done = subprocess.run(
        [sys.executable, "-m", "job.watch", str(run), "--once"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=environment(),
    )
    assert done.returncode == 0
    assert "step 300" in done.stdout


def test_it_needs_no_torch(tmp_path: Path) -> None:
    run = run_directories.write(tmp_path / "run", finished=False)
    script = "import sys; sys.argv[1:] = []; from job import watch; watch.main([sys.argv0, '--once'])"
    script = script.replace("sys.argv0", repr(str(run))) + "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=REPOSITORY, env=environment(), capture_output=True)


def test_a_real_run_is_followed_through_preemption_to_its_end(small: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [*small, f"--run.dir={run}", "--train.epochs=3"]
    first = run_job("train.py", *options, "--run.max_minutes=0.0001")
    assert first.returncode == 75, first.stderr
    watcher = subprocess.Popen(
        command("watch.py", run), env=environment(PYTHONUNBUFFERED="1"), stdout=subprocess.PIPE, text=True
    )
    assert watcher.stdout is not None
    said = watcher.stdout.readline()  # before the run goes on
    assert run_job("train.py", *options).returncode == 0
    output, _ = watcher.communicate(timeout=60)
    assert watcher.returncode == 0
    lines = (said + output).splitlines()
    assert lines[0].startswith("run: preempted")
    assert [line[:9] for line in lines if line.startswith("epoch ")] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert any(line.startswith("run: finished") for line in lines)


def test_a_folder_of_runs_is_a_line_each_also_of_one_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_directories.write(tmp_path / "sweep" / "arm" / "seed-1")
    run_directories.write(tmp_path / "running", finished=False)
    run_directories.write(tmp_path / "damaged")
    (tmp_path / "damaged" / "evaluation.json").write_text("{")
    assert watch.main([str(tmp_path), "--once"]) == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line}
    assert rows["running"][:2] == ["running", "100%"]
    assert rows["sweep/arm/seed-1"][:2] == ["finished", "100%"]
    assert f"left out: {tmp_path}/damaged/evaluation.json" in said.replace("\n", "")
    monkeypatch.setenv("COLUMNS", "40")  # what does not fit is left out, and never the names
    assert watch.main([str(tmp_path), "--once"]) == 0
    said, _, _ = capsys.readouterr().out.partition("left out")
    assert max(map(len, said.splitlines())) <= 40
    assert [line[:10] for line in said.splitlines() if "finished" in line or "running" in line] == [
        "running   ",
        "sweep/arm/",
    ]


def test_the_loss_is_drawn_from_its_highest_to_its_lowest(tmp_path: Path) -> None:
    assert "█▇▅▄▂▁" in shown(run_directories.write(tmp_path / "run", finished=False))
