"""What rewrites weights: merging into the base model, ejecting prefixes, sharing between adapters."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from adaptrain.adapter import Adapter
from adaptrain.errors import UnsupportedError
from adaptrain.methods import ConfigUnion, MethodConfig, MTLLoRAConfig, PrefixTuningConfig
from adaptrain.methods.prefix import Prefix, eject
from adaptrain.quantised import dequantise, scheme_of
from adaptrain.sites import Sites

if TYPE_CHECKING:
    from typing_extensions import Self

_SHARED = ("A", "B")
"""What MTL-LoRA's tasks have in common: the projections, not the task's matrix and weights."""


class WithWeights(nn.Module):
    """The part of an adapted model that rewrites weights."""

    base_model: PreTrainedModel
    sites: Sites
    adapters: nn.ModuleDict

    def get_adapter(self, name: str) -> Adapter:
        raise NotImplementedError

    def _put(self, adapter: Adapter) -> None:
        raise NotImplementedError

    @property
    def merged_adapter(self) -> str | None:
        """The adapter that is worked into the base weights."""
        return None if self.sites.merged is None else self.sites.merged.name

    def merge_adapter(self, name: str) -> None:
        """Work an adapter into the base weights, so that it costs nothing to run; no composition is active then.

        LoRA, DoRA, IA³, VeRA and MTL-LoRA can be merged, without gates. Quantised weights are never merged into:
        `dequantize` first.

        Raises:
            AdapterNameError: no such adapter.
            UnsupportedError: it cannot be merged, or another one is; the base model stays as it was.
        """
        adapter = self.get_adapter(name)
        if self.sites.merged is not None:
            raise UnsupportedError(f"'{self.sites.merged.name}' is merged already; call reset_adapter() first")
        if not adapter.units:
            raise UnsupportedError(f"'{name}' ({adapter.config.method}) has nothing to merge")
        self.sites.merge(name)

    def reset_adapter(self) -> None:
        """Take a merged adapter out again: the base weights are what they were, bit for bit, and so is what was
        active."""
        self.sites.unmerge()

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Self:
        """This model with the numbers of its quantised base in float: a copy, with copies of its adapters and heads.

        Adapters can be merged into it. The model itself keeps its quantised base, bit for bit; while both are there,
        both take their memory.

        Raises:
            UnsupportedError: the base is not quantised, a map of it cannot be dequantised, or an adapter is merged.
        """
        if scheme_of(self.base_model) is None:
            raise UnsupportedError("The base model is not quantised; there is nothing to dequantise")
        if self.merged_adapter is not None:
            raise UnsupportedError(f"'{self.merged_adapter}' is merged; call reset_adapter() first")
        twin: Any = copy.deepcopy(self)
        embeddings = twin.active_embeddings
        twin.set_active_embeddings("default")
        active = twin.sites.active
        twin.sites.detach()
        dequantise(twin.base_model, dtype)
        twin.sites = Sites(twin.base_model, twin.sites.architecture)
        for adapter in twin.adapters.values():
            assert isinstance(adapter, Adapter)
            twin.sites.add(adapter.name, adapter.config.method, adapter.units, tuple(adapter.shared.values()))
        twin.sites.active, twin.sites.skipped = active, self.sites.skipped
        twin.set_active_embeddings(embeddings)
        return twin

    def eject_prefix_tuning(self, name: str) -> None:
        """Turn reparameterised prefixes into flat ones with the same outputs; their MLP is gone.

        Raises:
            UnsupportedError: the adapter has no prefix, or it is flat already.
        """
        adapter = self.get_adapter(name)
        prefixes = [config for config in adapter.config.members() if isinstance(config, PrefixTuningConfig)]
        if not prefixes:
            raise UnsupportedError(f"'{name}' is {adapter.config.method}; only prefix tuning can be ejected")
        if all(config.flat for config in prefixes):
            raise UnsupportedError(f"'{name}' is flat already; there is nothing to eject")
        flat = Adapter(name, _flat(adapter.config), self.sites, fresh=False)
        tensors = adapter.tensors()
        ejected = eject({path: part for path, part in adapter.shared.items() if isinstance(part, Prefix)})
        tensors |= {f"{path}.prefix": values for path, values in ejected.items()}
        flat.load_tensors({key: tensors[key] for key in flat.tensors()})
        flat.requires_grad_(any(parameter.requires_grad for parameter in adapter.parameters()))
        self._put(flat)

    def share_parameters(self, adapter_names: Sequence[str]) -> None:
        """Let MTL-LoRA adapters train the same A and B; each keeps its own task matrix and weights. The first one's
        values are taken.

        Raises:
            AdapterNameError: no such adapter.
            UnsupportedError: not MTL-LoRA, or of different configs.
        """
        adapters = [self.get_adapter(name) for name in adapter_names]
        for adapter in adapters:
            if not isinstance(adapter.config, MTLLoRAConfig):
                raise UnsupportedError(f"'{adapter.name}' is {adapter.config.method}; only MTL-LoRA shares parameters")
            if adapter.config != adapters[0].config:
                raise UnsupportedError(
                    f"'{adapter.name}' and '{adapters[0].name}' have different configs; only equal ones can share"
                )
        for adapter in adapters[1:]:
            for site, units in adapter.units.items():
                for unit, first in zip(units, adapters[0].units[site], strict=True):
                    for key in _SHARED:
                        unit.register_parameter(key, first.get_parameter(key))

    def unshare_parameters(self, adapter_name: str) -> None:
        """Give an adapter its own copy of what it shares.

        Raises:
            AdapterNameError: no such adapter.
        """
        for units in self.get_adapter(adapter_name).units.values():
            for unit in units:
                for key in _SHARED:
                    if key in unit._parameters:
                        own = unit.get_parameter(key)
                        copy = torch.nn.Parameter(own.detach().clone(), requires_grad=own.requires_grad)
                        unit.register_parameter(key, copy)


def _flat(config: MethodConfig) -> MethodConfig:
    if isinstance(config, ConfigUnion):
        return ConfigUnion(*map(_flat, config.configs))
    return config.replace(flat=True) if isinstance(config, PrefixTuningConfig) else config
