"""PHM layers against an explicit sum of Kronecker products, for every combination of their options."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

from adaptrain.errors import ConfigError
from adaptrain.methods import BnConfig, CompacterConfig, SeqBnConfig
from adaptrain.methods.bottleneck import Bottleneck
from adaptrain.methods.phm import PHMLinear, SharedPHM
from adaptrain.state import SublayerState
from matrix import adapted, bare, batch, gap, randomise, run

HIDDEN, SIZE = 12, 6
FLAGS = ("shared_phm_rule", "factorized_phm_rule", "shared_W_phm", "factorized_phm_W", "phm_bias", "learn_phm")
COMBINATIONS = [dict(zip(FLAGS, values, strict=True)) for values in itertools.product([True, False], repeat=len(FLAGS))]


def points(count: int = 2):
    return [
        SimpleNamespace(
            kind="sublayer",
            name=f"encoder.{layer}.mlp",
            stack="encoder",
            sublayer="mlp",
            layer=layer,
            hidden_size=HIDDEN,
            causal=False,
        )
        for layer in range(count)
    ]


def config(**options) -> BnConfig:
    given = {"reduction_factor": HIDDEN / SIZE, "phm_layer": True, "phm_dim": 3}
    if options.get("factorized_phm_W", True):
        given["phm_rank"] = 2
    return SeqBnConfig(**given | options)


def built(**options):
    torch.manual_seed(0)
    build = config(**options).build(points())
    for index, module in enumerate([*build.units.values(), *build.shared.values()]):
        randomise(module, 0.4, seed=index)
    return build


def explicit(layer: PHMLinear, shared: SharedPHM | None) -> torch.Tensor:
    """Σᵢ Aᵢ ⊗ Wᵢ, (in, out), from the tensors by name."""
    state = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    if shared is not None:
        common = {**dict(shared.named_parameters()), **dict(shared.named_buffers())}
        state |= {key: value for key, value in common.items() if key.startswith("rule")}
        state |= {k.removeprefix(f"{layer.role}_"): v for k, v in common.items() if k.startswith(f"{layer.role}_")}
    rule = state["rule"] if "rule" in state else state["rule_left"] @ state["rule_right"]
    w = state["weight"] if "weight" in state else state["left"] @ state["right"]
    return sum(torch.kron(a.double(), each.double()) for a, each in zip(rule, w, strict=True))  # type: ignore[return-value]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("options", COMBINATIONS, ids=lambda o: "".join(str(int(v)) for v in o.values()))
def test_a_phm_layer_is_the_sum_of_kronecker_products(options):
    build = built(**options)
    shared = build.shared.get("phm")
    assert (shared is None) == (not options["shared_phm_rule"] and not options["shared_W_phm"])
    x = torch.randn(3, 4, HIDDEN)
    for unit in build.units.values():
        assert isinstance(unit, Bottleneck)
        assert shared is None or isinstance(shared, SharedPHM)
        h = x.double()
        for layer in (unit.down, unit.up):
            assert isinstance(layer, PHMLinear)
            assert gap(layer.matrix().t(), explicit(layer, shared)) < 1e-10
            assert (layer.bias is None) == (not options["phm_bias"])
            h = h @ explicit(layer, shared)
            h = h if layer.bias is None else h + layer.bias.double()
            h = torch.relu(h) if layer is unit.down else h
        state = SublayerState(x, torch.zeros_like(x))
        assert gap(unit(state).h, x + h) < 1e-10


def test_compacter_is_small_and_what_is_shared_is_one_module():
    build = built()
    names = {name for unit in build.units.values() for name, _ in unit.named_parameters()}
    assert names == {"down.left", "down.right", "down.bias", "up.left", "up.right", "up.bias"}
    assert {name for name, _ in build.shared["phm"].named_parameters()} == {"rule"}
    wide = config(shared_W_phm=True).build(points())
    assert {name for name, _ in wide.shared["phm"].named_parameters()} == {
        "rule",
        "down_left",
        "down_right",
        "up_left",
        "up_right",
    }


def test_a_rule_that_is_not_learnt_is_the_same_everywhere_and_in_no_file():
    one, other = (config(learn_phm=False).build(points()).shared["phm"] for _ in range(2))
    assert isinstance(one, SharedPHM)
    assert isinstance(other, SharedPHM)
    assert torch.equal(one.compute()["rule"], other.compute()["rule"])
    assert one.state_dict() == {}
    config_of_two = config(phm_dim=2, learn_phm=False, phm_init_range=1.0)
    rule = SharedPHM(config_of_two, 4, 2).compute()["rule"].flatten()
    assert torch.allclose(rule[:3], torch.tensor([1.5409961, -0.2934289, -2.1787894]), atol=1e-6)  # for ever


@pytest.mark.parametrize("shared", [True, False])
def test_the_start_with_a_zero_last_factor_is_the_identity(shared):
    build = config(init_weights="mam_adapter", shared_W_phm=shared).build(points())
    x = torch.randn(2, 3, HIDDEN)
    for unit in build.units.values():
        assert torch.equal(unit(SublayerState(x, x)).h, x)
    assert config(init_weights="mam_adapter").identity_at_start


@pytest.mark.parametrize(
    ("options", "spread"),
    [
        ({}, 1e-4),
        ({"phm_init_range": 0.3}, 0.3),
        ({"phm_c_init": "uniform"}, 3**-0.5),
        ({"shared_phm_rule": False}, 0.01),
        ({"shared_phm_rule": False, "phm_c_init": "uniform"}, 0.01 * 3**-0.5),
    ],
)
def test_fresh_rules(options, spread):
    torch.manual_seed(0)
    rules = []
    for _ in range(60):
        build = config(**options).build(points(1))
        module = build.shared.get("phm") or next(iter(build.units.values())).down
        rules.append(module.rule)
    values = torch.stack(rules)
    assert values.std().item() == pytest.approx(spread, rel=0.1)
    assert abs(values.mean().item()) < spread / 5


@pytest.mark.parametrize(
    ("kind", "spread"),
    [("glorot-uniform", (2 / 8) ** 0.5), ("glorot-normal", (2 / 8) ** 0.5), ("normal", 0.02), ("phm", 12**-0.5)],
)
def test_fresh_factors(kind, spread):
    torch.manual_seed(0)
    given = {"phm_dim": 2, "factorized_phm_W": False, "hypercomplex_nonlinearity": kind}
    drawn = [next(iter(config(**given, reduction_factor=6).build(points(1)).units.values())) for _ in range(60)]
    weights = torch.stack([unit.down.weight for unit in drawn])  # (…, 2, 6, 1): fan 6 and 1
    expected = (2 / 7) ** 0.5 if kind.startswith("glorot") else (1 / 6) ** 0.5 / 3**0.5 if kind == "phm" else spread
    assert weights.std().item() == pytest.approx(expected, rel=0.1)
    bounded = weights.abs().max().item() <= 3**0.5 * expected * 1.0001
    assert bounded == (kind in ("glorot-uniform", "phm"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"phm_dim": 5}, r"phm_dim is 5, which does not divide 6; these sizes allow 1, 2, 3, 6"),
        ({"phm_dim": 4}, r"phm_dim is 4, which does not divide 6"),
    ],
)
def test_sizes_that_do_not_divide_are_refused_when_the_model_is_known(options, said):
    with pytest.raises(ConfigError, match=said):
        config(**options).build(points())


def test_one_w_for_layers_of_different_sizes_is_refused():
    with pytest.raises(ConfigError, match="shared_W_phm needs bottlenecks of one size"):
        config(shared_W_phm=True, reduction_factor={"0": 2, "default": 4}).build(points())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"phm_dim": 0}, "phm_dim is 0"),
        ({"phm_rank": 0}, "phm_rank is 0"),
        ({"phm_init_range": 0.0}, "phm_init_range is 0"),
        ({"init_weights": "houlsby"}, "init_weights is 'houlsby', which PHM layers do not have"),
        ({"phm_layer": False}, "phm_dim is for phm_layer"),
        ({"factorized_phm_W": False, "phm_rank": 3}, "phm_rank is for factorized_phm_W"),
        ({"phm_c_init": "uniform", "phm_init_range": 0.1}, "phm_init_range is for a shared rule with"),
        ({"shared_phm_rule": False, "phm_init_range": 0.1}, "phm_init_range is for a shared rule with"),
    ],
)
def test_impossible_values_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        config(**options)


@pytest.mark.parametrize("arch", ["bert", "llama", "bart"])
def test_a_compacter_in_a_model_is_the_bottleneck_with_its_matrices(arch):
    compact, inputs = CompacterConfig(reduction_factor=4, phm_dim=4, phm_rank=2), batch(arch)
    model = adapted(arch, compact)
    plain = adapted(
        arch,
        BnConfig(mh_adapter=True, output_adapter=True, reduction_factor=4, non_linearity="gelu"),
    )
    with torch.no_grad():
        for site, (unit,) in model.get_adapter("a").units.items():
            (other,) = plain.get_adapter("a").units[site]
            for layer, to in ((unit.down, other.down), (unit.up, other.up)):
                to.weight.copy_(layer.matrix())
                to.bias.copy_(layer.bias)
    assert gap(run(model, inputs), run(plain, inputs)) < 1e-10
    assert gap(run(model, inputs), bare(arch, inputs)) > 0.01
