from __future__ import annotations

import dataclasses
import errno
from pathlib import Path

import pytest

from adaptrain.errors import OutputError
from adaptrain.reporting.folder import check_free, is_finished, made_whole, run_folder, run_hash, swap
from tiny_run import run_config


def test_the_hash_is_of_what_is_run_not_of_where_it_goes() -> None:
    config = run_config(Path("base"), Path("data"), Path("outputs"))
    same = dataclasses.replace(config, recipe="other", outputs="elsewhere", force=True)
    assert run_hash(config) == run_hash(same) and len(run_hash(config)) == 8
    assert run_folder(config) == Path("outputs/tiny") / run_hash(config)
    for change in ({"seed": 2}, {"learning_rate": 1e-3}, {"adapter": {"method": "lora", "r": 4}}):
        assert run_hash(run_config(Path("base"), Path("data"), Path("outputs"), **change)) != run_hash(config)


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "recipe/abc"
    with made_whole(target) as work:
        (work / "run.json").write_text("{}")
        assert not target.exists()
    assert is_finished(target) and [file.name for file in target.iterdir()] == ["run.json"]
    assert [entry.name for entry in target.parent.iterdir()] == ["abc"]


def test_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "recipe/abc"
    with pytest.raises(ZeroDivisionError), made_whole(target):
        raise ZeroDivisionError
    assert list(target.parent.iterdir()) == []


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="Cannot write .*abc"), made_whole(tmp_path / "abc"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ConnectionError), made_whole(tmp_path / "abc"):
        raise ConnectionError("something else")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_made_is_told_with_the_key_that_names_another(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for more, key in (((), "outputs="), (("--out",), "--out"), (("out=",), "out=")):
        expected = f"file.*; choose another folder by {key}$"
        with pytest.raises(OutputError, match=expected), made_whole(tmp_path / "file" / "abc", *more):
            pass


def test_one_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    swap(tmp_path / "new", tmp_path / "old")
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["old", "old/new"]


def test_what_is_no_run_is_replaced_only_by_force(tmp_path: Path) -> None:
    check_free(tmp_path / "nothing", force=False)
    with pytest.raises(OutputError, match="force=true"):
        check_free(tmp_path, force=False)
    check_free(tmp_path, force=True)


def test_an_owner_that_cannot_be_read_is_not_disturbed(tmp_path: Path) -> None:
    (tmp_path / ".abc.partial").mkdir()
    with pytest.raises(OutputError, match="an unknown host"), made_whole(tmp_path / "abc"):
        pass
    assert (tmp_path / ".abc.partial").is_dir()
