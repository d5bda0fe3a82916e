"""The base model in few bits itself: it stays as it was, is dequantised where asked for, and refuses the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models
from torch import Tensor, nn

import adaptrain
from adaptrain.errors import UnsupportedError
from adaptrain.methods import DoRAConfig, FullConfig, IA3Config, LoRAConfig
from matrix import UNITS, add, gap, run
from tiny_quantised import SCHEMES, base, batch, folders_of, installed, loader


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    return folders_of(tmp_path_factory)


@pytest.fixture
def load(folders: Callable[..., Path]) -> Callable[..., Any]:
    return loader(folders)


def numbers(model: nn.Module) -> dict[str, Tensor]:
    """Everything that a base keeps, bit for bit: torchao's tensors as the parts that they are made of."""
    found = {}
    for name, tensor in model.state_dict().items():
        parts = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else []
        found |= {f"{name}.{part}": getattr(tensor, part).clone() for part in parts} or {name: tensor.clone()}
    return found


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@installed()
@pytest.mark.parametrize("arch", ["llama", "bert"])
def test_training_and_evaluation_leave_the_base_as_it_was(load, scheme, arch):
    model, inputs = adaptrain.init(load(scheme, arch)), batch(arch)
    before, keys = numbers(model.base_model), [type(module) for module in model.base_model.modules()]
    model.add_adapter("a", LoRAConfig(r=2, alpha=3, attn_matrices=("q", "k", "v")))
    model.train_adapter("a")
    optimizer = torch.optim.SGD([parameter for _, parameter in model.trainable_parameters()], 1e-2)
    losses = []
    for _ in range(4):
        model.train()
        optimizer.zero_grad()
        loss = model(**inputs).last_hidden_state.pow(2).mean()
        loss.backward()
        assert all(parameter.grad is not None for _, parameter in model.trainable_parameters())
        optimizer.step()
        losses.append(loss.item())
        run(model.eval(), inputs)  # where bitsandbytes would repack its 4 bits on some CPUs
    assert losses == sorted(losses, reverse=True)
    assert same(numbers(model.base_model), before)
    assert [type(module) for module in model.base_model.modules()] == keys


@installed()
def test_generation_and_recomputed_layers(load, scheme):
    model = adaptrain.init(load(scheme, "llama", hf.AutoModelForCausalLM))
    add(model, "a", UNITS["mam"])
    model.train_adapter("a")
    inputs = {**batch("llama"), "use_cache": False}

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(**inputs).logits.pow(2).mean().backward()
        return {name: parameter.grad.clone() for name, parameter in model.trainable_parameters()}

    stored = gradients()
    model.gradient_checkpointing_enable()
    recomputed = gradients()
    assert max(gap(recomputed[name], stored[name]) for name in stored) < 1e-5
    words = model.eval().generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=3)
    assert words.shape[1] > inputs["input_ids"].shape[1]


@installed()
def test_the_base_is_counted_in_numbers_not_in_bytes(load, folders, scheme):
    model = adaptrain.init(load(scheme, "bert"))
    plain = adaptrain.init(hf.AutoModel.from_pretrained(folders("bert")))
    for each in (model, plain):
        each.add_adapter("a", "lora")
    rows = [{key: row[key] for key in ("parameters", "percent")} for row in model.adapter_summary()]
    assert rows == [{key: row[key] for key in ("parameters", "percent")} for row in plain.adapter_summary()]


@installed(SCHEMES[1:2])
def test_repacked_weights_are_refused(load, scheme):
    model = load(scheme, "llama")
    module = model.layers[1].mlp.down_proj
    module.support_avx512bf16_for_cpu = True
    module.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(UnsupportedError, match=r"repacked the weight of layers\.1\.mlp\.down_proj.*before it runs"):
        adaptrain.init(model)


# ---- merging


@installed()
@pytest.mark.parametrize("config", [DoRAConfig(r=3, alpha=5), IA3Config()], ids=["dora", "ia3"])
def test_merging_is_refused_and_dequantising_is_explicit(load, scheme, config):
    if isinstance(config, IA3Config):
        config = config.replace(intermediate_lora=False)
    model, inputs = adaptrain.init(load(scheme, "bert")), batch("bert")
    add(model, "a", config)
    add(model, "b", UNITS["double_seq_bn"])
    model.set_active_adapters("a")
    model.add_classification_head("a", num_labels=3)
    model.train()
    model.heads.eval()
    before, said = numbers(model.base_model), model(**inputs).logits
    with pytest.raises(
        UnsupportedError,
        match=r"'a' cannot be merged: the weight of encoder\.0\.attention\.\w+ is quantised "
        r"\((bitsandbytes, [48]-bit|torchao, \w+)\).*model\.dequantize\(\)\.merge_adapter\('a'\)",
    ):
        model.merge_adapter("a")
    assert model.merged_adapter is None and model.active_adapters == "a"

    twin = model.dequantize()
    assert type(twin.base_model.encoder.layer[0].attention.self.query) is nn.Linear
    assert not twin.base_model.is_quantized and {p.dtype for p in twin.base_model.parameters()} == {torch.float32}
    assert twin.active_adapters == "a" and twin.adapter_names() == ["a", "b"] and twin.active_head == "a"
    assert gap(twin(**inputs).logits, said) < 1e-4
    untouched = numbers(twin.base_model)
    twin.merge_adapter("a")
    assert gap(twin(**inputs).logits, said) < 1e-4
    assert not same(numbers(twin.base_model), untouched)
    twin.reset_adapter()
    assert same(numbers(twin.base_model), untouched) and twin.active_adapters == "a"
    # the quantised model goes on as it was, and shares nothing with its twin
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert same(numbers(model.base_model), before) and torch.equal(model(**inputs).logits, said)


@installed()
def test_embeddings_of_other_words_come_along(load, scheme):
    model, inputs = adaptrain.init(load(scheme, "bert")).eval(), batch("bert")
    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(120)}, unk_token="w0"))
    model.add_embeddings("new", hf.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0"))
    twin = model.dequantize().eval()
    assert twin.active_embeddings == model.active_embeddings == "new"
    assert twin.config.vocab_size == model.config.vocab_size == 120
    ids = inputs | {"input_ids": inputs["input_ids"] + 20}  # some of which the base model does not have
    # in evaluation, bitsandbytes' 8 bits round the inputs, too
    assert gap(run(twin, ids), run(model, ids)) < (0.3 if scheme.name == "bnb_8bit" else 1e-4)
    twin.set_active_embeddings("default")
    assert twin.config.vocab_size == 100 and model.config.vocab_size == 120
    assert gap(run(twin, inputs), run(model, ids)) > 1e-2


@installed()
def test_what_is_dequantised_can_be_saved_and_loaded(load, scheme, tmp_path):
    arch = "llama" if scheme.name == "ao_int8" else "gpt2"
    model, inputs = adaptrain.init(load(scheme, arch)), batch(arch)
    add(model, "prefix", UNITS["prefix_tuning"])  # the attention of the copy must be its own
    model.set_active_adapters("prefix")
    twin = model.dequantize().eval()
    assert gap(run(twin, inputs), run(model.train(), inputs)) < 1e-4
    twin.set_active_adapters(None)
    twin.delete_adapter("prefix")
    twin.base_model.save_pretrained(tmp_path)
    again = hf.AutoModel.from_pretrained(tmp_path)
    assert torch.equal(run(again, inputs), run(twin, inputs))
    model.set_active_adapters(None)
    assert gap(run(again, inputs), run(model.train(), inputs)) < 1e-4


def test_a_float_base_cannot_be_dequantised():
    with pytest.raises(UnsupportedError, match="The base model is not quantised; there is nothing to dequantise"):
        adaptrain.init(base("bert")).dequantize()


# ---- what cannot be


@installed()
def test_full_fine_tuning_is_refused(load, scheme):
    model = adaptrain.init(load(scheme, "bert"))
    with pytest.raises(UnsupportedError, match=r"'a' \(full\) would train the base.*are quantised \(\w+, .*in float"):
        model.add_adapter("a", FullConfig())
    assert model.adapter_names() == []


@installed()
def test_a_quantised_head_of_the_base_is_refused(load, scheme, folders, tmp_path):
    model = adaptrain.init(load(scheme, "roberta", hf.AutoModelForSequenceClassification))
    model.add_adapter("a", "lora")
    heads = r"head of this RobertaForSequenceClassification is quantised \(classifier\.dense\.weight, classifier.*; "
    with pytest.raises(UnsupportedError, match=heads + ".*name classifier in llm_int8_skip_modules"):
        model.train_adapter("a")
    with pytest.raises(UnsupportedError, match=heads):
        model.save_adapter(tmp_path, "a")
    assert model.active_adapters is None
    key = "modules_to_not_convert" if scheme.name == "ao_int8" else "llm_int8_skip_modules"
    config = scheme.config()
    setattr(config, key, ["classifier"])
    kept = load(scheme, "roberta", hf.AutoModelForSequenceClassification, quantization_config=config)
    model = adaptrain.init(kept)
    model.add_adapter("a", "lora")
    model.train_adapter("a")
    model(**batch("roberta")).logits.sum().backward()
    assert all(parameter.grad is not None for _, parameter in model.trainable_parameters())


@installed(SCHEMES[2:])
def test_a_base_without_a_way_back_cannot_be_trained_on(load, scheme, monkeypatch):
    model = adaptrain.init(load(scheme, "bert"))
    monkeypatch.setattr(type(model.base_model.hf_quantizer), "is_trainable", False)  # what int4 has there
    model.add_adapter("a", "lora")
    with pytest.raises(UnsupportedError, match=r"No gradient.*\(torchao, Int8Tensor\).*can be run on it, but not"):
        model.train_adapter("a")
    model.add_adapter("b", "none")
    model.train_adapter("b")  # a head needs none


@installed()
@pytest.mark.parametrize(
    "cast",
    [
        lambda model: model.half(),
        lambda model: model.float(),
        lambda model: model.double(),
        lambda model: model.bfloat16(),
        lambda model: model.to(torch.float16),
        lambda model: model.to(dtype=torch.float16),
        lambda model: model.to("cpu", torch.float16),
    ],
    ids=["half", "float", "double", "bfloat16", "to", "to-keyword", "to-device"],
)
def test_a_quantised_base_is_not_cast(load, scheme, cast):
    """As transformers' own models refuse it; what a torch module does by itself would ruin the numbers."""
    model = adaptrain.init(load(scheme, "bert"))
    before = numbers(model.base_model)
    with pytest.raises(UnsupportedError, match="quantised.*dequantize"):
        cast(model)
    assert model.to("cpu") is model
    assert same(numbers(model.base_model), before)
