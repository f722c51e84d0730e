"""The panels of a report page: each a piece of HTML, of what a run has left."""

from __future__ import annotations

import io
from html import escape
from typing import Any

import numpy as np

from job.display import figures, page, theme
from job.display.page import percent
from job.evaluation.samples import Samples
from job.runs.reader import Run


def training(run: Run, svgs: dict[str, str]) -> str:
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
            *(decimals(line.get(key)) for key in ("train_loss", "loss")),
            percent(line.get("accuracy"), 2),
        )
        for line in run.lines("validation")
    ]
    head = ("epoch", "step", "training loss", "validation loss", "validation accuracy")
    numbers = page.details("The numbers", page.table("After each epoch", head, rows)) if rows else ""
    return f"<div class=charts>{charts}</div>{numbers}"


def classes(run: Run, pngs: dict[str, bytes]) -> str:
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
    head = "".join(f"<th scope=col><span>{escape(theme.shortened(name))}</span></th>" for name in names)
    rows = "".join(
        f"<tr>{page.name_cell(name)}"
        + "".join(_heat_cell(int(n), share) for n, share in zip(counts, row, strict=True))
        + "</tr>"
        for name, counts, row in zip(names, matrix, shares, strict=True)
    )
    return f"{note}<table class=heat><thead><tr><td class=corner></td>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _heat_cell(count: int, share: float) -> str:
    light, dark = (theme.text_on(colors["paper"], colors["heat"], share) for colors in (theme.LIGHT, theme.DARK))
    return f'<td style="--v:{share:.3f};--l:{light};--d:{dark}">{count}</td>'


def pictures(run: Run, some: Samples | None) -> str:
    if some is None or not len(some.labels) or not run.evaluation:
        return ""
    names = [row["name"] for row in run.evaluation["classes"]]
    items = []
    for i, picture in enumerate(some.pictures):
        true, said, sure = names[some.labels[i]], names[some.predicted[i]], float(some.confidence[i])
        right = true == said
        verdict = "<b class=ok>✓</b>" if right else "<b class=no>✗</b>"
        below = f"{sure:.0%}" if right else f"{sure:.0%}, truly {theme.shortened(true, 24)}"
        alt = f"picture of the class {true}"
        items.append(
            f"<li><figure>{page.image(_png(picture), alt)}<figcaption>{verdict} {escape(theme.shortened(said, 24))}"
            f"<span>{escape(below)}</span></figcaption></figure></li>"
        )
    return f"<ul class=pictures>{''.join(items)}</ul>"


def caption(run: Run, some: Samples, i: int) -> tuple[str, bool]:
    names = [row["name"] for row in run.evaluation["classes"]]
    true, said = (theme.shortened(names[which[i]], 16) for which in (some.labels, some.predicted))
    right = bool(some.labels[i] == some.predicted[i])
    return f"{said} {some.confidence[i]:.0%}\n{'right' if right else f'truly {true}'}", right


def _png(picture: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png", optimize=True)
    return file.getvalue()


def decimals(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else "–"
