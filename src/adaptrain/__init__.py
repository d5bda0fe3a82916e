"""Adapters for transformers models: methods, composition, training and evaluation.

Names are imported when they are first used, so that `adaptrain --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from adaptrain.version import __version__

_WHERE = {
    "AdaptedModel": "model",
    "AdapterConfig": "methods",
    "AdapterFusionConfig": "methods",
    "AdapterPlusConfig": "methods",
    "AdapterSetup": "context",
    "AutoAdapterModel": "auto",
    "Average": "composition",
    "BatchSplit": "composition",
    "BnConfig": "methods",
    "CompacterConfig": "methods",
    "CompacterPlusPlusConfig": "methods",
    "ConfigUnion": "methods",
    "DiReftConfig": "methods",
    "DoRAConfig": "methods",
    "DoubleSeqBnConfig": "methods",
    "DoubleSeqBnInvConfig": "methods",
    "DvoRAConfig": "methods",
    "DynamicAdapterFusionConfig": "methods",
    "FullConfig": "methods",
    "Fuse": "composition",
    "HoulsbyConfig": "methods",
    "IA3Config": "methods",
    "LoRAConfig": "methods",
    "LoReftConfig": "methods",
    "MAMConfig": "methods",
    "MTLLoRAConfig": "methods",
    "MethodConfig": "methods",
    "MultiTask": "composition",
    "NoReftConfig": "methods",
    "NoneConfig": "methods",
    "ParBnConfig": "methods",
    "Parallel": "composition",
    "ParallelConfig": "methods",
    "PfeifferConfig": "methods",
    "PrefixTuningConfig": "methods",
    "PromptTuningConfig": "methods",
    "ReftConfig": "methods",
    "SeqBnConfig": "methods",
    "SeqBnInvConfig": "methods",
    "Split": "composition",
    "Stack": "composition",
    "StaticAdapterFusionConfig": "methods",
    "UniPELTConfig": "methods",
    "VeraConfig": "methods",
    "init": "model",
}

__all__ = ["__version__", *_WHERE]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _WHERE and name.endswith("AdapterModel"):  # of one model type: BertAdapterModel
        return importlib.import_module("adaptrain.auto").class_for(name)
    if name not in _WHERE:
        raise AttributeError(f"module 'adaptrain' has no attribute '{name}'")
    return getattr(importlib.import_module(f"adaptrain.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from adaptrain.auto import AutoAdapterModel as AutoAdapterModel
    from adaptrain.composition import Average as Average
    from adaptrain.composition import BatchSplit as BatchSplit
    from adaptrain.composition import Fuse as Fuse
    from adaptrain.composition import MultiTask as MultiTask
    from adaptrain.composition import Parallel as Parallel
    from adaptrain.composition import Split as Split
    from adaptrain.composition import Stack as Stack
    from adaptrain.context import AdapterSetup as AdapterSetup
    from adaptrain.methods import AdapterConfig as AdapterConfig
    from adaptrain.methods import AdapterFusionConfig as AdapterFusionConfig
    from adaptrain.methods import AdapterPlusConfig as AdapterPlusConfig
    from adaptrain.methods import BnConfig as BnConfig
    from adaptrain.methods import CompacterConfig as CompacterConfig
    from adaptrain.methods import CompacterPlusPlusConfig as CompacterPlusPlusConfig
    from adaptrain.methods import ConfigUnion as ConfigUnion
    from adaptrain.methods import DiReftConfig as DiReftConfig
    from adaptrain.methods import DoRAConfig as DoRAConfig
    from adaptrain.methods import DoubleSeqBnConfig as DoubleSeqBnConfig
    from adaptrain.methods import DoubleSeqBnInvConfig as DoubleSeqBnInvConfig
    from adaptrain.methods import DvoRAConfig as DvoRAConfig
    from adaptrain.methods import DynamicAdapterFusionConfig as DynamicAdapterFusionConfig
    from adaptrain.methods import FullConfig as FullConfig
    from adaptrain.methods import HoulsbyConfig as HoulsbyConfig
    from adaptrain.methods import IA3Config as IA3Config
    from adaptrain.methods import LoRAConfig as LoRAConfig
    from adaptrain.methods import LoReftConfig as LoReftConfig
    from adaptrain.methods import MAMConfig as MAMConfig
    from adaptrain.methods import MethodConfig as MethodConfig
    from adaptrain.methods import MTLLoRAConfig as MTLLoRAConfig
    from adaptrain.methods import NoneConfig as NoneConfig
    from adaptrain.methods import NoReftConfig as NoReftConfig
    from adaptrain.methods import ParallelConfig as ParallelConfig
    from adaptrain.methods import ParBnConfig as ParBnConfig
    from adaptrain.methods import PfeifferConfig as PfeifferConfig
    from adaptrain.methods import PrefixTuningConfig as PrefixTuningConfig
    from adaptrain.methods import PromptTuningConfig as PromptTuningConfig
    from adaptrain.methods import ReftConfig as ReftConfig
    from adaptrain.methods import SeqBnConfig as SeqBnConfig
    from adaptrain.methods import SeqBnInvConfig as SeqBnInvConfig
    from adaptrain.methods import StaticAdapterFusionConfig as StaticAdapterFusionConfig
    from adaptrain.methods import UniPELTConfig as UniPELTConfig
    from adaptrain.methods import VeraConfig as VeraConfig
    from adaptrain.model import AdaptedModel as AdaptedModel
    from adaptrain.model import init as init
