"""Evaluate the weights of a finished or running run once more.

Ways to run it:
  python job/evaluate.py --run RUN [--split test|validation|train] [--key.sub value ...]
  accelerate launch --config_file launch/cpu.yaml --num_processes 2 job/evaluate.py --run RUN [...]
The run's own configuration is used; settings given here win over it. The result is written beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: `job` is found from anywhere, and what lies in job/ shadows nothing
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json

from job.config import command_line
from job.config.errors import UserError
from job.distributed import ending
from job.distributed.group import start
from job.runs import restored
from job.runs.files import write_whole
from job.runs.records import Origin

SPLITS = ("test", "validation", "train")


def main(argv: list[str]) -> int:
    """Evaluate one split and show it; returns the exit status."""
    options, rest = command_line.take_options(argv, "run", "split")
    settings, run = restored.of_run(options["run"], rest, __doc__ or "")
    split = options["split"]
    if split not in (None, *SPLITS):
        raise UserError(f"--split {split}", f"must be one of {', '.join(SPLITS)}")
    group = start(settings.runtime, deterministic=settings.train.deterministic)

    from job.data import datasets
    from job.data.batches import Batches
    from job.display.console import Console
    from job.evaluation import metrics
    from job.evaluation.predictions import predict

    console = Console(quiet=not group.is_rank_zero)
    named = any(word.startswith(("--data.root", "--data.source")) for word in rest)
    # Other images of more than 8 bits must be seen as those were that the run was trained on.
    deep = group.from_rank_zero(group.guarded(lambda: restored.deep_range(run), on=group.is_rank_zero))
    stored = group.once_a_node(
        lambda: str(
            datasets.prepare(
                settings.data, console.bar, console.say, deep=(deep[0], deep[1]) if named and deep else "ask"
            )
        )
    )
    dataset = datasets.mapped(Path(stored), settings.data, settings.train.seed)
    split = split or dataset.final
    data = (dataset.classes, dataset.fingerprint)
    same = group.guarded(lambda: restored.require_data(run, settings, split, *data, named=named), on=group.is_rank_zero)
    if same is False:
        console.say(f"these are other images than those of {run}, of the same classes")
    part = dataset.splits[split]
    if len(part) == 0:
        raise UserError(f"the {split} split has no images", "choose another --split")
    # Rank zero reads the weights, and the others have them from it: on other hosts the run may not be seen at all.
    own = group.guarded(lambda: restored.restore(run, settings, dataset.classes), on=group.is_rank_zero)
    model, source = own or (restored.build(settings, dataset.classes), "")
    source = group.from_rank_zero(source)
    model.load_state_dict(group.broadcast(model.to(group.device).state_dict()))
    batches = Batches(part, settings.data, group.device, rank=group.rank, world_size=group.world_size)
    predictions = predict(model, batches, part.labels[part.indices], group)
    assert predictions is not None
    origin = Origin(world_size=group.world_size, checkpoint=source, data=dataset.fingerprint)
    result = metrics.report(predictions, dataset.classes, split=split, **origin)
    console.result(result)
    path = run / f"evaluation-{split}.json"
    group.guarded(lambda: _write(path, json.dumps(result, indent=1) + "\n"), on=group.is_rank_zero)
    console.say(f"wrote {path}")
    group.close()
    return 0


def _write(path: Path, text: str) -> None:
    try:
        write_whole(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})", "evaluate a copy of the run") from None


if __name__ == "__main__":
    ending.entry(main, joins=True)
