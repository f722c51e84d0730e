"""The report of a run: ``report.html``, one file that needs nothing else, and its figures as PNG files."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from job.display import figures, theme
from job.display.text import SPENT, decimals, hardest_named, listed, percent, rounded, shortened
from job.evaluation import reference, samples
from job.evaluation.samples import Samples
from job.runs import reader
from job.runs.files import write_whole
from job.runs.reader import Run
from job.runs.records import Evaluation

EMBEDDED = ("loss", "accuracy", "learning_rate", "throughput", "classes", "hardest")
"""figures that the page shows in its own colours"""


class Shown(NamedTuple):
    """A test image, and what the model said of it."""

    pixels: NDArray[np.uint8]
    """[H, W, 3]"""
    true: str
    said: str
    sure: float
    """probability of ``said``"""

    @property
    def right(self) -> bool:
        return self.true == self.said

    @property
    def source(self) -> str:
        """The image within a page."""
        file = io.BytesIO()
        Image.fromarray(self.pixels).save(file, "png", optimize=True)
        return _embedded(file.getvalue())


def write(path: Path) -> Path:
    """Write ``report.html`` and ``figures/`` into the run directory ``path``; returns the page's path.

    Raises UserError when there is no run, and OSError when it cannot be written.
    """
    run = reader.read(path)
    published, page = reference.published(run), path / "report.html"
    result, matrix = run.evaluation, None
    shown: dict[str, list[Shown]] = {"grid": [], "mistakes": []}
    (path / "figures").mkdir(exist_ok=True)
    with theme.style():
        drawn = {"loss": figures.loss(run), "throughput": figures.throughput(run)} if run.metrics else {}
        drawn |= {"learning_rate": figures.learning_rate(run)} if run.lines("train") else {}
        drawn |= {"accuracy": figures.accuracy(run, published)} if run.lines("validation") else {}
        if result:
            drawn["classes"] = figures.classes(result, published)
            if len(result["classes"]) > figures.MOST_COUNTS:
                drawn["hardest"] = figures.classes(result, published, figures.FEW)
            matrix = result.get("confusion_matrix")
            drawn |= {"confusion_matrix": figures.confusion(result, matrix)} if matrix else {}
            shown |= {name: _shown(result, some) for name, some in samples.read(path).items()}
        for name, some in shown.items():
            if some:
                drawn[name] = figures.grid([one.pixels for one in some], [(_caption(one), one.right) for one in some])
        pngs = {name: theme.to_png(figure) for name, figure in drawn.items()}
        svgs = {name: theme.to_svg(drawn[name], name, _spoken(run, name)) for name in EMBEDDED if name in drawn}
    for name, png in pngs.items():
        (path / "figures" / f"{name}.png").write_bytes(png)
    html = theme.render(
        "report.html.jinja",
        run=run,
        result=result or {},
        published=published,
        svgs=svgs,
        most_bars=figures.MOST_BARS,
        few=figures.FEW,
        heat=_heat(matrix) if matrix and len(matrix) <= figures.MOST_COUNTS else [],
        heat_drawing=_heat_drawing(matrix) if matrix else "",
        shown=shown,
        kinds=SPENT,
        launch=launched(run),
        config=(path / "config.yaml").read_text(encoding="utf-8"),
    )
    write_whole(page, html)
    return page


def _shown(result: Evaluation, some: Samples) -> list[Shown]:
    names = [row["name"] for row in result["classes"]]
    said = np.concatenate([some.labels, some.predicted])
    if len({len(some.images), len(said) / 2, len(some.confidence)}) > 1 or ((said < 0) | (said >= len(names))).any():
        return []  # a damaged file: the report does without
    fields = zip(some.images, some.labels, some.predicted, some.confidence, strict=True)
    return [Shown(pixels, names[label], names[said], float(sure)) for pixels, label, said, sure in fields]


def _caption(one: Shown) -> str:
    truth = "right" if one.right else f"truly {shortened(one.true, 16)}"
    return f"{shortened(one.said, 16)} {percent(one.sure, 0)}\n{truth}"


def _spoken(run: Run, name: str) -> str:
    """What a figure shows, for those who do not see it."""
    epochs = run.lines("validation")
    if name in ("classes", "hardest") and run.evaluation:
        hardest = listed(hardest_named(run.evaluation)) or "none"
        return f"Accuracy per class, hardest first: {hardest}; all are in the table below"
    if name == "throughput":
        return f"Throughput over time, median {rounded(run.images_per_second)} images a second"
    if name == "learning_rate":
        rates = [line.get("learning_rate") for line in run.lines("train")]
        return f"Learning rate from {rates[0]} to {rates[-1]}"
    if not epochs:
        return f"{name.capitalize()}: no epoch is finished yet"
    first, last = (f"{decimals(line.get(name))} after epoch {line['epoch']}" for line in (epochs[0], epochs[-1]))
    return f"Validation {name} from {first} to {last}"


def _heat(counts: list[list[int]]) -> list[list[tuple[int, float, str, str]]]:
    """Of each cell of a confusion matrix: its count, the share of its row, and the text's colour on light and dark."""
    shares = figures.row_shares(np.array(counts, np.int64))

    def cell(count: int, share: float) -> tuple[int, float, str, str]:
        light, dark = (theme.text_on(colors["paper"], colors["heat"], share) for colors in (theme.LIGHT, theme.DARK))
        return count, share, light, dark

    return [list(map(cell, *row)) for row in zip(counts, shares.tolist(), strict=True)]


def _heat_drawing(counts: list[list[int]]) -> Markup:
    """A confusion matrix of many classes as an ``<svg>`` element, in the page's colours: a path for each tenth."""
    shares = figures.row_shares(np.array(counts, np.int64))
    size, tenths = len(counts), np.ceil(10 * shares)
    paths = "".join(
        f'<path class="t{tenth}" d="{"".join(f"M{x} {y}h1v1h-1z" for y, x in np.argwhere(tenths == tenth))}"/>'
        for tenth in range(1, 11)
    )
    label = f"Confusion matrix of {size} classes as a heat map; the commonest mistakes are listed below"
    box = f'viewBox="-.5 -.5 {size + 1} {size + 1}"'
    frame = f'<rect class="frame" width="{size}" height="{size}"/>'
    return Markup(f'<svg class="matrix" {box} role="img" aria-label="{label}">{frame}{paths}</svg>')  # noqa: S704 (numbers)


def launched(run: Run) -> list[str]:
    """The words before the options of a command that starts this run's like, on as many processes, in the same way.

    By hand on several nodes it is typed on each, with its number from 0 in place of R.
    """
    start = run.environment
    hosts, world_size = start.get("hosts") or ["HOST"], start.get("world_size", 1)
    nodes, local, on_gpus = len(hosts), str(world_size // len(hosts)), start.get("device_type") == "cuda"
    if start.get("slurm_job"):
        script = "vgg16" if run.model.startswith("vgg16") else "simple_cnn"
        return ["sbatch", f"--nodes={nodes}", f"--gpus-per-node={local if on_gpus else 0}", f"slurm/{script}.sh"]
    if world_size == 1:
        return ["python", "job/train.py"]
    if start.get("launcher") == "torchrun":
        meet = ["--nnodes", str(nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", hosts[0]] if nodes > 1 else []
        return ["torchrun", *meet, "--nproc-per-node", local, "job/train.py"]
    file = "multi_node" if nodes > 1 else "multi_gpu" if on_gpus else "cpu"
    meet = ["--num_machines", str(nodes), "--machine_rank", "R", "--main_process_ip", hosts[0]] if nodes > 1 else []
    many = ["--num_processes", str(world_size), *meet]
    return ["accelerate", "launch", "-q", "--config_file", f"launch/{file}.yaml", *many, "job/train.py"]


def _embedded(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
