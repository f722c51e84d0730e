"""Settings as plain mappings: written to files, compared, and given dotted keys."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import yaml

from job.config.bounds import settings_of
from job.config.settings import MAY_CHANGE, NO_RECIPE, Config


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested mappings, as YAML and JSON hold them."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def to_yaml(config: Config) -> str:
    """The whole configuration as a file that ``--config`` reads."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def differences(old: Config, new: Config) -> list[str]:
    """``key: old -> new`` for each setting that a run may not be continued with another value of."""
    before, after = _without(MAY_CHANGE, old), _without(MAY_CHANGE, new)
    return [f"{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key]]


def recipe(config: Config) -> dict[str, Any]:
    """The settings that repetitions of one experiment share, with dotted keys."""
    return _without(NO_RECIPE, config)


def _without(mark: dict[str, bool], config: Config) -> dict[str, Any]:
    """The settings without ``mark``, with dotted keys."""
    keys = {key for key, _, _, marks in settings_of(config) if not mark.items() <= marks.items()}
    return {key: value for key, value in flat(to_dict(config)).items() if key in keys}


OLD_AUGMENT = {"none": [], "flip": ["flip"], "flip_crop": ["flip", "crop"]}
"""what the one word meant that data.augment was before it was a list"""


def renewed(settings: Any) -> Any:
    """Nested ``settings`` that an earlier version wrote, or a person wrote for it, in today's words."""
    data = settings.get("data") if isinstance(settings, dict) else None
    if not isinstance(data, dict) or not isinstance(old := data.get("augment"), str) or old not in OLD_AUGMENT:
        return settings
    return settings | {"data": data | {"augment": OLD_AUGMENT[old]}}


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(settings, dict) or (not settings and not prefix):
        return {prefix: settings} if prefix else {}
    keys: dict[str, Any] = {}
    for key, value in settings.items():
        keys |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return keys
