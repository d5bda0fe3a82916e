"""Files whose ending is not read: what they are, and what to do."""

from __future__ import annotations

import re
from pathlib import Path

from adaptrain.tasks.layouts.texts import kind_of_file

_SHEET = "export the sheet as CSV (UTF-8), which ends in .csv"
_OBJECTS = "it may run code when it is opened: write its rows as .jsonl or .parquet"
_ROWS = "write its rows as .jsonl or .parquet"
_TEXT = "write its text as .txt, a text a line, or its rows as .jsonl"

_UNREAD: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("xlsx", "xlsm", "xlsb", "xls"), ("an Excel sheet", _SHEET)),
    "ods": ("an OpenDocument sheet", _SHEET),
    "numbers": ("a Numbers sheet", _SHEET),
    **dict.fromkeys(("pkl", "pickle", "joblib"), ("a Python pickle", _OBJECTS)),
    **dict.fromkeys(("pt", "pth", "bin", "ckpt"), ("a file of torch.save", _OBJECTS)),
    "npy": ("a numpy array", "write its rows as .jsonl, or its arrays by split as .npz (docs/data.md)"),
    "npz": ("a numpy archive", "it is read as task.path=FILE.npz alone, with arrays named by split (docs/data.md)"),
    **dict.fromkeys(("h5", "hdf5"), ("HDF5", _ROWS)),
    **dict.fromkeys(("sqlite", "sqlite3", "db"), ("an SQLite database", _ROWS)),
    **dict.fromkeys(("tfrecord", "avro", "orc", "msgpack", "mat", "rds", "sav", "dta"), ("a binary format", _ROWS)),
    **dict.fromkeys(("xml", "html", "htm"), ("XML or HTML", _ROWS)),
    **dict.fromkeys(("yaml", "yml", "toml", "ini"), ("settings, and no rows", _ROWS)),
    **dict.fromkeys(("docx", "doc", "odt", "rtf", "pdf", "md"), ("a document", _TEXT)),
    **dict.fromkeys(("tar", "tgz", "tbz2", "txz", "rar", "7z"), ("an archive", "unpack it")),
    **dict.fromkeys(("ndjson", "jsonlines", "jsonline"), ("JSON lines", "rename it to .jsonl")),
    "feather": ("Arrow's file layout", "rename it to .arrow"),
    "pq": ("parquet", "rename it to .parquet"),
    "tab": ("tab-separated values", "rename it to .tsv"),
    **dict.fromkeys(
        ("bio", "iob", "iob1", "iob2", "bioes", "conll03", "conll2003", "conllx"),
        ("CoNLL columns", "rename it to .conll"),
    ),
}
"""Ending → what such a file is, and the cure."""

_RENAMED = {"JSON": ".json", "CoNLL columns": ".conll", "parquet": ".parquet", "arrow": ".arrow"}
"""What a file is by its first bytes → the ending under which it is read."""


def has_unread_ending(name: str) -> bool:
    """Whether a name ends like a file of a format that is known and not read."""
    return Path(name).suffix.removeprefix(".").lower() in _UNREAD


def why_unread(file: Path, endings: str) -> str:
    """The sentences for a file that is not read.

    Args:
        endings: those that are read, for the message.
    """
    ending = file.suffix.removeprefix(".").lower()
    what, cure = (
        _UNREAD["tar"] if re.search(r"\.tar\.\w+$", file.name, re.IGNORECASE) else _UNREAD.get(ending, ("", ""))
    )
    if not what:
        kind = kind_of_file(file) if file.is_file() else "missing"
        what = {"text": "a text file", "binary": "a binary file"}.get(kind, kind)
        cure = f"rename it to {_RENAMED[kind]}" if kind in _RENAMED else "give it the ending of what it is"
    called = f"the ending .{ending} is not read" if ending else "a name without an ending is not read"
    return f"{file}: {called}. It is {what}: {cure}. Endings that are read: {endings}"
