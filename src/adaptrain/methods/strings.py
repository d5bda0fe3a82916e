"""Config strings: `lora`, `lora[r=16]`, `seq_bn[reduction_factor=8,non_linearity="gelu"]`, `lora|prefix_tuning`."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptrain.errors import ConfigError, unknown
from adaptrain.files import read_json
from adaptrain.methods.base import MethodConfig, config_from_dict, methods, presets
from adaptrain.methods.union import ConfigUnion

_PATTERN = re.compile(r"^\s*(?P<name>[\w+]+)\s*(?:\[(?P<options>.*)\])?\s*$", re.DOTALL)

OLD_NAMES = {
    "pfeiffer": "seq_bn",
    "houlsby": "double_seq_bn",
    "parallel": "par_bn",
    "scaled_parallel": "scaled_par_bn",
    "pfeiffer+inv": "seq_bn_inv",
    "houlsby+inv": "double_seq_bn_inv",
}
"""Preset names of adapter-transformers v3."""


def read_config(config: MethodConfig | str | Mapping[str, Any] | None) -> MethodConfig:
    """Whatever `add_adapter` is given, as a config; `seq_bn` for None. A string may also be the path of a JSON file, of
    a config or of a saved adapter (`adapter_config.json`).

    Raises:
        ConfigError: an unknown name or key, or an impossible value.
        CheckpointError: the JSON file cannot be read.
    """
    if config is None:
        return presets()["seq_bn"]()
    if isinstance(config, MethodConfig):
        return config
    if isinstance(config, str) and config.endswith(".json"):
        values = read_json(Path(config))
        config = values["config"] if isinstance(values.get("config"), Mapping) else values
    if isinstance(config, Mapping):
        if "architecture" in config and "method" not in config:
            raise ConfigError(
                "'architecture' is AdapterHub's key: write `method:` with one of our methods, or load a folder of that "
                "library with load_adapter"
            )
        return config_from_dict(config)
    if not isinstance(config, str):
        raise ConfigError(f"{config!r} is not a config: give a config, a config string or a mapping with `method`")
    return config_from_string(config)


def config_from_string(text: str) -> MethodConfig:
    """Read a config string.

    Raises:
        ConfigError: the grammar, the preset's name, a key or a value is wrong.
    """
    parts = _parts(text)
    if len(parts) > 1:
        return ConfigUnion(*map(config_from_string, parts))
    match = _PATTERN.match(text)
    if match is None:
        raise ConfigError(f"{text!r} is not a config string; write name or name[key=value, …]")
    name = OLD_NAMES.get(match["name"], match["name"])
    known = presets()
    if name not in known:
        raise ConfigError(unknown("preset", name, sorted(known), "The presets are"))
    config, options = known[name](), _options(match["options"], text)
    if options and isinstance(config, ConfigUnion):
        raise ConfigError(f"'{name}' takes no options; write its members instead, joined by '|', each with its own")
    return config.replace(**options)


def _parts(text: str) -> list[str]:
    """What `|` separates; not inside of brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[]":
            depth += 1 if letter == "[" else -1
        elif letter == "|" and depth == 0:
            parts.append("")
            continue
        parts[-1] += letter
    return parts


def _options(text: str | None, whole: str) -> dict[str, Any]:
    if not text or not text.strip():
        return {}
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError(text)
        pairs = {str(option.arg): ast.literal_eval(option.value) for option in call.keywords}
    except (SyntaxError, ValueError):
        raise ConfigError(f"Cannot read the options in {whole!r}; write key=value, …, with words in quotes") from None
    return pairs


def method_of(name: str) -> str:
    """The method that a preset or method name stands for."""
    return name if name in methods() else config_from_string(name).method
