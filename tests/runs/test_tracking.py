"""Trackers record what the run writes, go on after a restart, and never stop it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.jobs import metrics, run_job

from job.config.settings import Config, Run
from job.runs import tracking

CLASSES = ("ant", "bee")
LINE = {"split": "validation", "epoch": 1, "step": 5, "loss": 1.5, "accuracy": 0.5, "class_accuracy": [0.25, None]}


def events(run: Path) -> Any:
    """What TensorBoard reads from a run directory."""
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    return found


def options(small: list[str], run: Path, trackers: str) -> list[str]:
    kept = [option for option in small if not option.startswith("--run.trackers")]
    return [*kept, f"--run.dir={run}", "--run.log_every=2", f"--run.trackers={trackers}"]


def test_tensorboard_shows_the_metrics_accuracy_per_class_and_figures_and_goes_on_in_a_second_start(
    small: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    run = tmp_path / "run"
    given = options(small, run, "[tensorboard]")
    first = run_job("train.py", *given, "--train.epochs=1")
    assert first.returncode == 0, first.stderr
    second = run_job("train.py", *given, "--train.epochs=3", report=True)
    assert second.returncode == 0, second.stderr
    assert "warning" not in second.stdout
    found = events(run)
    for split, keys in (("train", ("loss", "learning_rate")), ("validation", ("loss", "accuracy"))):
        for key in keys:
            shown = [(event.step, event.value) for event in found.Scalars(f"{split}/{key}")]
            assert shown == [(line["step"], pytest.approx(line[key])) for line in metrics(run, split)]
    lines = metrics(run, "validation")
    shown = [event.value for event in found.Scalars("validation/accuracy of green")]
    assert shown == pytest.approx([line["class_accuracy"][1] for line in lines])
    result = json.loads((run / "evaluation.json").read_text())
    assert found.Scalars("test/accuracy")[-1].value == pytest.approx(result["accuracy"])
    assert found.Scalars("test/accuracy of red")[-1].value == pytest.approx(result["classes"][2]["accuracy"])
    assert sorted(found.Tags()["images"]) == ["test/classes", "test/confusion_matrix"]


class Recording:
    """A tracker that keeps what it is sent, for as long as ``works`` says that it works."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.works = True

    def log(self, values: dict[str, float], step: int) -> None:
        if not self.works:
            raise ConnectionError("the server is gone\nfor good")
        self.steps.append(step)

    def finish(self) -> None:
        pass


class Hanging(Recording):
    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()

    def log(self, values: dict[str, float], step: int) -> None:
        self.let_go.wait(60)


@pytest.fixture
def follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run as many steps with a tracker of one's own as MLflow; returns what was said."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)

    @contextlib.contextmanager
    def start(tracker: Any, step: int = 0) -> Iterator[tuple[Callable[[int], None], list[str]]]:
        monkeypatch.setitem(tracking._STARTS, "mlflow", lambda settings, run, begin: tracker)
        said: list[str] = []
        directory = SimpleNamespace(path=tmp_path, listeners=[])

        def take(number: int) -> None:
            with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(LINE | {"step": number}) + "\n")
            for listener in directory.listeners:
                listener(LINE)

        settings = Config(run=Run(trackers=["mlflow"]))
        with tracking.tracked(settings, directory, CLASSES, step=step, say=said.append, warn=said.append):
            yield take, said

    return start


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_a_tracker_missed_is_sent_once_it_answers_again(
    follow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "AGAIN_AFTER", 0.05)
    server = Recording()
    with follow(server) as (take, said):
        take(1)
        until(lambda: server.steps == [1])
        server.works = False
        take(2)
        until(lambda: said != [])
        take(3)
        server.works = True
        until(lambda: server.steps == [1, 2, 3])
        server.works = False
        take(4)
        until(lambda: len(said) == 2)
    failed = "mlflow failed (the server is gone): training goes on without it, and tries again"
    assert said[:2] == [failed, failed]
    assert "up to step 3: the rest is sent when the run goes on" in said[-1]
    server.works = True
    with follow(server, step=4) as (take, said):  # steps after a checkpoint are not sent twice
        take(5)
    assert server.steps == [1, 2, 3, 4, 5]
    assert said == []


def test_a_tracker_that_hangs_or_has_no_thread_holds_up_nothing(follow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking.Tracking, "close", lambda self, seconds: [f.close(0.1) for f in self._followers])
    hanging = Hanging()
    began = time.monotonic()
    with follow(hanging) as (take, said):
        for number in range(1, 300):
            take(number)
    assert time.monotonic() - began < 5
    assert said == ["mlflow has only what metrics.jsonl holds up to step 0: the rest is sent when the run goes on"]
    hanging.let_go.set()

    def none(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    with follow(Recording()) as (take, said):
        take(300)
    assert said[0].startswith("mlflow failed (can't start new thread)")


def test_a_tracker_that_is_not_installed_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said: list[str] = []
    settings = Config(run=Run(trackers=["mlflow"]))
    directory = SimpleNamespace(path=tmp_path, listeners=[])
    with tracking.tracked(settings, directory, CLASSES, step=0, say=said.append, warn=said.append):
        for listener in directory.listeners:
            listener(LINE)
    assert said == ["mlflow is not installed: the run is not tracked there"]


def test_training_goes_on_when_the_tracker_cannot_write(small: list[str], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    run = tmp_path / "run"
    run.mkdir()
    (run / "tensorboard").write_text("in the way")
    done = run_job("train.py", *options(small, run, "[tensorboard]"), "--train.epochs=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("warning: tensorboard failed") == 1
    assert (run / "evaluation.json").exists()


def test_wandb_offline_continues_its_run(small: list[str], tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="Weights & Biases is not installed")
    run = tmp_path / "run"
    given = options(small, run, "[wandb]")
    quiet = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path)}
    for epochs in (1, 2):
        done = run_job("train.py", *given, f"--train.epochs={epochs}", **quiet)
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stdout
    identifier = (run / "tracking" / "wandb.id").read_text().strip()
    found = [path.name for path in (run / "wandb").glob("offline-run-*")]
    assert len(found) == 2
    assert all(name.endswith(identifier) for name in found)


def test_mlflow_continues_its_run(small: list[str], tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="MLflow is not installed")
    from mlflow.tracking import MlflowClient

    run, uri = tmp_path / "run", f"sqlite:///{tmp_path}/mlflow.db"
    given = options(small, run, "[mlflow]")
    for epochs in (1, 2):
        done = run_job("train.py", *given, f"--train.epochs={epochs}", MLFLOW_TRACKING_URI=uri, HOME=str(tmp_path))
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stdout
    client = MlflowClient(uri)
    identifier = (run / "tracking" / "mlflow.id").read_text().strip()
    history = {m.step: m.value for m in client.get_metric_history(identifier, "validation/loss")}
    lines = metrics(run, "validation")
    assert history == {line["step"]: pytest.approx(line["loss"]) for line in lines}
