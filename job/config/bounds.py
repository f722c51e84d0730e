"""What a setting may hold, said at the setting itself, and read there."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Any

MANY = 10**6 + 1
"""one more than most counts may be: what is larger is a slip of the finger, and some of it would never end"""
MOST_THREADS = 1024
"""CPU threads of one process: a million of them end it with a segmentation fault"""


def number(
    default: Any, low: float = -math.inf, high: float = math.inf, *, above: float = -math.inf, **marks: Any
) -> Any:
    """A setting that holds finite numbers from ``low`` up to but not including ``high``, and larger than ``above``."""
    allowed = f"at least {low}" if low > -math.inf else "a positive number" if above == 0 else "finite"
    if high < math.inf:
        allowed = (
            f"from {low} to {high - 1}" if isinstance(high, int) else f"from {low} up to but not including {high:g}"
        )

    def fits(value: float | None) -> bool:
        return value is None or (low <= value < high and value > above)  # neither infinity nor NaN is

    return field(
        default=default, metadata={"fits": fits, "allowed": ("null or " if default is None else "") + allowed, **marks}
    )


def path(default: str | None, **marks: Any) -> Any:
    """A setting that names a file or a directory, whether or not it is there."""

    def fits(value: str | None) -> bool:
        try:
            name = os.fsencode(os.path.expanduser("." if value is None else value))
        except ValueError:  # half a character, or one that no user's name has
            return False
        parts = name.split(b"/")
        return 0 < len(name) < 4096 and b"\0" not in name and name[:1] != b"~" and max(map(len, parts)) < 256

    return field(default=default, metadata={"fits": fits, "allowed": "a path that can exist on this machine", **marks})


def url(default: str | None, **marks: Any) -> Any:
    """A setting that names a file on a server or on this machine, as http, https or file."""

    def fits(value: str | None) -> bool:
        with contextlib.suppress(ValueError):  # of half an address in brackets, or a port that is none
            parts = urllib.parse.urlsplit("file:///" if value is None else value)
            place = parts.path if parts.scheme == "file" else parts.hostname and f"{parts.hostname}:{parts.port}"
            return parts.scheme in ("http", "https", "file") and bool(place) and not re.search(r"[^!-~]", value or "")
        return False

    return field(
        default=default, metadata={"fits": fits, "allowed": "null, or http://..., https://... or file:///...", **marks}
    )


def settings_of(
    section: Any, above: str = "", given: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[tuple[str, Any, dataclasses.Field[Any], Mapping[str, Any]]]:
    """Each setting of ``section`` with its dotted key, its field, and that field's marks and those of its sections."""
    for f in dataclasses.fields(section):
        key, value, marks = above + f.name, getattr(section, f.name), {**given, **f.metadata}
        if dataclasses.is_dataclass(value):
            yield from settings_of(value, f"{key}.", marks)
        else:
            yield key, value, f, marks
