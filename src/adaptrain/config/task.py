"""The keys of a task and of its data: `task:` and `data:` of a run. `schema` shows them with the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

TaskType = Literal[
    "classification",
    "multilabel",
    "regression",
    "multiple_choice",
    "question_answering",
    "tagging",
    "dependency_parsing",
    "summarisation",
    "translation",
    "causal_lm",
    "masked_lm",
    "image_classification",
    "speech_recognition",
]


@dataclass(frozen=True)
class Roles:
    """The roles that columns have in the tasks of a type.

    Attributes:
        needed: that a column must play.
        optional: that one may.
    """

    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.needed, *self.optional, "id")


ROLES = {
    "classification": Roles(("text", "label"), ("text_pair",)),
    "multilabel": Roles(("text", "label"), ("text_pair",)),
    "regression": Roles(("text", "label"), ("text_pair",)),
    "multiple_choice": Roles(("choices", "label"), ("context", "question")),
    "question_answering": Roles(("question", "context", "answers")),
    "tagging": Roles(("tokens", "tags")),
    "dependency_parsing": Roles(("tokens", "heads", "relations")),
    "summarisation": Roles(("source", "target")),
    "translation": Roles(("source", "target")),
    "causal_lm": Roles((), ("text", "source", "target")),
    "masked_lm": Roles(("text",)),
    "image_classification": Roles(("image", "label")),
    "speech_recognition": Roles(("audio", "target")),
}
"""Type of a task → the roles of its columns."""

SAID = ("label", "answers", "tags", "heads", "relations", "target")
"""Roles of what a model should say; the others are what it reads. Rows to be asked about need none of them."""

MAPPED = {
    "classification": "label",
    "multilabel": "label",
    "multiple_choice": "label",
    "tagging": "tags",
    "dependency_parsing": "relations",
    "image_classification": "label",
}
"""Type of a task that has a label map → the role whose values are in it."""

WRITES = ("summarisation", "translation", "speech_recognition")
"""Types of tasks whose answers a model writes."""


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig:
    """Which column plays which role. Null: inferred from names and types (`docs/data.md`), or not there.

    Attributes:
        text, text_pair, question, context, source: one column, or several whose texts are joined by blanks.
        label: one column; where a row has several labels, also a column of 0 and 1 for each of them.
        choices: one column of lists, or of mappings of `text` and `label`, or a column for each choice.
        answers: `text` and `answer_start` of the right answers, lists that are empty where there is none.
        id: what a row is called in messages; no model reads it.
    """

    text: str | tuple[str, ...] | None = None
    text_pair: str | tuple[str, ...] | None = None
    label: str | tuple[str, ...] | None = None
    choices: str | tuple[str, ...] | None = None
    question: str | tuple[str, ...] | None = None
    context: str | tuple[str, ...] | None = None
    answers: str | None = None
    tokens: str | None = None
    tags: str | None = None
    heads: str | None = None
    relations: str | None = None
    source: str | tuple[str, ...] | None = None
    target: str | None = None
    image: str | None = None
    audio: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            if isinstance(given := getattr(self, f.name), list):  # as JSON has it
                object.__setattr__(self, f.name, tuple(given))

    def declared(self) -> dict[str, str | tuple[str, ...]]:
        """Role → column, of those that are given."""
        return {f.name: value for f in dataclasses.fields(self) if (value := getattr(self, f.name)) is not None}

    def problems(self) -> Iterator[tuple[str, str]]:
        seen: dict[str, str] = {}
        for role, given in self.declared().items():
            for column in (given,) if isinstance(given, str) else given:
                if not column.strip():
                    yield role, "is empty; name a column, or leave the key out"
                elif column in seen:
                    yield role, f"is '{column}', which is the column of {seen[column]} already"
                seen[column] = role


@dataclass(frozen=True, kw_only=True)
class CarveConfig:
    """A split that the data do not have, taken out of one that they have. Its rows are drawn by this seed alone, so
    that they are the same in every run, and are no longer in the split that they come from.

    Attributes:
        of: the split that gives rows.
        to: name of the new one, for `splits.validation` or `splits.test`.
        rows: how many; or
        fraction: of the rows of `of`.
    """

    of: str = "train"
    to: str
    rows: int | None = None
    fraction: float | None = None
    seed: int = 0

    def problems(self) -> Iterator[tuple[str, str]]:
        if (self.rows is None) == (self.fraction is None):
            yield "rows", "and fraction: give one of them"
        if self.rows is not None and self.rows < 1:
            yield "rows", f"is {self.rows}; it must be at least 1"
        if self.fraction is not None and not 0 < self.fraction < 1:
            yield "fraction", f"is {self.fraction}; it must lie between 0 and 1"
        if self.of == self.to:
            yield "to", f"is '{self.to}', the split that gives the rows; choose another name"
        if not 0 <= self.seed < 2**32:
            yield "seed", f"is {self.seed}; it must lie in [0, 2^32)"


@dataclass(frozen=True, kw_only=True)
class SplitsConfig:
    """Names of the splits; `validation` chooses the best epoch and is what the score is reported on unless `test` is
    named, which then is only scored. `carve` makes one that the data lack."""

    train: str = "train"
    validation: str = "validation"
    test: str | None = None
    carve: CarveConfig | None = None

    def __post_init__(self) -> None:
        if isinstance(self.carve, dict):  # as JSON has it
            object.__setattr__(self, "carve", CarveConfig(**self.carve))

    def roles(self) -> dict[str, str]:
        """Name → what the split is for: `trains`, `chooses`, `scores`."""
        found: dict[str, list[str]] = {}
        for name, word in ((self.train, "trains"), (self.validation, "chooses"), (self.reported, "scores")):
            found.setdefault(name, []).append(word)
        return {name: " and ".join(words) for name, words in found.items()}

    @property
    def reported(self) -> str:
        """The split whose score stands in the table."""
        return self.validation if self.test is None else self.test

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.carve is not None and self.carve.to not in (self.validation, self.test):
            yield "carve", f"makes the split '{self.carve.to}', which neither validation nor test names"


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How a model writes an answer.

    Attributes:
        max_new_tokens: at most so many.
        num_beams: 1 takes the likeliest token each time.
        length_penalty: of beams: above 0 favours longer ones.
        no_repeat_ngram_size: no n tokens twice; 0 allows it.
        language: of transcripts, for a model that writes several: `en`, `french`.
    """

    max_new_tokens: int = 64
    num_beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    language: str | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        for key in ("max_new_tokens", "num_beams"):
            if getattr(self, key) < 1:
                yield key, f"is {getattr(self, key)}; it must be at least 1"
        if self.no_repeat_ngram_size < 0:
            yield "no_repeat_ngram_size", f"is {self.no_repeat_ngram_size}; it must be at least 0"
        if self.num_beams == 1 and self.length_penalty != 1.0:
            yield "length_penalty", f"is {self.length_penalty}, and num_beams=1 compares no lengths; raise num_beams"


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """A task: rows, roles, labels, metric.

    Attributes:
        name: of the task, and of its folder in a local mirror.
        type: shape of the task.
        path: hub id, local folder, file, a file with `{split}` in its name, or `package:module:folder`.
        subset: configuration of a hub data set.
        columns: what is not said there is inferred.
        labels: the label map in order; a row's label is its index or its name. Empty for what has no classes; of a
            classification it is then inferred from the training split. Of a multiple choice: what the choices are
            called in the label column.
        metric: the one that chooses the best checkpoint and stands in the table.
        extra_metrics: also computed and saved.
        prompt: what the model reads of a source: a text with `{source}` in it. For tasks with a target.
        generation: how it writes an answer, for tasks whose answers are written.
    """

    name: str
    type: TaskType
    path: str
    subset: str | None = None
    revision: str | None = None
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    labels: tuple[str, ...] = ()
    splits: SplitsConfig = field(default_factory=SplitsConfig)
    metric: str
    extra_metrics: tuple[str, ...] = ()
    prompt: str | None = None
    generation: GenerationConfig = field(default_factory=GenerationConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        mapped = self.type in MAPPED
        if mapped and len(self.labels) == 1:
            yield "labels", f"needs at least two names for task.type={self.type}, or none: they are then inferred"
        if not mapped and self.labels:
            words = ", whose words are the labels themselves" if self.type == "masked_lm" else ""
            yield "labels", f"must be empty for task.type={self.type}{words}"
        roles = ROLES[self.type].all
        for role, column in self.columns.declared().items():
            if role not in roles:
                words = "; words are masked in one text a row" if self.type == "masked_lm" else ""
                yield f"columns.{role}", f"is '{column}'; task.type={self.type} has the roles {', '.join(roles)}{words}"
        if isinstance(self.columns.label, tuple) and self.type != "multilabel":
            yield "columns.label", f"names several columns; task.type={self.type} has one label a row"
        if len(set(self.labels)) < len(self.labels):
            yield "labels", "names a label twice"
        if self.prompt is not None and "source" not in roles:
            yield "prompt", f"is set; task.type={self.type} has no source that could stand in it"
        if self.prompt is not None and "{source}" not in self.prompt:
            yield "prompt", "has no {source} in it, so that every row would be the same"
        elif self.prompt is not None and self.prompt.count("{source}") > 1:
            yield "prompt", "has {source} in it more than once; a source is read once"
        if self.type == "causal_lm" and self.columns.text is not None:
            for role in ("source", "target"):
                if getattr(self.columns, role) is not None:
                    yield f"columns.{role}", "is given beside columns.text; a row is a text, or a source and a target"
        if self.generation.language is not None and self.type in WRITES and self.type != "speech_recognition":
            yield "generation.language", f"is set; task.type={self.type} does not read it"
        if self.generation != GenerationConfig() and self.type not in WRITES:
            yield "generation", f"is set; the answers of task.type={self.type} are not written"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where rows come from and how many are used.

    Attributes:
        mirror: folder of `<task>/<split>.jsonl` that stands in for the hub.
        max_train: use only the first n training rows (after the seeded shuffle).
        max_eval: use only the first n evaluation rows.
        max_length: longest input in tokens; longer ones are truncated and counted. A context that is asked about is
            read in windows of this length instead.
        stride: tokens that two windows of a context share.
        max_target_length: longest target in tokens that is trained on; longer ones are truncated and counted.
        bad_rows: what becomes of rows with an empty or missing text, a wrong type or a label outside the map: `error`
            refuses the split, `skip` leaves them out and counts them.
    """

    mirror: str | None = None
    max_train: int | None = None
    max_eval: int | None = None
    max_length: int = 128
    stride: int = 64
    max_target_length: int = 128
    bad_rows: Literal["error", "skip"] = "error"

    def problems(self) -> Iterator[tuple[str, str]]:
        for key in ("max_train", "max_eval", "max_length", "stride", "max_target_length"):
            value = getattr(self, key)
            if value is not None and value < 1:
                yield key, f"is {value}; it must be at least 1"
