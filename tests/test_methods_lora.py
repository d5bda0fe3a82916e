"""The LoRA family against closed forms in float64; merging, fresh weights, counts, places, refusals."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptrain.errors import ConfigError, UnsupportedError
from adaptrain.methods import (
    Build,
    DoRAConfig,
    DvoRAConfig,
    IA3Config,
    LoRAConfig,
    MTLLoRAConfig,
    VeraConfig,
    config_from_string,
    presets,
)
from adaptrain.methods.dora import row_norms
from adaptrain.methods.vera import Frozen
from adaptrain.state import ActivationState, ProjectionState


@dataclass(frozen=True)
class FakePoint:
    kind: str
    sublayer: str
    role: str
    in_features: int
    out_features: int
    layer: int = 0
    map: Any = None
    stack: str = "encoder"
    hidden_size: int = 6
    heads: int = 0
    head_dim: int = 0
    encoder_decoder: bool = False
    causal: bool = False

    @property
    def name(self) -> str:
        where = f".{self.layer}" if self.layer >= 0 else ""
        return f"{self.stack}{where}.{self.sublayer}.{self.role or self.kind}"

    def embed(self, text: str) -> Tensor:
        raise NotImplementedError


def linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    return nn.Linear(in_features, out_features, bias).requires_grad_(False)


def query(map_: Any = None, **changes: Any) -> FakePoint:
    map_ = map_ or linear(7, 5)
    return FakePoint(
        "projection", "attention", "query", map_.weight.shape[1], map_.weight.shape[0], map=map_, **changes
    )


def model(layers: int = 1, d: int = 6, ffn: int = 10, vocabulary: int = 20, kv: int | None = None) -> list[FakePoint]:
    """The points of a model with a gated MLP, as the sites number them."""
    points = [FakePoint("projection", "embeddings", "words", vocabulary, d, -1, linear(vocabulary, d, False))]
    sizes = {"query": (d, d), "key": (d, kv or d), "value": (d, kv or d), "output": (d, d)}
    for layer in range(layers):
        points += [FakePoint("projection", "attention", r, *s, layer, linear(*s)) for r, s in sizes.items()]
        for role, size in {"up": (d, ffn), "gate": (d, ffn), "down": (ffn, d)}.items():
            points.append(FakePoint("projection", "mlp", role, *size, layer, linear(*size)))
        points.append(FakePoint("activation", "mlp", "", ffn, ffn, layer, points[-1].map))
        points.append(FakePoint("sublayer", "mlp", "", d, d, layer))
    return points


def built(config: LoRAConfig, points: list[FakePoint]) -> Build:
    chosen = config.choose(points)
    build = config.build(chosen)
    config.start(build, chosen)
    return build


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


def state_of(
    point: FakePoint, rows: int = 3, positions: int = 4, dtype: torch.dtype = torch.float64
) -> ProjectionState:
    x = torch.randn(rows, positions, point.in_features, dtype=dtype)
    mask = torch.arange(positions) < torch.tensor([positions, 2, 1])[:, None]
    return ProjectionState(x, F.linear(x, point.map.weight, point.map.bias), mask, point.map)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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


# ---- fresh weights


def test_fresh_weights():
    point = query(linear(400, 300))
    a = built(LoRAConfig(r=16), [point]).units[point.name].A
    assert a.abs().max() <= 1 / 20 and a.std().item() == pytest.approx(1 / 20 / math.sqrt(3), rel=0.05)
    unit = built(MTLLoRAConfig(r=16, n_up_projection=2), [point]).units[point.name]
    assert unit.A.std().item() == pytest.approx(1 / 20 / math.sqrt(3), rel=0.05)
    assert not unit.B.any() and torch.equal(unit.weights, torch.ones(2)) and torch.equal(unit.values, torch.ones(16))
    config = MTLLoRAConfig(r=4, task_specific_matrix_type="linear", init_weights="bert")
    unit = built(config, [point]).units[point.name]
    assert torch.equal(unit.task, torch.eye(4))
    assert unit.B.std().item() == pytest.approx(0.02, rel=0.1) and unit.A.std().item() == pytest.approx(0.02, rel=0.1)
    unit = built(DoRAConfig(), [point]).units[point.name]
    assert torch.allclose(unit.m, point.map.weight.norm(dim=1))


def test_veras_matrices_are_one_pair_from_a_seed():
    points = model(layers=2, d=16, ffn=40, kv=4)
    config = VeraConfig(r=5, attn_matrices=("q", "k", "v"), intermediate_lora=True, output_lora=True, vera_b=0.5)
    torch.manual_seed(1)
    build = built(config, points)
    (frozen,) = build.shared.values()
    assert not frozen.state_dict() and not list(frozen.parameters())
    assert frozen.A.shape == (5, 40) and frozen.B.shape == (40, 5)
    for drawn in (frozen.A, frozen.B):
        bound = math.sqrt(6 / drawn.shape[1])
        assert 0.9 * bound < drawn.abs().max() <= bound
    for place, unit in build.units.items():
        assert set(unit.state_dict()) == {"d", "b"}
        assert torch.equal(unit.d, torch.full((5,), 0.1)) and torch.equal(unit.b, torch.full_like(unit.b, 0.5))
        state = state_of(next(point for point in points if point.name == place), dtype=torch.float32)
        a, b = frozen.A[:, : state.x.shape[-1]], frozen.B[: state.y.shape[-1]]
        expected = state.y + 8 / 5 * 0.5 * 0.1 * state.x @ a.T @ b.T
        assert torch.allclose(unit(state).y, expected, atol=1e-5)
    torch.manual_seed(2)
    again, other = (built(config.replace(vera_seed=seed), points).shared["frozen"] for seed in (0, 1))
    assert torch.equal(again.A, frozen.A) and torch.equal(again.B, frozen.B)
    assert not torch.equal(other.A, frozen.A)


def test_veras_matrices_are_the_same_numbers_for_ever():
    """No file holds them: another version of torch that drew others would change every VeRA that was ever saved."""
    frozen = Frozen(2, 3, 4, 0)
    expected_a = torch.tensor([[-0.0105880, 0.7586458, -1.1639615], [-1.0407749, -0.5446905, 0.3792318]])
    assert torch.allclose(frozen.A, expected_a, atol=1e-6)
    assert torch.allclose(frozen.B[-1], torch.tensor([-1.6547121, -1.1471063]), atol=1e-6)


# ---- counts


def roberta() -> list[FakePoint]:
    with torch.device("meta"):
        return [replace(point, layer=layer) for layer in range(12) for point in model(1, 768, 3072)[1:]]


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("lora", 294_912),
        ('lora[attn_matrices=["q","k","v"],intermediate_lora=True,output_lora=True]', 1_179_648),
        ("ia3", 55_296),
        ("ia3[as_adapterhub=True]", 55_296),
        ("vera", 18_624),
        ("dora", 313_344),
        ("dvora", 37_056),
        ("mtl_lora", 295_128),
        ("mtl_lora[n_up_projection=3]", 590_088),
        ("lora[r={'0': 4, 'default': 8}]", 294_912 - 4 * 4 * 768),
    ],
)
def test_counts_on_the_geometry_of_roberta_base(preset, count):
    build = built(config_from_string(preset), roberta())  # type: ignore[arg-type]
    modules = [*build.units.values(), *build.shared.values()]
    assert sum(parameter.numel() for module in modules for parameter in module.parameters()) == count
    assert sum(tensor.numel() for module in modules for tensor in module.state_dict().values()) == count


# ---- where


A = [f"encoder.{layer}." for layer in (0, 1)]


@pytest.mark.parametrize(
    ("config", "places"),
    [
        (LoRAConfig(attn_matrices=("o",)), [a + "attention.output" for a in A]),
        (LoRAConfig(selfattn_lora=False, gate_lora=True), [a + "mlp.gate" for a in A]),
        (LoRAConfig(selfattn_lora=False, embeddings_lora=True), ["encoder.embeddings.words"]),
        (
            LoRAConfig(targets=("mlp.down", "embeddings.words"), leave_out=(0,)),
            ["encoder.embeddings.words", A[1] + "mlp.down"],
        ),
        (
            LoRAConfig(targets=("encoder.1.*",), leave_out=(0,)),
            [A[1] + f"attention.{role}" for role in ("query", "key", "value", "output")]
            + [A[1] + f"mlp.{role}" for role in ("up", "gate", "down")],
        ),
        (LoRAConfig(targets=("*.0.attention.[kv]*",)), [A[0] + "attention.key", A[0] + "attention.value"]),
        (
            LoRAConfig(targets=("mlp.?p", "encoder.1.attention.query")),
            [A[0] + "mlp.up", A[1] + "attention.query", A[1] + "mlp.up"],
        ),
        (IA3Config(targets=("mlp.activation", "mlp.down")), [a + n for a in A for n in ("mlp.down", "mlp.activation")]),
        (IA3Config(targets=("encoder.0.mlp.*",)), [A[0] + f"mlp.{role}" for role in ("up", "gate", "down")]),
        (IA3Config(targets=("encoder.0.mlp.activation",)), [A[0] + "mlp.activation"]),
    ],
)
def test_where_units_are(config, places):
    assert [point.name for point in config.choose(model(2))] == places


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (LoRAConfig(targets=("attention.qery",)), "targets names 'attention.qery'.*did you mean 'attention.query'"),
        (LoRAConfig(targets=("query",)), "targets names 'query'.*They are embeddings.words, attention.query"),
        (LoRAConfig(targets=("mlp.up", "decoder.*")), "targets names 'decoder"),
        (LoRAConfig(targets=("mlp.activation",)), "targets names 'mlp.activation'"),
        (IA3Config(targets=("mlp.activatio",)), "did you mean 'mlp.activation'"),
        (LoRAConfig(targets=("embeddings.*",), use_gating=True), "use_gating is True, which the word embedding"),
        (LoRAConfig(targets=("*",), init_weights="pissa"), "init_weights is 'pissa', which the word embedding"),
    ],
)
def test_targets_that_do_not_fit_are_refused(config, said):
    with pytest.raises(ConfigError, match=f"{type(config).__name__}: .*{said}"):
        config.choose(model())


def test_a_rank_for_each_layer():
    units = built(LoRAConfig(r={"1": 2, "default": 5}, alpha=3, embeddings_lora=True), model(2)).units
    assert {place: len(unit.A) for place, unit in units.items() if "value" not in place} == {
        "encoder.embeddings.words": 5,
        "encoder.0.attention.query": 5,
        "encoder.1.attention.query": 2,
    }
    assert units["encoder.0.attention.query"].scaling == 3 / 5
    assert units["encoder.1.attention.query"].scaling == 3 / 2
    with pytest.raises(ConfigError, match="LoRAConfig: r names neither layer 1 nor 'default'"):
        built(LoRAConfig(r={"0": 2}), model(2))
    with pytest.raises(ConfigError, match=r"r names no rank for encoder\.embeddings\.words nor 'default'"):
        built(LoRAConfig(r={"0": 2}, embeddings_lora=True), model())
    with pytest.raises(ConfigError, match=r"r is 7, but encoder\.0\.attention\.query has only 6 singular values"):
        built(LoRAConfig(r=7, init_weights="pissa"), model())


@pytest.mark.parametrize("config", [DoRAConfig(), LoRAConfig(init_weights="pissa", r=2)])
def test_a_quantised_weight_cannot_be_started_from(config):
    class Quantised:
        weight, bias = torch.zeros(5, 7, dtype=torch.uint8), None

    with pytest.raises(UnsupportedError, match=r"weight of encoder\.0\.attention\.query is quantised"):
        config.build([query(Quantised())])


def test_lora_plus():
    config = LoRAConfig(lora_plus_ratio=16)
    rates = [config.rate(f"encoder.0.attention.query.lora.{name}") for name in ("A", "B", "gate.weight")]
    assert rates == [1.0, 16, 1.0]
    assert MTLLoRAConfig(lora_plus_ratio=4).rate("encoder.0.attention.query.mtl_lora.B") == 4
    assert LoRAConfig().rate("encoder.0.attention.query.lora.B") == 1


# ---- configs


def test_presets():
    kinds = {"lora": LoRAConfig, "dora": DoRAConfig, "vera": VeraConfig, "dvora": DvoRAConfig, "ia3": IA3Config}
    for name, kind in (kinds | {"mtl_lora": MTLLoRAConfig}).items():
        assert kind.method == name
        assert presets()[name]() == kind()


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (LoRAConfig, {"r": {"first": 2, "0": 0}}, ["r names the layer 'first'", "r of layer 0 is 0; a rank"]),
        (LoRAConfig, {"alpha": -1, "lora_plus_ratio": 0}, ["alpha is -1", "lora_plus_ratio is 0; it must be positive"]),
        (LoRAConfig, {"composition_mode": "scale", "r": 1}, ["composition_mode is 'scale'.*use the method ia3"]),
        (LoRAConfig, {"init_weights": "ia3"}, ["init_weights 'ia3' is for composition_mode 'scale'"]),
        (LoRAConfig, {"init_weights": "vera"}, ["vera_d is missing", "vera_b is missing"]),
        (LoRAConfig, {"vera_d": 0.1, "vera_seed": 3}, ["vera_d is for init_weights 'vera'", "vera_seed is for"]),
        (VeraConfig, {"lora_plus_ratio": 2}, ["lora_plus_ratio is for a trained B"]),
        (IA3Config, {"lora_plus_ratio": 2}, ["lora_plus_ratio is for a trained B"]),
        (VeraConfig, {"r": {"default": 2}}, ["r is a mapping; VeRA"]),
        (IA3Config, {"r": 2, "dropout": 0.1}, ["r is 2; it must be 1", "dropout is for composition_mode 'add'"]),
        (
            IA3Config,
            {"use_gating": True, "use_dora": True, "use_rslora": True},
            ["use_gating is for", "use_dora is for", "use_rslora is for"],
        ),
        (DoRAConfig, {"use_gating": True}, ["use_gating is for an update that is added"]),
        (DoRAConfig, {"init_weights": "pissa"}, ["init_weights 'pissa' cannot be joined with use_dora"]),
        (LoRAConfig, {"init_weights": "pissa", "use_gating": True}, ["init_weights 'pissa' cannot be joined"]),
        (LoRAConfig, {"init_weights": "pissa", "embeddings_lora": True}, ["embeddings_lora cannot start from"]),
        (LoRAConfig, {"use_gating": True, "embeddings_lora": True}, ["embeddings_lora has words for an input"]),
        (LoRAConfig, {"targets": ()}, ["targets is empty"]),
        (
            LoRAConfig,
            {"targets": ("mlp.up",), "output_lora": True, "attn_matrices": ("k",)},
            ["output_lora is set although targets", "attn_matrices is set although targets"],
        ),
        (IA3Config, {"targets": ("mlp.up",), "intermediate_lora": False}, ["intermediate_lora is set although"]),
        (
            MTLLoRAConfig,
            {"n_up_projection": 0, "weights_sharpness": 0, "init_weights": "pissa"},
            ["n_up_projection is 0", "weights_sharpness is 0", "init_weights is 'pissa'; MTL-LoRA"],
        ),
        (MTLLoRAConfig, {"use_dora": True}, ["composition_mode must be 'add' and use_dora false"]),
        (
            LoRAConfig,
            {"selfattn_lora": False},
            ["selfattn_lora, intermediate_lora, output_lora, gate_lora and embeddings_lora are all false"],
        ),
    ],
)
def test_impossible_values_are_refused(kind, values, said):
    with pytest.raises(ConfigError) as caught:
        kind(**values)
    problems = sorted(caught.value.problems)
    assert len(problems) == len(said), problems
    for part in said:
        with pytest.raises(ConfigError, match=f"(?m)^{kind.__name__}: {part}"):
            raise caught.value
