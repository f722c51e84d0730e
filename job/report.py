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

from job.config.command_line import Arguments
from job.config.errors import UserError
from job.display import figures, page, panels, theme
from job.display.page import percent
from job.distributed import ending
from job.evaluation import samples
from job.evaluation.samples import Samples
from job.runs import reader
from job.runs.reader import Run


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
    run = reader.read(path)
    shown = samples.read(path)
    (path / "figures").mkdir(exist_ok=True)
    with theme.style():
        curves = {name: getattr(figures, name)(run) for name in ("loss", "accuracy", "throughput")}
        drawn = dict(curves)
        if run.evaluation:
            drawn["classes"] = figures.classes(run.evaluation, run.published)
            drawn["confusion_matrix"] = figures.confusion(run.evaluation)
            for name, some in shown.items():
                if len(some.labels):
                    drawn[name] = figures.pictures(
                        some.pictures, [panels.caption(run, some, i) for i in range(len(some.labels))]
                    )
        pngs = {name: theme.to_png(figure) for name, figure in drawn.items()}
        svgs = {name: theme.to_svg(figure, name, _spoken(run, name)) for name, figure in curves.items()}
    for name, png in pngs.items():
        (path / "figures" / f"{name}.png").write_bytes(png)
    page.save(path / "report.html", _html(run, svgs, pngs, shown))
    return path / "report.html"


def _html(run: Run, svgs: dict[str, str], pngs: dict[str, bytes], shown: dict[str, Samples]) -> str:
    grid, mistakes = (panels.pictures(run, shown.get(name)) for name in ("grid", "mistakes"))
    parts = {
        "training": ("Training", page.section("training", "Training", panels.training(run, svgs), _training_lead(run))),
        "classes": ("Classes", page.section("classes", "What it gets right", panels.classes(run, pngs))),
        "pictures": ("Pictures", page.section("pictures", "Test pictures", grid, _GRID)),
        "mistakes": ("Mistakes", page.section("mistakes", "Most confident mistakes", mistakes, _MISTAKES)),
        "again": ("Run it again", page.section("again", "Run it again", _again(run))),
    }
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, (title, html) in parts.items() if html)
    body = f"""<header>
<p class=kicker>{escape(run.name)}{_day(run)} <span class="state {escape(run.state)}">{escape(run.state)}</span></p>
<h1>{escape(run.title)}</h1>
<p class=summary>{escape(_summary(run))}</p>
{page.facts(_facts(run))}
<nav aria-label="Parts of this page"><ul>{links}</ul></nav>
</header>
<main id="main">{"".join(html for _, html in parts.values())}</main>
<footer>Made by <code>python job/report.py</code> from the run directory alone. Intervals are Wilson's, 95%.</footer>"""
    return page.page(f"{run.title}: {run.name}", body)


_GRID = "Drawn from the test set at random, the same for every run on this data, with what the model says of them."
_MISTAKES = "Wrong answers with the highest probability: often the hardest pictures, at times a wrong label."


def _day(run: Run) -> str:
    day = run.attempts[0].started[:10] if run.attempts else ""
    return f', <time datetime="{escape(day)}">{escape(day)}</time>' if day else ""


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
        hard_ones = [f"{theme.shortened(row['name'], 40)} ({row['accuracy']:.0%})" for row in hard]
        text += f" Hardest are {_listed(hard_ones)}."
    if result["top_confusions"]:
        worst = result["top_confusions"][0]
        true, said = (theme.shortened(worst[key], 40) for key in ("true", "predicted"))
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
    found.append(("Time at work", reader.duration(run.seconds), f"{starts} start{'' if starts == 1 else 's'}"))
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
    first, last = (panels.decimals(line.get(key)) for line in (epochs[0], epochs[-1]))
    return f"Validation {key} from {first} after epoch {epochs[0]['epoch']} to {last} after epoch {epochs[-1]['epoch']}"


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "–" if value is None else str(value)


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"


if __name__ == "__main__":
    ending.entry(main)
