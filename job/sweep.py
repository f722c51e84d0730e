"""Run an experiment of several arms and seeds, and say what it answers.

Ways to run it:
  python job/sweep.py configs/sweeps/learning_rates.yaml               one run after the other
  python job/sweep.py configs/sweeps/simple_cnn_or_vgg16.yaml --jobs 2 two at a time, on GPUs or cores of their own
  python job/sweep.py SWEEP.yaml --until-decided 20                    no more seeds than the answer takes, at most 20
  sbatch --array=1-$(python job/sweep.py SWEEP.yaml --count) slurm/sweep.sh SWEEP.yaml
The file has a base configuration, arms (or a grid) of settings that differ, and seeds. All arms are checked before the
first run starts. Runs go seed by seed into runs/<sweep>/<arm>/seed-<n>. The same command continues what is unfinished,
leaves what is finished, and goes on past an arm that fails: the exit status is 1 then. Ctrl-C saves and ends with 75.
With --until-decided it looks after each seed, and its intervals are such as hold however often one looks.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: `job` is found from anywhere, and what lies in job/ shadows nothing
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import os
import signal
import subprocess
import tempfile
import time
from types import FrameType

from job.config import sweeps
from job.config.command_line import Arguments, from_dict
from job.config.errors import FAILED, PREEMPTED, UserError, printable
from job.config.plain import differences
from job.config.settings import REPOSITORY
from job.config.sweeps import Planned
from job.display.text import duration, percent
from job.distributed import cores, ending, launcher
from job.evaluation import arms
from job.runs import reader

EVERY = 0.2
"""seconds between looks at what runs"""


def main(argv: list[str]) -> int:
    """Check, run, compare; returns the exit status."""
    parser = Arguments(__doc__ or "")
    parser.add_argument("sweep", type=Path, help="what to run")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs side by side (default: 1)")
    parser.add_argument(
        "--until-decided",
        type=int,
        nargs="?",
        const=0,
        metavar="MOST",
        help="seeds until the best arm is told from the others, at most MOST (default: those of the file)",
    )
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs", metavar="DIR", help="in place of runs/")
    parser.add_argument("--count", action="store_true", help="print how many runs there are, and leave")
    parser.add_argument("--task", type=int, metavar="I", help="print what job/train.py is told for the I-th, and leave")
    options = parser.parse_args(argv)
    most = options.until_decided
    decides = most is not None
    if most is not None and (most < 0 or most == 1 or options.count or options.task is not None):
        raise UserError(f"--until-decided {most}", "give 2 seeds or more, and neither --count nor --task")
    planned = sweeps.read(options.sweep, options.runs.absolute(), most or None)
    if options.count:
        print(len(planned))
        return 0
    if options.task is not None:
        if not 1 <= options.task <= len(planned):
            raise UserError(f"--task {options.task}", f"{options.sweep} has runs 1 to {len(planned)}")
        print("\n".join(planned[options.task - 1].words))
        return 0
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}", "must be 1 or more")
    names = {run.arm for run in planned}
    if decides and len(names) < 2:
        raise UserError(f"--until-decided with one arm, {planned[0].arm}", "give the sweep another one to tell it from")
    left = [run for run in planned if not _is_finished(run)]
    gpus = _check(left)
    at_most = "at most " if decides else ""
    print(f"{options.sweep.stem}: {at_most}{len(planned)} runs, {len(planned) - len(left)} finished before", flush=True)
    folder, sweep, said = planned[0].path.parents[1], _Sweep(options.jobs, gpus), ""
    if decides:
        said = _until_decided(sweep, planned, left, folder, max(1, options.jobs // len(names)))
    else:
        sweep.run(left)
    for run, reason in sweep.failed:
        ending.complain(f"{_name(run)}: {reason}")
    if sweep.stopping:
        print("stopped, and saved: the same command continues")
        return PREEMPTED
    if said:
        print(said, flush=True)
    if any((run.path / "evaluation.json").exists() for run in planned):
        subprocess.run([*_command("compare"), "--sweep", folder, "--out", folder], check=False)
    return FAILED if sweep.failed else 0


def _until_decided(sweep: _Sweep, planned: list[Planned], left: list[Planned], folder: Path, at_once: int) -> str:
    """Run what is ``left`` of what is planned, so many seeds ``at_once``, until the best arm is told from the others.

    An arm that fails gets no further seeds, and is not waited for. Returns how it ended.
    """
    seeds, names = (list(dict.fromkeys(of)) for of in zip(*((run.seed, run.arm) for run in planned), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / arms.LOOKED_AT).write_text("Seeds are added until the question is decided: see job/sweep.py --help.\n")
    for first in range(0, len(seeds), at_once):
        some = seeds[first : first + at_once]
        sweep.run([run for run in left if run.seed in some and run.arm in names])
        names = [name for name in names if name not in {run.arm for run, _ in sweep.failed}]
        if sweep.stopping or len(names) < 2:
            return "not decided"
        found, _ = arms.below(folder)
        if arms.compare({name: found[name] for name in names}, always=True)["decided"]:
            return "decided"
    return f"not decided with {len(seeds)} seeds, the most that --until-decided allows"


def _command(name: str) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name(f"{name}.py"))]


def _name(run: Planned) -> str:
    return f"{run.arm}, seed {run.seed}"


def _is_finished(run: Planned) -> bool:
    """Raises UserError where the run directory has a run of other settings."""
    if not (run.path / "config.yaml").exists():
        return False
    kept = reader.read(run.path)
    before = from_dict(kept.config, str(run.path / "config.yaml"))
    if changed := differences(before, run.settings):
        raise UserError(
            f"{run.path} holds a run of another configuration ({'; '.join(changed)})",
            "give the sweep's file another name, or move that directory away",
        )
    return kept.evaluation is not None and kept.evaluation.get("epochs") == run.settings.train.epochs


def _check(runs: list[Planned]) -> int:
    """Raise UserError unless each arm could run, for all short of training; the GPUs that there are."""
    if not runs:
        return 0
    from job import check

    gpus = check.read_shape("1", None).gpus
    for run in {run.arm: run for run in reversed(runs)}.values():
        for found in check.preflight(run.settings, check.Shape(nodes=1, processes=1, gpus=min(gpus, 1)), run.arm, {}):
            if found.verdict == "problem":
                raise UserError(f"arm {run.arm}: {found.name}: {found.detail}")
    return gpus


class _Sweep:
    """Runs, each a process of its own, ``jobs`` at a time, each on a GPU or a share of the cores."""

    def __init__(self, jobs: int, gpus: int) -> None:
        self._left: list[Planned] = []
        self._jobs = jobs
        self._gpus = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))).split(",") * bool(gpus)
        self._running: dict[int, tuple[Planned, subprocess.Popen[bytes], float]] = {}  # by place
        self.failed: list[tuple[Planned, str]] = []
        """and why"""
        self.stopping = False
        """whether it was told to stop"""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, self._stop)

    def run(self, runs: list[Planned]) -> None:
        """Run all of these to their end, or until told to stop."""
        self._left = list(runs)
        with tempfile.TemporaryDirectory() as folder:
            while self._running or (self._left and not self.stopping):
                for place in range(self._jobs):
                    said = Path(folder, str(place))  # on standard error
                    if place not in self._running and self._left and not self.stopping:
                        self._start(self._left.pop(0), place, said)
                    elif place in self._running and self._running[place][1].poll() is not None:
                        self._end(place, said.read_text("utf-8", "replace"))
                time.sleep(EVERY)

    def _start(self, run: Planned, place: int, said: Path) -> None:
        print(f"{time.strftime('%H:%M:%S')} {printable(_name(run))}: begins", flush=True)
        surroundings = dict(os.environ)
        if self._jobs > 1 and self._gpus:
            surroundings["CUDA_VISIBLE_DEVICES"] = self._gpus[place % len(self._gpus)]
        with said.open("wb") as errors:
            # A session of its own: Ctrl-C comes to this process, which tells the others once.
            process = subprocess.Popen(
                [*_command("train"), *run.words],
                env=surroundings,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
                preexec_fn=launcher.die_with_parent,
            )
        if self._jobs > 1 and not self._gpus and hasattr(os, "sched_setaffinity"):
            allowed = [os.sched_getaffinity(0)] * self._jobs
            if (own := cores.share_of_cores(allowed, place, 1)) is not None:
                os.sched_setaffinity(process.pid, own)
        self._running[place] = (run, process, time.monotonic())

    def _end(self, place: int, said: str) -> None:
        run, process, began = self._running.pop(place)
        status, spent = process.returncode, duration(time.monotonic() - began)
        if status == 0 and (result := reader.read(run.path).evaluation):
            words = f"{percent(result['accuracy'], 2)} in {spent}"
        else:
            errors = [line for line in said.splitlines() if line.startswith("error: ")]
            words = errors[-1].removeprefix("error: ") if errors else f"ended with status {status}"
            words = f"stopped after {spent}, and saved" if status == PREEMPTED else words
            self.failed += [] if status == PREEMPTED and self.stopping else [(run, words)]
        print(f"{time.strftime('%H:%M:%S')} {printable(f'{_name(run)}: {words}')}", flush=True)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if not self.stopping:
            self.stopping = True
            for _, process, _ in self._running.values():
                process.send_signal(signal.SIGTERM)


if __name__ == "__main__":
    ending.entry(main)
