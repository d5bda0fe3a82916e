"""Prefix tuning: trained keys and values before those of every attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptrain.methods.activations import ACTIVATIONS, unknown_activation
from adaptrain.methods.base import Build, MethodConfig, PointLike, Shared, Unit, register_method, register_preset
from adaptrain.methods.gate import Gate
from adaptrain.state import AttentionState


@register_method
@dataclass(frozen=True, kw_only=True)
class PrefixTuningConfig(MethodConfig):
    """Prefix tuning.

        headᵢ = Attention(Q Wᵢ^Q, [Pᵢ^K ; K Wᵢ^K], [Pᵢ^V ; V Wᵢ^V])

    P comes after rotary embedding and cache: it has no position, every query sees it, and it is never cached. The
    layers of one location (encoder self-attention, decoder self-attention, cross-attention) share one module:

        P = act(E W_down + b_down) W_up + b_up        E (l, d), W_down (d, k), W_up (k, 2 · L · heads · head_dim)

    or, with `flat`, P itself is the parameter. The last axis of P reads [layer, key | value, head, head_dim].

    With `use_gating` each layer has UniPELT's gate (`methods.gate`), read from what the queries are made from: P^K and
    P^V are multiplied by it. On causal models every query has a gate of its own, for its scores and weights of P.

    Source: Li & Liang 2021, *Prefix-Tuning*, section 4; the unpositioned form is the reference library's.

    Attributes:
        flat: optimise P directly instead of through the MLP.
        prefix_length: l.
        bottleneck_size: k.
        dropout: on P, drawn for each row.
        encoder_prefix, cross_prefix: encoder-decoders only: in the encoder's and in the cross-attention. The decoder's
            self-attention always has one.
        use_gating: with a gate a layer.
        shared_gating: one gate for keys and values; not to be split on causal models.
        leave_out: layers without a prefix, counted over the whole model.
        as_adapterhub: as AdapterHub computes. Gates are means over padding and later tokens too; where the model has
            relative positions (T5), P counts among them, so that all tokens are further away by l.
    """

    method: ClassVar[str] = "prefix_tuning"

    flat: bool = False
    prefix_length: int = 30
    bottleneck_size: int = 512
    non_linearity: str = "tanh"
    dropout: float = 0.0
    encoder_prefix: bool = True
    cross_prefix: bool = True
    use_gating: bool = False
    shared_gating: bool = True
    leave_out: tuple[int, ...] = ()
    as_adapterhub: bool = False

    def problems(self) -> Iterator[str]:
        for key in ("prefix_length", "bottleneck_size"):
            if getattr(self, key) < 1:
                yield f"{key} is {getattr(self, key)}; it must be at least 1"
        if not 0 <= self.dropout < 1:
            yield f"dropout is {self.dropout}; it must lie in [0, 1)"
        if (problem := unknown_activation(self.non_linearity)) is not None:
            yield problem
        if not self.shared_gating and not self.use_gating:
            yield "shared_gating is for use_gating; leave it true without"

    def covers(self, point: PointLike) -> bool:
        if point.kind != "attention" or point.layer in self.leave_out:
            return False
        if point.sublayer == "cross_attention":
            return self.cross_prefix
        return self.encoder_prefix or point.stack != "encoder" or not point.encoder_decoder

    def build(self, points: Sequence[PointLike]) -> Build:
        locations: dict[str, list[PointLike]] = {}
        for point in points:
            locations.setdefault(f"{point.stack}.{point.sublayer}", []).append(point)
        shared, units = {}, {}
        for location, members in locations.items():
            first = members[0]
            if any((point.heads, point.head_dim) != (first.heads, first.head_dim) for point in members):
                raise self.error(f"the layers of {location} have key/value heads of different sizes")
            prefix = Prefix(self, len(members), first.heads, first.head_dim, first.hidden_size)
            shared[location] = prefix
            units |= {point.name: PrefixUnit(self, prefix, index, point) for index, point in enumerate(members)}
        return Build(units, shared)


class Prefix(Shared):
    """The prefixes of all layers of one location; see `PrefixTuningConfig`."""

    def __init__(self, config: PrefixTuningConfig, layers: int, heads: int, head_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.shape = (config.prefix_length, 2 * layers, heads, head_dim)
        width = 2 * layers * heads * head_dim
        if config.flat:
            self.prefix = nn.Parameter(torch.randn(config.prefix_length, width))
            return
        self.activation = ACTIVATIONS[config.non_linearity.lower()]
        self.embedding = nn.Parameter(torch.randn(config.prefix_length, hidden_size))
        self.down = nn.Linear(hidden_size, config.bottleneck_size)
        self.up = nn.Linear(config.bottleneck_size, width)

    def compute(self) -> Tensor:
        """P as (2 · layers, heads, prefix_length, head_dim)."""
        return self.flat().view(self.shape).permute(1, 2, 0, 3)

    def flat(self) -> Tensor:
        """P as (prefix_length, 2 · layers · heads · head_dim)."""
        if "prefix" in self._parameters:
            return self.prefix
        with torch.autocast(self.embedding.device.type, enabled=False):
            return self.up(self.activation(self.down(self.embedding)))

    def take(self, whole: Prefix) -> None:
        """What the layers have in common; each unit takes its own share."""
        if "prefix" not in self._parameters:
            self.embedding.data.copy_(whole.embedding)
            self.down.load_state_dict(whole.down.state_dict())

    def shares(self, index: int) -> list[Tensor]:
        """A layer's share of the parameters, keys and values, as views that can be written to."""
        last = [self.prefix.t()] if "prefix" in self._parameters else [self.up.weight, self.up.bias]
        size = self.shape[2] * self.shape[3]
        return [each.detach()[2 * index * size : 2 * (index + 1) * size] for each in last]


class PrefixUnit(Unit):
    """One layer's share of a location's prefix."""

    def __init__(self, config: PrefixTuningConfig, prefix: Prefix, index: int, point: PointLike) -> None:
        super().__init__()
        self._shared = (prefix,)  # in a tuple: the parameters belong to the location, not to this layer
        self.index = index
        self.dropout = config.dropout
        self.counted = config.as_adapterhub
        self.extends = (config.prefix_length, 0)
        self.gate = None
        if config.use_gating:
            outputs = 1 if config.shared_gating else 2
            self.gate = Gate(point.hidden_size, point.causal, config.as_adapterhub, outputs)
            if self.gate.by_token and outputs == 2:
                raise config.error(
                    "shared_gating is false, but a causal model gates each query's view of the prefix as a whole"
                )

    def take(self, whole: PrefixUnit) -> None:
        super().take(whole)
        mine, theirs = self._shared[0].shares(self.index), whole._shared[0].shares(whole.index)
        for own, other in zip(mine, theirs, strict=True):
            own.copy_(other)

    def forward(self, state: AttentionState) -> AttentionState:
        both = self._shared[0].current()[2 * self.index : 2 * self.index + 2].to(state.keys.dtype)
        rows = state.keys.shape[0]
        keys, values = (
            F.dropout(part.expand(rows, -1, -1, -1), self.dropout, self.training) for part in both
        )  # (rows, heads, l, head_dim)
        length = keys.shape[2]
        if self.gate is None:
            return state.extend_left(length, visible=True, keys=keys, values=values, counted=self.counted)
        assert state.hidden is not None
        gates = self.gate(state.hidden, state.tokens).to(keys.dtype)  # (rows, 1 or queries, gates)
        if self.gate.by_token:
            by_query = gates[:, None].expand(-1, -1, -1, length)  # (rows, 1, queries, l)
            return state.extend_left(length, visible=True, keys=keys, values=values, gates=by_query)
        of_keys, of_values = gates[..., :1, None], gates[..., -1:, None]  # (rows, 1, 1, 1)
        keys, values = keys * of_keys, values * of_values
        return state.extend_left(length, visible=True, keys=keys, values=values, counted=self.counted)


def eject(tensors: Mapping[str, Prefix]) -> dict[str, Tensor]:
    """The flat parameters of reparameterised prefixes, by location."""
    with torch.no_grad():
        return {location: prefix.flat().detach().clone() for location, prefix in tensors.items()}


register_preset("prefix_tuning", PrefixTuningConfig)
register_preset("prefix_tuning_flat", partial(PrefixTuningConfig, flat=True))
