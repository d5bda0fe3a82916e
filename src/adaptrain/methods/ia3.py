"""IA³: a trained factor for each feature of keys, values and the MLP's inner activation."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from adaptrain.methods.base import PointLike, Unit
from adaptrain.state import ActivationState, ProjectionState

if TYPE_CHECKING:
    from adaptrain.methods.lora import LoRAConfig


class Scale(Unit):
    """α · l ⊙ y, at a projection; see `IA3Config`. Merged: diag(α l) W and α l ⊙ b."""

    def __init__(self, config: LoRAConfig, point: PointLike) -> None:
        super().__init__()
        self.alpha = config.alpha
        self.scale = nn.Parameter(torch.ones(point.out_features))

    def forward(self, state: ProjectionState) -> ProjectionState:
        return replace(state, y=state.y * self._factor(state.y))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        factor = self._factor(weight)
        return factor[:, None] * weight, None if bias is None else factor * bias

    def _factor(self, like: Tensor) -> Tensor:
        return (self.alpha * self.scale).to(like.dtype)


class ActivationScale(Scale):
    """α · l ⊙ h, at the MLP's inner activation. Merged into the map that reads it: W diag(α l), b as it is."""

    def forward(self, state: ActivationState) -> ActivationState:  # type: ignore[override]
        return replace(state, h=state.h * self._factor(state.h))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight * self._factor(weight), bias
