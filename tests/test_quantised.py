"""Adapters on a base model in few bits: the same numbers as on the float model of its dequantised weights.

bitsandbytes and torchao are optional, and tests of what is not installed are skipped. torchao's int4 runs on no CPU,
and no gradient comes through it: only its refusal is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional as F

import adaptrain
from adaptrain import quantised
from adaptrain.errors import ModelError, UnsupportedError
from adaptrain.methods import DoRAConfig
from adaptrain.model import AdaptedModel
from matrix import ARCHITECTURES, UNITS, add, gap, randomise, run, supported
from tiny_quantised import SCHEMES, Scheme, ao, base, batch, bnb, folders_of, installed, loader


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    return folders_of(tmp_path_factory)


@pytest.fixture
def load(folders: Callable[..., Path]) -> Callable[..., Any]:
    return loader(folders)


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
