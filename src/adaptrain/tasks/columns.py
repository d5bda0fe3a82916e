"""Which column plays which role: as declared, or inferred from names and types.

A role is inferred only where there is nothing to choose: one column bears a usual name of it and has a fitting type, or
none does and one column of a fitting type is left. Everything else is an error that lists the candidates and the key. A
column that numbers or places a row (`id`, `url`, `split`) is never read, unless it is declared. A text or a label
differs between rows: a column with one value in every row is taken for one only where it has the role's own name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptrain.config.schema import ColumnsConfig, TaskConfig
from adaptrain.config.task import ROLES
from adaptrain.errors import DataError, listed, nearest
from adaptrain.tasks.features import feature_of, is_place, kind_of, names_of, root_of

NAMES: dict[str, tuple[str, ...]] = {
    "text": ("text", "sentence", "content", "review", "comment", "tweet", "utterance", "query"),
    "label": ("label", "labels", "gold_label", "target", "class", "category", "score", "rating", "stars", "sentiment"),
    "choices": ("choices", "options", "endings", "answer_choices"),
    "question": ("question",),
    "context": ("context", "passage", "paragraph", "article"),
    "answers": ("answers", "answer"),
    "tokens": ("tokens", "words"),
    "tags": ("tags", "ner_tags", "pos_tags", "chunk_tags", "upos", "labels"),
    "heads": ("heads", "head"),
    "relations": ("relations", "deprel", "deprels"),
    "source": ("source", "document", "article", "dialogue", "input", "prompt", "instruction"),
    "target": ("target", "summary", "highlights", "output", "completion", "response", "transcript", "transcription"),
    "image": ("image", "img"),
    "audio": ("audio", "speech"),
    "id": ("id", "idx", "index", "uid", "guid", "qid"),
}
"""Role → what the field calls its column."""

PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("text1", "text2"),
    ("text_1", "text_2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
)
"""Names of two texts that are read together, in their order."""

KINDS: dict[str, tuple[str, ...]] = {
    "text": ("text", "mixed"),
    "text_pair": ("text", "mixed"),
    "label": ("class", "integer", "number", "text", "true or false", "mixed"),
    "labels": ("list of class", "list of integer", "list of text", "list of true or false", "text"),
    "choices": ("list of text", "named texts", "list of named texts"),
    "question": ("text",),
    "context": ("text",),
    "answers": ("answers", "list of answers"),
    "tokens": ("list of text",),
    "tags": ("list of text", "list of class", "list of integer"),
    "heads": ("list of integer", "list of text"),
    "relations": ("list of text", "list of class", "list of integer"),
    "source": ("text",),
    "target": ("text",),
    "image": ("image",),
    "audio": ("audio",),
    "id": ("text", "integer"),
}
"""Role → the types that its column may have."""

_NAMED: dict[str, tuple[str, ...]] = {
    "image": ("text", "bytes and path", "list of list of integer", "list of list of list of integer"),
    "audio": ("text", "bytes and path", "samples"),
}
"""Role → types that its column may have too, where its name says the role."""

_SPOKEN = ("text", "sentence")
"""What a transcript's column is called besides."""

_ALONE = {"text", "image", "audio"}
"""Roles that the only column of a fitting type plays, whatever its name."""

VARIED = ("text", "label", "source", "target")
"""Roles that a column with one value in every row is not taken for."""

FREE = ("text", "text_pair", "label", "tokens", "tags", "heads", "relations", "question", "context", "answers")
FREE = (*FREE, "choices", "source", "target", "image", "audio")
"""Roles that are looked for in data without a task, where a name says them."""


@dataclass(frozen=True)
class Role:
    """A column and what it is.

    Attributes:
        name: of the role.
        column: one, or several that are one list together.
        declared: whether the config says so; else inferred.
        kind: its type in words.
    """

    name: str
    column: str | tuple[str, ...]
    declared: bool
    kind: str

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,) if isinstance(self.column, str) else self.column


def settle_columns(
    task: TaskConfig, features: Mapping[str, Any], place: str, constant: Collection[str] = ()
) -> tuple[TaskConfig, tuple[Role, ...], tuple[str, ...]]:
    """The task with every column named, its roles, and the columns that no role has.

    Args:
        features: of the training split; `Dataset.features`.
        place: for messages.
        constant: columns that have one value in every row.

    Raises:
        DataError: a declared column is not there; a role has no column, or several that could play it.
    """
    declared = task.columns.declared()
    columns = dict(declared)
    for role, given in declared.items():
        for column in of_role(given):
            _there(column, role, features, place)
    needed = _needed(task, features, columns)
    for role in needed:
        if role in columns:
            continue
        if role == "text":
            columns |= infer_texts(task, features, columns, place, constant)
        elif role == "label" and task.type in ("classification", "regression"):
            columns["label"] = _infer_label(task, features, columns, place, constant)
        else:
            kind = "labels" if role == "label" and task.type == "multilabel" else role
            spoken = _SPOKEN if (task.type, role) == ("speech_recognition", "target") else ()
            columns[role] = infer_role(role, KINDS[kind], features, columns, place, spoken, constant)
    open_roles = ROLES[task.type].optional if any(role not in declared for role in needed) else ()
    for role in open_roles:
        if role not in columns and role not in ("text_pair", *needed):
            columns |= _infer_optional(role, features, columns)
    order = [f.name for f in dataclasses.fields(ColumnsConfig) if f.name in columns]
    roles = tuple(Role(name, columns[name], name in declared, _kind_of_role(columns[name], features)) for name in order)
    used = {root_of(column, features) for role in roles for column in role.columns}
    named: dict[str, Any] = {name: columns[name] for name in order}
    settled = dataclasses.replace(task, columns=ColumnsConfig(**named))
    return settled, roles, tuple(name for name in features if name not in used)


def free_roles(
    features: Mapping[str, Any], columns: ColumnsConfig, place: str, constant: Collection[str] = ()
) -> tuple[tuple[Role, ...], tuple[str, ...]]:
    """What the columns of data without a task seem to be, and those that seem to be nothing.

    A pair is looked for first, then the roles whose names are rarest; a column plays one role. Names alone decide, and
    what would be ambiguous for a task is not refused here. The text beside a recording is its transcript, where there
    is no label.

    Args:
        constant: columns that have one value in every row.

    Raises:
        DataError: a declared column is not there.
    """
    found: dict[str, str | tuple[str, ...]] = dict(columns.declared())
    taken = {column for given in found.values() for column in of_role(given)}
    for role, given in found.items():
        for column in of_role(given):
            _there(column, role, features, place)
    left = [name for name in features if name not in taken]
    wanted = [role for role in FREE if role not in found and role not in ("text", "text_pair", "question", "context")]
    spans = [role for role in ("question", "context") if role not in found]
    if any(name in NAMES["answers"] + NAMES["choices"] for name in left):
        wanted = [*spans, *wanted]
    elif "text" not in found and (pairs := _pairs(features, left)):
        found |= {"text": pairs[0][0], "text_pair": pairs[0][1]}
        left = [name for name in left if name not in pairs[0]]
    heard = "audio" in found or any(name in NAMES["audio"] for name in left)
    labelled = "label" in found or any(name in NAMES["label"] and name != "target" for name in left)
    spoken = _SPOKEN if heard and not labelled else ()
    for role in [*wanted, *(role for role in ("text", "context", "question") if role not in found)]:
        kinds = (*KINDS[role], *_NAMED.get(role, ()))
        if role == "label" and not any(name in NAMES["tokens"] for name in left):  # else a list is one of tags
            kinds += KINDS["labels"]
        fits = _varied(role, [name for name in left if kind_of(features[name]) in kinds], constant)
        names = [word for word in (*NAMES[role], *(spoken if role == "target" else ())) if word in fits]
        if names:
            found[role] = names[0]
            left.remove(names[0])
    if not set(found) - {"label", "id"}:
        texts = [name for name in left if kind_of(features[name]) == "text" and not is_place(name)]
        texts = _varied("text", texts, constant)
        if len(texts) == 1:
            found["text"] = texts[0]
    order = [f.name for f in dataclasses.fields(ColumnsConfig) if f.name in found]
    declared = columns.declared()
    roles = tuple(Role(name, found[name], name in declared, _kind_of_role(found[name], features)) for name in order)
    used = {root_of(column, features) for role in roles for column in role.columns}
    return roles, tuple(name for name in features if name not in used)


def of_role(given: str | tuple[str, ...]) -> tuple[str, ...]:
    """The columns of a role, which has one or several."""
    return (given,) if isinstance(given, str) else given


def _needed(task: TaskConfig, features: Mapping[str, Any], columns: Mapping[str, Any]) -> tuple[str, ...]:
    """The roles that must be played; the text first, whose name decides most, except where a label comes before it."""
    needed = ROLES[task.type].needed
    if task.type == "causal_lm":  # a text, or an instruction and what is written after it
        named = any(name in features and kind_of(features[name]) == "text" for name in NAMES["target"])
        return (
            ("source", "target")
            if {"source", "target"} & set(columns) or ("text" not in columns and named)
            else ("text",)
        )
    return tuple(sorted(needed, key=lambda role: role != "label")) if "text" in needed else needed


def infer_role(
    role: str,
    kinds: Sequence[str],
    features: Mapping[str, Any],
    columns: Mapping[str, Any],
    place: str,
    names: Sequence[str] = (),
    constant: Collection[str] = (),
) -> str:
    """The one column that bears a usual name of a role and has a fitting type; or, of images and sound, the only one of
    that type."""
    taken = {column for given in columns.values() for column in of_role(given)}
    left = _varied(role, [name for name in features if name not in taken], constant)
    fits = [name for name in left if kind_of(features[name]) in kinds]
    named = [name for name in left if kind_of(features[name]) in (*kinds, *_NAMED.get(role, ()))]
    if role in named:  # the role's own name
        return role
    near = [name for name in (*NAMES[role], *names) if name in named] or (
        fits if role in _ALONE and len(fits) == 1 else []
    )
    if len(near) == 1:
        return near[0]
    if near:
        raise DataError(_several(near, role, place))
    shown = listed(f"{name} ({kind_of(feature_of(name, features))})" for name in names_of(features))
    raise DataError(
        f"{place}: no column can be the {role}, which is {' or '.join(kinds)}. The columns are: {shown}. "
        f"{_not_taken(role, features, constant)}Name one in task.columns.{role}"
    )


def _infer_optional(role: str, features: Mapping[str, Any], columns: Mapping[str, Any]) -> dict[str, str]:
    """A role that need not be played, where a column bears its very name and has a fitting type."""
    taken = {column for given in columns.values() for column in of_role(given)}
    there = role in features and role not in taken and kind_of(features[role]) in KINDS[role]
    return {role: role} if there else {}


def _infer_label(
    task: TaskConfig, features: Mapping[str, Any], columns: Mapping[str, Any], place: str, constant: Collection[str]
) -> str:
    taken = set(columns.values())
    if "label" in features and "label" not in taken:  # the role's own name
        return "label"
    fits = [name for name in features if name not in taken and kind_of(features[name]) in KINDS["label"]]
    fits = _varied("label", fits, constant)
    named = [name for name in fits if name in NAMES["label"]]
    classes = [name for name in fits if kind_of(features[name]) == "class"] if task.type == "classification" else []
    near = named or classes
    if len(near) == 1:
        return near[0]
    if near:
        raise DataError(_several(near, "label", place))
    raise DataError(
        f"{place}: there is no column 'label'{nearest('label', fits) or ','} nor another that can only be the label. "
        f"The columns are: {listed(features)}. {_not_taken('label', features, constant)}Name one in task.columns.label"
    )


def infer_texts(
    task: TaskConfig,
    features: Mapping[str, Any],
    columns: Mapping[str, Any],
    place: str,
    constant: Collection[str] = (),
) -> dict[str, str]:
    """The text, and the text that it is read with, where they bear names of a pair."""
    taken = {column for given in columns.values() for column in of_role(given)}
    texts = [
        name
        for name in features
        if name not in taken and kind_of(features[name]) in KINDS["text"] and not is_place(name)
    ]
    pairs = _pairs(features, texts) if task.type != "masked_lm" and "text_pair" not in columns else []
    texts = _varied("text", texts, constant)  # one of a pair may be the same everywhere, as a question about reviews
    named = [name for name in NAMES["text"] if name in texts]
    single = [name for name in named if not pairs or name not in pairs[0]]
    if len(pairs) == 1 and not single:
        return {"text": pairs[0][0], "text_pair": pairs[0][1]}
    if pairs or len(named) > 1:
        raise DataError(
            _several(list(dict.fromkeys([*named, *(name for pair in pairs for name in pair)])), "text", place)
        )
    if named or len(texts) == 1:
        return {"text": named[0] if named else texts[0]}
    if texts:
        raise DataError(_several(texts, "text", place))
    kinds = listed(f"{name} ({kind_of(feature)})" for name, feature in features.items())
    raise DataError(
        f"{place}: no column can be the text. The columns are: {kinds}. {_not_taken('text', features, constant)}Name "
        "one in task.columns.text"
    )


def _pairs(features: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, str]]:
    return [pair for pair in PAIRS if all(name in names and kind_of(features[name]) in KINDS["text"] for name in pair)]


def _varied(role: str, names: Sequence[str], constant: Collection[str]) -> list[str]:
    """The columns that a role can be inferred from."""
    return [name for name in names if name == role or role not in VARIED or name not in constant]


def _not_taken(role: str, features: Mapping[str, Any], constant: Collection[str]) -> str:
    names = [name for name in features if name in constant and role in VARIED]
    return f"The same value is in every row of {listed(names)}, so that none of these is taken. " if names else ""


def _several(near: Sequence[str], role: str, place: str) -> str:
    return (
        f"{place}: the {role} can be one of several columns: {listed(near)}. "
        f"Say which: task.columns.{role}={near[0]}, and put it into the task's YAML"
    )


def _there(column: str, role: str, features: Mapping[str, Any], place: str) -> None:
    if feature_of(column, features) is None:
        known = names_of(features)
        raise DataError(
            f"{place}: there is no column '{column}'{nearest(column, known) or '.'} The columns are: "
            f"{listed(known)}. Name one in task.columns.{role}",
            f"columns.{role}",
            column,
        )


def _kind_of_role(column: str | tuple[str, ...], features: Mapping[str, Any]) -> str:
    if isinstance(column, str):
        return kind_of(feature_of(column, features))
    return f"{len(column)} columns of {kind_of(feature_of(column[0], features))}"
