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
    "AdapterSetup": "context",
    "AutoAdapterModel": "auto",
    "Average": "composition",
    "BatchSplit": "composition",
    "BnConfig": "methods",
    "DoubleSeqBnConfig": "methods",
    "FullConfig": "methods",
    "Fuse": "composition",
    "HoulsbyConfig": "methods",
    "LoRAConfig": "methods",
    "MethodConfig": "methods",
    "NoneConfig": "methods",
    "ParBnConfig": "methods",
    "Parallel": "composition",
    "ParallelConfig": "methods",
    "PfeifferConfig": "methods",
    "PrefixTuningConfig": "methods",
    "SeqBnConfig": "methods",
    "Split": "composition",
    "Stack": "composition",
    "init": "model",
}

__all__ = ["__version__", *_WHERE]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
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
    from adaptrain.composition import Parallel as Parallel
    from adaptrain.composition import Split as Split
    from adaptrain.composition import Stack as Stack
    from adaptrain.context import AdapterSetup as AdapterSetup
    from adaptrain.methods import AdapterConfig as AdapterConfig
    from adaptrain.methods import BnConfig as BnConfig
    from adaptrain.methods import DoubleSeqBnConfig as DoubleSeqBnConfig
    from adaptrain.methods import FullConfig as FullConfig
    from adaptrain.methods import HoulsbyConfig as HoulsbyConfig
    from adaptrain.methods import LoRAConfig as LoRAConfig
    from adaptrain.methods import MethodConfig as MethodConfig
    from adaptrain.methods import NoneConfig as NoneConfig
    from adaptrain.methods import ParallelConfig as ParallelConfig
    from adaptrain.methods import ParBnConfig as ParBnConfig
    from adaptrain.methods import PfeifferConfig as PfeifferConfig
    from adaptrain.methods import PrefixTuningConfig as PrefixTuningConfig
    from adaptrain.methods import SeqBnConfig as SeqBnConfig
    from adaptrain.model import AdaptedModel as AdaptedModel
    from adaptrain.model import init as init
