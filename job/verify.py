"""Train a stretch of a run once more, and say whether its weights come out the same to the last bit.

Ways to run it:
  python job/verify.py RUN                      from the beginning to the end, and of a finished run the test as well
  python job/verify.py RUN --steps 313:626      from the checkpoint at step 313, to step 626
  accelerate launch --config_file launch/cpu.yaml --num_processes 2 job/verify.py RUN [...]
RUN is a run directory, or what is published of one: config.yaml, metrics.jsonl, environment.json, evaluation.json.
Nothing is written there. Each fingerprint of weights in metrics.jsonl is compared as soon as its step is taken; at the
first one that differs the command ends, and names what differs between then and now in software, hardware and threads.
With train.gradient_shards any number of processes will do that divides them, else it must be the run's own.
Exit status: 0 equal, 1 different, 2 for what cannot be verified.

Its own options:
  --steps A:B           from a checkpoint's step, or 0, to step B; left out, A is 0 and B that of the last fingerprint
The settings follow, by section: the run's own. Those of runtime and data that a run may be continued with may be given
here, such as --data.root, where its images lie, and --runtime.threads, unless told otherwise as many as the run had.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: `job` is found from anywhere, and what lies in job/ shadows nothing
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import math
import re
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from job.config import command_line
from job.config.errors import FAILED, PREEMPTED, StoppedEarlyError, UserError, first_line
from job.config.plain import differences
from job.config.settings import Config
from job.distributed import cores, ending, launcher
from job.distributed.group import Group, start
from job.distributed.preemption import Preemption
from job.runs import environment, reader, restored
from job.runs.reader import Record, Run

if TYPE_CHECKING:
    from job.data.datasets import Dataset
    from job.display.console import Console
    from job.runs.checkpoint import State
    from job.training.replay import Outcome


def main(argv: list[str]) -> int:
    """Verify the run named first; returns the exit status."""
    launcher.die_with_launcher()
    options, rest = command_line.take_options(argv, "steps")
    named = bool(rest) and not rest[0].startswith("-")
    if not named and not {"--help", "-h"} & {*rest}:
        raise UserError("no run is named", "give its directory first, such as job/verify.py runs/NAME --steps 0:500")
    settings, path = restored.of_run(rest[0] if named else None, rest[named:], __doc__ or "")
    run, saved = reader.read(path), restored.positions(path)
    own = command_line.from_dict(run.config, str(path / "config.yaml"))
    other = differences(own, settings)
    if other or (own.train, own.schedule) != (settings.train, settings.schedule):
        raise UserError(f"settings that are not the run's ({'; '.join(other) or 'how it trains'})", "leave them out")
    known = {step: one["fingerprint"] for step, one in saved.items() if "fingerprint" in one}
    known |= {line["step"]: line["fingerprint"] for line in run.lines("train") if "fingerprint" in line}
    first, last = _stretch(options["steps"], known, saved)
    then = _starts(run.environment, first, last)
    if settings.runtime.threads is None and then:
        settings = replace(settings, runtime=replace(settings.runtime, threads=then[-1].get("threads")))
    _require_as_many(settings, then, path)
    preemption = Preemption()
    group = start(
        settings.runtime,
        deterministic=settings.train.deterministic,
        static_graph=settings.train.gradient_accumulation == 1,
        one_thread=settings.train.gradient_shards is not None,
    )
    group.guarded(lambda: settings.parts(group.world_size))

    from job.display.console import Console
    from job.training.replay import replay

    console = Console(quiet=not group.is_rank_zero)
    if run.unread:
        console.warn(run.left_out)
    now = environment.of_start(group.gathered(environment.of_process(group)), [])
    begin, wrong = _beginning(path, first, known, group)
    equal = ""
    if not wrong:
        dataset = _dataset(settings, run, saved, group, console)
        compared = {step: known[step] for step in sorted(known) if first < step <= last}
        schedule = max(saved.items(), default=(0, {}))[1].get("schedule")
        try:
            outcome = replay(settings, dataset, group, preemption, console, begin, compared, schedule)
        except StoppedEarlyError as error:
            console.say(f"stopped by {error}, before all was compared")
            group.close()
            return PREEMPTED
        equal, wrong = _judged(outcome, run)
    if wrong:
        console.say(f"{wrong}{f', after {equal}' if equal else ''}", "bold")
        console.say(_why(own, then, now, saved))
    else:
        console.say(f"equal, {equal} over {last - first:,} steps", "bold")
    group.close()
    return FAILED if wrong else 0


def _stretch(steps: str | None, known: Collection[int], saved: Collection[int]) -> tuple[int, int]:
    """The step to begin after and the last one, as ``steps`` says. Raises UserError where nothing can be compared."""
    if not known:
        mend = "runs have them since job/verify.py is there: train it again"
        raise UserError("its metrics.jsonl holds no fingerprints of weights", mend)
    asked = re.fullmatch(r"(\d{0,15}):(\d{0,15})", ":" if steps is None else steps)
    if asked is None:
        raise UserError(f"--steps {steps}", "must be A:B, in optimizer steps, such as 0:500")
    first, last = int(asked[1] or 0), int(asked[2] or max(known))
    if first and first not in saved:
        raise UserError(f"there is no checkpoint at step {first}", f"begin at {' or '.join(map(str, [0, *saved]))}")
    if last > max(known) or not any(first < step <= last for step in known):
        some = [step for step in sorted(known) if step > first][:3]
        where = f"the next are at {', '.join(map(str, some))}, the last" if some else "the last is"
        raise UserError(f"no fingerprint to compare in steps {first} to {last}", f"{where} at {max(known)}")
    return first, last


def _starts(known: Record, first: int, last: int) -> list[Record]:
    """Those starts of the run that trained steps after ``first`` up to ``last``, by its environment.json."""
    began: list[tuple[float, Record]] = []
    for one in known.get("attempts", []):
        if "step" in one:  # else it never came to train
            began = [(step, before) for step, before in began if step < one["step"]] + [(one["step"], one)]
    ends = [step for step, _ in began[1:]] + [math.inf]
    return [one for (step, one), end in zip(began, ends, strict=True) if step < last and end > first]


def _require_as_many(settings: Config, then: list[Record], path: Path) -> None:
    """Raise UserError where the bits depend on how many processes there are, and there were others."""
    world_size = launcher.world_size()
    others = {one["world_size"] for one in then if "world_size" in one} - {world_size}
    if others and settings.train.gradient_shards is None:
        were = " and ".join(map(str, sorted(others)))
        raise UserError(
            f"{path} was trained on {were} process{'es' * (were != '1')}, these are {world_size}, and without "
            "train.gradient_shards its bits depend on that",
            "start as many, such as by accelerate launch --config_file launch/cpu.yaml --num_processes N",
        )


def _beginning(path: Path, first: int, known: dict[int, str], group: Group) -> tuple[State | None, str]:
    """The state at step ``first``, on rank zero, and on all what is wrong with it; None at the beginning."""
    from job.runs import checkpoint

    state, name = None, f"step-{first:08d}"

    def wrong() -> str:
        nonlocal state
        try:
            state = checkpoint.read(path / "checkpoints" / name)
        except checkpoint.DAMAGED as error:
            return first_line(error)
        same = state.trainer.get("fingerprint") in (None, known.get(first))
        return "" if same else "metrics.jsonl has another fingerprint for this step"

    problem = group.from_rank_zero(group.guarded(wrong, on=group.is_rank_zero and first > 0))
    return state, f"checkpoint {name} is not what the run saved: {problem}" if problem else ""


def _dataset(settings: Config, run: Run, saved: dict[int, Record], group: Group, console: Console) -> Dataset:
    """The run's images. Raises UserError where they are others."""
    from job.data import datasets

    disk = launcher.node_disk()
    stored = group.once_a_node(lambda: str(datasets.prepare(settings.data, console.bar, console.say, disk)))
    dataset = group.guarded(lambda: datasets.mapped(Path(stored), settings.data, settings.train.seed_for("split")))
    assert dataset is not None
    own = [run.evaluation.get("data")] if run.evaluation else [one["data"] for one in saved.values() if one]
    if {None, dataset.fingerprint}.isdisjoint([*own, *[None] * (not own)]):
        raise UserError(
            f"the images are not those that {run.path} was trained on (their content, or which of them are held out)",
            "say where those lie by --data.root",
        )
    cores.keep_to_own(group)
    return dataset


def _judged(outcome: Outcome, run: Run) -> tuple[str, str]:
    """What is equal, and what is not, in words."""
    equal = f"{outcome.equal} fingerprint{'s' if outcome.equal != 1 else ''}"
    if outcome.differs:
        step, was, is_ = outcome.differs
        equal = f"{equal} that {'is' if outcome.equal == 1 else 'are'} equal" if outcome.equal else ""
        return equal, f"step {step:,} differs: {was} -> {is_ or 'nothing, training ends before it'}"
    if outcome.predictions is None or run.evaluation is None:
        return equal, ""
    result, split = run.evaluation, run.evaluation["split"]
    accuracy, loss = outcome.predictions.accuracy, outcome.predictions.loss
    if (accuracy, loss) == (result["accuracy"], result["loss"]):
        return f"{equal} and the accuracy of {accuracy:.2%} on the {split} images", ""
    differs = f"accuracy {result['accuracy']} -> {accuracy}, loss {result['loss']} -> {loss}"
    return f"{equal} that are equal", f"the result on the {split} images differs: {differs}"


_PLATFORM = {
    "world_size": "processes",
    "threads": "threads",
    "device_type": "kind of device",
    "devices": "devices",
    "arithmetic": "instructions",
    "torch": "torch",
    "accelerate": "accelerate",
    "python": "Python",
    "code": "code in job/",
}
"""what is told apart between then and now"""


def _why(own: Config, then: list[Record], now: Record, saved: dict[int, Record]) -> str:
    """What differs between the starts ``then`` and ``now``, and between config.yaml and the checkpoints."""
    found = []
    if positions := [one for one in saved.values() if one]:
        before = command_line.from_dict(positions[-1]["config"], "its newest checkpoint")
        found = [f"{change} in config.yaml" for change in differences(before, own)]
    for key, name in _PLATFORM.items():
        was, is_ = {_shown(one[key]) for one in then if key in one}, _shown(now[key])
        if was - {is_}:
            found.append(f"{name} {' and '.join(sorted(was))} -> {is_}")
    if found:
        return f"between then and now differs: {'; '.join(found)}"
    return (
        "software, hardware, threads and code are what they were: what is left is a setting, a weight or a file that "
        "was changed, or a device that miscomputed, then or now"
    )


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(sorted(set(value)))
    return str(value)[:20] if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else str(value)


if __name__ == "__main__":
    ending.entry(main, joins=True)
