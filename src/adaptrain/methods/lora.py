"""LoRA: a low-rank update of a linear map."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F

from adaptrain.methods.base import Build, MethodConfig, PointLike, Unit, register_method, register_preset
from adaptrain.state import ProjectionState

_MATRICES = {"q": "query", "k": "key", "v": "value"}


@register_method
@dataclass(frozen=True, kw_only=True)
class LoRAConfig(MethodConfig):
    """Low-Rank Adaptation.

        y = W x + b + (α / r) · B A D(x)

    with A (r, in), B (out, r), D dropout. A ~ kaiming-uniform(a = √5) and B = 0, so a fresh adapter is the identity;
    `init_weights="bert"` draws both from N(0, 0.02²).

    Source: Hu et al. 2021, *LoRA: Low-Rank Adaptation of Large Language Models*, equation 3.

    Attributes:
        selfattn_lora: on the attention projections named by `attn_matrices` (self- and cross-attention).
        intermediate_lora: on the first linear map of the MLP (`mlp.up`).
        output_lora: on the last linear map of the MLP (`mlp.down`).
        attn_matrices: of q, k, v.
        r: rank.
        alpha: numerator of the scaling α / r.
        dropout: on the input of A.
        leave_out: layers without units, counted over the whole model.
    """

    method: ClassVar[str] = "lora"

    selfattn_lora: bool = True
    intermediate_lora: bool = False
    output_lora: bool = False
    attn_matrices: tuple[Literal["q", "k", "v"], ...] = ("q", "v")
    r: int = 8
    alpha: float = 8
    dropout: float = 0.0
    init_weights: Literal["lora", "bert"] = "lora"
    leave_out: tuple[int, ...] = ()

    @property
    def identity_at_start(self) -> bool:  # type: ignore[override]
        return self.init_weights == "lora"

    def problems(self) -> Iterator[str]:
        if self.r < 1:
            yield f"r is {self.r}; a rank is at least 1"
        if self.alpha <= 0:
            yield f"alpha is {self.alpha}; it must be positive"
        if not 0 <= self.dropout < 1:
            yield f"dropout is {self.dropout}; it must lie in [0, 1)"
        if self.selfattn_lora and not self.attn_matrices:
            yield "attn_matrices is empty although selfattn_lora is true; name some of q, k, v"
        if not (self.selfattn_lora or self.intermediate_lora or self.output_lora):
            yield "selfattn_lora, intermediate_lora and output_lora are all false; nothing would be adapted"

    def covers(self, point: PointLike) -> bool:
        if point.kind != "projection" or point.layer in self.leave_out:
            return False
        if point.sublayer == "mlp":
            return (self.intermediate_lora and point.role == "up") or (self.output_lora and point.role == "down")
        return self.selfattn_lora and point.role in {_MATRICES[matrix] for matrix in self.attn_matrices}

    def build(self, points: Sequence[PointLike]) -> Build:
        return Build({point.name: LoRA(self, point.in_features, point.out_features) for point in points})


class LoRA(Unit):
    """y + (α / r) · B A D(x) at one projection; see `LoRAConfig`."""

    def __init__(self, config: LoRAConfig, in_features: int, out_features: int) -> None:
        super().__init__()
        self.scaling = config.alpha / config.r
        self.dropout = config.dropout
        self.A = nn.Parameter(torch.empty(config.r, in_features))
        self.B = nn.Parameter(torch.zeros(out_features, config.r))
        if config.init_weights == "bert":
            nn.init.normal_(self.A, std=0.02)
            nn.init.normal_(self.B, std=0.02)
        else:
            nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, state: ProjectionState) -> ProjectionState:
        x = F.dropout(state.x, self.dropout, self.training)  # (rows, positions, in)
        low = F.linear(x, self.A.to(x.dtype))  # (rows, positions, r)
        delta = F.linear(low, self.B.to(x.dtype))  # (rows, positions, out)
        return replace(state, y=state.y + (self.scaling * delta).to(state.y.dtype))


register_preset("lora", LoRAConfig)
