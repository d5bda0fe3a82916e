"""Adapter methods: mathematics on states; they know no model. Importing this package registers them all."""

from adaptrain.methods import baselines, bottleneck, lora, prefix
from adaptrain.methods.base import (
    Build,
    MethodConfig,
    PointLike,
    Shared,
    Unit,
    config_class,
    config_from_dict,
    methods,
    presets,
    register_method,
    register_preset,
)
from adaptrain.methods.baselines import FullConfig, NoneConfig
from adaptrain.methods.bottleneck import BnConfig, DoubleSeqBnConfig, ParBnConfig, SeqBnConfig
from adaptrain.methods.lora import LoRAConfig
from adaptrain.methods.prefix import PrefixTuningConfig
from adaptrain.methods.strings import config_from_string, read_config

AdapterConfig, ParallelConfig = BnConfig, ParBnConfig
"""Names of adapter-transformers v3, and below those of v2."""
PfeifferConfig, HoulsbyConfig = SeqBnConfig, DoubleSeqBnConfig

__all__ = [
    "AdapterConfig",
    "BnConfig",
    "Build",
    "DoubleSeqBnConfig",
    "FullConfig",
    "HoulsbyConfig",
    "LoRAConfig",
    "MethodConfig",
    "NoneConfig",
    "ParBnConfig",
    "ParallelConfig",
    "PfeifferConfig",
    "PointLike",
    "PrefixTuningConfig",
    "SeqBnConfig",
    "Shared",
    "Unit",
    "baselines",
    "bottleneck",
    "config_class",
    "config_from_dict",
    "config_from_string",
    "lora",
    "methods",
    "prefix",
    "presets",
    "read_config",
    "register_method",
    "register_preset",
]
