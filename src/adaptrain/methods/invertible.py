"""Invertible adapters: embeddings changed on the way in, and changed back before the output embedding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptrain.methods.activations import ACTIVATIONS
from adaptrain.methods.base import Unit
from adaptrain.state import EmbeddingState

if TYPE_CHECKING:
    from adaptrain.methods.bottleneck import BnConfig


class Coupling(nn.Module):
    """A small network, W_up act(W_down z + b_down) + b_up, that couples one half of the features to the other."""

    def __init__(self, config: BnConfig, in_features: int, out_features: int) -> None:
        super().__init__()
        assert config.inv_adapter_reduction_factor is not None
        size = max(1, int(in_features // config.inv_adapter_reduction_factor))
        self.activation: Callable[[Tensor], Tensor] = ACTIVATIONS[config.non_linearity.lower()]
        self.down, self.up = nn.Linear(in_features, size), nn.Linear(size, out_features)
        for layer in (self.down, self.up):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, z: Tensor) -> Tensor:
        low = F.linear(z, self.down.weight, self.down.bias)
        return F.linear(self.activation(low), self.up.weight, self.up.bias)


class Nice(Unit):
    """Additive coupling of the halves z = [z₁, z₂]:

        y₁ = z₁ + F(z₂),  y₂ = z₂ + G(y₁)        and back:  z₂ = y₂ − G(y₁),  z₁ = y₁ − F(z₂)

    Source: Dinh et al. 2015, *NICE*; Pfeiffer et al. 2020, *MAD-X*, section 2.2.3.
    """

    wide = 1
    """Numbers that F and G give for each feature that they change."""

    def __init__(self, config: BnConfig, size: int) -> None:
        super().__init__()
        self.at_head = config.inv_adapter_at_head
        self.halves = (size // 2, size - size // 2)
        first, second = self.halves
        self.F = Coupling(config, second, self.wide * first)
        self.G = Coupling(config, first, self.wide * second)

    def forward(self, state: EmbeddingState) -> EmbeddingState:
        return self._changed(state, self.couple)

    def inverse(self, state: EmbeddingState) -> EmbeddingState:
        return self._changed(state, self.uncouple) if self.at_head else state

    def couple(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """y₁, y₂ of z₁, z₂."""
        first = first + self.F(second)
        return first, second + self.G(first)

    def uncouple(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """z₁, z₂ of y₁, y₂."""
        second = second - self.G(first)
        return first - self.F(second), second

    def _changed(
        self, state: EmbeddingState, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    ) -> EmbeddingState:
        h = state.h
        with torch.autocast(h.device.type, enabled=False):  # what is undone must have been exact
            first, second = h.to(self.F.down.weight.dtype).split(self.halves, -1)
            return replace(state, h=torch.cat(change(first, second), -1).to(h.dtype))


class Glow(Nice):
    """Affine coupling, with e(s) = exp(5 · 0.636 · atan(s / 5)), [s₂, t₂] = F(z₂) and [s₁, t₁] = G(y₁):

        y₁ = e(s₂) ⊙ z₁ + t₂,  y₂ = e(s₁) ⊙ z₂ + t₁

    Source: Kingma & Dhariwal 2018, *Glow*, section 3.3; the clamped exponent is that of Ardizzone et al. 2019.
    """

    wide = 2

    def couple(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.F(second).chunk(2, -1)
        first = _exp(scale) * first + shift
        scale, shift = self.G(first).chunk(2, -1)
        return first, _exp(scale) * second + shift

    def uncouple(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.G(first).chunk(2, -1)
        second = (second - shift) / _exp(scale)
        scale, shift = self.F(second).chunk(2, -1)
        return (first - shift) / _exp(scale), second


def _exp(s: Tensor) -> Tensor:
    return torch.exp(5 * 0.636 * torch.atan(s / 5))
