"""What all figures and pages have in common: colours for light and dark, and how a figure becomes PNG or SVG."""

from __future__ import annotations

import contextlib
import functools
import html
import io
import json
import re
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib import font_manager, rc_context
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from job.config.errors import printable
from job.display import text

_COLORS = {
    "paper": ("#ffffff", "#111418"),
    "panel": ("#f5f6f8", "#1a1e24"),
    "ink": ("#15181c", "#e9ebee"),
    "muted": ("#586170", "#a3abb7"),
    "rule": ("#d8dce2", "#343b45"),
    "accent": ("#1d5fbf", "#82b4ff"),
    "second": ("#a9500c", "#f2a766"),
    "heat": ("#0f4aa0", "#8fbcff"),
    "right": ("#1a7343", "#6cc795"),
    "wrong": ("#b3261e", "#ff8f86"),
}
"""By role, on light and on dark; blue and orange are told apart with any kind of colour vision. Contrast of text is 4.5
or more."""
LIGHT, DARK = ({role: pair[i] for role, pair in _COLORS.items()} for i in (0, 1))

FILTERS = (
    *(text.by_rank, text.decimals, text.duration, text.goodput, text.hardest_named, text.listed, text.mistake),
    *(text.measures, text.percent, text.plural, text.shortened, text.tally, text.rounded, text.uneven, text.worded),
)
"""what a template may put a value through"""


@contextlib.contextmanager
def style() -> Iterator[None]:
    """matplotlib's settings for drawing and saving every figure here."""
    settings: dict[Any, Any] = {
        "font.family": ["DejaVu Sans", *_fonts()],
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
        "legend.borderaxespad": 0.2,
        "legend.columnspacing": 1.2,
        "legend.fontsize": 9.5,
        "legend.frameon": False,
        "legend.handlelength": 1.4,
        "legend.labelcolor": LIGHT["ink"],
        "legend.loc": "lower left",
        "lines.linewidth": 1.6,
        "svg.fonttype": "none",
        "text.color": LIGHT["ink"],
        "text.parse_math": False,  # class names are no formulas
        "xtick.color": LIGHT["muted"],
        "xtick.major.size": 3,
        "ytick.color": LIGHT["muted"],
        "ytick.major.size": 0,
    }
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the page's text is text, and has the reader's
        yield


@functools.cache
def _fonts() -> list[str]:
    """Fonts of this machine for names that the usual one has no letters for."""
    wanted = re.compile("CJK (JP|SC|KR)|WenQuanYi|Noto Sans (Arabic|Hebrew|Thai|Devanagari)$")
    return [name for name in font_manager.get_font_names() if wanted.search(name)]


def to_png(figure: Figure) -> bytes:
    """The figure as the content of a PNG file, on white."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=160)
    figure.set_layout_engine("none")  # what was laid out once need not be again for the page
    return file.getvalue()


def to_svg(figure: Figure, name: str, label: str) -> Markup:
    """The figure as an ``<svg>`` element whose colours are the page's variables and whose text is text.

    ``name`` makes its identifiers differ from those of other figures; ``label`` is what a screen reader says.
    """
    file = io.StringIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    # A style would hold for the whole page, and a size keep the figure from filling its place.
    _, _, drawing = re.sub(r"<(metadata|style).*?</\1>", "", file.getvalue(), flags=re.DOTALL).partition("<svg")
    tag, _, drawing = drawing.partition(">")
    drawing = re.sub(r"""<g id=(["'])hover:(.*?)\1>(.*?)</g>""", _hovered, drawing, flags=re.DOTALL)
    for role, color in LIGHT.items():
        drawing = drawing.replace(color, f"var(--{role})")
    drawing = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", drawing)
    drawing = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--sans)", drawing)
    box = "".join(re.findall(r'viewBox="[^"]*"', tag))
    xmlns = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return Markup(f'<svg {xmlns} {box} role="img" aria-label="{escape(label)}">{drawing}')  # noqa: S704 (matplotlib escapes)


def _hovered(group: re.Match[str]) -> str:
    """A group of an ``<svg>`` element with what ``figures.hover`` lets it say."""
    words = [f"<title>{escape(word)}</title>" for word in json.loads(html.unescape(group[2]))]
    if len(words) == 1 and "<use" not in group[3]:
        return f"<g>{words[0]}{group[3]}</g>"
    points = iter(words)
    pointed = re.sub(r"(<use[^>]*)/>", lambda use: f"{use[1]}>{next(points, '')}</use>", group[3])
    return f"<g>{pointed}</g>"


def render(template: str, **values: Any) -> str:
    """A page from the file ``template``. What ``values`` hold is escaped, but for what is Markup."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {word.__name__: word for word in FILTERS} | {"typed": shlex.join}
    return environment.get_template(template).render(values, light=LIGHT, dark=DARK)


def _shown(value: Any) -> Any:
    """What a template has come to, without what would turn or hide what stands around it."""
    return printable(value, keep="\n") if type(value) is str else value


def text_on(paper: str, heat: str, share: float) -> str:
    """Black or white, whichever is read better on ``paper`` with a ``share`` of ``heat`` mixed in.

    By the contrast ratio of WCAG 2.2; the better of the two is at least 4.58 on any colour.
    """
    channels = (1 - share) * np.array(to_rgb(paper)) + share * np.array(to_rgb(heat))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    return "#000000" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff"
