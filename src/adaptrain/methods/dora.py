"""DoRA: a linear map's rows as magnitude times direction, the direction changed by a low-rank update."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptrain.methods.base import PointLike
from adaptrain.methods.low_rank import LoRA, LowRank, readable
from adaptrain.methods.vera import VeRA
from adaptrain.state import ProjectionState

if TYPE_CHECKING:
    from adaptrain.methods.lora import LoRAConfig


class Decomposed(LowRank):
    """ρ ⊙ (W x + s · B A D(x)) + b with ρ = m / ‖W + s · B A‖, a norm for each row that is constant to the gradient.

    Merged: ρ ⊙ (W + s · B A), b as it is.

    As AdapterHub: ρ ⊙ (W x + b + s · B A D(x)) with ρ = m / ‖W + B A‖, and the gradient goes through the norm.
    """

    def __init__(self, config: LoRAConfig, point: PointLike, *shared: Any) -> None:
        super().__init__(config, point, *shared)
        readable(point)  # in every forward, for the norms: what cannot be is refused when weights are loaded, too
        self.as_adapterhub = config.as_adapterhub
        self.m = nn.Parameter(torch.ones(point.out_features))

    def start(self, point: PointLike) -> None:
        weight = readable(point)
        if weight is not None:
            with torch.no_grad():
                a, b = self.factors()
                self.m.copy_(row_norms(weight, a, torch.zeros_like(b)))

    def forward(self, state: ProjectionState) -> ProjectionState:
        assert state.map is not None
        a, b = self.factors()
        bias = state.map.bias
        ratio = self._ratio(state.map.weight, a, b)  # (out,)
        change = ratio - 1  # small, so that it keeps its digits in the state's dtype
        offset = None if bias is None or self.as_adapterhub else -change * bias.to(change.device)
        low = self.low(state, a)
        scaled = (self.scaling * ratio)[:, None] * b
        delta = F.linear(low, scaled.to(low.dtype), None if offset is None else offset.to(low.dtype))
        y = state.y
        return replace(state, y=torch.addcmul(y + delta.to(y.dtype), y, change.to(y.dtype)))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        ratio = self._ratio(weight, *self.factors()).to(weight.dtype)
        if self.as_adapterhub and bias is not None:
            bias = ratio * bias
        return ratio[:, None] * (weight + self.update(weight)), bias

    def _ratio(self, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            if self.as_adapterhub:
                return self.m / row_norms(weight, a, b)
            return self.m / row_norms(weight, a.detach(), self.scaling * b.detach())


class DoRA(Decomposed, LoRA):
    """A and B as LoRA's; see `DoRAConfig`."""


class DvoRA(Decomposed, VeRA):
    """A and B as VeRA's; see `DvoRAConfig`."""


def row_norms(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """‖W + B A‖ of each row, (out,), never less than 1e-15.

    Without W + B A itself: ‖w + b A‖² = ‖w‖² + 2 b · (A w) + b (A Aᵀ) bᵀ, which is as exact as the sum is (1e-7). The
    first term is summed in float64, so that it is the same number on every device and m / ‖W‖ is exactly one at the
    start; that costs half of the time that the norms take.
    """
    weight = weight.to(a.device, torch.promote_types(a.dtype, torch.float32))
    a, b = a.to(weight.dtype), b.to(weight.dtype)
    wide = torch.float32 if weight.device.type == "mps" else torch.float64  # Apple's chip has no float64
    square = torch.linalg.vector_norm(weight, dim=1, dtype=wide).square()
    change = ((2 * (weight @ a.t()) + b @ (a @ a.t())) * b).sum(1)
    return (square + change).clamp(min=1e-30).sqrt().to(weight.dtype)
