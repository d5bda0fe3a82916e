"""Whole runs on a tiny model: what the folder holds, that the score comes out again, that nothing is half-written."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from adaptrain.config.schema import CarveConfig, ColumnsConfig, ModelConfig, SplitsConfig
from adaptrain.errors import (
    AdaptrainError,
    CheckpointError,
    ConfigError,
    DataError,
    ModelError,
    OutputError,
    UnsupportedError,
)
from adaptrain.evaluation.metrics import METRICS
from adaptrain.evaluation.run import eject_prefix, evaluate_folder
from adaptrain.reporting.table import build_table, collect
from adaptrain.training.run import RunResult, planned_folder, train
from tiny_run import MOOD, NUMBER, Recorder, run_config, save_base, save_data, write_jsonl

FILES = {
    "adapter_config.json",
    "adapter.safetensors",
    "head_config.json",
    "head.safetensors",
    "task.json",
    "config.yaml",
    "origins.yaml",
    "metrics.json",
    "predictions.jsonl",
    "log.jsonl",
    "result.json",
    "run.json",
}
PREFIX = {"method": "prefix_tuning", "prefix_length": 5, "bottleneck_size": 16}
SEQ_BN = {
    "method": "bottleneck",
    "mh_adapter": False,
    "output_adapter": True,
    "reduction_factor": 4,
    "non_linearity": "relu",
    "original_ln_before": True,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_base(folder / "base")
    save_data(folder / "data")
    return folder


@pytest.fixture(scope="module")
def finished(place: Path) -> RunResult:
    config = run_config(place / "base", place / "data", place / "outputs", epochs=4)
    return train(config, origins_yaml="seed: 1  # here\n", command=("adaptrain", "train"), display=Recorder())


@pytest.fixture(scope="module")
def prefix(place: Path) -> RunResult:
    config = run_config(place / "base", place / "data", place / "prefix", adapter=PREFIX, epochs=1)
    return train(config, display=Recorder())


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


def config_of(place: Path, outputs: Path, **changes):
    return run_config(place / "base", place / "data", outputs, **changes)


# ---- what is left behind


def test_a_run_learns_and_beats_the_majority_class(finished: RunResult) -> None:
    row = finished.row
    assert not finished.finished_before
    assert row["score"] > 0.5 > row["baseline"]["score"] == 0.0
    assert row["baseline"]["name"] == "majority class"
    assert row["metric"] == "mcc" and set(row["metrics"]) == {"mcc", "accuracy"}


def test_the_folder_is_complete_and_nothing_is_beside_it(finished: RunResult) -> None:
    assert {file.name for file in finished.folder.iterdir()} == FILES
    assert [entry.name for entry in finished.folder.parent.iterdir()] == [finished.folder.name]
    assert (finished.folder / "origins.yaml").read_text() == "seed: 1  # here\n"


def test_the_row_counts_adapter_and_head_apart(finished: RunResult) -> None:
    row = finished.row
    # r=8 on query and value of two layers of width 32
    assert row["adapter_parameters"] == 2 * 2 * 8 * (32 + 32)
    assert row["head_parameters"] == 32 * 32 + 32 + 2 * 32 + 2
    assert row["trainable_parameters"] == row["adapter_parameters"] + row["head_parameters"]
    assert row["percent_of_base"] == pytest.approx(100 * row["trainable_parameters"] / row["base_parameters"])
    assert row == read(finished.folder, "result.json")


def test_the_manifest_says_what_was_run(finished: RunResult) -> None:
    run = read(finished.folder, "run.json")
    assert run["command"] == ["adaptrain", "train"]
    assert run["seed"] == 1 and run["precision"] == "fp32" and run["base_dtype"] == "float32"
    assert run["hardware"]["device"] == "cpu" and run["hardware"]["threads"] >= 1
    assert {"adaptrain", "python", "torch", "transformers", "datasets", "accelerate", "numpy"} <= set(run["versions"])
    assert len(run["base_model"]["fingerprint"]) == 64
    assert {split["role"]: (split["rows"], split["truncated"]) for split in run["data"]} == {
        "train": (200, 0),
        "validation": (50, 0),
    }
    assert all(len(split["fingerprint"]) == 64 for split in run["data"])
    assert run["seconds"]["total"] >= run["seconds"]["train"] > 0 and run["peak_memory_bytes"] > 2**20


def test_the_config_is_whole(finished: RunResult) -> None:
    config = yaml.safe_load((finished.folder / "config.yaml").read_text())
    assert config["adapter"] == finished.row["adapter"] and config["adapter"]["alpha"] == 8
    assert config["trainer"]["epochs"] == 4 and config["task"]["labels"] == ["bad", "good"]


def test_predictions_are_in_the_rows_own_order(finished: RunResult, place: Path) -> None:
    said = [json.loads(line) for line in (finished.folder / "predictions.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (place / "data/mood/dev.jsonl").read_text().splitlines()]
    assert [row["index"] for row in said] == list(range(50))
    assert [row["label"] for row in said] == [("bad", "good")[row["label"]] for row in rows]
    assert all(row["prediction"] == ("bad", "good")[int(row["logits"][1] > row["logits"][0])] for row in said)
    right = sum(row["label"] == row["prediction"] for row in said) / 50
    assert right == pytest.approx(finished.row["metrics"]["accuracy"])


def test_the_log_has_every_event(finished: RunResult) -> None:
    events = [json.loads(line) for line in (finished.folder / "log.jsonl").read_text().splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "start" and kinds[-1] == "stop" and kinds.count("evaluation") == 4
    assert events[0]["steps"] == 4 * 13 == [event for event in events if event["event"] == "step"][-1]["step"]


def test_the_best_evaluation_is_the_one_that_is_saved(finished: RunResult) -> None:
    evaluations = read(finished.folder, "metrics.json")["evaluations"]
    assert finished.row["score"] == max(evaluation["score"] for evaluation in evaluations)
    best = next(e for e in evaluations if e["score"] == finished.row["score"])
    assert finished.row["best_epoch"] == best["epoch"]


# ---- the same number again


def test_evaluation_gives_the_same_number(finished: RunResult, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = evaluate_folder(finished.folder)
    assert result.reproduced and result.score == finished.row["score"] == result.stored
    said = [json.loads(line)["logits"] for line in (finished.folder / "predictions.jsonl").read_text().splitlines()]
    assert torch.equal(torch.tensor(said), torch.from_numpy(result.predictions.logits))
    assert (result.split, result.rows, result.notes) == ("validation", 50, ())


def test_a_relative_mirror_is_found_from_another_folder(place: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(place)
    config = run_config(Path("base"), Path("data"), tmp_path / "out", epochs=1)
    folder = train(config, display=Recorder()).folder
    monkeypatch.chdir(tmp_path)
    assert evaluate_folder(folder).reproduced
    assert read(folder, "task.json")["data"]["mirror"] == "data"


def test_other_rows_and_other_splits_are_told(finished: RunResult, place: Path, tmp_path: Path) -> None:
    test = evaluate_folder(finished.folder, split="test")
    assert test.rows == 40 and test.stored is None and test.reproduced is None
    rows = (place / "data/mood/test.jsonl").read_text()
    (tmp_path / "mood").mkdir()
    (tmp_path / "mood/dev.jsonl").write_text(rows)
    other = evaluate_folder(finished.folder, mirror=str(tmp_path))
    assert "not those that training reported on" in other.notes[0] and other.metrics == test.metrics
    assert "the last digits may differ" in evaluate_folder(finished.folder, batch_size=7).notes[0]


@pytest.mark.parametrize("adapter", [{"method": "full"}, {"method": "none"}, SEQ_BN, PREFIX])
def test_every_method_comes_out_again(adapter: dict, place: Path, tmp_path: Path) -> None:
    config = config_of(place, tmp_path, adapter=adapter, epochs=1, precision="bf16", learning_rate=1e-3)
    result = train(config, display=Recorder())
    assert result.row["environment"]["precision"] == "bf16"
    found = evaluate_folder(result.folder)
    assert found.reproduced and found.notes == ()
    said = [json.loads(line)["logits"] for line in (result.folder / "predictions.jsonl").read_text().splitlines()]
    assert torch.allclose(torch.tensor(said), torch.from_numpy(found.predictions.logits), rtol=0, atol=1e-6)


def test_full_fine_tuning_keeps_a_float32_base(place: Path, tmp_path: Path) -> None:
    config = config_of(place, tmp_path, adapter={"method": "full"}, epochs=1, precision="bf16", learning_rate=1e-3)
    row = train(config, display=Recorder()).row
    assert row["adapter_parameters"] == row["base_parameters"] and row["percent_of_base"] > 100
    assert read(tmp_path / "tiny" / row["run"], "run.json")["base_dtype"] == "float32"


def test_regression_on_pairs_is_reported_on_the_test_split(place: Path, tmp_path: Path) -> None:
    result = train(config_of(place, tmp_path, task=NUMBER, epochs=6, learning_rate=1e-2), display=Recorder())
    row = result.row
    assert row["split"] == "test" and row["chosen_on"] == "validation" and row["rows"] == 40
    assert row["score"] > 0.5 > row["baseline"]["score"] == 0.0 and row["baseline"]["name"] == "mean"
    assert evaluate_folder(result.folder).reproduced


def test_a_carved_split_is_named_as_such(place: Path, tmp_path: Path) -> None:
    carve = CarveConfig(to="held_out", rows=30)
    task = dataclasses.replace(MOOD, splits=SplitsConfig(validation="held_out", test="validation", carve=carve))
    recorder = Recorder()
    result = train(config_of(place, tmp_path, task=task, epochs=1), display=recorder)
    words = "from train, 30 rows, seed 0"
    assert result.row["carved"] == {"held_out": words}
    assert (result.row["split"], result.row["chosen_on"]) == ("validation", "held_out")
    data = {split["role"]: split for split in read(result.folder, "run.json")["data"]}
    assert [data[role]["carved"] for role in ("train", "validation", "test")] == [None, words, None]
    assert f"split 'held_out' is carved {words}" in recorder.of("note")
    table = build_table(collect(tmp_path / "tiny"))
    assert table.remarks == [f"mood: chosen on held_out (carved {words}), scored on validation"]


def test_how_a_metric_is_computed_is_kept(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signed = dataclasses.replace(METRICS["mcc"], signature=lambda references: f"rows:{len(references)}")
    monkeypatch.setitem(METRICS, "mcc", signed)
    result = train(config_of(place, tmp_path, epochs=1, keep="last"), display=Recorder())
    assert result.row["signatures"] == {"mcc": "rows:50"} and result.row["chosen_on"] is None
    metrics = read(result.folder, "metrics.json")
    assert metrics["signatures"] == {"mcc": "rows:50"} and metrics["chosen_on"] is None
    assert build_table(collect(tmp_path / "tiny")).remarks == ["mood, MCC: rows:50"]


def test_the_same_seed_gives_the_same_run(finished: RunResult, place: Path, tmp_path: Path) -> None:
    again = train(config_of(place, tmp_path, epochs=4, recipe="other"), display=Recorder())
    assert again.folder.name == finished.folder.name  # the recipe's name is no part of the hash
    assert (again.folder / "predictions.jsonl").read_bytes() == (finished.folder / "predictions.jsonl").read_bytes()
    assert (again.folder / "adapter.safetensors").read_bytes() == (finished.folder / "adapter.safetensors").read_bytes()
    other = train(config_of(place, tmp_path, epochs=1, seed=2), display=Recorder())
    assert other.folder.name != finished.folder.name


def test_saving_memory_changes_no_number(finished: RunResult, place: Path, tmp_path: Path) -> None:
    config = config_of(place, tmp_path, epochs=4, gradient_checkpointing=True)
    result = train(config, display=Recorder())
    assert result.folder.name != finished.folder.name
    assert result.row["score"] == finished.row["score"]
    one, two = (load_file(folder / "adapter.safetensors") for folder in (result.folder, finished.folder))
    assert all(torch.allclose(one[name], two[name], rtol=0, atol=1e-6) for name in two)


def test_limits_on_rows_and_long_texts_are_counted(place: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    config = config_of(place, tmp_path, data={"max_train": 32, "max_eval": 10, "max_length": 8}, epochs=1)
    result = train(config, display=recorder)
    data = {split["role"]: split for split in read(result.folder, "run.json")["data"]}
    assert (data["train"]["rows"], data["train"]["rows_of_split"], data["validation"]["rows"]) == (32, 200, 10)
    assert data["train"]["truncated"] > 0
    assert any("were cut to 8 tokens" in note for note in recorder.of("note"))
    assert evaluate_folder(result.folder).reproduced


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


def copied(folder: Path, target: Path) -> Path:
    import shutil

    shutil.copytree(folder, target)
    return target


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
