"""Which adapters and heads can be made into one: what their configs may differ in, and every refusal by name."""

from __future__ import annotations

import math

import pytest
import torch

from adaptrain.averaging import average
from adaptrain.errors import AdapterNameError, CheckpointError, ConfigError, UnsupportedError
from adaptrain.methods import (
    CompacterConfig,
    ConfigUnion,
    DoRAConfig,
    FullConfig,
    IA3Config,
    LoRAConfig,
    NoneConfig,
    PromptTuningConfig,
    VeraConfig,
)
from adaptrain.mixture import Mixture
from adaptrain.sources import Source
from matrix import METHODS, gap
from several_adapters import model_with, said_with, tensors


def snapshot(model):
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    return model.adapter_names(), str(model.active_adapters), model.active_head, sorted(model.heads), state


def assert_untouched(model, before):
    after = snapshot(model)
    assert before[:-1] == after[:-1]
    assert before[-1].keys() == after[-1].keys()
    assert all(torch.equal(before[-1][key], after[-1][key]) for key in before[-1])


# What keys may differ


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (METHODS["lora"], {"dropout": 0.3, "init_weights": "bert", "init_weights_seed": 5, "lora_plus_ratio": 16.0}),
        (METHODS["vera"], {"vera_d": 0.5, "vera_b": 0.1}),
        (METHODS["seq_bn"], {"init_weights": "mam_adapter", "stochastic_depth": 0.2, "dropout": 0.1}),
        (METHODS["compacter"], {"phm_init_range": 0.5, "hypercomplex_nonlinearity": "normal"}),
        (METHODS["prompt_tuning"], {"random_uniform_scale": 0.1}),
        (ConfigUnion(METHODS["lora"], METHODS["seq_bn"]), None),
    ],
)
def test_keys_of_training_may_differ_because_the_tensors_say_the_same(config, changes):
    if changes is None:
        other = ConfigUnion(METHODS["lora"].replace(dropout=0.2), METHODS["seq_bn"].replace(init_weights="houlsby"))
    else:
        other = config.replace(**changes)
    model = model_with(a=config, b=other)
    model.get_adapter("b").load_tensors(tensors(model, "a"))
    assert gap(said_with(model, "a"), said_with(model, "b")) == 0
    model.average_adapter("m", ["a", "b"])
    assert model.get_adapter("m").config == config  # the first one's
    assert gap(said_with(model, "a"), said_with(model, "m")) == 0


# Refusals


FROZEN = CompacterConfig(reduction_factor=4, phm_dim=2, learn_phm=False)
CONFIGS = {
    "lora": METHODS["lora"],
    "lora8": LoRAConfig(r=8, alpha=2),
    "pissa": LoRAConfig(r=3, alpha=5, init_weights="pissa"),
    "gated": LoRAConfig(r=3, alpha=5, use_gating=True),
    "dora": DoRAConfig(r=3, alpha=5),
    "vera": VeraConfig(r=4),
    "vera7": VeraConfig(r=4, vera_seed=7),
    "mtl": METHODS["mtl_lora"],
    "ia3": IA3Config(),
    "seq_bn": METHODS["seq_bn"],
    "gated_bn": METHODS["bn-gated"],
    "frozen": FROZEN,
    "frozen2": FROZEN.replace(phm_c_init="uniform"),
    "loreft": METHODS["loreft"],
    "prefix": METHODS["prefix_tuning"],
    "prompt": PromptTuningConfig(prompt_length=2),
    "union": ConfigUnion(METHODS["lora"], METHODS["seq_bn"]),
    "union8": ConfigUnion(METHODS["lora"].replace(alpha=1), METHODS["seq_bn"]),
    "none": NoneConfig(),
    "full": FullConfig(),
}
NEGATE, SVD = {"combine_strategy": "lora_linear_only_negate_b"}, {"combine_strategy": "lora_delta_w_svd", "svd_rank": 2}
TIES, DARE = {"combine_strategy": "ties", "density": 0.5}, {"combine_strategy": "dare", "density": 0.5}


@pytest.fixture(scope="module")
def many():
    model = model_with(**CONFIGS)
    model.add_classification_head("two", num_labels=2, layers=1)
    model.add_classification_head("also", num_labels=2, layers=1, dropout=0.5)
    model.add_classification_head("three", num_labels=3, layers=1)
    return model


@pytest.mark.parametrize(
    ("names", "options", "error", "says"),
    [
        # names
        (["lora", "lorra"], {}, AdapterNameError, "There is no adapter 'lorra', did you mean 'lora'?"),
        ("lora", {}, ConfigError, "'lora' is one name; give a list"),
        ([], {}, ConfigError, "nothing to average"),
        # options
        (["lora"], {"combine_strategy": "tis"}, ConfigError, "no combine_strategy 'tis', did you mean 'ties'?"),
        (["lora", "lora"], {"weights": [1]}, ConfigError, "1 weights for 2: lora, lora"),
        (["lora", "lora"], {"weights": [1, -1]}, ConfigError, "1, -1 sum to 0.*normalize_weights=False"),
        (["lora"] * 3, {"weights": [0.1, 0.2, -0.3]}, ConfigError, "sum to 0"),
        (["lora"], {"weights": [math.nan]}, ConfigError, "A weight is nan"),
        (["lora"], {"weights": ["1"]}, ConfigError, "A weight is '1'"),
        ({"lora": True}, {}, ConfigError, "A weight is True"),
        ({"lora": 1}, {"weights": [1]}, ConfigError, "given twice"),
        (["lora"], {"combine_strategy": "lora_delta_w_svd"}, ConfigError, "svd_rank is missing"),
        (["lora"], SVD | {"svd_rank": 0}, ConfigError, "svd_rank is 0; it must be a whole number from 1 up"),
        (["lora"], SVD | {"svd_rank": 2.0}, ConfigError, "svd_rank is 2.0"),
        (["lora"], SVD | {"svd_rank": 33}, ConfigError, r"svd_rank is 33, but the map at encoder\.0.* is 32 × 32"),
        (["lora"], {"svd_rank": 2}, ConfigError, "svd_rank is for .*; leave it out with linear"),
        (["lora"], {"combine_strategy": "ties"}, ConfigError, "density is missing"),
        (["lora"], TIES | {"density": 0}, ConfigError, r"density is 0; it must lie in \(0, 1\]"),
        (["lora"], DARE | {"density": 1.5}, ConfigError, "density is 1.5"),
        (["lora"], {"density": 0.5}, ConfigError, "density is for ties, dare; leave it out with linear"),
        (["lora"], TIES | {"seed": 1}, ConfigError, "seed is for dare; leave it out with ties, which draws nothing"),
        (["lora"], DARE | {"seed": "x"}, ConfigError, "seed is 'x'"),
        # configs
        (["lora", "seq_bn"], {}, UnsupportedError, "'lora' and 'seq_bn' are of different methods, lora and bottleneck"),
        (["lora", "union"], {}, UnsupportedError, r"different methods, lora and lora \| bottleneck"),
        (
            ["lora", "lora8"],
            {},
            UnsupportedError,
            r"differ in alpha \(5 and 2\), r \(3 and 8\).*lora_delta_w_svd takes",
        ),
        (["lora", "pissa"], {}, UnsupportedError, r"differ in init_weights"),
        (["union", "union8"], {}, UnsupportedError, r"differ in lora: alpha \(5 and 1\)"),
        (["vera", "vera7"], {}, UnsupportedError, r"differ in vera_seed \(0 and 7\)"),
        (["frozen", "frozen2"], {}, UnsupportedError, r"differ in phm_c_init \(normal and uniform\)"),
        (["full"], {}, UnsupportedError, "'full' .* is the base model itself.*`adaptrain average`"),
        # methods
        *[
            (["lora", name], options, UnsupportedError, says)
            for options in (NEGATE, SVD, TIES | {"svd_rank": 2})
            for name, says in {
                "gated": r"for LoRA's update B A; 'gated' \(lora\) has gates",
                "dora": r"'dora' \(dora\) has magnitudes",
                "vera": r"'vera' \(vera\) trains vectors",
                "mtl": r"'mtl' \(mtl_lora\) has matrices of its task",
                "ia3": r"'ia3' \(ia3\) has none",
                "seq_bn": r"'seq_bn' \(bottleneck\) has none",
                "union": r"'union' \(union\) has other methods beside",
            }.items()
        ],
        (["pissa"], NEGATE, UnsupportedError, "whose B is counted from where it started"),
        *[
            ([name], options, UnsupportedError, f"takes numbers out of '{name}'.*{says}.*use linear")
            for options in (TIES, DARE)
            for name, says in {
                "pissa": "far from where it started, give svd_rank",
                "gated": "a zero opens half",
                "gated_bn": "a zero opens half",
                "dora": "magnitudes",
                "mtl": "matrices of its task",
                "loreft": "rows orthonormal",
                "prefix": "none that add",
                "prompt": "none that add",
                "none": "none that add",
            }.items()
        ],
    ],
)
def test_refusals_leave_the_model_as_it_was(many, names, options, error, says):
    before = snapshot(many)
    with pytest.raises(error, match=says):
        many.average_adapter("m", names, **options)
    assert_untouched(many, before)


def test_every_wrong_option_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        Mixture(svd_rank=2, density=0.5, seed=4)
    assert len(caught.value.problems) == 3


def test_names_that_are_taken_or_cannot_be(many):
    before = snapshot(many)
    with pytest.raises(AdapterNameError, match="There is an adapter 'ia3' already"):
        many.average_adapter("ia3", ["lora"])
    with pytest.raises(AdapterNameError, match="cannot name an adapter"):
        many.average_adapter("a(b", ["lora"])
    with pytest.raises(AdapterNameError, match="There is a head 'two' already"):
        many.average_head("two", ["also"])
    assert_untouched(many, before)


def test_merged_adapters_are_refused():
    model = model_with(a=METHODS["lora"], b=METHODS["lora"])
    model.merge_adapter("a")
    with pytest.raises(AdapterNameError, match="'a' is merged into the base model; call reset_adapter"):
        model.average_adapter("m", ["a", "b"])
    with pytest.raises(AdapterNameError, match="'a' is merged"):
        model.average_adapter("a", ["b"], overwrite_ok=True)
    assert model.adapter_names() == ["a", "b"]


def test_numbers_that_are_not_finite_are_refused():
    model = model_with(a=METHODS["lora"], b=METHODS["lora"])
    with torch.no_grad():
        next(model.get_adapter("b").parameters())[0, 0] = math.inf
    for options in ({}, SVD, TIES):
        with pytest.raises(CheckpointError, match="of b holds numbers that are not finite"):
            model.average_adapter("m", ["a", "b"], **options)


def test_tensors_of_another_model_are_refused():
    one, other = LoRAConfig(r=2), LoRAConfig(r=3)
    a = {"x.lora.A": torch.randn(2, 8), "x.lora.B": torch.randn(6, 2)}
    wider = {"x.lora.A": torch.randn(3, 9), "x.lora.B": torch.randn(6, 3)}
    with pytest.raises(CheckpointError, match=r"not made for one model: x\.lora\.A$"):
        average([Source("a", one, a), Source("b", other, wider)], Mixture(strategy="lora_delta_w_svd", svd_rank=1))
    with pytest.raises(CheckpointError, match=r"x\.lora\.A, x\.lora\.B"):
        average([Source("a", one, a), Source("b", one, wider)], Mixture())
    with pytest.raises(CheckpointError, match=r"y\.lora\.A"):
        average([Source("a", one, a), Source("b", one, a | {"y.lora.A": a["x.lora.A"]})], Mixture())


def test_pissa_without_the_base_model_is_refused():
    held = {"x.lora.A": torch.randn(2, 8), "x.lora.B": torch.randn(6, 2)}
    source = Source("a", LoRAConfig(r=2, init_weights="pissa"), held)
    with pytest.raises(UnsupportedError, match="load it onto its base model"):
        average([source], Mixture(strategy="lora_delta_w_svd", svd_rank=1))


# Heads


def test_heads_that_do_not_fit_are_refused(many):
    before = snapshot(many)
    with pytest.raises(UnsupportedError, match=r"The heads 'two' and 'three' differ in num_labels \(2 and 3\)"):
        many.average_head("m", ["two", "three"])
    with pytest.raises(AdapterNameError, match="no head 'too', did you mean 'two'"):
        many.average_head("m", ["two", "too"])
    with pytest.raises(ConfigError, match="sum to 0"):
        many.average_head("m", ["two", "also"], [1, -1])
    assert_untouched(many, before)
    many.average_head("m", ["two", "also"])  # dropout is training's
    many.delete_head("m")
