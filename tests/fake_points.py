"""Points of no model, with linear maps of a few features, and what a method builds at them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptrain.methods import Build, LoRAConfig
from adaptrain.state import ProjectionState


@dataclass(frozen=True)
class FakePoint:
    """What a method may know of a point; `map` is the linear map there, where there is one."""

    kind: str
    sublayer: str
    role: str
    in_features: int
    out_features: int
    layer: int = 0
    map: Any = None
    stack: str = "encoder"
    hidden_size: int = 6
    heads: int = 0
    head_dim: int = 0
    encoder_decoder: bool = False
    causal: bool = False

    @property
    def name(self) -> str:
        where = f".{self.layer}" if self.layer >= 0 else ""
        return f"{self.stack}{where}.{self.sublayer}.{self.role or self.kind}"

    def embed(self, text: str) -> Tensor:
        raise NotImplementedError


def linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """A frozen map with random weights."""
    return nn.Linear(in_features, out_features, bias).requires_grad_(False)


def query(map_: Any = None, **changes: Any) -> FakePoint:
    """The query projection of the first layer, 7 → 5 features where no map is given."""
    map_ = map_ or linear(7, 5)
    return FakePoint(
        "projection", "attention", "query", map_.weight.shape[1], map_.weight.shape[0], map=map_, **changes
    )


def model(layers: int = 1, d: int = 6, ffn: int = 10, vocabulary: int = 20, kv: int | None = None) -> list[FakePoint]:
    """The points of a model with a gated MLP, as the sites number them."""
    points = [FakePoint("projection", "embeddings", "words", vocabulary, d, -1, linear(vocabulary, d, False))]
    sizes = {"query": (d, d), "key": (d, kv or d), "value": (d, kv or d), "output": (d, d)}
    for layer in range(layers):
        points += [FakePoint("projection", "attention", r, *s, layer, linear(*s)) for r, s in sizes.items()]
        for role, size in {"up": (d, ffn), "gate": (d, ffn), "down": (ffn, d)}.items():
            points.append(FakePoint("projection", "mlp", role, *size, layer, linear(*size)))
        points.append(FakePoint("activation", "mlp", "", ffn, ffn, layer, points[-1].map))
        points.append(FakePoint("sublayer", "mlp", "", d, d, layer))
    return points


def built(config: LoRAConfig, points: list[FakePoint]) -> Build:
    """What a config makes at those of the points that it chooses, with its fresh weights."""
    chosen = config.choose(points)
    build = config.build(chosen)
    config.start(build, chosen)
    return build


def state_of(
    point: FakePoint, rows: int = 3, positions: int = 4, dtype: torch.dtype = torch.float64
) -> ProjectionState:
    """Random inputs and what the map says to them; all rows but the first are padded."""
    x = torch.randn(rows, positions, point.in_features, dtype=dtype)
    mask = torch.arange(positions) < torch.tensor([positions, 2, 1])[:, None]
    return ProjectionState(x, F.linear(x, point.map.weight, point.map.bias), mask, point.map)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test of a file that imports this draws the same numbers, alone or among others."""
    torch.manual_seed(0)
