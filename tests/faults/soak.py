"""Kill runs with SIGKILL at random instants, again and again, and compare each with one that was not disturbed.

  python tests/faults/soak.py --kills 200 --each
  python tests/faults/soak.py --kills 50 [--pictures ARCHIVE] [--processes 2] [--network narrow] [--augment [flip,crop]]

--each: equally many of each of the CONFIGURATIONS, on a few pictures, in half an hour. Without --pictures the embedded
data set is used. A run is killed until it happens to finish; then weights, predictions,
evaluation.json, every line of metrics.jsonl and the last checkpoint are compared bit for bit, and the next one begins.
"""

from __future__ import annotations

import argparse
import functools
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs import Job, differences, draw
from support.forked import fork_server

CONFIGURATIONS = {
    "1, Adam": "",
    "1, dropout and augmentation": "--model.name vgg16 --data.augment [flip,crop,color,erasing] --train.mixup 0.2",
    "1, batch normalisation, SGD, one-cycle, clipping": "--model.name vgg16_bn --optimizer.name sgd "
    "--schedule.name onecycle --train.clip_norm 1",
    "1, bf16, AdamW, cosine with warm-up": "--runtime.precision bf16 --optimizer.name adamw --schedule.name cosine "
    "--schedule.warmup_epochs 0.5",
    "2, dropout and augmentation": "--model.name vgg16 --data.augment [flip,resized_crop,rotate] --train.cutmix 1",
    "2, accumulation": "--train.gradient_accumulation 2 --train.label_smoothing 0.1",
    "1 2 4, gradient shards": "--model.name vgg16 --train.gradient_shards 4",
    "1 2 3, shards and batch normalisation": "--model.name vgg16_bn --train.gradient_shards 12 --train.batch_size 60 "
    "--train.ema 0.9 --train.cutmix 1",
    "1 2 4, ResNet-18 in shards": "--model.name resnet18 --train.gradient_shards 8 --train.ema 0.9 --train.mixup 0.2 "
    "--train.class_weights balanced --data.validation 0.8",
    "2, gradients in bf16": "--runtime.gradients bf16",
    "3, batch normalisation in parts": "--model.name vgg16_bn --train.batch_size 48 --train.gradient_accumulation 2",
    "3, saved by the clock": "--train.batch_size 48 --checkpoint.every_steps null --checkpoint.every_seconds 0.1",
}
"""processes, of which each start has another number, and options of a run"""


def soak(
    arguments: Sequence[str],
    folder: Path,
    *,
    kills: int,
    processes: Sequence[int] = (1,),
    network: str = "",
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[int, int, list[str]]:
    """Kill ``kills`` times in all; (kills, runs finished, what was not the same)."""
    chance = random.Random(seed)
    ready = fork_server().Process(target=int)
    ready.start()
    ready.join()
    began = time.monotonic()

    def start(run: Path, count: int) -> Job:
        run.mkdir(exist_ok=True, parents=True)
        command = [*arguments, "--run.dir", str(run / "run")]
        return Job(command, run / "output.txt", processes=count, network=network)

    reference = start(folder / "undisturbed", processes[0])
    if any(reference.wait(3600)):
        raise RuntimeError(reference.output)
    whole = time.monotonic() - began
    say(f"a run takes {whole:.0f} s undisturbed")
    done, runs, found, attempts = 0, 0, [], 0
    while done < kills or attempts:
        run = folder / f"killed-{runs}"
        count = chance.choice(processes)
        job = start(run, count)
        attempts += 1
        if done < kills:
            time.sleep(chance.uniform(0, whole))
            victim = chance.choice([None, *range(count)])  # all at once, or one
            if all(rank.exitcode is None for rank in job.ranks):
                job.signal(signal.SIGKILL, victim)
        statuses = job.wait(3600)
        if any(statuses):
            if -signal.SIGKILL not in statuses:
                raise RuntimeError(job.output)
            done += 1
            continue
        wrong = differences(run / "run", folder / "undisturbed" / "run")
        say(f"run {runs + 1}: {attempts - 1} kills, {done} in all; {'; '.join(wrong) or 'the same bits'}")
        found += wrong
        runs, attempts = runs + 1, 0
    return done, runs, found


def each(folder: Path, kills: int, say: Callable[[str], None]) -> tuple[int, int, list[str]]:
    """``soak`` with each of the ``CONFIGURATIONS`` for its share of ``kills``."""
    root, totals, found = draw(folder / "pictures"), [0, 0], []
    arguments = ["--data.source", "folder", "--data.root", str(root), "--data.cache", str(folder / "cache")]
    arguments += ["--train.epochs", "6", "--train.batch_size", "32", "--run.log_every", "5", "--run.trackers", "[]"]
    arguments += ["--checkpoint.every_steps", "4", "--runtime.threads", "1"]
    for number, (name, options) in enumerate(CONFIGURATIONS.items()):
        say(name)
        share = kills * (number + 1) // len(CONFIGURATIONS) - kills * number // len(CONFIGURATIONS)
        own = {
            "kills": share,
            "processes": [*map(int, name.partition(",")[0].split())],
            "network": "narrow",
            "seed": number,
            "say": say,
        }
        done, runs, wrong = soak([*arguments, *options.split()], folder / str(number), **own)  # type: ignore[arg-type]
        totals = [totals[0] + done, totals[1] + runs]
        found += wrong
    return *totals, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--each", action="store_true", help="all configurations on 1 to 4 processes")
    parser.add_argument("--pictures", help="folder or archive of train/<class>/* and test/<class>/*")
    parser.add_argument("--cache", default=str(Path(tempfile.gettempdir()) / "rankzero-soak-cache"))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--network", choices=["simple_cnn", "narrow"], default="simple_cnn")
    parser.add_argument("--augment", default="[]")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    arguments = ["--data.source", "folder", "--data.root", given.pictures] if given.pictures else []
    arguments = arguments or ["--data.source", "shapes10"]
    arguments += ["--data.cache", given.cache, "--train.epochs", str(given.epochs), "--data.augment", given.augment]
    arguments += ["--model.name", "simple_cnn" if given.network == "simple_cnn" else "vgg16"]
    arguments += ["--checkpoint.every_steps", "10", "--run.log_every", "7", "--run.trackers", "[]"]
    with tempfile.TemporaryDirectory() as folder:
        say = functools.partial(print, flush=True)
        done, runs, found = (
            each(Path(folder), given.kills, say)
            if given.each
            else soak(
                arguments,
                Path(folder),
                kills=given.kills,
                processes=[given.processes],
                network=given.network.replace("simple_cnn", ""),
                seed=given.seed,
                say=say,
            )
        )
    print(f"{done} kills, {runs} runs finished, {len(found)} differences")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
