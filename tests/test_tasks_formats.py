"""How a file of rows is read: every format and compression, what can be wrong with it, and large files."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
from pathlib import Path

import datasets
import pyarrow
import pytest

from adaptrain.errors import DataError
from adaptrain.tasks import formats
from adaptrain.tasks.formats import read_file
from adaptrain.tasks.sources import FolderSource
from row_files import EXPECTED, texts, write, write_arrow

# ---- what is read


@pytest.mark.parametrize("suffix", [each for each in formats.SUFFIXES if each not in ("txt", "conll", "conllu")])
def test_every_format_reads_the_same_rows(suffix: str, tmp_path: Path) -> None:
    write(tmp_path, suffix)
    rows = FolderSource(tmp_path).read("train")
    assert list(rows["sentence"]) == EXPECTED and list(rows["label"]) == [1, 0, 1]


@pytest.mark.parametrize(("suffix", "between"), [("csv", ","), ("tsv", "\t")])
def test_what_a_row_is_called_keeps_its_zeros(suffix: str, between: str, tmp_path: Path) -> None:
    rows = (("id", "label", "score", "id"), ("007", "0", "0.5", "10"), ("12", "1", "00.5", "0"))
    (tmp_path / f"train.{suffix}").write_text("".join(f"{between.join(row)}\n" for row in rows))
    assert read_file(tmp_path / f"train.{suffix}").to_list() == [
        {"id": "007", "label": 0, "score": 0.5, "id.1": 10},
        {"id": "12", "label": 1, "score": 0.5, "id.1": 0},
    ]


def test_a_column_that_begins_with_numbers_is_text_all_the_same(tmp_path: Path) -> None:
    lines = [f"{number},{number % 2}\n" for number in range(10500)]  # more than are read in one piece elsewhere
    (tmp_path / "train.csv").write_text("".join(["sentence,label\n", *lines, "a day,1\n"]))
    rows = FolderSource(tmp_path).read("train")
    assert (rows["sentence"][0], rows["sentence"][10500], rows["label"][10499]) == ("0", "a day", 1)


def test_a_txt_file_has_a_text_a_line(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes('\ufeffun jour\r\n\r\ndeux\u2028jours, "NA"\n'.encode())
    rows = FolderSource(tmp_path).read("train")
    assert list(rows["text"]) == ["un jour", "", 'deux\u2028jours, "NA"'] and rows.column_names == ["text"]
    (tmp_path / "dev.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"dev\.txt is not UTF-8 \(byte 0\)"):
        FolderSource(tmp_path).read("dev")


def test_both_of_arrows_layouts(tmp_path: Path) -> None:
    for stream in (True, False):
        write_arrow(tmp_path / "train.arrow", stream)
        assert texts(FolderSource(tmp_path)) == EXPECTED


def test_reading_leaves_nothing_behind_and_sees_changes(tmp_path: Path) -> None:
    file = write(tmp_path, "jsonl")
    before = datasets.config.HF_DATASETS_CACHE
    seen = sorted(Path(before).rglob("*")) if Path(before).is_dir() else []
    assert len(read_file(file)) == 3
    assert (sorted(Path(before).rglob("*")) if Path(before).is_dir() else []) == seen
    stat = file.stat()
    file.write_text(file.read_text().replace("a day", "a way"))
    import os

    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert read_file(file)["sentence"][0] == "a way"


# ---- what can be wrong with a file


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl", '{"a": 1}\n\n{"a": \n', r"train.jsonl:3: broken JSON"),
        ("train.jsonl", '{"a": 1}\n[1]\n', r"train.jsonl:2: .*object.*, not \[1\]"),
        ("train.jsonl", "", "is empty"),
        ("train.jsonl", "\n \n", "is empty"),
        ("train.jsonl", "[]", "has no rows"),
        ("train.json", '[{"a": 1}, 3]', "train.json, item 2: .*object"),
        ("train.json", '[{"a": 1},\n {"a" 3}]', "train.json:2: broken JSON"),
        ("train.json", '{"a" 1}\n{"a": 2}\n', r"train.json:1: broken JSON.*one object a line"),
        ("train.csv", "", "is empty"),
        ("train.csv", "a,b\n", "has no rows"),
        ("train.csv", "a,b\n1,2\n1,2,3\n", "cannot be read as csv: .*line 3"),
        ("train.csv", "a,b\n1,2,3\n4,5,6\n", r"rows have more values than the first line has names"),
        ("train.parquet", "nothing of the kind", "cannot be read as parquet"),
    ],
)
def test_broken_files(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        FolderSource(tmp_path).read("train")


def test_another_encoding_is_told(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes('{"a": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        FolderSource(tmp_path).read("train")
    (tmp_path / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + b'{"a": "e"}\n')
    assert list(FolderSource(tmp_path).read("train")["a"]) == ["e"]


def test_no_data_file(tmp_path: Path) -> None:
    (tmp_path / "train.docx").write_text("x")
    with pytest.raises(DataError, match=r"train.docx: .*\.docx is not read.*\.jsonl, .*\.parquet.*each also with \.gz"):
        read_file(tmp_path / "train.docx")
    with pytest.raises(DataError, match="has no split 'train'.*It holds: train.docx"):
        FolderSource(tmp_path).read("train")


# ---- compressed and large


def pack(file: Path, compression: str) -> Path:
    """A compressed copy under the usual name; the original goes."""
    packed, content = file.with_name(f"{file.name}.{compression}"), file.read_bytes()
    if compression == "zip":
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(file.name, content)
    elif compression in ("zst", "lz4"):
        kind = {"zst": "zstd"}.get(compression, compression)
        with pyarrow.OSFile(str(packed), "wb") as raw, pyarrow.CompressedOutputStream(raw, kind) as stream:
            stream.write(content)
    else:
        packed.write_bytes({"gz": gzip, "bz2": bz2, "xz": lzma}[compression].compress(content))
    file.unlink()
    return packed


@pytest.mark.parametrize("compression", formats.COMPRESSIONS)
def test_every_compression_reads_the_same_rows(compression: str, tmp_path: Path) -> None:
    pack(write(tmp_path, "csv"), compression)
    assert texts(FolderSource(tmp_path)) == EXPECTED
    (tmp_path / "dev.jsonl").write_text('{"a": 1}\n{"a"\n')
    packed = pack(tmp_path / "dev.jsonl", compression)
    with pytest.raises(DataError, match=rf"{packed.name}:2: broken JSON"):
        FolderSource(tmp_path).read("dev")
    packed.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=f"{packed.name} cannot be unpacked as {compression}"):
        FolderSource(tmp_path).read("dev")


def test_an_archive_of_two_files_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "train.csv.zip", "w") as archive:
        archive.writestr("a.csv", "x")
        archive.writestr("b.csv", "x")
    with pytest.raises(DataError, match=r"train.csv.zip holds 2 files \(a.csv, b.csv\)"):
        FolderSource(tmp_path).read("train")


def test_a_large_file_is_kept_by_its_content_and_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(formats, "LARGE", 1)
    file = write(tmp_path, "csv")
    rows = read_file(file)
    assert list(rows["sentence"]) == EXPECTED
    assert rows.cache_files and Path(rows.cache_files[0]["filename"]).is_relative_to(tmp_path / "cache")
    monkeypatch.setattr(formats, "_parse", lambda *_, **__: pytest.fail("parsed again"))
    copy = tmp_path / "other.csv"
    copy.write_bytes(file.read_bytes())
    assert list(read_file(copy)["sentence"]) == EXPECTED
    monkeypatch.undo()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(formats, "LARGE", 1)
    file.write_text(file.read_text().replace("a day", "a way"))
    assert read_file(file)["sentence"][0] == "a way"
    assert len(list((tmp_path / "cache/adaptrain").iterdir())) == 2  # and nothing half made
