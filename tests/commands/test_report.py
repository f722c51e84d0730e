"""The report page: it renders whatever a run has left, and reads well in a real browser."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support import run_directories
from support.browser import Browser
from support.jobs import run_job

from job import report
from job.data.cifar10 import CLASSES as CIFAR10
from job.display import run_page
from job.runs import reader

NASTY = ("<script>alert(1)</script>", "a very long class name " * 8, '$x_1$ & "quotes"', "größte Übung", "line\nbreak")
FIGURES = {"loss", "accuracy", "throughput", "learning_rate", "classes", "confusion_matrix", "grid", "mistakes"}
RUNS: dict[str, dict[str, Any]] = {
    "cifar10": {"classes": CIFAR10, "images": 10_000, "skill": 0.57, "epochs": 8, "resumed_at": (250, 510)},
    "a part of cifar10": {"classes": CIFAR10, "images": 9_990},
    "nasty labels": {"classes": NASTY},
    "one class": {"classes": ("only",)},
    "a hundred classes": {"classes": tuple(f"class number {i}" for i in range(100)), "images": 1000},
    "all right": {"skill": 1.0},
    "all wrong": {"skill": 0.0},
    "a class without images": {"classes": tuple("abcd"), "images": 3},
    "not finished": {"finished": False},
    "just begun": {"finished": False, "epochs": 1, "loss": 1.0},
    "nan": {"finished": False, "loss": float("nan")},
    "one epoch": {"epochs": 1},
    "imbalanced": {"rare": 20, "classes": tuple("abcdefgh"), "images": 2000},
}


class Tags(HTMLParser):
    """Counts elements and complains about those that are not closed in order."""

    VOID = ("meta", "link", "img", "input", "br", "col", "!doctype")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def parsed(page: Path) -> Tags:
    tags = Tags()
    tags.feed(page.read_text())
    assert tags.open == []
    return tags


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The page of a kind of run, written once."""
    folder = tmp_path_factory.mktemp("runs")
    return functools.cache(lambda name: run_page.write(run_directories.write(folder / name, **RUNS[name])))


@pytest.mark.parametrize("name", RUNS)
def test_every_kind_of_run_gives_a_well_formed_page_and_all_its_figures(name: str, page: Callable[[str], Path]) -> None:
    run = page(name).parent
    tags = parsed(page(name))
    identifiers = [attributes["id"] for _, attributes in tags.seen if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert [tag for tag, _ in tags.seen if tag == "script"] == []
    assert all(attributes.get("alt") for tag, attributes in tags.seen if tag == "img")
    assert all(a.get("aria-label") for tag, a in tags.seen if tag == "svg")
    drawn = {path.stem for path in (run / "figures").glob("*.png")}
    finished = RUNS[name].get("finished", True)
    expected = FIGURES if finished else {"loss", "accuracy", "throughput", "learning_rate"}
    expected = set() if name == "nan" else expected | ({"hardest"} if name == "a hundred classes" else set())
    assert drawn == expected - ({"mistakes"} if name in ("all right", "one class") else set())
    for path in (run / "figures").glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 100


def test_a_run_that_has_only_its_configuration_can_be_reported(tmp_path: Path) -> None:
    run = run_directories.write(tmp_path / "run", finished=False)
    for name in ("metrics.jsonl", "environment.json", "status.json"):
        (run / name).unlink()
    tags = parsed(run_page.write(run))
    assert "Nothing was measured yet" in tags.text
    assert [tag for tag, _ in tags.seen if tag == "svg"] == []


def test_the_page_tells_result_interval_published_value_resumes_and_how_to_repeat_the_run(
    page: Callable[[str], Path],
) -> None:
    result = json.loads(page("cifar10").with_name("evaluation.json").read_text())
    text = parsed(page("cifar10")).text
    low, high = result["interval"]
    for words in (
        f"{result['accuracy']:.2%}",
        f"{low:.1%} to {high:.1%}",
        "58.00%",
        "none per class",
        "step 250 and 510",
        "2 × Some GPU",
        "accelerate launch -q --config_file launch/multi_node.yaml --num_processes 2 --num_machines 2",
        "git checkout 0123abcd",
        "'a file.yaml'",
    ):
        assert words in text, words


def test_other_data_is_not_measured_against_the_published_numbers(page: Callable[[str], Path]) -> None:
    for name in ("one epoch", "a part of cifar10"):
        assert "ublished" not in parsed(page(name)).text


def test_of_uneven_classes_the_page_says_what_accuracy_hides_and_a_run_without_these_numbers_is_shown_without(
    page: Callable[[str], Path], tmp_path: Path
) -> None:
    file = page("imbalanced").with_name("evaluation.json")
    result, text = json.loads(file.read_text()), " ".join(parsed(page("imbalanced")).text.split())
    rare, common = (row["images"] for row in (result["classes"][1], result["classes"][0]))
    assert f"Its classes have {rare} to {common:,} images" in text
    assert f"to say a of all images would be right on {common / 2000:.1%}" in text
    assert f"Macro accuracy{result['macro_accuracy']:.2%}" in text
    assert f"Calibration error {result['calibration_error']:.1%}" in text
    assert f"{result['classes'][3]['auc']:.4f}" in text
    assert "Its classes have" not in parsed(page("cifar10")).text

    shutil.copytree(file.parent, tmp_path / "old")
    new = ("top5_accuracy", "macro_accuracy", "macro_f1", "calibration_error", "auc")
    old = {key: value for key, value in result.items() if key not in new}
    old["classes"] = [{key: value for key, value in row.items() if key != "auc"} for row in result["classes"]]
    (tmp_path / "old" / "evaluation.json").write_text(json.dumps(old))
    text = parsed(run_page.write(tmp_path / "old")).text
    assert "Precision, recall and F1" in text
    assert not {"Macro", "AUC", "Calibration"} & set(text.split())


def test_a_half_written_last_line_of_metrics_is_passed_over(tmp_path: Path) -> None:
    run = run_directories.write(tmp_path / "run", finished=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"split": "train", "step": 350, "lo')
    assert "step 300" in parsed(run_page.write(run)).text


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ({"world_size": 1, "hosts": ["a"]}, "python job/train.py"),
        ({"world_size": 2, "hosts": ["a"]}, "accelerate launch -q --config_file launch/cpu.yaml --num_processes 2 "),
        (
            {"world_size": 8, "hosts": ["a"], "device_type": "cuda"},
            "launch/multi_gpu.yaml --num_processes 8 ",
        ),
        ({"world_size": 4, "hosts": ["a"], "launcher": "torchrun"}, "torchrun --nproc-per-node 4 job/train.py"),
        (
            {"world_size": 8, "hosts": ["a", "b"], "slurm_job": "7", "device_type": "cuda"},
            "sbatch --nodes=2 --gpus-per-node=4 slurm/simple_cnn.sh",
        ),
    ],
)
def test_run_it_again_is_the_way_it_was_started(start: dict[str, Any], words: str, tmp_path: Path) -> None:
    run = run_directories.write(tmp_path / "run", finished=False)
    (run / "environment.json").write_text(json.dumps(start))
    assert words in " ".join(run_page.launched(reader.read(run))) + " "


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            {"state": "failed", "signal": None, "error": "rank 1 ran out of memory"},
            "It failed: rank 1 ran out of memory.",
        ),
        ({"state": "preempted", "signal": "SIGTERM", "error": None}, "It was stopped by SIGTERM, and saved"),
    ],
)
def test_a_run_that_ended_early_says_why_and_the_very_command_that_continues_it(
    status: dict[str, Any], words: str, tmp_path: Path
) -> None:
    run = run_directories.write(tmp_path / "run", finished=False)
    (run / "status.json").write_text(json.dumps({"step": 300, "attempt": 1} | status))
    text = " ".join(parsed(run_page.write(run)).text.split())
    assert words in text
    assert f"job/train.py --config {run}/config.yaml --run.dir {run} " in text


def test_points_bars_and_cells_say_what_they_are_and_a_class_without_mistakes_is_not_called_hard(
    page: Callable[[str], Path],
) -> None:
    html = page("cifar10").read_text()
    result = json.loads(page("cifar10").with_name("evaluation.json").read_text())
    cat = next(row for row in result["classes"] if row["name"] == "cat")
    assert f"<title>cat: {cat['correct']:,} of 1,000 images</title>" in html
    assert "<title>validation, 1: 0.0712</title>" in html or "<title>validation, 1: 0.07125</title>" in html
    assert f'title="cat taken for dog: {result["confusion_matrix"][3][5]}, ' in html
    assert "Hardest are" not in parsed(page("all right")).text


def test_training_writes_the_report_once_more_when_it_is_missing_and_goes_on_when_it_cannot(
    small: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = [*small, "--train.epochs=1", f"--run.dir={run}"]
    run.mkdir()
    (run / "figures").write_text("in the way")
    done = run_job("train.py", *options, report=True)
    assert done.returncode == 0, done.stderr
    assert "warning: no report" in done.stdout
    assert (run / "evaluation.json").exists()
    assert not (run / "report.html").exists()
    (run / "figures").unlink()
    assert run_job("train.py", *options, report=True).returncode == 0
    text = parsed(run / "report.html").text
    assert "Test images" in text
    assert "103 test images" in text
    before = (run / "figures" / "grid.png").read_bytes()
    shutil.rmtree(run / "figures")
    assert run_job("report.py", run, fresh=True).returncode == 0
    assert (run / "figures" / "grid.png").read_bytes() == before


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("name", ["cifar10", "nasty labels", "a hundred classes", "not finished"])
def test_in_a_browser_nothing_complains_is_fetched_or_wider_than_the_window(
    window: Browser, page: Callable[[str], Path], name: str, width: int
) -> None:
    window.open(page(name), width=width)
    assert window.complaints() == []
    assert window.requests() == [page(name).as_uri()]
    assert window.run("return document.documentElement.scrollWidth") == width
    broken = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert window.run(broken) == 0
    figures = "return [...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width > 250).length"
    assert window.run(figures) == {"not finished": 4, "a hundred classes": 7}.get(name, 5)
    smallest = """return Math.min(...[...document.querySelectorAll('body *')]
      .filter(e => e.getClientRects().length && [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()))
      .map(e => parseFloat(getComputedStyle(e).fontSize) * (e.ownerSVGElement
        ? e.ownerSVGElement.getBoundingClientRect().width / e.ownerSVGElement.viewBox.baseVal.width : 1)))"""
    assert window.run(smallest) >= 9


CONTRAST = """
const pixel = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const rgb = color => { pixel.fillStyle = color; pixel.fillRect(0, 0, 1, 1);
  return [...pixel.getImageData(0, 0, 1, 1).data].slice(0, 3); };
const light = color => { const [r, g, b] = rgb(color).map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
  if (c != 'rgba(0, 0, 0, 0)') return c; } return 'white'; };
return [...document.querySelectorAll('body *:not(title):not(style)')]
  .filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()))
  .map(e => { const style = getComputedStyle(e), color = e.ownerSVGElement ? style.fill : style.color;
    const [a, b] = [light(color), light(behind(e))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), e.outerHTML.slice(0, 80)]; })
  .filter(([ratio]) => ratio < 4.5);
"""


def test_the_index_sorts_without_a_script_links_reports_and_shows_curves_and_what_it_left_out(
    window: Browser, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    for name, skill in (("a b", 0.5), ("sweep/arm/seed-1", 0.9), ("c<d", 0.7)):
        run_directories.write(runs / name, skill=skill)
    run_page.write(runs / "a b")
    run_directories.write(runs / "begun", finished=False)
    (run_directories.write(runs / "damaged") / "evaluation.json").write_text("{")
    assert report.main([str(runs)]) == 0
    parsed(runs / "index.html")
    window.open(runs / "index.html", width=400)
    assert window.complaints() == []
    assert window.run("return document.documentElement.scrollWidth") == 400
    assert "damaged/evaluation.json" in window.run("return document.querySelector('header').innerText")
    seen = """return [...document.querySelectorAll('.runs tbody tr')]
      .sort((a, b) => a.getBoundingClientRect().top - b.getBoundingClientRect().top)
      .map(row => row.querySelector('th').innerText)"""
    accurate = "document.getElementById('order1').click()"
    assert window.run(f"{accurate}; {seen}")[:2] == ["sweep/arm/seed-1", "c<d"]
    assert window.run(f"document.getElementById('order2').click(); {seen}")[0] == "a b"
    assert window.run("return document.querySelector('.runs a').href") == (runs / "a b" / "report.html").as_uri()
    assert window.run("return document.querySelectorAll('.runs polyline').length") == 4


def test_mistakes_can_be_looked_at_class_by_class(window: Browser, page: Callable[[str], Path]) -> None:
    window.open(page("cifar10"), width=1000)
    shown = "return [...document.querySelectorAll('#mistakes li')].filter(li => li.offsetParent).length"
    every = window.run(shown)
    window.run("document.querySelectorAll('#mistakes input')[1].click()")
    assert 0 < window.run(shown) < every


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_all_text_has_the_contrast_that_wcag_asks_for(window: Browser, page: Callable[[str], Path], dark: bool) -> None:
    window.open(page("cifar10"), width=1600, dark=dark)
    background = window.run("return getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(17, 20, 24)" if dark else "rgb(255, 255, 255)")
    assert window.run(CONTRAST) == []


def test_the_page_can_be_printed(window: Browser, page: Callable[[str], Path]) -> None:
    window.open(page("cifar10"), width=1600, dark=True)
    assert window.pdf().startswith(b"%PDF")
