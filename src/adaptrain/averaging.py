"""Adapters and heads made into one, by the formulas of `adaptrain.mixture`: in a model, or from what files hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaptrain.adapter import Adapter, check_name, key_of
from adaptrain.errors import AdapterNameError, CheckpointError, ConfigError, UnsupportedError
from adaptrain.heads import Head, head_from_dict
from adaptrain.methods import LoRAConfig, MethodConfig, NoneConfig
from adaptrain.methods.low_rank import PiSSA
from adaptrain.mixture import NEGATE_B, SPARSE, UPDATE, Mix, Mixture, cut, mixer, weighted_sum
from adaptrain.sites import Sites
from adaptrain.sources import Source, check_method, check_same, check_tensors, difference, head_meaning, neutral


def average(sources: Sequence[Source], mixture: Mixture) -> tuple[MethodConfig, dict[str, Tensor]]:
    """One adapter of several, computed in float64 on the CPU.

    What TIES and DARE thin out is what an adapter adds to the base model: the numbers themselves, or with the
    multipliers of IA³ and of norms their distance from those that change nothing. As elsewhere (TIES trims by the
    tensor, LoRA's A and B apart) they act on each tensor; with `svd_rank` on LoRA's updates.

    Returns:
        The first adapter's config (with `svd_rank`: of that rank, with the first one's alpha and use_rslora) and the
        tensors in the first one's dtypes, on the CPU.

    Raises:
        ConfigError: weights that do not fit, or an `svd_rank` above what a matrix can have.
        UnsupportedError: configs that mean different things, or a method that the strategy has no meaning for.
        CheckpointError: tensors that do not fit each other, or are not finite.
    """
    shares = mixture.shares([source.name for source in sources])
    for source in sources:
        check_method(source, mixture)
    for other in sources[1:]:
        check_same(sources[0], other, mixture)
    mix = mixer(mixture, shares)
    if mixture.svd_rank is not None:
        return _updates(sources, mixture.svd_rank, shares, None if mixture.strategy == UPDATE else mix)
    first = sources[0]
    positive = mixer(mixture, [abs(share) for share in shares])
    mixed = {}
    for key in sorted(first.tensors):  # DARE draws in this order, whoever made the mapping
        zero = neutral(first.config, key) if mixture.strategy in SPARSE else 0.0
        only_b = mixture.strategy == NEGATE_B and key.endswith(".A")
        mixed[key] = _mixed(sources, key, positive if only_b else mix, zero)
    return first.config, {key: mixed[key] for key in first.tensors}


def linear(names: Sequence[str], tensors: Sequence[Mapping[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    """Σ λᵢ Φᵢ of what heads hold.

    Raises:
        CheckpointError: other names or shapes of tensors, or numbers that are not finite.
    """
    sources = [Source(name, NoneConfig(), each) for name, each in zip(names, tensors, strict=True)]
    for other in sources[1:]:
        check_tensors(sources[0], other)
    return {key: _mixed(sources, key, lambda each: weighted_sum(each, shares), 0.0) for key in tensors[0]}


class WithAverages(nn.Module):
    """The part of an adapted model that makes one adapter, or one head, of several."""

    sites: Sites
    heads: nn.ModuleDict
    adapters: nn.ModuleDict
    _active_head: Any

    def get_adapter(self, name: str) -> Adapter:
        raise NotImplementedError

    def _put(self, adapter: Adapter) -> None:
        raise NotImplementedError

    def _not_merged(self, name: str) -> None:
        raise NotImplementedError

    def set_active_adapters(self, composition: Any) -> None:
        raise NotImplementedError

    def add_head(self, name: str, head: Head, overwrite_ok: bool = False) -> None:
        raise NotImplementedError

    def _known(self, name: str) -> Head:
        raise NotImplementedError

    def average_adapter(
        self,
        adapter_name: str,
        adapter_list: Sequence[str] | Mapping[str, float],
        weights: Sequence[float] | None = None,
        combine_strategy: str = "linear",
        normalize_weights: bool = True,
        overwrite_ok: bool = False,
        set_active: bool = False,
        svd_rank: int | None = None,
        density: float | None = None,
        seed: int = 0,
    ) -> None:
        """Add an adapter that is made of others; the model changes only if all goes well.

            linear                       Φ = Σ λᵢ Φᵢ, on every tensor of every method
            lora_linear_only_negate_b    A = Σ |λᵢ| Aᵢ, B = Σ λᵢ Bᵢ
            lora_delta_w_svd             s B A = the best approximation of rank k of Σ λᵢ sᵢ Bᵢ Aᵢ
            ties, dare                   see `adaptrain.mixture`; on each tensor, or with svd_rank on LoRA's updates

        `linear` of LoRA averages A and B, not the updates: their product has cross terms. The config is the first
        adapter's; `lora_delta_w_svd` sets r to svd_rank and keeps alpha, and B is divided by the new α / r.

        Args:
            adapter_list: names, or a mapping name → λ.
            weights: λ; equal ones when None.
            combine_strategy, normalize_weights, svd_rank, density, seed: as in `adaptrain.mixture.Mixture`. Task
                arithmetic is `linear` with weights of either sign and normalize_weights=False.

        Raises:
            AdapterNameError: no such adapter, it is merged, or the name is taken and not `overwrite_ok`.
            ConfigError: options that are wrong, or not read by the strategy.
            UnsupportedError: configs that differ in what the tensors mean, a method that the strategy has no meaning
                for, or full fine-tuning, of which a model holds one.
        """
        check_name(adapter_name)
        names, weights = _weighed(adapter_list, weights)
        mixture = Mixture(
            strategy=combine_strategy,
            weights=weights,
            normalize_weights=normalize_weights,
            svd_rank=svd_rank,
            density=density,
            seed=seed,
        )
        sources = [self._source(name) for name in names]
        if key_of(adapter_name) in self.adapters and not overwrite_ok:
            raise AdapterNameError(
                f"There is an adapter '{adapter_name}' already; give overwrite_ok=True to replace it"
            )
        config, tensors = average(sources, mixture)
        with torch.random.fork_rng(devices=[]):  # initial weights, which are then replaced
            adapter = Adapter(adapter_name, config, self.sites, fresh=False)
        adapter.load_tensors(tensors)
        self._put(adapter)
        if set_active:
            self.set_active_adapters(adapter_name)

    def average_head(
        self,
        head_name: str,
        head_list: Sequence[str] | Mapping[str, float],
        weights: Sequence[float] | None = None,
        normalize_weights: bool = True,
        overwrite_ok: bool = False,
        set_active: bool = False,
    ) -> None:
        """Add a head whose tensors are Σ λᵢ Φᵢ of others.

        Args:
            head_list: names, or a mapping name → λ.
            weights: λ; equal ones when None.

        Raises:
            AdapterNameError: no such head, or the name is taken and not `overwrite_ok`.
            ConfigError: weights that do not fit.
            UnsupportedError: heads of different types or options.
        """
        check_name(head_name)
        names, weights = _weighed(head_list, weights)
        shares = Mixture(weights=weights, normalize_weights=normalize_weights).shares(names)
        heads = [self._known(name) for name in names]
        for name, head in zip(names, heads, strict=True):
            if differs := difference(head_meaning(heads[0].to_dict()), head_meaning(head.to_dict())):
                raise UnsupportedError(
                    f"The heads '{names[0]}' and '{name}' differ in {differs}; average heads of equal options"
                )
        mean = linear(names, [head.state_dict() for head in heads], shares)
        with torch.random.fork_rng(devices=[]):
            made = head_from_dict(heads[0].to_dict())
        active = self._active_head
        self.add_head(head_name, made, overwrite_ok)  # in the precision of the model, before it takes the mean
        made.load_state_dict(mean)
        if not set_active:
            self._active_head = active

    def _source(self, name: str) -> Source:
        adapter = self.get_adapter(name)
        self._not_merged(name)
        if adapter.config.trains_base:
            raise UnsupportedError(
                f"'{name}' ({adapter.config.method}) is the base model itself, and this model has one; "
                "`adaptrain average` averages such ones as saved folders"
            )
        starts = {
            f"{site}.{adapter.config.method}": (unit.start_a, unit.start_b)
            for site, units in adapter.units.items()
            for unit in units
            if isinstance(unit, PiSSA)
        }
        return Source(name, adapter.config, adapter.tensors(), starts)


def _mixed(sources: Sequence[Source], key: str, mix: Mix, zero: float) -> Tensor:
    """One tensor of the result; `zero` is what its numbers are where they change nothing."""
    first = sources[0].tensors[key]
    if not first.is_floating_point():
        for other in sources[1:]:
            if not torch.equal(other.tensors[key].cpu(), first.cpu()):
                raise CheckpointError(
                    f"'{key}' holds whole numbers, which differ in {sources[0].name} and {other.name}"
                )
        return first.detach().cpu().clone()
    return (zero + mix([_wide(source, key) - zero for source in sources])).to(first.dtype)


def _wide(source: Source, key: str) -> Tensor:
    wide = source.tensors[key].detach().to("cpu", torch.float64)
    if not wide.isfinite().all():
        raise CheckpointError(f"'{key}' of {source.name} holds numbers that are not finite; train it again")
    return wide


def _updates(
    sources: Sequence[Source], rank: int, shares: Sequence[float], mix: Mix | None
) -> tuple[MethodConfig, dict[str, Tensor]]:
    """LoRA's updates, each with its own scaling, made one and cut back to a rank.

    Args:
        mix: of the updates; their weighted sum when None.
    """
    first = sources[0]
    assert isinstance(first.config, LoRAConfig)
    kind = "lora" if first.config.init_weights == "pissa" else first.config.init_weights  # counted from zero now
    config = first.config.replace(r=rank, init_weights=kind)
    tensors = {}
    for key in sorted(key for key in first.tensors if key.endswith(".A")):
        unit = key.removesuffix(".A")
        out, inner = len(first.tensors[f"{unit}.B"]), first.tensors[key].shape[1]
        if rank > min(out, inner):
            raise ConfigError(
                f"svd_rank is {rank}, but the map at {unit} is {out} × {inner}, whose rank is {min(out, inner)} at most"
            )
        pairs = [_factors(source, unit) for source in sources]
        if mix is None:  # side by side, the factors are those of the sum
            b = torch.cat([share * b for (b, _), share in zip(pairs, shares, strict=True)], 1)
            a = torch.cat([a for _, a in pairs])
        else:
            b, a = mix([b @ a for b, a in pairs]), torch.eye(inner, dtype=torch.float64)
        b, a = cut(b, a, rank)
        tensors[key] = a.to(first.tensors[key].dtype)
        tensors[f"{unit}.B"] = (b / config.scaling(rank)).to(first.tensors[f"{unit}.B"].dtype)
    return config, {key: tensors[key].contiguous() for key in first.tensors}


def _factors(source: Source, unit: str) -> tuple[Tensor, Tensor]:
    """s B (out, n) and A (n, in) whose product is a source's update; n is its rank, for PiSSA twice that."""
    assert isinstance(source.config, LoRAConfig)
    a, b = _wide(source, f"{unit}.A"), _wide(source, f"{unit}.B")
    scaling = source.config.scaling(len(a))
    if source.config.init_weights == "pissa":
        start_a, start_b = (start.detach().to(a.device, a.dtype) for start in source.starts[unit])
        a, b = torch.cat([a, start_a]), torch.cat([b, -start_b], 1)
    return scaling * b, a


def _weighed(
    names: Sequence[str] | Mapping[str, float], weights: Sequence[float] | None
) -> tuple[list[str], Sequence[float] | None]:
    if isinstance(names, str):
        raise ConfigError(f"'{names}' is one name; give a list of them, or a mapping from name to weight")
    if isinstance(names, Mapping):
        if weights is not None:
            raise ConfigError("The weights are given twice, in the mapping and as weights; leave one out")
        return list(names), list(names.values())
    return list(names), weights
