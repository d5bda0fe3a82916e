"""A composed run as YAML, with the origin of every key beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from adaptrain.config.compose import Run


def show_lines(run: Run) -> Iterator[tuple[str, str]]:
    """Each line of the YAML, and where its key was set; the second is empty for the name of a section."""
    yield f"recipe: {run.config.recipe}", _recipe_origin(run)
    values = run.config.resolved()
    del values["recipe"]
    yield from _lines(values, "", run)


def annotated_yaml(run: Run) -> str:
    """The same as one text: YAML whose comments are the origins, and at its end the run's notes."""
    lines = list(show_lines(run))
    width = max(len(text) for text, origin in lines if origin and len(text) < 60)
    keys = "".join(f"{text:<{width}}  # {origin}\n" if origin else f"{text}\n" for text, origin in lines)
    return keys + "".join(f"# note: {note}\n" for note in run.notes)


def _recipe_origin(run: Run) -> str:
    chosen = [f"{group}={name}" for group, name in run.choices.items() if name is not None]
    return ", ".join(chosen)


def _lines(values: Mapping[str, Any], prefix: str, run: Run) -> Iterator[tuple[str, str]]:
    indent = "  " * prefix.count(".")
    for key, value in values.items():
        dotted = prefix + key
        if isinstance(value, Mapping) and value:
            yield f"{indent}{_word(key)}:", ""
            yield from _lines(value, f"{dotted}.", run)
        elif isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
            yield f"{indent}{_word(key)}:", ""
            for index, item in enumerate(value):
                (text, origin), *rest = _lines(item, f"{dotted}.{index}.", run)
                yield f"{indent}  - {text.lstrip()}", origin
                yield from rest
        else:
            yield f"{indent}{_word(key)}: {_word(value)}", str(run.origin(dotted))


def _word(value: Any) -> str:
    """One value as YAML, on one line."""
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9)
    return text.removesuffix("...\n").strip()
