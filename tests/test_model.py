"""The adapted model: adding, activating, training, counting, removing; and loading a base."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers as hf

import adaptrain
from adaptrain import AdapterSetup, AutoAdapterModel
from adaptrain.composition import Fuse, Split, Stack
from adaptrain.errors import AdapterNameError, CompositionError, ModelError, UnsupportedError
from adaptrain.methods import LoRAConfig, SeqBnConfig
from matrix import ARCHITECTURES, METHODS, adapted, add, bare, base, batch, gap, randomise, run

# ---- adding and removing


def test_names_are_taken_once():
    model = adapted("bert", METHODS["lora"])
    with pytest.raises(AdapterNameError, match="'a' already; give overwrite_ok=True"):
        model.add_adapter("a", "seq_bn")
    assert model.get_adapter("a").config == METHODS["lora"]
    model.add_adapter("a", "seq_bn", overwrite_ok=True)
    assert model.get_adapter("a").config == SeqBnConfig()
    assert [site for site in model.sites.by_name.values() if site.point.kind == "projection" and site.units] == []
    assert model.active_adapters == "a"


def test_what_add_adapter_is_given():
    model = adapted("bert")
    model.add_adapter("default")
    model.add_adapter("string", "lora[r=2]", set_active=True)
    model.add_adapter("mapping", {"method": "lora", "r": 4})
    assert [model.get_adapter(name).config for name in model.adapter_names()] == [
        *(SeqBnConfig(), LoRAConfig(r=2), LoRAConfig(r=4))
    ]
    assert model.active_adapters == "string"


def test_unknown_names_are_refused_with_the_nearest():
    model = adapted("bert", METHODS["lora"], name="sst2")
    for act in (model.delete_adapter, model.get_adapter, model.parameter_count, model.eject_prefix_tuning):
        with pytest.raises(AdapterNameError, match=r"'sst', did you mean 'sst2'\?.*sst2"):
            act("sst")
    for act in (model.set_active_adapters, model.train_adapter):
        with pytest.raises(CompositionError, match=r"'sst', did you mean 'sst2'\?"):
            act("sst")
    assert model.active_adapters == "sst2"


def test_a_part_of_the_active_composition_is_not_deleted():
    model = adapted("bert", METHODS["lora"])
    add(model, "b", METHODS["seq_bn"])
    model.set_active_adapters("stack(a, b)")
    with pytest.raises(AdapterNameError, match=r"'a' is part of the active stack\(a, b\); activate another first"):
        model.delete_adapter("a")
    assert model.adapter_names() == ["a", "b"]
    model.set_active_adapters("b")
    model.delete_adapter("a")
    assert model.active_adapters == "b"


def test_a_config_that_fails_leaves_the_model_as_it_was():
    model, inputs = adapted("bert", METHODS["lora"]), batch("bert")
    before = run(model, inputs)
    with pytest.raises(UnsupportedError):
        model.add_adapter("b", LoRAConfig(leave_out=(0, 1)))
    with pytest.raises(UnsupportedError):
        model.add_adapter("a", LoRAConfig(leave_out=(0, 1)), overwrite_ok=True)
    assert model.adapter_names() == ["a"]
    assert torch.equal(run(model, inputs), before)


# ---- activation


def test_active_adapters_is_a_property_too():
    model = adapted("bert", METHODS["lora"])
    add(model, "b", METHODS["seq_bn"])
    model.active_adapters = Stack("a", Stack("b"))
    assert model.active_adapters == Stack("a", "b")
    model.active_adapters = {"stack": ["b", "a"]}
    assert str(model.active_adapters) == "stack(b, a)"
    model.active_adapters = "stack(b)"
    assert model.active_adapters == "b"
    model.active_adapters = None
    assert model.active_adapters is None


def test_a_list_is_taken_wherever_a_composition_is():
    """As in the reference library: a stack; a list in it is a fusion."""
    model = adapted("bert", METHODS["seq_bn"])
    add(model, "b", METHODS["seq_bn"])
    model.train_adapter(["a"])
    assert model.active_adapters == "a"
    assert {name.split(".")[1] for name, _ in model.trainable_parameters()} == {"<a>"}
    model.set_active_adapters(["a", "b"])
    assert model.active_adapters == Stack("a", "b")
    model.active_adapters = ["b"]
    assert model.active_adapters == "b"
    stacked, inputs = run(model.eval(), batch("bert")), batch("bert")
    model.active_adapters = None
    with AdapterSetup(["b"]):
        assert gap(run(model, inputs), stacked) == 0
    model.add_adapter_fusion(["a", "b"])
    for composition in (["a", "b"], [["a", "b"]]):
        model.train_adapter_fusion(composition)
        assert model.active_adapters == Fuse("a", "b")
    with pytest.raises(CompositionError, match="empty"):
        model.train_adapter([])


def test_a_setup_refuses_what_activation_refuses():
    model = adapted("bert", METHODS["lora"])
    add(model, "b", METHODS["prefix_tuning"])
    with (
        adaptrain.AdapterSetup(Split("a", "b", sizes=[3, 4])),
        pytest.raises(UnsupportedError, match="Split over prefix_tuning on bert"),
    ):
        run(model, batch("bert"))


# ---- training


def trainable(model: adaptrain.AdaptedModel) -> set[str]:
    return {name for name, _ in model.trainable_parameters()}


def test_training_a_stack_trains_its_adapters_and_the_last_ones_head():
    model = adapted("bert")
    for name in ("a", "b", "c"):
        add(model, name, METHODS["lora"])
        model.add_classification_head(name)
    model.train_adapter("stack(a, b)")
    assert {name.split(">")[0] for name in trainable(model)} == {"adapters.<a", "adapters.<b", "heads.<b"}
    assert model.active_head == "b"
    assert model.training
    model.train_adapter("c")
    assert {name.split(">")[0] for name in trainable(model)} == {"adapters.<c", "heads.<c"}


def test_training_no_adapter_trains_its_head_alone():
    model = adapted("bert", METHODS["none"])
    model.add_classification_head("a")
    model.train_adapter("a")
    assert all(name.startswith("heads.<a>.") for name in trainable(model))
    assert len(trainable(model)) == 4


def test_full_training_trains_the_base_and_no_other_adapter():
    model = adapted("bert", METHODS["full"])
    add(model, "b", METHODS["lora"])
    model.train_adapter("a")
    assert {name.split(".")[0] for name in trainable(model)} == {"base_model"}
    assert len(trainable(model)) == len(list(model.base_model.parameters()))
    model.train_adapter("b")
    assert {name.split(".")[0] for name in trainable(model)} == {"adapters"}


def test_the_trainable_state_is_a_copy_that_goes_back():
    model, inputs = adapted("bert", METHODS["seq_bn"]), batch("bert")
    model.add_classification_head("a")
    model.train_adapter("a")
    model.eval()
    before, state = run(model, inputs), model.trainable_state()
    assert set(state) == trainable(model)
    randomise(model.adapters, 0.3, seed=40)
    randomise(model.heads, 0.3, seed=41)
    assert gap(run(model, inputs), before) > 1e-3
    assert all(not tensor.requires_grad for tensor in state.values())
    model.load_trainable_state(state)
    assert torch.equal(run(model, inputs), before)


def test_the_summary_of_adapters():
    model = adapted("bert", METHODS["lora"])  # 2 layers, query and value, r = 3
    add(model, "b", METHODS["full"])
    add(model, "c", METHODS["none"])
    model.train_adapter("a")
    rows = model.adapter_summary()
    total = sum(parameter.numel() for parameter in model.base_model.parameters())
    assert [(row["name"], row["method"], row["parameters"]) for row in rows] == [
        ("a", "lora", 2 * 2 * 3 * 64),
        ("b", "full", total),
        ("c", "none", 0),
        ("base model", "", total),
    ]
    assert rows[0]["percent"] == pytest.approx(100 * 768 / total)
    assert [row["active"] for row in rows] == [True, False, False, False]
    assert [row["trainable"] for row in rows] == [True, False, False, False]
    model.set_active_adapters(None)
    model.train_adapter("b")
    assert [row["trainable"] for row in model.adapter_summary()][-1]


# ---- eject


def test_only_a_reparameterised_prefix_is_ejected():
    model = adapted("bert", METHODS["lora"])
    add(model, "flat", METHODS["prefix_tuning_flat"])
    with pytest.raises(UnsupportedError, match="'a' is lora; only prefix tuning"):
        model.eject_prefix_tuning("a")
    with pytest.raises(UnsupportedError, match="'flat' is flat already"):
        model.eject_prefix_tuning("flat")


@pytest.mark.parametrize("trains", [True, False])
def test_an_ejected_prefix_goes_on_as_before(trains, tmp_path):
    model, inputs = adapted("llama", METHODS["prefix_tuning"]), batch("llama")
    add(model, "b", METHODS["lora"])
    model.train_adapter("a" if trains else "b")
    model.eval().set_active_adapters("a")
    expected = run(model, inputs)
    model.eject_prefix_tuning("a")
    assert model.active_adapters == "a"
    assert not model.get_adapter("a").training
    assert any(parameter.requires_grad for parameter in model.get_adapter("a").parameters()) == trains
    model.save_adapter(tmp_path, "a")
    fresh = adapted("llama")
    fresh.load_adapter(tmp_path, set_active=True)
    assert gap(run(fresh, inputs), expected) < 1e-10


def test_eject_leaves_the_layers_out_that_were_left_out():
    model, inputs = adapted("bert", METHODS["prefix_tuning"].replace(leave_out=(0,))), batch("bert")
    expected = run(model, inputs)
    model.eject_prefix_tuning("a")
    assert model.get_adapter("a").tensors()["encoder.attention.prefix_tuning.prefix"].shape == (3, 2 * 32)
    assert gap(run(model, inputs), expected) < 1e-10


# ---- the face of the base model


def test_attributes_of_the_base_model_are_there():
    model = adapted("gpt2", METHODS["lora"], auto=hf.AutoModelForCausalLM)
    assert model.config is model.base_model.config
    assert model.device == torch.device("cpu")
    assert model.get_input_embeddings() is model.base_model.transformer.wte
    with pytest.raises(AttributeError, match="colour"):
        _ = model.colour
    with pytest.raises(AttributeError, match="no push_to_hub.*save_adapter"):
        _ = model.push_to_hub


def test_new_adapters_follow_the_models_mode_and_device():
    model = adapted("bert")
    add(model, "a", METHODS["seq_bn"])
    assert not model.get_adapter("a").training
    model.train()
    add(model, "b", METHODS["seq_bn"])
    model.add_classification_head("b")
    assert model.get_adapter("b").training
    assert model.heads["<b>"].training
    meta = adaptrain.init(base("bert").to("meta"))
    meta.add_adapter("a", "lora")
    meta.add_classification_head("a")
    assert {parameter.device.type for parameter in meta.parameters()} == {"meta"}


def test_the_identity_of_the_base():
    model = adapted("bert")
    assert model.identity == {"name": None, "revision": None, "fingerprint": None}
    model.set_base_identity(name="x", revision="r", fingerprint="f")
    assert model.identity == {"name": "x", "revision": "r", "fingerprint": "f"}


# ---- loading a base


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    base("bert").save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_a_base_is_loaded_from_a_folder(folder):
    model = AutoAdapterModel.from_pretrained(folder, dtype=torch.float64).eval()
    assert torch.equal(run(model, batch("bert")), bare("bert", batch("bert")))
    assert model.identity["name"] == str(folder)
    assert model.base_model.pooler is None  # nobody reads it
    low = AutoAdapterModel.from_pretrained(str(folder), dtype=torch.bfloat16, attn_implementation="eager")
    assert {parameter.dtype for parameter in low.base_model.parameters()} == {torch.bfloat16}
    assert low.config._attn_implementation == "eager"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_base_is_float32_however_it_was_saved(arch, tmp_path):
    base(arch).to(torch.bfloat16).save_pretrained(tmp_path)
    model = AutoAdapterModel.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in model.base_model.parameters()} == {torch.float32}
    assert {point.name for point in model.sites.points} == {point.name for point in adapted(arch).sites.points}


def test_a_base_is_made_from_a_config():
    model = AutoAdapterModel.from_config(ARCHITECTURES["llama"].config())
    assert model.architecture.name == "llama"


DAMAGES = ["nothing", "no-config", "no-weights", "pickled", "unknown-type", "no-json"]


@pytest.mark.parametrize("damage", [*DAMAGES, "cut-off"])
def test_a_base_that_cannot_be_loaded_is_one_line(folder, damage):
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "nothing":
        folder = folder / "nowhere"
    elif damage == "no-config":
        config.unlink()
    elif damage == "no-weights":
        weights.unlink()
    elif damage == "cut-off":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "pickled":
        weights.unlink()
        torch.save(base("bert").state_dict(), folder / "pytorch_model.bin")
    elif damage == "unknown-type":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "bertt"}))
    else:
        config.write_text("{")
    with pytest.raises(ModelError) as caught:
        AutoAdapterModel.from_pretrained(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_code_beside_a_base_is_not_run(folder):
    marker = folder / "ran"
    (folder / "modeling_mine.py").write_text(f"open({str(marker)!r}, 'w')\n")
    values = json.loads((folder / "config.json").read_text())
    values |= {"model_type": "mine", "auto_map": {"AutoConfig": "modeling_mine.C", "AutoModel": "modeling_mine.M"}}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ModelError):
        AutoAdapterModel.from_pretrained(folder)
    assert not marker.exists()


def test_a_hub_id_that_cannot_be_had_is_one_line():
    with pytest.raises(ModelError, match="'nobody/no-such-model'") as caught:
        AutoAdapterModel.from_pretrained("nobody/no-such-model")
    assert "\n" not in str(caught.value)


def test_a_model_has_adapters_around_it_once():
    """Two would hide their forwards from each other: adapters would act in part, or not at all."""
    plain = base("bert")
    model = adaptrain.init(plain)
    for second in (plain, copy.deepcopy(plain), model.base_model):
        with pytest.raises(UnsupportedError, match=r"This BertModel has adapters around it already: adaptrain\.init"):
            adaptrain.init(second)
    whole = base("bert", auto=hf.AutoModelForMaskedLM)
    adaptrain.init(whole.base_model)
    with pytest.raises(UnsupportedError, match="This BertForMaskedLM has adapters around it already"):
        adaptrain.init(whole)
    add(model, "a", METHODS["prompt_tuning"])
    model.set_active_adapters("a")
    assert run(copy.deepcopy(model).eval(), batch("bert")).shape == (2, 7, 32)  # a copy of the adapted model is whole
