"""A section of a merged tree against its dataclass: unknown and misplaced keys, wrong types, impossible values.

Everything is looked at before anything is refused.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from adaptrain.config.documents import Leaf, Tree, first_origin, plain
from adaptrain.config.keys import legal_keys, named, owners, section_in, similar
from adaptrain.config.report import BAD, Report, fitted, origin_of
from adaptrain.config.schema import TaskConfig
from adaptrain.errors import ConfigError, listed, nearest
from adaptrain.synonyms import translation


def section(tree: Tree, kind: type, prefix: str, report: Report) -> dict[str, Any]:
    """The converted values of one dataclass; sections inside it are built already."""
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, node in tree.items():
        dotted = prefix + key
        if dotted in report.silent or dotted in report.bad:
            report.bad.add(dotted)  # has been refused already
        elif key not in hints:
            report.add(dotted, first_origin(node), _unknown(dotted, kind))
        elif dotted == "adapter":
            values[key] = plain(node)
        elif dotted == "architecture":
            values[key] = _architecture(node, report)
        elif (inner := section_in(hints[key])) is not None:
            if isinstance(node, dict):
                made = built(inner, section(node, inner, f"{dotted}.", report), node, f"{dotted}.", report)
                if made is None:
                    report.bad.add(dotted)
                else:
                    values[key] = made
            elif node.value is not None:
                keys = listed(f.name for f in dataclasses.fields(typing.cast(Any, inner)))
                report.add(dotted, node.origin, f"is one value; it must be a mapping with the keys: {keys}")
        elif (value := fitted(node, hints[key], dotted, report)) is not BAD:
            values[key] = value
    if prefix == "":
        built(kind, values, tree, "", report)
    return values


def built(kind: type, values: dict[str, Any], tree: Tree, prefix: str, report: Report) -> Any:
    """The dataclass, with problems of its values reported; None where a key that is needed is missing or bad."""
    missing = [
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in values
    ]
    for name in missing:
        if prefix + name not in report.bad | report.silent:
            what = f"choose one by {name}=NAME" if not prefix else "set it in the YAML file, or on the command line"
            report.add(prefix + name, first_origin(tree), f"is missing; {what}")
    if missing:
        return None
    made = kind(**values)
    for name, sentence in made.problems() if hasattr(made, "problems") else ():
        if prefix + name not in report.bad:
            report.add(prefix + name, origin_of(tree, name), sentence)
    return made


def _unknown(dotted: str, kind: type) -> str:
    """Why a key is refused: it belongs elsewhere, or is misspelt, or does not exist."""
    section, _, key = dotted.rpartition(".")
    known = [f.name for f in dataclasses.fields(typing.cast(Any, kind))]
    where = f"{section} has no key '{key}'" if section else f"there is no key '{key}'"
    legal = f"The keys {f'of {section}' if section else 'at the top'} are: {listed(known)}"
    near_by = [other for other in legal_keys(kind, f"{section}." if section else "") if other.endswith(f".{key}")]
    in_methods = [f"adapter.{key}"] if not section and owners(key) else []
    if places := [*(near_by or named(key)), *in_methods]:
        return f"{where}; it belongs to {' or '.join(places)}. {legal}"
    if told := translation(key, known, section):
        return where + told
    if near := nearest(key, known):
        return f"{where}{near} {legal}"
    if section and owners(key):
        return f"{where}; it belongs to adapter.{key}. {legal}"
    meant = similar(key, (other.rpartition(".")[2] for other in legal_keys()))
    return f"{where}{f', did you mean {named(meant)[0]!r}?' if meant else '.'} {legal}"


def metrics(task: TaskConfig | None, node: Tree | Leaf | None, prefix: str, report: Report) -> None:
    """Report metrics that do not exist, or not for this shape of task."""
    if task is None or {f"{prefix}.type", f"{prefix}.labels"} & report.bad:
        return
    from adaptrain.evaluation.metrics import check_metrics

    for key, names in (("metric", (task.metric,)), ("extra_metrics", task.extra_metrics)):
        if f"{prefix}.{key}" in report.bad:
            continue
        try:
            check_metrics(task.type, len(task.labels), names)
        except ConfigError as error:
            origin = origin_of(node, key) if isinstance(node, dict) else None
            for sentence in error.problems:
                report.add(f"{prefix}.{key}", origin, sentence[0].lower() + sentence[1:])


def _architecture(node: Tree | Leaf, report: Report) -> str | dict[str, Any] | None:
    """A model type, or what a file or the section itself says: the run's folder then needs no other file."""
    value = plain(node)
    if value is None:
        return None
    from adaptrain.architectures import written  # late: the tables are many

    try:
        if isinstance(value, str) and written.names_file(value):
            value, place = written.read_file(value), value
            written.check_written(value, place)
        written.read_architecture(value)
    except ConfigError as error:
        for sentence in error.problems:
            told = sentence.removeprefix("architecture: ")
            report.add("architecture", first_origin(node), told[0].lower() + told[1:])
    except AttributeError:
        report.add("architecture", first_origin(node), f"is {value!r}; give a model type or a YAML file")
    return value
