"""Numbers and names in words, the same wherever they are read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from job.config.errors import printable
from job.runs.records import ClassRow, Confusion, Evaluation, Seconds, ValidationLine

NOTHING = "-"
"""in place of a number that there is not; every terminal has it"""


def duration(seconds: float) -> str:
    """Such as "41 s", "3 min 5 s", "2 h 11 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


SPENT = {
    "training": "steps that count",
    "repeated": "steps done again",
    "startup": "start-up",
    "checkpoints": "checkpoints",
    "evaluation": "evaluation",
    "waiting": "waiting",
}
"""kinds of ``Seconds`` in words"""


def goodput(seconds: Seconds) -> str:
    """Which share of the allocated time trained steps that count, and where the rest went; "" where nobody said."""
    each = {words: cast(float, seconds.get(kind, 0.0)) for kind, words in SPENT.items()}
    waited, allocated = each.pop("waiting"), sum(each.values())
    if not allocated:
        return ""
    trained = each.pop("steps that count")
    rest = [f"{words} {duration(value)}" for words, value in each.items() if value >= 0.05]
    rest += [f"and {duration(waited)} of waiting between starts"] * (waited >= 0.05)
    return f"{percent(trained / allocated)} of {duration(allocated)} trained steps that count; {', '.join(rest)}"


def by_rank(status: Mapping[str, Any], trained: float) -> str:
    """The rank that took most memory, and the one that others waited for, for more than a tenth of ``trained`` seconds.

    Each waits as long for what travels: what it waited less than the others, they waited for it.
    """
    words = []
    for key, kind in (("peak_memory", "memory"), ("peak_device_memory", "memory of its device")):
        if peaks := status.get(key):
            on = f" on rank {peaks.index(max(peaks))}" if len(peaks) > 1 else ""
            words.append(f"{kind}: {max(peaks) / 1e6:,.0f} MB at most{on}")
    if len(waited := status.get("waited") or []) > 1:
        others = (math.fsum(waited) - min(waited)) / (len(waited) - 1) - min(waited)
        if others > 0.1 * trained > 0:
            slowest, share = waited.index(min(waited)), percent(others / trained)
            words.append(f"the others waited {duration(others)} for rank {slowest}, {share} of the time of its steps")
    return "; ".join(words)


def percent(share: object, digits: int = 1) -> str:
    """A fraction such as "57.9%"."""
    return f"{share:.{digits}%}" if isinstance(share, (int, float)) else NOTHING


def decimals(value: object) -> str:
    """Such as "1.2345", as a loss is shown."""
    return f"{value:.4f}" if isinstance(value, (int, float)) else NOTHING


def rounded(value: object) -> str:
    """Such as "10,000": a number without what follows its point."""
    return f"{value:,.0f}" if isinstance(value, (int, float)) else NOTHING


def plural(count: int, word: str, ending: str = "s") -> str:
    """Such as "1 start", "1,000 starts"."""
    return f"{count:,} {word}{'' if count == 1 else ending}"


def listed(words: Sequence[str]) -> str:
    """Such as "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def tally(names: Sequence[str]) -> str:
    """Such as "2 × this, 1 × that", in the order in which they first come."""
    return ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))


def worded(value: object) -> str:
    """Any value of a JSON file in words."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return NOTHING if value is None else str(value)


def shortened(name: str, longest: int = 40) -> str:
    """``name`` without what a class name must not do to a line or a figure: be long, break or change it."""
    name = printable(" ".join(name.split()))
    return name if len(name) <= longest else name[: longest - 1] + "…"


def hardest(result: Evaluation) -> list[ClassRow]:
    """The classes of ``evaluation.json``, lowest accuracy first; those without images last."""
    return sorted(result["classes"], key=lambda row: math.inf if row["accuracy"] is None else row["accuracy"])


def hardest_named(result: Evaluation, most: int = 3) -> list[str]:
    """The hardest classes of which an image was mistaken, such as "cat (31.2%)"."""
    rows = [row for row in hardest(result) if (row["accuracy"] or 0) < 1 and row["images"]][:most]
    return [f"{shortened(row['name'])} ({percent(row['accuracy'])})" for row in rows]


def mistake(confusion: Confusion) -> str:
    """One of the ``top_confusions`` of ``evaluation.json``, such as "cat taken for dog"."""
    return f"{shortened(confusion['true'])} taken for {shortened(confusion['predicted'])}"


def uneven(result: Evaluation) -> str:
    """What accuracy hides where some classes have half as many images again as others: "classes have 20 to 400 ..."."""
    rows = sorted((row for row in result["classes"] if row["images"]), key=lambda row: row["images"])
    few, many = rows[0]["images"], rows[-1]["images"]
    if 2 * many <= 3 * few or "macro_accuracy" not in result:
        return ""
    return (
        f"classes have {few:,} to {many:,} images: each of the same weight, accuracy is "
        f"{percent(result['macro_accuracy'])} and F1 {percent(result['macro_f1'])}; to say "
        f"{shortened(rows[-1]['name'])} of all images would be right on {percent(many / result['images'])}"
    )


def measures(result: Evaluation) -> list[tuple[str, str, str]]:
    """What ``evaluation.json`` has beside accuracy: name, value and meaning of each."""
    told: dict[str, tuple[str, Callable[[object], str], str]] = {
        "top5_accuracy": ("Top-5 accuracy", percent, "the true class is among the five most probable"),
        "macro_accuracy": ("Macro accuracy", percent, "mean over the classes, each of the same weight"),
        "macro_f1": ("Macro F1", percent, "likewise"),
        "auc": ("AUC", decimals, "each class against all others, mean: 0.5 is chance, 1 is all apart"),
        "calibration_error": ("Calibration error", percent, "how far probabilities are from the share that is right"),
    }
    few = len(result["classes"]) <= 5
    return [
        (name, form(result.get(key)), meaning)
        for key, (name, form, meaning) in told.items()
        if result.get(key) is not None and not (few and key == "top5_accuracy")
    ]


def epoch_words(line: ValidationLine, epochs: int) -> str:
    """A finished epoch, such as "epoch 1/10  step 125  train loss 1.7928  validation loss 1.3596  accuracy 50.78%"."""
    words = f"epoch {line['epoch']}/{epochs}  step {line['step']:,}  train loss {decimals(line.get('train_loss'))}"
    if "accuracy" not in line:
        return words
    return f"{words}  validation loss {decimals(line.get('loss'))}  accuracy {percent(line['accuracy'], 2)}"


def sparkline(values: Sequence[float], width: int) -> str:
    """A curve in one line of at most ``width`` letters, from ▁ to █."""
    return "".join("▁▂▃▄▅▆▇█"[round(7 * height)] for height in heights(values, width))


def heights(values: Sequence[float], most: int) -> list[float]:
    """Finite ``values``, averaged to ``most`` at most, between 0 for the lowest and 1 for the highest."""
    finite = [value for value in values if math.isfinite(value)]
    parts = min(len(finite), most)
    ends = [len(finite) * i // parts for i in range(parts + 1)] if parts else []
    means = [math.fsum(finite[i:j]) / (j - i) for i, j in itertools.pairwise(ends)]
    low, high = min(means, default=0), max(means, default=0)
    return [(mean - low) / ((high - low) or 1) for mean in means]
