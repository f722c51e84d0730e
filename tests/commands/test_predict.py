"""Predicting and exporting: the same classes as the evaluation found, for whatever pictures come in."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.jobs import command, environment, run_job

from job import predict
from job.config.settings import Config, Data, Model
from job.models import registry
from job.runs import export, files


@pytest.fixture(scope="module")
def run(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the small data set: good, but with mistakes."""
    path = tmp_path_factory.mktemp("runs") / "run"
    done = run_job("train.py", *small, "--train.epochs=2", f"--run.dir={path}")
    assert done.returncode == 0, done.stderr
    return path


def predicted(run: Path, *arguments: object) -> list[dict[str, Any]]:
    done = run_job("predict.py", "--run", run, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def logits_of_export(folder: Path, pixels: Path) -> torch.Tensor:
    """Run the exported program in a process that knows nothing of this project."""
    script = """
import sys, torch
from safetensors.torch import load_file, save_file
program = torch.export.load(sys.argv[1]).module()
pixels = load_file(sys.argv[2])["pixels"]
with torch.inference_mode():
    save_file({"logits": torch.cat([program(part) for part in pixels.split(500)])}, sys.argv[3])
"""
    into = pixels.with_suffix(".logits")
    arguments = ["-P", "-c", script, str(folder / "model.pt2"), str(pixels), str(into)]
    subprocess.run([sys.executable, *arguments], check=True, env=environment(), cwd=folder)
    return load_file(into)["logits"]


def save_test_pictures(root: Path, into: Path) -> None:
    """All pictures below test/, in the order of class and name, as one uint8 tensor [n, 3, H, W]."""
    from safetensors.torch import save_file

    paths = sorted((root / "test").rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    save_file({"pixels": torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()}, into)


def test_predicting_the_test_pictures_gives_what_the_evaluation_found(run: Path, pictures: Path) -> None:
    found = predicted(run, pictures / "test")
    expected = load_file(run / "predictions.safetensors")
    classes = [row["name"] for row in json.loads((run / "evaluation.json").read_text())["classes"]]
    assert [Path(line["picture"]).parent.name for line in found] == [classes[i] for i in expected["labels"]]
    assert [line["class"] for line in found] == [classes[i] for i in expected["predicted"]]
    np.testing.assert_allclose([line["probability"] for line in found], expected["confidence"], rtol=1e-4)
    for line in found:
        assert list(line["probabilities"]) == classes
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_the_batch_size_changes_nothing(run: Path, pictures: Path) -> None:
    folder = pictures / "test" / "red"
    one, many = predicted(run, "--batch", 3, folder), predicted(run, "--batch", 1000, folder)
    assert [line["class"] for line in one] == [line["class"] for line in many]


def test_pictures_of_any_size_and_kind_are_named_and_broken_ones_are_said_one_by_one(run: Path, tmp_path: Path) -> None:
    Image.new("L", (1, 500)).save(tmp_path / "a grey.png")
    Image.new("RGBA", (300, 2)).save(tmp_path / "b transparent.webp")
    Image.new("P", (33, 31)).save(tmp_path / "c palette.gif")
    (tmp_path / "d broken.jpg").write_text("no picture")
    (tmp_path / "e empty.png").touch()
    for name in ("notes.txt", "photo.HEIC", "1f00a7", "Thumbs.db", "._a grey.png"):
        (tmp_path / name).write_text("not looked at")
    (tmp_path / "@eaDir").mkdir()
    shutil.copy(tmp_path / "a grey.png", tmp_path / "@eaDir" / "SYNOPHOTO_THUMB_M.jpg")
    elsewhere = tmp_path.with_name("elsewhere")
    elsewhere.mkdir()
    shutil.copy(tmp_path / "a grey.png", elsewhere)
    (tmp_path / "f link").symlink_to(elsewhere)
    done = run_job("predict.py", "--run", run, tmp_path, tmp_path / "missing.png")
    assert done.returncode == 1
    assert [line.split("  ")[0] for line in done.stdout.splitlines()] == [
        str(tmp_path / name) for name in ("a grey.png", "b transparent.webp", "c palette.gif", "f link/a grey.png")
    ]
    left_out = "3 that desktops, editors or a NAS made, 1 without an ending, 1 .txt, 1 .heic"
    assert done.stderr.splitlines() == [
        f"{tmp_path}: 6 images; left out 6 files: {left_out}",
        f"error: {tmp_path}/d broken.jpg: unknown format",
        f"error: {tmp_path}/e empty.png: empty file",
        f"error: {tmp_path}/missing.png: No such file or directory",
    ]
    done = run_job("predict.py", "--run", run, "--json", tmp_path / "d broken.jpg")
    assert json.loads(done.stdout) == {"picture": str(tmp_path / "d broken.jpg"), "error": "unknown format"}


def test_a_table_holds_every_image_whatever_it_is_called_and_no_formula(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["plain.png", 'a "quoted", name.png', "two\nlines\r.png", "größe.png", "=cmd|' !A0.png", "-x.png", "@x.png"]
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(names):
        Image.new("RGB", (8, 8), (30 * i, 90, 200)).save(tmp_path / name)
    (tmp_path / "broken.png").touch()
    assert predict.main(["--run", str(run), "--csv", "--", *names, "broken.png"]) == 1
    head, *rows = csv.reader(io.StringIO(capsys.readouterr().out, newline=""))
    assert head == ["path", "predicted", "confidence", "blue", "green", "red"]
    assert [row[0] for row in rows] == [*names[:4], *(f"./{name}" for name in names[4:]), "broken.png"]
    assert rows.pop() == ["broken.png", "", "", "", "", ""]
    for _, said, confidence, *probabilities in rows:
        numbers = [float(number) for number in probabilities]
        assert sum(numbers) == pytest.approx(1, abs=1e-6)
        assert float(confidence) == max(numbers) == numbers[head.index(said) - 3]
    assert predict._row(["=HYPERLINK(1)", "-", "path"]) == "'=HYPERLINK(1),-,path"


def test_a_picture_comes_from_standard_input(run: Path, pictures: Path) -> None:
    file = pictures / "test" / "blue" / "0000.png"
    with file.open("rb") as stdin:
        done = subprocess.run(
            command("predict.py", "--run", run, "--json", "-"), stdin=stdin, env=environment(), capture_output=True
        )
    assert done.returncode == 0
    expected = predicted(run, file)[0]
    assert json.loads(done.stdout) == expected | {"picture": "-"}


def test_a_running_run_predicts_with_its_newest_checkpoint(run: Path, pictures: Path, tmp_path: Path) -> None:
    running = tmp_path / "running"
    shutil.copytree(run, running)
    for name in ("evaluation.json", "model.safetensors"):
        (running / name).unlink()
    folder = pictures / "test" / "red"
    assert predicted(running, folder) == predicted(run, folder)


def test_the_exported_program_gives_the_classes_of_the_evaluation(run: Path, pictures: Path, tmp_path: Path) -> None:
    done = run_job("predict.py", "--run", run, "--export", tmp_path / "export")
    assert done.returncode == 0, done.stderr
    save_test_pictures(pictures, tmp_path / "pixels")
    logits = logits_of_export(tmp_path / "export", tmp_path / "pixels")
    expected = load_file(run / "predictions.safetensors")
    assert torch.equal(logits.argmax(1), expected["predicted"])
    torch.testing.assert_close(logits.softmax(1).amax(1), expected["confidence"], rtol=1e-4, atol=1e-5)
    about = json.loads((tmp_path / "export" / "preprocessing.json").read_text())
    assert about["classes"] == ["blue", "green", "red"]
    assert about["image_size"] == 32
    weights = load_file(tmp_path / "export" / "model.safetensors")
    assert weights.keys() == load_file(run / "model.safetensors").keys()


def test_in_onnx_the_program_gives_the_evaluations_probabilities(run: Path, pictures: Path, tmp_path: Path) -> None:
    import onnxruntime

    done = run_job("predict.py", "--run", run, "--export", tmp_path / "export", "--onnx")
    assert (done.returncode, done.stdout) == (0, "")
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["wrote"] * 3
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == [
        "model.onnx",
        "model.safetensors",
        "preprocessing.json",
    ]
    session = onnxruntime.InferenceSession(tmp_path / "export" / "model.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == ["blue", "green", "red"]
    save_test_pictures(pictures, tmp_path / "pixels")
    pixels = load_file(tmp_path / "pixels")["pixels"].numpy()
    (probabilities,) = session.run(None, {"pixels": pixels})
    expected = load_file(run / "predictions.safetensors")["probabilities"]
    torch.testing.assert_close(torch.from_numpy(probabilities), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_the_weights_of_a_run_are_not_written_once_more_nor_what_vgg_repeats(tmp_path: Path) -> None:
    """At 32 pixels the first fully connected layer of VGG has 49 equal parts: 411 of its 537 MB."""
    settings = Config(model=Model(name="vgg16"), data=Data(source="shapes10"))
    network = registry.build(settings.model, classes=3, image_size=32, seed=1)
    kept = tmp_path / "model.safetensors"
    files.save_weights(kept, network.state_dict())
    model = export.Classifier(network, settings, ("a", "b", "c"), None)
    said = export.export(model, tmp_path / "export", kept)
    assert len(said) == 3
    assert (tmp_path / "export" / "model.safetensors").samefile(kept)
    assert (tmp_path / "export" / "model.pt2").stat().st_size < 150e6
    twin = registry.build(settings.model, classes=3, image_size=32, seed=1)
    again = export.Classifier(twin, settings, model.classes, None)
    export.export(again, tmp_path, kept)  # beside what it was made of, which stays
    assert kept.stat().st_nlink == 2


@pytest.mark.skipif("RANKZERO_PICTURES" not in os.environ, reason="RANKZERO_PICTURES names no archive of CIFAR-10")
def test_on_the_real_pictures_the_export_gives_the_classes_of_evaluate(tmp_path: Path, cache: Path) -> None:
    archive = os.environ["RANKZERO_PICTURES"]
    cache = Path(os.environ.get("RANKZERO_CACHE", cache))
    data = ["--data.source=folder", f"--data.root={archive}", f"--data.cache={cache}"]
    run = tmp_path / "run"
    assert run_job("train.py", *data, "--train.epochs=1", f"--run.dir={run}").returncode == 0
    assert run_job("evaluate.py", "--run", run, f"--data.cache={cache}").returncode == 0
    assert run_job("predict.py", "--run", run, "--export", tmp_path / "export").returncode == 0

    from safetensors.torch import save_file

    from job.config.settings import Data
    from job.data import datasets

    settings = Data(source="folder", root=archive, cache=str(cache))
    test = datasets.load(settings, 42).test
    save_file({"pixels": test.images.permute(0, 3, 1, 2).contiguous()}, tmp_path / "pixels")
    logits = logits_of_export(tmp_path / "export", tmp_path / "pixels")
    result = json.loads((run / "evaluation-test.json").read_text())
    matrix = torch.bincount(test.labels * 10 + logits.argmax(1), minlength=100).view(10, 10)
    assert result["confusion_matrix"] == matrix.tolist()
    assert int(matrix.sum()) == 10_000


def test_images_of_more_than_8_bits_that_are_not_square_are_predicted_as_they_were_trained_on(tmp_path: Path) -> None:
    noise = np.random.default_rng(1)
    for split, count in (("train", 40), ("test", 12)):
        for name, level in (("dark", 400), ("light", 2900)):
            folder = tmp_path / "scans" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                values = (noise.integers(0, 900, (40, 56)) + level).astype(np.uint16)  # of 16 bits, 12 are used
                values[:, :8], values[:, -8:] = 0, 4095  # what a crop does not see
                Image.fromarray(values).save(folder / f"{number}.png")
    run, data = tmp_path / "run", ["--data.source=folder", f"--data.root={tmp_path / 'scans'}", "--data.resize=crop"]
    done = run_job("train.py", *data, "--train.epochs=2", "--train.batch_size=8", f"--run.dir={run}")
    assert done.returncode == 0, done.stderr
    assert "values from 0 to 4095 become 0 to 255" in " ".join(done.stdout.split())
    expected = load_file(run / "predictions.safetensors")
    found = predicted(run, tmp_path / "scans" / "test")
    names = ["dark", "light"]
    assert [line["class"] for line in found] == [names[i] for i in expected["predicted"]]
    np.testing.assert_allclose([line["probability"] for line in found], expected["confidence"], rtol=1e-4)
    # Others, whose own range is smaller, are seen in the run's.
    for name in ("train/dark", "test/dark", "train/light", "test/light"):
        folder = tmp_path / "others" / name
        folder.mkdir(parents=True)
        Image.fromarray(np.full((40, 56), 2000 if "light" in name else 900, np.uint16)).save(folder / "0.png")
    done = run_job("evaluate.py", "--run", run, "--data.root", tmp_path / "others")
    assert done.returncode == 0, done.stderr
    (path,) = run.glob("evaluation-of-others-*.json")
    result = json.loads(path.read_text())
    lines = predicted(run, tmp_path / "others" / "test")
    right = sum(line["class"] == Path(line["picture"]).parent.name for line in lines)
    assert result["accuracy"] * 2 == right
    probabilities = [line["probabilities"][Path(line["picture"]).parent.name] for line in lines]
    assert result["loss"] == pytest.approx(-np.log(probabilities).mean(), rel=1e-3)
