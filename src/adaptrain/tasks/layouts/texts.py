"""The text of a file, and what a file is by its first bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from adaptrain.errors import DataError

_BINARY = (
    (b"PAR1", "parquet"),
    (b"ARROW1", "arrow"),
    (b"PK\x03\x04", "a zip archive, as XLSX, ODS and torch.save files are"),
    (b"\xd0\xcf\x11\xe0", "an old Office file, as XLS is"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x89HDF", "HDF5"),
    (b"\x93NUMPY", "a numpy array"),
    (b"%PDF", "PDF"),
    *((b"\x80" + bytes([protocol]), "a Python pickle") for protocol in range(2, 6)),
)
"""How files begin that are no text → what they are."""

_TEXT = ((b"-DOCSTART-", "CoNLL columns"), (b"{", "JSON"), (b"[", "JSON"), (b"<", "XML or HTML"))
"""The same of files that are text."""


def text_of(file: Path, place: str) -> str:
    """All of a file, without a byte order mark.

    Args:
        place: what to call the file in messages.

    Raises:
        DataError: it is not UTF-8.
    """
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(file, place) from error


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """Each line with its number, from 1, without its end. What Unicode alone calls the end of a line is none."""
    for number, line in enumerate(text.split("\n"), start=1):
        yield number, line.removesuffix("\r")


def not_utf8(file: Path, place: str) -> DataError:
    """The error of a file that should be text in UTF-8."""
    content = file.read_bytes()
    if kind := _kind(content, _BINARY):
        return DataError(f"{place} is no text: by its first bytes it is {kind}. Give it the ending of what it is")
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as error:  # a decoder of a stream counts from the begin of its buffer; this one does not
        return DataError(f"{place} is not UTF-8 (byte {error.start}); save it as UTF-8")
    return DataError(f"{place} is not UTF-8; save it as UTF-8")


def kind_of_file(file: Path) -> str:
    """What a file is by its first bytes: a format, or else `text` or `binary`."""
    with file.open("rb") as stream:
        head = stream.read(4096)
    return _kind(head, _BINARY + _TEXT) or ("binary" if b"\0" in head else "text")


def _kind(head: bytes, beginnings: Sequence[tuple[bytes, str]]) -> str | None:
    text = head[:64].removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    return next(
        (kind for beginning, kind in beginnings if head.startswith(beginning) or text.startswith(beginning)), None
    )
