"""`model.quantize`: a run on a base in few bits, and the evaluation of what it left behind."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptrain.config.schema import ModelConfig, RunConfig
from adaptrain.errors import ConfigError, ModelError
from adaptrain.evaluation.run import evaluate_folder
from adaptrain.quantised import scheme_of
from adaptrain.reporting.results import settings
from adaptrain.training import quantisation
from adaptrain.training.base_model import find_base, load_model
from adaptrain.training.precision import find_hardware
from adaptrain.training.prepare import prepare
from adaptrain.training.run import complete, train
from matrix import base as tiny
from tiny_quantised import ao, bnb
from tiny_run import Recorder, run_config, save_base, save_data

KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(library is None, reason=f"the library of {kind} is not installed"))
    for kind, library in (("bnb_8bit", bnb), ("bnb_4bit", bnb), ("ao_int8", ao))
]
WORDS = {"bnb_8bit": "bitsandbytes, 8-bit", "bnb_4bit": "bitsandbytes, 4-bit", "ao_int8": "torchao, Int8Tensor"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_data(tmp_path_factory.mktemp("mirror"))


def quantised_run(config: RunConfig, kind: str) -> RunConfig:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, quantize=kind))


@pytest.mark.parametrize("kind", KINDS)
def test_trained_and_evaluated_on_the_same_quantised_base(kind, base, mirror, tmp_path, monkeypatch, caplog):
    config = quantised_run(run_config(base, mirror, tmp_path, adapter={"method": "dora"}), kind)
    done = train(config, display=Recorder())
    assert done.row["score"] > 0.5
    task = json.loads((done.folder / "task.json").read_text())
    assert task["model"]["quantize"] == kind
    manifest = json.loads((done.folder / "run.json").read_text())
    assert manifest["base_model"]["quantize"] == kind
    assert manifest["versions"]["torchao" if kind == "ao_int8" else "bitsandbytes"] is not None

    seen: list[str | None] = []
    real = load_model

    def watched(*arguments: Any) -> Any:
        model, found = real(*arguments)
        seen.append(scheme_of(model.base_model))
        return model, found

    monkeypatch.setattr("adaptrain.evaluation.saved.load_model", watched)
    again = evaluate_folder(done.folder, device="cpu")
    assert seen == [WORDS[kind]]
    assert again.score == done.row["score"]

    assert "MatMul8bitLt" not in caplog.text  # a line for every map in every forward


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_dtype_for_the_base_and_its_arithmetic(kind, precision, base, mirror, tmp_path):
    plain = prepare(*complete(run_config(base, mirror, tmp_path, precision=precision)))
    run = prepare(*complete(quantised_run(run_config(base, mirror, tmp_path, precision=precision), kind)))
    dtype = find_hardware("cpu", precision, trains_base=False).precision.base
    model = run.model.base_model
    assert scheme_of(model) == WORDS[kind] and model.dtype == dtype
    if kind == "bnb_4bit":
        module = model.encoder.layer[0].attention.self.query
        state = module.weight.quant_state
        assert (state.quant_type, state.nested, module.compute_dtype) == ("nf4", True, dtype)
    assert run.parameter_counts() == plain.parameter_counts()


@pytest.mark.skipif(ao is None, reason="torchao is not installed")
def test_a_base_with_nothing_to_quantise_is_refused(tmp_path):
    tiny("gpt2").save_pretrained(tmp_path)
    found = find_base(ModelConfig(name=str(tmp_path), quantize="ao_int8"))
    with pytest.raises(ModelError, match=r"quantize=ao_int8 finds nothing to quantise.*maps of gpt2.*take bnb_8bit"):
        load_model(found, torch.float32)


def test_a_missing_library_is_named_with_its_cure(base, mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(quantisation.importlib.util, "find_spec", lambda name: None)
    config, method, _ = complete(quantised_run(run_config(base, mirror, tmp_path), "bnb_4bit"))
    wanted = r"quantize=bnb_4bit needs the Python package 'bitsandbytes'.*pip install 'adaptrain\[quantised\]'"
    with pytest.raises(ModelError, match=wanted):
        prepare(config, method)
    with pytest.raises(ModelError, match=wanted):
        load_model(find_base(config.model), torch.float32)
    assert list(tmp_path.iterdir()) == []


def test_full_fine_tuning_and_few_bits_do_not_go_together(base, mirror, tmp_path):
    config = quantised_run(run_config(base, mirror, tmp_path, adapter={"method": "full"}), "bnb_4bit")
    with pytest.raises(ConfigError, match=r"adapter=full trains the base.*quantize=bnb_4bit.*quantize=null"):
        complete(config)


def test_runs_in_few_bits_are_no_repetitions_of_others(base, mirror, tmp_path):
    config = run_config(base, mirror, tmp_path)
    plain, few = settings(config), settings(quantised_run(config, "bnb_8bit"))
    assert few == plain | {"model.quantize": "bnb_8bit"}
