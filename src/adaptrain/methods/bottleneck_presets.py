"""The published bottlenecks: `BnConfig` with other defaults, and their preset strings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from adaptrain.methods.base import register_preset
from adaptrain.methods.bottleneck import BnConfig


@dataclass(frozen=True, kw_only=True)
class SeqBnConfig(BnConfig):
    """After the MLP only: LN(r + h + f(LN(h + r))). Pfeiffer et al. 2021."""

    mh_adapter: bool = False
    output_adapter: bool = True
    reduction_factor: float | Mapping[str, float] = 16
    non_linearity: str = "relu"
    original_ln_before: bool = True


@dataclass(frozen=True, kw_only=True)
class DoubleSeqBnConfig(BnConfig):
    """After attention and MLP: LN(r + h + f(h)). Houlsby et al. 2019."""

    mh_adapter: bool = True
    output_adapter: bool = True
    reduction_factor: float | Mapping[str, float] = 16
    non_linearity: str = "swish"


@dataclass(frozen=True, kw_only=True)
class ParBnConfig(BnConfig):
    """Parallel to the MLP: LN(r + h + 4 f(r)). He et al. 2022."""

    mh_adapter: bool = False
    output_adapter: bool = True
    reduction_factor: float | Mapping[str, float] = 2
    non_linearity: str = "relu"
    init_weights: Literal["bert", "mam_adapter", "houlsby"] = "mam_adapter"
    is_parallel: bool = True
    scaling: float | Literal["learned", "channel"] = 4.0


@dataclass(frozen=True, kw_only=True)
class SeqBnInvConfig(SeqBnConfig):
    """seq_bn with an invertible adapter at the embeddings: a language adapter of MAD-X. Pfeiffer et al. 2020."""

    inv_adapter: Literal["nice", "glow"] | None = "nice"
    inv_adapter_reduction_factor: float | None = 2


@dataclass(frozen=True, kw_only=True)
class DoubleSeqBnInvConfig(DoubleSeqBnConfig):
    """double_seq_bn with an invertible adapter at the embeddings."""

    inv_adapter: Literal["nice", "glow"] | None = "nice"
    inv_adapter_reduction_factor: float | None = 2


@dataclass(frozen=True, kw_only=True)
class AdapterPlusConfig(BnConfig):
    """Adapter+: LN(h + r) + s ⊙ f(LN(h + r)) after the MLP, s one number a feature. Steitz & Roth 2024."""

    mh_adapter: bool = False
    output_adapter: bool = True
    reduction_factor: float | Mapping[str, float] = 96
    non_linearity: str = "gelu"
    original_ln_before: bool = True
    original_ln_after: bool = False
    residual_before_ln: bool | Literal["post_add"] = False
    init_weights: Literal["bert", "mam_adapter", "houlsby"] = "houlsby"
    scaling: float | Literal["learned", "channel"] = "channel"
    stochastic_depth: float = 0.1


@dataclass(frozen=True, kw_only=True)
class CompacterConfig(BnConfig):
    """PHM bottlenecks after attention and MLP. Mahabadi et al. 2021."""

    mh_adapter: bool = True
    output_adapter: bool = True
    reduction_factor: float | Mapping[str, float] = 32
    non_linearity: str = "gelu"
    phm_layer: bool = True


@dataclass(frozen=True, kw_only=True)
class CompacterPlusPlusConfig(CompacterConfig):
    """PHM bottlenecks after the MLP only: LN(r + h + f(LN(h + r))). Mahabadi et al. 2021."""

    mh_adapter: bool = False
    original_ln_before: bool = True


_PRESETS: dict[str, Callable[[], BnConfig]] = {
    "seq_bn": SeqBnConfig,
    "double_seq_bn": DoubleSeqBnConfig,
    "par_bn": ParBnConfig,
    "seq_bn_inv": SeqBnInvConfig,
    "double_seq_bn_inv": DoubleSeqBnInvConfig,
    "adapterplus": AdapterPlusConfig,
    "compacter": CompacterConfig,
    "compacter++": CompacterPlusPlusConfig,
}
for _name, _class in _PRESETS.items():
    register_preset(_name, _class)
register_preset("scaled_par_bn", partial(ParBnConfig, scaling="learned"))
