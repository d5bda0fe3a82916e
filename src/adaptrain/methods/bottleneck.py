"""Bottleneck adapters: a small two-layer network after a sublayer, or parallel to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptrain.methods.activations import ACTIVATIONS, unknown_activation
from adaptrain.methods.base import Build, MethodConfig, PointLike, Unit, register_method, register_preset
from adaptrain.state import SublayerState


@register_method
@dataclass(frozen=True, kw_only=True)
class BnConfig(MethodConfig):
    """Bottleneck adapter, sequential or parallel.

    With h the sublayer's output, r the residual that the model adds, and LN the model's own norm after the addition
    (absent in pre-norm models, then LN is the identity):

        h₀ = h                                 or LN(h + r)          (original_ln_before)
        ρ  = h                                 or h + r, or h₀       (residual_before_ln: true, "post_add", false)
        a  = Dropout(s · DropPath(W_up act(W_down [LN_b](h₀) + b_down) + b_up))
        h' = a + ρ                             or LN_a(a) + ρ        (ln_after)
                                               or LN_a(a + ρ)        (and adapter_residual_before_ln)

    and the model goes on with LN(h' + r). The parallel form (`is_parallel`) reads the residual stream instead:

        h' = h + [LN_a] Dropout(s · W_up act(W_down [LN_b](r) + b_down) + b_up)

    W_down (b, d), W_up (d, b), b = max(1, ⌊d / reduction_factor⌋).

    Source: Houlsby et al. 2019; Pfeiffer et al. 2021, *AdapterFusion*; He et al. 2022, *Towards a Unified View*,
    table 1; the order of norms and residuals is the reference library's.

    Attributes:
        mh_adapter: after the self-attention sublayer.
        output_adapter: after the MLP sublayer.
        cross_adapter: after the cross-attention sublayer.
        reduction_factor: d / b; or a mapping from the layer's index (as a word) or `default`.
        scaling: s: a number, "learned" (one number, from 1) or "channel" (one a feature, from 1).
        init_weights: `bert` N(0, 0.02²); `mam_adapter` kaiming-uniform(a = √5) down and zero up, the identity at
            start; `houlsby` a normal of 0.01 cut at ±0.02. Biases are zero.
        stochastic_depth: probability that a row skips the adapter in training.
        leave_out: layers without units, counted over the whole model.
    """

    method: ClassVar[str] = "bottleneck"

    mh_adapter: bool
    output_adapter: bool
    cross_adapter: bool = False
    reduction_factor: float | Mapping[str, float]
    non_linearity: str
    original_ln_before: bool = False
    residual_before_ln: bool | Literal["post_add"] = True
    ln_before: bool = False
    ln_after: bool = False
    adapter_residual_before_ln: bool = False
    init_weights: Literal["bert", "mam_adapter", "houlsby"] = "bert"
    is_parallel: bool = False
    scaling: float | Literal["learned", "channel"] = 1.0
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    leave_out: tuple[int, ...] = ()

    @property
    def identity_at_start(self) -> bool:  # type: ignore[override]
        return self.init_weights == "mam_adapter" and not self.ln_after and self.residual_before_ln is True

    def problems(self) -> Iterator[str]:
        if not (self.mh_adapter or self.output_adapter or self.cross_adapter):
            yield "mh_adapter, output_adapter and cross_adapter are all false; nothing would be adapted"
        factors = self.reduction_factor
        for where, factor in factors.items() if isinstance(factors, Mapping) else [("", factors)]:
            if factor <= 0:
                yield f"reduction_factor{f' of layer {where}' if where else ''} is {factor}; it must be positive"
            if where and where != "default" and not where.isdecimal():
                yield f"reduction_factor names the layer '{where}'; layers are numbers as words, or 'default'"
        if (problem := unknown_activation(self.non_linearity)) is not None:
            yield problem
        if self.residual_before_ln == "post_add" and not self.original_ln_before:
            yield "residual_before_ln is 'post_add', which needs original_ln_before"
        for key in ("dropout", "stochastic_depth"):
            if not 0 <= getattr(self, key) < 1:
                yield f"{key} is {getattr(self, key)}; it must lie in [0, 1)"
        if self.is_parallel and self.stochastic_depth:
            yield "stochastic_depth is for the sequential form; set it to 0 with is_parallel"
        if self.is_parallel and (self.original_ln_before or self.residual_before_ln is not True):
            yield "original_ln_before and residual_before_ln are for the sequential form; drop them with is_parallel"
        if self.adapter_residual_before_ln and not self.ln_after:
            yield "adapter_residual_before_ln needs ln_after"

    def covers(self, point: PointLike) -> bool:
        wanted = {"attention": self.mh_adapter, "mlp": self.output_adapter, "cross_attention": self.cross_adapter}
        return point.kind == "sublayer" and point.layer not in self.leave_out and wanted[point.sublayer]

    def bottleneck_size(self, point: PointLike) -> int:
        """b = max(1, ⌊d / reduction_factor⌋) at a point.

        Raises:
            ConfigError: the mapping names neither this layer nor a default.
        """
        factor = self.reduction_factor
        if isinstance(factor, Mapping):
            factor = factor.get(str(point.layer), factor.get("default", 0))
            if not factor:
                raise self.error(f"reduction_factor names neither layer {point.layer} nor 'default'")
        return max(1, int(point.hidden_size // factor))

    def build(self, points: Sequence[PointLike]) -> Build:
        return Build({point.name: Bottleneck(self, point.hidden_size, self.bottleneck_size(point)) for point in points})


class Bottleneck(Unit):
    """The bottleneck of one sublayer; see `BnConfig` for the formula."""

    def __init__(self, config: BnConfig, hidden_size: int, size: int) -> None:
        super().__init__()
        self.config = config
        self.activation = ACTIVATIONS[config.non_linearity.lower()]
        self.norm_before = nn.LayerNorm(hidden_size) if config.ln_before else None
        self.norm_after = nn.LayerNorm(hidden_size) if config.ln_after else None
        self.down = nn.Linear(hidden_size, size)
        self.up = nn.Linear(size, hidden_size)
        self.scaling: nn.Parameter | float
        if isinstance(config.scaling, str):
            self.scaling = nn.Parameter(torch.ones(1 if config.scaling == "learned" else hidden_size))
        else:
            self.scaling = config.scaling
        _initialise(self.down, self.up, config.init_weights)

    def forward(self, state: SublayerState) -> SublayerState:
        return replace(state, h=self._parallel(state) if self.config.is_parallel else self._sequential(state))

    def _sequential(self, state: SublayerState) -> Tensor:
        config, h, r = self.config, state.h, state.residual  # (rows, positions, d)
        h0 = h
        if config.original_ln_before:
            h0 = h + r if state.norm is None else state.norm(h + r)
        rho = {True: h, False: h0, "post_add": h + r}[config.residual_before_ln]
        a = F.dropout(self._bottleneck(h0), config.dropout, self.training)
        if self.norm_after is None:
            return a + rho
        if config.adapter_residual_before_ln:
            return _norm(self.norm_after, a + rho)
        return _norm(self.norm_after, a) + rho

    def _parallel(self, state: SublayerState) -> Tensor:
        a = F.dropout(self._bottleneck(state.residual), self.config.dropout, self.training)
        if self.norm_after is not None:
            a = _norm(self.norm_after, a)
        return state.h + a.to(state.h.dtype)

    def _bottleneck(self, x: Tensor) -> Tensor:
        if self.norm_before is not None:
            x = _norm(self.norm_before, x)
        z = self.activation(_linear(self.down, x))  # (rows, positions, b)
        u = _linear(self.up, z)  # (rows, positions, d)
        if self.training and self.config.stochastic_depth:
            keep = 1 - self.config.stochastic_depth
            u = u * u.new_empty(len(u), *[1] * (u.dim() - 1)).bernoulli_(keep) / keep
        return u * (self.scaling.to(u.dtype) if isinstance(self.scaling, Tensor) else self.scaling)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


def _initialise(down: nn.Linear, up: nn.Linear, mode: str) -> None:
    nn.init.zeros_(down.bias)
    nn.init.zeros_(up.bias)
    if mode == "mam_adapter":
        nn.init.kaiming_uniform_(down.weight, a=5**0.5)
        nn.init.zeros_(up.weight)
        return
    for layer in (down, up):
        if mode == "houlsby":
            nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
        else:
            nn.init.normal_(layer.weight, std=0.02)


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


for _name, _class in {"seq_bn": SeqBnConfig, "double_seq_bn": DoubleSeqBnConfig, "par_bn": ParBnConfig}.items():
    register_preset(_name, _class)
register_preset("scaled_par_bn", partial(ParBnConfig, scaling="learned"))
