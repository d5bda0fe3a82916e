"""The LoRA family's fresh weights, counts and places; presets, and configs that are refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from adaptrain.errors import ConfigError, UnsupportedError
from adaptrain.methods import (
    DoRAConfig,
    DvoRAConfig,
    IA3Config,
    LoRAConfig,
    MTLLoRAConfig,
    VeraConfig,
    config_from_string,
    presets,
)
from adaptrain.methods.vera import Frozen
from fake_points import (
    FakePoint,
    built,
    linear,
    model,
    query,
    seeded,  # noqa: F401 (pytest looks for it here)
    state_of,
)

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
