from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import datasets
import pytest

from adaptrain.config.schema import DataConfig
from adaptrain.errors import DataError
from adaptrain.tasks import sources
from adaptrain.tasks.packages import package_folder
from adaptrain.tasks.sources import FolderSource, HubSource, PatternSource, absolute_path, locate, read_file
from tiny_run import MOOD, write_jsonl

ROWS = [{"sentence": "a day", "label": 1}, {"sentence": "NA", "label": 0}, {"sentence": 'said "no", twice', "label": 1}]


def task(path: str):
    return dataclasses.replace(MOOD, path=path)


def texts(source: sources.Source, split: str = "train") -> list[str]:
    return list(source.read(split)["sentence"])


EXPECTED = [str(row["sentence"]) for row in ROWS]


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
    else:
        datasets.Dataset.from_list(ROWS).to_parquet(file)
    return file


@pytest.mark.parametrize("suffix", [suffix for suffix in sources.SUFFIXES if suffix != "txt"])
def test_every_format_reads_the_same_rows(suffix: str, tmp_path: Path) -> None:
    write(tmp_path, suffix)
    rows = FolderSource(tmp_path).read("train")
    assert list(rows["sentence"]) == EXPECTED and list(rows["label"]) == [1, 0, 1]


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
    with pytest.raises(DataError, match="is one file"):
        locate(task(str(tmp_path / "mood-train.csv")), DataConfig())
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
    write(tmp_path, "jsonl", "training")
    with pytest.raises(DataError, match=r"has no split 'train', did you mean 'training'\? It holds: training.jsonl"):
        FolderSource(tmp_path).read("train")


def test_two_files_for_one_split_are_not_chosen_between(tmp_path: Path) -> None:
    write(tmp_path, "jsonl")
    write(tmp_path, "csv")
    with pytest.raises(DataError, match=r"several files for the split 'train': train.jsonl, train.csv"):
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
