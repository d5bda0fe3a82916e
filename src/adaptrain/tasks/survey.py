"""What a person should know of data before training on them: balance, lengths, bad rows, repetitions, leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from adaptrain.config.schema import TaskConfig
from adaptrain.config.task import MAPPED, SAID
from adaptrain.tasks.bad_rows import ANSWER, CHOICES, EMPTY, LABEL, NO_LABEL, Bad, check_texts, first_of_each
from adaptrain.tasks.bad_rows import Column as Checked
from adaptrain.tasks.choosing import choice_texts
from adaptrain.tasks.columns import Role
from adaptrain.tasks.rows import examine
from adaptrain.tasks.shapes import SHAPES
from adaptrain.tasks.shapes.answers import as_answers, wrong_answers
from adaptrain.tasks.shapes.choices import texts_of_choices
from adaptrain.tasks.sources import Source, home_of

TAGS = "not a tag for each token"

Measure = Callable[[list[str], list[str] | None], Sequence[int]]
"""Texts, and the texts that they are read with, to lengths."""


@dataclass(frozen=True)
class Looked:
    """A split's rows, as far as they can be compared and counted.

    Attributes:
        inputs: what a model reads of each row; equal ones are duplicates.
        answers: what it should say.
        texts, pairs: what lengths are measured of; None where that is unknown.
        balance: label → how often it stands there; None for numbers.
        numbers: the labels that are numbers.
        bad: rows, each once.
        sizes: of what is no text, where it is known.
        labelled: whether `answers` are labels of a map, or numbers; None where they are bad.
        known: whether it is known what a model reads of a row, and what it should say.
    """

    inputs: list[Any]
    answers: list[Any]
    texts: list[str] | None
    pairs: list[str] | None
    balance: Counter[str] | None
    numbers: list[float]
    bad: list[Bad]
    labelled: bool = False
    sizes: Sequence[float] | None = None
    known: tuple[bool, bool] = (True, True)


@dataclass(frozen=True)
class SplitSurvey:
    """One split.

    Attributes:
        name, use: and what it is for.
        rows: all of them.
        bad: rows that the policy of `data.bad_rows` is about.
        duplicates: rows whose input stands in an earlier row of the split; None where no column is known to be input.
        conflicting: inputs that stand there with several answers; None where no column is known to be an answer.
        lengths: of the rows that are not bad.
        balance, numbers: of the labels.
        unlabelled: whether no label is in the map; that is no mistake in a split that no task uses.
    """

    name: str
    use: str
    rows: int
    bad: list[Bad]
    duplicates: int | None
    conflicting: int | None
    lengths: np.ndarray
    balance: Counter[str] | None
    numbers: np.ndarray
    unlabelled: bool

    def cut(self, longest: int) -> int:
        """Rows longer than that."""
        return int((self.lengths > longest).sum())


@dataclass(frozen=True)
class Overlap:
    """Two splits: rows of the second whose input stands in the first, and those of them with another answer there; None
    where no column is known to be an answer."""

    first: str
    second: str
    rows: int
    conflicting: int | None


@dataclass(frozen=True)
class Survey:
    """Everything.

    Attributes:
        splits: in the order asked for.
        overlaps: of each two splits that share rows.
        examples: role → its value in the first row of the first split.
    """

    splits: tuple[SplitSurvey, ...]
    overlaps: tuple[Overlap, ...]
    examples: Mapping[str, Any] = field(default_factory=dict)


def survey(
    source: Source,
    splits: Mapping[str, str],
    roles: Sequence[Role],
    measure: Measure,
    task: TaskConfig | None = None,
) -> Survey:
    """Look at splits.

    Args:
        splits: name → what it is for.
        task: settled; None for data whose roles alone are known.

    Raises:
        DataError: a split cannot be read, or lacks a column.
    """
    made: list[SplitSurvey] = []
    known: list[dict[Any, Any]] = []
    overlaps: list[Overlap] = []
    examples: dict[str, Any] = {}
    for name, use in splits.items():
        table = source.read(name)
        place = f"{source.place}, split '{name}'"
        looked = (
            _of_roles(table, roles, place)
            if task is None
            else _of_task(table, task, place, home_of(source.place, name))
        )
        unlabelled = bool(made) and not use and all(label is None for label in looked.answers) and bool(looked.labelled)
        if unlabelled:
            kept = [bad for bad in looked.bad if bad.reason not in (LABEL, NO_LABEL)]
            looked = replace(looked, bad=kept)
        out = {bad.row - 1 for bad in looked.bad}
        rows = [row for row in range(len(table)) if row not in out]
        if not examples:
            examples = {role.name: _example(table, role) for role in roles}
        answers: dict[Any, set[Any]] = {}
        for row in rows:
            answers.setdefault(looked.inputs[row], set()).add(looked.answers[row])
        for other, before in zip(made, known, strict=True):
            shared = [row for row in rows if looked.known[0] and looked.inputs[row] in before]
            if shared:
                differ = 0 if unlabelled else sum(before[looked.inputs[row]] != {looked.answers[row]} for row in shared)
                overlaps.append(Overlap(other.name, name, len(shared), differ if looked.known[1] else None))
        known.append(answers)
        pairs = None if looked.pairs is None else [looked.pairs[row] for row in rows]
        texts = None if looked.texts is None else [looked.texts[row] for row in rows]
        lengths: Sequence[float] = measure(texts, pairs) if texts else []
        lengths = lengths if looked.sizes is None else [looked.sizes[row] for row in rows]
        made.append(
            SplitSurvey(
                name,
                use,
                len(table),
                looked.bad,
                len(rows) - len(answers) if looked.known[0] else None,
                sum(len(found) > 1 for found in answers.values()) if all(looked.known) else None,
                np.asarray(lengths),
                looked.balance,
                np.asarray(looked.numbers),
                unlabelled,
            )
        )
    return Survey(tuple(made), tuple(overlaps), examples)


@dataclass(frozen=True)
class Remembered:
    """A source that reads each split once."""

    inner: Source
    known: dict[str, datasets.Dataset] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return self.inner.place

    def splits(self) -> tuple[str, ...]:
        return self.inner.splits()

    def read(self, split: str) -> datasets.Dataset:
        if split not in self.known:
            self.known[split] = self.inner.read(split)
        return self.known[split]


def words(texts: list[str], pairs: list[str] | None) -> list[int]:
    """Lengths in words, which stand between blanks."""
    counts = [len(text.split()) for text in texts]
    return counts if pairs is None else [one + len(text.split()) for one, text in zip(counts, pairs, strict=True)]


def token_measure(tokenizer: Any) -> Measure:
    """Lengths in a tokenizer's tokens, those included that it adds of its own."""

    def measure(texts: list[str], pairs: list[str] | None) -> list[int]:
        made = tokenizer(*((texts,) if pairs is None else (texts, pairs)), truncation=False, verbose=False)
        return [len(ids) for ids in made["input_ids"]]

    return measure


def _of_task(table: datasets.Dataset, task: TaskConfig, place: str, home: Path | None) -> Looked:
    columns, bad = examine(table, task, place, home)
    if SHAPES[task.type].blank_lines:
        bad = [each for each in bad if each.reason != EMPTY]
    values = {role: column.marks or column.values for role, column in columns.items()}
    read = [_frozen(values[role]) for role in values if role not in SAID]
    said = [_frozen(values[role]) for role in values if role in SAID]
    balance: Counter[str] | None = None
    numbers: list[float] = []
    mapped = MAPPED.get(task.type)
    if mapped is not None:
        balance = Counter(dict.fromkeys(task.labels, 0))
        balance.update(_named(columns[mapped].values, task))
    elif task.type == "question_answering":
        found = [value for value in columns["answers"].values if value is not None]
        balance = Counter("an answer" if value["text"] else "no answer" for value in found)
    elif task.type == "regression":
        numbers = [float(label) for label in values["label"] if label is not None]
    first, second = _lengths_of(columns)
    return Looked(
        read[0] if len(read) == 1 else list(zip(*read, strict=True)),
        [None] * len(table) if not said else said[0] if len(said) == 1 else list(zip(*said, strict=True)),
        first,
        second,
        balance,
        numbers,
        bad,
        bool(said),
        next((column.sizes for column in columns.values() if column.sizes is not None), None),
    )


def _named(values: Sequence[Any], task: TaskConfig) -> list[str]:
    """The labels of the map that occur: of each row one; or a list, of indices, or of a truth for each label."""
    found: list[str] = []
    for value in values:
        if isinstance(value, int):
            found.append(task.labels[value])
        elif value is not None and task.type == "multilabel":
            found += [name for name, there in zip(task.labels, value, strict=True) if there]
        elif value is not None:
            found += [task.labels[each] for each in value]
    return found


def _lengths_of(columns: Mapping[str, Checked]) -> tuple[list[str] | None, list[str] | None]:
    """What lengths are measured of: the texts that are read first, and those that are read with them."""
    if "choices" in columns:
        return _longest_choices(columns)
    order = [role for role in ("text", "context", "tokens", "source") if role in columns][:1]
    order += [role for role in ("text_pair", "question") if role in columns and role not in order][:1]
    found = [[_joined(value) for value in columns[role].values] for role in order]
    return (found[0] if found else None), (found[1] if len(found) > 1 else None)


def _longest_choices(columns: Mapping[str, Checked]) -> tuple[list[str], list[str] | None]:
    """Of each row the texts of its longest choice."""
    longest = [[max(value, key=len)] if value else [""] for value in columns["choices"].values]
    read = {role: column.values for role, column in columns.items()} | {"choices": longest}
    first, *second = choice_texts(read)
    return first, second[0] if second else None


def _of_roles(table: datasets.Dataset, roles: Sequence[Role], place: str) -> Looked:
    """Of data without a task: what each role asks for by itself."""
    values = {role.name: _values(table, role) for role in roles}
    named = {role.name: ", ".join(role.columns) for role in roles}
    texts = [role for role in ("text", "text_pair", "question", "context", "source", "target") if role in values]
    where = partial("{}, row {}".format, place)
    checked = [check_texts(values[role], named[role], role, where) for role in texts]
    checked += [Checked([], check(values, named, place)) for check in (_tokens, _choices, _answers, _labels)]
    bad = first_of_each(checked)
    order = ("text", "text_pair", "question", "context", "choices", "tokens", "source")
    read = [_frozen(values[role]) for role in order if role in values]
    said = [_frozen(values[role]) for role in ("label", "answers", "tags", "target") if role in values]
    rows = len(table)
    first = next((values[role] for role in ("text", "context", "tokens", "source", "question") if role in values), None)
    second = next((values[role] for role in ("text_pair", "question") if role in values), None)
    second = None if second is first else second
    return Looked(
        list(zip(*(read or (_frozen(table[name][:]) for name in table.column_names)), strict=True)),
        list(zip(*said, strict=True)) if said else [None] * rows,
        None if first is None else [_joined(value) for value in first],
        None if second is None else [str(value or "") for value in second],
        _balance(table, values, {role.name: role for role in roles}),
        [],
        bad,
        known=(bool(read), bool(said)),
    )


def _joined(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value or "")


def _balance(
    table: datasets.Dataset, values: Mapping[str, list[Any]], roles: Mapping[str, Role]
) -> Counter[str] | None:
    name = next((role for role in ("label", "tags", "relations") if role in values), None)
    if name is None:
        return None
    feature: Any = table.features[roles[name].columns[0]]
    if name != "label":
        feature = getattr(feature, "feature", None)
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    found = values[name] if name == "label" else [each for value in values[name] for each in value or ()]
    shown = (names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value for value in found)
    return Counter(str(value) for value in shown if value is not None)


def _tokens(values: Mapping[str, list[Any]], named: Mapping[str, str], place: str) -> list[Bad]:
    bad = []
    for row, tokens in enumerate(values.get("tokens", ()), start=1):
        if not tokens:
            bad.append(Bad(row, EMPTY, f"{place}, row {row}: there are no tokens in column '{named['tokens']}'"))
            continue
        for role in ("tags", "heads", "relations"):
            if role in values and len(values[role][row - 1] or ()) != len(tokens):
                count = f"{len(tokens)} tokens and {len(values[role][row - 1] or ())} {role}"
                bad.append(Bad(row, TAGS, f"{place}, row {row}: there are {count} in column '{named[role]}'"))
                break
    return bad


def _choices(values: Mapping[str, list[Any]], named: Mapping[str, str], place: str) -> list[Bad]:
    bad = []
    for row, choices in enumerate(values.get("choices", ()), start=1):
        texts = texts_of_choices(choices)
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            bad.append(
                Bad(row, CHOICES, f"{place}, row {row}: the choices in '{named['choices']}' are {choices!r:.60}")
            )
    return bad


def _answers(values: Mapping[str, list[Any]], named: Mapping[str, str], place: str) -> list[Bad]:
    bad = []
    if "context" not in values:
        return bad
    for row, (answers, context) in enumerate(zip(values.get("answers", ()), values["context"], strict=False), start=1):
        found = as_answers(answers)
        if found is not None and isinstance(context, str) and (wrong := wrong_answers(found, context)):
            told = f"the answers in column '{named['answers']}' have {wrong}"
            bad.append(Bad(row, ANSWER, f"{place}, row {row}: {told}"))
    return bad


def _labels(values: Mapping[str, list[Any]], named: Mapping[str, str], place: str) -> list[Bad]:
    bad = []
    for row, label in enumerate(values.get("label", ()), start=1):
        if label is None or label == "":
            bad.append(Bad(row, NO_LABEL, f"{place}, row {row}: the label in column '{named['label']}' is missing"))
        elif "choices" in values and isinstance(label, int):
            count = len(texts_of_choices(values["choices"][row - 1]) or ())
            if not 0 <= label < count:
                bad.append(Bad(row, LABEL, f"{place}, row {row}: the label {label} is none of the {count} choices"))
    return bad


def _values(table: datasets.Dataset, role: Role) -> list[Any]:
    if isinstance(role.column, str):
        return list(table[role.column][:])
    return [list(row) for row in zip(*(table[column][:] for column in role.column), strict=True)]


def _frozen(values: Sequence[Any]) -> list[Any]:
    """Values that can be put into a set."""
    return [value if isinstance(value, str | int | float | None) else repr(value) for value in values]


def _example(table: datasets.Dataset, role: Role) -> Any:
    found = [_shown(table[column][0]) for column in role.columns]
    return found[0] if isinstance(role.column, str) else found


def _shown(value: Any) -> Any:
    """A file's content by its name, or its size."""
    if isinstance(value, Mapping) and {"bytes", "path"} <= set(value):
        return value["path"] or f"{len(value['bytes'] or b'')} bytes"
    return value
