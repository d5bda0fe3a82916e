"""What a column is, by its type and by its name, whatever role it plays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import datasets

from adaptrain.errors import listed

_PLACE = re.compile(
    r"(id|idx|index|uuid|uid|guid|qid|pid|key|hash|url|uri|link|file|filename|file_?name|path|split|fold|lang|language|"
    r"date|time|timestamp|created_at|author|user|username|name|__index_level_\d+__|unnamed: ?\d+)|"
    r".*[_-](id|idx|uid|url|index)",
    re.IGNORECASE,
)
_PLACE_CASED = re.compile(r".*[a-z](Id|ID|Url|URL|Idx)")

_MAPPINGS = {
    "answers": {"text", "answer_start"},
    "samples": {"array", "sampling_rate"},
    "bytes and path": {"bytes", "path"},
}
"""Types of mappings → what must be in them."""


def kind_of(feature: Any) -> str:
    """A column's type in one of the words of `columns.KINDS`, or what `datasets` calls it."""
    if isinstance(feature, datasets.ClassLabel):
        return "class"
    if isinstance(feature, datasets.Image):
        return "image"
    if isinstance(feature, datasets.Audio):
        return "audio"
    if isinstance(feature, datasets.Value):
        kind = str(feature.dtype)
        if "string" in kind:
            return "text"
        if kind.startswith(("int", "uint")):
            return "integer"
        return {"bool": "true or false", "null": "empty"}.get(kind, "number" if kind.startswith("float") else kind)
    if isinstance(feature, datasets.List | datasets.LargeList):
        return f"list of {kind_of(feature.feature)}"
    if isinstance(feature, Mapping) and (known := next((k for k, v in _MAPPINGS.items() if v <= set(feature)), None)):
        return known
    if isinstance(feature, Mapping):
        return "named texts" if {"text", "label"} == set(feature) else f"mapping of {listed(feature)}"
    kind = type(feature).__name__.lower()
    return "mixed" if kind == "json" else kind  # some values are text, others not: the others become bad rows


def feature_of(column: str, features: Mapping[str, Any]) -> Any:
    """What `datasets` says of a column; or of what a column of mappings has under a name, behind a dot
    (`translation.en`). None where there is neither."""
    if column in features:
        return features[column]
    first, dot, rest = column.partition(".")
    if not dot or first not in features:
        return None
    if kind_of(features[first]) == "mixed":  # some values are mappings: the others become bad rows
        return features[first]
    inside = _inside(features[first])
    return feature_of(rest, inside) if inside is not None else None


def names_of(features: Mapping[str, Any]) -> list[str]:
    """Columns, and what is in columns of mappings."""
    found = []
    for name, feature in features.items():
        inside = _inside(feature)
        found += [name] if inside is None else [f"{name}.{each}" for each in names_of(inside)]
    return found


def _inside(feature: Any) -> Mapping[str, Any] | None:
    if isinstance(feature, datasets.Translation):
        return {language: datasets.Value("string") for language in feature.languages}
    return feature if isinstance(feature, Mapping) and kind_of(feature) != "answers" else None


def constant_columns(table: datasets.Dataset) -> tuple[str, ...]:
    """The columns of texts, numbers and classes that have one value in every row. Two equal rows say little: a table of
    two rows has none."""
    names = [name for name, feature in table.features.items() if isinstance(feature, datasets.Value)]
    names += [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    first: Mapping[str, Any] = table.select_columns(names)[0] if names and len(table) > 2 else {}
    start, size = 1, 16  # most columns are told by the first rows
    while first and names and start < len(table):
        block = table.select_columns(names)[start : start + size]
        names = [name for name in names if all(value == first[name] for value in block[name])]
        start, size = start + size, 1000
    return tuple(names) if first else ()


def root_of(column: str, features: Mapping[str, Any]) -> str:
    """The column that a column, or what lies in it, is."""
    return column if column in features else column.partition(".")[0]


def is_place(name: str) -> bool:
    """Whether a column numbers or places a row, by its name."""
    return _PLACE.fullmatch(name) is not None or _PLACE_CASED.fullmatch(name) is not None
