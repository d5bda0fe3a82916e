"""A merged tree against the dataclasses of `schema`: unknown and misplaced keys, wrong types, impossible values.

Everything is looked at before anything is refused.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from adaptrain.config.documents import Leaf, Origin, Tree, first_origin, leaves, plain
from adaptrain.config.schema import RunConfig
from adaptrain.config.values import Misfit, convert
from adaptrain.errors import AdaptrainError, ConfigError, listed, nearest

_MISSING = "???"
"""Hydra's mark of a value that is still to be given."""


@dataclass
class Report:
    """What was found.

    Attributes:
        problems: a sentence each.
        bad: dotted keys that have one.
        silent: sections that are not looked at, because the choice that fills them is wrong already.
    """

    problems: list[str] = field(default_factory=list)
    bad: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)

    def add(self, key: str, origin: Origin | None, sentence: str) -> None:
        self.bad.add(key)
        self.problems.append(f"{key}{f' ({origin})' if origin is not None else ''}: {sentence}")


def build(tree: Tree, recipe: str, report: Report) -> RunConfig | None:
    """The run that a tree describes, None where it has problems."""
    tree = {**tree, "recipe": Leaf(recipe, Origin("recipe"))}
    adapter = _adapter(tree.get("adapter"), report)
    values = _section(tree, RunConfig, "", report)
    _metrics(values.get("task"), tree, report)
    if report.problems or adapter is None:
        return None
    return RunConfig(**{**values, "adapter": adapter})


def _section(tree: Tree, kind: type, prefix: str, report: Report) -> dict[str, Any]:
    """The converted values of one dataclass; sections inside it are built already."""
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, node in tree.items():
        dotted = prefix + key
        if dotted in report.silent:
            report.bad.add(dotted)
        elif key not in hints:
            report.add(dotted, first_origin(node), _unknown(dotted, kind, tree))
        elif dotted == "adapter":
            values[key] = plain(node)
        elif dataclasses.is_dataclass(hints[key]):
            if isinstance(node, dict):
                inner = _section(node, typing.cast(type, hints[key]), f"{dotted}.", report)
                built = _built(typing.cast(type, hints[key]), inner, node, f"{dotted}.", report)
                if built is None:
                    report.bad.add(dotted)
                else:
                    values[key] = built
            elif node.value is not None:
                keys = listed(f.name for f in dataclasses.fields(typing.cast(Any, hints[key])))
                report.add(dotted, node.origin, f"is one value, but a section is due, with the keys: {keys}")
        elif (value := _value(node, hints[key], dotted, report)) is not _BAD:
            values[key] = value
    if prefix == "":
        _built(kind, values, tree, "", report)
    return values


def _built(kind: type, values: dict[str, Any], tree: Tree, prefix: str, report: Report) -> Any:
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


class _Bad:
    pass


_BAD = _Bad()


def _value(node: Tree | Leaf, hint: Any, dotted: str, report: Report) -> Any:
    """A value in its type, or `_BAD`."""
    value = plain(node)
    if value == _MISSING:
        report.add(dotted, first_origin(node), f"is still to be given: {dotted}=…")
        return _BAD
    try:
        return convert(value, hint)
    except Misfit as misfit:
        if isinstance(node, Leaf) and node.text is not None:
            try:
                return convert(node.text, hint)  # a revision 1234567, typed without quotes, is meant as a word
            except Misfit:
                pass
        report.add(dotted, first_origin(node), str(misfit))
        return _BAD


def _unknown(dotted: str, kind: type, tree: Tree) -> str:
    """Why a key is refused: it belongs elsewhere, or is misspelt, or does not exist."""
    section, _, key = dotted.rpartition(".")
    known = [f.name for f in dataclasses.fields(typing.cast(Any, kind))]
    where = f"{section} has no key '{key}'" if section else f"there is no key '{key}'"
    legal = f"The keys {f'of {section}' if section else 'at the top'} are: {listed(known)}"
    homes = [other for other in legal_keys() if other.rpartition(".")[2] == key]
    if homes:
        return f"{where}; it belongs to {' or '.join(homes)}. {legal}"
    near = nearest(key, known) or nearest(key, _last_names(legal_keys()))
    return f"{where}{near or '.'} {legal}"


def _last_names(keys: Iterable[str]) -> list[str]:
    return [key.rpartition(".")[2] for key in keys]


def legal_keys(kind: type = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key of a run, but an adapter's own: those depend on its method."""
    keys = []
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            keys += legal_keys(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def _adapter(node: Tree | Leaf | None, report: Report) -> dict[str, Any] | None:
    """The adapter's config, complete: the method's own defaults stand in it too, so that equal runs are equal text."""
    if "adapter" in report.silent or node is None:
        return None
    if isinstance(node, Leaf):
        report.add("adapter", node.origin, "is one value, but a section is due; choose one by adapter=NAME")
        return None
    from adaptrain.methods.base import config_class, methods  # late: it imports torch

    import adaptrain.methods  # noqa: F401  (registers them)

    origin = origin_of(node, "method")
    try:
        method = config_class(str(plain(node.get("method", Leaf("", Origin(""))))))
    except ConfigError:
        name = plain(node["method"]) if "method" in node else None
        said = f"is '{name}'{nearest(str(name), methods())}" if name is not None else "is missing"
        report.add("adapter.method", origin or first_origin(node), f"{said}; the methods are: {listed(sorted(methods()))}")
        return None
    hints = {key: hint for key, hint in typing.get_type_hints(method).items() if key in method.fields()}
    values, good = {}, True
    for key, value_node in node.items():
        if key == "method":
            continue
        dotted = f"adapter.{key}"
        if key not in hints:
            report.add(dotted, first_origin(value_node), _no_method_key(key, method.method, hints, methods()))
        elif (value := _value(value_node, hints[key], dotted, report)) is not _BAD:
            values[key] = value
        good = good and dotted not in report.bad
    needed = [
        key for key, f in method.fields().items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    for key in needed:
        if f"adapter.{key}" not in report.bad and key not in values:
            good = False
            report.add(f"adapter.{key}", origin, f"is missing; method {method.method} needs it")
    if not good:
        return None
    try:
        complete = method.from_dict(values).to_dict()
    except AdaptrainError as error:
        for sentence in getattr(error, "problems", [str(error)]):
            sentence = sentence.removeprefix(f"{method.__name__}: ")
            key = sentence.split(" ", 1)[0].rstrip(",")
            if key in hints:
                report.add(f"adapter.{key}", origin_of(node, key), sentence.removeprefix(f"{key} "))
            else:
                report.add("adapter", origin, sentence)
        return None
    return {key: _plain_lists(convert(value, hints[key])) if key in hints else value for key, value in complete.items()}


def _no_method_key(key: str, method: str, hints: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    owners = [name for name, config in others.items() if name != method and key in config.fields()]
    legal = f"The keys of method {method} are: {listed(hints)}" if hints else f"Method {method} has no keys"
    near = nearest(key, hints)
    if near or not owners:
        homes = [] if near else [other for other in legal_keys() if other.rpartition(".")[2] == key]
        belongs = f"; it belongs to {' or '.join(homes)}." if homes else near or "."
        return f"method {method} has no key '{key}'{belongs} {legal}"
    return f"method {method} has no key '{key}'; it is one of method {' and '.join(owners)}. {legal}"


def _plain_lists(value: Any) -> Any:
    return [_plain_lists(item) for item in value] if isinstance(value, tuple) else value


def _metrics(task: Any, tree: Tree, report: Report) -> None:
    """Metrics that do not exist, or not for this shape of task."""
    if task is None:
        return
    from adaptrain.evaluation.metrics import check_metrics

    for key, names in (("metric", (task.metric,)), ("extra_metrics", task.extra_metrics)):
        try:
            check_metrics(task.type, len(task.labels), names)
        except ConfigError as error:
            section = tree["task"]
            origin = origin_of(section, key) if isinstance(section, dict) else None
            for sentence in error.problems:
                report.add(f"task.{key}", origin, sentence)


def origin_of(tree: Tree, key: str) -> Origin | None:
    return first_origin(tree[key]) if key in tree else None


def origins_of(tree: Tree) -> dict[str, Origin]:
    """Dotted key → where it was set."""
    return {key: leaf.origin for key, leaf in leaves(tree)}
