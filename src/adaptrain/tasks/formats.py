"""One data file to rows: every format and compression, by the file's name.

`tasks.layouts` reads what the `datasets` library does not, and looks first at what that library would report badly (a
broken line, two files in an archive), so that the message names the place and the cure.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import datasets
import datasets.config
import pyarrow
from datasets.table import InMemoryTable
from huggingface_hub.utils import logging as hub_logging

from adaptrain.errors import DataError, listed
from adaptrain.tasks.layouts.conll import DOCUMENT, read_conll
from adaptrain.tasks.layouts.conllu import read_conllu
from adaptrain.tasks.layouts.json_rows import json_rows
from adaptrain.tasks.layouts.tables import read_csv, read_tsv
from adaptrain.tasks.layouts.texts import numbered_lines, text_of
from adaptrain.tasks.layouts.unread import why_unread
from adaptrain.tasks.places import COMPRESSIONS, SUFFIXES, split_name
from adaptrain.tasks.splits import has_word

LARGE = 8 * 2**20
"""Bytes from which a file's rows are kept on disk, by the file's content, and mapped into memory. Those of smaller ones
are read anew each time, which leaves nothing behind."""

_READS = 2
"""Counts the changes of what is read of the same bytes: rows that an older version kept are not taken for them."""


def read_file(file: Path) -> datasets.Dataset:
    """The rows of one data file.

    Raises:
        DataError: empty, or not what its name says; a broken line is named by number.
    """
    name = split_name(file.name)
    if name is None:
        raise DataError(unread(file))
    try:
        size = file.stat().st_size
        if not size:
            raise DataError(f"{file} is empty")
        rows = _from_cache(file) if size >= LARGE else _in_memory(file)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from None
    if not len(rows):
        raise DataError(f"{file} has no rows")
    return undecoded(rows)


def unread(file: Path) -> str:
    """Why a file is not read, whose ending is none of those that are: what it is, and the cure."""
    return why_unread(file, _endings())


def unread_of(folder: Path, words: Iterable[str] | None = None) -> str:
    """The sentences of `unread` for the first file of a folder whose ending is not read; nothing where there is none.

    Args:
        words: of which the file's name must have one.
    """
    for file in sorted(folder.glob("[!.]*")) if folder.is_dir() else ():
        if file.is_file() and split_name(file.name) is None and (words is None or has_word(file.stem, words)):
            return f"{unread(file)}. "
    return ""


def undecoded(rows: datasets.Dataset) -> datasets.Dataset:
    """The same with images and sounds as they are stored: bytes and paths."""
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image | datasets.Audio) and feature.decode:
            rows = rows.cast_column(name, type(feature)(decode=False))
    return rows


def _in_memory(file: Path) -> datasets.Dataset:
    with tempfile.TemporaryDirectory(prefix="adaptrain-") as work:
        return _parse(file, Path(work), keep_in_memory=True)


def _from_cache(file: Path) -> datasets.Dataset:
    """The rows, mapped from a folder that is named by the file's content; made where it is not there."""
    home = Path(datasets.config.HF_DATASETS_CACHE) / "adaptrain"
    kind = ".".join(file.name.rsplit(".", 2)[1:])
    digest = hashlib.sha256(f"{_READS} {datasets.__version__} {kind} ".encode())
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    folder = home / digest.hexdigest()
    if not folder.is_dir():
        home.mkdir(parents=True, exist_ok=True)
        with quiet(), tempfile.TemporaryDirectory(prefix="part-", dir=home) as work:
            part = Path(work) / "rows"
            _parse(file, Path(work), keep_in_memory=False).save_to_disk(part)
            try:
                part.rename(folder)
            except OSError:  # another process was faster
                if not folder.is_dir():
                    raise
    with quiet():
        rows = datasets.load_from_disk(str(folder))
    assert isinstance(rows, datasets.Dataset)
    return rows


def _parse(file: Path, work: Path, keep_in_memory: bool) -> datasets.Dataset:
    """The rows, read by the `datasets` library; what it makes on the way goes into `work`."""
    stem, suffix, compression = split_name(file.name) or ("", "", None)
    if compression is None:
        plain = file
    else:
        plain = work / f"{stem}.{suffix}"
        _unpack(file, plain, compression)
        if not plain.stat().st_size:
            raise DataError(f"{file} is empty")
    try:
        with quiet():
            return _read(plain, str(file), suffix, work, keep_in_memory)
    except DataError:
        raise
    except Exception as error:  # pandas, pyarrow and datasets have each their own
        if "corresponds to no data" in str(error):
            raise DataError(f"{file} has no rows") from None
        cause = error.__cause__ or error
        told = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise DataError(f"{file} cannot be read as {suffix}: {told}") from error


def _unpack(file: Path, plain: Path, compression: str) -> None:
    """Write what a compressed file holds.

    Raises:
        DataError: damaged, or an archive with another number of data files than one.
    """
    try:
        with _opened(file, compression) as stream, plain.open("wb") as out:
            shutil.copyfileobj(stream, out, 2**20)
    except (OSError, EOFError, lzma.LZMAError, zipfile.BadZipFile, pyarrow.ArrowException) as error:
        raise DataError(f"{file} cannot be unpacked as {compression}: {error}") from None


@contextmanager
def _opened(file: Path, compression: str) -> Iterator[IO[bytes]]:
    if compression == "zip":
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
            if len(names) != 1:
                raise DataError(f"{file} holds {len(names)} files ({listed(names)}), and one is due; unpack it")
            with archive.open(names[0]) as stream:
                yield stream
    elif compression in ("zst", "lz4"):  # not in Python's own library before 3.14
        kind = {"zst": "zstd", "lz4": "lz4"}[compression]
        with pyarrow.OSFile(str(file)) as raw, pyarrow.CompressedInputStream(raw, kind) as stream:
            yield stream
    else:
        opener: Callable[[Path], Any] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}[compression]
        with opener(file) as stream:
            yield stream


def _read_lines(file: Path, place: str) -> datasets.Dataset:
    """A text a line, in the column `text`; CoNLL's columns where a document begins as they have it."""
    text = text_of(file, place)
    if text.lstrip().startswith(DOCUMENT):
        return read_conll(file, place)
    lines = [line for _, line in numbered_lines(text)]
    return datasets.Dataset.from_dict({"text": lines if lines[-1] else lines[:-1]})


def _read_arrow(file: Path, keep_in_memory: bool) -> datasets.Dataset:
    """Both of Arrow's layouts: the stream that `datasets` writes, and the file (feather, version 2)."""
    with file.open("rb") as stream:
        if stream.read(6) != b"ARROW1":
            return datasets.Dataset.from_file(str(file), in_memory=keep_in_memory)
    with pyarrow.OSFile(str(file)) as raw:
        return datasets.Dataset(InMemoryTable(pyarrow.ipc.open_file(raw).read_all()))


_READERS: dict[str, Callable[[Path, str], datasets.Dataset]] = {
    "csv": read_csv,
    "tsv": read_tsv,
    "txt": _read_lines,
    "conll": read_conll,
    "conllu": read_conllu,
}
"""Ending → how the rows of a file of text are read: the file, and what to call it in messages."""


def _read(plain: Path, place: str, suffix: str, work: Path, keep_in_memory: bool) -> datasets.Dataset:
    if suffix in _READERS:
        return _READERS[suffix](plain, place)
    if suffix == "arrow":
        return _read_arrow(plain, keep_in_memory)
    options: Any = {"cache_dir": str(work / "cache"), "keep_in_memory": keep_in_memory}
    if suffix == "parquet":
        return datasets.Dataset.from_parquet(str(plain), **options)  # pyright: ignore[reportReturnType]
    rows = json_rows(plain, place, work, lines=suffix == "jsonl")
    return datasets.Dataset.from_json(str(rows), **options)  # pyright: ignore[reportReturnType]


def _endings() -> str:
    return f"{listed(f'.{suffix}' for suffix in SUFFIXES)}, each also with {listed(f'.{end}' for end in COMPRESSIONS)}"


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, and no lists of attempts to reach the hub: they would fall into our own display."""
    shown, level = not datasets.are_progress_bars_disabled(), hub_logging.get_verbosity()
    datasets.disable_progress_bars()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)
        if shown:
            datasets.enable_progress_bars()
