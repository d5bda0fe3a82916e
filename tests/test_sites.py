"""Sites and architecture tables: names, hooks, wrong paths, traps of single families."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from torch import nn

import adaptrain
from adaptrain.architectures import (
    Attention,
    Embeddings,
    Projection,
    Prompt,
    Sublayer,
    architecture_of,
    architectures,
)
from adaptrain.errors import UnsupportedError
from adaptrain.methods import DoubleSeqBnConfig, LoRAConfig
from adaptrain.sites import Sites
from matrix import ARCHITECTURES, METHODS, UNITS, adapted, add, base, batch, gap, pairs, run

QKVO = ["query", "key", "value", "output"]
POINTS = {
    "encoder": [
        *(f"attention.{role}" for role in QKVO),
        "mlp.up",
        "mlp.down",
        "mlp.activation",
        "attention",
        "mlp",
        "hidden",
        "attention.key_value",
    ],
    "llama": [
        *(f"attention.{role}" for role in QKVO),
        *("mlp.gate", "mlp.up", "mlp.down", "mlp.activation", "attention", "mlp", "hidden", "attention.key_value"),
    ],
    "cross": [*(f"cross_attention.{role}" for role in QKVO), "cross_attention", "cross_attention.key_value"],
}
BOTH = {"encoder": POINTS["encoder"], "decoder": POINTS["encoder"] + POINTS["cross"]}
STACKS = {
    "gpt2": {"decoder": POINTS["encoder"]},
    "gptj": {"decoder": POINTS["encoder"]},
    "modernbert": {"encoder": POINTS["llama"]},
    "dinov2-giant": {"encoder": POINTS["llama"]},
    **{key: {"encoder": POINTS["llama"], "decoder": POINTS["llama"] + POINTS["cross"]} for key in ["t5-gated", "mt5"]},
    **{key: {"text": POINTS["encoder"], "vision": POINTS["encoder"]} for key in ["clip", "siglip"]},
    **{key: {"text": POINTS["encoder"]} for key in ["clip_text_model", "siglip_text_model"]},
    **{key: {"vision": POINTS["encoder"]} for key in ["clip_vision_model", "siglip_vision_model"]},
}
EMBEDDINGS = {
    "decoder in a pair": ["words"],
    "vision": ["prompt"],
    "whisper": ["output"],
    **{key: [] for key in ["beit", "wav2vec2", "wav2vec2-stable", "hubert"]},
}


def stacks_of(arch: str) -> dict[str, list[str]]:
    row = ARCHITECTURES[arch]
    known = BOTH if row.encoder_decoder else {"decoder" if row.decoder else "encoder": POINTS["encoder"]}
    return STACKS.get(arch) or ({"decoder": POINTS["llama"]} if row.decoder else known)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_canonical_names_of_a_family(arch):
    stacks, row = stacks_of(arch), ARCHITECTURES[arch]
    expected = {f"{stack}.{layer}.{name}" for stack, names in stacks.items() for layer in (0, 1) for name in names}
    for stack in stacks:
        kind = "vision" if row.reads == "images" else arch if stack != "decoder" else "decoder in a pair"
        kind = arch if arch in EMBEDDINGS and stack == "encoder" else stack if stack == "vision" else kind
        here = EMBEDDINGS.get(kind if row.encoder_decoder or stack != "decoder" else "", ["words", "output", "prompt"])
        expected |= {f"{stack}.embeddings.{name}" for name in here}
    model = adapted(arch)
    assert {point.name for point in model.sites.points} == expected
    numbers = {point.name: point.layer for point in model.sites.points}
    assert {numbers[name] for name in numbers if name.startswith("encoder.1.")} <= {1}
    if len(stacks) > 1:
        assert numbers[f"{[*stacks][1]}.0.mlp"] == 2  # the first stack's layers come first
        assert numbers[f"{[*stacks][1]}.1.mlp"] == 3


def test_every_table_is_in_the_matrix():
    assert set(architectures()) == {row.config().model_type for row in ARCHITECTURES.values()}


@pytest.mark.parametrize(
    ("arch", "name", "expected"),
    [
        ("bert", "encoder.1.attention.query", {"kind": "projection", "in_features": 32, "out_features": 32}),
        ("bert", "encoder.0.mlp.up", {"in_features": 32, "out_features": 48, "role": "up", "sublayer": "mlp"}),
        ("bert", "encoder.0.mlp.down", {"in_features": 48, "out_features": 32}),
        ("bert", "encoder.0.attention.key_value", {"kind": "attention", "heads": 4, "head_dim": 8}),
        ("gpt2", "decoder.1.attention.key", {"in_features": 32, "out_features": 32}),  # a third of a Conv1D
        ("gpt2", "decoder.1.mlp.down", {"in_features": 48, "out_features": 32}),
        ("gpt2", "decoder.1.attention.key_value", {"heads": 4, "head_dim": 8}),
        ("llama", "decoder.0.attention.query", {"in_features": 32, "out_features": 48}),
        ("llama", "decoder.0.attention.key", {"in_features": 32, "out_features": 24}),
        ("llama", "decoder.0.attention.output", {"in_features": 48, "out_features": 32}),
        ("llama", "decoder.0.attention.key_value", {"heads": 2, "head_dim": 12, "encoder_decoder": False}),
        ("mpnet", "encoder.0.attention.key_value", {"heads": 4, "head_dim": 8}),
        ("bart", "encoder.0.attention.key_value", {"heads": 4, "head_dim": 8, "encoder_decoder": True}),
        ("bart", "decoder.0.cross_attention.key_value", {"heads": 2, "head_dim": 16, "stack": "decoder"}),
        ("bart", "decoder.1.mlp", {"kind": "sublayer", "hidden_size": 32, "sublayer": "mlp"}),
    ],
)
def test_what_methods_know_of_a_point(arch, name, expected):
    point = adapted(arch).sites.by_name[name].point
    assert {key: getattr(point, key) for key in expected} == expected


# ---- wrong tables


def table_of(arch: str):
    return architecture_of(ARCHITECTURES[arch].config())


def wrong(arch: str, part: str, name: str, row):
    table = table_of(arch)
    stack = table.stacks[0]
    return replace(table, stacks=(replace(stack, **{part: {**getattr(stack, part), name: row}}), *table.stacks[1:]))


def test_a_wrong_path_names_the_layer_the_path_and_the_nearest_module():
    stack = table_of("bert").stacks[0]
    row = replace(stack.projections["attention.query"], path="attention.self.qery")
    with pytest.raises(UnsupportedError) as caught:
        Sites(base("bert"), wrong("bert", "projections", "attention.query", row))
    message = str(caught.value)
    assert message.splitlines() == [
        "The architecture 'bert' does not fit this BertModel:",
        (
            "  stacks.encoder.projections.attention.query: there is no module 'attention.self.qery', did you mean "
            "'attention.self.query'? in every layer"
        ),
    ]


@pytest.mark.parametrize(
    ("part", "name", "row", "expected"),
    [
        ("sublayers", "mlp", Sublayer("mpl", "ln_2"), "sublayers.mlp.output: there is no module 'mpl'"),
        ("sublayers", "mlp", Sublayer("mlp", "ln_3"), "sublayers.mlp.residual: there is no module 'ln_3'"),
        ("sublayers", "mlp", Sublayer("mlp", "ln_2", norm="nrm"), "sublayers.mlp.norm: there is no module 'nrm'"),
        ("sublayers", "mlp", Sublayer("mlp", "ln_2", beside="atn"), "sublayers.mlp.beside: there is no module 'atn'"),
        ("projections", "mlp.up", Projection("mlp"), "projections.mlp.up: 'mlp' is a GPT2MLP and no linear map"),
        ("projections", "mlp.up", Projection("mlp.c_fc", 2, 2), "part is 2, of 2 parts counted from 0"),
        ("projections", "mlp.up", Projection("mlp.c_fc", 0, 7), "the 48 outputs of 'mlp.c_fc' are not 7 equal parts"),
        ("attentions", "attention", Attention("atn"), "attentions.attention.path: there is no module 'atn'"),
        (
            "attentions",
            "attention",
            Attention("attn", "head"),
            "'attn' has no attribute 'head', did you mean 'head_dim'",
        ),
        ("attentions", "attention", Attention("attn", method="_atn"), "'attn' has no attribute '_atn'"),
        ("attentions", "attention", Attention("attn", output="proj"), "output: there is no module 'proj'"),
    ],
)
def test_every_path_of_a_table_is_checked_on_every_layer(part, name, row, expected):
    with pytest.raises(UnsupportedError) as caught:
        Sites(base("gpt2"), wrong("gpt2", part, name, row))
    assert expected in str(caught.value) and "in every layer" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"layers": "hh"}, "stacks.decoder.layers: there is no module 'hh'"),
        ({"layers": "ln_f"}, "stacks.decoder.layers: 'ln_f' holds no layers"),
        (
            {"embeddings": Embeddings("wtf")},
            "embeddings.words: there is no module 'wtf' in the model, did you mean 'wte'",
        ),
        ({"embeddings": Embeddings("wte", "dorp")}, "embeddings.output: there is no module 'dorp'"),
        ({"prompt": Prompt(behind="dorp")}, "prompt.behind: there is no module 'dorp'"),
        ({"prompt": Prompt(end="ln_g")}, "prompt.end: there is no module 'ln_g'"),
        ({"mask_at": "enc"}, "mask_at: there is no module 'enc'"),
    ],
)
def test_every_path_outside_of_the_layers_is_checked(row, expected):
    table = table_of("gpt2")
    with pytest.raises(UnsupportedError) as caught:
        Sites(base("gpt2"), replace(table, stacks=(replace(table.stacks[0], **row),)))
    assert expected in str(caught.value)


def test_all_mistakes_of_a_table_are_told_at_once():
    table = table_of("gpt2")
    stack = replace(table.stacks[0], embeddings=Embeddings("wtf"), sublayers={"mlp": Sublayer("mpl", "ln_3")})
    with pytest.raises(UnsupportedError) as caught:
        Sites(base("gpt2"), replace(table, stacks=(stack,)))
    assert len(str(caught.value).splitlines()) == 4


def test_a_path_that_only_one_layer_lacks_names_that_layer():
    model = base("bert")
    del model.encoder.layer[1].output.dropout
    with pytest.raises(UnsupportedError, match="'output.dropout'.* in layer 1"):
        adaptrain.init(model)


def test_a_wrong_layer_list_names_the_table():
    table = table_of("bert")
    with pytest.raises(UnsupportedError, match="'bert' does not fit this BertModel:\n.*'encoderr.layer'"):
        Sites(base("bert"), replace(table, stacks=(replace(table.stacks[0], layers="encoderr.layer"),)))


def test_an_unknown_model_type_is_refused_with_the_nearest():
    with pytest.raises(UnsupportedError) as caught:
        adaptrain.init(hf.AutoModel.from_config(hf.XLMConfig(emb_dim=16, n_layers=1, n_heads=2)))
    assert "no architecture for 'xlm'" in str(caught.value)
    assert "roberta" in str(caught.value)
    assert "architecture=./xlm.yaml" in str(caught.value)
    with pytest.raises(UnsupportedError, match="did you mean 'electra'"):
        architecture_of(SimpleNamespace(model_type="elektra"))


def test_a_model_without_the_methods_points_is_refused():
    model = adapted("bert")
    for config in (
        LoRAConfig(leave_out=(0, 1)),
        DoubleSeqBnConfig(leave_out=(0, 1)),
        DoubleSeqBnConfig(mh_adapter=False, output_adapter=False, cross_adapter=True),
    ):
        with pytest.raises(UnsupportedError, match=f"'a' \\({config.method}\\) does not fit a bert"):
            model.add_adapter("a", config)
    assert model.adapter_names() == []


# ---- hooks


def hooked(model: nn.Module) -> dict[str, int]:
    count = {
        name: len(module._forward_hooks) + len(module._forward_pre_hooks) for name, module in model.named_modules()
    }
    return {name: number for name, number in count.items() if number}


def test_without_an_adapter_only_the_entrances_are_watched():
    assert hooked(adapted("bert").base_model) == {"": 2, "encoder": 2}
    assert hooked(adapted("gpt2").base_model) == {"": 2}
    assert hooked(adapted("bart").base_model) == {"": 2, "encoder": 2, "decoder": 2}
    whole = adapted("gpt2", auto=hf.AutoModelForCausalLM).base_model
    assert hooked(whole) == {"": 2, "transformer": 2}


def test_hooks_are_only_where_units_are():
    model = adapted("bert", LoRAConfig(leave_out=(0,)))
    own = {name for name in hooked(model.base_model) if name.startswith("encoder.layer")}
    assert own == {f"encoder.layer.1.attention.self.{role}" for role in ("query", "value")}


def test_many_adapters_at_one_point_share_one_hook():
    model = adapted("bert", METHODS["lora"])
    before = hooked(model.base_model)
    for index in range(20):
        add(model, f"b{index}", METHODS["lora"])
    assert hooked(model.base_model) == before


@pytest.mark.parametrize("order", [("lora-everywhere", "double_seq_bn"), ("double_seq_bn", "lora-everywhere")])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_order_in_which_adapters_came_does_not_matter(arch, order):
    """LoRA on the MLP's last map acts before the bottleneck behind it, even where both hook the same module."""
    model = adapted(arch)
    seeds = {"lora-everywhere": 1, "double_seq_bn": 2}
    for method in order:
        add(model, method, METHODS[method], seed=seeds[method])
    model.set_active_adapters(f"stack('{order[0]}', '{order[1]}')")
    found = run(model, batch(arch))
    other = adapted(arch)
    for method in ("lora-everywhere", "double_seq_bn"):
        add(other, method, METHODS[method], seed=seeds[method])
    other.set_active_adapters("stack('lora-everywhere', double_seq_bn)")
    assert torch.equal(found, run(other, batch(arch)))


@pytest.mark.parametrize("arch", ["gpt2", "bart"])
def test_units_of_one_stack_see_one_another_in_order(arch):
    """A bottleneck reads what LoRA below it has already changed, in the same layer: merged LoRA gives the same."""
    lora = LoRAConfig(r=2, alpha=5, output_lora=True, selfattn_lora=False)
    model = adapted(arch)
    add(model, "lora", lora)
    add(model, "bn", METHODS["seq_bn"])
    tensors, plain = model.get_adapter("lora").tensors(), base(arch)
    for key in [key for key in tensors if key.endswith(".A")]:
        stack, layer = key.split(".")[:2]
        delta = 2.5 * tensors[key[:-1] + "B"] @ tensors[key]
        if arch == "gpt2":
            plain.h[int(layer)].mlp.c_proj.weight.data += delta.T
        else:
            getattr(plain, stack).layers[int(layer)].fc2.weight.data += delta
    merged = adaptrain.init(plain)
    add(merged, "bn", METHODS["seq_bn"])
    merged.set_active_adapters("bn")
    for composition in ("stack(lora, bn)", "stack(bn, lora)"):
        model.set_active_adapters(composition)
        assert gap(run(model, batch(arch)), run(merged, batch(arch))) < 1e-10


def test_a_stack_of_bottlenecks_feeds_the_first_into_the_second():
    """By hand, on what goes in and out of the last sublayer: h'' = b(a(h)), both with the same residual and norm."""
    model = adapted("bert")
    add(model, "a", METHODS["seq_bn"].replace(leave_out=(0,)), seed=1)
    add(model, "b", METHODS["seq_bn"].replace(leave_out=(0,)), seed=2)
    inputs, layer = batch("bert"), model.base_model.encoder.layer[1]
    taken: dict[str, torch.Tensor] = {}
    layer.output.dense.register_forward_hook(lambda m, args, out: taken.update(h=out))
    layer.output.register_forward_pre_hook(lambda m, args: taken.update(r=args[1]))
    for order in (("a", "b"), ("b", "a")):
        model.set_active_adapters(f"stack({', '.join(order)})")
        found = run(model, inputs)
        h, norm = taken["h"], layer.output.LayerNorm
        with torch.no_grad():
            for name in order:
                t = {key.split("bottleneck.")[1]: value for key, value in model.get_adapter(name).tensors().items()}
                z = torch.relu(norm(h + taken["r"]) @ t["down.weight"].T + t["down.bias"])
                h = h + z @ t["up.weight"].T + t["up.bias"]
            assert gap(found, norm(h + taken["r"])) < 1e-10
    model.set_active_adapters("stack(a, b)")
    assert gap(run(model, inputs), found) > 1e-2  # and the order matters


def test_a_residual_is_used_once():
    """A module that fires again without a new residual passes through."""
    model, inputs = adapted("bert", METHODS["seq_bn"]), batch("bert")
    expected = run(model, inputs)
    dropout = model.base_model.encoder.layer[0].output.dropout
    layer = model.base_model.encoder.layer[0]
    again = []
    layer.register_forward_hook(lambda m, args, out: again.append((out, dropout(out))) and None)
    assert torch.equal(run(model, inputs), expected)
    assert torch.equal(*again[0])


def test_residuals_given_by_keyword_are_found():
    model, inputs = adapted("llama", METHODS["par_bn"]), batch("llama")
    expected = run(model, inputs)
    norm = type(model.base_model.layers[0].input_layernorm)
    call = norm.__call__

    class Named(norm):
        def __call__(self, hidden_states):
            return call(self, hidden_states=hidden_states)

    for layer in model.base_model.layers:
        layer.input_layernorm.__class__ = layer.post_attention_layernorm.__class__ = Named
    assert torch.equal(run(model, inputs), expected)


# ---- what does not depend on the batch


@pytest.mark.parametrize(("arch", "times"), [("bert", 1), ("llama", 1), ("bart", 3)])
def test_a_prefix_is_computed_once_a_forward(arch, times, monkeypatch):
    from adaptrain.methods.prefix import Prefix

    calls = []
    compute = Prefix.compute
    monkeypatch.setattr(Prefix, "compute", lambda self: calls.append(self) or compute(self))
    model = adapted(arch, METHODS["prefix_tuning"])
    run(model, batch(arch))
    assert len(calls) == times
    model.set_active_adapters(None)
    run(model, batch(arch))
    assert len(calls) == times


def test_plans_are_made_once_for_a_composition():
    model = adapted("bert", METHODS["lora"])
    add(model, "b", METHODS["seq_bn"])
    for composition in ("a", "b", "stack(a, b)", "a"):
        model.set_active_adapters(composition)
        run(model, batch("bert"))
    plans = model.sites._plans
    assert len(plans) == 3
    assert {site.point.name for site in plans["a", frozenset()]} == set(model.get_adapter("a").units)
    run(model, batch("bert"))
    assert model.sites._plans is plans
    add(model, "c", METHODS["lora"])
    assert model.sites._plans == {}  # sites have other units now


@pairs(*UNITS, archs=["bert", "llama", "bart"])
def test_every_unit_of_an_adapter_runs_once_a_forward(arch, method):
    model = adapted(arch, UNITS[method])
    runs: dict[str, int] = {}
    for site, (unit,) in model.get_adapter("a").units.items():
        unit.register_forward_hook(lambda *_, site=site: runs.update({site: runs.get(site, 0) + 1}))
    run(model, batch(arch))
    assert runs == dict.fromkeys(model.get_adapter("a").units, 1)
