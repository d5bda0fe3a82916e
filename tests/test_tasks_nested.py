"""Columns of mappings, as the hub has translations: `translation.en`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import datasets
import pytest

from adaptrain.config.schema import ColumnsConfig, TaskConfig
from adaptrain.errors import DataError
from adaptrain.tasks.columns import free_roles, settle_columns
from adaptrain.tasks.features import feature_of, names_of
from adaptrain.tasks.rows import Split, load_rows
from adaptrain.tasks.sources import FolderSource
from tiny_run import write_jsonl

TEXT = datasets.Value("string")
TASK = TaskConfig(
    name="speak",
    type="translation",
    path="somebody/speak",
    columns=ColumnsConfig(source="translation.en", target="translation.ro"),
    metric="bleu",
)


@pytest.mark.parametrize("feature", [{"en": TEXT, "ro": TEXT}, datasets.Translation(languages=["en", "ro"])])
def test_roles_within_a_column(feature: Any) -> None:
    features = {"translation": feature, "page": TEXT}
    task, roles, unused = settle_columns(TASK, features, "here")
    assert task == TASK and unused == ("page",)
    assert [(role.name, role.column, role.kind) for role in roles] == [
        ("source", "translation.en", "text"),
        ("target", "translation.ro", "text"),
    ]
    wrong = dataclasses.replace(TASK, columns=ColumnsConfig(source="translation.en", target="translation.rO"))
    with pytest.raises(DataError, match=r"did you mean 'translation.ro'.* translation.en, translation.ro(,| and) page"):
        settle_columns(wrong, features, "here")
    with pytest.raises(DataError, match=r"no column can be the source.*translation.en \(text\)"):
        settle_columns(dataclasses.replace(TASK, columns=ColumnsConfig()), features, "here")
    found, left = free_roles(features, ColumnsConfig(), "here")
    assert [role.column for role in found] == ["page"] and left == ("translation",)


def test_names_with_dots_and_mappings_in_mappings() -> None:
    features = {"a.b": TEXT, "a": {"b": {"c": datasets.Value("int64")}}, "answers": {"text": [], "answer_start": []}}
    assert feature_of("a.b", features) is TEXT  # a column of the very name goes first
    assert feature_of("a.b.c", features).dtype == "int64"
    assert [feature_of(name, features) for name in ("a.c", "a.b.c.d", "b", "answers.text", ".a")] == [None] * 5
    assert names_of(features) == ["a.b", "a.b.c", "answers"]


def test_values_within_a_column(tmp_path: Path) -> None:
    rows = [{"translation": {"en": f"e{n}", "ro": f"r{n}"}} for n in range(3)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    found = load_rows(TASK, "train", FolderSource(tmp_path))
    assert found.columns == {"source": ["e0", "e1", "e2"], "target": [["r0"], ["r1"], ["r2"]]}
    table = datasets.Dataset.from_list(rows, features=datasets.Features(translation=datasets.Translation(["en", "ro"])))
    split = Split.of(table, TASK, "here")
    assert split.values("source") == ["e0", "e1", "e2"]
    write_jsonl(tmp_path / "train.jsonl", [*rows, {"translation": {"en": "e3"}}, {"translation": None}])
    with pytest.raises(DataError, match=r"row 4: the target in column 'translation.ro' is missing"):
        load_rows(TASK, "train", FolderSource(tmp_path))
    assert dict(load_rows(TASK, "train", FolderSource(tmp_path), "skip").bad) == {"missing text": 2}
