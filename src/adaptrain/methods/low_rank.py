"""Low-rank updates of a linear map: what LoRA, PiSSA, VeRA and MTL-LoRA have in common, and the first two."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptrain.errors import UnsupportedError
from adaptrain.methods.base import PointLike, Unit
from adaptrain.methods.gate import Gate
from adaptrain.state import ProjectionState

if TYPE_CHECKING:
    from adaptrain.methods.lora import LoRAConfig


class LowRank(Unit):
    """y + s · g · B A D(x) with factors A (r, in) and B (out, r), which subclasses give.

    Merged: W + s · B A, b as it is.

    At a word embedding x is whole numbers: there A x is the column of A that the word names, and D drops words.
    """

    def __init__(self, config: LoRAConfig, point: PointLike) -> None:
        super().__init__()
        self.rank = config.rank(point)
        self.scaling = config.scaling(self.rank)
        self.dropout = config.dropout
        self.gate = Gate(point.in_features, point.causal, config.as_adapterhub) if config.use_gating else None

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (r, in) and B (out, r)."""
        raise NotImplementedError("a low-rank update has factors")

    def start(self, point: PointLike) -> None:
        """Set the weights that begin as something of the base model's."""

    def forward(self, state: ProjectionState) -> ProjectionState:
        a, b = self.factors()
        low = self.low(state, a)
        if self.gate is not None:
            low = low * self.gate(state.x, state.mask)
        delta = F.linear(low, (self.scaling * b).to(low.dtype))  # (rows, positions, out)
        return replace(state, y=state.y + delta.to(state.y.dtype))

    def low(self, state: ProjectionState, a: Tensor) -> Tensor:
        """A D(x), (rows, positions, r)."""
        x = state.x
        if x.is_floating_point():
            return F.linear(F.dropout(x, self.dropout, self.training), a.to(x.dtype))
        low = F.embedding(x, a.t()).to(state.y.dtype)
        return low * F.dropout(torch.ones_like(low[..., :1]), self.dropout, self.training)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.gate is not None:
            raise UnsupportedError("its gate depends on the input")
        return weight + self.update(weight), bias

    def update(self, weight: Tensor) -> Tensor:
        """s · B A, (out, in), in the weight's dtype."""
        a, b = self.factors()
        return (self.scaling * b.to(weight.dtype)) @ a.to(weight.dtype)


class LoRA(LowRank):
    """y + (α / r) · B A D(x); see `LoRAConfig`."""

    def __init__(self, config: LoRAConfig, point: PointLike) -> None:
        super().__init__(config, point)
        self.A = nn.Parameter(torch.empty(self.rank, point.in_features))
        self.B = nn.Parameter(torch.empty(point.out_features, self.rank))
        draw(self.A, self.B, config)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.A, self.B


class PiSSA(LoRA):
    """y + s · (B A − B₀ A₀) D(x), where s · B₀ A₀ is the part of W with the r largest singular values.

    The base model keeps W; A₀ and B₀ are worked out from it again whenever the adapter is built.
    """

    start_a: Tensor
    start_b: Tensor

    def __init__(self, config: LoRAConfig, point: PointLike) -> None:
        super().__init__(config, point)
        a, b = torch.zeros_like(self.A), torch.zeros_like(self.B)
        weight = readable(point)
        if weight is not None:
            wide = torch.promote_types(weight.dtype, torch.float32)
            u, sigma, v = torch.linalg.svd(weight.to(wide), full_matrices=False)
            root = (sigma[: self.rank] / self.scaling).sqrt()
            a, b = (root[:, None] * v[: self.rank]).to(a), (u[:, : self.rank] * root).to(b)
        self.register_buffer("start_a", a, persistent=False)
        self.register_buffer("start_b", b, persistent=False)

    def start(self, point: PointLike) -> None:
        with torch.no_grad():
            self.A.copy_(self.start_a)
            self.B.copy_(self.start_b)

    def factors(self) -> tuple[Tensor, Tensor]:
        # B A − B₀ A₀ = (B − B₀) A + B₀ (A − A₀): both terms are zero at the start, whatever rounding does
        a = torch.cat([self.A, self.A - self.start_a])
        return a, torch.cat([self.B - self.start_b, self.start_b], 1)


def draw(a: Tensor, b: Tensor, config: LoRAConfig) -> None:
    """The first A and B: kaiming-uniform(a = √5) and zero, or with `init_weights="bert"` both from N(0, 0.02²)."""
    if config.init_weights == "bert":
        nn.init.normal_(a, std=0.02)
        nn.init.normal_(b, std=0.02)
    else:
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        nn.init.zeros_(b)


def readable(point: PointLike) -> Tensor | None:
    """The frozen weight at a point (out, in); None where the base model is a geometry without weights.

    Raises:
        UnsupportedError: it is quantised in a way that nobody here can undo.
    """
    assert point.map is not None
    weight = point.map.weight
    if not weight.is_floating_point():
        raise UnsupportedError(f"The weight of {point.name} is quantised, and this method needs its plain numbers")
    return None if weight.is_meta else weight.detach()
