"""``job/train.py --check``: says before the queue what would go wrong after it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.jobs import run_job

from job import check
from job.check import Check, Shape
from job.config.errors import UserError
from job.config.settings import Checkpoint, Config, Data, Model, Optimizer, Run, Train
from job.distributed import request
from job.models import footprint, registry
from job.runs import checkpoint
from job.training import optimizers

ROOT = Path(__file__).resolve().parents[2]


def settings(tmp_path: Path, cache: Path | None = None, **changes: object) -> Config:
    data = Data(source="shapes10", cache=str(cache or tmp_path / "cache"))
    return Config(**({"data": data, "run": Run(dir=str(tmp_path / "run"))} | changes))  # type: ignore[arg-type]


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_a_sound_configuration_is_ready_and_nothing_is_left_behind(cache: Path, tmp_path: Path) -> None:
    options = ["--data.source", "shapes10", "--data.cache", cache, "--run.dir", tmp_path / "run"]
    done = run_job("train.py", "--check", "--nodes=2", "--gpus-per-node", "4", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 on GPUs, 16 of the global batch of 128 each" in done.stdout
    assert done.stdout.rstrip().endswith("ready to submit")
    assert not (tmp_path / "run").exists()


def test_every_problem_is_listed_and_the_status_is_2(tmp_path: Path) -> None:
    options = ["--data.root", tmp_path, "--run.dir", "/proc/nowhere", "--model.weights", tmp_path / "none.pth"]
    done = run_job("train.py", "--check", "--nodes", "3", *options)
    assert done.returncode == 2, done.stdout + done.stderr
    for name in ("processes", "data", "model"):
        assert re.search(rf"{name}\s+. problem", done.stdout), done.stdout
    assert "does not divide by 3 processes" in " ".join(done.stdout.split())
    assert "not ready:" in done.stdout


def test_a_directory_that_cannot_be_written_is_a_problem(cache: Path, tmp_path: Path) -> None:
    found = by_name(
        check.preflight(
            settings(tmp_path, cache, run=Run(dir="/proc/nowhere")),
            Shape(nodes=1, processes=1, gpus=0),
            "simple_cnn",
            {"mem": "450M"},
        )
    )
    assert "problem" in (found["run directory"].verdict, found["time to save"].verdict)
    # As it is, libraries included: Slurm was seen to end such a job at 450 MB, where 5 MB had been foretold.
    assert found["memory"].verdict == "problem"
    assert "a node, and --mem=450M" in found["memory"].detail


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_expected_size_of_a_checkpoint_is_that_of_a_real_one(tmp_path: Path, optimizer: str) -> None:
    config = settings(tmp_path, optimizer=Optimizer(name=optimizer))  # type: ignore[arg-type]
    model = registry.build(config.model, classes=10, image_size=32, seed=1)
    made = optimizers.make_optimizer(config.optimizer, model)
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    made.step()
    state = checkpoint.State(model.state_dict(), optimizers.tensors_of(model, made), {"step": 1})
    written = checkpoint.write(tmp_path, state)
    size = sum(file.stat().st_size for file in written.iterdir())
    assert size == pytest.approx(footprint.checkpoint_bytes(config, model), rel=0.02)


def test_memory_grows_with_the_share_of_the_batch_and_halves_with_half_precision(tmp_path: Path) -> None:
    config = settings(tmp_path, model=Model(name="vgg16"))
    model = registry.build(config.model, classes=10, image_size=32, seed=1)
    one, two = (footprint.memory_bytes(config, model, images, 32) for images in (64, 128))
    assert two["activations"] == pytest.approx(2 * one["activations"], rel=0.01)
    assert one["weights"] == 4 * 134_301_514
    assert one["optimizer"] == 2 * one["weights"]


def test_a_job_that_could_not_keep_two_checkpoints_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(tmp_path, train=Train(epochs=1), checkpoint=Checkpoint())
    model = registry.build(config.model, classes=10, image_size=32, seed=1)
    footprint.require_room(tmp_path, config, model)
    monkeypatch.setattr(footprint, "checkpoint_bytes", lambda settings, model: 1 << 60)
    with pytest.raises(UserError, match="two checkpoints take"):
        footprint.require_room(tmp_path, config, model)


def test_the_warning_that_a_script_asks_for_is_read_from_it() -> None:
    assert request.signal_lead(request.asked(ROOT / "slurm" / "vgg16.sh", {})) == 180
    assert request.signal_lead(request.asked(ROOT / "slurm" / "none.sh", {})) is None


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("5", 5), ("5:30", 5.5), ("1:00:00", 60), ("2-12", 3600), ("2-12:30:00", 3630), ("infinite", float("inf"))],
)
def test_times_are_read_as_slurm_reads_them(text: str, minutes: float) -> None:
    assert request.minutes(text) == minutes


@pytest.mark.parametrize(("text", "megabytes"), [("450", 450), ("450M", 450), ("32G", 32768), ("1T", 1 << 20)])
def test_memory_is_read_as_slurm_reads_it(text: str, megabytes: float) -> None:
    assert request.megabytes(text) == megabytes
