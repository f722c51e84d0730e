"""Kill runs with SIGKILL at random instants, again and again, and compare each with one that was not disturbed.

  python tests/faults/soak.py --kills 50 [--pictures ARCHIVE] [--processes 2] [--network narrow] [--augment [flip,crop]]

Without --pictures the embedded data set is used. A run is killed until it happens to finish; then weights, predictions,
evaluation.json, every line of metrics.jsonl and the last checkpoint are compared bit for bit, and the next one begins.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs import Job, differences


def soak(
    arguments: Sequence[str],
    folder: Path,
    *,
    kills: int,
    processes: int = 1,
    network: str = "",
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[int, int, list[str]]:
    """Kill ``kills`` times in all; (kills, runs finished, what was not the same)."""
    draw = random.Random(seed)
    began = time.monotonic()

    def start(run: Path) -> Job:
        run.mkdir(exist_ok=True, parents=True)
        command = [*arguments, "--run.dir", str(run / "run")]
        return Job(command, run / "output.txt", processes=processes, network=network)

    reference = start(folder / "undisturbed")
    if any(reference.wait(3600)):
        raise RuntimeError(reference.output)
    whole = time.monotonic() - began
    say(f"a run takes {whole:.0f} s undisturbed")
    done, runs, found, attempts = 0, 0, [], 0
    while done < kills or attempts:
        run = folder / f"killed-{runs}"
        job = start(run)
        attempts += 1
        if done < kills:
            time.sleep(draw.uniform(0, whole))
            victim = draw.choice([None, *range(processes)])  # all at once, or one
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
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
        done, runs, found = soak(
            arguments,
            Path(folder),
            kills=given.kills,
            processes=given.processes,
            network=given.network.replace("simple_cnn", ""),
            seed=given.seed,
            say=lambda text: print(text, flush=True),
        )
    print(f"{done} kills, {runs} runs finished, {len(found)} differences")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
