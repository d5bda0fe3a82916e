"""Adapter methods: mathematics on states; they know no model. Importing this package registers them all."""

from adaptrain.methods import baselines, bottleneck, lora, prefix, prompt, reft, union
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
from adaptrain.methods.bottleneck import BnConfig
from adaptrain.methods.bottleneck_presets import (
    AdapterPlusConfig,
    CompacterConfig,
    CompacterPlusPlusConfig,
    DoubleSeqBnConfig,
    DoubleSeqBnInvConfig,
    ParBnConfig,
    SeqBnConfig,
    SeqBnInvConfig,
)
from adaptrain.methods.fusion import (
    AdapterFusionConfig,
    DynamicAdapterFusionConfig,
    StaticAdapterFusionConfig,
    read_fusion,
)
from adaptrain.methods.lora import DoRAConfig, DvoRAConfig, IA3Config, LoRAConfig, MTLLoRAConfig, VeraConfig
from adaptrain.methods.prefix import PrefixTuningConfig
from adaptrain.methods.prompt import PromptTuningConfig
from adaptrain.methods.reft import DiReftConfig, LoReftConfig, NoReftConfig, ReftConfig
from adaptrain.methods.strings import config_from_string, read_config
from adaptrain.methods.union import ConfigUnion, MAMConfig, UniPELTConfig

AdapterConfig, ParallelConfig = BnConfig, ParBnConfig
"""Names of adapter-transformers v3, and below those of v2."""
PfeifferConfig, HoulsbyConfig = SeqBnConfig, DoubleSeqBnConfig

__all__ = [
    "AdapterConfig",
    "AdapterFusionConfig",
    "AdapterPlusConfig",
    "BnConfig",
    "Build",
    "CompacterConfig",
    "CompacterPlusPlusConfig",
    "ConfigUnion",
    "DiReftConfig",
    "DoRAConfig",
    "DoubleSeqBnConfig",
    "DoubleSeqBnInvConfig",
    "DvoRAConfig",
    "DynamicAdapterFusionConfig",
    "FullConfig",
    "HoulsbyConfig",
    "IA3Config",
    "LoRAConfig",
    "LoReftConfig",
    "MAMConfig",
    "MTLLoRAConfig",
    "MethodConfig",
    "NoReftConfig",
    "NoneConfig",
    "ParBnConfig",
    "ParallelConfig",
    "PfeifferConfig",
    "PointLike",
    "PrefixTuningConfig",
    "PromptTuningConfig",
    "ReftConfig",
    "SeqBnConfig",
    "SeqBnInvConfig",
    "Shared",
    "StaticAdapterFusionConfig",
    "UniPELTConfig",
    "Unit",
    "VeraConfig",
    "baselines",
    "bottleneck",
    "config_class",
    "config_from_dict",
    "config_from_string",
    "lora",
    "methods",
    "prefix",
    "presets",
    "prompt",
    "read_config",
    "read_fusion",
    "reft",
    "register_method",
    "register_preset",
    "union",
]
