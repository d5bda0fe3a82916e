"""AdapterFusion: attention over what several adapters add at a sublayer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptrain.context import record_fusion
from adaptrain.errors import ConfigError, unknown
from adaptrain.methods.base import Build, MethodConfig, Offer, PointLike, Shared, Unit

SUBLAYERS = ("attention", "cross_attention", "mlp")


@dataclass(frozen=True, kw_only=True)
class AdapterFusionConfig(MethodConfig):
    """AdapterFusion.

    With u_1 … u_N what the adapters add to a sublayer (scaled and gated), and x what the last of them reads (after the
    model's addition and norm where it reads that):

        pᵢ  = softmaxᵢ( Dropout(W_q x + b_q · W_k uᵢ + b_k) / T )            (rows, positions, N)
        out = W_v Σᵢ pᵢ uᵢ + ρ              or W_v Σᵢ pᵢ (uᵢ + ρ)            (residual_before)

    ρ is what the last adapter would have added its own u to, and it goes on with `out` as with its own sum. W_q, W_k
    and W_v are the identity where `query`, `key` or `value` is false. T is 1, or with `temperature` it falls from 50
    by 0.05 a training forward, to 1 at least. Σᵢ pᵢ W_k uᵢ and Σᵢ pᵢ W_v uᵢ are linear in the uᵢ, so one product with
    each matrix does for all adapters.

    Training adds 0.01 Σ ‖I − W_v‖² over all sublayers to the loss (`regularization`).

    Source: Pfeiffer et al. 2021, *AdapterFusion: Non-Destructive Task Composition for Transfer Learning*.

    Attributes:
        query, key, value: whether the matrix is there. W_q, W_k (d, d) from N(0, 0.02²) with a bias from zero; W_v
            (d, d) without one.
        query_before_ln: x is what flows into the adapter's place instead, before that norm.
        regularization: pull W_v to the identity.
        residual_before: add ρ before W_v.
        temperature: let T fall.
        value_initialized: W_v starts as the identity with 1e-6 elsewhere; else from N(0, 0.02²).
        dropout_prob: of the scores; the model's own attention dropout when None.
        sublayers: which have a fusion; those where the fused adapters act when None.
        leave_out: layers without a fusion.
    """

    method: ClassVar[str] = "fusion"

    query: bool = True
    key: bool = True
    value: bool = True
    query_before_ln: bool = False
    regularization: bool = True
    residual_before: bool = False
    temperature: bool = False
    value_initialized: bool = True
    dropout_prob: float | None = None
    sublayers: tuple[Literal["attention", "cross_attention", "mlp"], ...] | None = None
    leave_out: tuple[int, ...] = ()

    def problems(self) -> Iterator[str]:
        if self.dropout_prob is not None and not 0 <= self.dropout_prob < 1:
            yield f"dropout_prob is {self.dropout_prob}; it must lie in [0, 1)"
        if not self.value:
            for key in ("regularization", "value_initialized"):
                if getattr(self, key):
                    yield f"{key} is for a value matrix; set value to true, or {key} to false"
        if self.sublayers == ():
            yield "sublayers is empty; name at least one, or leave it out"

    def covers(self, point: PointLike) -> bool:
        wanted = SUBLAYERS if self.sublayers is None else self.sublayers
        return point.kind == "sublayer" and point.sublayer in wanted and point.layer not in self.leave_out

    def build(self, points: Sequence[PointLike]) -> Build:
        common = Temperature() if self.temperature else None
        units: dict[str, Unit] = {point.name: Fusion(self, point.out_features, common) for point in points}
        return Build(units, {} if common is None else {"temperature": common})


@dataclass(frozen=True, kw_only=True)
class StaticAdapterFusionConfig(AdapterFusionConfig):
    """Without a value matrix."""

    value: bool = False
    regularization: bool = False
    value_initialized: bool = False


DynamicAdapterFusionConfig = AdapterFusionConfig

FUSIONS: dict[str, type[AdapterFusionConfig]] = {
    "static": StaticAdapterFusionConfig,
    "dynamic": DynamicAdapterFusionConfig,
}
"""Preset name → config class."""


def read_fusion(config: AdapterFusionConfig | str | Mapping[str, Any] | None) -> AdapterFusionConfig:
    """Whatever `add_adapter_fusion` is given, as a config; `dynamic` for None.

    Raises:
        ConfigError: an unknown name or key, or an impossible value.
    """
    if isinstance(config, AdapterFusionConfig):
        return config
    if isinstance(config, Mapping):
        return AdapterFusionConfig.from_dict(config)
    if config is None:
        return DynamicAdapterFusionConfig()
    if config not in FUSIONS:
        raise ConfigError(unknown("fusion", str(config), FUSIONS, "The fusions are"))
    return FUSIONS[config]()


class Temperature(Shared):
    """T: 50, and after each training forward 0.05 less, to 1 at least."""

    T: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("T", torch.tensor(50.0))

    def compute(self) -> Tensor:
        now = self.T.clone()
        if self.training:
            self.T.sub_(0.05).clamp_(min=1.0)
        return now


class Fusion(Unit):
    """The fusion of one sublayer; see `AdapterFusionConfig` for the formula."""

    def __init__(self, config: AdapterFusionConfig, size: int, temperature: Temperature | None) -> None:
        super().__init__()
        self.config = config
        self.dropout = config.dropout_prob or 0.0
        self.query = nn.Linear(size, size) if config.query else None
        self.key = nn.Linear(size, size) if config.key else None
        self.value = nn.Linear(size, size, bias=False) if config.value else None
        for layer in (self.query, self.key, self.value):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.02)
            if layer is not None and layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if self.value is not None and config.value_initialized:
            with torch.no_grad():
                nn.init.constant_(self.value.weight, 1e-6).fill_diagonal_(1.0)
        self._temperature = (temperature,)  # in a tuple: it is not a part of this unit, but shared

    def forward(self, offers: Sequence[Offer]) -> Any:
        """The state that the last adapter makes of the fused sum.

        Args:
            offers: what each adapter would add.
        """
        final = offers[-1]
        u = torch.stack([offer.added for offer in offers], 2)  # (rows, positions, N, d)
        q = _linear(self.query, final.raw if self.config.query_before_ln else final.query)  # (rows, positions, d)
        scores = (u @ self._keyed(q).unsqueeze(-1)).squeeze(-1)  # (rows, positions, N)
        if self.key is not None:
            scores = scores + q @ self.key.bias.to(q.dtype).unsqueeze(-1)
        scores = F.dropout(scores, self.dropout, self.training)
        if self._temperature[0] is not None:
            scores = scores / self._temperature[0].current().to(scores.dtype)
        p = scores.softmax(-1, torch.promote_types(scores.dtype, torch.float32)).to(u.dtype)
        record_fusion(p)
        c = (p.unsqueeze(2) @ u).squeeze(2)  # (rows, positions, d)
        if self.config.residual_before:
            return final.finish(_linear(self.value, c + final.rest))
        return final.finish(_linear(self.value, c) + final.rest)

    def _keyed(self, q: Tensor) -> Tensor:
        """W_kᵀ q, whose product with uᵢ is that of q with W_k uᵢ."""
        return q if self.key is None else q @ self.key.weight.to(q.dtype)

    def regularization(self) -> Tensor | None:
        """0.01 ‖I − W_v‖²; None where W_v is free."""
        if self.value is None or not self.config.regularization:
            return None
        weight = self.value.weight
        return 0.01 * (torch.eye(len(weight), device=weight.device, dtype=weight.dtype) - weight).pow(2).sum()


def _linear(layer: nn.Linear | None, x: Tensor) -> Tensor:
    if layer is None:
        return x
    return F.linear(x, layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))
