"""The `adapter:` and `fusion:` sections against the config classes of their methods."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptrain.config.documents import Items, Leaf, Tree, first_origin, plain
from adaptrain.config.keys import named, owners
from adaptrain.config.report import BAD, Report, fitted, origin_of
from adaptrain.config.values import convert
from adaptrain.errors import AdaptrainError, ConfigError, listed, nearest
from adaptrain.hints import shown
from adaptrain.synonyms import translation

if TYPE_CHECKING:
    from adaptrain.methods import MethodConfig

_MEMBERS = "configs"
"""The key of a union that holds its members, each a section of its own."""


def check_adapter(node: Tree | Leaf | None, dotted: str, report: Report) -> dict[str, Any] | None:
    """The section, complete: the method's own defaults stand in it too, so that equal runs are equal text.

    Args:
        dotted: where it stands, `adapter` or `adapters.NAME.adapter`.

    Returns:
        None where it has problems; they are in the report.
    """
    if dotted in report.silent or node is None:
        return None
    if isinstance(node, Leaf):
        report.add(dotted, node.origin, "is one value; it must be a mapping with `method`, or the name of an adapter")
        return None
    return _check(node, dotted, report)


def check_fusion(node: Tree | Leaf | None, report: Report) -> dict[str, Any] | None:
    """The `fusion:` section, complete: a preset, or keys over those of `dynamic`, which null is too.

    Returns:
        None where it has problems; they are in the report.
    """
    from adaptrain.methods.fusion import FUSIONS, AdapterFusionConfig, read_fusion  # late: it imports torch

    if isinstance(node, dict):
        found = _complete(node, AdapterFusionConfig, "fusion", report)
    elif node is None or node.value in (None, *FUSIONS):
        found = read_fusion(None if node is None else node.value).to_dict()
    else:
        near = nearest(str(node.value), FUSIONS) or "."
        sentence = f"is {shown(node.value)}{near} It must be one of {listed(FUSIONS)}, or a mapping"
        report.add("fusion", node.origin, sentence)
        return None
    return None if found is None else {key: _lists(value) for key, value in found.items() if key != "method"}


def _check(node: Tree, prefix: str, report: Report) -> dict[str, Any] | None:
    """One config: the section itself, or a member of a union."""
    method = _method(node, prefix, report)
    return None if method is None else _complete(node, method, prefix, report)


def _complete(node: Tree, method: type[MethodConfig], prefix: str, report: Report) -> dict[str, Any] | None:
    """The keys of one config class."""
    known = typing.get_type_hints(method)
    hints = {key: known[key] for key in method.fields()}
    before = len(report.problems)
    values = _values(node, method, hints, prefix, report)
    needed = [key for key, field in method.fields().items() if field.default is dataclasses.MISSING]
    missing = [key for key in needed if key not in values]
    for key in missing:
        if f"{prefix}.{key}" not in report.bad:
            report.add(f"{prefix}.{key}", origin_of(node, "method"), f"is missing; method {method.method} needs it")
    if missing:
        return None
    try:
        complete = method.from_dict(values).to_dict()
    except AdaptrainError as error:
        _impossible(error, node, method, hints, prefix, report)
        return None
    if len(report.problems) > before:
        return None
    return {
        key: _lists(convert(value, hints[key])) if key in hints and key != _MEMBERS else value
        for key, value in complete.items()
    }


def _members(node: Tree | Leaf, dotted: str, report: Report) -> Any:
    """A union's configs, each checked as the section itself is."""
    if not isinstance(node, Items):
        origin = first_origin(node)
        report.add(dotted, origin, "is not a list of mappings; write one `- method: NAME` for each member")
        return BAD
    found = [_check(member, f"{dotted}.{index}", report) for index, member in node.items() if isinstance(member, dict)]
    if None in found:
        report.bad.add(dotted)
        return BAD
    return found


def _method(node: Tree, prefix: str, report: Report) -> type[MethodConfig] | None:
    from adaptrain.methods import config_class, methods  # late: it imports torch

    name = plain(node["method"]) if "method" in node else None
    try:
        return config_class(str(name))
    except ConfigError:
        said = f"is '{name}'{nearest(str(name), methods())}" if name is not None else "is missing"
        origin = origin_of(node, "method") or first_origin(node)
        report.add(f"{prefix}.method", origin, f"{said}; the methods are: {listed(sorted(methods()))}")
        return None


def _values(
    node: Tree, method: type[MethodConfig], hints: Mapping[str, Any], prefix: str, report: Report
) -> dict[str, Any]:
    """The keys that are right; the others are reported."""
    values = {}
    for key, value_node in node.items():
        dotted = f"{prefix}.{key}"
        if key == "method" or dotted in report.bad:
            continue
        if key not in hints:
            report.add(dotted, first_origin(value_node), _unknown(key, method.method, hints, prefix))
        elif key == _MEMBERS:
            if (members := _members(value_node, dotted, report)) is not BAD:
                values[key] = members
        elif (value := fitted(value_node, hints[key], dotted, report)) is not BAD:
            values[key] = value
    return values


def _impossible(
    error: AdaptrainError,
    node: Tree,
    method: type[MethodConfig],
    hints: Mapping[str, Any],
    prefix: str,
    report: Report,
) -> None:
    """Report what the config class refuses. Its sentences begin with the class, and mostly the key."""
    for problem in getattr(error, "problems", [str(error)]):
        sentence = problem.removeprefix(f"{method.__name__}: ")
        key = sentence.split(" ", 1)[0].rstrip(",")
        if key not in hints:
            report.add(prefix, origin_of(node, "method"), sentence)
        elif f"{prefix}.{key}" not in report.bad:
            report.add(f"{prefix}.{key}", origin_of(node, key), sentence.removeprefix(f"{key} "))


def _unknown(key: str, method: str, hints: Mapping[str, Any], section: str) -> str:
    """Why a key is refused: another method's, another section's, another tool's, misspelt, or unknown."""
    where = f"method {method} has no key '{key}'"
    legal = f"The keys of method {method} are: {listed(hints)}" if hints else f"Method {method} has no keys"
    if others := owners(key):
        return f"{where}; these methods have it: {listed(others)}. {legal}"
    if places := named(key):
        return f"{where}; it belongs to {' or '.join(places)}. {legal}"
    if told := translation(key, hints, section):
        return where + told
    return f"{where}{nearest(key, hints) or '.'} {legal}"


def _lists(value: Any) -> Any:
    """Tuples as YAML has them."""
    return [_lists(item) for item in value] if isinstance(value, tuple) else value
