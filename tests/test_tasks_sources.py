"""Where the rows of a task are found: mirrors, folders, packages, patterns, the hub; which splits they have or get."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from adaptrain.config.compose import compose
from adaptrain.config.schema import CarveConfig, DataConfig, SplitsConfig
from adaptrain.errors import ConfigError, DataError
from adaptrain.tasks import sources
from adaptrain.tasks.packages import package_folder
from adaptrain.tasks.sources import FolderSource, HubSource, PatternSource, absolute_path, locate
from row_files import EXPECTED, ROWS, texts, write
from tiny_run import MOOD, write_jsonl


def task(path: str):
    return dataclasses.replace(MOOD, path=path)


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
    for path in ("./nowhere", "mood.csv", "mood.xlsx", str(tmp_path / "mood-tran.csv")):
        with pytest.raises(DataError, match=rf"task.path={path}: there is no such file or folder"):
            locate(task(path), DataConfig())
    with pytest.raises(DataError, match="did you mean 'mood-train.csv'"):
        locate(task(str(tmp_path / "mood-tran.csv")), DataConfig())
    (tmp_path / "some/one").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert isinstance(locate(task("some/one"), DataConfig()), FolderSource)
    assert isinstance(locate(task("some/body"), DataConfig()), HubSource)
    assert absolute_path("some/one") == str(tmp_path / "some/one")
    assert absolute_path("some/body") is None and absolute_path("package:a:b") is None


# ---- which file is a split


@pytest.mark.parametrize(("asked", "there"), [("validation", "dev"), ("dev", "validation")])
def test_dev_and_validation_are_one(asked: str, there: str, tmp_path: Path) -> None:
    write(tmp_path, "jsonl", there)
    assert texts(FolderSource(tmp_path), asked) == EXPECTED
    assert texts(PatternSource(str(tmp_path / "{split}.jsonl")), asked) == EXPECTED


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


def test_splits_of_a_pattern(tmp_path: Path) -> None:
    for name in ("mood-train.csv", "mood-dev.csv", "mood.csv", "other-train.csv"):
        (tmp_path / name).write_text("x\n1\n")
    assert PatternSource(str(tmp_path / "mood-{split}.csv")).splits() == ("train", "dev")
    (tmp_path / "train").mkdir()
    (tmp_path / "train/rows.csv").write_text("x\n1\n")
    assert PatternSource(str(tmp_path / "{split}/rows.csv")).splits() == ("train",)
    assert PatternSource(str(tmp_path / "nowhere/{split}.csv")).splits() == ()


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


def test_a_missing_split_lists_what_is_there(tmp_path: Path) -> None:
    write(tmp_path, "jsonl", "trian")
    with pytest.raises(DataError, match=r"has no split 'train', did you mean 'trian'\? It holds: trian.jsonl"):
        FolderSource(tmp_path).read("train")


def test_two_files_for_one_split_are_not_chosen_between(tmp_path: Path) -> None:
    write(tmp_path, "jsonl")
    write(tmp_path, "csv")
    with pytest.raises(DataError, match=r"several files for the split 'train': train.csv, train.jsonl"):
        FolderSource(tmp_path).read("train")


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
