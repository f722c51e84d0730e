"""The shipped sbatch scripts on a real Slurm: what they start, and how a job ends, is stopped, and comes back."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from shipped import TINY, TWO_NODES, Site

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(500)]
TWO_GPUS = ["--gpus-per-node=2", "--cpus-per-task=1"]  # two ranks share a CPU, as the machine's are shared
ON_CPU = ["--runtime.device", "cpu"]  # the cluster's GPUs are plain files

EDITS = {
    "configs/simple_cnn.yaml": "optimizer: {learning_rate: 0.5}\n",
    "job/training/step.py": "raise RuntimeError('half edited')\n",
}


def metrics(run: Path) -> list[dict[str, Any]]:
    """What the run measured, without how fast it was."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "seconds")} for line in lines]


def evaluation(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "evaluation.json").read_text())
    return content


def state(run: Path) -> str:
    return str(json.loads((run / "status.json").read_text())["state"])


def assert_same(run: Path, other: Path) -> None:
    """Both runs measured the same and ended with the same weights, bit for bit."""
    assert metrics(run) == metrics(other)
    assert evaluation(run)["confusion_matrix"] == evaluation(other)["confusion_matrix"]
    assert (run / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def rank_processes(cluster: Cluster, job: str) -> dict[int, int]:
    """Process of each rank."""
    found = {}
    for pid in cluster.processes(job):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.update({int(e[5:]): pid for e in environment if e.startswith(b"RANK=")})
    return found


def _wait_for(what: Callable[[], bool], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_overrides_reach_the_job_unread_by_any_shell_and_from_any_folder(site: Site, tmp_path: Path) -> None:
    run = tmp_path / 'a "run" $(touch pwned); dir'
    overrides = [*TINY, "--train.epochs=1", f"--run.dir={run}"]
    job = site.submit("--gpus-per-node=0", "--cpus-per-task=1", overrides=overrides, RANKZERO_SRUN="--label")
    ended = site.cluster.wait(job)
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), site.log(job)
    assert evaluation(run)["world_size"] == 1
    assert evaluation(run)["epochs"] == 1
    assert re.search("^0: .*10 classes", site.log(job), re.MULTILINE), "srun's --label was passed on"
    assert not list(site.repository.glob("**/pwned"))
    assert site.cluster.processes(job) == []


def test_two_nodes_with_two_gpus_each_are_four_ranks_with_the_numbers_of_two(site: Site, undisturbed: Path) -> None:
    job = site.submit("--nodes=2", *TWO_GPUS, overrides=[*TINY, *ON_CPU])
    assert site.cluster.wait(job)["JobState"] == "COMPLETED", site.log(job)
    assert evaluation(site.run(job))["world_size"] == 4
    # Here both nodes have one disk, and rank zero may be the one that waits for the other's images.
    assert f" {site.disk}/shapes10-" in site.log(job), "images go to the node's own disk"
    assert not site.disk.exists(), "and leave it with the job"
    assert evaluation(undisturbed)["world_size"] == 2
    for mine, other in zip(metrics(site.run(job)), metrics(undisturbed), strict=True):
        assert mine["step"] == other["step"]
        # Equal to rounding; which Adam then makes more of from step to step.
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-6 if mine["step"] <= 10 else 0.02)


@pytest.mark.long
def test_array_tasks_have_their_own_seeds_and_runs_and_come_back_alone(site: Site) -> None:
    array = site.submit(
        "--array=7-9", "--gpus-per-node=0", "--cpus-per-task=1", overrides=[*TINY, "--train.epochs", "1"]
    )
    # The last task's own job id is the array's, under which a requeue would take all of them.
    site.wait_for_step(f"{array}_9", 20)
    site.cluster.run("scancel", "--batch", "--signal=USR1", f"{array}_9")
    for seed in (7, 8, 9):
        task = f"{array}_{seed}"
        ended = site.cluster.wait(task)
        assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1" if seed == 9 else "0")
        assert f"seed: {seed}" in (site.run(task) / "config.yaml").read_text()
        assert evaluation(site.run(task))["images"] == 5000
    runs = [site.run(f"{array}_{seed}") for seed in (7, 8, 9)]
    assert len({evaluation(run)["accuracy"] for run in runs}) > 1
    site.cluster.run(sys.executable, site.repository / "job" / "compare.py", *runs, "--out", site.home)
    (group,) = json.loads((site.home / "comparison.json").read_text())["repetitions"]
    assert sorted(group["seeds"]) == [7, 8, 9]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_sweep_is_the_same_as_an_array_and_here_killed_and_continued(site: Site, tmp_path: Path) -> None:
    file, own, here = tmp_path / "rates.yaml", "train.epochs: 1, run.trackers: [], run.log_every: 5", tmp_path / "runs"
    arms = "".join(f"  rate{rate}: {{optimizer.learning_rate: {rate}, {own}}}\n" for rate in (0.001, 0.003))
    file.write_text(f"base: {site.repository}/configs/quickstart.yaml\nseeds: [1, 2]\narms:\n{arms}")
    sweep = [sys.executable, site.repository / "job" / "sweep.py", file]
    count = site.cluster.run(*sweep, "--count").stdout.strip()
    array = site.submit(
        f"--array=1-{count}", "--gpus-per-node=0", "--cpus-per-task=1", script="sweep.sh", overrides=[str(file)]
    )
    there = site.repository / "runs" / "rates"
    stopped = there / "rate0.003" / "seed-2" / "status.json"
    _wait_for(lambda: stopped.exists() and json.loads(stopped.read_text())["step"] >= 40)
    site.cluster.run("scancel", "--batch", "--signal=USR1", f"{array}_4")
    killed = there / "rate0.001" / "seed-1" / "status.json"
    if json.loads(killed.read_text())["state"] == "running":
        os.kill(rank_processes(site.cluster, site.cluster.job(f"{array}_1")["JobId"])[0], signal.SIGKILL)
    for task in range(1, int(count) + 1):
        assert site.cluster.wait(f"{array}_{task}")["JobState"] == "COMPLETED"

    begun = subprocess.Popen([*map(str, sweep), "--runs", here, "--jobs", "2"], env=site.cluster.environment)
    second = here / "rates" / "rate0.001" / "seed-2" / "status.json"
    _wait_for(lambda: second.exists() and json.loads(second.read_text())["step"] >= 20)
    begun.kill()  # its runs save, and end with it
    begun.wait()
    words = [*map(str, sweep), "--runs", here]
    continued = subprocess.run(words, env=site.cluster.environment, check=True, capture_output=True, text=True)
    assert "rates: 4 runs, 2 finished before" in continued.stdout
    site.cluster.run(sys.executable, site.repository / "job" / "compare.py", "--sweep", there, "--out", there)
    tables = [json.loads((folder / "comparison.json").read_text()) for folder in (there, here / "rates")]
    for table in tables:
        for arm in table["arms"]:
            del arm["seconds"]
    assert [tables[0][part] for part in ("arms", "paired", "answers", "classes")] == [
        tables[1][part] for part in ("arms", "paired", "answers", "classes")
    ]
    for run in sorted(there.glob("*/seed-*")):
        assert_same(run, here / "rates" / run.parent.name / run.name)


def test_a_wrong_key_fails_within_seconds_with_one_line_and_leaves_no_run(site: Site) -> None:
    linked = site.home / "linked.sh"
    linked.symlink_to(site.repository / "slurm" / "simple_cnn.sh")
    job = site.submit(*TWO_NODES, script=str(linked), overrides=["--train.epoks", "3"])
    ended = site.cluster.wait(job, seconds=120)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0")
    assert [line for line in site.log(job).splitlines() if line.startswith("error:")] == [
        "error: unknown key train.epoks: did you mean train.epochs?"
    ]
    assert not site.run(job).exists()


@pytest.mark.parametrize(
    ("options", "complaint", "run"),
    [
        (["--nodes=2", "--gpus=3"], "unequal numbers of GPUs", ""),
        (["--ntasks=2", "--gpus-per-task=1", "--gpus-per-node=2"], "ask for them with --gpus-per-node", ""),
        # What 24.11 tells of --gpus-per-task.
        (["--export=ALL,SLURM_TRES_PER_TASK=gres/gpu=1"], "ask for them with --gpus-per-node", ""),
        (["--nodes=1", "--gpus-per-node=2", "--ntasks-per-node=3"], "one process a GPU", ""),
        (["--array=1-2", "--gpus-per-node=0"], "gives every task the same directory", "somewhere"),
        (["--gpus-per-node=0"], "/proc/here cannot be written", "/proc/here"),
    ],
)
def test_an_allocation_that_cannot_be_honoured_is_refused_in_one_line(
    site: Site, options: list[str], complaint: str, run: str
) -> None:
    version = tuple(map(int, re.findall(r"\d+", site.cluster.run("sbatch", "-V").stdout)))
    if "TRES" in options[0] and version >= (23, 11):
        pytest.skip("this Slurm says so by itself, of --gpus-per-task")
    overrides = ["--run.dir", run] if run else []
    # The script's own default stands in the way of --gpus, as it does for a user.
    script = site.repository / "slurm" / "any_gpus.sh"
    text = (site.repository / "slurm" / "simple_cnn.sh").read_text()
    script.write_text(text.replace("#SBATCH --gpus-per-node=1", "") if "--gpus=3" in options else text)
    job = site.submit(*options, "--cpus-per-task=1", script="any_gpus.sh", overrides=overrides)
    ended = site.cluster.wait(f"{job}_2" if "array" in options[0] else job, seconds=120)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0")
    log = site.log(job)
    assert re.search(rf"^error: .*{complaint}", log, re.MULTILINE), log
    assert len(log.splitlines()) == 1


def test_a_gpu_allocation_without_usable_gpus_is_refused(site: Site) -> None:
    job = site.submit("--gpus-per-node=1", "--cpus-per-task=1", overrides=TINY, CUDA_VISIBLE_DEVICES="")
    ended = site.cluster.wait(job, seconds=120)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0")
    assert "error: 1 GPU was asked for" in site.log(job)


@pytest.mark.long
def test_what_one_node_lacks_is_said_although_rank_zero_does_not_know_it(site: Site, tmp_path: Path) -> None:
    python = tmp_path / "python"
    on_n2 = '[ "$SLURMD_NODENAME" = n2 ] && set -- "$@" --runtime.device cuda'
    python.write_text(f'#!/bin/bash\n{on_n2}\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    job = site.submit(*TWO_NODES, overrides=[*TINY, *ON_CPU], RANKZERO_PYTHON=str(python))
    ended = site.cluster.wait(job)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0")
    assert len(re.findall(r"^error: 1 GPU was asked for on \S+ and 0 found", site.log(job), re.MULTILINE)) == 1


@pytest.mark.parametrize(
    "how",
    ["requeued and signalled", *(pytest.param(how, marks=pytest.mark.long) for how in ("preempted", "graceful"))],
)
def test_stopped_in_mid_epoch_it_comes_back_and_ends_as_if_nobody_had(site: Site, undisturbed: Path, how: str) -> None:
    partition = "graceful" if how == "graceful" else "work"
    more_urgent = ["--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    jobs = [
        site.submit(*TWO_NODES, f"--partition={partition}", overrides=TINY)
        for _ in range(2 if how == "requeued and signalled" else 1)
    ]
    for number, job in enumerate(jobs):
        site.wait_for_step(job, 20)
        if len(jobs) == 1:
            site.cluster.submit(*more_urgent, directory=site.home)
        elif number == 0:
            site.cluster.run("scontrol", "requeue", job)
        else:
            site.cluster.run("scancel", "--signal=USR1", job)
    # Whoever goes on working in the repository changes no job that has begun.
    edited = {site.repository / name: text for name, text in EDITS.items()} if len(jobs) == 2 else {}
    before = {path: path.read_text() for path in edited}
    for path, text in edited.items():
        path.write_text(text)
    try:
        states = [site.cluster.wait(job) for job in jobs]
    finally:
        for path, text in before.items():
            path.write_text(text)
    for job, ended in zip(jobs, states, strict=True):
        log = site.log(job)
        assert ended["JobState"] == "COMPLETED", log
        # Newer versions of Slurm requeue after a grace time by themselves once more: that start finds the result.
        assert ended["Restarts"] in ("1", "2" if how == "graceful" else "1"), log
        assert "the code in job/ is not that" not in log
        stopped_at = int(re.findall(r"stopped after step (\d+)", log)[0])
        assert 20 <= stopped_at < 250
        assert log.count("run directory") == 2, "both starts are in one log"
        assert_same(site.run(job), undisturbed)


def test_after_a_rank_was_killed_or_hangs_it_is_named_and_the_job_goes_on_at_once_in_its_allocation(
    site: Site, undisturbed: Path
) -> None:
    overrides = [*TINY, "--checkpoint.every_steps", "30", "--runtime.timeout", "20"]
    hung = site.submit(*TWO_NODES, overrides=overrides)
    job = site.submit(*TWO_NODES, "--hold", overrides=overrides, TOO_MUCH_MEMORY="1")
    # Another cluster has had a job of this number here, with this very configuration, and finished it.
    other = shutil.copytree(undisturbed, site.run(job))
    stranger = {"cluster": "other", "job": job, "submitted": 1, "restarts": 0}
    (other / "slurm" / f"{job}.json").write_text(json.dumps(stranger))
    before = {path: path.stat().st_mtime_ns for path in other.rglob("*")}
    site.cluster.run("scontrol", "release", job)
    site.wait_for_line(job, rf"simple_cnn-{job} is of another job that had this one's number: .*simple_cnn-{job}\.2")
    site.wait_for_step(job, 40)
    os.kill(rank_processes(site.cluster, job)[1], signal.SIGKILL)
    site.wait_for_step(hung, 40)
    os.kill(rank_processes(site.cluster, hung)[1], signal.SIGSTOP)
    ended = site.cluster.wait(job)
    log = site.log(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "0"), log
    assert "the run is finished; what is missing is written" in log, "killed once more, while drawing the report"
    assert log.count("most confused: ") == 1
    assert site.cluster.wait(hung)["JobState"] == "COMPLETED", site.log(hung)
    for each, how in ((job, "Killed"), (hung, "gave no sign of life")):
        verdict = next(line for line in site.log(each).splitlines() if "started again" in line)
        assert verdict.startswith("slurm: started again at once on n1, n2: rank 1 of 2 on n2 failed first, after step ")
        assert how in Path(verdict.partition("; see ")[2]).read_text()
        assert_same(site.run(each), undisturbed)
    assert site.run(job) != other
    assert before == {path: path.stat().st_mtime_ns for path in other.rglob("*")}


@pytest.mark.long
def test_a_dead_node_costs_nothing_but_time_and_with_no_kill_not_much_of_that(site: Site, undisturbed: Path) -> None:
    often = [*TINY, "--checkpoint.every_steps", "30"]
    requeued, left = (site.submit(*TWO_NODES, *options, overrides=often) for options in ([], ["--no-kill"]))
    for job in (requeued, left):
        site.wait_for_step(job, 40)
    site.cluster.kill_node("n2")
    # The controller would find out by itself after SlurmdTimeout.
    site.cluster.run("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
    try:
        site.cluster.wait(requeued, "PENDING")
        ended = site.cluster.wait(left)
    finally:
        site.cluster.start_node("n2")
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "0"), site.log(left)
    assert "n2 is left out: no task there reaches the others" in site.log(left)
    assert "started again at once on n1: rank 1 of 2 on n2 failed first" in site.log(left)
    assert evaluation(site.run(left))["world_size"] == 1
    assert len(metrics(site.run(left))) == len(metrics(undisturbed))
    ended = site.cluster.wait(requeued)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), site.log(requeued)
    assert_same(site.run(requeued), undisturbed)


@pytest.mark.long
def test_at_the_time_limit_it_stops_saves_and_goes_on_in_a_new_allocation(site: Site) -> None:
    """Two jobs side by side. Of two minutes, for on busy cores the first may go by before the first step."""
    endless = [*TINY, "--train.epochs", "1000"]
    reasons = {
        "B:USR1@20": "(?:STOP file|time limit)",  # Slurm may send it up to a minute early, or after the job's own limit
        "B:USR1@300": "time limit",  # which comes at once, and is passed over: the job stops by itself
    }
    jobs = {
        site.submit(*TWO_NODES, "--time=2", f"--signal={option}", overrides=endless): reason
        for option, reason in reasons.items()
    }
    for job in jobs:  # from now on other tests may have the cores
        site.wait_for_step(job, 20)
        for process in rank_processes(site.cluster, job).values():
            with contextlib.suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, process, 10)
    for job, reason in jobs.items():
        stopped_at = site.wait_for_line(job, rf"requeued: stopped after step (\d+) \({reason}\)")
        site.wait_for_line(job, f"from step {stopped_at} in epoch")
        if reason == "time limit":
            site.wait_for_line(job, "SIGUSR1 at the very beginning of 2 minutes is no reason to stop")
            site.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=20")
            while not (site.run(job) / "slurm" / "end-time").exists():
                time.sleep(0.5)  # until the job could read that its limit was raised
        site.cluster.run("scancel", job)
    for job in jobs:
        site.cluster.wait(job, "CANCELLED")
        lines = metrics(site.run(job))
        steps = [line["step"] for line in lines if line["split"] == "train"]
        assert steps == list(range(5, 5 * len(steps) + 1, 5)), "every line once, and none left out"
        epochs = [line["epoch"] for line in lines if line["split"] == "validation"]
        assert epochs == list(range(1, len(epochs) + 1))


def test_a_cancelled_job_saves_and_is_never_brought_back_whoever_cancels_it(site: Site) -> None:
    endless = [*TINY, "--train.epochs", "1000"]
    by_hand, preempted = (site.submit(*TWO_NODES, f"--partition={p}", overrides=endless) for p in ("work", "cancels"))
    for job in (by_hand, preempted):
        site.wait_for_step(job, 20)
    site.cluster.run("scancel", by_hand)
    more_urgent = ["--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    site.cluster.submit(*more_urgent, directory=site.home)
    for job in (by_hand, preempted):
        ended = site.cluster.wait(job)
        assert ended["JobState"] in ("CANCELLED", "PREEMPTED", "FAILED")
        assert ended["Restarts"] == "0"
        while site.cluster.processes(job):
            time.sleep(0.1)
        assert state(site.run(job)) == "preempted"
        assert "requeued" not in site.log(job)
        assert list((site.run(job) / "checkpoints").glob("step-*"))
    assert "is told to cancel it then: stopped after step" in site.log(preempted)


@pytest.mark.long
def test_a_crash_loop_is_given_up(site: Site, tmp_path: Path) -> None:
    crashes = tmp_path / "python"
    crashes.write_text("#!/bin/bash\nkill -SEGV $$\n")
    crashes.chmod(0o755)
    job = site.submit("--gpus-per-node=0", overrides=TINY, RANKZERO_PYTHON=str(crashes))
    ended = site.cluster.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "3")
    last = site.log(job).splitlines()[-1]
    assert "given up, for 4 starts in a row brought no new checkpoint" in last
    assert "Segmentation fault" in Path(last.partition("; see ")[2]).read_text()


def test_a_run_that_diverges_is_not_queued_again(site: Site) -> None:
    job = site.submit("--gpus-per-node=0", overrides=[*TINY, "--optimizer.learning_rate", "1e30"])
    ended = site.cluster.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0")
    assert "not finite at step" in site.log(job)
    assert "would end the same way" in site.log(job).splitlines()[-1]


def test_a_job_that_cannot_even_begin_is_not_queued_again(site: Site) -> None:
    job = site.submit("--gpus-per-node=0", overrides=TINY, RANKZERO_PYTHON="/usr/bin/false")
    ended = site.cluster.wait(job, seconds=120)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "1:0", "0")
    assert "not started again, for it never began" in site.log(job)


def test_check_runs_on_the_nodes_and_from_the_login_node(site: Site) -> None:
    overrides = [
        "--check",
        "--model.name",
        "simple_cnn",
        "--model.weights",
        "null",
        "--data.source",
        "shapes10",
        *ON_CPU,
    ]
    job = site.submit("--nodes=2", "--gpus-per-node=1", script="vgg16.sh", overrides=overrides)
    assert site.cluster.wait(job)["JobState"] == "COMPLETED", site.log(job, "vgg16")
    assert "2 on CPUs, 64 of the global batch of 128 each" in site.log(job, "vgg16")
    assert re.findall(r"node (n\d) .*multiplies at", site.log(job, "vgg16")) == ["n1", "n2"]
    assert not site.run(job, "vgg16").exists()
    check = [sys.executable, site.repository / "job" / "train.py", "--check", "--data.source", "shapes10"]
    check += ["--data.cache", str(site.home / "cache"), "--gpus-per-node=1"]
    said = site.cluster.run(*check, "--nodes=2", cwd=site.repository).stdout
    assert "sbatch --nodes=2 --gpus-per-node=1 slurm/simple_cnn.sh: Job" in " ".join(said.replace("│", "").split())
    refused = ["--nodes=4", "--cpus-per-task=99", "--mem=80G", "--time=3"]
    with pytest.raises(RuntimeError, match="not ready: 1 problem") as raised:
        site.cluster.run(*check, *refused, cwd=site.repository)
    said = " ".join(str(raised.value).replace("│", "").split())
    assert "partition work has too few or too little: CPUs a node (at most 16), memory a node (at most 62.5G)" in said
    assert "with --time=3 it is warned as it begins" in said


def test_the_shipped_requests_are_accepted_and_the_scripts_are_clean(site: Site) -> None:
    scripts = sorted((site.repository / "slurm").glob("*.sh"))
    assert {"simple_cnn.sh", "vgg16.sh"} <= {script.name for script in scripts}
    for script in scripts:
        site.cluster.run("bash", "-n", script)
        site.cluster.run("sbatch", "--test-only", script)
        if shutil.which("shellcheck"):
            subprocess.run(["shellcheck", script], check=True)
