"""Linear maps, and the activation between the maps of an MLP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from adaptrain.points import LinearPart, Point
from adaptrain.sites.base import Handle, Site
from adaptrain.state import ActivationState, ProjectionState


class ProjectionSite(Site):
    """One linear map, or one part of a fused one.

    Args:
        reads: the stack whose hidden states the map reads: the encoder's for keys and values of cross-attention.
    """

    def __init__(self, point: Point, part: LinearPart, reads: str) -> None:
        super().__init__(point)
        self.part, self.reads = part, reads

    def hook(self) -> Iterator[Handle]:
        yield self.part.module.register_forward_hook(self._out)

    def _out(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        here = self.in_force()
        if here is None:
            return None
        forward, tree = here
        x = args[0]
        mask = forward.tokens[self.reads].mask(x.shape[1])
        if mask is not None and mask.shape != x.shape[:2]:
            mask = None  # DeBERTa puts relative positions, which are no tokens, through the map of the keys
        state = ProjectionState(x, self.part.cut(output, -1), mask, self.part)
        return self.part.put(output, self.run(tree, state).y, -1)


class ActivationSite(Site):
    """The input of an MLP's last map."""

    def __init__(self, point: Point, part: LinearPart) -> None:
        super().__init__(point)
        self.part = part

    def hook(self) -> Iterator[Handle]:
        yield self.part.module.register_forward_pre_hook(self._in)

    def _in(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        here = self.in_force()
        return None if here is None else (self.run(here[1], ActivationState(args[0])).h, *args[1:])
