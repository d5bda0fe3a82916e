"""Tokenised rows on disk: the same arrays again, under a name that says all that they are made of."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import tiny_run
from adaptrain.config.schema import DataConfig
from adaptrain.evaluation.run import evaluate_folder
from adaptrain.tasks import cache as caching
from adaptrain.tasks.cache import TokenCache, cache_folder, usual_cache
from adaptrain.tasks.encoded import Encoded, Ragged
from adaptrain.tasks.masking import MaskedReader
from adaptrain.tasks.rows import Picked, Rows
from adaptrain.tasks.text import TextReader, text_reader
from adaptrain.training.run import train
from tiny_run import Recorder, run_config


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.save_base(tmp_path_factory.mktemp("cache") / "base")


@pytest.fixture(autouse=True)
def every_split_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "LEAST", 1)


def reader_of(base: Path, max_length: int = 12, label: torch.dtype = torch.long) -> TextReader:
    return text_reader(
        tiny_run.tokenizer_of(base), AutoModel.from_pretrained(base), DataConfig(max_length=max_length), False, label
    )


def rows_of(count: int = 30, **changed: Any) -> Rows:
    made = tiny_run.sentences(count, 3)
    columns = {"text": [row["sentence"] for row in made], "label": [row["label"] for row in made]} | changed
    return Rows("train", columns, "here", count, "unused")


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*"))


def same(one: Encoded, other: Encoded) -> None:
    assert list(one.features) == list(other.features)
    for name, feature in one.features.items():
        twin = other.features[name]
        assert type(feature) is type(twin)
        if isinstance(feature, Ragged):
            assert feature.values.dtype == twin.values.dtype and feature.starts.dtype == twin.starts.dtype
            np.testing.assert_array_equal(feature.values, twin.values)
            np.testing.assert_array_equal(feature.starts, twin.starts)
        else:
            assert isinstance(feature, np.ndarray) and feature.dtype == twin.dtype
            np.testing.assert_array_equal(feature, twin)
    for field in ("lengths", "truncated", "weights", "origin", "texts"):
        assert getattr(one, field) == getattr(other, field), field


class Forbidden(TextReader):
    """Cannot read, so that what it has must come from a file."""

    def encode(self, rows: Rows, training: bool = False) -> Encoded:
        raise AssertionError("rows were tokenised again")


def as_forbidden(reader: TextReader, monkeypatch: pytest.MonkeyPatch) -> TextReader:
    monkeypatch.setattr(TextReader, "encode", Forbidden.encode)
    return reader


def test_the_same_arrays(base, tmp_path, monkeypatch):
    reader, rows = reader_of(base), rows_of()
    made = TokenCache(tmp_path).encode(reader, rows, True)
    same(made, reader.encode(rows, True))
    assert made.truncated > 0 and len(files(tmp_path)) == 1
    found = TokenCache(tmp_path).encode(as_forbidden(reader_of(base), monkeypatch), rows_of(), True)
    same(found, made)
    assert {name: tensor.tolist() for name, tensor in reader.collate(found, [4, 0]).items()} == {
        name: tensor.tolist() for name, tensor in reader.collate(made, [4, 0]).items()
    }


@dataclasses.dataclass(frozen=True)
class Windows(TextReader):
    """Two examples of a row, each with several labels and texts."""

    stride: int = 3

    def encode(self, rows: Rows, training: bool = False) -> Encoded:
        ids = Ragged.of([[index, self.stride] * (index + 1) for index in range(2 * len(rows))], np.int32)
        spans = np.arange(4.0 * len(rows), dtype=np.float32).reshape(-1, 2)
        features = {"input_ids": ids, "start_positions": spans}
        count = 2 * len(rows)
        return Encoded(features, [1] * count, 5, [2] * count, [index // 2 for index in range(count)], 2)


def test_windows_weights_and_other_kinds_of_number(base, tmp_path):
    own = reader_of(base)
    reader = Windows(own.processor, own.collate, own.max_length)
    for _ in range(2):
        same(TokenCache(tmp_path).encode(reader, rows_of(4)), reader.encode(rows_of(4)))
    TokenCache(tmp_path).encode(dataclasses.replace(reader, stride=4), rows_of(4))
    assert len(files(tmp_path)) == 2


def test_masked_words_have_their_weights(base, tmp_path):
    reader = MaskedReader.of(AutoTokenizer.from_pretrained(base), AutoModel.from_pretrained(base), DataConfig())
    for _ in range(2):
        same(TokenCache(tmp_path).encode(reader, rows_of()), reader.encode(rows_of()))
    assert len(files(tmp_path)) == 1


def test_whatever_matters_makes_another_file(base, tmp_path):
    reader, rows = reader_of(base), rows_of()
    words = AutoTokenizer.from_pretrained(base)
    words.add_tokens(["walk and"])
    lower = AutoTokenizer.from_pretrained(base)
    lower.truncation_side = "left"
    texts = list(rows.texts)
    variants = [
        (reader, rows, True),
        (reader, rows, False),
        (reader_of(base, 11), rows, True),
        (reader_of(base, label=torch.float32), rows, True),
        (dataclasses.replace(reader, processor=words), rows, True),
        (dataclasses.replace(reader, processor=lower), rows, True),
        (reader, rows_of(text=[*texts[:-1], texts[-1] + " a"]), True),
        (reader, rows_of(text=[texts[1], texts[0], *texts[2:]]), True),
        (reader, rows_of(label=[1 - label for label in rows.labels]), True),
        (reader, rows_of(29), True),
        (reader, dataclasses.replace(rows, columns={"text": texts}), True),
    ]
    for number, (one, each, training) in enumerate(variants, start=1):
        same(TokenCache(tmp_path).encode(one, each, training), one.encode(each, training))
        assert len(files(tmp_path)) == number
    for one, each, training in variants:
        same(TokenCache(tmp_path).encode(one, each, training), one.encode(each, training))
    assert len(files(tmp_path)) == len(variants)


def test_what_does_not_matter_makes_no_other_file(base, tmp_path):
    reader, rows = reader_of(base), rows_of()
    TokenCache(tmp_path).encode(reader, rows, True)
    reader.processor("a warm day", truncation=True, max_length=4, padding="max_length")  # leaves its traces behind
    other = dataclasses.replace(rows, place="elsewhere", found=99, fingerprint="other", split="dev")
    TokenCache(tmp_path).encode(reader, other, True)
    assert len(files(tmp_path)) == 1


def test_damaged_and_foreign_files_are_made_anew(base, tmp_path, monkeypatch):
    reader, rows = reader_of(base), rows_of()
    TokenCache(tmp_path).encode(reader, rows)
    (file,) = files(tmp_path)
    whole = file.read_bytes()
    middle = whole.index(b"about") + len(whole) // 2
    changed = bytes([*whole[:middle], whole[middle] ^ 1, *whole[middle + 1 :]])
    for bytes_ in (b"", b"{}", whole[:-9], whole[9:], changed, b"x" * len(whole)):
        file.unlink()
        file.write_bytes(bytes_)
        same(TokenCache(tmp_path).encode(reader, rows), reader.encode(rows))
        assert file.read_bytes() == whole
    safe = torch.zeros(3)
    caching.write_tensors(file, {"other": safe})
    same(TokenCache(tmp_path).encode(reader, rows), reader.encode(rows))
    assert file.read_bytes() == whole
    file.unlink()
    file.mkdir()  # nothing can be written there: said once, and no reason to fail
    cache = TokenCache(tmp_path)
    for _ in range(2):
        same(cache.encode(reader, rows), reader.encode(rows))
    assert len(cache.notes) == 1 and str(file) in cache.notes[0] and "ADAPTRAIN_CACHE" in cache.notes[0]


def test_a_folder_that_cannot_be_made(base, tmp_path):
    (tmp_path / "file").touch()
    cache = TokenCache(tmp_path / "file" / "tokens")
    same(cache.encode(reader_of(base), rows_of()), reader_of(base).encode(rows_of()))
    assert len(cache.notes) == 1 and "are not kept for other runs" in cache.notes[0]


def test_what_is_never_kept(base, tmp_path, monkeypatch):
    reader = reader_of(base)
    lazy = rows_of(3, text=Picked(["a", "b", "c"], [2, 1, 0]), label=[0, 1, 0])
    TokenCache(tmp_path).encode(reader, lazy)
    monkeypatch.setattr(TextReader, "cached", False)
    TokenCache(tmp_path).encode(reader, rows_of())
    monkeypatch.setattr(TextReader, "cached", True)
    monkeypatch.setattr(caching, "LEAST", 31)
    TokenCache(tmp_path).encode(reader, rows_of(30))
    TokenCache(None).encode(reader, rows_of(40))
    with_function = dataclasses.make_dataclass("Odd", [("how", Any)], bases=(TextReader,), frozen=True)
    TokenCache(tmp_path).encode(with_function(reader.processor, reader.collate, 9, how=len), rows_of(40))
    assert files(tmp_path) == []
    TokenCache(tmp_path).encode(reader, rows_of(31))
    assert len(files(tmp_path)) == 1


def test_the_least_recently_used_go_first(base, tmp_path, monkeypatch):
    reader = reader_of(base)
    for count in (10, 11, 12):
        TokenCache(tmp_path).encode(reader, rows_of(count))
    sizes = {file: file.stat().st_size for file in files(tmp_path)}
    long_ago = time.time() - 1000
    for age, file in enumerate(sizes):
        os.utime(file, (long_ago + age, long_ago + age))
    before = set(files(tmp_path))
    TokenCache(tmp_path).encode(reader, rows_of(10))  # is used again
    (used,) = [file for file in before if file.stat().st_mtime > long_ago + 500]
    monkeypatch.setattr(caching, "MOST", max(sizes.values()) * 2 + 500)
    TokenCache(tmp_path).encode(reader, rows_of(13))
    kept = set(files(tmp_path))
    assert used in kept and len(kept) == 2 and len(kept - before) == 1


def _encode(base: Path, folder: Path, barrier: Any, answers: Any) -> None:
    caching.LEAST = 1
    reader, cache = reader_of(base), TokenCache(folder)
    barrier.wait(60)
    found = cache.encode(reader, rows_of(400))
    answers.put((int(found.features["input_ids"].values.sum()), cache.notes))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="a new process would take seconds")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_two_processes_at_once(base, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_encode, args=(base, tmp_path, barrier, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(60)
    expected = int(reader_of(base).encode(rows_of(400)).features["input_ids"].values.sum())
    assert found == [(expected, [])] * 2
    assert [file.suffix for file in files(tmp_path)] == [".safetensors"]


def test_runs_share_what_they_read(base, tmp_path, monkeypatch):
    mirror = tiny_run.save_data(tmp_path / "mirror")
    monkeypatch.setenv("ADAPTRAIN_CACHE", str(tmp_path / "tokens"))
    config = run_config(base, mirror, tmp_path / "out", epochs=1)
    first = train(config, display=Recorder())
    kept = files(tmp_path / "tokens")
    assert len(kept) == 2  # train and validation
    monkeypatch.setattr(TextReader, "encode", Forbidden.encode)
    again = train(dataclasses.replace(config, seed=2), display=Recorder())
    result = evaluate_folder(again.folder)
    assert result.reproduced and files(tmp_path / "tokens") == kept
    monkeypatch.setattr(caching, "LEAST", 10**6)
    monkeypatch.undo()
    plain = run_config(base, mirror, tmp_path / "plain", epochs=1)
    monkeypatch.setenv("ADAPTRAIN_CACHE", "")
    assert train(plain, display=Recorder()).row["score"] == first.row["score"]
    one, other = (
        (each / "predictions.jsonl").read_text() for each in (first.folder, tmp_path / "plain/tiny" / first.folder.name)
    )
    assert json.loads(one.splitlines()[0]) == json.loads(other.splitlines()[0]) and one == other


def test_a_run_says_that_nothing_can_be_kept(base, tmp_path, monkeypatch):
    mirror = tiny_run.save_data(tmp_path / "mirror")
    (tmp_path / "file").touch()
    monkeypatch.setenv("ADAPTRAIN_CACHE", str(tmp_path / "file"))
    display = Recorder()
    result = train(run_config(base, mirror, tmp_path / "out", epochs=1), display=display)
    assert len([note for note in display.of("note") if "are not kept for other runs" in note]) == 1
    assert [note for note in evaluate_folder(result.folder).notes if "are not kept" in note]


def test_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("ADAPTRAIN_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path == usual_cache().folder
    monkeypatch.setenv("ADAPTRAIN_CACHE", "")
    assert cache_folder() is None
    monkeypatch.delenv("ADAPTRAIN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/adaptrain/tokens"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/adaptrain/tokens"
