"""Keys that belong together: what a choice loses when a later layer overrides it.

A run is laid in layers: the files of `conf/`, a recipe, the command line. `model.package` and `model.sha256` describe
the model that `model.name` names beside them. A layer that gives another name and nothing else therefore takes them
away: they fall back to their defaults, and the run says so. Keys that may still be right, such as the columns of a copy
of the same data, stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptrain.config.arguments import Change
from adaptrain.config.documents import Chosen, Items, Leaf, Origin, Tree, first_origin, leaves, merge, plain
from adaptrain.config.report import Report
from adaptrain.config.task import MAPPED, ROLES, WRITES
from adaptrain.errors import listed

Values = Mapping[str, Any]
"""The values of a section, as a later layer leaves them."""


@dataclass(frozen=True)
class Rule:
    """A key that describes other keys of its section.

    Attributes:
        key: dotted, inside the section.
        of: the keys that it describes. Another value of one of them in a later layer takes it away.
        stays: whether it can be right for the new values; None: it cannot.
    """

    key: str
    of: tuple[str, ...]
    stays: Callable[[Values], bool] | None = None


def _get(values: Any, dotted: str) -> Any:
    """The value under a dotted key; None where there is none, or where a section was expected."""
    for name in dotted.split("."):
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def _column_stays(role: str, others: tuple[str, ...] = ()) -> Callable[[Values], bool]:
    """Whether a column keeps its role: the type has it, and no alternative to it was given. An unknown type is refused
    elsewhere."""

    def stays(values: Values) -> bool:
        kind = str(_get(values, "type"))
        if kind == "causal_lm" and any(_get(values, f"columns.{other}") for other in others):
            return False
        return kind not in ROLES or role in ROLES[kind].all

    return stays


def _carve_is_named(values: Values) -> bool:
    return _get(values, "splits.carve.to") in (_get(values, "splits.validation"), _get(values, "splits.test"))


def _type_is_one_of(*kinds: str) -> Callable[[Values], bool]:
    return lambda values: _get(values, "type") in kinds


_ALTERNATIVES = {"text": ("source", "target"), "source": ("text",), "target": ("text",)}
"""Roles of a causal_lm: a row is a text, or a source and a target."""

_WITH_SOURCE = tuple(kind for kind, roles in ROLES.items() if "source" in roles.all)
_SAME_LABELS = tuple(kind for kind in MAPPED if kind not in ("classification", "multilabel"))
"""Types whose labels are those of another subset too: tags, the numbers of choices."""

MODEL = (
    Rule("revision", ("name",)),
    Rule("package", ("name", "revision")),
    Rule("sha256", ("name", "revision", "package")),
    Rule("allow_remote_code", ("name",)),
)
TASK = (
    Rule("subset", ("path",)),
    Rule("revision", ("path",)),
    Rule("labels", ("type",), _type_is_one_of(*MAPPED)),
    Rule("labels", ("subset",), _type_is_one_of(*_SAME_LABELS)),
    Rule("extra_metrics", ("type",)),
    Rule("prompt", ("type",), _type_is_one_of(*_WITH_SOURCE)),
    Rule("generation", ("type",), _type_is_one_of(*WRITES)),
    *(
        Rule(
            f"columns.{role}",
            ("type", *(f"columns.{other}" for other in _ALTERNATIVES.get(role, ()))),
            _column_stays(role, _ALTERNATIVES.get(role, ())),
        )
        for role in dict.fromkeys(role for roles in ROLES.values() for role in roles.all)
    ),
    Rule("splits.carve", ("splits.validation", "splits.test"), _carve_is_named),
    Rule("splits.carve.rows", ("splits.carve.fraction",), lambda values: _get(values, "splits.carve.fraction") is None),
    Rule("splits.carve.fraction", ("splits.carve.rows",), lambda values: _get(values, "splits.carve.rows") is None),
)
MEMBER = (Rule("revision", ("path",)),)
"""The rules of each section: `model`, `task` and `adapters.NAME.task`, `adapters.NAME`."""

_ROWS = ("path", "subset")
"""Keys of a task that say which rows are meant."""


@dataclass(frozen=True)
class Dropped:
    """A key that an override took away.

    Attributes:
        key: dotted.
        origin: where it was set.
        of: the key that it described.
        was: the value of that.
        now: the value that replaced it, and where it was set.
    """

    key: str
    origin: Origin
    of: str
    was: str
    now: str


@dataclass
class Layers:
    """The layers of a run, laid over each other.

    Attributes:
        tree: what they make.
        dropped: what later layers took away from earlier ones.
    """

    tree: Tree = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)
    _number: int = 0
    _last: dict[str, int] = field(default_factory=dict)
    """Dotted key → the last layer that gave it a value, of the keys that say which rows are read."""
    _other_rows: dict[str, None] = field(default_factory=dict)
    """Dotted keys by which a later layer chose other rows."""

    def lay(self, over: Tree) -> None:
        """Lay a file over the others."""
        self.release(over)
        merge(self.tree, over)

    def release(self, over: Tree) -> None:
        """Take away what does not fit a layer that is about to be laid."""
        self._number += 1
        if _value(over, "data.mirror") is not None:
            self._last["data.mirror"] = self._number
        for prefix, rules, old, new in _sections(self.tree, over):
            changed = {key: _value(old, key) for rule in rules for key in rule.of if _changes(old, new, key)}
            if rules is TASK:
                self._last |= {f"{prefix}.{key}": self._number for key in ("name", *_ROWS) if _node(new, key)}
                self._other_rows |= dict.fromkeys(f"{prefix}.{key}" for key in _ROWS if key in changed)
            if changed:
                self._apply(rules, prefix, old, new, changed)

    def _apply(self, rules: Sequence[Rule], prefix: str, old: Tree, new: Tree, changed: Mapping[str, Any]) -> None:
        """Take away the keys of a section that describe what a layer changes and does not describe anew.

        Args:
            changed: key → the value that it had.
        """
        merged = deepcopy(old)
        merge(merged, deepcopy(new))
        values = plain(merged)
        for rule in rules:
            cause = next((key for key in rule.of if key in changed), None)
            if cause is None or _node(old, rule.key) is None or _node(new, rule.key) is not None:
                continue
            if rule.stays is not None and rule.stays(values):
                continue
            *sections, name = rule.key.split(".")
            place: Any = old
            for section in sections:
                place = place[section]
            node, by = {name: place.pop(name)}, _node(new, cause)
            self.dropped += [
                Dropped(
                    ".".join([prefix, *sections, key]),
                    leaf.origin,
                    f"{prefix}.{cause}",
                    _shown(changed[cause]),
                    f"{_shown(_value(new, cause))} ({None if by is None else first_origin(by)})",
                )
                for key, leaf in leaves(node)
                if leaf.value not in (None, "", [], {})  # a default that a file writes down is not worth a word
            ]

    def notes(self) -> tuple[str, ...]:
        """What was taken away for good, a sentence for each cause; and a name that is no longer that of the rows."""
        gone: dict[tuple[str, str, str], list[str]] = {}
        for each in self.dropped:
            if _node(self.tree, each.key) is None:
                gone.setdefault((each.of, each.was, each.now), []).append(f"{each.key} ({each.origin})")
        notes = []
        for (of, was, now), keys in gone.items():
            is_, was_set = ("is", "it was set") if len(keys) == 1 else ("are", "they were set")
            beside = f"without {of}" if was == "null" else f"for {of}={was}"
            notes.append(f"{listed(keys)} {is_} not used: {was_set} {beside}, and {of} is now {now}")
        for dotted in self._other_rows:
            prefix, _, key = dotted.rpartition(".")
            name = _node(self.tree, f"{prefix}.name")
            if key == "subset" and isinstance(name, Leaf) and self._last.get(f"{prefix}.name", 0) < self._last[dotted]:
                notes.append(
                    f"{prefix}.name is still '{name.value}' ({name.origin}), and {dotted} is another one; set "
                    f"{prefix}.name, so that tables tell the two apart"
                )
        return tuple(notes)

    def refuse_hidden_rows(self, report: Report) -> None:
        """Refuse rows that a later layer asks for and that would not be read, because a mirror comes first."""
        mirror, mirrored = _value(self.tree, "data.mirror"), self._last.get("data.mirror", 0)
        for dotted in self._other_rows:
            prefix, _, key = dotted.rpartition(".")
            name, node = _value(self.tree, f"{prefix}.name"), _node(self.tree, dotted)
            if not (isinstance(mirror, str) and isinstance(name, str) and isinstance(node, Leaf)):
                continue
            local = key == "path" and _is_local(str(node.value))
            if self._last[dotted] < mirrored + (not local):  # a mirror stands in for what it is given with
                continue
            if (Path(mirror).expanduser() / name).is_dir():
                sentence = (
                    f"would not be read: data.mirror={mirror} has rows of the task '{name}', and they come first. Set "
                    f"data.mirror=null, or give the task another {prefix}.name, or leave {dotted} out"
                )
                report.add(dotted, node.origin, sentence)


def as_layer(changes: Sequence[Change]) -> Tree:
    """What the command line sets, as one layer; keys that cannot be set where they are written are left out."""
    layer: Tree = {}
    for change in changes:
        *sections, key = change.key.split(".")
        place: Tree | Leaf = layer
        for name in sections:
            place = place.setdefault(name, {}) if isinstance(place, dict) else place
        if isinstance(place, dict) and change.node is not None:
            merge(place, {key: deepcopy(change.node)})
    return layer


def _sections(old: Tree, new: Tree) -> Iterator[tuple[str, tuple[Rule, ...], Tree, Tree]]:
    """The sections that both have, with their rules. One that is chosen by name replaces the other as a whole."""
    yield from _both("", "model", MODEL, old, new)
    yield from _both("", "task", TASK, old, new)
    for _, _, entries, others in _both("", "adapters", (), old, new):
        for name in [name for name in entries if name in others]:
            for prefix, rules, entry, other in _both("adapters.", name, MEMBER, entries, others):
                yield prefix, rules, entry, other
                yield from _both(f"{prefix}.", "task", TASK, entry, other)


def _both(
    prefix: str, name: str, rules: tuple[Rule, ...], old: Any, new: Any
) -> Iterator[tuple[str, tuple[Rule, ...], Tree, Tree]]:
    if _are_sections(old.get(name), new.get(name)):
        yield prefix + name, rules, old[name], new[name]


def _are_sections(old: Any, new: Any) -> bool:
    return isinstance(old, dict) and isinstance(new, dict) and not isinstance(new, Items | Chosen)


def _node(tree: Tree | Leaf | None, dotted: str) -> Tree | Leaf | None:
    """What stands under a dotted key; None where there is nothing."""
    for name in dotted.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _value(tree: Tree, dotted: str) -> Any:
    node = _node(tree, dotted)
    return None if node is None else plain(node)


def _changes(old: Tree, new: Tree, dotted: str) -> bool:
    """Whether a layer gives a key another value. 1234567 and '1234567' are one revision."""
    return _node(new, dotted) is not None and str(_value(new, dotted)) != str(_value(old, dotted))


def _is_local(path: str) -> bool:
    return path.startswith((".", "/", "~")) or "{split}" in path or Path(path).exists()


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
