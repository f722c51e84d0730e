"""What all figures and pages have in common: colours for light and dark, and how a figure becomes PNG or SVG.

matplotlib is imported inside functions: training must not wait for it.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from job.display import text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIGHT = {
    "paper": "#ffffff",
    "panel": "#f5f6f8",
    "ink": "#15181c",
    "muted": "#586170",
    "rule": "#d8dce2",
    "accent": "#1d5fbf",
    "second": "#a9500c",
    "heat": "#0f4aa0",
    "right": "#1a7343",
    "wrong": "#b3261e",
}
DARK = {
    "paper": "#111418",
    "panel": "#1a1e24",
    "ink": "#e9ebee",
    "muted": "#a3abb7",
    "rule": "#343b45",
    "accent": "#82b4ff",
    "second": "#f2a766",
    "heat": "#8fbcff",
    "right": "#6cc795",
    "wrong": "#ff8f86",
}
"""Colours by role; blue and orange are told apart with any kind of colour vision. Contrast of text is 4.5 or more."""

FILTERS = (
    *(text.decimals, text.duration, text.hardest_named, text.listed, text.mistake),
    *(text.percent, text.plural, text.shortened, text.tally, text.rounded),
)
"""what a template may put a value through"""


@contextlib.contextmanager
def style() -> Iterator[None]:
    """matplotlib's settings for drawing and saving every figure here."""
    import matplotlib as mpl

    settings: dict[str, Any] = {
        "axes.axisbelow": True,
        "axes.edgecolor": LIGHT["rule"],
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.labelcolor": LIGHT["muted"],
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.constrained_layout.use": True,
        "font.size": 10,
        "grid.color": LIGHT["rule"],
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "legend.labelcolor": LIGHT["ink"],
        "lines.linewidth": 1.6,
        "svg.fonttype": "none",
        "text.color": LIGHT["ink"],
        "text.parse_math": False,  # class names are no formulas
        "xtick.color": LIGHT["muted"],
        "xtick.major.size": 3,
        "ytick.color": LIGHT["muted"],
        "ytick.major.size": 0,
    }
    with mpl.rc_context(settings):  # type: ignore[arg-type]
        yield


def to_png(figure: Figure, dpi: int = 160) -> bytes:
    """The figure as the content of a PNG file, on white."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    figure.set_layout_engine("none")  # what was laid out once need not be again for the page
    return file.getvalue()


def to_svg(figure: Figure, name: str, label: str) -> Markup:
    """The figure as an ``<svg>`` element whose colours are the page's variables and whose text is text.

    ``name`` makes its identifiers differ from those of other figures; ``label`` is what a screen reader says.
    """
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would hold for the whole page
    for role, color in LIGHT.items():
        svg = svg.replace(color, f"var(--{role})")
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--sans)", svg)
    svg = re.sub(
        r'<svg ([^>]*?)width="[^"]*" height="[^"]*"|<svg height="[^"]*" width="[^"]*"', r"<svg \1", svg, count=1
    )
    return Markup(re.sub(r"^<svg[^>]*>", lambda tag: _labelled(tag[0], label), svg, count=1))  # noqa: S704 (matplotlib escapes)


def _labelled(tag: str, label: str) -> str:
    box = re.search(r'viewBox="[^"]*"', tag)
    xmlns = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {xmlns} {box[0] if box else ""} role="img" aria-label="{escape(label)}">'


def render(template: str, **values: Any) -> str:
    """A page from the file ``template``. What ``values`` hold is escaped, but for what is Markup."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for word in FILTERS:
        environment.filters[word.__name__] = word
    return environment.get_template(template).render(values, light=LIGHT, dark=DARK)


def text_on(paper: str, heat: str, share: float) -> str:
    """Black or white, whichever is read better on ``paper`` with a ``share`` of ``heat`` mixed in.

    By the contrast ratio of WCAG 2.2; the better of the two is at least 4.58 on any colour.
    """
    channels = [
        int(paper[i : i + 2], 16) + share * (int(heat[i : i + 2], 16) - int(paper[i : i + 2], 16)) for i in (1, 3, 5)
    ]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in channels)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff"
