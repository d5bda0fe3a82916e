"""Bottlenecks: results that are final, and gates of bottlenecks and prefixes, against closed forms."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from adaptrain.attention import attend_with_state
from adaptrain.errors import ConfigError
from adaptrain.methods import AdapterPlusConfig, BnConfig, ParBnConfig, PrefixTuningConfig, SeqBnConfig
from adaptrain.methods.bottleneck import Bottleneck
from adaptrain.methods.gate import Gate
from adaptrain.methods.prefix import Prefix, PrefixUnit
from adaptrain.state import AttentionState, SublayerState
from matrix import adapted, add, bare, batch, gap, randomise, run

D = 8
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()


def unit_of(config: BnConfig, causal: bool = False) -> tuple[Bottleneck, dict[str, Tensor]]:
    unit = Bottleneck(config, SimpleNamespace(layer=0, hidden_size=D, causal=causal), None).eval()
    randomise(unit, 0.6, seed=4)
    return unit, {key: value.double() for key, value in unit.state_dict().items()}


def f(t: dict[str, Tensor], x: Tensor, act=torch.relu) -> Tensor:
    return act(x @ t["down.weight"].T + t["down.bias"]) @ t["up.weight"].T + t["up.bias"]


def gate_of(t: dict[str, Tensor], x: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
    scores = torch.sigmoid(x @ t["gate.weight"].T + t["gate.bias"])
    if causal:
        return scores
    weights = torch.ones(x.shape[:2]) if mask is None else mask.double()
    return ((scores[..., 0] * weights).sum(1) / weights.sum(1))[:, None, None]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("normed", [True, False], ids=["post-norm", "pre-norm"])
def test_adapter_plus_is_final(normed):
    """LN(h + r) + s ⊙ f(LN(h + r)), and nothing of the model's own after it."""
    unit, t = unit_of(AdapterPlusConfig(reduction_factor=2))
    norm = torch.nn.LayerNorm(D)
    randomise(norm, 0.5, 5)
    torch.manual_seed(0)
    h, r = torch.randn(2, 5, D), torch.randn(2, 5, D)
    out = unit(SublayerState(h, r, norm if normed else None))
    whole = (norm(h + r) if normed else h + r).double()
    assert out.final
    assert gap(out.h, whole + t["scaling"] * f(t, whole, F.gelu)) < 1e-10


@pytest.mark.parametrize("arch", ["bert", "mpnet", "gpt2", "llama", "bart"])
def test_a_final_result_is_what_the_next_sublayer_reads(arch):
    """With a zero adapter, LN(h + r) is what the model would have gone on with: the output is the plain model's."""
    config = BnConfig(
        mh_adapter=True,
        output_adapter=True,
        cross_adapter=True,
        reduction_factor=4,
        non_linearity="relu",
        original_ln_before=True,
        original_ln_after=False,
        residual_before_ln=False,
        init_weights="mam_adapter",
    )
    assert config.identity_at_start
    inputs = batch(arch)
    model, plain = adapted(arch, config, trained=False), bare(arch, inputs)
    assert gap(run(model, inputs), plain) < 1e-10
    randomise(model.get_adapter("a"), 0.3, 1)
    moved = run(model, inputs)
    assert gap(moved, plain) > 0.05
    # the trap that the reference documents: the residual counts twice where the model's own addition follows
    twice = adapted(arch, config.replace(original_ln_after=True))
    randomise(twice.get_adapter("a"), 0.3, 1)
    assert gap(run(twice, inputs), moved) > 0.05


FORMS = ("residual_before_ln", "original_ln_before", "original_ln_after", "ln_after", "adapter_residual_before_ln")
BLANK = BnConfig(
    mh_adapter=True,
    output_adapter=True,
    cross_adapter=True,
    reduction_factor=4,
    non_linearity="relu",
    init_weights="mam_adapter",
)


@pytest.mark.parametrize("parallel", [False, True], ids=["sequential", "parallel"])
def test_a_config_says_rightly_whether_it_starts_as_the_identity(parallel):
    """Every order of norms and residuals that is legal, on a post-norm, a pre-norm and an encoder-decoder model."""
    archs, legal = ("bert", "gpt2", "bart"), 0
    plain = {arch: bare(arch, batch(arch)) for arch in archs}
    for values in itertools.product([True, False, "post_add"], *[[True, False]] * 4):
        try:
            config = BLANK.replace(is_parallel=parallel, **dict(zip(FORMS, values, strict=True)))
        except ConfigError:
            continue
        legal += 1
        moved = max(gap(run(adapted(arch, config, trained=False), batch(arch)), plain[arch]) for arch in archs)
        assert config.identity_at_start == (moved < 1e-6), config
    assert legal == (2 if parallel else 30)


def test_a_stack_ends_as_its_last_adapter_says():
    model, inputs = adapted("bert"), batch("bert")
    final = AdapterPlusConfig(reduction_factor=4)
    add(model, "final", final, seed=1)
    add(model, "plain", SeqBnConfig(reduction_factor=4), seed=2)
    layer, taken = model.base_model.encoder.layer[1], {}
    layer.output.dense.register_forward_hook(lambda m, args, out: taken.update(h=out))
    layer.output.register_forward_pre_hook(lambda m, args: taken.update(r=args[1]))
    for order in (("final", "plain"), ("plain", "final")):
        model.set_active_adapters(f"stack({', '.join(order)})")
        found = run(model, inputs)
        h, r, norm = taken["h"], taken["r"], layer.output.LayerNorm
        for name in order:
            t = {k.split("bottleneck.")[1]: v for k, v in model.get_adapter(name).tensors().items() if "1.mlp" in k}
            whole = norm(h + r)
            h = whole + t["scaling"] * f(t, whole, F.gelu) if name == "final" else h + f(t, whole)
        expected = h if order[-1] == "final" else norm(h + r)
        assert gap(found, expected.detach()) < 1e-10


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("mask", [None, MASK], ids=["no-mask", "padded"])
@pytest.mark.parametrize("causal", [False, True], ids=["encoder", "causal"])
@pytest.mark.parametrize("imported", [False, True], ids=["ours", "as-adapterhub"])
@pytest.mark.parametrize("kind", ["sequential", "parallel"])
def test_gated_bottlenecks(kind, imported, causal, mask):
    given = {"reduction_factor": 2, "use_gating": True, "as_adapterhub": imported}
    unit, t = unit_of((SeqBnConfig if kind == "sequential" else ParBnConfig)(**given), causal)
    norm = torch.nn.LayerNorm(D)
    torch.manual_seed(0)
    h, r = torch.randn(2, 5, D), torch.randn(2, 5, D)
    found = unit(SublayerState(h, r, norm, mask)).h
    x = (norm(h + r) if kind == "sequential" else r).double()
    g = gate_of(t, x, None if imported else mask, causal and not imported)
    scale = 1 if kind == "sequential" else 4
    assert gap(found, h.double() + scale * f(t, x) * g) < 1e-10


# ---- prefixes


def prefix_unit(causal: bool, **options) -> PrefixUnit:
    config = PrefixTuningConfig(flat=True, prefix_length=3, use_gating=True, **options)
    unit = PrefixUnit(config, Prefix(config, 1, 2, 4, D), 0, SimpleNamespace(hidden_size=D, causal=causal))
    randomise(unit, 0.8, 6)
    randomise(unit._shared[0], 0.8, 7)
    return unit.eval()


def attention_state(mask: Tensor | None) -> tuple[Tensor, AttentionState]:
    torch.manual_seed(1)
    query, keys, values = torch.randn(3, 2, 2, 5, 4)
    seen = None if mask is None else mask[:, None, None]
    return query, AttentionState(keys, values, seen, hidden=torch.randn(2, 5, D), tokens=mask)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("mask", [None, MASK], ids=["no-mask", "padded"])
@pytest.mark.parametrize("shared", [True, False], ids=["one-gate", "two-gates"])
@pytest.mark.parametrize("imported", [False, True], ids=["ours", "as-adapterhub"])
def test_a_gated_prefix_is_keys_and_values_times_the_rows_gate(imported, shared, mask):
    unit = prefix_unit(False, shared_gating=shared, as_adapterhub=imported)
    query, state = attention_state(mask)
    found = unit(state)
    assert found.gates is None
    assert unit.gate is not None
    scores = torch.sigmoid(state.hidden @ unit.gate.weight.T + unit.gate.bias)
    weights = torch.ones(2, 5, 1) if mask is None or imported else mask[..., None].float()
    g = (scores * weights).sum(1) / weights.sum(1)  # (rows, gates)
    keys, values = unit._shared[0].compute()
    assert gap(found.keys[:, :, :3], g[:, :1, None, None] * keys) < 1e-10
    assert gap(found.values[:, :, :3], g[:, -1:, None, None] * values) < 1e-10
    assert torch.equal(found.keys[:, :, 3:], state.keys)
    assert attend_with_state(query, found, 0.0, False).shape == (2, 5, 8)


@pytest.mark.usefixtures("float64")
def test_on_causal_models_each_query_gates_its_own_view_of_the_prefix():
    """By hand, a query at a time: softmax([g_t · q_t Pᴷ, q_t K]) with the prefix's weights times g_t again."""
    from adaptrain.attention import attend_gated

    unit = prefix_unit(True)
    query, state = attention_state(None)
    found = unit(state)
    assert found.gates is not None
    assert unit.gate is not None
    out = attend_gated(query, found, False, scaling=0.5)
    g = torch.sigmoid(state.hidden @ unit.gate.weight.T + unit.gate.bias)  # (rows, queries, 1)
    for row in range(2):
        for head in range(2):
            for t in range(5):
                keys, values = found.keys[row, head], found.values[row, head]
                gates = torch.cat([g[row, t].expand(3), torch.ones(5)])
                weights = torch.softmax(0.5 * gates * (keys @ query[row, head, t]), 0) * gates
                assert gap(out[row, t, head], weights @ values) < 1e-10


def test_two_gates_on_a_causal_model_are_refused():
    with pytest.raises(ConfigError, match="shared_gating is false, but a causal model"):
        prefix_unit(True, shared_gating=False)
    prefix_unit(True, shared_gating=False, as_adapterhub=True)  # the reference's mean has no such limit
    with pytest.raises(ConfigError, match="shared_gating is for use_gating"):
        PrefixTuningConfig(shared_gating=False)


def test_fresh_gates_are_half_open():
    torch.manual_seed(0)
    gate = Gate(64, causal=False)
    assert gate.weight.std().item() == pytest.approx(0.02, rel=0.3)
    unit = Bottleneck(SeqBnConfig(use_gating=True), SimpleNamespace(layer=0, hidden_size=64, causal=False), None)
    assert unit.gate is not None
    assert not unit.gate.bias.any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"is_parallel": True, "original_ln_after": False}, "original_ln_after is for the sequential form"),
        ({"output_adapter": False}, "all false; nothing would be adapted"),
        (
            {"is_parallel": True, "ln_after": True, "adapter_residual_before_ln": True},
            "adapter_residual_before_ln is for the sequential form",
        ),
    ],
)
def test_impossible_values_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        BnConfig(
            **{"mh_adapter": False, "output_adapter": True, "reduction_factor": 2, "non_linearity": "relu"} | options
        )
