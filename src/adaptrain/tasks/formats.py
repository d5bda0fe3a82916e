"""One data file to rows: every format and compression, by the file's name.

The `datasets` library reads every format. What it would report badly (a broken line, two files in an archive) is looked
at before, so that the message names the place and the cure.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import datasets
import datasets.config
import pandas
import pyarrow
from datasets.table import InMemoryTable
from huggingface_hub.utils import logging as hub_logging

from adaptrain.errors import DataError, listed
from adaptrain.tasks.places import COMPRESSIONS, SUFFIXES, split_name

LARGE = 8 * 2**20
"""Bytes from which a file's rows are kept on disk, by the file's content, and mapped into memory. Those of smaller ones
are read anew each time, which leaves nothing behind."""


def read_file(file: Path) -> datasets.Dataset:
    """The rows of one data file.

    Raises:
        DataError: empty, or not what its name says; a broken line is named by number.
    """
    name = split_name(file.name)
    if name is None:
        raise DataError(f"{file} is no data file: its name must end in one of {_endings()}")
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
    digest = hashlib.sha256(f"{datasets.__version__} {kind} ".encode())
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
    if suffix in ("jsonl", "json"):
        check_json(plain, str(file))
    reader, options = _READERS[suffix]
    try:
        with quiet():
            return reader(str(plain), cache_dir=str(work / "cache"), keep_in_memory=keep_in_memory, **options)
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


def _read_lines(file: str, **_: Any) -> datasets.Dataset:
    """A text a line, in the column `text`; what Unicode alone calls the end of a line is none."""
    lines = Path(file).read_bytes().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    return datasets.Dataset.from_dict({"text": lines if lines[-1] else lines[:-1]})


def _read_table(file: str, sep: str = ",", quoting: Any = csv.QUOTE_MINIMAL, **_: Any) -> datasets.Dataset:
    """Values between separators, read in one piece: a column is numbers only where all of it is, and not because its
    first rows are. "NA" and "null" are words, and a column in which 007 stands is one of words: what a row is called
    keeps its zeros."""
    with warnings.catch_warnings():  # values without a name would be dropped, or every column moved by one
        warnings.simplefilter("error", pandas.errors.ParserWarning)
        options: Any = {"sep": sep, "quoting": quoting, "index_col": False, "keep_default_na": False}
        try:
            frame = pandas.read_csv(file, low_memory=False, **options)
            if whole := [at for at, kind in enumerate(frame.dtypes) if pandas.api.types.is_integer_dtype(kind)]:
                written = pandas.read_csv(file, usecols=whole, dtype=str, **options)
                for name in written:
                    if written[name].str.contains(r"^[+-]?0\d").any():
                        frame[name] = written[name]
        except pandas.errors.ParserWarning:
            raise ValueError("the rows have more values than the first line has names") from None
    return datasets.Dataset.from_pandas(frame, preserve_index=False)


def _read_arrow(file: str, keep_in_memory: bool, **_: Any) -> datasets.Dataset:
    """Both of Arrow's layouts: the stream that `datasets` writes, and the file (feather, version 2)."""
    with Path(file).open("rb") as stream:
        if stream.read(6) != b"ARROW1":
            return datasets.Dataset.from_file(file, in_memory=keep_in_memory)
    with pyarrow.OSFile(file) as raw:
        return datasets.Dataset(InMemoryTable(pyarrow.ipc.open_file(raw).read_all()))


_READERS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "jsonl": (datasets.Dataset.from_json, {}),
    "json": (datasets.Dataset.from_json, {}),
    "csv": (_read_table, {}),
    # tab-separated values know no quotes (IANA's definition, and GLUE's files have stray ones)
    "tsv": (_read_table, {"sep": "\t", "quoting": csv.QUOTE_NONE}),
    "parquet": (datasets.Dataset.from_parquet, {}),
    "arrow": (_read_arrow, {}),
    "txt": (_read_lines, {}),
}


def check_json(file: Path, shown: str | None = None) -> None:
    """Refuse what is not one JSON object a line, or one list of objects.

    Args:
        shown: what to call the file in messages.

    Raises:
        DataError: names the file and the line.
    """
    place = shown or str(file)
    try:
        with file.open("rb") as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="\n") as lines:
            first = next(((number, line) for number, line in enumerate(lines, start=1) if line.strip()), None)
            if first is None:
                raise DataError(f"{place} is empty")
            if first[1].lstrip().startswith("["):
                _check_list("\n" * (first[0] - 1) + first[1] + lines.read(), place)
                return
            _check_line(first[1], first[0], place)
            for number, line in enumerate(lines, start=first[0] + 1):
                if line.strip():
                    _check_line(line, number, place)
    except UnicodeDecodeError as error:
        raise DataError(f"{place} is not UTF-8 (byte {_first_wrong_byte(file, error)}); save it as UTF-8") from error


def _check_line(line: str, number: int, place: str) -> None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{place}:{number}: broken JSON ({error.msg}, column {error.colno}); one object a line is due"
        ) from error
    _check_object(row, f"{place}:{number}")


def _check_list(text: str, place: str) -> None:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}:{error.lineno}: broken JSON ({error.msg}, column {error.colno})") from error
    for number, row in enumerate(rows, start=1):
        _check_object(row, f"{place}, item {number}")


def _check_object(row: Any, place: str) -> None:
    if not isinstance(row, dict):
        raise DataError(f'{place}: an object such as {{"text": …}} is due, not {json.dumps(row)[:40]}')


def _first_wrong_byte(file: Path, error: UnicodeDecodeError) -> int:
    """Counted from the file's begin; the decoder counts from that of its own buffer."""
    try:
        file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as whole:
        return whole.start
    return error.start


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
