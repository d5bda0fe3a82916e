"""The folder of a run: made whole or not at all, kept, refused where it is wrong, and with its prefix made flat."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from adaptrain.config.schema import ColumnsConfig, ModelConfig
from adaptrain.errors import (
    AdaptrainError,
    CheckpointError,
    ConfigError,
    DataError,
    ModelError,
    OutputError,
    UnsupportedError,
)
from adaptrain.evaluation.run import eject_prefix, evaluate_folder
from adaptrain.training.run import RunResult, planned_folder, train
from finished_runs import PREFIX, config_of, finish, read, save_place
from tiny_run import MOOD, Recorder, run_config, save_data, write_jsonl


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_place(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def finished(place: Path) -> RunResult:
    return finish(place)


@pytest.fixture(scope="module")
def prefix(place: Path) -> RunResult:
    config = run_config(place / "base", place / "data", place / "prefix", adapter=PREFIX, epochs=1)
    return train(config, display=Recorder())


def copied(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


# ---- folders are made whole, and kept


def test_a_finished_run_is_not_repeated(finished: RunResult, place: Path) -> None:
    config = config_of(place, place / "outputs", epochs=4)
    before = (finished.folder / "run.json").stat().st_mtime_ns
    recorder = Recorder()
    again = train(config, display=recorder)
    assert again.finished_before and again.row == finished.row and not recorder.events
    assert (finished.folder / "run.json").stat().st_mtime_ns == before
    assert planned_folder(config) == finished.folder


def test_force_replaces_a_finished_run(place: Path, tmp_path: Path) -> None:
    first = train(config_of(place, tmp_path, epochs=1), display=Recorder())
    (first.folder / "left-over").write_text("")
    second = train(config_of(place, tmp_path, epochs=1, force=True), display=Recorder())
    assert second.folder == first.folder and not second.finished_before
    assert not (second.folder / "left-over").exists()
    assert [entry.name for entry in second.folder.parent.iterdir()] == [second.folder.name]


def test_a_folder_that_is_no_run_is_not_touched(place: Path, tmp_path: Path) -> None:
    folder = planned_folder(config_of(place, tmp_path, epochs=1))
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds no finished run"):
        train(config_of(place, tmp_path, epochs=1), display=Recorder())
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("when", ["training", "writing"])
def test_a_failure_leaves_nothing(when: str, place: Path, tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"adaptrain.training.run.{'fit' if when == 'training' else 'write_task'}", fail)
    with pytest.raises(KeyboardInterrupt):
        train(config_of(place, tmp_path, epochs=1), display=Recorder())
    assert list((tmp_path / "tiny").iterdir()) == []


def test_a_failed_replacement_keeps_the_old_run(place: Path, tmp_path: Path, monkeypatch) -> None:
    first = train(config_of(place, tmp_path, epochs=1), display=Recorder())

    def fail(*_: object, **__: object) -> None:
        raise DataError("no")

    monkeypatch.setattr("adaptrain.training.run.write_task", fail)
    with pytest.raises(DataError):
        train(config_of(place, tmp_path, epochs=1, force=True), display=Recorder())
    assert evaluate_folder(first.folder).reproduced


def test_what_a_killed_process_left_is_taken_over_but_a_live_one_is_not_disturbed(place: Path, tmp_path: Path) -> None:
    import socket

    folder = planned_folder(config_of(place, tmp_path, epochs=1))
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True)
    (partial / ".owner.json").write_text(json.dumps({"host": socket.gethostname(), "pid": os.getppid()}))
    with pytest.raises(OutputError, match=f"Process {os.getppid()} .* is at work on this run"):
        train(config_of(place, tmp_path, epochs=1), display=Recorder())
    assert partial.is_dir()
    (partial / ".owner.json").write_text(json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1}))
    assert train(config_of(place, tmp_path, epochs=1), display=Recorder()).folder.is_dir()


# ---- bad input


def test_bad_input_is_refused_before_anything_is_written(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    broken = tmp_path / "broken"
    write_jsonl(broken / "mood/train.jsonl", [{"sentence": "the day", "label": 2}])
    write_jsonl(broken / "mood/dev.jsonl", [{"sentence": "the day", "label": 0}])
    wrong: list[tuple[dict, type[AdaptrainError], str]] = [
        ({"data": {"mirror": str(broken)}}, DataError, "row 1: the label 2"),
        ({"task": dataclasses.replace(MOOD, columns=ColumnsConfig(text="sentense"))}, DataError, "mean 'sentence'"),
        ({"task": dataclasses.replace(MOOD, metric="mc")}, ConfigError, "did you mean 'mcc'"),
        ({"adapter": {"method": "lorra"}}, ConfigError, "did you mean 'lora'"),
        ({"data": {"max_length": 2}}, ConfigError, "leaves no room for text"),
        ({"device": "tpu"}, ConfigError, "trainer.device=tpu"),
    ]
    for changes, kind, message in wrong:
        with pytest.raises(kind, match=message):
            train(config_of(place, out, **changes), display=Recorder())
    config = config_of(place, out)
    with pytest.raises(ModelError, match="there is no such folder"):
        train(dataclasses.replace(config, model=ModelConfig(name="./nowhere")), display=Recorder())
    assert not out.exists()


def test_a_folder_that_cannot_be_written_is_told(place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write"):
        train(config_of(place, tmp_path / "file", epochs=1), display=Recorder())


def test_evaluating_what_is_no_run(finished: RunResult, place: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no folder"):
        evaluate_folder(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no adapter"):
        evaluate_folder(tmp_path)
    copy = copied(finished.folder, tmp_path / "copy")
    (copy / "task.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        evaluate_folder(copy)
    (copy / "task.json").unlink()
    with pytest.raises(CheckpointError, match="its task is not known"):
        evaluate_folder(copy)
    copy = copied(finished.folder, tmp_path / "damaged")
    (copy / "adapter.safetensors").write_bytes((copy / "adapter.safetensors").read_bytes()[:-8])
    with pytest.raises(CheckpointError):
        evaluate_folder(copy)


def test_another_base_model_is_refused(finished: RunResult, place: Path, tmp_path: Path) -> None:
    copy = copied(finished.folder, tmp_path / "copy")
    config = read(copy, "adapter_config.json")
    config["base_model"]["fingerprint"] = "0" * 64
    (copy / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="is not the one that the adapter"):
        evaluate_folder(copy)


# ---- ejecting a prefix


def test_an_ejected_prefix_is_smaller_and_says_the_same(prefix: RunResult, tmp_path: Path) -> None:
    folder = copied(prefix.folder, tmp_path / "run")
    result = eject_prefix(folder)
    assert result.difference <= 1e-6 and result.bytes_after < result.bytes_before
    assert result.numbers_before == prefix.row["adapter_parameters"]
    assert result.numbers_after == 5 * 2 * 2 * 32
    assert result.bytes_after == (folder / "adapter.safetensors").stat().st_size
    assert "16 rows of mood" in result.probe
    after = evaluate_folder(folder)
    assert after.reproduced
    said = [json.loads(line)["logits"] for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert torch.allclose(torch.tensor(said), torch.from_numpy(after.predictions.logits), rtol=0, atol=1e-6)
    row = read(folder, "result.json")
    assert row["adapter_parameters"] == result.numbers_after
    assert row["trained_adapter_parameters"] == result.numbers_before
    assert row["trainable_parameters"] == result.numbers_after + row["head_parameters"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]
    with pytest.raises(UnsupportedError, match="flat prefix already"):
        eject_prefix(folder)


def test_ejecting_into_another_folder_keeps_the_first(prefix: RunResult, tmp_path: Path) -> None:
    before = (prefix.folder / "adapter.safetensors").read_bytes()
    result = eject_prefix(prefix.folder, tmp_path / "flat")
    assert (prefix.folder / "adapter.safetensors").read_bytes() == before
    assert evaluate_folder(result.folder).reproduced
    with pytest.raises(OutputError, match="is there already"):
        eject_prefix(prefix.folder, tmp_path / "flat")


def test_ejecting_without_the_data_uses_random_tokens(place: Path, tmp_path: Path) -> None:
    save_data(tmp_path / "data")
    config = run_config(place / "base", tmp_path / "data", tmp_path / "out", adapter=PREFIX, epochs=1)
    folder = train(config, display=Recorder()).folder
    (tmp_path / "data").rename(tmp_path / "gone")
    assert eject_prefix(folder).probe == "random tokens"


def test_only_a_prefix_can_be_ejected(finished: RunResult, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="only prefix_tuning"):
        eject_prefix(finished.folder)
    with pytest.raises(CheckpointError, match="holds no adapter"):
        eject_prefix(tmp_path)


def test_a_prefix_whose_outputs_would_change_is_left_alone(prefix: RunResult, tmp_path: Path, monkeypatch) -> None:
    from adaptrain.model import AdaptedModel

    folder = copied(prefix.folder, tmp_path / "run")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    whole = AdaptedModel.eject_prefix_tuning

    def wrong(self: AdaptedModel, name: str) -> None:
        whole(self, name)
        with torch.no_grad():
            for parameter in self.get_adapter(name).parameters():
                parameter += 0.01

    monkeypatch.setattr(AdaptedModel, "eject_prefix_tuning", wrong)
    with pytest.raises(CheckpointError, match="nothing was changed"):
        eject_prefix(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
