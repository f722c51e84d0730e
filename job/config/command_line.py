"""A configuration file and a command line become a ``Config``; every mistake becomes one line that names the mend."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import functools
import io
import itertools
import os
import re
import stat
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import jsonargparse
import yaml

from job.config.errors import UserError
from job.config.plain import OLD_AUGMENT, flat, renewed, to_dict
from job.config.settings import REPOSITORY, Config
from job.config.yaml_text import Refused, StrictLoader, load_yaml

DEFAULT_CONFIG = REPOSITORY / "configs" / "simple_cnn.yaml"
LARGEST_FILE = 1 << 16
"""bytes of a configuration file; those that people write have a few thousand"""
LONGEST_VALUE = 4096
"""characters on the command line: as many as a path may have"""
LONGEST_SHOWN = 200
"""characters of a value in a message"""


def config_name(argv: Sequence[str]) -> str:
    """Name of the configuration that ``argv`` chooses, by which a run is called: its file's without the ending."""
    joined = [(word.partition("=")[0], word.partition("=")[2]) for word in argv if "=" in word]
    pairs = joined + list(itertools.pairwise(argv))
    return next((Path(value).stem for option, value in pairs if option == "--config"), DEFAULT_CONFIG.stem)


def parse(argv: Sequence[str], *, description: str) -> Config:
    """Defaults, then the file named by ``--config``, then ``--key.sub value``: a checked Config.

    Raises UserError for every mistake; ``--help`` and ``--print_config`` print and exit with status 0.
    """
    argv = list(argv)
    named = any(word == "--config" or word.startswith("--config=") for word in argv)
    if not named and DEFAULT_CONFIG.exists():  # an installed package has none: its defaults are the same
        argv = [f"--config={DEFAULT_CONFIG}", *argv]
    parts = _parts(argv)
    parser = _parser()
    parser.description = description

    def parsed() -> jsonargparse.Namespace:
        found = jsonargparse.Namespace()
        for part in parts:
            found = parser.parse_object(part, found) if isinstance(part, dict) else parser.parse_args(part, found)
        return found

    # What the library would say goes through one door, ours: it prints nothing itself but help and the configuration.
    with contextlib.redirect_stderr(io.StringIO()):
        return _checked(parser, parsed)


def from_dict(settings: dict[str, Any], name: str) -> Config:
    """The Config that ``to_dict`` made ``settings`` of. Raises UserError, naming ``name``."""
    _check_keys(settings, name)
    try:
        return _checked(_parser(), lambda: _parser().parse_object(renewed(settings)))
    except UserError as error:
        raise UserError(name, str(error)) from None


def _checked(parser: jsonargparse.ArgumentParser, parse: Callable[[], jsonargparse.Namespace]) -> Config:
    """The Config of what ``parse`` reads; the library's complaint is a UserError."""
    try:
        sections = parser.instantiate(parse())
    except jsonargparse.ArgumentError as error:
        raise _explained(str(error)) from None
    return Config(**{f.name: sections[f.name] for f in dataclasses.fields(Config)})


def take_options(argv: Sequence[str], *names: str) -> tuple[dict[str, str | None], list[str]]:
    """The values of a command's own ``--name value`` options, and what is left for ``parse``."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in names:
        parser.add_argument(f"--{name}")
    try:
        options, rest = parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise UserError(f"{error.argument_name}", "needs a value") from None
    return vars(options), rest


class _Help(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Types and defaults behind each setting, and the description as it is written."""


class Arguments(argparse.ArgumentParser):
    """The options of a command that has no configuration; a mistake is a UserError."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise UserError(message, "--help shows how it is used")


@functools.cache  # a third of a second, which a start that compares configurations would spend again for each
def _parser() -> jsonargparse.ArgumentParser:
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    usage = "%(prog)s [option ...] [--config FILE] [--key.sub value ...]"  # 50 settings would hide what this is
    parser = jsonargparse.ArgumentParser(exit_on_error=False, formatter_class=_Help, usage=usage)
    parser.add_argument("--config", action="config", help="YAML file of settings; a setting given after it wins")
    parser.add_class_arguments(Config, nested_key=None)
    for section in _known()[1]:  # as an option of its own it would be a file's name
        parser._option_string_actions[f"--{section}"].help = argparse.SUPPRESS
    return parser


@functools.cache
def _known() -> tuple[list[str], list[str]]:
    """Dotted keys of all settings, and of all sections."""
    keys = list(flat(to_dict(Config())))
    parts = (key.split(".") for key in keys)
    return keys, list(dict.fromkeys(".".join(part[:n]) for part in parts for n in range(1, len(part))))


def _parts(argv: Sequence[str]) -> list[dict[str, Any] | list[str]]:
    """``argv`` in its order: options, as words, and what stands in the files that ``--config`` names.

    Says which option is unknown and which one is nearest before the library says less.
    """
    words = iter(argv)
    parts: list[dict[str, Any] | list[str]] = []
    last = []
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") and word != "-h":
            raise UserError(f"unexpected argument {word!r}", "settings are given as --key.sub value")
        if word == "-h" or name in ("print_config", "help"):
            last.append(word)  # what is printed has all of it
            continue
        if name != "config":
            _check_key(name.removesuffix("+"), f"--{name}")
        following = value if equals else next(words, None)
        if following is None:
            raise UserError(f"--{name}", "needs a value")
        if name == "config":
            parts.append(renewed(_read(Path(following))))
            continue
        _check_value(name, following)
        old = name == "data.augment" and following in OLD_AUGMENT
        parts.append(renewed({"data": {"augment": following}}) if old else [f"--{name}={following}"])
    return [*parts, last]


def _check_value(name: str, text: str) -> None:
    """Say what the library would choke on. What is no YAML is text, and its business."""
    if name in _known()[1]:  # it would take the value for the name of a file
        raise UserError(f"--{name} is a section", f"give its settings one by one, as --{name}.key value")
    if len(text) > LONGEST_VALUE:
        raise UserError(f"--{name}", f"has more than {LONGEST_VALUE} characters")
    try:
        yaml.load(text, StrictLoader)  # noqa: S506, TID251 (the loader above is a SafeLoader)
    except Refused as error:
        raise UserError(f"--{name}={_shown(text)}", str(error.problem)) from None
    except (yaml.YAMLError, ValueError):
        pass


def _read(path: Path) -> dict[str, Any]:
    """The settings in the file ``path``, all of whose keys are known. Raises UserError for anything else."""
    mend = "name a file of settings, such as those in configs/"
    try:
        # Without waiting for the other end of a pipe.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"--config {path} is no regular file", mend)
            content = file.read(LARGEST_FILE + 1) or b""
        if len(content) > LARGEST_FILE:
            raise UserError(f"--config {path} has more than {LARGEST_FILE} bytes", mend)
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"--config {path} is no text in UTF-8", mend) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--config {path}", f"cannot be read ({reason}); see configs/") from None
    settings = load_yaml(text, str(path))
    _check_keys(settings, str(path))
    return settings


def _check_keys(settings: dict[str, Any], where: str) -> None:
    for key in (*flat(settings), *map(str, settings)):
        _check_key(key, where)
    for key, value in flat(settings).items():
        if key in _known()[1]:
            raise UserError(f"{key}={_shown(value)} in {where}", "must be a section of settings")


def _check_key(key: str, where: str) -> None:
    known = [key for keys in _known() for key in keys]
    if key in known:
        return
    tails = {k.rpartition(".")[2]: k for k in known if "." in k}
    near = difflib.get_close_matches(key, known, 1, 0.6)
    near = near or [tails[t] for t in difflib.get_close_matches(key.rpartition(".")[2], list(tails), 1, 0.6)]
    hint = f"did you mean {near[0]}?" if near else "--help lists them all"
    raise UserError(f"unknown key {_shown(key)}" + ("" if where == f"--{key}" else f" in {where}"), hint)


def _explained(message: str) -> UserError:
    """The library's complaint, which speaks of Python types, in terms of the setting."""
    match = re.search(r'Parser key "([\w.]+)"', message)
    got = re.findall(r"Got value: (.*)", message)
    if not match:
        return UserError(_shown(" ".join(message.split())), "--help lists all settings")
    key = match[1]
    owner: Any = Config
    for part in key.split("."):
        owner = typing.get_type_hints(owner).get(part) if dataclasses.is_dataclass(owner) else None
    allowed = f"must be {_kind(owner)}" if owner else "is of the wrong kind"
    return UserError(f"{key}={_shown(got[-1].strip())}" if got else key, allowed)


def _kind(hint: Any) -> str:
    if dataclasses.is_dataclass(hint):
        return "a section of settings"
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if typing.get_origin(hint) is list:
        return f"a list, each {_kind(arguments[0])}"
    if typing.get_origin(hint) is tuple:
        return f"a list of {len(arguments)}, each {_kind(arguments[0])}"
    if arguments:
        return " or ".join(map(_kind, arguments))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(hint, str(hint))


def _shown(value: Any) -> str:
    """A value as part of a line."""
    text = str(value)
    return text[:LONGEST_SHOWN] + "..." * (len(text) > LONGEST_SHOWN)
