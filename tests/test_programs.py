"""An adapted model as a program for transformers' models sees it: its methods, its signature, its config, its files."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading

import pytest
import torch
import transformers as hf
from safetensors.torch import save_file
from torch import nn

from adaptrain import AdapterSetup
from adaptrain.errors import ConfigError, UnsupportedError
from adaptrain.model import AdaptedModel
from adaptrain.programs import REFUSED
from every_head import EVERY, NAMES, headed
from matrix import METHODS, SHAPES, adapted, add, base, batch, gap, run

PASSED = {
    "activation_checkpointing_disable",
    "add_model_tags",
    "adjust_generation_fn",
    "barrier_after_gathered_checkpoint_save",
    "compute_transition_scores",
    "destroy_cached_continuous_batching_manager",
    "disable_input_require_grads",
    "enable_input_require_grads",
    "gather_sharded_state_dict_for_save",
    "get_compiled_call",
    "get_correct_attn_implementation",
    "get_correct_experts_implementation",
    "get_decoder",
    "get_encoder",
    "get_expanded_tied_weights_keys",
    "get_experts_implementation",
    "get_init_context",
    "get_input_embeddings",
    "get_output_embeddings",
    "get_parameter_or_buffer",
    "get_position_embeddings",
    "gradient_checkpointing_disable",
    "heal_tokens",
    "init_parallel_plans",
    "is_backend_compatible",
    "is_custom_code",
    "is_remote_code",
    "load_custom_generate",
    "mark_tied_weights_as_initialized",
    "maybe_distribute_model",
    "named_non_persistent_buffers",
    "prepare_distribute_model",
    "prepare_inputs_for_generation",
    "register_for_auto_class",
    "retrieve_modules_from_names",
    "set_attn_implementation",
    "set_experts_implementation",
    "should_save_on_this_rank",
    "tie_weights",
    "warn_if_padding_and_no_attention_mask",
}
"""Methods of transformers' models that may be called past an adapted model: they read the model inside, or change
nothing that an adapter, a head or a forward of ours depends on."""


def methods() -> dict[str, object]:
    """All that transformers' models add to torch's modules, and can be called."""
    kinds = hf.PreTrainedModel, hf.GenerationMixin
    found = {name: getattr(kind, name) for kind in kinds for name in dir(kind) if not name.startswith("_")}
    own = {name for name, value in found.items() if getattr(nn.Module, name, None) is value}
    return {name: value for name, value in found.items() if callable(value) and name not in own}


@pytest.mark.parametrize("name", [name for name in methods() if not inspect.isclass(methods()[name])])
def test_every_method_of_a_base_is_ours_or_refused_or_safe(name):
    """A method that transformers adds belongs to one of the three; which one, somebody has to say."""
    ours = getattr(AdaptedModel, name, None) is not getattr(nn.Module, name, None)
    assert [ours, name in REFUSED, name in PASSED].count(True) == 1 or name in ("train", "eval", "cuda")


@pytest.mark.parametrize("name", REFUSED)
def test_what_reaches_around_adapters_is_refused_by_name(name):
    model = adapted("gpt2", METHODS["lora"], auto=hf.AutoModelForCausalLM)
    assert not hasattr(model, name)
    with pytest.raises(UnsupportedError, match=rf"no {name}\(\): .*;? ?\w"):
        getattr(model, name)
    with pytest.raises(AttributeError, match=name):  # what Python code expects
        getattr(model, name)


# ---- the class and its signature


@pytest.mark.parametrize("kind", EVERY)
def test_the_class_is_named_by_what_the_model_does(kind):
    """transformers' programs decide by it, and by the signature of `forward`."""
    line, (model, inputs) = EVERY[kind], headed(kind)
    assert isinstance(model, AdaptedModel)
    assert type(model).__name__ == line.job
    parameters = inspect.signature(model.forward).parameters
    assert next(iter(inspect.signature(model.base_model.forward).parameters)) == next(iter(parameters))
    assert inputs.keys() <= parameters.keys()
    assert "task_ids" in parameters
    labels = [name for name in hf.utils.generic.find_labels(type(model)) if name in inputs]
    assert labels == [key for key in line.more(batch(line.arch)) if key != "word_starts"]
    model.active_head = None
    assert type(model).__name__ == type(model.base_model).__name__


@pytest.mark.parametrize("auto", [hf.AutoModelForQuestionAnswering, hf.AutoModelForCausalLM, hf.AutoModel])
def test_a_model_with_a_head_of_its_own_looks_as_it_did(auto):
    plain = base("bert", auto=auto)
    model = adapted("bert", METHODS["lora"], auto=auto)
    theirs, ours = (inspect.signature(each.forward).parameters for each in (plain, model))
    assert theirs.keys() <= ours.keys()
    assert type(model).__name__ == type(plain).__name__
    assert hf.utils.generic.find_labels(type(plain)) == [
        name for name in hf.utils.generic.find_labels(type(model)) if name in theirs
    ]


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_looks_alike(way):
    model, inputs = headed("spans")
    twin = way(model)
    assert type(twin) is type(model)
    assert gap(twin(**inputs).loss, model(**inputs).loss) == 0
    assert type(way(model.config)) is hf.BertConfig
    assert twin.heads["<a>"].live() is twin.sites


def test_a_class_that_another_program_gives_is_left_alone():
    """FSDP puts one of its own over the model's."""
    model, _ = headed("classification")
    theirs = type("FSDPModel", (type(model),), {})
    model.__class__ = theirs
    model.active_head = None
    assert type(model) is theirs


# ---- the config


@pytest.mark.parametrize("kind", ["classification", "multilabel", "image", "sound", "tagging"])
def test_the_config_shows_the_labels_of_the_active_head(kind):
    model, _ = headed(kind)
    config, own = model.config, model.base_model.config
    assert isinstance(config, type(own)) and config.num_labels == 3
    assert config.id2label == NAMES == config.to_dict()["id2label"]
    assert config.label2id == {name: number for number, name in NAMES.items()}
    many = "multi_label_classification" if kind == "multilabel" else None
    assert kind == "tagging" or config.problem_type == (many or "single_label_classification")
    assert own.num_labels == 2 and own.problem_type is None  # nothing has been written there
    assert type(copy.deepcopy(config)) is type(own) and copy.deepcopy(config).id2label == NAMES
    model.active_head = None
    assert model.config is own


def test_all_else_in_the_config_is_the_base_models():
    model, _ = headed("classification")
    model.config.use_cache = False
    model.config.hidden_dropout_prob = 0.3
    assert model.base_model.config.use_cache is False
    assert model.base_model.config.hidden_dropout_prob == 0.3
    model.base_model.config.initializer_range = 0.5
    assert model.config.initializer_range == 0.5


def test_names_can_be_given_later_but_no_other_number_of_labels():
    model, _ = headed("regression")
    assert model.config.problem_type == "regression" and model.config.id2label == {0: "LABEL_0"}
    model.config.id2label = {0: "stars"}
    assert model.heads["<a>"].to_dict()["id2label"] == ["stars"]
    model.config.label2id = {"grams": 0}
    assert model.config.id2label == {0: "grams"}
    for key, value in (("id2label", {0: "x", 1: "y"}), ("num_labels", 2)):
        with pytest.raises(ConfigError, match=f"{key}: the active head 'a' has .*labels"):
            setattr(model.config, key, value)
    with pytest.raises(UnsupportedError, match="problem_type: .*multilabel=True"):
        model.config.problem_type = "multi_label_classification"


def test_labels_follow_a_setup_in_its_own_thread():
    model, _ = headed("classification")
    add(model, "b", METHODS["ia3"])
    model.add_tagging_head("b", num_labels=4)
    model.set_active_adapters("a")
    seen: dict[str, int] = {}

    def look() -> None:
        seen["other"] = model.config.num_labels

    with AdapterSetup("b"):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert model.config.num_labels == 4
    assert seen == {"other": 3} and model.config.num_labels == 3
    with AdapterSetup("x", head_setup="x"):  # of another model
        assert model.config is model.base_model.config
    model.set_active_adapters("parallel(a, b)")
    assert model.config is model.base_model.config


def test_a_checkpoint_says_nothing_of_another_heads_labels(tmp_path):
    model, _ = headed("classification")
    model.base_model.save_pretrained(tmp_path)
    assert hf.AutoConfig.from_pretrained(tmp_path).num_labels == 2


# ---- what is read and counted


def test_numbers_are_those_of_the_base_and_of_what_is_on_it():
    model, _ = headed("classification")
    model.train_adapter("a")
    trained = sum(parameter.numel() for _, parameter in model.trainable_parameters())
    assert model.num_parameters(only_trainable=True) == trained > 0
    assert model.num_parameters() == model.base_model.num_parameters() + trained
    assert model.get_memory_footprint() == model.base_model.get_memory_footprint() + 4 * trained


def test_generation_is_configured_where_it_happens():
    model, inputs = headed("next")
    assert model.can_generate()
    model.generation_config = hf.GenerationConfig(max_new_tokens=2, do_sample=False, pad_token_id=0)
    ids = inputs["input_ids"][:1]
    assert model.generate(ids).shape[1] == ids.shape[1] + 2
    model.active_head = None
    assert not model.can_generate()
    model = adapted("gpt2", METHODS["lora"], auto=hf.AutoModelForCausalLM)
    model.generation_config = hf.GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert model.generate(ids).shape[1] == ids.shape[1] + 3


@pytest.mark.parametrize("method", ["prefix_tuning", "lora"])
def test_another_attention_can_be_chosen_at_any_time(method):
    model, inputs = adapted("gpt2", METHODS[method]), batch("gpt2", (7, 7))  # they differ in what padding becomes
    before = run(model, inputs)
    model.set_attn_implementation("eager")
    assert gap(run(model, inputs), before) < 1e-5
    model.set_attn_implementation("sdpa")
    assert gap(run(model, inputs), before) < 1e-5


# ---- casts, where no library of few bits is here


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "float", "to", "type"])
def test_a_quantised_base_is_not_cast(cast):
    model = adapted("bert", METHODS["lora"])
    kind = type("Int8Tensor", (nn.Parameter,), {"__module__": "torchao.quantization"})
    module = model.base_model.encoder.layer[0].output.dense
    module.weight = kind(module.weight.detach())
    with pytest.raises(UnsupportedError, match=f"{cast}.*quantised.*dequantize"):
        getattr(model, cast)(*([torch.float16] if cast in ("to", "type") else []))
    assert model.to("cpu") is model


# ---- files


@pytest.mark.parametrize("arch", SHAPES)
def test_the_state_of_a_model_can_be_written_and_read(arch, tmp_path):
    """As transformers' Trainer does; a tensor that is tied is there once."""
    auto = {"gpt2": hf.AutoModelForCausalLM, "t5": hf.AutoModelForSeq2SeqLM, "bert": hf.AutoModelForMaskedLM}
    model = adapted(arch, METHODS["lora"], auto=auto.get(arch))
    state = model.state_dict()
    save_file(state, tmp_path / "model.safetensors")
    other = adapted(arch, METHODS["lora"], auto=auto.get(arch), trained=False)
    other.load_state_dict(state)
    assert gap(run(other, batch(arch)), run(model, batch(arch))) == 0
    with pytest.raises(RuntimeError, match="Missing"):
        other.load_state_dict({key: value for key, value in state.items() if not key.startswith("adapters")})


@pytest.mark.parametrize("kind", ["classification", "spans", "next"])
def test_save_pretrained_writes_what_is_active(kind, tmp_path):
    model, inputs = headed(kind)
    model.save_pretrained(tmp_path / "no", is_main_process=False)
    assert not (tmp_path / "no").exists()
    model.save_pretrained(tmp_path / "one")
    other = adapted(EVERY[kind].arch)
    assert other.load_adapter(tmp_path / "one", set_active=True) == "a"
    assert gap(other(**inputs).loss, model(**inputs).loss) < 1e-6
    add(model, "b", METHODS["ia3"])
    with pytest.warns(UserWarning, match="b are not active"):
        model.save_pretrained(tmp_path / "two")
    model.set_active_adapters("stack(b, a)")
    model.save_pretrained(tmp_path / "both")
    other.load_composition(tmp_path / "both")
    assert gap(other(**inputs).loss, model(**inputs).loss) < 1e-6
    model.set_active_adapters("b")  # the active head has another name
    with pytest.warns(UserWarning, match="a are not active"):
        model.save_pretrained(tmp_path / "another")
    other.load_composition(tmp_path / "another")
    assert gap(other(**inputs).loss, model(**inputs).loss) < 1e-6


@pytest.mark.parametrize(
    ("key", "value"),
    [("push_to_hub", True), ("safe_serialization", False), ("state_dict", {}), ("max_shard_size", "1GB")],
)
def test_save_pretrained_refuses_what_it_does_not_do(key, value, tmp_path):
    model = adapted("bert", METHODS["lora"])
    with pytest.raises(UnsupportedError, match=f"{key} cannot be chosen.*leave it out"):
        model.save_pretrained(tmp_path, **{key: value})
    model.set_active_adapters(None)
    with pytest.raises(UnsupportedError, match="no adapter is active.*save_adapter"):
        model.save_pretrained(tmp_path)
