"""Adapters and heads made into one: every strategy against its formula, in the tensors and in what the model says."""

from __future__ import annotations

import math

import pytest
import torch

from adaptrain.composition import Average
from adaptrain.methods import ConfigUnion, IA3Config, LoRAConfig
from adaptrain.mixture import cut, dare, ties, trimmed
from matrix import METHODS, UNITS, adapted, batch, gap, run, supported
from several_adapters import model_with, said_with, tensors

WIDE = torch.float64


def update(model, name):
    """Unit → s B A in float64."""
    units = {f"{site}": unit for site, few in model.get_adapter(name).units.items() for unit in few}
    return {
        site: unit.scaling * (unit.factors()[1].detach().to(WIDE) @ unit.factors()[0].detach().to(WIDE))
        for site, unit in units.items()
    }


# Linear


@pytest.mark.parametrize("method", UNITS)
def test_linear_is_the_weighted_sum_of_every_tensor(method):
    arch = next(each for each in ("bert", "llama") if supported(each, method))
    model = model_with(arch, a=METHODS[method], b=METHODS[method], c=METHODS[method])
    model.average_adapter("m", ["a", "b", "c"], [-0.2, 0.9, 0.3], normalize_weights=False)
    a, b, c = (tensors(model, name) for name in "abc")
    for key, found in tensors(model, "m").items():
        due = -0.2 * a[key].to(WIDE) + 0.9 * b[key].to(WIDE) + 0.3 * c[key].to(WIDE)
        assert gap(found, due) < 1e-10
    assert model.get_adapter("m").config == METHODS[method]
    before = said_with(model, "m", arch)
    assert before.isfinite().all()
    for name in "abc":
        model.delete_adapter(name)  # what was averaged is no part of the average
    assert torch.equal(said_with(model, "m", arch), before)


@pytest.mark.parametrize("strategy", ["linear", "lora_linear_only_negate_b"])
def test_weights_are_divided_by_their_sum_and_are_equal_by_default(strategy):
    model = model_with(a=METHODS["lora"], b=METHODS["lora"])
    model.average_adapter("equal", ["a", "b"], combine_strategy=strategy)
    model.average_adapter("three", ["a", "b"], [3, 3], combine_strategy=strategy)
    model.average_adapter("mapped", {"b": 0.5, "a": 1.5}, combine_strategy=strategy)
    model.average_adapter("listed", ["a", "b"], [0.75, 0.25], strategy, normalize_weights=False)
    for one, other in (("equal", "three"), ("mapped", "listed")):
        pairs = zip(tensors(model, one).values(), tensors(model, other).values(), strict=True)
        assert all(gap(*pair) < 1e-7 for pair in pairs)
    key = "encoder.0.attention.query.lora.A"
    assert gap(tensors(model, "equal")[key], (tensors(model, "a")[key] + tensors(model, "b")[key]) / 2) < 1e-10


@pytest.mark.parametrize("method", ["lora", "ia3", "prefix_tuning", "unipelt"])
def test_the_average_of_one_adapter_with_itself_is_that_adapter(method):
    model = model_with(a=METHODS[method])
    model.average_adapter("m", ["a", "a", "a"], [0.2, 0.5, 0.3])
    model.average_adapter("first", ["a"])
    assert all(torch.equal(one, tensors(model, "a")[key]) for key, one in tensors(model, "first").items())
    assert gap(said_with(model, "m"), said_with(model, "a")) < 1e-10


@pytest.mark.parametrize("method", ["lora", "seq_bn", "vera", "ia3", "loreft"])
def test_task_arithmetic_a_plus_b_minus_b_is_a(method):
    model = model_with(a=METHODS[method], b=METHODS[method])
    model.average_adapter("sum", ["a", "b"], [1, 1], normalize_weights=False)
    model.average_adapter("back", {"sum": 1, "b": -1}, normalize_weights=False)
    assert all(gap(one, tensors(model, "a")[key]) < 1e-10 for key, one in tensors(model, "back").items())
    assert gap(said_with(model, "back"), said_with(model, "a")) < 1e-10
    assert gap(said_with(model, "sum"), said_with(model, "a")) > 1e-3


def test_linear_of_lora_has_cross_terms_and_the_svd_has_none():
    model = model_with(a=METHODS["lora"], b=METHODS["lora"])
    model.average_adapter("linear", ["a", "b"])
    model.average_adapter("svd", ["a", "b"], combine_strategy="lora_delta_w_svd", svd_rank=6)
    due = said_with(model, Average("a", "b"))
    assert gap(said_with(model, "svd"), due) < 1e-10
    assert gap(said_with(model, "linear"), due) > 1e-2


# LoRA's own


def test_negate_b():
    model = model_with(a=METHODS["lora-everywhere"], b=METHODS["lora-everywhere"])
    model.average_adapter("m", ["a", "b"], [1.0, -0.4], "lora_linear_only_negate_b", normalize_weights=False)
    a, b = tensors(model, "a"), tensors(model, "b")
    for key, found in tensors(model, "m").items():
        sign = 1.0 if key.endswith(".A") else -1.0
        assert gap(found, a[key].to(WIDE) + sign * 0.4 * b[key].to(WIDE)) < 1e-10
    model.average_adapter("minus", ["a"], [-1], "lora_linear_only_negate_b", normalize_weights=False)
    assert all(gap(-one, update(model, "a")[site]) < 1e-10 for site, one in update(model, "minus").items())


SVD_CASES = {
    "ranks and alphas": ("bert", LoRAConfig(r=2, alpha=7), LoRAConfig(r=4, alpha=3), 6),
    "rslora": ("bert", LoRAConfig(r=4, alpha=5, use_rslora=True), LoRAConfig(r=2, alpha=3), 6),
    "rank by layer": ("bert", LoRAConfig(r={"0": 1, "default": 3}, alpha=5), LoRAConfig(r=2, alpha=3, dropout=0.5), 5),
    "more rank than there is": ("bert", LoRAConfig(r=1, alpha=5), LoRAConfig(r=2, alpha=3), 9),
    "fused projections": (
        "gpt2",
        LoRAConfig(r=2, alpha=7, attn_matrices=("q", "k", "v"), output_lora=True),
        LoRAConfig(r=3, alpha=2, attn_matrices=("q", "k", "v"), output_lora=True),
        5,
    ),
    "words": ("bert", METHODS["lora-o-words"], METHODS["lora-o-words"].replace(r=4, alpha=2, use_rslora=False), 7),
    "pissa": ("bert", LoRAConfig(r=2, alpha=3, init_weights="pissa"), LoRAConfig(r=3, alpha=5), 7),
    "pissa first": ("gpt2", LoRAConfig(r=2, alpha=3, init_weights="pissa"), METHODS["pissa"].replace(r=1), 6),
}


@pytest.mark.parametrize("case", SVD_CASES)
def test_svd_of_enough_rank_is_the_weighted_sum_of_the_updates(case):
    arch, one, other, rank = SVD_CASES[case]
    model = model_with(arch, a=one, b=other)
    model.average_adapter("m", ["a", "b"], [3, 1], "lora_delta_w_svd", svd_rank=rank)
    config = model.get_adapter("m").config
    assert isinstance(config, LoRAConfig)
    assert (config.r, config.alpha, config.use_rslora) == (rank, one.alpha, one.use_rslora)
    assert config.init_weights == "lora"
    a, b = update(model, "a"), update(model, "b")
    for site, found in update(model, "m").items():
        assert gap(found, 0.75 * a[site] + 0.25 * b[site]) < 1e-10
    due = said_with(model, Average("a", "b", weights=[0.75, 0.25]), arch)
    assert gap(said_with(model, "m", arch), due) < 1e-10
    assert gap(said_with(model, "a", arch), due) > 1e-2


def test_svd_of_less_rank_is_the_best_approximation():
    model = model_with(a=LoRAConfig(r=3, alpha=5), b=LoRAConfig(r=4, alpha=9))
    model.average_adapter("m", ["a", "b"], [2, -1], "lora_delta_w_svd", normalize_weights=False, svd_rank=2)
    a, b = update(model, "a"), update(model, "b")
    for site, found in update(model, "m").items():
        delta = 2 * a[site] - b[site]
        sigma = torch.linalg.svdvals(delta)
        error = torch.linalg.matrix_norm(found - delta)
        assert abs(error - sigma[2:].norm()) < 1e-4 * error  # Eckart and Young
        assert error > 0.1


def test_doubling_the_rank_does_not_halve_the_effect():
    model = model_with(a=LoRAConfig(r=3, alpha=5))
    for rank in (3, 6, 12):
        model.average_adapter(f"m{rank}", ["a"], None, "lora_delta_w_svd", svd_rank=rank)
        assert gap(said_with(model, f"m{rank}"), said_with(model, "a")) < 1e-10


def test_cut_pads_with_directions_that_can_be_trained():
    b, a = torch.randn(5, 1, dtype=WIDE), torch.randn(1, 4, dtype=WIDE)
    left, right = cut(b, a, 3)
    assert gap(left @ right, b @ a) < 1e-12
    assert gap(right @ right.t(), torch.eye(3, dtype=WIDE)) < 1e-12


# TIES and DARE


def test_ties_by_hand():
    one = torch.tensor([4.0, -3.0, 0.1, 2.0, 0.0], dtype=WIDE)
    other = torch.tensor([-1.0, -5.0, 3.0, 0.2, 0.0], dtype=WIDE)
    # three of five stay: [4, -3, 0, 2, 0] and [-1, -5, 3, 0, 0]
    assert trimmed(one, 0.6).tolist() == [4, -3, 0, 2, 0]
    # mass: [3, -8, 3, 2, 0], so that the first number of `other` is left out
    assert ties([one, other], [0.5, 0.5], 0.6).tolist() == [4, -4, 3, 2, 0]
    assert ties([one, other], [1, 1], 0.6, mean=False).tolist() == [4, -8, 3, 2, 0]
    # weights 3 : 1 make the mean of -3 and -5 -3.5; `other` alone keeps its 3 whatever it weighs
    assert ties([one, other], [0.75, 0.25], 0.6).tolist() == [4, -3.5, 3, 2, 0]
    # taken away: [4, -3, 0, 2, 0] - [-1, -5, 3, 0, 0] has mass [5, 2, -3, 2, 0]
    assert ties([one, other], [1, -1], 0.6, mean=False).tolist() == [5, 5, -3, 2, 0]
    assert ties([one, -one], [0.5, 0.5], 1.0).tolist() == [0, 0, 0, 0, 0]


def test_trimming_keeps_at_least_one_and_at_most_all():
    tensor = torch.tensor([[1.0, -3.0], [2.0, 0.5]])
    assert trimmed(tensor, 1e-9).tolist() == [[0, -3], [0, 0]]
    assert torch.equal(trimmed(tensor, 1.0), tensor)
    assert trimmed(torch.zeros(0), 0.5).numel() == 0


@pytest.mark.parametrize("method", ["lora", "vera", "seq_bn", "ia3", "noreft", "adapterplus", "double_seq_bn_inv-glow"])
def test_ties_of_one_dense_adapter_is_that_adapter(method):
    model = model_with(a=METHODS[method])
    model.average_adapter("m", ["a", "a"], None, "ties", density=1.0)
    assert gap(said_with(model, "m"), said_with(model, "a")) < 1e-10


THIN = {name: METHODS[name] for name in ("lora", "vera", "seq_bn", "par_bn", "noreft", "direft", "phm-own")}
THIN |= {name: METHODS[name] for name in ("ia3", "ia3-everywhere", "adapterplus", "scaled_par_bn", "compacter")}
THIN |= {"glow": METHODS["double_seq_bn_inv-glow"], "union": ConfigUnion(IA3Config(alpha=2), METHODS["seq_bn"])}


@pytest.mark.parametrize("method", THIN)
def test_an_adapter_whose_numbers_are_all_taken_out_changes_nothing(method):
    model = model_with(a=THIN[method])
    model.average_adapter("m", ["a"], None, "dare", density=1e-12)
    assert gap(said_with(model, "m"), said_with(model, None)) < 1e-10
    assert gap(said_with(model, "a"), said_with(model, None)) > 1e-2


def test_ties_on_the_model_is_ties_on_its_tensors():
    model = model_with(a=METHODS["lora"], b=METHODS["lora"])
    model.average_adapter("m", {"a": 1, "b": 3}, combine_strategy="ties", density=0.3)
    a, b = tensors(model, "a"), tensors(model, "b")
    for key, found in tensors(model, "m").items():
        assert gap(found, ties([a[key].to(WIDE), b[key].to(WIDE)], [0.25, 0.75], 0.3)) < 1e-10
    assert gap(said_with(model, "m"), said_with(model, "a")) > 1e-3


@pytest.mark.parametrize("strategy", ["ties", "dare"])
def test_on_updates_of_different_rank(strategy):
    model = model_with(a=LoRAConfig(r=2, alpha=7), b=LoRAConfig(r=3, alpha=2))
    model.average_adapter("m", ["a", "b"], None, strategy, density=0.5, svd_rank=32)
    a, b = update(model, "a"), update(model, "b")
    generator = torch.Generator().manual_seed(0)
    for site in sorted(a):
        pair = [a[site], b[site]]
        due = ties(pair, [0.5, 0.5], 0.5) if strategy == "ties" else dare(pair, [0.5, 0.5], 0.5, generator)
        assert gap(update(model, "m")[site], due) < 1e-10


def test_dare_draws_what_its_seed_says_and_touches_no_other_generator():
    model = model_with(a=METHODS["lora"], b=METHODS["lora"])
    state = torch.get_rng_state()
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        model.average_adapter(name, ["a", "b"], None, "dare", density=0.4, seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    one, again, other = (tensors(model, name) for name in ("one", "again", "other"))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_dare_at_full_density_is_linear():
    model = model_with(a=METHODS["seq_bn"], b=METHODS["seq_bn"])
    model.average_adapter("dare", ["a", "b"], [1, 2], "dare", density=1.0)
    model.average_adapter("linear", ["a", "b"], [1, 2])
    assert all(torch.equal(one, tensors(model, "linear")[key]) for key, one in tensors(model, "dare").items())


def test_dare_keeps_its_share_and_the_mean():
    tensor, generator = torch.full((400, 400), 3.0, dtype=WIDE), torch.Generator().manual_seed(0)
    found = dare([tensor, tensor], [0.5, 1.5], 0.25, generator)
    spread = math.sqrt(0.25 * 0.75 / 160_000)
    assert abs((found == 0).double().mean() - 0.75**2) < 5 * spread
    assert abs(found.mean() / 6 - 1) < 0.02
    assert {round(value, 6) for value in found.unique().tolist()} == {0.0, 6.0, 18.0, 24.0}  # masks of their own


# Around


def test_overwriting_activating_and_training_on():
    model = model_with(a=METHODS["lora"], b=METHODS["lora"])
    due = said_with(model, Average("a", "b"))
    model.average_adapter("a", ["a", "b"], None, "lora_delta_w_svd", overwrite_ok=True, set_active=True, svd_rank=6)
    assert str(model.active_adapters) == "a"
    assert gap(run(model, batch("bert")), due) < 1e-10
    model.train_adapter("a")
    model(**batch("bert")).last_hidden_state.sum().backward()
    assert all(parameter.grad is not None for parameter in model.get_adapter("a").parameters())


def test_saved_and_loaded(tmp_path):
    model = model_with(a=LoRAConfig(r=2, alpha=7), b=LoRAConfig(r=4, alpha=3))
    model.average_adapter("m", ["a", "b"], None, "lora_delta_w_svd", svd_rank=4, set_active=True)
    model.save_adapter(tmp_path / "m", "m")
    twin = adapted("bert")
    twin.load_adapter(tmp_path / "m", set_active=True)
    assert torch.equal(run(twin, batch("bert")), run(model, batch("bert")))


def test_the_first_ones_dtype_is_kept():
    config = LoRAConfig(r=2, alpha=7, dtype="bfloat16")
    model = model_with(a=config, b=config)
    model.average_adapter("m", ["a", "b"], set_active=True)
    assert {tensor.dtype for tensor in tensors(model, "m").values()} == {torch.bfloat16}


# Heads


def test_heads():
    model = model_with()
    for name in ("one", "two"):
        model.add_classification_head(name, num_labels=3, layers=2, dropout=0.1 if name == "one" else 0.0)
        for parameter in model.heads[f"<{name}>"].parameters():
            torch.nn.init.normal_(parameter)
    model.average_head("m", ["one", "two"], [3, 1])
    assert model.active_head == "two"
    one, two, mean = (model.heads[f"<{name}>"].state_dict() for name in ("one", "two", "m"))
    assert all(gap(mean[key], 0.75 * one[key].to(WIDE) + 0.25 * two[key].to(WIDE)) < 1e-10 for key in mean)
    model.average_head("m", {"one": 1, "two": -1}, normalize_weights=False, overwrite_ok=True, set_active=True)
    assert model.active_head == "m"
    assert gap(model.heads["<m>"].state_dict()["out.bias"], one["out.bias"] - two["out.bias"]) < 1e-10
    assert run(model, batch("bert")).shape == (2, 3)
