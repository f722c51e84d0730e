"""Train a network and report its accuracy per class.

Ways to run it:
  python job/train.py [--config FILE] [--key.sub value ...]
  accelerate launch job/train.py [...]
  accelerate launch --config_file launch/multi_gpu.yaml job/train.py [...]
  accelerate launch --config_file launch/cpu.yaml --num_processes 2 job/train.py [...]
  sbatch slurm/simple_cnn.sh [...]
  python job/train.py --check [--nodes N] [--gpus-per-node M] [...]      # everything short of training
Run it again with the same run directory, on any number of processes, and it continues where it stopped.

Its own options:
  --config FILE         settings to begin with (default: configs/simple_cnn.yaml); --key.sub value behind it wins
  --run.dir DIR         where everything is written, and what is continued (default: a new one in runs/)
  --check               look at data, weights, memory and disk, and train nothing; with it
    --nodes N, --gpus-per-node M    the shape that a job on a cluster will have
  --print_config        print all settings as they would be used, as a file for --config
The settings follow, by section.
"""

from __future__ import annotations

import dataclasses
import shlex
import signal
import sys
from pathlib import Path

if not __package__:  # run as a script: `job` is found from anywhere, and what lies in job/ shadows nothing
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from job.config.errors import FAILED, PREEMPTED, FailedError, StoppedEarlyError, UserError, first_line
from job.distributed.preemption import SIGNALS, Preemption

if __name__ == "__main__" and "--check" not in sys.argv:  # what comes before the handlers stand waits for them
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

from typing import TYPE_CHECKING

from job.config import command_line
from job.config.settings import REPOSITORY, Config
from job.distributed import cores, ending, launcher, startup
from job.distributed.group import Group, start
from job.distributed.meeting.nodes import nodes_looked_at, slow_nodes
from job.runs.directory import RunDirectory, choose

if TYPE_CHECKING:
    from job.display.console import Console
    from job.evaluation.predictions import Predictions
    from job.runs.records import Evaluation
    from job.training.trainer import Trainer


def main(argv: list[str]) -> int:
    """Prepare, train, test, report; returns the exit status."""
    if "--check" in argv:
        from job import check

        return check.main([word for word in argv if word != "--check"])
    preemption = Preemption()  # before torch is imported: a signal may come in the first second
    launcher.die_with_launcher()
    settings = command_line.parse(argv, description=__doc__ or "")
    startup.mark("interpreter and settings")
    group = start(
        settings.runtime,
        deterministic=settings.train.deterministic,
        static_graph=settings.train.gradient_accumulation == 1,
        one_thread=settings.train.gradient_shards is not None,
        meeting=preemption.while_ranks_meet(PREEMPTED),
    )
    from job.models import registry

    # Together, or a rank that ends here takes the meeting place from those who are still on their way in.
    group.guarded(lambda: settings.parts(group.world_size))
    group.guarded(lambda: registry.builder(settings.model.name), on=group.is_rank_zero)
    startup.mark("process group")
    from job.display.console import Console

    console = Console(quiet=not group.is_rank_zero)
    directory = group.guarded(lambda: _open(settings, argv, console), on=group.is_rank_zero)
    finished = group.from_rank_zero(directory.result if directory else None)
    if finished and finished.get("epochs") == settings.train.epochs:
        group.guarded(lambda: _show_again(finished, settings, directory, console) if directory else None)
        group.close()
        return 0
    if directory is not None and group.roll_call is not None:
        group.roll_call.before_the_end = directory.failed
    try:
        _train(settings, group, preemption, console, directory)
    except Exception as error:
        return _ended(error, settings, group, console, directory)
    group.close()
    return 0


def _open(settings: Config, argv: list[str], console: Console) -> RunDirectory:
    name = command_line.config_name(argv)
    job = launcher.slurm_job() if settings.run.dir is None else None
    path = choose(settings.run.dir, launcher.run_name(name), job, console.say)
    return RunDirectory(path, settings, console.warn)


def _train(
    settings: Config, group: Group, preemption: Preemption, console: Console, directory: RunDirectory | None
) -> None:
    from job.data import datasets
    from job.models import footprint
    from job.runs import environment, tracking
    from job.training.evaluated import caveats
    from job.training.saving import Saving
    from job.training.trainer import Trainer

    processes, nodes = group.gathered(environment.of_process(group)), nodes_looked_at(group)
    group.guarded(lambda: directory.begin(settings, environment.of_start(processes, nodes)) if directory else None)
    if directory is not None:
        console.log_to(directory.path / "log.txt")
        console.say(f"run directory {directory.path}, attempt {directory.attempt}", label="run")
    console.say(environment.in_words(processes), label="devices")
    for node, why in slow_nodes(nodes).items():
        console.warn(f"{node} is slow, and holds up all: {why}")
    # One process a node decodes what is not in the cache yet; then all of them map the same pages.
    disk = launcher.node_disk()
    stored = group.once_a_node(lambda: str(datasets.prepare(settings.data, console.bar, console.say, disk)))
    dataset = group.guarded(lambda: datasets.mapped(Path(stored), settings.data, settings.train.seed_for("split")))
    assert dataset is not None
    dataset = dataclasses.replace(dataset, notes=(*dataset.notes, *caveats(settings, dataset.final)))
    console.say(str(dataset), label="data")
    for note in dataset.notes:
        console.warn(note)
    own_cores = cores.keep_to_own(group)  # not before: whoever decodes should have them all
    startup.mark("data")
    saving = Saving(settings, group, preemption, console, directory)
    trainer = Trainer(settings, dataset, group, preemption, console, saving)
    group.guarded(lambda: footprint.require_room(directory.path, settings, trainer.model) if directory else None)
    if directory is not None:
        directory.begins_at(trainer.progress.step, trainer.steps_per_epoch)
    preemption.attach(
        stop_file=directory.path / "STOP" if directory else None,
        max_minutes=settings.run.max_minutes,
        end_time=lambda: launcher.end_time(directory.path if directory else None),
        maximum=group.maximum if group.world_size > 1 else None,
    )
    console.say(_describe_plan(trainer), label="plan")
    console.say(f"how: {trainer.how}" + (", each process on its own cores" if own_cores else ""), label="how")
    startup.mark("model")
    with tracking.tracked(
        settings, directory, dataset.classes, step=trainer.progress.step, say=console.say, warn=console.warn
    ) as tracks:
        startup.mark("trackers")
        console.say(f"ready after {startup.summary()}", label="start-up")
        predictions = trainer.run()
        result = group.guarded(lambda: _finish(trainer, directory, predictions) if directory else None)
        if directory is not None and tracks is not None and result is not None:
            _report(directory, console)
            tracks.result(result, trainer.progress.step)
            _show(result, console, directory.path)
            directory.completed()
            _tell(settings, directory, console, "finished", f"accuracy {result['accuracy']:.2%}")


def _finish(trainer: Trainer, directory: RunDirectory, predictions: Predictions) -> Evaluation:
    """Write the final weights, the predictions and, last, the result that makes this a finished run."""
    from job.evaluation import metrics, samples
    from job.models import registry
    from job.runs import files

    dataset = trainer.dataset
    result = metrics.report(
        predictions,
        dataset.classes,
        split=dataset.final,
        world_size=trainer.group.world_size,
        checkpoint=directory.newest_checkpoint(),
        epochs=trainer.settings.train.epochs,
        epochs_trained=trainer.progress.epoch - 1,
        weights=trainer.settings.run.weights,
        best_validation=trainer.progress.best,
        last_validation=trainer.progress.last,
        parameters=registry.count_parameters(trainer.model),
        data=dataset.fingerprint,
        deep=list(dataset.deep) if dataset.deep else None,
        notes=list(dataset.notes),
    )
    try:
        files.save_weights(directory.path / "model.safetensors", trainer.final_weights())
        predictions.save(directory.path)
        samples.keep(directory.path, dataset.splits[dataset.final], predictions)
        directory.finish(result)
    except OSError as error:
        raise FailedError(f"the results cannot be written ({error.strerror}); training is done, and saved") from None
    return result


def _report(directory: RunDirectory, console: Console) -> None:
    """Write the report page. The run is finished without it, so that nothing that goes wrong here may stop it."""
    try:
        from job.display import index_page, run_page

        run_page.write(directory.path)
        runs = directory.path.parent
        if runs == REPOSITORY / "runs" or (runs / "index.html").exists():  # else it is somebody else's folder
            index_page.write(runs)
    except Exception as error:
        again = shlex.join(["python", "job/report.py", str(directory.path)])
        console.warn(f"no report ({first_line(error)}); `{again}` tries again")


def _show(result: Evaluation, console: Console, path: Path) -> None:
    from job.display.text import listed

    console.result(result)
    names = ("evaluation.json", "metrics.jsonl", "model.safetensors", "report.html", "log.txt")
    there = listed([name for name in names if (path / name).exists()])
    then = shlex.join(["python", "job/predict.py", "--run", str(path), "IMAGE"])
    console.say(f"wrote {there} to {path}; next: open its report.html, or {then}")


def _show_again(result: Evaluation, settings: Config, directory: RunDirectory, console: Console) -> None:
    """Show a finished run's result once more; write what is missing, where the start that found it was killed."""
    from job.runs import files, restored

    path, lacking = directory.path, directory.lacks()
    if "log.txt" in lacking:
        console.log_to(path / "log.txt")
    if lacking:
        console.say(f"the run is finished; what is missing is written: {', '.join(lacking)}")
    if "model.safetensors" in lacking:
        try:
            model, _ = restored.restore(path, settings, tuple(row["name"] for row in result["classes"]))
            files.save_weights(path / "model.safetensors", model.state_dict())
        except (UserError, OSError) as error:  # its checkpoints may be gone as well
            console.warn(f"no model.safetensors ({first_line(error)})")
    if {"report.html", "figures"} & set(lacking):
        _report(directory, console)
    _show(result, console, path)
    if "log.txt" in lacking:
        directory.completed()
        _tell(settings, directory, console, "finished", f"accuracy {result['accuracy']:.2%}")


def _tell(settings: Config, directory: RunDirectory, console: Console, state: str, how: str) -> None:
    """Tell who waits for the run in ``directory`` that this start of it ended."""
    from job.display import notify

    message = {"text": f"{directory.path.name}: {state}, {how}", "run": str(directory.path), "state": state}
    if problem := notify.tell(settings.run.notify, message):
        console.warn(problem)


def _ended(error: Exception, settings: Config, group: Group, console: Console, directory: RunDirectory | None) -> int:
    """Say once why the run ended early, leave it in ``status.json``, and give the exit status."""
    if isinstance(error, UserError):
        if directory is not None:
            directory.failed(str(error))
            _tell(settings, directory, console, "failed", str(error))
        raise error
    if isinstance(error, StoppedEarlyError):
        if directory is not None:
            directory.stopped(str(error))
        console.say(f"stopped by {error}, and saved: run the same command again to continue")
        group.close()
        if directory is not None:
            _tell(settings, directory, console, "stopped", f"by {error}, and saved")
        return PREEMPTED
    message = ending.reason(error, group, settings.train.batch_size)
    if group.roll_call is not None and not ending.lost_contact(error):
        group.roll_call.failed(message)
    if directory is not None:
        directory.failed(message, recurs=getattr(error, "recurs", False))
        console.say(f"last checkpoint: {directory.newest_checkpoint() or 'none'}; the same command continues from it")
        _tell(settings, directory, console, "failed", message)
    if group.roll_call.speaks() if group.roll_call is not None else group.is_rank_zero:
        ending.complain(message)
    return FAILED


def _describe_plan(trainer: Trainer) -> str:
    from job.models.registry import described

    settings, progress = trainer.settings, trainer.progress
    went_on = f", from step {progress.step} in epoch {progress.epoch}" if progress.step else ""
    return (
        f"{', '.join([settings.model.name, *trainer.loaded])}: {described(trainer.model)}, "
        f"{settings.runtime.precision}; {settings.train.epochs} epochs of {trainer.steps_per_epoch} steps, "
        f"global batch size {settings.train.batch_size}{went_on}"
    )


if __name__ == "__main__":
    ending.entry(main, joins=True)
