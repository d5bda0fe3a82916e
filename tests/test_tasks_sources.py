from __future__ import annotations

import bz2
import dataclasses
import gzip
import json
import lzma
import zipfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest

from adaptrain.config.compose import compose
from adaptrain.config.schema import CarveConfig, DataConfig, SplitsConfig
from adaptrain.errors import ConfigError, DataError
from adaptrain.tasks import formats, sources
from adaptrain.tasks.formats import read_file
from adaptrain.tasks.packages import package_folder
from adaptrain.tasks.sources import FolderSource, HubSource, PatternSource, absolute_path, locate
from tiny_run import MOOD, write_jsonl

ROWS = [{"sentence": "a day", "label": 1}, {"sentence": "NA", "label": 0}, {"sentence": 'said "no", twice', "label": 1}]


def task(path: str):
    return dataclasses.replace(MOOD, path=path)


def texts(source: sources.Source, split: str = "train") -> list[str]:
    return list(source.read(split)["sentence"])


EXPECTED = [str(row["sentence"]) for row in ROWS]


def write_arrow(file: Path, stream: bool = True) -> None:
    table = datasets.Dataset.from_list(ROWS).data.table
    make = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with make(str(file), table.schema) as out:
        out.write_table(table)


def write(folder: Path, suffix: str, name: str = "train") -> Path:
    file = folder / f"{name}.{suffix}"
    if suffix == "jsonl":
        write_jsonl(file, ROWS)
    elif suffix == "json":
        file.write_text(json.dumps(ROWS, indent=1))
    elif suffix == "csv":
        file.write_text('sentence,label\na day,1\nNA,0\n"said ""no"", twice",1\n')
    elif suffix == "tsv":
        file.write_text('sentence\tlabel\na day\t1\nNA\t0\nsaid "no", twice\t1\n')
    elif suffix == "arrow":
        write_arrow(file)
    else:
        datasets.Dataset.from_list(ROWS).to_parquet(file)
    return file


@pytest.mark.parametrize("suffix", [suffix for suffix in formats.SUFFIXES if suffix != "txt"])
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


def test_a_txt_file_has_a_text_a_line(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes('\ufeffun jour\r\n\r\ndeux\u2028jours, "NA"\n'.encode())
    rows = FolderSource(tmp_path).read("train")
    assert list(rows["text"]) == ["un jour", "", 'deux\u2028jours, "NA"'] and rows.column_names == ["text"]
    (tmp_path / "dev.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"dev\.txt cannot be read as txt: 'utf-8' codec"):
        FolderSource(tmp_path).read("dev")


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


# ---- where rows come from, in order


def test_the_mirror_comes_first(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "mirror/mood/train.jsonl", ROWS[:1])
    write_jsonl(tmp_path / "own/train.jsonl", ROWS[1:])
    source = locate(task(str(tmp_path / "own")), DataConfig(mirror=str(tmp_path / "mirror")))
    assert texts(source) == EXPECTED[:1]


def test_a_mirror_without_the_task_is_an_error_only_for_the_hub(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "mirror/moods/train.jsonl", ROWS)
    write_jsonl(tmp_path / "own/train.jsonl", ROWS)
    data = DataConfig(mirror=str(tmp_path / "mirror"))
    with pytest.raises(DataError, match="has no folder 'mood', did you mean 'moods'.*It holds: moods"):
        locate(task("somebody/mood"), data)
    assert texts(locate(task(str(tmp_path / "own")), data)) == EXPECTED
    with pytest.raises(DataError, match="there is no such folder"):
        locate(task("somebody/mood"), DataConfig(mirror=str(tmp_path / "nowhere")))


def test_a_folder_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "carrying"
    write_jsonl(package / "data/mood/train.jsonl", ROWS)
    (package / "__init__.py").write_text("raise RuntimeError('locating must not import')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert package_folder("carrying:data/mood") == package / "data/mood"
    assert texts(locate(task("package:carrying:data/mood"), DataConfig())) == EXPECTED
    with pytest.raises(DataError, match="has no folder"):
        locate(task("package:carrying:data/moo"), DataConfig())
    with pytest.raises(DataError, match="package 'carryin', which is not installed"):
        locate(task("package:carryin:data/mood"), DataConfig())
    assert package_folder("carryin.deep:data") is None


def test_local_folders_files_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "csv", "mood-train")
    pattern = str(tmp_path / "mood-{split}.csv")
    assert texts(locate(task(pattern), DataConfig())) == EXPECTED
    assert isinstance(locate(task(pattern), DataConfig()), PatternSource)
    with pytest.raises(DataError, match="there is no file .*mood-dev.csv .*holds: mood-train.csv"):
        PatternSource(pattern).read("dev")
    single = locate(task(str(tmp_path / "mood-train.csv")), DataConfig())
    assert texts(single) == texts(single, "training") == EXPECTED and single.splits() == ("train",)
    with pytest.raises(DataError, match=r"is one file, which is the split 'train', .*carve={to: validation"):
        single.read("validation")
    with pytest.raises(DataError, match="there is no such folder"):
        locate(task("./nowhere"), DataConfig())
    with pytest.raises(DataError, match="there is no such folder"):
        locate(task("mood.csv"), DataConfig())
    (tmp_path / "some/one").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert isinstance(locate(task("some/one"), DataConfig()), FolderSource)
    assert isinstance(locate(task("some/body"), DataConfig()), HubSource)
    assert absolute_path("some/one") == str(tmp_path / "some/one")
    assert absolute_path("some/body") is None and absolute_path("package:a:b") is None


@pytest.mark.parametrize(("asked", "there"), [("validation", "dev"), ("dev", "validation")])
def test_dev_and_validation_are_one(asked: str, there: str, tmp_path: Path) -> None:
    write(tmp_path, "jsonl", there)
    assert texts(FolderSource(tmp_path), asked) == EXPECTED
    assert texts(PatternSource(str(tmp_path / "{split}.jsonl")), asked) == EXPECTED


# ---- what can be wrong with a file


def test_a_missing_split_lists_what_is_there(tmp_path: Path) -> None:
    write(tmp_path, "jsonl", "trian")
    with pytest.raises(DataError, match=r"has no split 'train', did you mean 'trian'\? It holds: trian.jsonl"):
        FolderSource(tmp_path).read("train")


def test_two_files_for_one_split_are_not_chosen_between(tmp_path: Path) -> None:
    write(tmp_path, "jsonl")
    write(tmp_path, "csv")
    with pytest.raises(DataError, match=r"several files for the split 'train': train.csv, train.jsonl"):
        FolderSource(tmp_path).read("train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl", '{"a": 1}\n\n{"a": \n', r"train.jsonl:3: broken JSON"),
        ("train.jsonl", '{"a": 1}\n[1]\n', r"train.jsonl:2: an object .* is due, not \[1\]"),
        ("train.jsonl", "", "is empty"),
        ("train.jsonl", "\n \n", "is empty"),
        ("train.jsonl", "[]", "has no rows"),
        ("train.json", '[{"a": 1}, 3]', "train.json, item 2: an object"),
        ("train.json", '[{"a": 1},\n {"a" 3}]', "train.json:2: broken JSON"),
        ("train.json", '{"rows": [\n1]}', "train.json:1: broken JSON.*one object a line"),
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


# ---- the hub


def test_a_hub_that_cannot_be_reached_names_both_cures() -> None:
    cures = r".*data.mirror=FOLDER .*mood/<split>.jsonl.*task.path=FOLDER"
    with pytest.raises(DataError, match="'somebody/mood/small' cannot be had" + cures):
        HubSource("somebody/mood", "small", None, "mood").read("train")


def test_splits_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(path: str, subset: str | None, revision: str | None) -> datasets.DatasetDict:
        asked.append((path, subset, revision))
        splits = {"train": datasets.Dataset.from_list(ROWS), "validation": datasets.Dataset.from_list([])}
        return datasets.DatasetDict(splits)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = HubSource("somebody/else", "small", "abc", "mood")
    assert texts(source) == EXPECTED and asked == [("somebody/else", "small", "abc")]
    with pytest.raises(DataError, match="is empty"):
        source.read("dev")
    with pytest.raises(DataError, match="has no split 'trian', did you mean 'train'.*train, validation"):
        source.read("trian")
    assert len(asked) == 1  # one download serves all splits
    sources._from_hub.cache_clear()


def test_the_hubs_parquet_files_stand_in_for_a_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The revision's layout, a folder a subset and in it one a split, as a local folder."""
    for subset in ("small", "other"):
        (tmp_path / subset / "train").mkdir(parents=True)
        datasets.Dataset.from_list([{"sentence": subset, "label": 1}]).to_parquet(tmp_path / subset / "train/0.parquet")
    load = datasets.load_dataset

    def load_dataset(path: str, subset: str | None = None, data_dir: str | None = None, revision: str | None = None):
        if revision != "refs/convert/parquet":
            raise RuntimeError("Dataset scripts are no longer supported, but found mood.py")
        return load(str(tmp_path), subset, data_dir=data_dir)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        DataError, match=r"'somebody/mood/small' is a loading script.*task.revision=refs/convert/parquet"
    ):
        HubSource("somebody/mood", "small", None, "mood").read("train")
    found = HubSource("somebody/mood", "small", "refs/convert/parquet", "mood").read("train")
    assert found["sentence"][:] == ["small"]
    sources._from_hub.cache_clear()


# ---- compressed, divided, saved, large


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


def test_both_of_arrows_layouts(tmp_path: Path) -> None:
    for stream in (True, False):
        write_arrow(tmp_path / "train.arrow", stream)
        assert texts(FolderSource(tmp_path)) == EXPECTED


def test_no_data_file(tmp_path: Path) -> None:
    (tmp_path / "train.docx").write_text("x")
    with pytest.raises(DataError, match=r"train.docx is no data file: .*\.jsonl, .*\.parquet.*each also with \.gz"):
        read_file(tmp_path / "train.docx")
    with pytest.raises(DataError, match="has no split 'train'.*It holds: train.docx"):
        FolderSource(tmp_path).read("train")


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train.jsonl", "dev.jsonl", "test.jsonl", "README.md"], ("train", "validation", "test")),
        (["Training.csv.gz", "val.csv", "testing.csv"], ("train", "validation", "test")),
        (["reviews_train.csv", "reviews_valid.csv", "reviews.test.csv"], ("train", "validation", "test")),
        (["train.jsonl", "test_matched.jsonl", "test_mismatched.jsonl"], ("train", "test_matched", "test_mismatched")),
        (["train.jsonl", "contest.jsonl"], ("train", "contest")),
    ],
)
def test_splits_of_a_folder(names: list[str], splits: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_text("x\n1\n")
    assert FolderSource(tmp_path).splits() == splits


def test_a_split_is_found_by_its_usual_names_exact_ones_first(tmp_path: Path) -> None:
    write(tmp_path, "jsonl", "reviews-VAL")
    assert texts(FolderSource(tmp_path), "validation") == EXPECTED
    write_jsonl(tmp_path / "dev.jsonl", ROWS[:1])
    assert texts(FolderSource(tmp_path), "validation") == EXPECTED[:1]
    write_jsonl(tmp_path / "validation.jsonl", ROWS[:2])
    assert texts(FolderSource(tmp_path), "validation") == EXPECTED[:2]
    for name in ("test_a", "test_b"):
        write(tmp_path, "jsonl", name)
    with pytest.raises(DataError, match=r"several files for the split 'test': test_a.jsonl, test_b.jsonl"):
        FolderSource(tmp_path).read("test")


def test_a_split_in_several_files_as_on_the_hub(tmp_path: Path) -> None:
    for number in range(2):
        datasets.Dataset.from_list([ROWS[number]]).to_parquet(tmp_path / f"data/train-0000{number}-of-00002.parquet")
    assert FolderSource(tmp_path).splits() == ("train",)
    assert texts(FolderSource(tmp_path)) == EXPECTED[:2]
    (tmp_path / "data/train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match="of the split 'train' there are 1 files of 2"):
        FolderSource(tmp_path).read("train")


def test_what_save_to_disk_wrote(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": rows, "dev": rows.select([0])}).save_to_disk(tmp_path / "both")
    source = locate(task(str(tmp_path / "both")), DataConfig())
    assert source.splits() == ("train", "dev") and texts(source, "validation") == EXPECTED[:1]
    with pytest.raises(DataError, match="has no split 'test'.*train, dev"):
        source.read("test")
    rows.save_to_disk(tmp_path / "mirror/mood")
    assert texts(locate(task("somebody/mood"), DataConfig(mirror=str(tmp_path / "mirror")))) == EXPECTED
    (tmp_path / "both/dataset_dict.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as a saved data set"):
        source.read("train")


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


def test_splits_of_a_pattern(tmp_path: Path) -> None:
    for name in ("mood-train.csv", "mood-dev.csv", "mood.csv", "other-train.csv"):
        (tmp_path / name).write_text("x\n1\n")
    assert PatternSource(str(tmp_path / "mood-{split}.csv")).splits() == ("train", "dev")
    (tmp_path / "train").mkdir()
    (tmp_path / "train/rows.csv").write_text("x\n1\n")
    assert PatternSource(str(tmp_path / "{split}/rows.csv")).splits() == ("train",)
    assert PatternSource(str(tmp_path / "nowhere/{split}.csv")).splits() == ()


# ---- carving


TEN = [{"sentence": f"day {number}", "label": number % 2} for number in range(10)]


def carved(folder: Path, **values: Any) -> sources.Source:
    splits = SplitsConfig(validation="held_out", carve=CarveConfig(**{"to": "held_out", **values}))
    return locate(dataclasses.replace(task(str(folder)), splits=splits), DataConfig())


def test_carving_divides_a_split_and_depends_on_its_own_seed_alone(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", TEN)
    write_jsonl(tmp_path / "test.jsonl", TEN[:1])
    source = carved(tmp_path, rows=3)
    held, rest = texts(source, "held_out"), texts(source)
    assert (len(held), len(rest)) == (3, 7) and {*held, *rest} == {row["sentence"] for row in TEN}
    assert held == sorted(held) and rest == sorted(rest)
    expected = sorted(np.random.default_rng(0).permutation(10)[:3])
    assert held == [f"day {number}" for number in expected]
    assert texts(carved(tmp_path, fraction=0.3), "held_out") == held
    assert texts(carved(tmp_path, rows=3, seed=1), "held_out") != held
    assert source.splits() == ("train", "test", "held_out") and texts(source, "test") == ["day 0"]
    assert len(texts(carved(tmp_path, fraction=0.01), "held_out")) == 1
    of_file = carved(tmp_path / "train.jsonl", rows=3)
    assert (texts(of_file, "held_out"), texts(of_file)) == (held, rest)


def test_carving_that_cannot_be(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", TEN)
    with pytest.raises(DataError, match="takes 10 rows of the split 'train', which has 10"):
        carved(tmp_path, rows=10).read("train")
    write_jsonl(tmp_path / "dev.jsonl", TEN)
    with pytest.raises(DataError, match="makes the split 'validation', which .* has already"):
        carved(tmp_path, rows=1, to="validation").read("train")


def test_a_carving_is_checked_and_survives_json() -> None:
    def problems(**values: Any) -> dict[str, str]:
        return dict(CarveConfig(**{"to": "held_out", **values}).problems())

    assert problems(rows=1) == problems(fraction=0.5) == {}
    assert "give one of them" in problems()["rows"] and "give one of them" in problems(rows=1, fraction=0.5)["rows"]
    assert {*problems(rows=0, seed=-1)} == {"rows", "seed"} and {*problems(fraction=1.0)} == {"fraction"}
    assert {*problems(rows=1, to="train")} == {"to"}
    splits = SplitsConfig(validation="held_out", test="validation", carve=CarveConfig(to="held_out", rows=2))
    assert not list(splits.problems())
    assert SplitsConfig(**json.loads(json.dumps(dataclasses.asdict(splits)))) == splits
    assert "neither validation nor test" in dict(dataclasses.replace(splits, validation="dev").problems())["carve"]
    assert splits.roles() == {"train": "trains", "held_out": "chooses", "validation": "scores"}
    assert SplitsConfig().roles() == {"train": "trains", "validation": "chooses and scores"}


def test_a_carving_is_written_as_any_key() -> None:
    chosen = ["task=cola", "task.splits.validation=held_out", "task.splits.test=validation"]
    config = compose([*chosen, "task.splits.carve={to: held_out, rows: 500}"]).config
    assert config.task.splits.carve == CarveConfig(to="held_out", rows=500)
    with pytest.raises(ConfigError, match="task.splits.carve.fraction .*is 2.0; it must lie between 0 and 1"):
        compose([*chosen, "task.splits.carve={to: held_out, fraction: 2}"])


def test_a_column_that_begins_with_numbers_is_text_all_the_same(tmp_path: Path) -> None:
    lines = [f"{number},{number % 2}\n" for number in range(10500)]  # more than are read in one piece elsewhere
    (tmp_path / "train.csv").write_text("".join(["sentence,label\n", *lines, "a day,1\n"]))
    rows = FolderSource(tmp_path).read("train")
    assert (rows["sentence"][0], rows["sentence"][10500], rows["label"][10499]) == ("0", "a day", 1)
