"""Whole runs on a tiny model: what the folder holds, and that the score comes out again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from adaptrain.config.schema import CarveConfig, SplitsConfig
from adaptrain.evaluation.metrics import METRICS
from adaptrain.evaluation.run import evaluate_folder
from adaptrain.reporting.table import build_table, collect
from adaptrain.training.run import RunResult, train
from finished_runs import PREFIX, config_of, finish, read, save_place
from tiny_run import MOOD, NUMBER, Recorder, run_config

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
    "ingredients.json",
    "run.json",
}
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
    return save_place(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def finished(place: Path) -> RunResult:
    return finish(place)


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
