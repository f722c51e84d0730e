"""What was read from a file is of the kind that it should be."""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, Union

MOST = 2**53
"""whole numbers beyond it are no floats, and count nothing that there is"""

_PLAIN = {
    int: lambda value: type(value) is int and 0 <= value <= MOST,  # all of them count something
    float: lambda value: type(value) in (int, float) and abs(value) < 1e100,  # NaN is not
    str: lambda value: type(value) is str,
    bool: lambda value: type(value) is bool,
    NoneType: lambda value: value is None,
    dict: lambda value: type(value) is dict,
}


def require(value: Any, kind: Any, name: str = "its content") -> None:
    """Raise ValueError, such as "classes[3].images is 'x'", unless ``value``, read from a file, is of ``kind``.

    ``kind`` is a type as ``job.runs.records`` has them, or a dataclass of settings, of which nothing need be there.
    """
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    fits = type(value) is (list if origin in (list, tuple) else dict)
    if origin is Annotated:
        require(value, inner[0], name)
        fits = inner[1] <= (len(value) if type(value) is list else value) <= inner[2]
    elif origin in (Union, UnionType, NotRequired):
        fits = any(_is(value, one) for one in inner)
    elif origin is Literal:
        fits = value in inner
    elif origin in (list, tuple) and fits:
        fits = origin is list or len(value) == len(inner)
        if inner[0] not in _PLAIN or not all(map(_PLAIN[inner[0]], value)):  # the long ones are plain
            for i, one in enumerate(value):
                require(one, inner[0], f"{name}[{i}]")
    elif fits and (typing.is_typeddict(origin) or dataclasses.is_dataclass(origin)):
        for key, of in _keys(kind).items():
            inside = key if name == "its content" else f"{name}.{key}"
            if key in value:
                require(value[key], of, inside)
            elif getattr(kind, "__total__", False) and typing.get_origin(of) is not NotRequired:
                raise ValueError(f"{inside} is missing")
    elif origin in _PLAIN:
        fits = _PLAIN[origin](value)
    if not fits:
        raise ValueError(f"{name} is {str(value)[:40]!r}")


def _is(value: Any, kind: Any) -> bool:
    with contextlib.suppress(ValueError):
        require(value, kind)
        return True
    return False


@cache
def _keys(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)
