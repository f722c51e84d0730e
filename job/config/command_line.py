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
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import jsonargparse
import yaml

from job.config.errors import UserError
from job.config.plain import OLD_AUGMENT, flat, renewed, to_dict
from job.config.settings import REPOSITORY, Config

DEFAULT_CONFIG = REPOSITORY / "configs" / "simple_cnn.yaml"
LARGEST_FILE = 1 << 16
"""bytes of a configuration file; those that people write have a few thousand"""
DEEPEST = 20
"""levels of nesting in a file or a value; settings have three"""
LONGEST_NUMBER = 100
"""characters; each such number is a float too"""
LONGEST_VALUE = 4096
"""characters on the command line: as many as a path may have"""
LONGEST_SHOWN = 200
"""characters of a value in a message"""


class _Refused(yaml.MarkedYAMLError):
    """What is YAML, and nobody writes it for this job."""


class _StrictLoader(yaml.SafeLoader):
    """Safe loading in which a key given twice is an error and ``1e-3`` is a number, as in YAML 1.2.

    Refuses what settings do not need: a thousand characters of aliases stand for more than any memory holds.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        for found, what in (
            (isinstance(event, yaml.AliasEvent), "aliases are not taken, write the value itself"),
            (getattr(event, "tag", None) is not None, "tags are not taken, write the value alone"),
            (self.depth == DEEPEST, "nested too deeply"),
        ):
            if found:
                raise _Refused(problem=what, problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        if node.tag.endswith((":int", ":float")) and len(node.value) > LONGEST_NUMBER:
            raise _Refused(problem="a number of too many digits", problem_mark=node.start_mark)
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [key for key, count in keys.items() if count > 1]:
            raise _Refused(problem=f"key {twice[0]!r} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def config_name(argv: Sequence[str]) -> str:
    """Name of the configuration that ``argv`` chooses, by which a run is called: its file's without the ending."""
    joined = [(word.partition("=")[0], word.partition("=")[2]) for word in argv if "=" in word]
    pairs = joined + list(itertools.pairwise(argv))
    return next((Path(value).stem for option, value in pairs if option == "--config"), DEFAULT_CONFIG.stem)


def load_yaml(text: str, name: str) -> dict[str, Any]:
    """The mapping that a YAML text holds. Raises UserError, with the line, for anything else."""
    try:
        content = yaml.load(text, _StrictLoader)  # noqa: S506, TID251 (the loader above is a SafeLoader)
    except (yaml.YAMLError, ValueError) as error:  # the latter for 2026-13-01
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{name}{where}", f"not valid YAML: {problem}") from None
    if not isinstance(content, dict):
        raise UserError(name, "must hold settings, such as `train: {epochs: 3}`")
    return content


def parse(argv: Sequence[str], *, description: str) -> Config:
    """Defaults, then the file named by ``--config``, then ``--key.sub value``: a checked Config.

    Raises UserError for every mistake; ``--help`` and ``--print_config`` print and exit with status 0.
    """
    argv = list(argv)
    if not any(word == "--config" or word.startswith("--config=") for word in argv):
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
    problems = io.StringIO()
    with contextlib.redirect_stderr(problems):
        return _checked(parser, parsed)


def from_dict(settings: dict[str, Any], name: str) -> Config:
    """The Config that ``to_dict`` made ``settings`` of. Raises UserError, naming ``name``."""
    for key in flat(settings):
        _check_key(key, name)
    parser = _parser()
    return _checked(parser, lambda: parser.parse_object(renewed(settings)))


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
    parser = jsonargparse.ArgumentParser(exit_on_error=False, formatter_class=_Help)
    parser.add_argument("--config", action="config", help="YAML file of settings; a setting given after it wins")
    parser.add_class_arguments(Config, nested_key=None)
    for section in dataclasses.fields(Config):  # as an option of its own it would be a file's name
        parser._option_string_actions[f"--{section.name}"].help = argparse.SUPPRESS
    return parser


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
    if "." not in name:  # it would take the value for the name of a file
        raise UserError(f"--{name} is a section", f"give its settings one by one, as --{name}.key value")
    if len(text) > LONGEST_VALUE:
        raise UserError(f"--{name}", f"has more than {LONGEST_VALUE} characters")
    try:
        yaml.load(text, _StrictLoader)  # noqa: S506, TID251 (the loader above is a SafeLoader)
    except _Refused as error:
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
        raise UserError(f"--config {path}", f"cannot be read ({_reason(error)}); see configs/") from None
    settings = load_yaml(text, str(path))
    for key in flat(settings):
        _check_key(key, str(path))
    for section, values in settings.items():
        if not isinstance(values, dict):
            raise UserError(f"{section}={_shown(values)} in {path}", "must be a section of settings")
    return settings


def _check_key(key: str, where: str) -> None:
    known = [*flat(to_dict(Config())), *(f.name for f in dataclasses.fields(Config))]
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
    """A value as part of a line that a terminal shows."""
    text = str(value)
    printable = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:LONGEST_SHOWN])
    return printable + "..." * (len(text) > LONGEST_SHOWN)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
