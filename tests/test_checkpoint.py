"""Adapter folders: what they hold, names of every kind, and how their files are written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

import adaptrain
from adaptrain.checkpoint import read_adapter_config
from adaptrain.errors import AdapterNameError, AdaptrainError, CheckpointError, OutputError
from adaptrain.files import read_json, read_tensors, write_json, write_tensors
from adaptrain.methods import LoRAConfig
from matrix import METHODS, adapted, add, base, batch, randomise, run
from tiny_folder import CLASSIFIER, CONFIG, HEAD_CONFIG, TENSORS, save_folder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a LoRA and a head, made by bert."""
    return save_folder(tmp_path / "saved")


# ---- what a folder holds


def test_a_folder_says_what_it_is(saved):
    values = read_json(saved / CONFIG)
    assert list(values) == ["format", "name", "config", "base_model", "versions"]
    assert values["format"] == "adaptrain/1"
    assert values["name"] == "a"
    assert values["config"] == METHODS["lora"].to_dict()
    assert values["base_model"] == {
        "name": "tiny",
        "revision": "r1",
        "fingerprint": "f00",
        "model_type": "bert",
        "hidden_size": 32,
    }
    assert values["versions"] == {
        "adaptrain": adaptrain.__version__,
        "torch": torch.__version__,
        "transformers": hf.__version__,
    }
    head = read_json(saved / HEAD_CONFIG)
    assert head["config"]["type"] == "classification"
    assert head["config"]["id2label"] == ["x", "y", "z"]
    file = read_adapter_config(saved)
    assert (file.name, file.config, file.head) == ("a", METHODS["lora"], head["config"])
    assert file.base["fingerprint"] == "f00"


def test_saving_again_replaces_and_leaves_no_parts(saved):
    model = adapted("bert", METHODS["lora"])
    before = run(model, batch("bert"))
    model.save_adapter(saved, "a", with_head=False)
    assert {path.name for path in saved.iterdir()} == {CONFIG, TENSORS}
    other = adapted("bert")
    other.load_adapter(saved, set_active=True, with_head=False)
    assert torch.equal(run(other, batch("bert")), before)


def test_saving_without_a_head_leaves_no_old_head(saved):
    adapted("bert", METHODS["lora"]).save_adapter(saved, "a")
    other = adapted("bert")
    other.load_adapter(saved, set_active=True)
    assert other.active_head is None


def test_without_its_head(saved):
    model = adapted("bert")
    model.load_adapter(saved, set_active=True, with_head=False)
    assert list(model.heads) == []
    assert run(model, batch("bert")).shape == (2, 7, 32)


def test_loading_replaces_an_adapter_of_the_name(saved):
    model = adapted("bert", METHODS["prefix_tuning"])
    model.load_adapter(saved, with_head=False)
    assert model.get_adapter("a").config == METHODS["lora"]
    assert model.config._attn_implementation == "sdpa"  # the prefix is gone
    assert torch.equal(run(model, batch("bert")), run(adapted("bert", METHODS["lora"]), batch("bert")))


def test_an_adapter_goes_where_the_model_is_and_trains(saved):
    model = adapted("bert")
    model.train()
    model.load_adapter(saved)
    assert model.get_adapter("a").training
    model.train_adapter("a")
    assert {name.split(".")[0] for name, _ in model.trainable_parameters()} == {"adapters", "heads"}


@pytest.mark.parametrize(
    "auto", [hf.AutoModelForCausalLM, hf.AutoModelForMaskedLM, CLASSIFIER], ids=lambda a: a.__name__
)
def test_an_adapter_of_a_model_class_loads_into_another(auto, tmp_path):
    """Canonical names do not know the class: no `bert.` in front."""
    arch = "gpt2" if auto is hf.AutoModelForCausalLM else "bert"
    with_head = adapted(arch, METHODS["lora-everywhere"], auto=auto)
    with_head.save_adapter(tmp_path, "a")
    assert all(key.startswith(("encoder.", "decoder.")) for key in load_file(tmp_path / TENSORS))
    plain = adapted(arch)
    plain.load_adapter(tmp_path, set_active=True, with_head=False)
    inputs = batch(arch)
    with torch.no_grad():
        expected = with_head.base_model.base_model(**inputs).last_hidden_state  # the body alone, still adapted
    assert torch.equal(run(plain, inputs), expected)


def test_a_models_own_head_is_saved_beside_the_adapter(tmp_path):
    model = adapted("bert", METHODS["seq_bn"], auto=CLASSIFIER)
    model.train_adapter("a")
    assert {name for name, _ in model.trainable_parameters() if name.startswith("base_model")} == {
        "base_model.classifier.weight",
        "base_model.classifier.bias",
    }
    randomise(model.base_model.classifier, 0.5, seed=9)
    model.eval().save_adapter(tmp_path, "a")
    assert read_json(tmp_path / HEAD_CONFIG)["config"] == {
        "type": "own",
        "model_class": "BertForSequenceClassification",
    }
    fresh = adapted("bert", auto=CLASSIFIER)
    fresh.load_adapter(tmp_path, set_active=True)
    assert torch.equal(run(fresh, batch("bert")), run(model, batch("bert")))
    without = adapted("bert", auto=CLASSIFIER)
    without.load_adapter(tmp_path, set_active=True, with_head=False)
    assert torch.equal(without.base_model.classifier.weight, base("bert", auto=CLASSIFIER).classifier.weight)


@pytest.mark.parametrize("auto", [hf.AutoModel, CLASSIFIER, hf.AutoModelForMaskedLM], ids=lambda a: a.__name__)
def test_full_fine_tuning_round_trip(auto, tmp_path):
    model = adapted("bert", METHODS["full"], auto=auto)
    randomise(model.base_model, 0.2, seed=31)
    model.save_adapter(tmp_path, "a")
    expected = run(model, batch("bert"))
    fresh = adapted("bert", auto=auto)
    assert not torch.allclose(run(fresh, batch("bert")), expected)
    fresh.load_adapter(tmp_path, set_active=True)
    assert torch.equal(run(fresh, batch("bert")), expected)
    sizes = sum(tensor.numel() for file in tmp_path.glob("*.safetensors") for tensor in load_file(file).values())
    assert sizes == sum(parameter.numel() for parameter in model.base_model.parameters())


def test_tied_weights_are_saved_once(tmp_path):
    model = adapted("gpt2", METHODS["full"], auto=hf.AutoModelForCausalLM)
    model.save_adapter(tmp_path, "a")
    keys = set(load_file(tmp_path / TENSORS))
    assert "transformer.wte.weight" in keys
    assert "lm_head.weight" not in keys
    randomise(model.base_model, 0.2, seed=31)
    model.save_adapter(tmp_path, "a")
    fresh = adapted("gpt2", auto=hf.AutoModelForCausalLM)
    fresh.load_adapter(tmp_path, set_active=True)
    assert torch.equal(run(fresh, batch("gpt2")), run(model, batch("gpt2")))


# ---- names


NAMES = [
    "sst2",
    "sst2.v1",
    "sst2%2Ev1",
    "sst2,mrpc",
    "sst",
    "español",
    "日本語",
    "a b",
    "<a>",
    "50%",
    "50%25",
    "train",
    "forward",
    "%2E",
]


def test_names_of_every_kind_are_kept_apart(tmp_path):
    model, inputs = adapted("bert"), batch("bert")
    expected = {}
    for seed, name in enumerate(NAMES):
        add(model, name, METHODS["lora"], seed=seed)
        model.set_active_adapters(name)
        expected[name] = run(model, inputs)
        model.save_adapter(tmp_path / str(seed), name)
    assert model.adapter_names() == NAMES
    fresh = adapted("bert")
    for seed, name in enumerate(NAMES):
        assert fresh.load_adapter(tmp_path / str(seed)) == name
    for name in NAMES:
        fresh.set_active_adapters(name)
        assert torch.equal(run(fresh, inputs), expected[name])
    fresh.set_active_adapters(None)
    for name in NAMES[:3]:
        fresh.delete_adapter(name)
    assert fresh.adapter_names() == NAMES[3:]
    fresh.set_active_adapters("sst")
    assert torch.equal(run(fresh, inputs), expected["sst"])


@pytest.mark.parametrize("name", ["", " a", "a ", "a\tb", "a\n", "f(x)", "it's", 'a"b', None, 3])
def test_what_cannot_be_a_name(name):
    model = adapted("bert")
    with pytest.raises(AdapterNameError, match="cannot name an adapter"):
        model.add_adapter(name, "lora")
    assert model.adapter_names() == []


# ---- files


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    model = adapted("bert", METHODS["lora"])
    with pytest.raises(OutputError, match="Cannot write .*file"):
        model.save_adapter(tmp_path / "file" / "folder", "a")


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"a": "ü"})
    assert read_json(path) == {"a": "ü"}

    def full(self, *_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="No space left"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": "ü"}
    assert [each.name for each in tmp_path.iterdir()] == ["x.json"]


def test_tensors_are_written_contiguous_and_equal(tmp_path):
    tensor = torch.arange(6.0).view(2, 3).T.requires_grad_(True)
    write_tensors(tmp_path / "t.safetensors", {"x": tensor})
    read = read_tensors(tmp_path / "t.safetensors")
    assert torch.equal(read["x"], tensor)
    assert not read["x"].requires_grad
    with pytest.raises(CheckpointError, match="There is no file"):
        read_tensors(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="There is no file"):
        read_json(tmp_path / "none.json")


def test_an_unknown_adapter_cannot_be_saved(tmp_path):
    with pytest.raises(AdapterNameError, match="'b'.*a"):
        adapted("bert", LoRAConfig()).save_adapter(tmp_path, "b")
    assert list(tmp_path.iterdir()) == []
    assert issubclass(AdapterNameError, AdaptrainError)
