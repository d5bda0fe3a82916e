"""VeRA: two trained vectors around a frozen random projection that all layers share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from adaptrain.methods.base import PointLike, Shared
from adaptrain.methods.low_rank import LowRank

if TYPE_CHECKING:
    from adaptrain.methods.lora import LoRAConfig


class Frozen(Shared):
    """A (r, widest in) and B (widest out, r), kaiming-uniform(a = 0), from a seed; not trained, not stored."""

    A: Tensor
    B: Tensor

    def __init__(self, rank: int, in_features: int, out_features: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator("cpu").manual_seed(seed)
        for name, shape in {"A": (rank, in_features), "B": (out_features, rank)}.items():
            bound = math.sqrt(6 / shape[1])
            drawn = torch.empty(shape, device="cpu", dtype=torch.float32).uniform_(-bound, bound, generator=generator)
            self.register_buffer(name, drawn, persistent=False)

    def compute(self) -> tuple[Tensor, Tensor]:
        return self.A, self.B


class VeRA(LowRank):
    """y + (α / r) · diag(b) B diag(d) A D(x); see `VeraConfig`. A narrower map uses the first columns and rows."""

    def __init__(self, config: LoRAConfig, point: PointLike, frozen: Frozen) -> None:
        super().__init__(config, point)
        assert config.vera_d is not None and config.vera_b is not None
        self._shared = (frozen,)  # in a tuple: it belongs to the adapter, not to this layer
        self.in_features = point.in_features
        self.d = nn.Parameter(torch.full((self.rank,), float(config.vera_d)))
        self.b = nn.Parameter(torch.full((point.out_features,), float(config.vera_b)))

    def factors(self) -> tuple[Tensor, Tensor]:
        a, b = self._shared[0].current()
        return a[:, : self.in_features], self.b[:, None] * b[: len(self.b)] * self.d
