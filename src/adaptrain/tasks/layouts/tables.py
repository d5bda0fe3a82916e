"""Values between separators: `csv`, and `tsv` with quotes or without."""

from __future__ import annotations

import csv
import re
import warnings
from pathlib import Path
from typing import Any

import datasets
import pandas

from adaptrain.tasks.layouts.texts import not_utf8, text_of


def read_csv(file: Path, place: str) -> datasets.Dataset:
    """Values between commas; a value with a comma, quote or line break in it stands in quotes.

    Raises:
        DataError: it is not UTF-8.
        ValueError: rows have more values than the first line has names; the values are separated by something else.
    """
    with file.open("rb") as stream:
        first, second = (stream.readline().decode("utf-8", "replace") for _ in range(2))
    for between, name in ((";", "semicolons"), ("\t", "tabs")):
        if "," not in first and between in first and between in second:
            cure = "rename it to .tsv" if between == "\t" else "save it with commas"
            raise ValueError(f"the values of the first line are separated by {name}; {cure}")
    return _read(file, place, ",", csv.QUOTE_MINIMAL)


def read_tsv(file: Path, place: str) -> datasets.Dataset:
    """Values between tabs. A quote is a character like any other (IANA's definition, and GLUE's files have stray ones),
    unless the file is written with quotes throughout (`is_quoted`).

    Raises:
        DataError: it is not UTF-8.
        ValueError: rows have more values than the first line has names.
    """
    quoted = is_quoted(text_of(file, place))
    return _read(file, place, "\t", csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)


_FIELD = re.compile(r'("(?:[^"]|"")*"|[^"\t\n]*)(\t|\n|\Z)')


def is_quoted(text: str) -> bool:
    """Whether tab-separated values are written with quotes, as a writer of CSV does: each value that has a quote in it
    stands in quotes as a whole, with its own quotes doubled; and either all names of the first line stand in quotes, or
    each quoted value needs it, for a quote, a tab or a line break inside.

    >>> is_quoted('text\\tlabel\\n"said ""no"", twice"\\t1\\n')
    True
    >>> is_quoted('text\\tlabel\\n"No," he said.\\t1\\n')
    False
    >>> is_quoted('text\\tlabel\\n"No."\\t1\\n')
    False
    """
    if '"' not in text:
        return False
    text = text.replace("\r\n", "\n")
    header, at, line, needed, quoted = [], 0, 0, True, 0
    while at < len(text):
        field = _FIELD.match(text, at)
        if field is None:  # a quote that belongs to the text
            return False
        value, at = field[1], field.end()
        if line == 0:
            header.append(value.startswith('"'))
        if value.startswith('"'):
            quoted += 1
            needed = needed and any(mark in value[1:-1] for mark in '"\t\n')
        line += field[2] == "\n"
    return quoted > 0 and (needed or all(header))


def _read(file: Path, place: str, between: str, quoting: Any) -> datasets.Dataset:
    """Read in one piece: a column is numbers only where all of it is, and not because its first rows are. "NA" and
    "null" are words, and a column in which 007 stands is one of words: what a row is called keeps its zeros."""
    with warnings.catch_warnings():  # values without a name would be dropped, or every column moved by one
        warnings.simplefilter("error", pandas.errors.ParserWarning)
        options: Any = {"sep": between, "quoting": quoting, "index_col": False, "keep_default_na": False}
        try:
            frame = pandas.read_csv(file, low_memory=False, **options)
            if whole := [at for at, kind in enumerate(frame.dtypes) if pandas.api.types.is_integer_dtype(kind)]:
                written = pandas.read_csv(file, usecols=whole, dtype=str, **options)
                for name in written:
                    if written[name].str.contains(r"^[+-]?0\d").any():
                        frame[name] = written[name]
        except pandas.errors.ParserWarning:
            raise ValueError("the rows have more values than the first line has names") from None
        except UnicodeDecodeError as error:
            raise not_utf8(file, place) from error
    return datasets.Dataset.from_pandas(frame, preserve_index=False)
