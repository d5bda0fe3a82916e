"""Fresh weights, their sizes and places in models; activations; dropout and depth in training."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from adaptrain.errors import ConfigError
from adaptrain.methods import DoubleSeqBnConfig, LoRAConfig, PrefixTuningConfig, SeqBnConfig
from adaptrain.methods.activations import ACTIVATIONS
from matrix import adapted

# ---- fresh weights


def test_fresh_lora_weights():
    torch.manual_seed(0)
    tensors = adapted("bert", LoRAConfig(r=16, attn_matrices=("q", "k", "v")), trained=False).get_adapter("a").tensors()
    a = torch.cat([tensor.flatten() for key, tensor in tensors.items() if key.endswith("A")])
    bound = 1 / math.sqrt(32)  # kaiming-uniform(√5) over 32 inputs
    assert a.abs().max() <= bound
    assert a.abs().max() > 0.99 * bound
    assert a.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert all(not tensor.any() for key, tensor in tensors.items() if key.endswith("B"))
    tensors = adapted("bert", LoRAConfig(r=16, init_weights="bert"), trained=False).get_adapter("a").tensors()
    for letter in "AB":
        drawn = torch.cat([tensor.flatten() for key, tensor in tensors.items() if key.endswith(letter)])
        assert drawn.std() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(("mode", "std"), [("bert", 0.02), ("houlsby", 0.0088), ("mam_adapter", 0.1021)])
def test_fresh_bottleneck_weights(mode, std):
    torch.manual_seed(0)
    config = SeqBnConfig(reduction_factor=1, init_weights=mode, ln_before=True, scaling="channel")
    tensors = adapted("bert", config, trained=False).get_adapter("a").tensors()
    start = "encoder.0.mlp.bottleneck."
    down, up = tensors[f"{start}down.weight"], tensors[f"{start}up.weight"]
    # houlsby: a normal of 0.01 cut at ±0.02 has a deviation of 0.0088
    assert down.std() == pytest.approx(std, rel=0.1)
    assert up.std() == (0 if mode == "mam_adapter" else pytest.approx(std, rel=0.1))
    if mode == "houlsby":
        assert down.abs().max() <= 0.02
    assert not tensors[f"{start}down.bias"].any()
    assert not tensors[f"{start}up.bias"].any()
    assert torch.equal(tensors[f"{start}scaling"], torch.ones(32))
    assert torch.equal(tensors[f"{start}norm_before.weight"], torch.ones(32))


# ---- sizes and places


@pytest.mark.parametrize(
    ("factor", "sizes"),
    [
        (16, (2, 2)),
        (1, (32, 32)),
        (3, (10, 10)),  # rounded down
        (64, (1, 1)),  # never nothing
        (0.5, (64, 64)),
        ({"default": 8}, (4, 4)),
        ({"1": 2, "default": 8}, (4, 16)),
        ({"0": 4, "1": 32}, (8, 1)),
    ],
    ids=str,
)
def test_the_bottleneck_size_follows_the_layers_factor(factor, sizes):
    model = adapted("bert", SeqBnConfig(reduction_factor=factor), trained=False)
    tensors = model.get_adapter("a").tensors()
    assert tuple(len(tensors[f"encoder.{layer}.mlp.bottleneck.down.weight"]) for layer in (0, 1)) == sizes


@pytest.mark.parametrize("factor", [{"0": 8}, {}], ids=str)
def test_a_layer_without_a_factor_is_refused(factor):
    model = adapted("bert")
    with pytest.raises(ConfigError, match="reduction_factor names neither layer [01] nor 'default'"):
        model.add_adapter("a", SeqBnConfig(reduction_factor=factor))
    assert model.adapter_names() == []


E, D = [f"encoder.{layer}." for layer in (0, 1)], [f"decoder.{layer}." for layer in (0, 1)]
PREFIX, BOTTLENECK = PrefixTuningConfig(prefix_length=2, flat=True), DoubleSeqBnConfig()


@pytest.mark.parametrize(
    ("arch", "config", "places"),
    [
        ("bart", PREFIX, {"encoder.attention", "decoder.attention", "decoder.cross_attention"}),
        ("bart", PREFIX.replace(encoder_prefix=False), {"decoder.attention", "decoder.cross_attention"}),
        ("bart", PREFIX.replace(cross_prefix=False), {"encoder.attention", "decoder.attention"}),
        ("bart", PREFIX.replace(encoder_prefix=False, cross_prefix=False), {"decoder.attention"}),
        ("bart", PREFIX.replace(leave_out=(0, 1)), {"decoder.attention", "decoder.cross_attention"}),
        ("bert", PREFIX.replace(encoder_prefix=False, cross_prefix=False), {"encoder.attention"}),
        ("llama", PREFIX.replace(encoder_prefix=False, cross_prefix=False), {"decoder.attention"}),
        ("bart", BOTTLENECK, {p + s for p in E + D for s in ("attention", "mlp")}),
        ("bart", SeqBnConfig(), {p + "mlp" for p in E + D}),
        (
            "bart",
            DoubleSeqBnConfig(mh_adapter=False, output_adapter=False, cross_adapter=True),
            {p + "cross_attention" for p in D},
        ),
        ("llama", BOTTLENECK.replace(leave_out=(1,)), {"decoder.0.attention", "decoder.0.mlp"}),
        (
            "bart",
            LoRAConfig(attn_matrices=("k",)),
            {p + "attention.key" for p in E + D} | {p + "cross_attention.key" for p in D},
        ),
        ("llama", LoRAConfig(selfattn_lora=False, intermediate_lora=True), {p + "mlp.up" for p in D}),
        ("llama", LoRAConfig(selfattn_lora=False, output_lora=True, leave_out=(0,)), {"decoder.1.mlp.down"}),
        ("gpt2", LoRAConfig(leave_out=(1,)), {"decoder.0.attention.query", "decoder.0.attention.value"}),
    ],
    ids=lambda value: getattr(value, "method", value if isinstance(value, str) else ""),
)
def test_where_a_config_puts_its_parameters(arch, config, places):
    keys = adapted(arch, config).get_adapter("a").tensors()
    assert {key.split(f".{config.method}.")[0] for key in keys} == places


def test_layers_are_counted_over_encoder_and_decoder():
    model = adapted("bart", SeqBnConfig(reduction_factor={"3": 2, "default": 8}, leave_out=(0, 2)), trained=False)
    assert {key: len(t) for key, t in model.get_adapter("a").tensors().items() if key.endswith("down.weight")} == {
        "encoder.1.mlp.bottleneck.down.weight": 4,
        "decoder.1.mlp.bottleneck.down.weight": 16,
    }


# ---- activations


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_transformers(name):
    from transformers.activations import ACT2FN

    x = torch.linspace(-4, 4, 41)
    expected = {"leakyrelu": torch.nn.functional.leaky_relu, "elu": torch.nn.functional.elu, "selu": torch.selu}
    other = expected[name] if name in expected else ACT2FN[name]
    assert torch.allclose(ACTIVATIONS[name](x), other(x), atol=1e-6)


# ---- dropout and depth in training


def test_dropout_falls_on_the_adapter_in_training_only():
    from adaptrain.methods.bottleneck import Bottleneck
    from adaptrain.methods.lora import LoRA
    from adaptrain.state import ProjectionState, SublayerState

    torch.manual_seed(0)
    x, y = torch.randn(50, 4, 8), torch.randn(50, 4, 6)
    lora = LoRA(LoRAConfig(r=4, dropout=0.5), SimpleNamespace(layer=0, in_features=8, out_features=6))
    torch.nn.init.normal_(lora.B)
    delta = (lora.eval()(ProjectionState(x, y)).y - y).sum()
    runs = torch.stack([(lora.train()(ProjectionState(x, y)).y - y).sum() for _ in range(300)])
    assert runs.std() > 0
    assert (runs.mean() - delta).abs() < 4 * runs.std() / 300**0.5  # unbiased

    h = torch.randn(400, 3, 8)
    point = SimpleNamespace(layer=0, hidden_size=8, causal=False)
    unit = Bottleneck(SeqBnConfig(reduction_factor=2, stochastic_depth=0.25), point, None).train()
    added = unit(SublayerState(h, h, None)).h - h
    skipped = (added.abs().amax((1, 2)) == 0).float().mean().item()  # whole rows at a time
    assert skipped == pytest.approx(0.25, abs=0.08)
    expected = unit.eval()(SublayerState(h, h, None)).h - h
    kept = added.abs().amax((1, 2)) > 0
    assert torch.allclose(added[kept], expected[kept] / 0.75, atol=1e-6)


def test_prefix_dropout_is_drawn_for_each_row():
    from adaptrain.methods.prefix import Prefix, PrefixUnit
    from adaptrain.state import AttentionState

    torch.manual_seed(0)
    config = PrefixTuningConfig(flat=True, prefix_length=4, dropout=0.5)
    unit = PrefixUnit(config, Prefix(config, 1, 2, 8, 16), 0, SimpleNamespace(hidden_size=16, causal=False))
    state = AttentionState(torch.randn(3, 2, 5, 8), torch.randn(3, 2, 5, 8))
    dropped = unit.train()(state).keys[:, :, :4]
    assert not torch.equal(dropped[0], dropped[1])
    assert 0.3 < (dropped == 0).float().mean() < 0.7
    kept = unit.eval()(state).keys[:, :, :4]
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(unit.eval()(state).keys[:, :, 4:], state.keys)
