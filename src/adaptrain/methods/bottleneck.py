"""Bottleneck adapters: a small two-layer network after a sublayer, or parallel to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptrain.errors import listed
from adaptrain.methods.activations import ACTIVATIONS, unknown_activation
from adaptrain.methods.base import Build, MethodConfig, Offer, PointLike, Unit, register_method
from adaptrain.methods.gate import Gate
from adaptrain.methods.invertible import Glow, Nice
from adaptrain.methods.layers import at_layer, misnamed, numbers
from adaptrain.methods.phm import PHMLinear, SharedPHM, zero_factors
from adaptrain.state import SublayerState

_PHM_KEYS = (
    *("phm_dim", "phm_rank", "shared_phm_rule", "factorized_phm_rule", "shared_W_phm", "factorized_phm_W"),
    *("phm_c_init", "phm_init_range", "learn_phm", "phm_bias", "hypercomplex_nonlinearity"),
)


@register_method
@dataclass(frozen=True, kw_only=True)
class BnConfig(MethodConfig):
    """Bottleneck adapter, sequential or parallel.

    With h the sublayer's output, r the residual that the model adds, and LN the model's own norm after the addition
    (absent in pre-norm models, then LN is the identity):

        h₀ = h                                 or LN(h + r)          (original_ln_before)
        ρ  = h                                 or h + r, or h₀       (residual_before_ln: true, "post_add", false)
        a  = Dropout(s · DropPath(W_up act(W_down [LN_b](h₀) + b_down) + b_up)) · g
        h' = a + ρ                             or LN_a(a) + ρ        (ln_after)
                                               or LN_a(a + ρ)        (and adapter_residual_before_ln)

    and the model goes on with LN(h' + r), or with h' itself without original_ln_after. g is 1, or UniPELT's gate of h₀
    (`methods.gate`). The parallel form (`is_parallel`) reads the residual stream instead:

        h' = h + [LN_a] Dropout(s · W_up act(W_down [LN_b](r) + b_down) + b_up) · g(r)

    W_down (b, d), W_up (d, b), b = max(1, ⌊d / reduction_factor⌋); with `phm_layer` they are sums of Kronecker products
    (`methods.phm`). `inv_adapter` adds an invertible adapter at the embeddings (`methods.invertible`).

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
        original_ln_after: whether the model's own addition and norm follow. With residual_before_ln false they add r a
            second time, as in the reference library.
        use_gating: with a gate of its own at each place.
        stochastic_depth: probability that a row skips the adapter in training.
        inv_adapter: `nice` or `glow`.
        inv_adapter_reduction_factor: of its coupling networks.
        inv_adapter_at_head: undo it before the output embedding.
        phm_layer: PHM layers instead of linear ones; the keys below are theirs.
        phm_dim: n; both the hidden and the bottleneck size must be multiples of it.
        phm_rank: k.
        shared_phm_rule, shared_W_phm: one rule, one W for all layers.
        factorized_phm_rule, factorized_phm_W: as products of rank one and k.
        phm_c_init, phm_init_range: of the rule: N(0, range²) or U(−1, 1) where shared, of 0.01 where not.
        learn_phm: train the rule; else it stays as it is drawn from a fixed seed.
        phm_bias: whether PHM layers have one.
        hypercomplex_nonlinearity: start of W: `glorot-uniform`, `glorot-normal`, `normal` N(0, 0.02²), or `phm`,
            uniform as torch's linear layers.
        leave_out: layers without units, counted over the whole model.
        as_adapterhub: gates as AdapterHub computes them, means over padding and later tokens too.
    """

    method: ClassVar[str] = "bottleneck"

    mh_adapter: bool
    output_adapter: bool
    cross_adapter: bool = False
    reduction_factor: float | Mapping[str, float]
    non_linearity: str
    original_ln_before: bool = False
    original_ln_after: bool = True
    residual_before_ln: bool | Literal["post_add"] = True
    ln_before: bool = False
    ln_after: bool = False
    adapter_residual_before_ln: bool = False
    init_weights: Literal["bert", "mam_adapter", "houlsby"] = "bert"
    is_parallel: bool = False
    scaling: float | Literal["learned", "channel"] = 1.0
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    use_gating: bool = False
    inv_adapter: Literal["nice", "glow"] | None = None
    inv_adapter_reduction_factor: float | None = None
    inv_adapter_at_head: bool = True
    phm_layer: bool = False
    phm_dim: int = 4
    phm_rank: int = 1
    shared_phm_rule: bool = True
    factorized_phm_rule: bool = False
    shared_W_phm: bool = False  # noqa: N815  (the reference's name)
    factorized_phm_W: bool = True  # noqa: N815
    phm_c_init: Literal["normal", "uniform"] = "normal"
    phm_init_range: float = 1e-4
    learn_phm: bool = True
    phm_bias: bool = True
    hypercomplex_nonlinearity: Literal["glorot-uniform", "glorot-normal", "normal", "phm"] = "glorot-uniform"
    leave_out: tuple[int, ...] = ()
    as_adapterhub: bool = False

    @property
    def identity_at_start(self) -> bool:  # type: ignore[override]
        if self.init_weights != "mam_adapter" or self.inv_adapter is not None or self.adapter_residual_before_ln:
            return False
        if not self.original_ln_before:
            return self.original_ln_after  # ρ is h either way
        return self.residual_before_ln is self.original_ln_after  # final: ρ is what the model would have gone on with

    def problems(self) -> Iterator[str]:
        if not (self.mh_adapter or self.output_adapter or self.cross_adapter or self.inv_adapter):
            yield "mh_adapter, output_adapter and cross_adapter are all false; nothing would be adapted"
        for where, factor in numbers(self.reduction_factor):
            if factor <= 0:
                yield f"reduction_factor{where} is {factor}; it must be positive"
        yield from misnamed("reduction_factor", self.reduction_factor)
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
        if self.is_parallel and self.adapter_residual_before_ln:
            yield "adapter_residual_before_ln is for the sequential form; drop it with is_parallel"
        if self.is_parallel and not self.original_ln_after:
            yield "original_ln_after is for the sequential form; leave it true with is_parallel"
        yield from self._invertible_problems()
        yield from self._phm_problems()
        if self.inv_adapter and not (self.mh_adapter or self.output_adapter or self.cross_adapter):
            alone = ("use_gating", "phm_layer", "is_parallel", "ln_before", "ln_after", "dropout", "stochastic_depth")
            for key in alone:
                if getattr(self, key):
                    yield f"{key} is for a bottleneck, and there is only an inv_adapter; leave it out"

    def _invertible_problems(self) -> Iterator[str]:
        factor = self.inv_adapter_reduction_factor
        if self.inv_adapter is None:
            if factor is not None:
                yield "inv_adapter_reduction_factor is for an inv_adapter; leave it out"
            if not self.inv_adapter_at_head:
                yield "inv_adapter_at_head is for an inv_adapter; leave it true"
        elif factor is None:
            yield "inv_adapter_reduction_factor is missing; inv_adapter needs it, 2 is usual"
        elif factor <= 0:
            yield f"inv_adapter_reduction_factor is {factor}; it must be positive"

    def _phm_problems(self) -> Iterator[str]:
        if not self.phm_layer:
            defaults = BnConfig.fields()
            for key in _PHM_KEYS:
                if getattr(self, key) != defaults[key].default:
                    yield f"{key} is for phm_layer; leave it out, or set phm_layer to true"
            return
        for key in ("phm_dim", "phm_rank"):
            if getattr(self, key) < 1:
                yield f"{key} is {getattr(self, key)}; it must be at least 1"
        if self.phm_init_range <= 0:
            yield f"phm_init_range is {self.phm_init_range}; it must be positive"
        if not self.factorized_phm_W and self.phm_rank != 1:
            yield "phm_rank is for factorized_phm_W; leave it out"
        if (self.phm_c_init == "uniform" or not self.shared_phm_rule) and self.phm_init_range != 1e-4:
            yield "phm_init_range is for a shared rule with phm_c_init 'normal'; leave it out"
        if self.init_weights == "houlsby":
            yield "init_weights is 'houlsby', which PHM layers do not have; use 'bert' or 'mam_adapter'"

    def covers(self, point: PointLike) -> bool:
        if point.kind == "embedding":
            return self.inv_adapter is not None and (point.stack == "encoder" or not point.encoder_decoder)
        wanted = {"attention": self.mh_adapter, "mlp": self.output_adapter, "cross_attention": self.cross_adapter}
        return point.kind == "sublayer" and point.layer not in self.leave_out and wanted[point.sublayer]

    def missing(self, points: Sequence[PointLike]) -> Iterator[str]:
        if self.inv_adapter is not None and not any(point.kind == "embedding" for point in points):
            yield f"inv_adapter is '{self.inv_adapter}', and the model has no embeddings of words to invert"
        yield from super().missing(points)

    def bottleneck_size(self, point: PointLike) -> int:
        """b = max(1, ⌊d / reduction_factor⌋) at a point.

        Raises:
            ConfigError: the mapping names neither this layer nor a default.
        """
        factor = at_layer(self.reduction_factor, point.layer)
        if factor is None:
            raise self.error(f"reduction_factor names neither layer {point.layer} nor 'default'")
        return max(1, int(point.hidden_size // factor))

    def build(self, points: Sequence[PointLike]) -> Build:
        units: dict[str, Unit] = {}
        sublayers = [point for point in points if point.kind == "sublayer"]
        common = self._shared_phm(sublayers)
        for point in points:
            if point.kind == "embedding":
                units[point.name] = {"nice": Nice, "glow": Glow}[str(self.inv_adapter)](self, point.out_features)
            else:
                units[point.name] = Bottleneck(self, point, common)
        return Build(units, {} if common is None else {"phm": common})

    def _shared_phm(self, points: Sequence[PointLike]) -> SharedPHM | None:
        if not self.phm_layer or not points:
            return None
        sizes = {(point.hidden_size, self.bottleneck_size(point)) for point in points}
        for size in sorted({each for pair in sizes for each in pair}):
            if size % self.phm_dim:
                legal = listed(n for n in range(1, 33) if all(each % n == 0 for pair in sizes for each in pair))
                raise self.error(f"phm_dim is {self.phm_dim}, which does not divide {size}; these sizes allow {legal}")
        if not (self.shared_phm_rule or self.shared_W_phm):
            return None
        if self.shared_W_phm and len(sizes) > 1:
            raise self.error("shared_W_phm needs bottlenecks of one size in all layers; use one reduction_factor")
        return SharedPHM(self, *next(iter(sizes)))


class Bottleneck(Unit):
    """The bottleneck of one sublayer; see `BnConfig` for the formula."""

    def __init__(self, config: BnConfig, point: PointLike, common: SharedPHM | None) -> None:
        super().__init__()
        hidden_size, size = point.hidden_size, config.bottleneck_size(point)
        self.config = config
        self.activation = ACTIVATIONS[config.non_linearity.lower()]
        self.norm_before = nn.LayerNorm(hidden_size) if config.ln_before else None
        self.norm_after = nn.LayerNorm(hidden_size) if config.ln_after else None
        self.gate = Gate(hidden_size, point.causal, config.as_adapterhub) if config.use_gating else None
        self.down: nn.Linear | PHMLinear
        self.up: nn.Linear | PHMLinear
        if config.phm_layer:
            self.down = PHMLinear(config, hidden_size, size, common, "down")
            self.up = PHMLinear(config, size, hidden_size, common, "up")
            if config.init_weights == "mam_adapter" and not config.shared_W_phm:
                zero_factors(self.up, "")
        else:
            self.down, self.up = nn.Linear(hidden_size, size), nn.Linear(size, hidden_size)
            _initialise(self.down, self.up, config.init_weights)
        self.scaling: nn.Parameter | float
        if isinstance(config.scaling, str):
            self.scaling = nn.Parameter(torch.ones(1 if config.scaling == "learned" else hidden_size))
        else:
            self.scaling = config.scaling
        if self.gate is not None and config.init_weights != "houlsby":
            nn.init.zeros_(self.gate.bias)

    def forward(self, state: SublayerState) -> SublayerState:
        offer = self.offer(state)
        return offer.finish(offer.added + offer.rest)

    def offer(self, state: SublayerState) -> Offer:
        config, h, r = self.config, state.h, state.residual  # (rows, positions, d)
        if config.is_parallel:
            read, rest = r, h
        else:
            read = h
            if config.original_ln_before:
                read = h + r if state.norm is None else state.norm(h + r)
            rest = h + r if config.residual_before_ln == "post_add" else h if config.residual_before_ln else read
        a = self._gated(F.dropout(self._bottleneck(read), config.dropout, self.training), read, state.mask)
        if self.norm_after is not None and not config.adapter_residual_before_ln:
            a = _norm(self.norm_after, a)
        return Offer(r if config.is_parallel else h, read, a.to(h.dtype), rest, partial(self._finish, state))

    def _finish(self, state: SublayerState, h: Tensor) -> SublayerState:
        if self.norm_after is not None and self.config.adapter_residual_before_ln:
            h = _norm(self.norm_after, h)
        return replace(state, h=h, final=not self.config.original_ln_after)

    def _gated(self, a: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        return a if self.gate is None else a * self.gate(x, mask).to(a.dtype)

    def _bottleneck(self, x: Tensor) -> Tensor:
        if self.norm_before is not None:
            x = _norm(self.norm_before, x)
        z = self.activation(_linear(self.down, x))  # (rows, positions, b)
        u = _linear(self.up, z)  # (rows, positions, d)
        if self.training and self.config.stochastic_depth:
            keep = 1 - self.config.stochastic_depth
            u = u * u.new_empty(u.shape[0], *[1] * (u.dim() - 1)).bernoulli_(keep) / keep
        return u * (self.scaling.to(u.dtype) if isinstance(self.scaling, Tensor) else self.scaling)


def _linear(layer: nn.Linear | PHMLinear, x: Tensor) -> Tensor:
    weight = layer.matrix() if isinstance(layer, PHMLinear) else layer.weight
    return F.linear(x, weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))


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
