"""Asking a saved run about rows that nobody has labelled: what `adaptrain predict` does."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from adaptrain.errors import CheckpointError, DataError, OutputError, UsageError, listed, nearest
from adaptrain.evaluation.branches import branches_of
from adaptrain.evaluation.overrides import Overrides
from adaptrain.evaluation.predict import predict
from adaptrain.evaluation.saved import SavedRun, load_saved, read_saved
from adaptrain.files import write_text
from adaptrain.tasks.asked import Asked, Given, asked_rows, id_column, roles_read
from adaptrain.tasks.features import kind_of
from adaptrain.tasks.formats import read_file
from adaptrain.tasks.room import read_rows
from adaptrain.tasks.shapes import SHAPES
from adaptrain.training.precision import find_hardware

OUTPUTS = ("csv", "jsonl")
"""Endings of files that predictions are written to."""

ROW, ERROR = "row", "error"
"""Names in every row of the output: its number, and of a bad row what is wrong with it."""


@dataclass(frozen=True)
class Answers:
    """What a run says of rows.

    Attributes:
        folder: of the run.
        task: its name.
        rows: one mapping for each row of the input, in its order: `row`, its number from 1; the column that says what
            it is called, and those that were asked for; then what the model says (`Shape.said`), or `error`.
        bad: how many have an `error`.
        columns: role → the column that was read.
        notes: what a person should know.
    """

    folder: Path
    task: str
    rows: list[dict[str, Any]]
    bad: int
    columns: Given
    notes: tuple[str, ...]


def predict_file(folder: Path, file: Path, overrides: Overrides | None = None, **options: Any) -> Answers:
    """Ask a saved run about the rows of a data file, of any format that training reads (`docs/data.md`).

    Args:
        overrides: as of `evaluate_folder`.
        options: as of `predict_table`.

    Raises:
        DataError: the file is missing, empty or unreadable; else as `predict_table`.
    """
    saved = saved_run(folder, overrides)
    own: dict[str, Any] = {"home": Path(file).parent}
    return _answers(saved, read_file(Path(file)), str(file), **(own | options))


def predict_rows(
    folder: Path, rows: Sequence[Mapping[str, Any]], overrides: Overrides | None = None, **options: Any
) -> Answers:
    """Ask a saved run about rows: each has a value for every role that the task reads, such as `text`.

    Args:
        overrides: as of `evaluate_folder`.
        options: as of `predict_table`.

    Raises:
        UsageError: a row has other roles.
        DataError: there is no row; else as `predict_table`.
    """
    saved = saved_run(folder, overrides)
    roles = roles_read(saved.task)
    if not rows:
        raise DataError("There is no row to predict")
    for row in rows:
        if wrong := [role for role in row if role not in roles]:
            raise UsageError(
                f"task {saved.task.name} ({saved.task.type}) reads no '{wrong[0]}'{nearest(wrong[0], roles) or '.'} "
                f"It reads: {listed(roles)}"
            )
        if missing := [role for role in roles if role not in row]:
            raise UsageError(
                f"task {saved.task.name} ({saved.task.type}) reads {' and '.join(roles)}, and there is no {missing[0]}"
            )
    table = datasets.Dataset.from_dict({role: [row[role] for row in rows] for role in roles})
    own: dict[str, Any] = {"columns": {role: role for role in roles}}
    return _answers(saved, table, "what was given", **(own | options))


def predict_table(
    folder: Path, table: datasets.Dataset, place: str, overrides: Overrides | None = None, **options: Any
) -> Answers:
    """Ask a saved run about the rows of a table.

    Args:
        place: of the table, for messages.
        overrides: as of `evaluate_folder`.
        columns: role → its column; the others are those of training, or bear the role's name, or are the only ones
            that can be meant.
        skip_bad: give bad rows an `error` instead of refusing the table.
        keep: columns that stand in the output too; None for all.
        home: the folder that relative paths in the rows start from: that of a file; None for where the program runs.
        precision: `auto`, `fp32` or `bf16`; that of training when None.
        batch_size: that of training when None.
        device: `auto`, or a name.

    Raises:
        CheckpointError: not a run folder, or damaged; a run with branches, each of which has a folder of its own.
        DataError: a column is missing, or several could be meant; a row is bad.
        ModelError: the base model is missing, or another one.
    """
    return _answers(saved_run(folder, overrides), table, place, **options)


def saved_run(folder: Path, overrides: Overrides | None = None) -> SavedRun:
    """A run that can be asked.

    Raises:
        CheckpointError: not a run folder, or damaged; a run with branches.
        ConfigError, ModelError: as `read_saved`.
    """
    if branches := branches_of(Path(folder)):
        raise CheckpointError(
            f"{folder} has branches, each with a task of its own; name one of them: {listed(branches)}"
        )
    return read_saved(Path(folder), overrides)


def _answers(
    saved: SavedRun,
    table: datasets.Dataset,
    place: str,
    *,
    columns: Given | None = None,
    skip_bad: bool = False,
    keep: Sequence[str] | None = (),
    home: Path | None = None,
    precision: str | None = None,
    batch_size: int | None = None,
    device: str = "auto",
) -> Answers:
    task = saved.task
    carried = _carried(table, place, id_column(task, table.features), keep)
    asked = asked_rows(table, task, place, columns, home)
    if asked.bad and not skip_bad:
        more = f". {len(asked.bad)} of {len(table)} rows are bad" if len(asked.bad) > 1 else ""
        raise DataError(f"{asked.bad[0].told}{more}; --skip-bad writes the error instead of a prediction")
    said, notes = _said(saved, asked, precision, batch_size, device)
    if said and (twice := [name for name in carried if name in said[0]]):
        raise DataError(
            f"{place}: the column '{twice[0]}' would stand twice in the output; rename it, or do not keep it"
        )
    found = dict(zip(asked.places, said, strict=True)) | {each.row - 1: {ERROR: each.told} for each in asked.bad}
    rows = [
        {ROW: number + 1, **{name: values[number] for name, values in carried.items()}, **found[number]}
        for number in range(len(table))
    ]
    return Answers(saved.folder, task.name, rows, len(asked.bad), asked.columns, (*asked.notes, *notes))


def _said(
    saved: SavedRun, asked: Asked, precision: str | None, batch_size: int | None, device: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """What the model says of each row that is not bad, and what a person should know of that."""
    if not len(asked.rows):  # the model need not be loaded to say nothing
        return [], []
    hardware = find_hardware(device, precision or saved.precision, saved.trains_base)
    model, reader = load_saved(saved, hardware)
    read, size = read_rows(reader, asked.rows, model), batch_size or saved.eval_batch_size
    predictions = predict(model, reader, read, saved.task, size, hardware, settings=saved.settings)
    cut, notes = read.encoded.truncated, []
    if cut:
        notes.append(f"{cut} of {len(asked.rows)} rows were cut to {reader.max_length} tokens")
    if hardware.precision.name != saved.precision:
        notes.append(f"computed in {hardware.precision.name}, trained in {saved.precision}")
    return list(SHAPES[saved.task.type].said(predictions)), notes


def _carried(
    table: datasets.Dataset, place: str, name: str | None, keep: Sequence[str] | None
) -> dict[str, Sequence[Any]]:
    """The columns of the input that stand in the output."""
    features = table.features
    binary = [column for column in features if kind_of(features[column]) in ("image", "audio")]
    wanted = [column for column in features if column not in binary] if keep is None else list(keep)
    for column in wanted:
        if column not in features:
            raise DataError(
                f"{place}: there is no column '{column}' to keep{nearest(column, features) or '.'} "
                f"The columns are: {listed(features)}"
            )
        if column in binary:
            raise DataError(f"{place}: the column '{column}' is {kind_of(features[column])}, which cannot be kept")
    names = dict.fromkeys([*((name,) if name is not None else ()), *wanted])
    if twice := [column for column in names if column in (ROW, ERROR)]:
        raise DataError(
            f"{place}: the column '{twice[0]}' would stand twice in the output; rename it, or do not keep it"
        )
    return {column: table[column][:] for column in names}


# ---- files


def check_output(file: Path, source: Path | None = None, force: bool = False) -> None:
    """Refuse a place that predictions cannot go to, before they are computed.

    Args:
        source: the file of the rows.
        force: whether what is there may be replaced.

    Raises:
        UsageError: its ending is no format's; it is `source` itself.
        OutputError: it is there already, or its folder is not.
    """
    if file.suffix.removeprefix(".") not in OUTPUTS:
        raise UsageError(f"--output {file}: its name must end in one of {listed(f'.{ending}' for ending in OUTPUTS)}")
    if not file.parent.is_dir():
        raise OutputError(f"Cannot write {file}: there is no folder {file.parent}; make it, or name another")
    if file.is_dir():
        raise OutputError(f"Cannot write {file}: it is a folder; name a file")
    if file.exists():
        if source is not None and source.exists() and file.samefile(source):
            raise UsageError(f"--output {file} is the file of --input; name another")
        if not force:
            raise OutputError(f"{file} is there already; name another file, or give --force to replace it")


def write_answers(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows in one piece, as the file's ending says: the file is there whole, or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    write_text(file, as_csv(rows) if file.suffix == ".csv" else "".join(f"{line}\n" for line in as_json(rows)))


def as_json(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A JSON object for each row."""
    return (json.dumps(row, ensure_ascii=False, default=str) for row in rows)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each row under one of names; mappings as a column for each key (`probabilities.good`), lists as JSON.
    Texts are quoted and numbers are not; what a row does not have is empty."""
    flat = [flattened(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(names)
    for row in flat:
        cells = (row.get(name, "") for name in names)
        writer.writerow([json.dumps(cell, ensure_ascii=False) if isinstance(cell, list) else cell for cell in cells])
    return text.getvalue()


def flattened(row: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """A row without mappings in it: `{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        found |= flattened(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return found
