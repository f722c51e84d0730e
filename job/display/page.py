"""The parts that pages are made of: one self-contained HTML file each, without scripts, light and dark, printable."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from job.display.theme import DARK, LIGHT


def page(title: str, body: str) -> str:
    """A whole HTML document. Its policy forbids every request, so that it looks the same wherever it is opened."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{_theme(LIGHT)}
@media (prefers-color-scheme: dark) {{ {_theme(DARK)} }}
@media print {{ {_theme(LIGHT)} }}
{Path(__file__).with_name("page.css").read_text()}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
{body}
</body>
</html>
"""


def save(path: Path, html: str) -> None:
    """Write a page so that whoever opens it sees the old one or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(html, encoding="utf-8")
    beside.replace(path)


def _theme(colors: dict[str, str]) -> str:
    return ":root {" + " ".join(f"--{role}: {color};" for role, color in colors.items()) + "}"


def section(name: str, title: str, content: str, lead: str = "") -> str:
    """A part of the page with a heading that links lead to; nothing when there is no content. ``lead`` is text."""
    if not content:
        return ""
    intro = f"<p class=lead>{escape(lead)}</p>" if lead else ""
    heading = f'<h2 id="{name}-h">{escape(title)}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-h">{heading}{intro}{content}</section>'


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[Any]], *, text: int = 1, titled: bool = True
) -> str:
    """A table whose first column names the row and whose columns from ``text`` on hold numbers.

    It scrolls by itself where it is wider than the page. ``titled``: the caption is seen, and not only heard.
    """
    cells = []
    for first, *rest in rows:
        tds = "".join(
            f"<td{' class=n' if i >= text else ''}>{escape(_cell(value))}</td>" for i, value in enumerate(rest, 1)
        )
        cells.append(f"<tr><th scope=row>{escape(_cell(first))}</th>{tds}</tr>")
    headings = "".join(
        f"<th scope=col{' class=n' if i >= text else ''}>{escape(name)}</th>" for i, name in enumerate(head)
    )
    hidden = "" if titled else " class=hidden"
    return (
        f'<div class=scroll role=region tabindex=0 aria-label="{escape(caption)}"><table><caption{hidden}>'
        f"{escape(caption)}</caption><thead><tr>{headings}</tr></thead><tbody>{''.join(cells)}</tbody></table></div>"
    )


def name_cell(name: str) -> str:
    """The first cell of a row of figures: a class name, which the style sheet cuts where there is no room for it."""
    return f'<th scope=row title="{escape(name)}">{escape(name)}</th>'


def details(summary: str, content: str) -> str:
    """What opens on demand."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def facts(pairs: Iterable[tuple[str, str, str]]) -> str:
    """Key figures: name, value, and a remark beneath."""
    items = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for name, value, note in pairs
    )
    return f"<dl class=facts>{''.join(items)}</dl>"


def image(png: bytes, alt: str, css: str = "") -> str:
    """An image within the page."""
    kind = f' class="{css}"' if css else ""
    return f'<img{kind} alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def code(text: str) -> str:
    """Text as it is typed."""
    return f"<pre tabindex=0><code>{escape(text)}</code></pre>"


def percent(value: float | None, digits: int = 1) -> str:
    """Such as "57.9%"; a dash for None."""
    return "–" if value is None else f"{value:.{digits}%}"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else str(value)
