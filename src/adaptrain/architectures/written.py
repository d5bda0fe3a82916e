"""Tables that a user writes, in YAML or as a mapping: whole ones, or a known one with some lines changed.

    like: llama                     # start from this model type's table; leave it out to write a whole one
    stacks:
      decoder:
        layers: model.blocks
        sublayers:
          mlp: {output: mlp, residual: norm_2}
        projections:
          mlp.gate: null            # takes a line away

The keys are the fields of the dataclasses in `base`. A projection or an attention that is only a path may be written as
one word.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from adaptrain.architectures.base import (
    Architecture,
    Attention,
    Embeddings,
    Projection,
    Prompt,
    Stack,
    Sublayer,
    Table,
    architectures,
)
from adaptrain.errors import ConfigError, listed, unknown

STACKS = ("encoder", "decoder", "text", "vision")
PLACES = ("attention", "cross_attention", "mlp")
_PROJECTION = re.compile(r"((cross_)?attention\.(query|key|value|output)|mlp\.(up|gate|down))")
_ROWS = {"projections": Projection, "sublayers": Sublayer, "attentions": Attention}
_PARTS = {"embeddings": Embeddings, "prompt": Prompt}


def read_architecture(value: str | Path | Mapping[str, Any] | Architecture) -> Table:
    """A table from what a user gives: a model type, a YAML file, its content, or an `Architecture`.

    Raises:
        ConfigError: the file cannot be read, or what it says is no table; every mistake at once.
    """
    if isinstance(value, Architecture):
        return lambda config: value
    if isinstance(value, Mapping):
        return _table(value, "architecture")
    if value in architectures():
        return architectures()[str(value)]
    if not names_file(value):
        known = [*sorted(architectures()), "or a YAML file (./my_model.yaml)"]
        raise ConfigError(unknown("architecture", value, known, "Give one of"))
    return _table(read_file(value), str(value))


def names_file(value: str | Path) -> bool:
    """Whether a value means a file rather than a model type."""
    return isinstance(value, Path) or value.endswith((".yaml", ".yml")) or "/" in value


def read_file(path: str | Path) -> dict[str, Any]:
    """The content of a YAML file.

    Raises:
        ConfigError: there is none, it is not YAML, or not a mapping.
    """
    file = Path(path).expanduser()
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The architecture {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"The architecture {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"The architecture {path} holds no keys; it needs 'stacks', and perhaps 'like'")
    return values


def check_written(values: Mapping[str, Any], where: str) -> None:
    """Refuse a mapping that is no table.

    Raises:
        ConfigError: every mistake at once.
    """
    if problems := list(_problems(values)):
        raise ConfigError([f"{where}: {problem}" for problem in problems])


def _table(values: Mapping[str, Any], where: str) -> Table:
    check_written(values, where)

    def table(config: Any) -> Architecture:
        like = values.get("like")
        start = None if like is None else _like(like, config, where)
        known = {} if start is None else {stack.name: stack for stack in start.stacks}
        stacks = [_stack(name, rows or {}, known.get(name), where) for name, rows in values.get("stacks", {}).items()]
        made = {**known, **{stack.name: stack for stack in stacks}}
        pooling = values.get("pooling") or ("first" if start is None else start.pooling)
        return Architecture(str(values.get("name") or like or config.model_type), tuple(made.values()), pooling)

    return table


def _like(like: str, config: Any, where: str) -> Architecture:
    try:
        return architectures()[like](config)
    except AttributeError as error:
        raise ConfigError(f"{where}: this {config.model_type} is not like {like}: {error}") from None


def _stack(name: str, rows: Mapping[str, Any], known: Stack | None, where: str) -> Stack:
    values: dict[str, Any] = (
        {} if known is None else {f.name: getattr(known, f.name) for f in dataclasses.fields(known)}
    )
    values["name"] = name
    for key, row in rows.items():
        if key in _ROWS:
            changed = {place: None if each is None else _row(_ROWS[key], each) for place, each in (row or {}).items()}
            merged = {**values.get(key, {}), **changed}
            values[key] = {place: each for place, each in merged.items() if each is not None}
        elif key in _PARTS:
            values[key] = _row(_PARTS[key], row or {}) if row is not None or key == "embeddings" else None
        else:
            values[key] = row
    values.setdefault("causal", name == "decoder")
    if problems := list(_incomplete(values)):
        raise ConfigError([f"{where}: stacks.{name} {problem}" for problem in problems])
    return Stack(**values)


def _row(kind: type, value: Any) -> Any:
    return kind(path=value) if isinstance(value, str) else kind(**value)


def _incomplete(values: Mapping[str, Any]) -> Iterator[str]:
    if "layers" not in values:
        yield "needs 'layers', the path of the list of its layers"
    for key in _ROWS:
        if not values.get(key):
            values[key] = {}  # type: ignore[index]
    for attention in {"attention", *values["attentions"]}:
        roles = ("query", "key", "value", "output") if attention in values["attentions"] else ("output",)
        for role in roles:
            if f"{attention}.{role}" not in values["projections"]:
                yield f"needs the projection '{attention}.{role}'"


def _problems(values: Mapping[str, Any]) -> Iterator[str]:
    yield from _keys(values, ("name", "like", "pooling", "stacks"), "")
    if values.get("like") is not None and values["like"] not in architectures():
        yield f"like: {unknown('model type', values['like'], sorted(architectures()), 'The model types are')}"
    if values.get("pooling") not in (None, "first", "last"):
        yield f"pooling is {values['pooling']!r}; it must be first or last"
    stacks = values.get("stacks")
    if not isinstance(stacks, Mapping) or not stacks:
        if values.get("like") is None or stacks:
            yield "stacks is missing: a mapping of encoder, decoder, text or vision to a stack"
        return
    yield from _keys(stacks, STACKS, "stacks")
    fields = [f.name for f in dataclasses.fields(Stack) if f.name != "name"]
    for name, rows in stacks.items():
        if name in STACKS:
            yield from _mapping(rows, fields, Stack, f"stacks.{name}")


def _mapping(rows: Any, fields: list[str], kind: type, place: str) -> Iterator[str]:
    """Unknown keys and values of the wrong type in what becomes one dataclass."""
    if not isinstance(rows, Mapping):
        yield f"{place} is {rows!r}; it must be a mapping with the keys: {listed(fields)}"
        return
    yield from _keys(rows, fields, place)
    hints = typing.get_type_hints(kind)
    for key, value in rows.items():
        if key in _ROWS and kind is Stack:
            yield from _rows(value, key, f"{place}.{key}")
        elif key in _PARTS and kind is Stack:
            if value is not None:
                inner = [f.name for f in dataclasses.fields(_PARTS[key])]
                yield from _mapping(value, inner, _PARTS[key], f"{place}.{key}")
        elif key in fields and not _fits(value, hints[key]):
            yield f"{place}.{key} is {value!r}, which is not {_words(hints[key])}"


def _rows(rows: Any, key: str, place: str) -> Iterator[str]:
    kind = _ROWS[key]
    fields = [f.name for f in dataclasses.fields(kind)]
    required = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
    if not isinstance(rows, Mapping):
        yield f"{place} is {rows!r}; it must be a mapping"
        return
    for name, row in rows.items():
        if kind is Projection and not _PROJECTION.fullmatch(str(name)):
            known = [f"{a}.{r}" for a in PLACES[:2] for r in ("query", "key", "value", "output")]
            known += ["mlp.up", "mlp.gate", "mlp.down"]
            yield f"{place}: {unknown('projection', name, known, 'The projections are')}"
        elif kind is not Projection and name not in (PLACES if kind is Sublayer else PLACES[:2]):
            yield f"{place}: {unknown('place', name, PLACES if kind is Sublayer else PLACES[:2], 'The places are')}"
        elif row is None or (isinstance(row, str) and kind is not Sublayer):
            continue
        else:
            yield from _mapping(row, fields, kind, f"{place}.{name}")
            lacking = [each for each in required if isinstance(row, Mapping) and each not in row]
            yield from (f"{place}.{name} needs '{each}'" for each in lacking)


def _keys(values: Mapping[str, Any], known: typing.Sequence[str], place: str) -> Iterator[str]:
    for key in values:
        if key not in known:
            where = f"{place}: " if place else ""
            yield where + unknown("key", key, known, "The keys are")


def _fits(value: Any, hint: Any) -> bool:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return value in arguments
    if arguments:
        return any(_fits(value, argument) for argument in arguments)
    return value is None if hint is type(None) else type(value) is hint


def _words(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {listed(typing.get_args(hint))}"
    if typing.get_args(hint):
        return " or ".join(_words(argument) for argument in typing.get_args(hint))
    return {str: "a word", int: "a whole number", bool: "true or false"}.get(hint, "null")
