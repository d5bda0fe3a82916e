"""Configs: round trips, refusals with the nearest name, config strings and presets."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math

import pytest

import adaptrain
from adaptrain.errors import CheckpointError, ConfigError
from adaptrain.methods import (
    BnConfig,
    DoubleSeqBnConfig,
    FullConfig,
    LoRAConfig,
    MethodConfig,
    NoneConfig,
    ParBnConfig,
    PrefixTuningConfig,
    SeqBnConfig,
    config_from_dict,
    config_from_string,
    methods,
    presets,
    read_config,
)
from adaptrain.methods.strings import OLD_NAMES, method_of
from matrix import METHODS

# ---- round trips


@pytest.mark.parametrize(
    "config",
    [
        config
        for config in [*METHODS.values(), *(make() for make in presets().values())]
        if config.method != "union"  # tests/test_methods_union.py
    ],
    ids=lambda c: c.method,
)
def test_every_field_survives_json(config):
    values = json.loads(json.dumps(config.to_dict()))
    assert set(values) == {"method", *(field.name for field in dataclasses.fields(config))}
    read = config_from_dict(values)
    assert read.method == config.method
    assert {key: getattr(read, key) for key in read.fields()} == {key: getattr(config, key) for key in config.fields()}
    assert read.to_dict() == config.to_dict()
    assert read == config


def test_configs_cannot_be_changed_but_replaced():
    config = LoRAConfig(r=4, alpha=9)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.r = 8  # type: ignore[misc]
    assert config.replace(r=16) == LoRAConfig(r=16, alpha=9)
    assert config == LoRAConfig(r=4, alpha=9) != LoRAConfig(r=4, alpha=8)
    with pytest.raises(ConfigError, match="LoRAConfig.*'ranks'"):
        config.replace(ranks=3)
    with pytest.raises(ConfigError, match="r is 0; a rank is at least 1"):
        config.replace(r=0)


def test_a_written_config_is_not_part_of_the_config():
    config = SeqBnConfig(reduction_factor={"default": 4})
    config.to_dict()["reduction_factor"]["default"] = 99
    assert config.reduction_factor == {"default": 4}


# ---- refusals


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, ["needs `method:`", "bottleneck, dora, dvora, full, ia3, lora, mtl_lora, none, prefix_tuning"]),
        ({"method": "lorra"}, ["'lorra', did you mean 'lora'?", "bottleneck, dora, dvora, full, ia3, lora"]),
        ({"method": "lora", "alpah": 3}, ["LoRAConfig", "'alpah', did you mean 'alpha'?", "dropout"]),
        ({"method": "lora", "rr": 1, "leave_aut": [1]}, ["'rr', did you mean 'r'?", "did you mean 'leave_out'?"]),
        ({"method": "full", "lr": 1}, ["FullConfig", "'lr'"]),
    ],
    ids=str,
)
def test_unknown_names_are_refused_with_the_nearest(given, said):
    with pytest.raises(ConfigError) as caught:
        config_from_dict(given)
    assert all(part in str(caught.value) for part in said)


BN = {"mh_adapter": False, "output_adapter": True, "reduction_factor": 4, "non_linearity": "relu"}


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (LoRAConfig, {"r": "8"}, "r is '8'; it must be a whole number or a mapping"),
        (LoRAConfig, {"r": True}, "r is True; it must be a whole number"),
        (LoRAConfig, {"r": 8.0}, "r is 8.0; it must be a whole number"),
        (LoRAConfig, {"alpha": None}, "alpha is None; it must be a finite number"),
        (LoRAConfig, {"alpha": False}, "alpha is False; it must be a finite number"),
        (LoRAConfig, {"selfattn_lora": 1}, "selfattn_lora is 1; it must be true or false"),
        (LoRAConfig, {"attn_matrices": "qv"}, "attn_matrices is 'qv'; it must be a list .each item one of q, k, v"),
        (LoRAConfig, {"attn_matrices": ("q", "x")}, "attn_matrices is .*'x'.*one of q, k, v, o"),
        (LoRAConfig, {"init_weights": "Lora"}, "init_weights is 'Lora'; it must be one of lora, bert"),
        (LoRAConfig, {"leave_out": (1.5,)}, "leave_out is .*a list .each item a whole number"),
        (
            BnConfig,
            BN | {"scaling": "lerned"},
            "scaling is 'lerned'; it must be .* or one of learned, channel",
        ),
        (
            BnConfig,
            BN | {"residual_before_ln": "post"},
            "residual_before_ln is 'post'.*true or false or post_add",
        ),
        (
            BnConfig,
            BN | {"reduction_factor": {0: 4}},
            "reduction_factor is {0: 4}; it must be .* or a mapping",
        ),
        (PrefixTuningConfig, {"flat": "yes"}, "flat is 'yes'; it must be true or false"),
        (PrefixTuningConfig, {"non_linearity": 3}, "non_linearity is 3; it must be a string"),
    ],
    ids=str,
)
def test_wrong_types_are_refused(kind, values, said):
    with pytest.raises(ConfigError, match=f"{kind.__name__}: {said}"):
        kind(**values)


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (
            LoRAConfig,
            {"r": 0, "alpha": 0, "dropout": 1, "selfattn_lora": False},
            ["r is 0; a rank", "alpha is 0; it must be positive", "dropout is 1; it must lie in", "nothing would be"],
        ),
        (LoRAConfig, {"attn_matrices": ()}, ["attn_matrices is empty although selfattn_lora is true"]),
        (LoRAConfig, {"dropout": -0.1, "r": -3}, ["r is -3", "dropout is -0.1"]),
        (
            PrefixTuningConfig,
            {"prefix_length": 0, "bottleneck_size": -1, "dropout": 1.0, "non_linearity": "tahn"},
            ["prefix_length is 0", "bottleneck_size is -1", "dropout is 1.0", "did you mean 'tanh'"],
        ),
        (
            BnConfig,
            BN
            | {"output_adapter": False, "reduction_factor": -1, "non_linearity": "relo", "dropout": 2}
            | {"residual_before_ln": "post_add", "adapter_residual_before_ln": True},
            [
                "mh_adapter, output_adapter and cross_adapter are all false",
                "reduction_factor is -1",
                "did you mean 'relu'",
                "residual_before_ln is 'post_add', which needs original_ln_before",
                "dropout is 2",
                "adapter_residual_before_ln needs ln_after",
            ],
        ),
        (
            ParBnConfig,
            {"original_ln_before": True, "stochastic_depth": 0.5},
            [
                "stochastic_depth is for the sequential form",
                "original_ln_before and residual_before_ln are for the seq",
            ],
        ),
        (ParBnConfig, {"residual_before_ln": False}, ["original_ln_before and residual_before_ln are for the seq"]),
        (SeqBnConfig, {"stochastic_depth": 1.0}, ["stochastic_depth is 1.0; it must lie in [0, 1)"]),
        (
            SeqBnConfig,
            {"reduction_factor": {"default": 0, "1": -2, "first": 4}},
            ["of layer default is 0", "of layer 1 is -2", "names the layer 'first'; layers are numbers as words"],
        ),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_impossible_values_are_refused_all_at_once(kind, values, said):
    with pytest.raises(ConfigError) as caught:
        kind(**values)
    assert len(caught.value.problems) == len(said)
    for part, problem in zip(said, caught.value.problems, strict=True):
        assert problem.startswith(f"{kind.__name__}: ")
        assert part in problem


@pytest.mark.parametrize("given", [{"method": "bottleneck"}, {"method": "bottleneck", "mh_adapter": True}], ids=str)
def test_missing_fields_are_refused(given):
    with pytest.raises(ConfigError, match="reduction_factor"):
        config_from_dict(given)


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize(
    ("kind", "key"), [(LoRAConfig, "alpha"), (SeqBnConfig, "reduction_factor"), (ParBnConfig, "scaling")]
)
def test_numbers_are_finite(kind, key, value):
    with pytest.raises(ConfigError, match=key):
        kind(**{key: value})


def test_lists_are_taken_where_the_seeds_write_them():
    assert LoRAConfig(attn_matrices=["q", "k"], leave_out=[0]) == LoRAConfig(attn_matrices=("q", "k"), leave_out=(0,))


def test_what_is_no_config_at_all_is_refused():
    with pytest.raises(ConfigError):
        read_config(42)  # type: ignore[arg-type]


# ---- config strings and presets


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("lora", LoRAConfig()),
        (" lora ", LoRAConfig()),
        ("lora[]", LoRAConfig()),
        ("lora[r=16]", LoRAConfig(r=16)),
        (
            'lora[r=4, alpha=3.5, attn_matrices=["q","k"], leave_out=[1]]',
            LoRAConfig(r=4, alpha=3.5, attn_matrices=("q", "k"), leave_out=(1,)),
        ),
        ("seq_bn", SeqBnConfig()),
        ("seq_bn[reduction_factor={'0': 8, 'default': 4}]", SeqBnConfig(reduction_factor={"0": 8, "default": 4})),
        ("double_seq_bn[non_linearity='gelu']", DoubleSeqBnConfig(non_linearity="gelu")),
        ("par_bn", ParBnConfig()),
        ("scaled_par_bn", ParBnConfig(scaling="learned")),
        ("prefix_tuning[prefix_length=5]", PrefixTuningConfig(prefix_length=5)),
        ("prefix_tuning_flat", PrefixTuningConfig(flat=True)),
        ("prefix_tuning[flat=True]", PrefixTuningConfig(flat=True)),
        ("full", FullConfig()),
        ("none", NoneConfig()),
        ("pfeiffer", SeqBnConfig()),
        ("houlsby[reduction_factor=8]", DoubleSeqBnConfig(reduction_factor=8)),
        ("parallel", ParBnConfig()),
        ("scaled_parallel", ParBnConfig(scaling="learned")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_config_strings(text, config):
    assert config_from_string(text) == read_config(text) == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is not a config string; write name or name"),
        ("lora[r=16", "is not a config string"),
        ("lora r=16", "is not a config string"),
        ("lora[16]", r"Cannot read the options in 'lora\[16\]'"),
        ("lora[r=x]", "Cannot read the options .* with words in quotes"),
        ("lora[r=__import__('os')]", "Cannot read the options"),
        ("lora[rank=3]", "LoRAConfig.*'rank'"),
        ("lora[r=0]", "a rank is at least 1"),
        ("lorra", "'lorra', did you mean 'lora'"),
        ("xyz", "'xyz'.*double_seq_bn.*, dvora, full, ia3, lora,.* none"),
    ],
)
def test_wrong_config_strings_are_refused(text, said):
    with pytest.raises(ConfigError, match=said):
        config_from_string(text)


def test_whatever_add_adapter_is_given():
    config = LoRAConfig(r=2)
    assert read_config(config) is config
    assert read_config(None) == SeqBnConfig()
    assert read_config({"method": "lora", "r": 2, "attn_matrices": ["k"]}) == LoRAConfig(r=2, attn_matrices=("k",))


def test_a_config_is_read_from_json(tmp_path):
    config = LoRAConfig(r=2, attn_matrices=["k"])
    for name, values in {"bare": config.to_dict(), "adapter_config": {"name": "a", "config": config.to_dict()}}.items():
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(values))
        assert read_config(str(file)) == config
    with pytest.raises(CheckpointError, match=r"nowhere\.json"):
        read_config(str(tmp_path / "nowhere.json"))
    with pytest.raises(ConfigError, match="'architecture' is AdapterHub's key"):
        read_config({"architecture": "lora", "r": 8})


def test_the_registry_and_the_presets_are_complete():
    family = {"lora", "dora", "vera", "dvora", "ia3", "mtl_lora"}
    assert set(methods()) == family | {
        *("bottleneck", "prefix_tuning", "prompt_tuning", "reft", "union", "full", "none"),
    }
    assert set(presets()) == family | {
        *("seq_bn", "double_seq_bn", "par_bn", "scaled_par_bn", "seq_bn_inv", "double_seq_bn_inv"),
        *("adapterplus", "compacter", "compacter++", "prefix_tuning", "prefix_tuning_flat", "prompt_tuning"),
        *("loreft", "noreft", "direft", "mam", "unipelt", "pissa", "rslora", "full", "none"),
    }
    assert set(OLD_NAMES.values()) <= set(presets())
    assert [method_of(name) for name in ("seq_bn", "houlsby", "lora", "bottleneck")] == [
        *("bottleneck", "bottleneck", "lora", "bottleneck")
    ]
    for kind in methods().values():
        assert inspect.getdoc(kind)


def test_the_old_class_names_are_the_new_classes():
    assert adaptrain.AdapterConfig is BnConfig
    assert adaptrain.ParallelConfig is ParBnConfig
    assert adaptrain.PfeifferConfig is SeqBnConfig
    assert adaptrain.HoulsbyConfig is DoubleSeqBnConfig


@pytest.mark.parametrize(
    ("config", "defaults"),
    [
        (LoRAConfig(), {"r": 8, "alpha": 8, "dropout": 0.0, "attn_matrices": ("q", "v"), "init_weights": "lora"}),
        (
            SeqBnConfig(),
            {"mh_adapter": False, "output_adapter": True, "reduction_factor": 16, "non_linearity": "relu"}
            | {"original_ln_before": True, "residual_before_ln": True, "init_weights": "bert", "scaling": 1.0},
        ),
        (
            DoubleSeqBnConfig(),
            {"mh_adapter": True, "output_adapter": True, "cross_adapter": False, "reduction_factor": 16}
            | {"non_linearity": "swish", "original_ln_before": False},
        ),
        (
            ParBnConfig(),
            {"mh_adapter": False, "output_adapter": True, "reduction_factor": 2, "non_linearity": "relu"}
            | {"init_weights": "mam_adapter", "is_parallel": True, "scaling": 4.0},
        ),
        (
            PrefixTuningConfig(),
            {"flat": False, "prefix_length": 30, "bottleneck_size": 512, "non_linearity": "tanh", "dropout": 0.0},
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, MethodConfig) else "",
)
def test_defaults_are_the_published_ones(config, defaults):
    assert {key: getattr(config, key) for key in defaults} == defaults
