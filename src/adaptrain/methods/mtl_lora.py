"""MTL-LoRA: a low-rank update with a matrix of the task between its factors, and several of the second factor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from adaptrain.methods.base import PointLike
from adaptrain.methods.low_rank import LowRank, draw

if TYPE_CHECKING:
    from adaptrain.methods.lora import MTLLoRAConfig


class MTLLoRA(LowRank):
    """y + (α / r) · Σᵢ softmax(w / τ)ᵢ Bᵢ Λ A D(x); see `MTLLoRAConfig`."""

    def __init__(self, config: MTLLoRAConfig, point: PointLike) -> None:
        super().__init__(config, point)
        count = config.n_up_projection
        self.sharpness = config.weights_sharpness
        self.A = nn.Parameter(torch.empty(self.rank, point.in_features))
        self.B = nn.Parameter(torch.empty(count, point.out_features, self.rank))
        self.weights = nn.Parameter(torch.ones(count))
        if config.task_specific_matrix_type == "linear":
            self.task = nn.Parameter(torch.eye(self.rank))
        else:
            self.values = nn.Parameter(torch.ones(self.rank))
        draw(self.A, self.B, config)

    def factors(self) -> tuple[Tensor, Tensor]:
        shares = torch.softmax(self.weights / self.sharpness, 0)  # (n,)
        b = torch.einsum("n,nor->or", shares, self.B)
        return self.A, b @ self.task if "task" in self._parameters else b * self.values
