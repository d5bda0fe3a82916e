"""CoNLL's columns: a token a line with its tags, an empty line after each sentence (Tjong Kim Sang & De Meulder 2003).

    -DOCSTART- -X- -X- O

    EU NNP B-NP B-ORG
    rejects VBZ B-VP O

The first column is the token. The last one has the tags: of two columns, and of any number that has no usual names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import datasets

from adaptrain.errors import DataError
from adaptrain.tasks.layouts.conllu import is_conllu, read_conllu
from adaptrain.tasks.layouts.texts import numbered_lines, text_of

DOCUMENT = "-DOCSTART-"
"""Where a document begins; that line is no token."""

NAMES = {
    1: ("tokens",),
    2: ("tokens", "tags"),
    3: ("tokens", "pos_tags", "tags"),
    4: ("tokens", "pos_tags", "chunk_tags", "ner_tags"),
}
"""Number of columns → what they are called: four are those of CoNLL-2003."""

_REMARK = re.compile("# +(id |[a-z_.-]+ *=)")
"""How a line about a sentence begins."""


def read_conll(file: Path, place: str) -> datasets.Dataset:
    """A row for each sentence, a list for each column. Ten columns are read as CoNLL-U.

    Fields lie between tabs where the first token has one, else between blanks. Lines about a sentence that stand
    before it (`# sent_id = 4`) are left out.

    Raises:
        DataError: a line has another number of fields than the first; the file has no token, or is not UTF-8.
    """
    text = text_of(file, place)
    if is_conllu(text):
        return read_conllu(file, place)
    lines = list(_fields(text))
    first, names = next(
        ((number, names_of(len(fields))) for number, fields in lines if fields and not fields[0].startswith("#")),
        (0, ()),
    )
    sentences: list[list[list[str]]] = []
    begun = False
    for number, fields in lines:
        if not fields:
            begun = False
            continue
        if not begun and fields[0].startswith("#") and (len(fields) != len(names) or _is_remark(fields)):
            continue
        if len(fields) != len(names):
            raise DataError(
                f"{place}:{number}: {len(fields)} columns, and line {first} has {len(names)}. Each line of CoNLL "
                "columns is a token with its tags. Correct the line"
            )
        if not begun:
            sentences.append([])
            begun = True
        sentences[-1].append(fields)
    if not sentences:
        raise DataError(f"{place} has no rows")
    return datasets.Dataset.from_dict(
        {name: [[token[at] for token in sentence] for sentence in sentences] for at, name in enumerate(names)}
    )


def names_of(count: int) -> tuple[str, ...]:
    """What the columns of a file are called.

    >>> names_of(5)
    ('tokens', 'column2', 'column3', 'column4', 'tags')
    """
    return NAMES.get(count) or ("tokens", *(f"column{number}" for number in range(2, count)), "tags")


def _fields(text: str) -> Iterator[tuple[int, list[str]]]:
    """Each line with its number and its fields; none of an empty line and of one where a document begins. A blank is
    what a keyboard writes: others can be part of a token."""
    tabs: bool | None = None
    for number, line in numbered_lines(text):
        line = line.rstrip(" \t") if tabs else line.strip(" \t")
        if not line or line.startswith(DOCUMENT):
            yield number, []
            continue
        if tabs is None and not line.startswith("#"):
            tabs = "\t" in line
        yield number, line.split("\t") if tabs else re.split("[ \t]+", line)


def _is_remark(fields: list[str]) -> bool:
    """Whether a line that begins with # is about its sentence, where it has as many fields as a token."""
    return _REMARK.match(" ".join(fields)) is not None
