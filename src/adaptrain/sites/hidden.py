"""Hidden states: what a sublayer adds to the residual stream, and what a layer returns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from adaptrain.context import current_forward
from adaptrain.points import Point
from adaptrain.sites.base import Handle, Site, first_of, with_first
from adaptrain.state import LayerState, SublayerState
from adaptrain.upstream import Arguments


class SublayerSite(Site):
    """The output of a sublayer, with the residual taken where the model takes it.

    A site acts once for each residual taken, and consumes it whether it acts or not: some models fire one module for
    two sublayers, and a residual left over would be used by the wrong one.

    A state that is final replaces what the model's norm returns; without a norm the residual is taken off again.

    Args:
        beside: a module before `output` whose output is added as well.
    """

    def __init__(
        self,
        point: Point,
        output: nn.Module,
        residual: nn.Module,
        argument: int,
        norm: nn.Module | None,
        beside: nn.Module | None = None,
    ) -> None:
        super().__init__(point)
        self.output, self.residual, self.argument, self.norm, self.beside = output, residual, argument, norm, beside
        self.arguments = Arguments(residual)

    def hook(self) -> Iterator[Handle]:
        yield self.residual.register_forward_pre_hook(self._in, with_kwargs=True)
        if self.beside is not None:
            yield self.beside.register_forward_hook(self._add)
        yield self.output.register_forward_hook(self._out)
        if self.norm is not None:
            yield self.norm.register_forward_hook(self._normed)

    def _in(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forward = current_forward()
        if forward is not None:
            forward.taken[self] = self.arguments.at(self.argument, args, kwargs)

    def _add(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        forward = current_forward()
        if forward is not None and self in forward.taken:
            forward.taken[self] = forward.taken[self] + first_of(output)

    def _out(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        forward, here = current_forward(), self.in_force()
        residual = None if forward is None else forward.taken.pop(self, None)
        if residual is None or here is None:
            return None
        forward, tree = here
        h = first_of(output)
        mask = forward.tokens[self.point.stack].mask(h.shape[1])
        state = self.run(tree, SublayerState(h, residual, self.norm, mask))
        if not state.final:
            return with_first(output, state.h)
        if self.norm is None:
            return with_first(output, state.h - residual)
        forward.taken[self, "final"] = state.h
        return None

    def _normed(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        forward = current_forward()
        return None if forward is None else forward.taken.pop((self, "final"), None)


class LayerSite(Site):
    """The hidden states that a layer returns."""

    def __init__(self, point: Point, layer: nn.Module) -> None:
        super().__init__(point)
        self.layer = layer

    def hook(self) -> Iterator[Handle]:
        yield self.layer.register_forward_hook(self._out, prepend=True)

    def _out(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        here = self.in_force()
        if here is None:
            return None
        forward, tree = here
        h, tokens = first_of(output), forward.tokens[self.point.stack]
        return with_first(output, self.run(tree, LayerState(h, tokens.from_start(h), tokens.from_end(h))).h)
