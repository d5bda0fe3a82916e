"""What a person should know of columns: those that were inferred, those that are not used, and what they could mean."""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import datasets

from adaptrain.config.schema import TaskConfig
from adaptrain.config.task import ROLES
from adaptrain.errors import listed
from adaptrain.tasks.columns import KINDS, NAMES, PAIRS, VARIED, Role, of_role
from adaptrain.tasks.features import is_place, kind_of

_ANSWER = ("answer", "answers", "answerKey", "answer_key", "label", "correct", "correct_answer", "gold", "solution")
"""What the column is called that says which choice is right."""

_CHOICE = re.compile(r"(?P<before>(?:option|choice|answer|ending|alternative|opt|sol)?[ _-]?)(?P<number>[A-Ha-h]|\d)")
"""A column that is one choice: `A`, `option_b`, `answer0`."""

_TRUTHS = {"true", "false", "yes", "no"}

_MOST = 1000
"""Rows that are looked at to see what the values of a column are."""


def inferred_note(columns: Mapping[str, str | tuple[str, ...]]) -> list[str]:
    """The note of columns that play a role without being called so; a role's own name leaves no doubt."""
    guessed = {role: column for role, column in columns.items() if column != role}
    words = "; ".join(f"{role} = {', '.join(of_role(column))}" for role, column in guessed.items())
    return [f"columns inferred: {words}"] if words else []


def unused_note(task: TaskConfig, unused: Sequence[str]) -> list[str]:
    """The note of columns that are not used though they have a usual name of a role of the task.

    Args:
        task: with every column named.
    """
    played, words = task.columns.declared(), []
    for name in unused:
        role = _role_of(name, task)
        if role is None:
            continue
        if role in played:
            words.append(f"{name} (the {role} is {', '.join(of_role(played[role]))})")
        else:
            words.append(f"{name} (task.columns.{role}={name} makes it the {role})")
    return [f"columns not used: {', '.join(words)}"] if words else []


def _role_of(name: str, task: TaskConfig) -> str | None:
    """The role that a column is called by, among those of a task."""
    roles = [role for role in ROLES[task.type].all if role != "id"]
    names: dict[str, tuple[str, ...]] = {role: (role, *NAMES.get(role, ())) for role in roles}
    if "text_pair" in names:
        for role, place in (("text", 0), ("text_pair", 1)):
            names[role] += tuple(pair[place] for pair in PAIRS)
    if name in roles:
        return name
    return next((role for role in roles if name in names[role]), None)


def constant_notes(columns: Sequence[Role], unused: Sequence[str], constant: Collection[str]) -> list[str]:
    """The notes of columns with one value in every row: those that play a role all the same, by its own name, and those
    that a role was not inferred from."""
    inferred = [role for role in columns if not role.declared and role.name in VARIED]
    notes = [
        f"the {role.name} is the same in every row (column {role.columns[0]})"
        for role in inferred
        if all(name in constant for name in role.columns)
    ]
    kinds = {role.name for role in inferred}
    names = [name for name in unused if name in constant and not is_place(name)]
    if kinds and (near := [name for name in names if any(name in NAMES[kind] for kind in kinds) or "text" in kinds]):
        notes.append(f"the same value is in every row of {listed(near)}: not taken for a text or a label")
    return notes


def hints(table: datasets.Dataset) -> list[str]:
    """What rows without a known task could be, each with the keys to paste."""
    found = [_truths(table), _choices(table)]
    return [hint for hint in found if hint is not None]


def _truths(table: datasets.Dataset) -> str | None:
    """A question and a passage with a truth value for an answer, as BoolQ has them."""
    features = table.features
    answer = next((name for name in NAMES["answers"] if _is_truth(table, name)), None)
    passage = next((name for name in NAMES["context"] if kind_of(features.get(name)) == "text"), None)
    if answer is None or passage is None or kind_of(features.get("question")) != "text":
        return None
    return (
        f"'{answer}' says yes or no to a question and a text, which is a classification of pairs: "
        f"task.type=classification task.columns.text=question task.columns.text_pair={passage} "
        f"task.columns.label={answer}"
    )


def _is_truth(table: datasets.Dataset, name: str) -> bool:
    kind = kind_of(table.features.get(name))
    if kind == "true or false":
        return True
    values = {str(value).strip().lower() for value in _values(table, name)} if kind == "text" else set()
    return bool(values) and values <= _TRUTHS


def _choices(table: datasets.Dataset) -> str | None:
    """A column for each choice, and one that says which is right."""
    names = _columns_of_choices(table.features)
    label = next((name for name in _ANSWER if name in table.features and name not in names), None)
    if label is None or kind_of(table.features[label]) not in KINDS["label"]:
        return None
    values = {str(value).strip() for value in _values(table, label)}
    if not names or not values:
        return None
    roles = [f"task.columns.question={name}" for name in ("question",) if name in table.features]
    roles += [f"task.columns.context={name}" for name in NAMES["context"] if name in table.features][:1]
    called = _called(values, names)
    what = f"{', '.join(names)} are the choices of a multiple choice"
    if called is None:
        texts = set().union(*({str(value).strip() for value in _values(table, name)} for name in names))
        wrong = "repeats the text of the right one" if values <= texts else f"has {listed(sorted(values)[:5])}"
        return (
            f"{what}, but column '{label}' {wrong}: give each row its letter (A, B, …) or its number there, and "
            f"task.type=multiple_choice {' '.join(roles)} 'task.columns.choices=[{','.join(names)}]'"
        )
    labels = [f"'task.labels=[{','.join(called)}]'"] if called else []
    keys = [*roles, f"'task.columns.choices=[{','.join(names)}]'", f"task.columns.label={label}", *labels]
    return f"{what}: task.type=multiple_choice 'task.extra_metrics=[]' {' '.join(keys)}"


def _columns_of_choices(features: Mapping[str, Any]) -> list[str]:
    """Columns of texts whose names count from A, a, 0 or 1, at least two of them."""
    families: dict[str, dict[str, str]] = {}
    for name in features:
        match = _CHOICE.fullmatch(name) or _CHOICE.fullmatch(name.lower())
        if match is not None and kind_of(features[name]) == "text":
            families.setdefault(match["before"], {})[match["number"]] = name
    for family in families.values():
        for numbers in (string.ascii_uppercase, string.ascii_lowercase, "0123456789", "123456789"):
            if len(family) > 1 and set(family) == set(numbers[: len(family)]):
                return [family[number] for number in numbers[: len(family)]]
    return []


def _called(values: Collection[str], names: Sequence[str]) -> Sequence[str] | None:
    """What the choices are called in the label column; none where that is inferred anyway, None where it is neither."""
    count = len(names)
    ways = [string.ascii_uppercase[:count], "0123456789"[:count], "123456789"[:count]]
    if any(set(values) <= set(way) for way in ways):
        return ()
    others: list[Sequence[str]] = [names, list(string.ascii_lowercase[:count])]
    return next((way for way in others if set(values) <= set(way)), None)


def _values(table: datasets.Dataset, name: str) -> list[Any]:
    return [value for value in table.select_columns([name])[:_MOST][name] if value is not None]
