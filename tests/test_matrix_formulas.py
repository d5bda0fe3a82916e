"""Every method against its formula, computed anew in float64 from the plain model's own weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor
from torch.nn import functional as F

import adaptrain
from adaptrain.methods import BnConfig, LoRAConfig, MethodConfig
from matrix import METHODS, adapted, base, batch, gap, run

archs = pytest.mark.parametrize("arch", ["bert", "roberta", "electra", "mpnet", "gpt2", "llama", "mistral", "bart"])
"""Those of which a layer is written by hand below; the others have the contracts of `test_contracts.py`."""

# ---- LoRA: W + (α / r) · B A in the plain model, at the paths that transformers gives them

_BERT = {"attention.query": "attention.self.query", "attention.key": "attention.self.key"} | {
    "attention.value": "attention.self.value",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
}
_MPNET = (
    _BERT
    | {"attention.query": "attention.attn.q", "attention.key": "attention.attn.k"}
    | {"attention.value": "attention.attn.v"}
)
_LLAMA = {f"attention.{name}": f"self_attn.{name[0]}_proj" for name in ("query", "key", "value")} | {
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
_BART = {f"attention.{name}": f"self_attn.{name[0]}_proj" for name in ("query", "key", "value")} | {
    **{f"cross_attention.{name}": f"encoder_attn.{name[0]}_proj" for name in ("query", "key", "value")},
    "mlp.up": "fc1",
    "mlp.down": "fc2",
}
_GPT2 = {f"attention.{name}": "attn.c_attn" for name in ("query", "key", "value")} | {
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
WHERE: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    **dict.fromkeys(["bert", "roberta", "electra"], ({"encoder": "encoder.layer"}, _BERT)),
    "mpnet": ({"encoder": "encoder.layer"}, _MPNET),
    "gpt2": ({"decoder": "h"}, _GPT2),
    **dict.fromkeys(["llama", "mistral"], ({"decoder": "layers"}, _LLAMA)),
    "bart": ({"encoder": "encoder.layers", "decoder": "decoder.layers"}, _BART),
}


@archs
@pytest.mark.parametrize("method", ["lora", "lora-everywhere", "lora-bert-init"])
def test_lora_is_the_plain_model_with_the_product_added_to_its_weights(arch, method):
    config, model, plain = METHODS[method], adapted(arch, METHODS[method]).double(), base(arch).double()
    assert isinstance(config, LoRAConfig) and config.alpha != config.r
    tensors, merged = model.get_adapter("a").tensors(), 0
    stacks, paths = WHERE[arch]
    for key in tensors:
        stack, layer, *place, _, letter = key.split(".")
        if letter == "B":
            continue
        delta = config.alpha / config.r * tensors[key[:-1] + "B"] @ tensors[key]
        weight = plain.get_submodule(f"{stacks[stack]}.{layer}.{paths['.'.join(place)]}").weight.data
        if arch == "gpt2":  # Conv1D: (in, out), and query, key, value side by side
            index = {"query": 0, "key": 1, "value": 2}.get(place[1], 0)
            weight[:, index * len(delta) : (index + 1) * len(delta)] += delta.T
        else:
            weight += delta
        merged += 1
    layers = (4 if arch == "bart" else 2) - (1 in config.leave_out or 0 in config.leave_out)
    attentions = layers + (2 if arch == "bart" else 0)  # and two of them across
    assert merged == attentions * len(config.attn_matrices) + layers * 2 * config.intermediate_lora
    inputs = batch(arch)
    assert gap(run(model, inputs), run(plain, inputs)) < 1e-10
    assert gap(run(model, inputs), run(base(arch).double(), inputs)) > 0.05


# ---- bottlenecks and prefixes: a layer of each family, written by hand

LN = Callable[[Tensor], Tensor]
Change = Callable[[str, Tensor, Tensor, LN], Tensor]
Prefix = Callable[[str], tuple[Tensor, Tensor] | None]


def attend(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor, prefix: tuple[Tensor, Tensor] | None, bias: Any = 0.0
) -> Tensor:
    """softmax(q [P_k ; k]ᵀ / √d) [P_v ; v] with heads on axis 1, key/value heads repeated."""
    groups = q.shape[1] // k.shape[1]
    if prefix is not None:
        rows, length = len(k), prefix[0].shape[1]
        k, v = (torch.cat([p.expand(rows, -1, -1, -1), x], 2) for p, x in zip(prefix, (k, v), strict=True))
        seen = F.pad(seen.expand(rows, 1, q.shape[2], -1), (length, 0), value=True)
        bias = F.pad(bias, (length, 0)) if isinstance(bias, Tensor) else bias
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias
    return scores.masked_fill(~seen, -1e9).softmax(-1) @ v


def heads(x: Tensor, size: int) -> Tensor:
    return x.unflatten(-1, (-1, size)).transpose(1, 2)


def merge(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def bert_layer(layer: Any, x: Tensor, seen: Tensor, change: Change, prefix: Prefix, bias: Any = 0.0) -> Tensor:
    own = layer.attention.self if hasattr(layer.attention, "self") else layer.attention.attn
    names = ("query", "key", "value") if hasattr(own, "query") else ("q", "k", "v")
    q, k, v = (heads(getattr(own, name)(x), own.attention_head_size) for name in names)
    out, norm = (
        (own.o, layer.attention.LayerNorm)
        if hasattr(own, "o")
        else (
            layer.attention.output.dense,
            layer.attention.output.LayerNorm,
        )
    )
    x = change("attention", out(merge(attend(q, k, v, seen, prefix("attention"), bias))), x, norm)
    return change("mlp", layer.output.dense(F.gelu(layer.intermediate.dense(x))), x, layer.output.LayerNorm)


def gpt2_layer(layer: Any, x: Tensor, seen: Tensor, change: Change, prefix: Prefix) -> Tensor:
    q, k, v = (heads(part, 8) for part in layer.attn.c_attn(layer.ln_1(x)).chunk(3, -1))
    x = change("attention", layer.attn.c_proj(merge(attend(q, k, v, seen, prefix("attention")))), x, lambda y: y)
    inner = F.gelu(layer.mlp.c_fc(layer.ln_2(x)), approximate="tanh")
    return change("mlp", layer.mlp.c_proj(inner), x, lambda y: y)


def llama_layer(layer: Any, x: Tensor, seen: Tensor, change: Change, prefix: Prefix, rope: Any) -> Tensor:
    own, z = layer.self_attn, layer.input_layernorm(x)
    q, k, v = (heads(p(z), own.head_dim) for p in (own.q_proj, own.k_proj, own.v_proj))
    cos, sin = (each[:, None] for each in rope)
    q, k = (y * cos + torch.cat([-y.chunk(2, -1)[1], y.chunk(2, -1)[0]], -1) * sin for y in (q, k))
    x = change("attention", own.o_proj(merge(attend(q, k, v, seen, prefix("attention")))), x, lambda y: y)
    z, mlp = layer.post_attention_layernorm(x), layer.mlp
    return change("mlp", mlp.down_proj(F.silu(mlp.gate_proj(z)) * mlp.up_proj(z)), x, lambda y: y)


def bart_layer(
    layer: Any,
    x: Tensor,
    seen: Tensor,
    change: Change,
    prefix: Prefix,
    memory: Tensor | None = None,
    visible: Any = None,
) -> Tensor:
    def attention(own: Any, keys: Tensor, seen: Tensor, name: str) -> Tensor:
        q, k, v = (heads(p(y), own.head_dim) for p, y in ((own.q_proj, x), (own.k_proj, keys), (own.v_proj, keys)))
        return own.out_proj(merge(attend(q, k, v, seen, prefix(name))))

    x = change("attention", attention(layer.self_attn, x, seen, "attention"), x, layer.self_attn_layer_norm)
    if memory is not None:
        o = attention(layer.encoder_attn, memory, visible, "cross_attention")
        x = change("cross_attention", o, x, layer.encoder_attn_layer_norm)
    return change("mlp", layer.fc2(F.gelu(layer.fc1(x))), x, layer.final_layer_norm)


def by_hand(arch: str, model: Any, inputs: dict[str, Tensor], change: Any, prefix: Any) -> list[tuple[Tensor, Tensor]]:
    """(what the adapted model says, what the formula says) for every layer, each from the adapted model's own input."""
    plain = base(arch).double()
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
        mask = inputs["attention_mask"].bool()
        seen = mask[:, None, None]
        causal = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool).tril()[None, None]
        pairs = []

        def compare(stack: str, layers: Any, states: Any, compute: Any, last: LN, rows: Tensor) -> None:
            for index, layer in enumerate(layers):
                place = f"{stack}.{index}"
                here = compute(layer, states[index], lambda *a, p=place: change(p, *a), lambda n, p=place: prefix(p, n))
                here = last(here) if index == len(layers) - 1 else here
                pairs.append((states[index + 1][rows], here[rows]))

        same: LN = lambda y: y  # noqa: E731
        if arch == "gpt2":
            own = lambda layer, x, c, p: gpt2_layer(layer, x, seen & causal, c, p)  # noqa: E731
            compare("decoder", plain.h, out.hidden_states, own, plain.ln_f, mask)
        elif arch in ("llama", "mistral"):
            if arch == "mistral":
                causal = causal & ~causal.tril(-plain.config.sliding_window)
            rope = plain.rotary_emb(out.hidden_states[0], inputs["position_ids"])
            own = lambda layer, x, c, p: llama_layer(layer, x, seen & causal, c, p, rope)  # noqa: E731
            compare("decoder", plain.layers, out.hidden_states, own, plain.norm, mask)
        elif arch == "bart":
            own = lambda layer, x, c, p: bart_layer(layer, x, seen, c, p)  # noqa: E731
            compare("encoder", plain.encoder.layers, out.encoder_hidden_states, own, same, mask)
            causal = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
            memory = out.encoder_last_hidden_state
            own = lambda layer, x, c, p: bart_layer(layer, x, causal, c, p, memory, seen)  # noqa: E731
            every = torch.ones(len(mask), 5, dtype=torch.bool)
            compare("decoder", plain.decoder.layers, out.decoder_hidden_states, own, same, every)
        else:
            bias = plain.encoder.compute_position_bias(out.hidden_states[0]) if arch == "mpnet" else 0.0
            own = lambda layer, x, c, p: bert_layer(layer, x, seen, c, p, bias)  # noqa: E731
            compare("encoder", plain.encoder.layer, out.hidden_states, own, same, mask)
    return pairs


def no_prefix(*_: str) -> None:
    return None


def untouched(place: str, name: str, o: Tensor, r: Tensor, norm: LN) -> Tensor:
    return norm(o + r)


@archs
def test_the_layers_by_hand_are_the_plain_models(arch):
    """The yardstick itself."""
    pairs = by_hand(arch, base(arch).double(), batch(arch), untouched, no_prefix)
    assert len(pairs) == (4 if arch == "bart" else 2)
    assert max(gap(found, expected) for found, expected in pairs) < 1e-10


ACTIVATIONS = {"relu": F.relu, "swish": F.silu, "gelu": F.gelu, "tanh": torch.tanh}
Formula = Callable[[Callable[[Tensor], Tensor], dict[str, Any], Tensor, Tensor, LN], Tensor]


def layer_norm(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def _bn(**options: Any) -> MethodConfig:
    given = {"mh_adapter": True, "output_adapter": True, "cross_adapter": True, "reduction_factor": 4}
    return BnConfig(**given | {"non_linearity": "relu"} | options)


# name → (config, the sublayer's whole output from f = W_up act(W_down · + b) + b, its tensors t, h, r and LN)
BOTTLENECKS: dict[str, tuple[MethodConfig, Formula]] = {
    "seq_bn": (METHODS["seq_bn"], lambda f, t, h, r, ln: ln(r + h + f(ln(h + r)))),
    "double_seq_bn": (METHODS["double_seq_bn"], lambda f, t, h, r, ln: ln(r + h + f(h))),
    "par_bn": (METHODS["par_bn"], lambda f, t, h, r, ln: ln(r + h + 4 * f(r))),
    "scaled_par_bn": (METHODS["scaled_par_bn"], lambda f, t, h, r, ln: ln(r + h + t["scaling"] * f(r))),
    "bn-norms": (
        METHODS["bn-norms"],
        lambda f, t, h, r, ln: ln(
            r + layer_norm(t["scaling"] * f(layer_norm(ln(h + r), t, "norm_before")) + h + r, t, "norm_after")
        ),
    ),
    "residual-after-norm": (
        _bn(original_ln_before=True, residual_before_ln=False),
        lambda f, t, h, r, ln: ln(r + ln(h + r) + f(ln(h + r))),
    ),
    "norm-then-residual": (
        _bn(ln_after=True, scaling=0.5),
        lambda f, t, h, r, ln: ln(r + layer_norm(0.5 * f(h), t, "norm_after") + h),
    ),
    "parallel-norms": (
        _bn(is_parallel=True, ln_before=True, ln_after=True, scaling="channel", non_linearity="tanh"),
        lambda f, t, h, r, ln: ln(
            r + h + layer_norm(t["scaling"] * f(layer_norm(r, t, "norm_before")), t, "norm_after")
        ),
    ),
}


@archs
@pytest.mark.parametrize("name", BOTTLENECKS)
def test_a_bottleneck_is_its_formula(arch, name):
    config, formula = BOTTLENECKS[name]
    model = adapted(arch, config).double()
    tensors, used = model.get_adapter("a").tensors(), set()

    def change(place: str, sublayer: str, h: Tensor, r: Tensor, ln: LN) -> Tensor:
        start = f"{place}.{sublayer}.bottleneck."
        t = {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}
        if not t:
            return ln(h + r)
        used.update(start + key for key in t)
        act = ACTIVATIONS[config.to_dict()["non_linearity"]]

        def f(x: Tensor) -> Tensor:
            return F.linear(act(F.linear(x, t["down.weight"], t["down.bias"])), t["up.weight"], t["up.bias"])

        return formula(f, t, h, r, ln)

    pairs = by_hand(arch, model, batch(arch), change, no_prefix)
    assert used == set(tensors)
    assert max(gap(found, expected) for found, expected in pairs) < 1e-10


@archs
@pytest.mark.parametrize("method", ["prefix_tuning", "prefix_tuning_flat"])
def test_a_prefix_is_keys_and_values_before_those_of_the_text(arch, method):
    model = adapted(arch, METHODS[method]).double()
    tensors, used = model.get_adapter("a").tensors(), set()

    def prefix(place: str, sublayer: str) -> tuple[Tensor, Tensor]:
        stack, layer = place.split(".")
        start = f"{stack}.{sublayer}.prefix_tuning."
        t = {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}
        used.update(start + key for key in t)
        if "prefix" in t:
            flat = t["prefix"]
        else:
            flat = torch.tanh(t["embedding"] @ t["down.weight"].T + t["down.bias"]) @ t["up.weight"].T + t["up.bias"]
        size = {"llama": 12}.get(arch, 16 if stack == "decoder" and arch == "bart" else 8)
        keys, values = flat.view(len(flat), 2, 2, -1, size)[:, int(layer)].permute(1, 2, 0, 3)  # l, L, k|v, heads, d
        return keys, values

    pairs = by_hand(arch, model, batch(arch), untouched, prefix)
    assert used == set(tensors)
    assert max(gap(found, expected) for found, expected in pairs) < 1e-10
    change = max(gap(found, expected) for found, expected in by_hand(arch, model, batch(arch), untouched, no_prefix))
    assert change > 1e-2


@archs
def test_an_ejected_prefix_is_flat_smaller_and_equal(arch):
    model, inputs = adapted(arch, METHODS["prefix_tuning"].replace(bottleneck_size=512)), batch(arch)
    expected, before = run(model, inputs), model.parameter_count("a")
    model.eject_prefix_tuning("a")
    assert model.get_adapter("a").config == METHODS["prefix_tuning"].replace(bottleneck_size=512, flat=True)
    assert model.parameter_count("a") * 10 < before
    assert [key.rpartition(".")[2] for key in model.get_adapter("a").tensors()] == ["prefix"] * (
        3 if arch == "bart" else 1
    )
    assert gap(run(model, inputs), expected) < 1e-10


# ---- parameter counts

COUNTS = {
    "seq_bn": 894_528,
    "double_seq_bn": 1_789_056,
    "par_bn": 7_091_712,
    "scaled_par_bn": 7_091_724,
    "prefix_tuning": 9_872_384,
    "prefix_tuning_flat": 552_960,
    "lora": 294_912,
    'lora[attn_matrices=["q","k","v"],intermediate_lora=True,output_lora=True]': 1_179_648,
    "full": 124_645_632,
    "none": 0,
}


@pytest.fixture(scope="module")
def roberta_base() -> adaptrain.AdaptedModel:
    """The geometry without the weights."""
    config = hf.RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
    with torch.device("meta"):
        return adaptrain.init(hf.RobertaModel(config))


@pytest.mark.parametrize("preset", COUNTS)
def test_parameter_counts_on_roberta_base_are_the_published_ones(preset, roberta_base):
    roberta_base.add_adapter("a", preset)
    assert roberta_base.parameter_count("a") == COUNTS[preset]
    row, last = roberta_base.adapter_summary()
    assert row["parameters"] == COUNTS[preset]
    assert row["percent"] == pytest.approx(100 * COUNTS[preset] / 124_645_632)
    assert last["name"] == "base model" and last["parameters"] == 124_645_632
    roberta_base.delete_adapter("a")


@pytest.mark.parametrize("arch", ["llama", "bart", "gpt2"])
def test_parameter_counts_follow_the_geometry(arch):
    d = 32
    model = adapted(arch, METHODS["lora"])  # r = 3 on query and value
    per_attention = {"llama": (d + 4 * 12) + (d + 2 * 12), "bart": 4 * d, "gpt2": 4 * d}[arch]
    attentions = 6 if arch == "bart" else 2
    assert model.parameter_count("a") == attentions * 3 * per_attention
    model = adapted(arch, METHODS["prefix_tuning_flat"])  # 4 positions; key and value of every attention
    width = {"llama": 2 * 12}.get(arch, d)
    assert model.parameter_count("a") == attentions * 4 * 2 * width
