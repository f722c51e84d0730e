"""The job as a user runs it: the same numbers on any number of processes, and what it leaves behind."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support import run_directories
from support.images import table, tar, tree, write
from support.jobs import REPOSITORY, accelerate, environment, metrics, read, run_job, the_error
from torch.nn import functional as F

from job.config import command_line
from job.config.settings import Data, Model
from job.config.yaml_text import load_yaml
from job.data import datasets
from job.data.batches import epoch_order
from job.models import registry

EPOCHS, BATCH = 2, 42


@pytest.fixture(scope="module")
def runs(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same training on one, two and three processes."""
    found = {}
    for processes in (1, 2, 3):
        found[processes] = tmp_path_factory.mktemp("runs") / str(processes)
        finished = run_job(
            "train.py",
            *small,
            *(f"--train.epochs={EPOCHS}", f"--train.batch_size={BATCH}", "--run.log_every=3", "--runtime.threads=1"),
            *("--data.augment=[flip,crop]", f"--run.dir={found[processes]}"),
            processes=processes,
            fresh=processes == 2,
            report=processes == 1,
        )
        assert finished.returncode == 0, finished.stderr
        assert finished.stderr == ""
        (found[processes] / "stdout").write_text(finished.stdout)
    return found


@pytest.mark.parametrize("processes", [2, 3])
def test_losses_are_those_of_one_process_to_rounding(runs: dict[int, Path], processes: int) -> None:
    one, many = metrics(runs[1]), metrics(runs[processes])
    assert [(line["split"], line["step"], line["epoch"]) for line in one] == [
        (line["split"], line["step"], line["epoch"]) for line in many
    ]
    for line, other in zip(one, many, strict=True):
        assert other["loss"] == pytest.approx(line["loss"], abs=1e-4)
        key = "accuracy" if line["split"] == "train" else "train_accuracy"
        assert other[key] == pytest.approx(line[key], abs=0.01)
    ours, theirs = (load_file(runs[n] / "model.safetensors") for n in (1, processes))
    for key, value in ours.items():
        assert torch.allclose(value, theirs[key], atol=1e-3), key


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_counts_every_image_once_per_class(runs: dict[int, Path], processes: int) -> None:
    result = read(runs[processes] / "evaluation.json")
    assert result["split"] == "test"
    assert result["world_size"] == processes
    assert result["images"] == sum(map(sum, result["confusion_matrix"])) == 103
    assert [(row["name"], row["images"]) for row in result["classes"]] == [("blue", 34), ("green", 34), ("red", 35)]
    correct = [row[i] for i, row in enumerate(result["confusion_matrix"])]
    assert [row["correct"] for row in result["classes"]] == correct
    assert result["accuracy"] == sum(correct) / 103
    assert result["accuracy"] > 0.5  # it learns
    assert result["loss"] == pytest.approx(read(runs[1] / "evaluation.json")["loss"], abs=1e-3)


def test_the_run_directory_holds_what_scripts_read(runs: dict[int, Path]) -> None:
    run = runs[2]
    steps = -(-344 // BATCH)
    train = metrics(run, "train")
    assert [line["step"] for line in train] == [3, 6, 9, 12, 15, 18]
    assert {line["epoch"] for line in train if line["step"] <= steps} == {1}
    assert all(line["learning_rate"] == 0.001 and line["images_per_second"] > 0 for line in train)
    assert [(line["epoch"], line["step"]) for line in metrics(run, "validation")] == [(1, steps), (2, 2 * steps)]
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step-00000009", "step-00000018"]
    assert read(run / "evaluation.json")["checkpoint"] == "step-00000018"
    status = read(run / "status.json")
    assert (status["state"], status["step"], status["error"], status["attempt"]) == ("finished", 18, None, 1)
    environment = read(run / "environment.json")
    assert environment["world_size"] == 2
    assert len(environment["hosts"]) == 1
    assert environment["torch"] == torch.__version__
    said = load_file(run / "predictions.safetensors")
    confidence, predicted = said["probabilities"].max(1)
    assert said["probabilities"].shape == (103, 3)
    assert torch.equal(confidence, said["confidence"])
    assert torch.equal(predicted, said["predicted"])
    own = said["probabilities"].gather(1, said["labels"][:, None])
    assert read(run / "evaluation.json")["loss"] == pytest.approx(-own.log().mean().item(), rel=1e-5)
    settings = command_line.from_dict(load_yaml((run / "config.yaml").read_text(), "config.yaml"), "config.yaml")
    assert settings.train.batch_size == BATCH
    assert registry.count_parameters(registry.SimpleCNN(3)) == sum(
        t.numel() for t in load_file(run / "model.safetensors").values()
    )


def test_the_console_says_each_thing_once_and_plainly_in_a_file(runs: dict[int, Path]) -> None:
    said = (runs[3] / "stdout").read_text()
    assert "\x1b" not in said
    assert "\r" not in said
    assert "344 train, 86 validation, 103 test images of shape 3x32x32, 3 classes" in said
    assert said.count("epoch 1/2") == 1
    for name in ("blue", "green", "red"):
        assert sum(line.strip("│ ").startswith(name) for line in said.splitlines()) == 1
    assert re.search(rf"wrote evaluation\.json, .* to {re.escape(str(runs[3]))};", said.replace("\n", " "))
    log = (runs[3] / "log.txt").read_text()
    assert "epoch 2/2" in log
    assert "blue" in log


def test_a_finished_run_shows_its_result_again_and_changes_nothing(runs: dict[int, Path], small: list[str]) -> None:
    before = {path: path.read_bytes() for path in runs[1].rglob("*") if path.is_file() and path.name != "run.lock"}
    again = run_job(
        "train.py",
        *small,
        *(f"--train.epochs={EPOCHS}", f"--train.batch_size={BATCH}", "--run.log_every=3"),
        *("--data.augment=[flip,crop]", f"--run.dir={runs[1]}"),
    )
    assert again.returncode == 0, again.stderr
    assert f"{read(runs[1] / 'evaluation.json')['accuracy']:.2%} of 103 images" in again.stdout
    after = {path: path.read_bytes() for path in runs[1].rglob("*") if path.is_file() and path.name != "run.lock"}
    assert before == after


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluate_repeats_the_result_from_the_saved_weights(runs: dict[int, Path], processes: int) -> None:
    finished = run_job("evaluate.py", "--run", runs[2], processes=processes, fresh=processes == 1)
    assert finished.returncode == 0, finished.stderr
    again, first = read(runs[2] / "evaluation-test.json"), read(runs[2] / "evaluation.json")
    assert again["confusion_matrix"] == first["confusion_matrix"]
    for name in ("loss", "top5_accuracy", "macro_accuracy", "macro_f1", "calibration_error", "auc"):
        assert again[name] == pytest.approx(first[name], rel=1e-5), name
    assert "103 images" in finished.stdout


def test_every_number_of_an_evaluation_is_the_same_to_the_bit_on_any_number_of_processes(
    cache: Path, tmp_path: Path
) -> None:
    """Of 5,000 images, 500 are computed at once."""
    dataset = datasets.load(Data(source="shapes10", cache=str(cache)), 42, log=lambda _: None)
    run = run_directories.write(tmp_path / "run", classes=dataset.classes, data=dataset.fingerprint)
    network = registry.build(Model(), classes=10, image_size=32, seed=42)
    save_file(network.state_dict(), run / "model.safetensors")
    found = []
    for processes in (1, 2, 3):
        options = [f"--run={run}", f"--data.cache={cache}"]
        finished = run_job("evaluate.py", *options, processes=processes)
        assert finished.returncode == 0, finished.stderr
        again = read(run / "evaluation-test.json")
        assert (again["images"], again.pop("world_size")) == (5000, processes)
        found.append(again)
    assert found[0] == found[1] == found[2]
    assert 0.3 < found[0]["auc"] < 0.7  # it has learnt nothing


def test_evaluate_takes_other_labelled_images_by_the_names_of_their_classes_and_leaves_the_result_alone(
    runs: dict[int, Path], pictures: Path, tmp_path: Path
) -> None:
    run, others = runs[2], tmp_path / "some of them.v2"
    for split in ("train", "test"):  # green is not there, and red has another place
        for name in ("red", "blue"):
            shutil.copytree(pictures / "test" / name, others / split / name)
    first = read(run / "evaluation.json")
    done = run_job("evaluate.py", "--run", run, "--data.root", others, processes=2)
    assert done.returncode == 0, done.stderr
    (path,) = run.glob("evaluation-of-some_of_them-????????.json")
    assert "its test split's 69 images, of 2 of the run's 3 classes, none of green" in done.stdout
    assert f"wrote {path}" in done.stdout.replace("\n", "")
    found = read(path)
    assert found["confusion_matrix"] == [first["confusion_matrix"][0], [0, 0, 0], first["confusion_matrix"][2]]
    assert (found["images"], found["root"]) == (69, str(others))
    assert read(run / "evaluation.json") == first
    for split in ("train", "test"):
        (others / split / "blue").rename(others / split / "violet")
    strange = run_job("evaluate.py", "--run", run, "--data.root", others)
    assert "has classes that the run was not trained on: violet: " in the_error(strange)


def test_evaluate_takes_other_splits_and_runs_without_final_weights(runs: dict[int, Path]) -> None:
    hidden = runs[3] / "model.safetensors"
    hidden.rename(runs[3] / "away")
    try:
        finished = run_job("evaluate.py", f"--run={runs[3]}", "--split", "validation")
    finally:
        (runs[3] / "away").rename(hidden)
    assert finished.returncode == 0, finished.stderr
    result = read(runs[3] / "evaluation-validation.json")
    assert (result["images"], result["checkpoint"]) == (86, "step-00000018")
    assert result["accuracy"] == metrics(runs[3], "validation")[-1]["accuracy"]


def test_without_test_images_a_run_is_evaluated_on_validation_images_and_says_so(tmp_path: Path) -> None:
    folders = {"train/cat": 10, "train/dog": 9, "val/cat": 4, "val/dog": 3}
    root, run = write(tmp_path / "pets", tree(folders, size=32)), tmp_path / "run"
    data = ["--data.source=folder", f"--data.root={root}"]
    small = ["--train.epochs=1", "--train.batch_size=6", "--run.trackers=[]"]
    done = run_job("train.py", *data, *small, f"--run.dir={run}", processes=2, report=True)
    assert done.returncode == 0, done.stderr
    assert "7 validation, 0 test images" in done.stdout
    assert "\nvalidation: " in done.stdout
    result = read(run / "evaluation.json")
    assert (result["split"], result["images"]) == ("validation", 7)
    assert [row["images"] for row in result["classes"]] == [4, 3]
    assert result["accuracy"] == metrics(run, "validation")[-1]["accuracy"]
    page = (run / "report.html").read_text()
    assert "Validation accuracy</dt>" in page
    assert "Test" not in page
    again = run_job("evaluate.py", "--run", run)
    assert again.returncode == 0, again.stderr
    assert read(run / "evaluation-validation.json")["confusion_matrix"] == result["confusion_matrix"]


def test_what_is_held_out_by_groups_is_the_same_on_any_number_of_processes(tmp_path: Path) -> None:
    images = tree({"xray": 48}, size=32)
    rows = [[name, "sick" if place % 3 else "well", f"patient {place // 4}"] for place, name in enumerate(images)]
    archive = tar(tmp_path / "xray.tar.gz", images | {"all.csv": table([["file", "class", "patient"], *rows]).encode()})
    data = ["--data.source=folder", f"--data.root={archive}", "--data.labels=all.csv", "--data.hold_out=grouped"]
    small = ["--train.epochs=1", "--train.batch_size=6", "--run.trackers=[]"]
    found = []
    for processes in (1, 3):
        run = tmp_path / f"run-{processes}"
        done = run_job("train.py", *data, *small, f"--run.dir={run}", processes=processes)
        assert done.returncode == 0, done.stderr
        assert "folder: 32 train, 8 validation, 8 test images" in done.stdout
        result = read(run / "evaluation.json")
        found.append((result["split"], result["data"], [row["images"] for row in result["classes"]]))
    assert found[0] == found[1]
    assert found[0][0] == "test"
    assert sum(found[0][2]) == 8


def test_training_is_the_reference_loop_to_rounding(small: list[str], tmp_path: Path) -> None:
    """A loop as in the tutorial, on the same images in the same order, has the same losses and weights."""
    options = [*small, "--train.epochs=2", "--train.batch_size=40", f"--run.dir={tmp_path / 'run'}"]
    assert run_job("train.py", *options, "--run.log_every=1").returncode == 0
    settings = command_line.parse(options, description="")
    dataset = datasets.load(settings.data, settings.train.seed, log=lambda _: None)
    model = registry.build(settings.model, classes=3, image_size=32, seed=42)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    losses = []
    for epoch in (1, 2):
        for rows in epoch_order(dataset.train.indices, seed=42, epoch=epoch).split(40):
            images = (dataset.train.images[rows].permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
            loss = F.cross_entropy(model(images), dataset.train.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert [line["loss"] for line in metrics(tmp_path / "run", "train")] == pytest.approx(losses, abs=1e-4)
    for key, value in load_file(tmp_path / "run" / "model.safetensors").items():
        assert torch.allclose(value, model.state_dict()[key], atol=1e-3), key


@pytest.mark.parametrize("alone", [False, pytest.param(True, marks=pytest.mark.long)], ids=["all", "each"])
def test_each_thing_that_is_drawn_has_a_seed_of_its_own_and_no_other_is_used(
    alone: bool, small: list[str], tmp_path: Path
) -> None:
    """With seeds of all, train.seed is nothing; and dropout, augmentation, order, weights and split, each alone."""

    def losses(seed: int, **seeds: int) -> list[Any]:
        run = tmp_path / "-".join(map(str, (seed, *seeds)))
        of = [f"--train.seed_of.{name}={value}" for name, value in seeds.items()]
        # A network with dropout that needs no more than 32 pixels.
        what = ["--model.name=mobilenet_v3_small", "--data.augment=[flip,crop]", "--train.mixup=0.2"]
        sizes = ["--train.epochs=1", "--train.batch_size=172", "--run.log_every=1"]
        done = run_job("train.py", *small, *what, *sizes, f"--train.seed={seed}", *of, f"--run.dir={run}")
        assert done.returncode == 0, done.stderr
        return [line["loss"] for line in metrics(run)]

    five = ("split", "weights", "order", "augmentation", "dropout")
    seven = losses(7)
    if alone:
        for name in five:
            assert losses(7, **{name: 8}) != seven, name
    else:
        assert losses(8, **dict.fromkeys(five, 7)) == seven


def test_with_gradient_shards_any_number_of_processes_trains_the_same_bits(small: list[str], tmp_path: Path) -> None:
    def train(run: Path, processes: int, epochs: int) -> tuple[Any, ...]:
        finished = run_job(
            "train.py",
            *(*small, "--train.batch_size=42", "--train.gradient_shards=6", "--run.log_every=5"),
            *("--train.mixup=0.2", "--train.cutmix=1", "--train.label_smoothing=0.1", "--train.class_weights=balanced"),
            *(
                "--data.augment=[flip,crop,resized_crop,rotate,color,erasing]",
                f"--train.epochs={epochs}",
                f"--run.dir={run}",
            ),
            processes=processes,
        )
        assert finished.returncode == 0, finished.stderr
        return (
            (run / "model.safetensors").read_bytes(),
            [line | {"images_per_second": 0, "seconds": 0} for line in metrics(run)],
            read(run / "evaluation.json")["confusion_matrix"],
        )

    one = train(tmp_path / "1", 1, 2)
    assert train(tmp_path / "2", 2, 2) == one
    train(tmp_path / "3", 3, 1)  # and on another number in each epoch
    assert train(tmp_path / "3", 1, 2) == one


@pytest.mark.parametrize(
    "options",
    [
        ["--train.gradient_accumulation=2", "--train.clip_norm=0.5", "--optimizer.name=adamw"],
        ["--optimizer.name=sgd", "--schedule.name=onecycle", "--train.label_smoothing=0.1"],
        ["--runtime.precision=bf16", "--schedule.name=cosine", "--schedule.warmup_epochs=0.5", "--data.validation=0.7"],
        ["--runtime.precision=fp16", "--train.deterministic=false", "--data.validation=0"],
    ],
    ids=lambda options: " ".join(options),
)
def test_every_way_to_train_gives_the_same_on_one_process_and_on_two(
    options: list[str], small: list[str], tmp_path: Path
) -> None:
    found: dict[int, list[dict[str, Any]]] = {}
    for processes in (1, 2):
        run = tmp_path / str(processes)
        finished = run_job(
            "train.py",
            *(*small, "--train.epochs=1", "--train.batch_size=44", "--run.log_every=2", *options, f"--run.dir={run}"),
            processes=processes,
        )
        assert finished.returncode == 0, finished.stderr
        found[processes] = metrics(run, "train")
    tolerance = 1e-4 if "precision" not in "".join(options) else 2e-2
    for one, two in zip(found[1], found[2], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=tolerance)
        assert two["learning_rate"] == one["learning_rate"]


def test_accelerate_launch_without_arguments_for_itself_trains_the_shipped_quickstart(
    cache: Path, tmp_path: Path
) -> None:
    quickstart = REPOSITORY / "configs" / "quickstart.yaml"
    finished = accelerate(
        *(REPOSITORY / "job/train.py", "--config", quickstart),
        *("--train.epochs=2", "--data.cache", cache, "--run.dir", tmp_path / "a run", "--run.trackers=[]"),
    )
    assert finished.returncode == 0, finished.stderr
    result = read(tmp_path / "a run" / "evaluation.json")
    assert 0.4 < result["accuracy"] < 0.95  # 84% after all ten epochs
    assert result["images"] == 5000
    # What the last line proposes is typed as it stands.
    proposed = re.search(r"next: .*python (job/predict.py .*) IMAGE", " ".join(finished.stdout.split()))
    assert proposed is not None, finished.stdout
    image = tmp_path / "image.png"
    Image.new("RGB", (40, 30), "red").save(image)
    script, *words = shlex.split(proposed[1])
    named = run_job(script.removeprefix("job/"), *words, image)
    assert named.returncode == 0, named.stderr
    assert named.stdout.startswith(str(image))


def test_accelerate_launch_with_the_cpu_launch_file_forms_one_group_of_two(small: list[str], tmp_path: Path) -> None:
    finished = accelerate(
        *("--config_file", REPOSITORY / "launch/cpu.yaml", "--num_processes", 2, REPOSITORY / "job/train.py"),
        *(*small, "--train.epochs=1", "--run.dir", tmp_path / "run"),
    )
    assert finished.returncode == 0, finished.stderr
    assert read(tmp_path / "run" / "evaluation.json")["world_size"] == 2
    assert finished.stdout.count("epoch 1/1") == 1


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, "gradients exchanged at once, through shared memory"),
        ({"LOCAL_WORLD_SIZE": "1"}, "gradients exchanged during the backward pass"),
    ],
    ids=["on one host", "as on two hosts"],
)
def test_vgg16_trains_on_two_processes(how: dict[str, str], said: str, pictures: Path, tmp_path: Path) -> None:
    """A dozen images and one step: 134 million parameters are slow on a CPU."""
    for path in pictures.glob("*/*/000[0-3].png"):
        (tmp_path / path.relative_to(pictures)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / path.relative_to(pictures))
    finished = run_job(
        "train.py",
        *("--config", REPOSITORY / "configs/vgg16.yaml", "--data.source=folder", f"--data.root={tmp_path}"),
        *("--model.weights=null", "--train.epochs=1", "--data.validation=0", "--train.batch_size=12"),
        *("--checkpoint.every_epochs=null", "--run.trackers=[]", f"--run.dir={tmp_path / 'run'}"),
        processes=2,
        **how,
    )
    assert finished.returncode == 0, finished.stderr
    assert "vgg16: 134,272,835 parameters, fp32" in finished.stdout
    assert said in finished.stdout
    assert read(tmp_path / "run" / "evaluation.json")["images"] == 12


@pytest.mark.parametrize(
    ("launch", "says"),
    [
        (["--cpu", "--num_processes", "2"], "2 processes were asked for and 1 started"),
        (["--config_file", str(REPOSITORY / "launch/multi_gpu.yaml")], "2 GPUs were asked for on"),
        (["--config_file", str(REPOSITORY / "launch/single_gpu.yaml")], "1 GPU was asked for on"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="speaks of a machine without GPUs")
def test_fewer_processes_or_gpus_than_asked_for_are_an_error_said_once(
    launch: list[str], says: str, small: list[str], tmp_path: Path
) -> None:
    words = (*launch, REPOSITORY / "job/train.py", *small, "--run.dir", tmp_path / "run")
    finished = accelerate(*words, typed=True)
    assert finished.returncode != 0
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, finished.stderr
    assert says in errors[0]
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_divide_is_one_error_on_rank_zero(small: list[str], tmp_path: Path) -> None:
    finished = run_job("train.py", *small, "--train.batch_size=43", f"--run.dir={tmp_path / 'run'}", processes=2)
    assert "train.batch_size=43 does not divide by 2 processes" in the_error(finished)
    assert not (tmp_path / "run").exists()


def test_missing_data_are_one_error_that_says_what_to_do(tmp_path: Path) -> None:
    finished = run_job(
        "train.py",
        *(f"--data.root={tmp_path / 'nowhere'}", "--data.download=false", f"--run.dir={tmp_path / 'run'}"),
        processes=2,
    )
    assert "job/prepare.py" in the_error(finished)
    status = read(tmp_path / "run" / "status.json")
    assert status["state"] == "failed"
    assert "job/prepare.py" in status["error"]


def test_out_of_memory_names_the_batch_size_that_was_tried(small: list[str], tmp_path: Path) -> None:
    # A limit on the address space that the weights fit into and the activations do not.
    script = (
        "import resource, runpy, sys; import torch; "
        "resource.setrlimit(resource.RLIMIT_AS, (int(open('/proc/self/statm').read().split()[0]) * 4096 + (3 << 30),"
        " resource.RLIM_INFINITY)); "
        f"sys.argv[0] = {str(REPOSITORY / 'job/train.py')!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    large = ["--model.name=vgg16", "--data.image_size=128", "--optimizer.name=sgd", "--train.batch_size=344"]
    options = [*small, *large, f"--run.dir={tmp_path / 'run'}"]
    finished = subprocess.run(
        [sys.executable, "-c", script, *options], env=environment(), capture_output=True, text=True, timeout=240
    )
    assert finished.returncode == 1
    assert "out of memory on rank 0 with train.batch_size=344" in finished.stderr.splitlines()[-1]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"


def test_a_run_that_learns_nothing_says_so_ends_by_patience_and_tests_its_best_epoch(
    small: list[str], tmp_path: Path
) -> None:
    options = [*small, "--train.epochs=9", "--optimizer.learning_rate=3", f"--run.dir={tmp_path / 'run'}"]
    options += ["--train.patience=2", "--run.weights=best", "--train.ema=0.99", "--train.class_weights=balanced"]
    finished = run_job("train.py", *options, report=True)
    assert finished.returncode == 0, finished.stderr
    assert "no better validation accuracy in 2 epochs (train.patience)" in finished.stdout
    assert "every test image is called" in finished.stdout
    result = read(tmp_path / "run" / "evaluation.json")
    best, last = (result[f"{which}_validation"]["epoch"] for which in ("best", "last"))
    assert (result["epochs"], result["weights"], result["epochs_trained"], last) == (9, "best", best + 2, best + 2)
    assert "its weights were tested" in (tmp_path / "run" / "report.html").read_text()
    again = run_job("train.py", *options)
    assert again.returncode == 0
    assert "epoch 1/9" not in again.stdout
