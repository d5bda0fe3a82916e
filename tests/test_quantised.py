"""Adapters on a base model in few bits: the same numbers as on the float model of its dequantised weights.

bitsandbytes and torchao are optional, and tests of what is not installed are skipped. torchao's int4 runs on no CPU,
and no gradient comes through it: only its refusal is tested.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from torch.nn import functional as F

import adaptrain
from adaptrain import quantised
from adaptrain.errors import ModelError, UnsupportedError
from adaptrain.methods import DoRAConfig, FullConfig, IA3Config, LoRAConfig
from adaptrain.model import AdaptedModel
from matrix import ARCHITECTURES, UNITS, add, base, batch, gap, randomise, run, supported


def _library(name: str) -> Any:
    with warnings.catch_warnings():  # both warn while they are imported
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError:
            return None


bnb, ao = _library("bitsandbytes"), _library("torchao.quantization")


@dataclass(frozen=True)
class Scheme:
    """A line of this module's matrix.

    Attributes:
        library: None where it is not installed.
        config: what transformers is given.
        plain: a module's weight in float, as the library itself says.
    """

    name: str
    library: Any
    config: Callable[[], Any]
    plain: Callable[[Any], Tensor]


def _8bit(module: Any) -> Tensor:
    scales = module.state.SCB if module.weight.SCB is None else module.weight.SCB
    return bnb.functional.int8_vectorwise_dequant(module.weight.data, scales)


SCHEMES = [
    Scheme("bnb_8bit", bnb, lambda: hf.BitsAndBytesConfig(load_in_8bit=True), _8bit),
    Scheme(
        "bnb_4bit",
        bnb,
        lambda: hf.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),  # multiplied in float32
        lambda module: bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state),
    ),
    Scheme(
        "ao_int8",
        ao,
        lambda: hf.TorchAoConfig(ao.Int8WeightOnlyConfig()),
        lambda module: module.weight.dequantize(),
    ),
]


def installed(chosen: list[Scheme] = SCHEMES) -> Any:
    skipped = [
        pytest.mark.skipif(each.library is None, reason=f"{each.name}: its library is not here") for each in chosen
    ]
    return pytest.mark.parametrize(
        "scheme", [pytest.param(each, id=each.name, marks=mark) for each, mark in zip(chosen, skipped, strict=True)]
    )


DROPOUT = {"hidden_dropout_prob", "attention_probs_dropout_prob", "resid_pdrop", "embd_pdrop", "attn_pdrop"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A tiny model in a folder, dropout off: in training, bitsandbytes' 8 bits are plain numbers, unlike in evaluation,
    where inputs are rounded too."""
    made: dict[tuple[str, type], Path] = {}

    def folder(arch: str, auto: type = hf.AutoModel) -> Path:
        if (arch, auto) not in made:
            model = base(arch, auto=auto)
            for key in (
                "hidden_dropout_prob",
                "attention_probs_dropout_prob",
                "resid_pdrop",
                "embd_pdrop",
                "attn_pdrop",
            ):
                if hasattr(model.config, key):
                    setattr(model.config, key, 0.0)
            made[arch, auto] = tmp_path_factory.mktemp(arch)
            model.save_pretrained(made[arch, auto])
        return made[arch, auto]

    return folder


@pytest.fixture
def load(folders: Callable[..., Path]) -> Callable[..., Any]:
    """A tiny model, quantised."""

    def loaded(scheme: Scheme, arch: str, auto: type = hf.AutoModel, **options: Any) -> Any:
        options = {"quantization_config": scheme.config(), "dtype": torch.float32} | options
        return auto.from_pretrained(folders(arch, auto), **options)

    return loaded


def in_float(model: Any, scheme: Scheme, folder: Path) -> Any:
    """The float model of the same numbers, each weight as the library says."""
    plain = hf.AutoModel.from_pretrained(folder, dtype=torch.float32)
    maps = {name: module for name, module in model.named_modules() if quantised.scheme(getattr(module, "weight", None))}
    assert len(maps) >= 8
    with torch.no_grad():
        for name, module in maps.items():
            target = plain.get_submodule(name)
            weight = scheme.plain(module)
            target.weight.copy_(weight if isinstance(target, nn.Linear) else weight.t())
    return plain


def learning(model: AdaptedModel, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor | None]]:
    """What the model says in training, and the gradients of all that trains."""
    model.train_adapter("a")
    torch.manual_seed(7)  # some adapters have dropout of their own
    outputs = model(**inputs).last_hidden_state
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(5))
    (outputs * weights).sum().backward()
    return outputs.detach(), {name: parameter.grad for name, parameter in model.trainable_parameters()}


# ---- every method


PAIRS = [(arch, method) for arch in ("llama", "bert") for method in UNITS if supported(arch, method)] + [
    ("gpt2", "dora"),  # fused maps, which bitsandbytes turns round
    ("gpt2", "pissa"),
    ("gpt2", "ia3-everywhere"),
]


@installed()
@pytest.mark.parametrize(("arch", "method"), PAIRS)
def test_as_on_the_float_model_of_the_same_numbers(load, folders, scheme, arch, method):
    if arch == "gpt2" and scheme.name == "ao_int8":
        pytest.skip("torchao does not quantise transformers' Conv1D")
    model = load(scheme, arch)
    plain = adaptrain.init(in_float(model, scheme, folders(arch)))
    model = adaptrain.init(model)
    for each in (model, plain):
        add(each, "a", UNITS[method])
        each.set_active_adapters("a")
    inputs = batch(arch)
    (one, gradients), (other, expected) = learning(model, inputs), learning(plain, inputs)
    assert gap(one, other) < 1e-4
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert (gradient is None) == (expected[name] is None), name
        if gradient is not None:
            assert gap(gradient, expected[name]) < 1e-3 * max(1.0, expected[name].abs().max().item()), name
    # in evaluation, bitsandbytes' 8 bits round the inputs, too
    model.eval(), plain.eval()
    assert gap(run(model, inputs), run(plain, inputs)) < (0.3 if scheme.name == "bnb_8bit" else 1e-4)


@installed(SCHEMES[1:])  # those that leave inputs as they are in evaluation
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture(scheme, arch, tmp_path):
    """With the method that reads W, and fused maps among them, the float copy says the same."""
    original, inputs = base(arch), batch(arch)
    original.save_pretrained(tmp_path)
    try:
        loaded = type(original).from_pretrained(tmp_path, quantization_config=scheme.config(), dtype=torch.float32)
    except RuntimeError:
        assert scheme.name == "ao_int8" and arch in {"clip", "wav2vec2", "wav2vec2-stable", "hubert"}
        pytest.skip("transformers cannot load it with torchao")
    if quantised.scheme_of(loaded) is None:
        assert arch == "gpt2"
        pytest.skip("torchao does not quantise transformers' Conv1D")
    model = adaptrain.init(loaded).eval()
    add(model, "a", UNITS["dora"])
    model.set_active_adapters("a")
    assert gap(run(model, inputs), run(model.dequantize(), inputs)) < 1e-4


@installed()
@pytest.mark.parametrize("method", ["dora", "dvora", "pissa", "lora"])
def test_a_fresh_adapter_is_the_identity(load, scheme, method):
    model = adaptrain.init(load(scheme, "llama")).train()
    inputs = batch("llama")
    plain = run(model, inputs)
    model.add_adapter("a", UNITS[method], set_active=True)
    assert gap(run(model, inputs), plain) < 1e-6
    randomise(model.get_adapter("a"), 0.3, 2)
    assert gap(run(model, inputs), plain) > 1e-2


@installed()
def test_saved_and_loaded(load, scheme, tmp_path):
    inputs = batch("bert")
    model = adaptrain.init(load(scheme, "bert"))
    for name in ("dora", "pissa", "unipelt"):
        add(model, name, UNITS[name])
        model.save_adapter(tmp_path / name, name)
    other = adaptrain.init(load(scheme, "bert"))
    for name in ("dora", "pissa", "unipelt"):
        other.load_adapter(tmp_path / name, set_active=True)
        model.set_active_adapters(name)
        assert torch.equal(run(other.eval(), inputs), run(model.eval(), inputs))


@installed()
def test_sixteen_bits(load, scheme):
    """The dtype that a run has where it is native, with a base that is rounded once more."""
    config = scheme.config()
    if scheme.name == "bnb_4bit":
        config.bnb_4bit_compute_dtype = torch.bfloat16
    model = adaptrain.init(load(scheme, "llama", quantization_config=config, dtype=torch.bfloat16))
    twin = model.dequantize()
    for each in (model, twin):
        add(each, "a", DoRAConfig(r=3, alpha=5, output_lora=True))
        each.set_active_adapters("a")
    inputs = batch("llama")
    model.train_adapter("a")
    outputs = model(**inputs).last_hidden_state
    assert outputs.dtype == torch.bfloat16
    assert (outputs - run(twin, inputs)).abs().mean() < 0.03 * run(twin, inputs).abs().mean()
    outputs.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for _, p in model.trainable_parameters())


# ---- the base


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


# ---- loading


@installed()
def test_loaded_by_auto_adapter_model(folders, scheme):
    model = adaptrain.AutoAdapterModel.from_pretrained(folders("bert"), quantization_config=scheme.config())
    assert quantised.scheme_of(model.base_model) is not None
    assert model.base_model.dtype == torch.float32
    model.add_adapter("a", "lora", set_active=True)
    assert run(model, batch("bert")).isfinite().all()


@installed(SCHEMES[1:2])
def test_four_bits_decide_the_dtype_where_nobody_else_does(folders, scheme):
    config = scheme.config()
    config.bnb_4bit_compute_dtype = torch.bfloat16
    load = adaptrain.AutoAdapterModel.from_pretrained
    assert load(folders("bert"), quantization_config=config).base_model.dtype == torch.bfloat16
    assert load(folders("bert"), quantization_config=config, dtype=torch.float32).base_model.dtype == torch.float32


@pytest.mark.skipif(ao is None, reason="torchao is not here")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may have int4")
def test_int4_on_a_cpu_is_told_in_a_sentence(folders):
    config = hf.TorchAoConfig(ao.Int4WeightOnlyConfig(group_size=32, int4_packing_format="plain_int32"))
    with pytest.raises(ModelError, match="cannot be quantised with TorchAoConfig here: "):
        adaptrain.AutoAdapterModel.from_pretrained(folders("bert"), quantization_config=config)


# ---- one weight


@pytest.mark.skipif(bnb is None, reason="bitsandbytes is not here")
def test_eight_bits_by_hand():
    torch.manual_seed(0)
    module = nn.Linear(6, 4)
    kept = bnb.nn.Linear8bitLt(6, 4, has_fp16_weights=False)
    kept.weight = bnb.nn.Int8Params(module.weight.detach().clone(), requires_grad=False, has_fp16_weights=False)
    kept.bias = module.bias
    kept = kept.to("cpu").train()
    scales = module.weight.detach().half().float().abs().amax(1, keepdim=True)
    expected = (module.weight.detach().half().float() / scales * 127).round() * scales / 127
    assert gap(quantised.float_weight(kept), expected) < 1e-6
    x = torch.randn(2, 6)
    assert gap(kept(x), F.linear(x, quantised.float_weight(kept), kept.bias)) < 1e-6  # which moves the scales
    assert gap(quantised.float_weight(kept), expected) < 1e-6
    assert quantised.scheme(kept.weight) == "bitsandbytes, 8-bit"


@pytest.mark.skipif(bnb is None, reason="bitsandbytes is not here")
def test_four_bits_by_hand():
    torch.manual_seed(0)
    weight = torch.randn(8, 64)
    kept = bnb.nn.Linear4bit(64, 8, quant_type="nf4", compress_statistics=False)
    kept.weight = bnb.nn.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4", compress_statistics=False)
    kept = kept.to("cpu")
    code = kept.weight.quant_state.code
    scales = weight.abs().amax(1, keepdim=True)  # a block is a row here
    expected = code[((weight / scales)[..., None] - code).abs().argmin(-1)] * scales
    assert gap(quantised.float_weight(kept), expected) < 1e-6
    assert quantised.float_weight(kept).shape == (8, 64) and kept.weight.shape == (256, 1)
    assert quantised.scheme(kept.weight) == "bitsandbytes, 4-bit"


def test_plain_numbers_are_read_as_they_lie():
    module = nn.Linear(3, 2)
    assert quantised.scheme(module.weight) is None and quantised.scheme_of(module) is None
    assert quantised.float_weight(module).data_ptr() == module.weight.data_ptr()
    with pytest.raises(UnsupportedError, match="The numbers of a ReLU cannot be read"):
        quantised.float_weight(nn.ReLU())
