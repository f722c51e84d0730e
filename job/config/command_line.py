"""A configuration file and a command line become a ``Config``; every mistake becomes one line that names the mend."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import io
import itertools
import re
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import jsonargparse
import yaml

from job.config.errors import UserError
from job.config.settings import REPOSITORY, Config, flat, to_dict

DEFAULT_CONFIG = REPOSITORY / "configs" / "simple_cnn.yaml"


class _StrictLoader(yaml.SafeLoader):
    """Safe loading in which a key given twice is an error and ``1e-3`` is a number, as in YAML 1.2."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
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
    except (yaml.YAMLError, RecursionError) as error:
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
    _check_options(argv)
    parser = _parser(description)
    # What the library would say goes through one door, ours: it prints nothing itself but help and the configuration.
    problems = io.StringIO()
    with contextlib.redirect_stderr(problems):
        return _checked(parser, lambda: parser.parse_args(argv))


def from_dict(settings: dict[str, Any], name: str) -> Config:
    """The Config that ``to_dict`` made ``settings`` of. Raises UserError, naming ``name``."""
    for key in flat(settings):
        _check_key(key, name)
    parser = _parser("")
    return _checked(parser, lambda: parser.parse_object(settings))


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


def _parser(description: str) -> jsonargparse.ArgumentParser:
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(exit_on_error=False, description=description, formatter_class=_Help)
    parser.add_argument("--config", action="config", help="YAML file of settings; a setting given after it wins")
    parser.add_class_arguments(Config, nested_key=None)
    return parser


def _check_options(argv: Sequence[str]) -> None:
    """Say which option is unknown and which one is nearest before the library says less."""
    words = iter(argv)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            if word != "-h":
                raise UserError(f"unexpected argument {word!r}", "settings are given as --key.sub value")
            continue
        if name not in ("config", "print_config", "help"):
            _check_key(name.removesuffix("+"), f"--{name}")
        if name == "config":
            path = Path(value if equals else next(words, ""))
            try:
                text = path.read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"--config {path}", f"cannot be read ({_reason(error)}); see configs/") from None
            settings = load_yaml(text, str(path))
            for key in flat(settings):
                _check_key(key, str(path))
            for section, content in settings.items():
                if not isinstance(content, dict):
                    raise UserError(f"{section}={content} in {path}", "must be a section of settings")
        elif not equals and name not in ("help", "print_config") and next(words, None) is None:
            raise UserError(f"--{name}", "needs a value")


def _check_key(key: str, where: str) -> None:
    known = [*flat(to_dict(Config())), *(f.name for f in dataclasses.fields(Config))]
    if key in known:
        return
    tails = {k.rpartition(".")[2]: k for k in known if "." in k}
    near = difflib.get_close_matches(key, known, 1, 0.6)
    near = near or [tails[t] for t in difflib.get_close_matches(key.rpartition(".")[2], list(tails), 1, 0.6)]
    hint = f"did you mean {near[0]}?" if near else "--help lists them all"
    raise UserError(f"unknown key {key}" + ("" if where == f"--{key}" else f" in {where}"), hint)


def _explained(message: str) -> UserError:
    """The library's complaint, which speaks of Python types, in terms of the setting."""
    match = re.search(r'Parser key "([\w.]+)"', message)
    got = re.findall(r"Got value: (.*)", message)
    if not match:
        return UserError(" ".join(message.split()), "--help lists all settings")
    key = match[1]
    owner: Any = Config
    for part in key.split("."):
        owner = typing.get_type_hints(owner).get(part) if dataclasses.is_dataclass(owner) else None
    allowed = f"must be {_kind(owner)}" if owner else "is of the wrong kind"
    return UserError(f"{key}={got[-1].strip()}" if got else key, allowed)


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


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
