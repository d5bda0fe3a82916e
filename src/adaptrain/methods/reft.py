"""ReFT: hidden states edited in few directions, at few positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptrain.errors import listed
from adaptrain.methods.activations import ACTIVATIONS, unknown_activation
from adaptrain.methods.base import Build, MethodConfig, PointLike, Unit, kept_in, register_method, register_preset
from adaptrain.state import LayerState


@register_method
@dataclass(frozen=True, kw_only=True)
class ReftConfig(MethodConfig):
    """Representation fine-tuning of the hidden states that a layer returns.

        Φ(h) = Dropout(h + Rᵀ (act(W h + b) − R h))        or, without subtract_projection,
        Φ(h) = Dropout(h + Rᵀ act(W h + b))

    with W (r, d), b (r), R (r, d), at the first `prefix_positions` tokens of a row and at the last `suffix_positions`
    tokens of its prompt; padding does not count. `orthogonality` makes the rows of R orthonormal: R = Q of the thin QR
    decomposition of the parameter, with the signs that make the triangle's diagonal positive.

    Source: Wu et al. 2024, *ReFT: Representation Finetuning for Language Models*, equations 2 and 3.

    Attributes:
        layers: "all", or layers counted over the whole model.
        prefix_positions, suffix_positions: how many tokens at each end.
        r: rank.
        orthogonality: whether the rows of R are orthonormal.
        tied_weights: the suffix uses the prefix's weights. A position at both ends is edited once, by the prefix.
        subtract_projection: whether R h is taken off.
        dropout: on the edited state as a whole.
        non_linearity: act; none when None.
        dtype: what the parameters are kept in; float32 when None.
        output_reft: on the layers' outputs, the only place there is.
        leave_out: layers without units, whatever `layers` says.
    """

    method: ClassVar[str] = "reft"

    layers: Literal["all"] | tuple[int, ...]
    prefix_positions: int
    suffix_positions: int
    r: int
    orthogonality: bool
    tied_weights: bool = False
    subtract_projection: bool = True
    dropout: float = 0.05
    non_linearity: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    output_reft: Literal[True] = True
    leave_out: tuple[int, ...] = ()

    def problems(self) -> Iterator[str]:
        if self.layers != "all":
            if not self.layers:
                yield "layers is empty; name some, or 'all'"
            if any(layer < 0 for layer in self.layers):
                yield f"layers is {list(self.layers)}; layers are counted from 0"
        for key in ("prefix_positions", "suffix_positions"):
            if getattr(self, key) < 0:
                yield f"{key} is {getattr(self, key)}; it must be at least 0"
        if self.prefix_positions == self.suffix_positions == 0:
            yield "prefix_positions and suffix_positions are both 0; nothing would be edited"
        if self.r < 1:
            yield f"r is {self.r}; a rank is at least 1"
        if not 0 <= self.dropout < 1:
            yield f"dropout is {self.dropout}; it must lie in [0, 1)"
        if self.non_linearity is not None and (problem := unknown_activation(self.non_linearity)) is not None:
            yield problem

    def covers(self, point: PointLike) -> bool:
        chosen = self.layers == "all" or point.layer in self.layers
        return point.kind == "layer" and chosen and point.layer not in self.leave_out

    def choose(self, points: Sequence[PointLike]) -> list[PointLike]:
        layers = {point.layer for point in points if point.kind == "layer"}
        if self.layers != "all" and (missing := sorted(set(self.layers) - layers)):
            raise self.error(f"layers names {listed(missing)}; this model has the layers 0 to {max(layers)}")
        return super().choose(points)

    def build(self, points: Sequence[PointLike]) -> Build:
        units = {}
        for point in points:
            if self.r > point.hidden_size:
                raise self.error(f"r is {self.r}, more than the hidden size {point.hidden_size}")
            units[point.name] = kept_in(self.dtype, Reft(self, point.hidden_size))
        return Build(units)


class Reft(Unit):
    """The edit of one layer's output; see `ReftConfig`."""

    def __init__(self, config: ReftConfig, hidden_size: int) -> None:
        super().__init__()
        self.ends = (config.prefix_positions, config.suffix_positions)
        self.prefix = Edit(config, hidden_size)
        self.suffix = None if config.tied_weights else Edit(config, hidden_size)

    def forward(self, state: LayerState) -> LayerState:
        first, last = self.ends
        begin = chosen(state.from_start, first)
        end = chosen(state.from_end, last) * (1 - begin.sum(1, keepdim=True))  # nowhere twice
        if self.suffix is None:
            rows = max(begin.shape[0], end.shape[0])
            both = torch.cat([begin.expand(rows, -1, -1), end.expand(rows, -1, -1)], 1)
            return replace(state, h=edited(state.h, both, self.prefix))
        return replace(state, h=edited(edited(state.h, begin, self.prefix), end, self.suffix))


class Edit(nn.Module):
    """Φ for one end of the text."""

    def __init__(self, config: ReftConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.source = nn.Linear(hidden_size, config.r)
        self.projection = nn.Parameter(nn.Linear(hidden_size, config.r, bias=False).weight.detach().clone())

    def rows(self) -> Tensor:
        """R (r, d)."""
        return orthonormal(self.projection) if self.config.orthogonality else self.projection

    def forward(self, x: Tensor) -> Tensor:
        """Φ(x), (rows, positions, d)."""
        config, r = self.config, self.rows().to(x.dtype)
        edit = F.linear(x, self.source.weight.to(x.dtype), self.source.bias.to(x.dtype))  # (rows, positions, r)
        if config.non_linearity is not None:
            edit = ACTIVATIONS[config.non_linearity.lower()](edit)
        if config.subtract_projection:
            edit = edit - F.linear(x, r)
        return F.dropout(x + F.linear(edit, r.t()).to(x.dtype), config.dropout, self.training)


def chosen(order: Tensor, count: int) -> Tensor:
    """One row for each of the first `count` tokens, a one where it stands: (rows, count, positions). A row of fewer
    tokens has rows of zeros, and chooses nothing with them."""
    return (order[:, None] == torch.arange(count, device=order.device)[:, None]).to(torch.float32)


def edited(h: Tensor, chosen: Tensor, edit: Edit) -> Tensor:
    """h with Φ at the chosen positions; the others are not computed."""
    chosen = chosen.to(h.dtype).expand(h.shape[0], -1, -1)
    x = chosen @ h  # (rows, count, d)
    return h + (chosen.transpose(1, 2) @ (edit(x) - x).to(h.dtype))


def orthonormal(raw: Tensor) -> Tensor:
    """Orthonormal rows that span the rows of `raw` (r, d); rows that are orthonormal stay what they are."""
    with torch.autocast(raw.device.type, enabled=False):
        wide = raw.to(torch.promote_types(raw.dtype, torch.float32))
        if len(raw) == 1:
            return wide / torch.linalg.vector_norm(wide)
        q, triangle = torch.linalg.qr(wide.t())
        signs = torch.where(triangle.diagonal() < 0, -1.0, 1.0).to(q.dtype)
        return (q * signs).t()


@dataclass(frozen=True, kw_only=True)
class LoReftConfig(ReftConfig):
    """R with orthonormal rows. Wu et al. 2024, equation 2."""

    layers: Literal["all"] | tuple[int, ...] = "all"
    prefix_positions: int = 3
    suffix_positions: int = 0
    r: int = 1
    orthogonality: bool = True


@dataclass(frozen=True, kw_only=True)
class NoReftConfig(LoReftConfig):
    """R is free."""

    orthogonality: bool = False


@dataclass(frozen=True, kw_only=True)
class DiReftConfig(NoReftConfig):
    """R is free, and R h is not taken off. Wu et al. 2024, equation 3."""

    subtract_projection: bool = False


for _name, _class in {"loreft": LoReftConfig, "noreft": NoReftConfig, "direft": DiReftConfig}.items():
    register_preset(_name, _class)
