"""The LoRA family against closed forms in float64; merging, words, dtypes, the identity at the start."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptrain.errors import UnsupportedError
from adaptrain.methods import DoRAConfig, DvoRAConfig, IA3Config, LoRAConfig, MTLLoRAConfig, VeraConfig
from adaptrain.methods.dora import row_norms
from adaptrain.state import ActivationState, ProjectionState
from fake_points import (
    FakePoint,
    built,
    linear,
    model,
    query,
    seeded,  # noqa: F401 (pytest looks for it here)
    state_of,
)


def trained(config: LoRAConfig, point: FakePoint) -> tuple[Any, dict[str, Tensor]]:
    """One unit in float64 with weights as training leaves them, its map too."""
    point.map.double()
    build = built(config, [point])
    unit = build.units[point.name].double()
    for module in build.shared.values():
        module.double()
    for parameter in unit.parameters():
        nn.init.normal_(parameter, mean=0.3, std=0.5)
    return unit, {name: parameter.detach() for name, parameter in unit.named_parameters()}


def close(found: Tensor, expected: Tensor) -> bool:
    return found.dtype == expected.dtype and torch.allclose(found, expected, rtol=1e-6, atol=1e-7)


# ---- the product s · B A of each method, from its parameters and the frozen matrices


def _mtl(t: dict[str, Tensor], tau: float) -> Tensor:
    between = torch.diag(t["values"]) if "values" in t else t["task"]
    shares = torch.exp(t["weights"] / tau) / torch.exp(t["weights"] / tau).sum()
    return sum(w * b for w, b in zip(shares, t["B"], strict=True)) @ between @ t["A"]  # type: ignore[return-value]


def product_of(config: LoRAConfig, unit: Any, t: dict[str, Tensor]) -> Tensor:
    scaling = config.alpha / (math.sqrt(3) if config.use_rslora else 3)
    if isinstance(config, MTLLoRAConfig):
        return scaling * _mtl(t, config.weights_sharpness)
    if config.init_weights == "vera":
        a, b = unit._shared[0].compute()
        return scaling * torch.diag(t["b"]) @ b[: len(t["b"])] @ torch.diag(t["d"]) @ a[:, : unit.in_features]
    return scaling * t["B"] @ t["A"]


ADDED = {
    "lora": LoRAConfig(r=3, alpha=5),
    "lora-bert": LoRAConfig(r=3, alpha=5, init_weights="bert"),
    "rslora": LoRAConfig(r={"default": 9, "0": 3}, alpha=5, use_rslora=True),
    "vera": VeraConfig(r=3, alpha=5),
    "mtl": MTLLoRAConfig(r=3, alpha=5, n_up_projection=2, weights_sharpness=0.7),
    "mtl-linear": MTLLoRAConfig(r=3, alpha=5, n_up_projection=3, task_specific_matrix_type="linear"),
}
DORA = {"dora": DoRAConfig(r=3, alpha=5), "dvora": DvoRAConfig(r=3, alpha=5)}


@pytest.mark.parametrize("name", ADDED)
@pytest.mark.parametrize("bias", [True, False])
def test_an_update_is_added(name, bias):
    config, point = ADDED[name], query(linear(7, 5, bias))
    unit, t = trained(config, point)
    state, weight = state_of(point), point.map.weight
    expected = F.linear(state.x, weight + product_of(config, unit, t), point.map.bias)
    assert (expected - state.y).abs().max() > 0.1
    assert close(unit(state).y, expected)
    merged, same = unit.merged(weight, point.map.bias)
    assert close(F.linear(state.x, merged, same), expected)
    assert same is point.map.bias and merged.shape == weight.shape


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("as_adapterhub", [False, True])
@pytest.mark.parametrize("name", ["lora", "vera", "mtl"])
def test_gates(name, as_adapterhub, causal):
    config, point = ADDED[name].replace(use_gating=True, as_adapterhub=as_adapterhub), query(causal=causal)
    unit, t = trained(config, point)
    state = state_of(point)
    scores = torch.sigmoid(state.x @ t["gate.weight"].T + t["gate.bias"])
    assert state.mask is not None
    if as_adapterhub:
        gate, factor = scores.mean(1, keepdim=True), 3 / 5  # α / r does not count
    elif causal:
        gate, factor = scores, 1.0
    else:
        tokens = [row[: int(length)].mean() for row, length in zip(scores, state.mask.sum(1), strict=True)]
        gate, factor = torch.stack(tokens)[:, None, None], 1.0
    expected = state.y + gate * factor * (state.x @ product_of(config, unit, t).T)
    assert close(unit(state).y, expected)
    with pytest.raises(UnsupportedError, match="its gate depends on the input"):
        unit.merged(point.map.weight, point.map.bias)


@pytest.mark.parametrize("name", DORA)
@pytest.mark.parametrize("bias", [True, False])
def test_dora_leaves_the_bias_and_scales_within_the_norm(name, bias):
    config, point = DORA[name], query(linear(7, 5, bias))
    unit, t = trained(config, point)
    state, weight = state_of(point), point.map.weight
    direction = weight + product_of(config, unit, t)
    whole = t["m"][:, None] * direction / direction.norm(dim=1, keepdim=True)
    expected = F.linear(state.x, whole, point.map.bias)
    assert close(unit(state).y, expected)
    merged, same = unit.merged(weight, point.map.bias)
    assert close(merged, whole) and same is point.map.bias


@pytest.mark.parametrize("name", DORA)
def test_dora_as_adapterhub(name):
    config, point = DORA[name].replace(as_adapterhub=True), query()
    unit, t = trained(config, point)
    state, weight, bias = state_of(point), point.map.weight, point.map.bias
    product = product_of(config, unit, t)
    ratio = t["m"] / (weight + product * 3 / 5).norm(dim=1)  # without α / r
    expected = ratio * F.linear(state.x, weight + product, bias)
    assert close(unit(state).y, expected)
    merged = unit.merged(weight, bias)
    assert close(F.linear(state.x, *merged), expected)


def test_the_gradient_takes_doras_norm_for_a_constant():
    for as_adapterhub in (False, True):
        config, point = DORA["dora"].replace(as_adapterhub=as_adapterhub), query()
        unit, t = trained(config, point)
        state, a, b, m = state_of(point), *(t[key].clone().requires_grad_() for key in ("A", "B", "m"))
        update = 5 / 3 * b @ a
        direction = point.map.weight + update
        norm = (point.map.weight + b @ a).norm(dim=1) if as_adapterhub else direction.detach().norm(dim=1)
        inside = F.linear(state.x, direction, point.map.bias if as_adapterhub else None)
        grads = torch.autograd.grad((m / norm * inside).square().sum(), (a, b, m))
        shift = 0 if as_adapterhub else point.map.bias
        (unit(state).y - shift).square().sum().backward()
        for parameter, expected in zip((unit.A, unit.B, unit.m), grads, strict=True):
            assert close(parameter.grad, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_row_norms_are_those_of_the_sum(dtype):
    weight, a, b = torch.randn(64, 96).to(dtype), torch.randn(4, 96), torch.randn(64, 4)
    weight[3] = 0
    b[5] = 0
    for scale in (0, 1e-3, 1, 30):
        expected = (weight.double() + (scale * b).double() @ a.double()).norm(dim=1)
        found = row_norms(weight, a, scale * b)
        assert found.dtype == torch.float32
        assert torch.allclose(found.double(), expected, rtol=1e-6, atol=1e-14)


def test_pissa_moves_away_from_the_largest_singular_triplets():
    config, point = LoRAConfig(r=3, alpha=5, init_weights="pissa"), query()
    fresh = built(config, [point]).units[point.name]
    u, sigma, v = torch.linalg.svd(point.map.weight)
    top = u[:, :3] @ torch.diag(sigma[:3]) @ v[:3]
    assert torch.allclose(5 / 3 * fresh.B @ fresh.A, top, atol=1e-6)
    assert torch.allclose(fresh.A.norm(dim=1), fresh.B.norm(dim=0), atol=1e-6)
    assert set(fresh.state_dict()) == {"A", "B"}
    unit, t = trained(config, point)
    state = state_of(point)
    whole = point.map.weight + 5 / 3 * t["B"] @ t["A"] - top.double()
    assert torch.allclose(unit(state).y, F.linear(state.x, whole, point.map.bias), atol=1e-5)
    assert torch.allclose(unit.merged(point.map.weight, None)[0], whole, atol=1e-5)
    again = config.build([point]).units[point.name].double()  # as it is loaded: `start` is not called
    again.load_state_dict(unit.state_dict())
    assert torch.equal(again(state).y, unit(state).y)


def test_ia3_scales_keys_values_and_the_inner_activation():
    config, points = IA3Config(alpha=1.5, output_lora=True), model()
    for point in points:
        if point.map is not None:
            point.map.double()
    units = built(config, points).units
    assert sorted(units) == [
        f"encoder.0.{n}" for n in ("attention.key", "attention.value", "mlp.activation", "mlp.down")
    ]
    for place, unit in units.items():
        point = next(point for point in points if point.name == place)
        assert list(unit.state_dict()) == ["scale"] and unit.scale.shape == (point.out_features,)
        assert torch.equal(unit.scale, torch.ones_like(unit.scale))
        nn.init.normal_(unit.double().scale, mean=1.0)
        factor, weight, bias = 1.5 * unit.scale, point.map.weight, point.map.bias
        if point.kind == "activation":
            h = torch.randn(2, 3, point.in_features, dtype=torch.float64)
            assert close(unit(ActivationState(h)).h, factor * h)
            expected, state = F.linear(factor * h, weight, bias), ProjectionState(h, h)
        else:
            state = state_of(point)
            expected = factor * F.linear(state.x, weight, bias)
            assert close(unit(state).y, expected)
        assert close(F.linear(state.x, *unit.merged(weight, bias)), expected)


def test_ia3_as_adapterhub_scales_before_the_activation():
    points = model()
    places = [point.name for point in IA3Config(as_adapterhub=True).choose(points)]
    assert places == ["encoder.0.attention.key", "encoder.0.attention.value", "encoder.0.mlp.up"]


# ---- word embeddings


@pytest.mark.parametrize("kind", [LoRAConfig, VeraConfig, DoRAConfig, MTLLoRAConfig])
def test_a_word_embedding_is_a_linear_map_of_one_hot_words(kind):
    config = kind(r=3, alpha=5, embeddings_lora=True, selfattn_lora=False)
    (point,) = config.choose(model())
    unit, _ = trained(config, point)
    words = torch.randint(20, (3, 4))
    hot = F.one_hot(words, 20).double()
    y = F.linear(hot, point.map.weight)
    found = unit(ProjectionState(words, y, None, point.map)).y
    assert close(found, unit(ProjectionState(hot, y, None, point.map)).y)
    assert close(found, F.linear(hot, unit.merged(point.map.weight, None)[0]))


def test_dropout_on_words_drops_whole_words():
    config = LoRAConfig(r=3, alpha=5, dropout=0.25, embeddings_lora=True, selfattn_lora=False)
    (point,) = config.choose(model())
    unit, _ = trained(config, point)
    words = torch.randint(20, (40, 50))
    state = ProjectionState(words, F.embedding(words, point.map.weight.T), None, point.map)
    whole, some = unit.eval()(state).y - state.y, unit.train()(state).y - state.y
    dropped = (some.abs() < 1e-12).all(-1)
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.04)
    assert torch.allclose(some[~dropped], whole[~dropped] / 0.75)


# ---- numbers


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config",
    [
        LoRAConfig(),
        LoRAConfig(use_gating=True),
        LoRAConfig(init_weights="pissa", alpha=3, r=4, dropout=0.3),
        LoRAConfig(init_weights="pissa", r=4, dtype="bfloat16"),
        DoRAConfig(),
        DoRAConfig(as_adapterhub=True, alpha=3),
        DvoRAConfig(r=3),
        VeraConfig(),
        IA3Config(),
        MTLLoRAConfig(n_up_projection=2),
    ],
    ids=lambda value: getattr(value, "method", ""),
)
def test_a_fresh_adapter_is_the_identity_exactly(config, state_dtype):
    assert config.identity_at_start
    config = config.replace(attn_matrices=("q", "k", "v", "o"))
    points = model(d=24, ffn=40)
    points[1].map.weight[2] = 0  # a row without length
    for point in points:
        if point.map is not None:
            point.map.to(state_dtype)
    build = built(config, points)
    for point in config.choose(points):
        if point.kind == "projection":
            state = state_of(point, dtype=state_dtype)
            assert torch.equal(build.units[point.name].train()(state).y, state.y)


@pytest.mark.parametrize(
    "config",
    [
        LoRAConfig(init_weights="bert"),
        DoRAConfig(init_weights="bert"),
        DoRAConfig(dtype="bfloat16"),
        VeraConfig(vera_b=0.1),
        IA3Config(alpha=2),
        MTLLoRAConfig(init_weights="bert"),
    ],
)
def test_no_identity_is_promised_where_there_is_none(config):
    assert not config.identity_at_start
    config, points = config.replace(attn_matrices=("v",)), model(d=32)
    state = state_of(points[3], dtype=torch.float32)
    assert not torch.equal(built(config, points).units["encoder.0.attention.value"](state).y, state.y)


EVERY = [*ADDED.values(), *DORA.values(), IA3Config(), LoRAConfig(r=3, init_weights="pissa")]


@pytest.mark.parametrize("config", EVERY, ids=lambda config: config.method)
def test_the_output_keeps_its_dtype_and_parameters_stay_float32(config):
    config, points = config.replace(attn_matrices=("k",)), model()
    build = built(config, points)
    point = points[2]
    unit = build.units[point.name]
    for parameter in unit.parameters():
        nn.init.normal_(parameter)
        assert parameter.dtype == torch.float32
    whole = unit(state := state_of(point, dtype=torch.float32)).y
    point.map.bfloat16()
    half = replace(state, x=state.x.bfloat16(), y=state.y.bfloat16())
    assert unit(half).y.dtype == torch.bfloat16
    assert torch.allclose(unit(half).y.float(), whole, rtol=0.1, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert unit(half).y.dtype == torch.bfloat16
        assert unit(state).y.dtype == torch.float32
    weight, bias = unit.merged(point.map.weight.float(), point.map.bias.float())
    assert weight.dtype == bias.dtype == torch.float32
    kept = built(config.replace(dtype="bfloat16"), points).units[point.name]
    assert {parameter.dtype for parameter in kept.parameters()} == {torch.bfloat16}
    assert kept(state).y.dtype == torch.float32


@pytest.mark.parametrize("config", EVERY, ids=lambda config: config.method)
def test_units_are_copied_and_pickled(config):
    config, points = config.replace(attn_matrices=("k",)), model()
    build = built(config, points)
    state = state_of(points[2], dtype=torch.float32)
    for other in (copy.deepcopy(build), pickle.loads(pickle.dumps(build))):
        assert torch.equal(other.units[points[2].name](state).y, build.units[points[2].name](state).y)
    compiled = torch.compile(build.units[points[2].name], fullgraph=True, backend="eager")
    assert torch.equal(compiled(state).y, build.units[points[2].name](state).y)
