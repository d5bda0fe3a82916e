"""`adaptrain data`: what a person should know of data before training on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptrain.cli.arguments import read_columns, split
from adaptrain.cli.screen import print_rows
from adaptrain.config.library import is_yaml
from adaptrain.errors import DataError, UsageError, listed

if TYPE_CHECKING:
    from adaptrain.config.schema import RunConfig, TaskConfig
    from adaptrain.tasks.columns import Role
    from adaptrain.tasks.settle import Settled
    from adaptrain.tasks.sources import Source
    from adaptrain.tasks.survey import Measure, SplitSurvey, Survey

MOST = 20
"""Labels that are shown."""

SIZES = {"images": "longer sides in pixels", "sound": "lengths in seconds"}
"""What is measured of rows that are no texts."""

_MEANT = {
    "classification": {"text", "label"},
    "masked_lm": {"text"},
    "dependency_parsing": {"tokens", "heads", "relations"},
    "tagging": {"tokens", "tags"},
    "question_answering": {"question", "context", "answers"},
    "multiple_choice": {"choices", "label"},
    "translation": {"source", "target"},
    "image_classification": {"image", "label"},
    "speech_recognition": {"audio", "target"},
}
"""Type of a task → the roles that mean it in data without a task. Of tasks of a source and a target it does not matter
which: they are checked alike."""

_STRUCTURED = ("dependency_parsing", "tagging", "question_answering", "multiple_choice")
"""Types whose roles are so rare that they decide, whatever other columns there are."""

_CHOICES = ("recipe=", "model=", "model.name=")
_EXAMPLE = 60


def run(arguments: Sequence[str]) -> int:
    """Print the report; the error at its end is the one that training would raise."""
    from adaptrain.config.compose import compose

    found = split(arguments, config=True)
    if len(found.paths) > 1:
        raise UsageError(f"adaptrain data takes one PATH, not {len(found.paths)}: {listed(found.paths)}")
    if found.paths and is_yaml(found.paths[0]):
        raise UsageError(f"{found.paths[0]} is no data but says where they are: adaptrain data task={found.paths[0]}")
    named = [override for override in found.overrides if override.split("=")[0] in ("task", "recipe")]
    if found.paths and named:
        raise UsageError(f"PATH and {listed(named)} both say what to look at: leave one of them out")
    if not found.paths and not named:
        raise UsageError("adaptrain data needs a PATH or task=NAME; see adaptrain data --help")
    typed = not found.paths or any(override.startswith("task.type=") for override in found.overrides)
    splits = not found.paths or any(override.startswith("task.splits.") for override in found.overrides)
    tokens = any(override.startswith(_CHOICES) for override in found.overrides)
    columns = [] if typed else [override for override in found.overrides if override.startswith("task.columns.")]
    others = [override for override in found.overrides if override not in columns]
    composed = compose([*(["task=own", *_metrics(others)] if found.paths else []), *others])
    config = composed.config
    if found.paths:
        if config.data.mirror is not None:
            raise UsageError("data.mirror is for task=NAME: a PATH is read as it is")
        task = dataclasses.replace(config.task, path=found.paths[0], name=Path(found.paths[0]).name)
        if columns:
            task = dataclasses.replace(task, columns=read_columns(columns))
        config = dataclasses.replace(config, task=task)
    for note in composed.notes:
        print(f"note: {note}")
    with composed.explaining():
        return _report(config, typed, splits, tokens, "" if found.paths else "task.path=")


def _metrics(overrides: Sequence[str]) -> list[str]:
    """A metric for the type that is given, so that those of `task=own` need not be changed to look at rows."""
    from adaptrain.evaluation.metrics import METRICS

    kinds = [override.removeprefix("task.type=") for override in overrides if override.startswith("task.type=")]
    fitting = [each for each in METRICS.values() if kinds and kinds[-1] in each.task_types and each.labels is None]
    return [f"task.metric={fitting[0].name}", "task.extra_metrics=[]"] if fitting else []


def _report(config: RunConfig, typed: bool, splits: bool, tokens: bool, key: str) -> int:
    """
    Args:
        typed: whether the config says what the rows are for.
        splits: whether it says which splits there are; else all that are found are looked at.
        tokens: whether lengths are measured in a model's tokens.
        key: what stands before the path in messages.
    """
    from adaptrain.tasks.hints import unused_note
    from adaptrain.tasks.shapes import SHAPES
    from adaptrain.tasks.sources import locate
    from adaptrain.tasks.survey import Remembered, survey

    source = Remembered(locate(config.task, config.data, key))
    if typed and not splits:
        config = _with_train(config, _found(source))
    settled, roles, unused = _settled(config, source, typed)
    task = config.task if settled is None else settled.task
    uses = task.splits.roles() if splits else dict.fromkeys(_found(source), "")
    missing = _missing(source, uses)
    uses = {name: use for name, use in uses.items() if name not in missing}
    reads = "texts" if settled is None else SHAPES[task.type].reads
    measure, unit = _measure(config, tokens and reads == "texts")
    tokens, unit = tokens and reads == "texts", SIZES.get(reads, f"lengths in {unit}")
    made = survey(source, uses, roles, measure, None if settled is None else settled.task)

    kind = "no task" if settled is None else task.type
    title = f"{task.name}  ({kind}, {source.place})"
    print_rows(*_splits(made, splits), title=title, right=range(1 + splits, 5 + splits))
    rows = [
        [role.name, ", ".join(role.columns), "declared" if role.declared else "inferred", role.kind, _short(example)]
        for role, example in ((role, made.examples.get(role.name)) for role in roles)
    ]
    rows += [["-", column, "not used", "", ""] for column in unused]
    print()
    print_rows(["role", "column", "how", "type", "first row"], rows, title="columns", cut=True)
    _print_labels(made, settled is not None)
    _print_lengths(made, unit, config.data.max_length if tokens else None)
    _print_bad(made)
    if made.overlaps:
        print()
        shared = [[f"{o.first} / {o.second}", f"{o.rows:,}", _count(o.conflicting)] for o in made.overlaps]
        title = "rows of the second split whose input stands in the first"
        print_rows(["splits", "rows", "other answer"], shared, title=title, right=(1, 2))
    notes = _no_task(source, roles) if settled is None else (*settled.notes, *unused_note(task, unused))
    _print_notes(made, notes, _others(source, uses), tokens or reads != "texts")
    return _end(config, made, missing)


def _with_train(config: RunConfig, found: Sequence[str]) -> RunConfig:
    """The config whose training split is one that is there: the first, where it has another name."""
    from adaptrain.tasks.splits import usual

    task = config.task
    if usual(task.splits.train) in map(usual, found):
        return config
    return dataclasses.replace(
        config, task=dataclasses.replace(task, splits=dataclasses.replace(task.splits, train=found[0]))
    )


def _settled(config: RunConfig, source: Source, typed: bool) -> tuple[Settled | None, Any, tuple[str, ...]]:
    """The task, where there is one; the roles of its columns, and the columns without."""
    from adaptrain.tasks.columns import free_roles
    from adaptrain.tasks.features import constant_columns
    from adaptrain.tasks.settle import settle_task

    task = config.task
    if not typed:
        first = _found(source)[0]
        table = source.read(first)
        place = f"{source.place}, split '{first}'"
        roles, unused = free_roles(table.features, task.columns, place, constant_columns(table))
        kinds = {role.name: role.kind for role in roles if role.name != "id"}
        guessed = _as_task(task, kinds, first)
        if guessed is None:
            return None, roles, unused
        task = guessed
    settled = settle_task(task, config.data, source)
    return settled, settled.roles, settled.unused


def _as_task(task: TaskConfig, kinds: Mapping[str, str], train: str) -> TaskConfig | None:
    """The task that rows of these roles are for; None where there is none, or more than one."""
    from adaptrain.config.schema import ColumnsConfig
    from adaptrain.config.task import MAPPED, ROLES
    from adaptrain.tasks.shapes import SHAPES

    found = set(kinds)
    fitting = [kind for kind, needed in _MEANT.items() if needed <= found <= {*needed, *ROLES[kind].all}]
    said = task.columns.declared().keys()
    rare = [kind for kind in _STRUCTURED if _MEANT[kind] <= found and said <= {*ROLES[kind].all}]
    kind = next(iter((*fitting, *rare)), None)
    if kind == "classification" and kinds["label"] == "number":
        kind = "regression"
    elif kind == "classification" and ("list of" in kinds["label"] or "columns of" in kinds["label"]):
        kind = "multilabel"
    if kind not in SHAPES:
        return None
    declared = {role: column for role, column in task.columns.declared().items() if role in ROLES[kind].all}
    given: dict[str, Any] = declared
    return dataclasses.replace(
        task,
        type=kind,
        columns=ColumnsConfig(**given),
        labels=task.labels if kind in MAPPED else (),
        splits=dataclasses.replace(task.splits, train=train),
    )


def _found(source: Source) -> tuple[str, ...]:
    """The splits of a PATH: what else lies in the folder is not looked at where there are some."""
    from adaptrain.tasks.formats import SUFFIXES, unread_of
    from adaptrain.tasks.splits import names_split

    names = source.splits()
    if not names:
        why = unread_of(Path(source.place))
        raise DataError(f"{source.place} holds no data file ({listed(SUFFIXES)}). {why}Name another PATH")
    return tuple(name for name in names if names_split(name)) or names


def _missing(source: Source, uses: Mapping[str, str]) -> dict[str, DataError]:
    """Splits that a task names and that cannot be had."""
    missing = {}
    for name in uses:
        try:
            source.read(name)
        except DataError as error:
            missing[name] = error
    if len(missing) == len(uses):
        raise next(iter(missing.values()))
    return missing


def _others(source: Source, uses: Mapping[str, str]) -> list[str]:
    """Splits that are there and that the task does not name."""
    from adaptrain.tasks.splits import usual

    used = {usual(name) for name in uses}
    return [name for name in source.splits() if usual(name) not in used]


def _measure(config: RunConfig, tokens: bool) -> tuple[Measure, str]:
    from adaptrain.tasks.survey import token_measure, words

    if not tokens:
        return words, "words"
    from adaptrain.training.base_model import find_base, load_tokenizer

    return token_measure(load_tokenizer(find_base(config.model))), f"tokens of {config.model.name}"


def _splits(made: Survey, typed: bool) -> tuple[list[str], list[list[str]]]:
    rows = []
    for each in made.splits:
        counts = (each.rows, len(each.bad), each.duplicates, each.conflicting)
        rows.append([each.name, *([each.use] if typed else []), *map(_count, counts)])
    return ["split", *(["use"] if typed else []), "rows", "bad", "repeated", "conflicting"], rows


def _count(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def _no_task(source: Source, roles: Sequence[Role]) -> list[str]:
    """What to say of rows whose type of task is not known."""
    from adaptrain.config.task import SAID
    from adaptrain.tasks.hints import hints

    notes = []
    if not any(role.name not in (*SAID, "id") for role in roles):
        keys = "task.columns.source=NAME, task.columns.text=NAME, …"
        notes.append(f"no column has a name that says its role, so that repeated rows are not counted: {keys}")
    elif not any(role.name in SAID for role in roles):
        keys = "task.columns.label=NAME, task.columns.target=NAME, …"
        notes.append(f"no column is known to be the answer, so that conflicting rows are not counted: {keys}")
    return notes + hints(source.read(_found(source)[0]))


def _print_labels(made: Survey, mapped: bool) -> None:
    """Those of a map in its order, others by how often they occur."""
    counted = [each for each in made.splits if each.balance is not None]
    if counted:
        order = list(dict.fromkeys(label for each in counted for label in each.balance or ()))
        totals = {label: sum((each.balance or {}).get(label, 0) for each in counted) for label in order}
        if len(order) > MOST or not mapped:
            order.sort(key=lambda label: -totals[label])
        shown = order[:MOST]
        heads = ["label", *(word for each in counted for word in (each.name, "%"))]
        rows = [[_short(label), *(cell for each in counted for cell in _share(each, label))] for label in shown]
        more = f"  (the {MOST} most frequent of {len(order)})" if len(order) > MOST else ""
        print()
        print_rows(heads, rows, title=f"labels{more}", right=range(1, len(heads)))
    if measured := [each for each in made.splits if len(each.numbers)]:
        heads = ["split", "mean", "deviation", "least", "greatest"]
        rows = [
            [each.name, *(f"{n:.3f}" for n in (x.mean(), x.std(), x.min(), x.max()))]
            for each in measured
            for x in (each.numbers,)
        ]
        print()
        print_rows(heads, rows, title="labels", right=range(1, len(heads)))


def _share(each: SplitSurvey, label: str) -> tuple[str, str]:
    balance = each.balance or {}
    total = sum(balance.values())
    return f"{balance.get(label, 0):,}", f"{100 * balance.get(label, 0) / total:.1f}" if total else "-"


def _print_lengths(made: Survey, unit: str, longest: int | None) -> None:
    import numpy as np

    heads = ["split", "least", "median", "90%", "95%", "99%", "longest"]
    if longest is not None:
        heads += [f"over {longest}", "%"]
    rows = []
    for each in made.splits:
        if not len(each.lengths):
            continue
        points = np.percentile(each.lengths, (0, 50, 90, 95, 99, 100), method="higher")
        digits = 0 if (each.lengths == each.lengths.round()).all() else 1
        row = [each.name, *(f"{point:,.{digits}f}" for point in points)]
        if longest is not None:
            cut = each.cut(longest)
            row += [f"{cut:,}", f"{100 * cut / len(each.lengths):.1f}"]
        rows.append(row)
    if rows:
        print()
        print_rows(heads, rows, title=unit, right=range(1, len(heads)))


def _print_bad(made: Survey) -> None:
    rows = []
    for each in made.splits:
        for reason in dict.fromkeys(bad.reason for bad in each.bad):
            found = [bad for bad in each.bad if bad.reason == reason]
            numbers = listed(bad.row for bad in found[:5]) + (" …" if len(found) > 5 else "")
            rows.append([each.name, reason, f"{len(found):,}", numbers])
    if rows:
        print()
        print_rows(["split", "reason", "rows", "which"], rows, title="bad rows", cut=True, right=(2,))


def _print_notes(made: Survey, notes: Sequence[str], others: Sequence[str], measured: bool) -> None:
    lines = list(notes)
    if others:
        lines.append(f"not looked at: {listed(others)}")
    lines += [f"split '{each.name}' has no label of the map" for each in made.splits if each.unlabelled]
    if not measured and any(len(each.lengths) for each in made.splits):
        lines.append("model=NAME measures lengths in that model's tokens, and says how many rows data.max_length cuts")
    if lines:
        print()
    for line in lines:
        print(f"note: {line}")


def _end(config: RunConfig, made: Survey, missing: Mapping[str, DataError]) -> int:
    """0, or the error that training would stop with."""
    if missing:
        first = next(iter(missing.values()))
        raise DataError("\n".join(map(str, missing.values())), first.key, first.value)
    from adaptrain.tasks.bad_rows import LABEL

    bad = [each for each in made.splits if each.bad]
    if bad and config.data.bad_rows == "error":
        counts = ", ".join(f"{len(each.bad):,} of split '{each.name}'" for each in bad)
        raise DataError(
            f"Bad rows: {counts}. The first: {bad[0].bad[0].told}. data.bad_rows=error refuses them; "
            "data.bad_rows=skip leaves them out",
            "labels" if bad[0].bad[0].reason == LABEL else None,
        )
    return 0


def _short(value: Any) -> str:
    """A value on one line, cut."""
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= _EXAMPLE else f"{text[: _EXAMPLE - 1]}…"
