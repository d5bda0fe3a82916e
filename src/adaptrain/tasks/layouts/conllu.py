"""CoNLL-U: the words of a sentence with their heads, ten columns between tabs (universaldependencies.org/format.html).

    # sent_id = 4
    1-2  It's  _     _     _    _  _  _       _  _
    1    It    it    PRON  PRP  _  4  nsubj   _  _
    2    's    be    AUX   VBZ  _  4  cop     _  _

A row has the words that have heads, as the scripts of Universal Dependencies count them: ranges of a token that is
several words (`1-2`) and empty nodes (`8.1`) are left out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import datasets

from adaptrain.errors import DataError
from adaptrain.tasks.layouts.texts import numbered_lines, text_of

COLUMNS = {"tokens": 1, "lemmas": 2, "upos": 3, "xpos": 4, "feats": 5, "head": 6, "deprel": 7}
"""Column of a row → field of a line. The names are those of the hub's Universal Dependencies."""

ABOUT = {"sent_id": "idx", "text": "text"}
"""What is said of a sentence before it → its column."""

FIELDS = 10

_RANGE, _EMPTY, _ABOUT = re.compile(r"\d+-\d+"), re.compile(r"\d+\.\d+"), re.compile(r"#\s*(\w+)\s*=\s*(.*)")


def is_conllu(text: str) -> bool:
    """Whether the first token of CoNLL columns is one of CoNLL-U or CoNLL-X: ten fields, the first its number."""
    first = next((line for _, line in numbered_lines(text) if line.strip() and not line.startswith("#")), "")
    fields = first.split("\t")
    return len(fields) == FIELDS and re.fullmatch(r"1|1-\d+|0\.1", fields[0]) is not None


def read_conllu(file: Path, place: str) -> datasets.Dataset:
    """A row for each sentence: `tokens`, `lemmas`, `upos`, `xpos`, `feats`, `head` and `deprel` are lists; `idx` and
    `text` are there where the file has a `sent_id` and a `text`. A head is a number, or None where it is `_`.

    Raises:
        DataError: a line has not ten fields, or no number that follows; a head is no number; the file has no word, or
            is not UTF-8.
    """
    rows: list[dict[str, Any]] = []
    about: dict[str, str] = {}
    row: dict[str, Any] | None = None
    for number, line in numbered_lines(text_of(file, place)):
        if not line.strip():
            about, row = {}, None
        elif line.startswith("#"):
            said = _ABOUT.match(line)
            about |= {ABOUT[said[1]]: said[2].strip()} if said and said[1] in ABOUT else {}
        else:
            fields = _fields(line, f"{place}:{number}")
            if row is None:
                row = {name: about.get(name) for name in ABOUT.values()} | {name: [] for name in COLUMNS}
                rows.append(row)
            _add(row, fields, f"{place}:{number}")
    rows = [row for row in rows if row["tokens"]]
    if not rows:
        raise DataError(f"{place} has no rows")
    kept = [name for name in (*ABOUT.values(), *COLUMNS) if any(row[name] is not None for row in rows)]
    return datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in kept})


def _fields(line: str, place: str) -> list[str]:
    fields = line.split("\t")
    if len(fields) != FIELDS:
        raise DataError(
            f"{place}: {len(fields)} columns, and CoNLL-U has {FIELDS}, between tabs; an empty one is written _. "
            "Correct the line"
        )
    return fields


def _add(row: dict[str, Any], fields: list[str], place: str) -> None:
    """One line to the row of its sentence."""
    if _RANGE.fullmatch(fields[0]) or _EMPTY.fullmatch(fields[0]):
        return
    due = len(row["tokens"]) + 1
    if fields[0] != str(due):
        raise DataError(
            f"{place}: the word {fields[1]!r:.40} has the number {fields[0]!r:.20}, and {due} follows there. Number "
            "the words of each sentence from 1, with an empty line between sentences"
        )
    head = fields[COLUMNS["head"]]
    if head != "_" and not (head.isascii() and head.isdigit()):
        raise DataError(f"{place}: the head is {head!r:.20}; it must be the number of a word, 0 for the root, or _")
    for name, at in COLUMNS.items():
        value = fields[at]
        row[name].append(value if name != "head" else None if value == "_" else int(value))
