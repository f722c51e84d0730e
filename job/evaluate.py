"""Evaluate the weights of a finished or running run once more, on its own images or on others.

Ways to run it:
  python job/evaluate.py --run RUN --split validation       writes RUN/evaluation-validation.json
  python job/evaluate.py --run RUN --data.root FOLDER       writes RUN/evaluation-of-FOLDER-<digest of the images>.json
  accelerate launch --config_file launch/cpu.yaml --num_processes 2 job/evaluate.py --run RUN [...]

Its own options:
  --run RUN             run directory
  --split NAME          test, validation or train; unless told otherwise, what the run's own evaluation is of
  --data.root FOLDER    other labelled images, or an archive of them, in the run's classes or in some of these, found by
                        their names: the test split where there is one, else all of them
  --data.source SOURCE  what FOLDER is; "folder" unless it holds CIFAR-10
The settings follow, by section: the run's own, unless they are given here.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: `job` is found from anywhere, and what lies in job/ shadows nothing
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import dataclasses
import json
import re
from typing import TYPE_CHECKING

from job.config import command_line
from job.config.errors import UserError
from job.distributed import ending
from job.distributed.group import start
from job.runs import restored
from job.runs.files import write_whole
from job.runs.records import Origin

if TYPE_CHECKING:
    from job.data.datasets import Dataset, Split

SPLITS = ("test", "validation", "train")


def main(argv: list[str]) -> int:
    """Evaluate one split and show it; returns the exit status."""
    options, rest = command_line.take_options(argv, "run", "split", "data.root")
    named = [word for word in rest if word.startswith("--data.source")]
    if (root := options["data.root"]) is not None:
        named += [f"--data.root={root}"]
        rest += named[-1:] if len(named) > 1 or _is_cifar10(Path(root)) else [*named, "--data.source=folder"]
    settings, run = restored.of_run(options["run"], rest, __doc__ or "")
    table, given = settings.data.labels, any(word.startswith("--data.labels") for word in rest)
    if root is not None and table and not given and Path(root).is_dir() and not (Path(root) / table).exists():
        # The table of the run's own images says nothing of these.
        rest += ["--data.labels=null", "--data.hold_out=random"]
        settings, run = restored.of_run(options["run"], rest, "")
    split = options["split"]
    if split not in (None, *SPLITS):
        raise UserError(f"--split {split}", f"must be one of {', '.join(SPLITS)}")
    group = start(settings.runtime, deterministic=settings.train.deterministic)

    from job.data import datasets
    from job.data.batches import Batches
    from job.display.console import Console
    from job.evaluation import metrics
    from job.evaluation.predictions import predict
    from job.models import weights

    console = Console(quiet=not group.is_rank_zero)
    # Rank zero reads what lies in the run, and the others have it from it: on other hosts it may not be seen at all.
    trained_on = group.guarded(lambda: restored.trained_on(run), on=group.is_rank_zero)
    names, known, deep = group.from_rank_zero(trained_on) or ((), "", None)

    def prepared() -> str:  # other images of more than 8 bits are to be seen as those were that the run was trained on
        own = (deep[0], deep[1]) if named and deep else None
        return str(datasets.prepare(settings.data, console.bar, console.say, deep=own or "ask"))

    stored = group.once_a_node(prepared)
    dataset = datasets.mapped(Path(stored), settings.data, settings.train.seed_for("split"))
    split = split or dataset.final
    classes, path = tuple(names), run / f"evaluation-{split}.json"
    origin = Origin(world_size=group.world_size, checkpoint=None, data=dataset.fingerprint)
    if named and known not in (None, dataset.fingerprint):
        if options["split"] not in (None, "test"):
            raise UserError(f"--split {split} of other images than those of {run}", "leave --split out")
        split, part = _others(dataset, classes, settings.data.root)
        console.say(_in_words(dataset, classes, settings.data.root, split, len(part)))
        name = re.sub(r"[^\w-]", "_", Path(settings.data.root).resolve().name.partition(".")[0])[:64]
        path = run / f"evaluation-of-{name}-{dataset.fingerprint[:8]}.json"
        origin["root"] = settings.data.root
    else:
        data = (dataset.classes, dataset.fingerprint)
        group.guarded(lambda: restored.require_data(run, settings, split, *data), on=group.is_rank_zero)
        part = dataset.splits[split]
    if len(part) == 0:
        raise UserError(f"the {split} split has no images", "choose another --split")
    own = group.guarded(lambda: restored.restore(run, settings, classes), on=group.is_rank_zero)
    model, source = own or (restored.build(settings, classes), "")
    origin["checkpoint"] = group.from_rank_zero(source)
    weights.put(group.broadcast(model.to(group.device).state_dict()), model)
    batches = Batches(part, settings.data, group.device, rank=group.rank, world_size=group.world_size)
    predictions = predict(model, batches, part.labels[part.indices], group, classes=len(classes))
    assert predictions is not None

    def finish() -> None:
        result = metrics.report(predictions, classes, split=split, **origin)
        console.result(result)
        _write(path, json.dumps(result, indent=1) + "\n")

    group.guarded(finish, on=group.is_rank_zero)
    console.say(f"wrote {path}")
    group.close()
    return 0


def _is_cifar10(root: Path) -> bool:
    from job.data.cifar10 import PUBLISHED

    return any((root.expanduser() / name).exists() for name in (PUBLISHED.filename, PUBLISHED.folder))


def _others(dataset: Dataset, classes: tuple[str, ...], root: str) -> tuple[str, Split]:
    """Which images of a set of other images are evaluated, "test" or "all", and these with labels among ``classes``."""
    import torch

    from job.data.datasets import Split

    if strange := [name for name in dataset.classes if name not in classes]:
        raise UserError(
            f"{root} has classes that the run was not trained on: {', '.join(strange[:10])}",
            f"take them away, or name them as the run does: {', '.join(classes[:20])}",
        )
    split, part = "test", dataset.test
    if part.images is dataset.train.images or not len(part):  # drawn from the others, or there is none
        whole = dataset.train  # its array holds them all
        split, part = "all", Split(whole.images, whole.labels, torch.arange(len(whole.labels)))
    numbers = torch.tensor([classes.index(name) for name in dataset.classes])
    return split, dataclasses.replace(part, labels=numbers[part.labels])


def _in_words(dataset: Dataset, classes: tuple[str, ...], root: str, split: str, images: int) -> str:
    which = "all" if split == "all" else "its test split's"
    lacks = [name for name in classes if name not in dataset.classes]
    of = f"{len(dataset.classes)} of the run's {len(classes)} classes, none of {', '.join(lacks[:10])}"
    return (
        f"evaluated on {root}: {which} {images:,} images, of {of if lacks else 'the same classes'}; "
        "whether the run was trained on some of them is not known"
    )


def _write(path: Path, text: str) -> None:
    try:
        write_whole(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})", "evaluate a copy of the run") from None


if __name__ == "__main__":
    ending.entry(main, joins=True)
