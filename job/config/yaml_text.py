"""YAML as people write settings in it, and nothing else that YAML can be."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import yaml

from job.config.errors import UserError

DEEPEST = 20
"""levels of nesting in a file or a value; settings have three"""
LONGEST_NUMBER = 100
"""characters; each such number is a float too"""


class Refused(yaml.MarkedYAMLError):
    """What is YAML, and nobody writes it for this job."""


class StrictLoader(yaml.SafeLoader):
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
                raise Refused(problem=what, problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        if node.tag.endswith((":int", ":float")) and len(node.value) > LONGEST_NUMBER:
            raise Refused(problem="a number of too many digits", problem_mark=node.start_mark)
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [key for key, count in keys.items() if count > 1]:
            raise Refused(problem=f"key {twice[0]!r} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_yaml(text: str, name: str) -> dict[str, Any]:
    """The mapping that a YAML text holds. Raises UserError, with the line, for anything else."""
    try:
        content = yaml.load(text, StrictLoader)  # noqa: S506, TID251 (the loader above is a SafeLoader)
    except (yaml.YAMLError, ValueError) as error:  # the latter for 2026-13-01
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{name}{where}", f"not valid YAML: {problem}") from None
    if not isinstance(content, dict):
        raise UserError(name, "must hold settings, such as `train: {epochs: 3}`")
    return content
