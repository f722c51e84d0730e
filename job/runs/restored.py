"""A run's network with its weights, and what belongs to it. torch waits until a network is wanted."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from job.config import command_line
from job.config.errors import UserError
from job.config.kinds import require
from job.config.plain import flat, renewed, to_dict
from job.config.settings import Config
from job.runs.reader import Record, checkpoints, configuration, evaluation, read_json, require_run, step_of
from job.runs.records import Position

if TYPE_CHECKING:
    from torch import nn

    from job.runs.checkpoint import State


def of_run(run: str | None, argv: list[str], description: str) -> tuple[Config, Path]:
    """The settings of the run directory ``run``, those in ``argv`` winning over them, and its path.

    Raises UserError when there is no run there.
    """
    if run is None and "--help" not in argv and "-h" not in argv:
        raise UserError("--run is missing", "name a run directory, such as --run runs/simple_cnn-20260101-120000")
    file = Path(run or "") / "config.yaml"
    if run is not None:
        require_run(Path(run))
        configuration(Path(run))
    settings = command_line.parse([f"--config={file}", *argv] if run else argv, description=description)
    return settings, Path(run or "")


def restore(run: Path, settings: Config, classes: tuple[str, ...]) -> tuple[nn.Module, str]:
    """The run's network with its final weights, or with those of its newest whole checkpoint, and where they lay.

    Raises UserError when there are no weights yet, or when they are of other classes.
    """
    from job.models import weights
    from job.models.fast import form

    path, model = run / "model.safetensors", build(settings, classes)
    if path.is_file():
        state, source = weights.read(path), path.name
    else:
        saved = _newest(run)
        state, source = form.own_weights(saved.evaluated, model), saved.name
    weights.load(model, state, name=f"weights of {run}")
    return model, source


def build(settings: Config, classes: tuple[str, ...]) -> nn.Module:
    """The run's network with weights yet to be loaded."""
    from job.models import registry

    size = settings.data.image_size
    seed = settings.train.seed_for("weights")
    return registry.build(settings.model, classes=len(classes), image_size=size, seed=seed)


def positions(run: Path) -> dict[int, Record]:
    """What ``trainer.json`` says in each checkpoint, by step, ascending; nothing of one that cannot be read."""
    found: dict[int, Record] = {}
    for path in checkpoints(run / "checkpoints"):
        known = found[step_of(path)] = {}
        with contextlib.suppress(UserError, ValueError):
            position = read_json(path / "trainer.json", dict) or {}
            position["config"] = renewed(position.get("config"))
            require(position, Position)
            known |= position
    return found


def require_data(run: Path, settings: Config, split: str, classes: tuple[str, ...], fingerprint: str) -> None:
    """Raise UserError unless ``split`` of these data is the run's own."""
    names, known, _ = trained_on(run)
    own = command_line.from_dict(configuration(run), str(run / "config.yaml"))
    same = known in (None, fingerprint)
    differences = [f"only the run has class {name}" for name in names if name not in classes][:1]
    differences += [f"only the data have class {name}" for name in classes if name not in names][:1]
    if not differences and names != classes:
        differences = ["the classes are in another order"]
    if not same:
        differences += [f"the images differ: fingerprint {str(known)[:12]} -> {fingerprint[:12]}"]
    if split != "test" or not same:  # a test split may be drawn, and another draw may have what was trained on
        before, now = (flat(to_dict(one)) | {"train.seed": one.train.seed_for("split")} for one in (own, settings))
        keys = ("data.validation", "data.test", "data.hold_out", "train.seed")
        differences += [f"{key}: {before[key]} -> {now[key]}" for key in keys if before[key] != now[key]]
    if differences:
        raise UserError(
            f"this {split} split is not that of {run} ({'; '.join(differences)})",
            "give the data that it was trained on, or name others of its classes by --data.root",
        )


def trained_on(run: Path) -> tuple[tuple[str, ...], str | None, Sequence[float] | None]:
    """The classes of a finished or running run, its data's fingerprint, and the values of images of more than 8 bits
    that were 0 and 255 to it, if there were any. Raises UserError when it has no weights yet."""
    if result := evaluation(run):
        return tuple(row["name"] for row in result["classes"]), result.get("data"), result.get("deep")
    saved = _newest(run).trainer
    return tuple(saved["classes"]), saved["data"], saved.get("deep")


def _newest(run: Path) -> State:
    from job.runs import checkpoint

    saved = checkpoint.newest_whole(run / "checkpoints")
    if saved is None:
        raise UserError(f"{run} has no weights yet", "wait for its first checkpoint")
    return saved
