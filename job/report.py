"""The report of a run: ``report.html``, one file that needs nothing else, and its figures as PNG files.

Made at the end of a run. To make it again, or of a run that is not finished yet:
  python job/report.py RUN [RUN ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: `job` is found from anywhere, and what lies in job/ shadows nothing
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import shlex
from html import escape
from typing import Any

import numpy as np

from job import figures, page, results, runtime, samples
from job.config import Arguments, UserError
from job.page import percent
from job.results import Run
from job.samples import Samples

MODELS = {"simple_cnn": "SimpleCNN", "vgg16": "VGG16", "vgg16_bn": "VGG16 with batch norm"}
SOURCES = {"cifar10": "CIFAR-10"}


def main(argv: list[str]) -> int:
    """Write the report of each run directory named; returns the exit status."""
    parser = Arguments(__doc__ or "")
    parser.add_argument("run", nargs="+", type=Path, help="run directory, finished or not")
    for path in parser.parse_args(argv).run:
        try:
            print(f"wrote {write(path)}")
        except OSError as error:
            raise UserError(
                f"the report of {path} cannot be written ({error.strerror})", "report a copy of it"
            ) from None
    return 0


def write(path: Path) -> Path:
    """Write ``report.html`` and ``figures/`` into the run directory ``path``; returns the page's path.

    Raises UserError when there is no run, and OSError when it cannot be written.
    """
    run = results.read(path)
    shown = samples.read(path)
    (path / "figures").mkdir(exist_ok=True)
    with figures.style():
        curves = {name: getattr(figures, name)(run) for name in ("loss", "accuracy", "throughput")}
        drawn = dict(curves)
        if run.evaluation:
            drawn["classes"] = figures.classes(run.evaluation, run.published)
            drawn["confusion_matrix"] = figures.confusion(run.evaluation)
            for name, some in shown.items():
                if len(some.labels):
                    drawn[name] = figures.pictures(
                        some.pictures, [_caption(run, some, i) for i in range(len(some.labels))]
                    )
        pngs = {name: figures.to_png(figure) for name, figure in drawn.items()}
        svgs = {name: figures.to_svg(figure, name, _spoken(run, name)) for name, figure in curves.items()}
    for name, png in pngs.items():
        (path / "figures" / f"{name}.png").write_bytes(png)
    page.save(path / "report.html", _html(run, svgs, pngs, shown))
    return path / "report.html"


def _html(run: Run, svgs: dict[str, str], pngs: dict[str, bytes], shown: dict[str, Samples]) -> str:
    parts = {
        "training": ("Training", page.section("training", "Training", _training(run, svgs), _training_lead(run))),
        "classes": ("Classes", page.section("classes", "What it gets right", _classes(run, pngs))),
        "pictures": ("Pictures", page.section("pictures", "Test pictures", _pictures(run, shown.get("grid")), _GRID)),
        "mistakes": (
            "Mistakes",
            page.section("mistakes", "Most confident mistakes", _pictures(run, shown.get("mistakes")), _MISTAKES),
        ),
        "again": ("Run it again", page.section("again", "Run it again", _again(run))),
    }
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, (title, html) in parts.items() if html)
    body = f"""<header>
<p class=kicker>{escape(run.name)}{_day(run)} <span class="state {escape(_state(run))}">{escape(_state(run))}</span></p>
<h1>{escape(title(run))}</h1>
<p class=summary>{escape(_summary(run))}</p>
{page.facts(_facts(run))}
<nav aria-label="Parts of this page"><ul>{links}</ul></nav>
</header>
<main id="main">{"".join(html for _, html in parts.values())}</main>
<footer>Made by <code>python job/report.py</code> from the run directory alone. Intervals are Wilson's, 95%.</footer>"""
    return page.page(f"{title(run)}: {run.name}", body)


_GRID = "Drawn from the test set at random, the same for every run on this data, with what the model says of them."
_MISTAKES = "Wrong answers with the highest probability: often the hardest pictures, at times a wrong label."


def title(run: Run) -> str:
    """Model and data, as people call them."""
    source = run.setting("data.source", "unknown data")
    data = (
        Path(run.setting("data.root", "")).name.partition(".")[0] if source == "folder" else SOURCES.get(source, source)
    )
    return f"{MODELS.get(run.model, run.model)} on {data}"


def _day(run: Run) -> str:
    day = run.attempts[0].started[:10] if run.attempts else ""
    return f', <time datetime="{escape(day)}">{escape(day)}</time>' if day else ""


def _state(run: Run) -> str:
    return "finished" if run.evaluation else str(run.status.get("state", "running"))


def _summary(run: Run) -> str:
    result = run.evaluation
    if not result:
        last = run.metrics[-1] if run.metrics else None
        where = f"It stands at step {last['step']:,}, in epoch {last['epoch']} of " if last else "It is to train for "
        error = f" {run.status['error']}." if run.status.get("error") else ""
        return f"This run is not finished. {where}{run.setting('train.epochs', '?')}{'' if last else ' epochs'}.{error}"
    correct = sum(row["correct"] for row in result["classes"])
    text = f"It classifies {correct:,} of {result['images']:,} {result['split']} pictures correctly."
    hard = [row for row in figures.hardest(result) if row["accuracy"] is not None][:3]
    if len(result["classes"]) > 3:
        hard_ones = [f"{figures.shortened(row['name'], 40)} ({row['accuracy']:.0%})" for row in hard]
        text += f" Hardest are {_listed(hard_ones)}."
    if result["top_confusions"]:
        worst = result["top_confusions"][0]
        true, said = (figures.shortened(worst[key], 40) for key in ("true", "predicted"))
        text += f" Its commonest mistake is {true} taken for {said}, {worst['images']:,} times."
    return text


def _facts(run: Run) -> list[tuple[str, str, str]]:
    result, found = run.evaluation, []
    if result:
        low, high = result["interval"]
        found.append(("Test accuracy", percent(result["accuracy"], 2), f"95% interval {low:.1%} to {high:.1%}"))
    if run.published is not None:
        points = 100 * (result["accuracy"] - run.published)
        found.append(("Published", percent(run.published, 2), f"reference notebook; this run {points:+.1f} points"))
    best = _best(run)
    if best:
        found.append(("Best validation", percent(best["accuracy"], 2), f"in epoch {best['epoch']}"))
    starts = len(run.attempts)
    found.append(("Time at work", results.duration(run.seconds), f"{starts} start{'' if starts == 1 else 's'}"))
    if run.images_per_second is not None:
        found.append(("Throughput", f"{run.images_per_second:,.0f}", "images a second, median"))
    devices = run.environment.get("devices", [])
    if devices:
        hosts = len(run.environment.get("hosts", [])) or 1
        names = ", ".join(f"{devices.count(name)} × {name}" for name in dict.fromkeys(devices))
        processes = f"{len(devices)} process{'' if len(devices) == 1 else 'es'}"
        found.append(("Devices", names, f"{processes} on {hosts} host{'' if hosts == 1 else 's'}"))
    if result.get("parameters"):
        found.append(("Parameters", f"{result['parameters']:,}", run.setting("runtime.precision", "")))
    return found


def _best(run: Run) -> dict[str, Any] | None:
    lines = [line for line in run.lines("validation") if line.get("accuracy") is not None]
    return max(lines, key=lambda line: line["accuracy"], default=None)


def _training_lead(run: Run) -> str:
    text = f"{run.setting('train.epochs', '?')} epochs, global batch {run.setting('train.batch_size', '?')}, "
    text += f"{run.setting('optimizer.name', '?')} at {run.setting('optimizer.learning_rate', '?')}."
    if run.resumed_at:
        text += f" Red lines mark where the run was resumed: step {_listed([f'{step:,}' for step in run.resumed_at])}."
    return text


def _training(run: Run, svgs: dict[str, str]) -> str:
    captions = {
        "loss": "Loss: the grey line is each few steps' mean, the points are those of whole epochs.",
        "accuracy": "Accuracy on the validation pictures after each epoch"
        + (", and on the test pictures at the end." if run.evaluation else "."),
        "throughput": "Throughput of training, over all processes.",
    }
    charts = "".join(
        f"<figure>{svg}<figcaption>{escape(captions[name])}</figcaption></figure>" for name, svg in svgs.items()
    )
    rows = [
        (
            line["epoch"],
            line["step"],
            *(_decimals(line.get(key)) for key in ("train_loss", "loss")),
            percent(line.get("accuracy"), 2),
        )
        for line in run.lines("validation")
    ]
    head = ("epoch", "step", "training loss", "validation loss", "validation accuracy")
    numbers = page.details("The numbers", page.table("After each epoch", head, rows)) if rows else ""
    return f"<div class=charts>{charts}</div>{numbers}"


def _classes(run: Run, pngs: dict[str, bytes]) -> str:
    result = run.evaluation
    if not result:
        return ""
    head = ("class", "pictures", "right", "accuracy", "from", "to", "precision", "recall", "F1")
    rows = [
        (
            *(row["name"], row["images"], row["correct"], percent(row["accuracy"])),
            *(percent(end) for end in row["interval"] or (None, None)),
            *(percent(row[key]) for key in ("precision", "recall", "f1")),
        )
        for row in result["classes"]
    ]
    confused = [(f"{c['true']} taken for {c['predicted']}", c["images"]) for c in result["top_confusions"]]
    return (
        f"<div class=pair><div><h3>Accuracy per class, hardest first</h3>{_bars(run)}</div>"
        f"<div><h3>Confusion matrix</h3>{_heat(result, pngs)}</div></div>"
        + page.details("Precision, recall and F1", page.table("Each class, in the data set's order", head, rows))
        + (
            page.details("Commonest mistakes", page.table("Commonest mistakes", ("mistake", "pictures"), confused))
            if confused
            else ""
        )
    )


def _bars(run: Run) -> str:
    result = run.evaluation
    marks = f'<i class=mark style="--v:{result["accuracy"]:.2%}"></i>'
    key = "<li><i class=box></i>accuracy</li><li><i class=line></i>95% interval</li>"
    key += f"<li><i></i>all classes {result['accuracy']:.1%}</li>"
    if run.published is not None:
        marks += f'<i class="mark published" style="--v:{run.published:.2%}"></i>'
        key += f"<li><i class=published></i>published, all classes {run.published:.1%} (none per class)</li>"
    rows = []
    for row in figures.hardest(result):
        bar = ""
        if row["accuracy"] is not None:
            low, high = row["interval"]
            bar = f'<i class=fill style="--v:{row["accuracy"]:.2%}"></i>'
            bar += f'<i class=range style="--low:{low:.2%};--high:{high:.2%}"></i>'
        rows.append(
            f"<tr>{page.name_cell(row['name'])}<td aria-hidden=true><div class=bar>{bar}{marks}</div></td>"
            f"<td class=n>{percent(row['accuracy'])}</td></tr>"
        )
    return (
        f"<ul class=key>{key}</ul><table class=bars><colgroup><col class=name><col><col class=share></colgroup>"
        f"<caption class=hidden>Accuracy per class</caption><tbody>{''.join(rows)}</tbody></table>"
    )


def _heat(result: dict[str, Any], pngs: dict[str, bytes]) -> str:
    note = "<p class=lead>Rows are true classes, columns what was said; colour is the share of the row.</p>"
    names = [row["name"] for row in result["classes"]]
    if len(names) > figures.MOST_COUNTS:
        alt = f"Confusion matrix of {len(names)} classes as a heat map; the commonest mistakes are listed below"
        return note + page.image(pngs["confusion_matrix"], alt)
    matrix = np.array(result["confusion_matrix"], np.int64)
    shares = figures.row_shares(matrix)
    head = "".join(f"<th scope=col><span>{escape(figures.shortened(name))}</span></th>" for name in names)
    rows = "".join(
        f"<tr>{page.name_cell(name)}"
        + "".join(_heat_cell(int(n), share) for n, share in zip(counts, row, strict=True))
        + "</tr>"
        for name, counts, row in zip(names, matrix, shares, strict=True)
    )
    return f"{note}<table class=heat><thead><tr><td class=corner></td>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _heat_cell(count: int, share: float) -> str:
    light, dark = (figures.text_on(theme["paper"], theme["heat"], share) for theme in (figures.LIGHT, figures.DARK))
    return f'<td style="--v:{share:.3f};--l:{light};--d:{dark}">{count}</td>'


def _pictures(run: Run, some: Samples | None) -> str:
    if some is None or not len(some.labels) or not run.evaluation:
        return ""
    names = [row["name"] for row in run.evaluation["classes"]]
    items = []
    for i, picture in enumerate(some.pictures):
        true, said, sure = names[some.labels[i]], names[some.predicted[i]], float(some.confidence[i])
        right = true == said
        verdict = "<b class=ok>✓</b>" if right else "<b class=no>✗</b>"
        below = f"{sure:.0%}" if right else f"{sure:.0%}, truly {figures.shortened(true, 24)}"
        alt = f"picture of the class {true}"
        items.append(
            f"<li><figure>{page.image(_png(picture), alt)}<figcaption>{verdict} {escape(figures.shortened(said, 24))}"
            f"<span>{escape(below)}</span></figcaption></figure></li>"
        )
    return f"<ul class=pictures>{''.join(items)}</ul>"


def _caption(run: Run, some: Samples, i: int) -> tuple[str, bool]:
    names = [row["name"] for row in run.evaluation["classes"]]
    true, said = (figures.shortened(names[which[i]], 16) for which in (some.labels, some.predicted))
    right = bool(some.labels[i] == some.predicted[i])
    return f"{said} {some.confidence[i]:.0%}\n{'right' if right else f'truly {true}'}", right


def _png(picture: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png", optimize=True)
    return file.getvalue()


def _again(run: Run) -> str:
    environment = run.environment
    given = shlex.join(environment.get("command", []))
    world_size = environment.get("world_size", 1)
    launch = "python" if world_size == 1 else f"accelerate launch --num_processes {world_size}"
    target = f"runs/{run.name}-again"
    commit = environment.get("git_commit")
    lines = [f"git checkout {commit}"] if commit else []
    lines.append(
        f"{launch} job/train.py --config {shlex.quote(str(run.path / 'config.yaml'))} --run.dir {shlex.quote(target)}"
    )
    facts = [
        (key.replace("_", " "), _shown(value))
        for key, value in environment.items()
        if key not in ("command", "attempts")
    ]
    starts = [(a.number, a.started, f"step {a.step:,}" if a.step else "the beginning") for a in run.attempts]
    config = (run.path / "config.yaml").read_text()
    return (
        page.code("\n".join(lines))
        + (f"<p class=lead>It was started with</p>{page.code(given)}" if given else "")
        + page.details("Configuration", page.code(config))
        + (page.details("Environment", page.table("Environment", ("what", "value"), facts, text=9)) if facts else "")
        + (
            page.details("Starts", page.table("Starts of this run", ("start", "at", "from"), starts, text=9))
            if starts
            else ""
        )
    )


def _spoken(run: Run, name: str) -> str:
    """What a figure shows, for those who do not see it."""
    epochs = run.lines("validation")
    if name == "throughput":
        return f"Throughput over time, median {run.images_per_second or 0:,.0f} images a second"
    if not epochs:
        return f"{name.capitalize()}: no epoch is finished yet"
    key = "loss" if name == "loss" else "accuracy"
    first, last = (_decimals(line.get(key)) for line in (epochs[0], epochs[-1]))
    return f"Validation {key} from {first} after epoch {epochs[0]['epoch']} to {last} after epoch {epochs[-1]['epoch']}"


def _decimals(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else "–"


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "–" if value is None else str(value)


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"


if __name__ == "__main__":
    runtime.entry(main)
