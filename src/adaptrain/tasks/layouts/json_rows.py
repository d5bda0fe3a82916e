"""JSON: an object a line, a list of objects, and the forms in which rows lie inside one object.

    {"version": …, "data": [{…}, {…}]}              rows under `data`, or under the only key
    {"data": [{"paragraphs": […]}]}                 SQuAD (`layouts.squad`)
    {"text": ["a", "b"], "label": [0, 1]}           columns
    {"text": {"0": "a", "1": "b"}, "label": {…}}    columns, as `to_json` of pandas writes them
    {"columns": ["text", …], "data": [["a", …]]}    the same with orient="split"

One object on the only line of a `.jsonl` is a row, unless it has rows under `data`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptrain.errors import DataError, listed
from adaptrain.tasks.layouts.squad import is_squad, squad_rows
from adaptrain.tasks.layouts.texts import not_utf8

HELD = "data"
"""The key under which the field puts the rows of a file."""

_ROLES = ("answers", "choices", "options")
"""Columns of a row that may be lists of objects."""

_FORMS = (
    "one object a line, one list of objects, an object with the list of rows under 'data', SQuAD's own form, or an "
    "object with a list for each column"
)


def json_rows(file: Path, place: str, work: Path, lines: bool) -> Path:
    """A file of one object a line, or of one list of objects.

    Args:
        place: what to call the file in messages.
        work: the folder for a file with the rows, where they do not lie like this in `file`.
        lines: whether the ending says that there is a row a line.

    Returns:
        `file` itself, or the one in `work`.

    Raises:
        DataError: names the file and the line.
    """
    try:
        rows = _rows(file, place, lines)
    except UnicodeDecodeError as error:
        raise not_utf8(file, place) from error
    except RecursionError:
        raise DataError(f"{place}: lists and objects lie in each other too deep to be rows. Correct the file") from None
    if rows is None:
        return file
    if not rows:
        raise DataError(f"{place} has no rows")
    flat = work / "rows.jsonl"
    with flat.open("w", encoding="utf-8") as out:
        out.writelines(f"{json.dumps(row)}\n" for row in rows)
    return flat


def _rows(file: Path, place: str, lines: bool) -> list[dict[str, Any]] | None:
    """The rows of a file that are inside one object; None where each row is a line, or an item of a list."""
    with file.open("rb") as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="\n") as stream:
        number, first = next(((at, line) for at, line in enumerate(stream, start=1) if line.strip()), (0, ""))
        if not number:
            raise DataError(f"{place} is empty")
        if first.lstrip().startswith("["):
            return _of_list("\n" * (number - 1) + first + stream.read(), place)
        try:
            row = json.loads(first)
        except json.JSONDecodeError as error:
            text = "\n" * (number - 1) + first + stream.read()
            return _of_text(text, number, place, _broken_line(error, number, place), lines)
        _check_object(row, f"{place}:{number}")
        alone = True
        for at, line in enumerate(stream, start=number + 1):
            if line.strip():
                alone = False
                _check_line(line, at, place)
    return _inside(row, place, lines) if alone else None


def _of_list(text: str, place: str) -> list[dict[str, Any]] | None:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}:{error.lineno}: broken JSON ({error.msg}, column {error.colno})") from error
    for number, row in enumerate(rows, start=1):
        _check_object(row, f"{place}, item {number}")
    return squad_rows(rows, place) if is_squad(rows) else None


def _of_text(text: str, first: int, place: str, broken: DataError, lines: bool) -> list[dict[str, Any]]:
    """The rows of one object that takes several lines.

    Args:
        first: the line on which it begins.
        broken: what is wrong with that line, if it should be a row.
    """
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.lineno > first:
            raise DataError(
                f"{place}:{error.lineno}: a second object begins, and the first takes several lines. Write each row "
                "on one line, or all of them as one list"
            ) from error
        if lines or error.lineno == first:
            raise broken from error
        raise DataError(f"{place}:{error.lineno}: broken JSON ({error.msg}, column {error.colno})") from error
    _check_object(whole, place)
    rows = _inside(whole, place, lines=False)
    return [whole] if rows is None else rows


def _inside(value: Mapping[str, Any], place: str, lines: bool) -> list[dict[str, Any]] | None:
    """The rows that an object holds; None where it is a row itself.

    Raises:
        DataError: it seems to hold rows, but not in a form that is read.
    """
    held: Any = value.get(HELD)
    if isinstance(held, list) and isinstance(value.get("columns"), list) and not _objects(held):
        return _split(value["columns"], held, place)
    if _objects(held):
        return _items(held, f"{place}, {HELD}")
    if lines:
        return None
    if len(value) == 1 and _objects(only := next(iter(value.values()))):
        return _items(only, f"{place}, {next(iter(value))}")
    if all(isinstance(column, list) for column in value.values()) and not all(map(_objects, value.values())):
        return _columns(value, place)
    if value and all(isinstance(each, Mapping) for each in value.values()):
        if indices := _indices(list(value.values())):
            return _columns({name: [column[index] for index in indices] for name, column in value.items()}, place)
        if all(name.isdecimal() for name in value):  # orient="index"
            return list(value.values())
    if nested := [key for key, each in value.items() if key not in _ROLES and _objects(each)]:
        raise DataError(
            f"{place} is one JSON object with the keys {listed(value)}, and no row: there are objects in "
            f"{listed(nested)}. Read are {_FORMS}. Write the rows like this, those of each split into a file of its own"
        )
    return None


def _items(rows: Sequence[Any], place: str) -> list[dict[str, Any]]:
    for number, row in enumerate(rows, start=1):
        _check_object(row, f"{place}, item {number}")
    return squad_rows(rows, place) if is_squad(rows) else list(rows)


def _columns(columns: Mapping[str, Sequence[Any]], place: str) -> list[dict[str, Any]]:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        counts = listed(f"{name} has {count}" for name, count in lengths.items())
        raise DataError(f"{place}: the columns have different numbers of values: {counts}. Correct the file")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _split(names: Sequence[Any], rows: Sequence[Any], place: str) -> list[dict[str, Any]]:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, list) or len(row) != len(names):
            raise DataError(
                f"{place}, {HELD}, item {number}: there are {len(names)} columns ({listed(names)}), and the row is "
                f"{json.dumps(row)[:40]}. Correct the file"
            )
    return [dict(zip(map(str, names), row, strict=True)) for row in rows]


def _indices(columns: Sequence[Mapping[str, Any]]) -> list[str]:
    """The numbers of the rows, where each column is an object of the same numbers."""
    indices = list(columns[0])
    same = all(list(column) == indices for column in columns)
    return indices if same and all(index.isdecimal() for index in indices) else []


def _objects(value: Any) -> bool:
    """Whether a value is a list with objects in it."""
    return isinstance(value, list) and any(isinstance(each, Mapping) for each in value)


def _check_line(line: str, number: int, place: str) -> None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise _broken_line(error, number, place) from error
    _check_object(row, f"{place}:{number}")


def _broken_line(error: json.JSONDecodeError, number: int, place: str) -> DataError:
    return DataError(
        f"{place}:{number}: broken JSON ({error.msg}, column {error.colno}); a .jsonl has one object a line, and a "
        ".json may be a list of objects"
    )


def _check_object(row: Any, place: str) -> None:
    if not isinstance(row, dict):
        raise DataError(f'{place}: a row is an object such as {{"text": …}}, not {json.dumps(row)[:40]}')
