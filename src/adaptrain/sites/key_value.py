"""Keys and values of attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from adaptrain import attention
from adaptrain.context import Forward, current_forward
from adaptrain.points import Point
from adaptrain.sites.base import Handle, Site
from adaptrain.state import AttentionState


class AttentionSite(Site):
    """Keys and values of one attention, through transformers' attention registry."""

    def __init__(self, point: Point, module: nn.Module) -> None:
        super().__init__(point)
        self.module = module

    def hook(self) -> Iterator[Handle]:
        attention.mark(self.module, self)
        yield _Unmark(self.module)
        yield self.module.register_forward_pre_hook(self._in, with_kwargs=True)

    def _in(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forward = current_forward()
        if forward is not None and self in forward.plan:
            forward.taken[self] = args[0] if args else kwargs["hidden_states"]

    def change(self, state: AttentionState) -> AttentionState:
        here = self.in_force()
        if here is None:
            return state
        forward, tree = here
        hidden = forward.taken.pop(self)
        return self.run(tree, replace(state, hidden=hidden, tokens=_tokens(forward, self.point, hidden)))


class ComputedAttentionSite(Site):
    """Keys and values of an attention module that computes attention itself (MPNet).

    Queries, keys and values are taken from the projections as the adapters before have left them; when the module
    hands its attended values to the output projection, they are computed anew, with the prefix, and put in their place.
    """

    def __init__(self, point: Point, module: nn.Module, parts: Mapping[str, nn.Module]) -> None:
        super().__init__(point)
        self.module, self.parts = module, parts

    def hook(self) -> Iterator[Handle]:
        yield self.module.register_forward_pre_hook(self._in, with_kwargs=True)
        yield self.parts["query"].register_forward_hook(self._query)
        yield self.parts["key"].register_forward_hook(self._key)
        yield self.parts["value"].register_forward_hook(self._value)
        yield self.parts["output"].register_forward_pre_hook(self._attended)

    def _in(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forward = current_forward()
        if forward is not None and self in forward.plan:
            named = dict(zip(("hidden_states", "attention_mask", "position_bias"), args, strict=False)) | kwargs
            forward.taken[self] = {
                "hidden": named["hidden_states"],
                "mask": named.get("attention_mask"),
                "bias": named.get("position_bias"),
            }

    def _take(self, role: str, output: Tensor) -> None:
        forward = current_forward()
        if forward is not None and self in forward.taken:
            heads = output.unflatten(-1, (-1, self.point.head_dim)).transpose(1, 2)
            forward.taken[self][role] = heads  # (rows, heads, positions, head_dim)

    def _query(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._take("query", output)

    def _key(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._take("key", output)

    def _value(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._take("value", output)

    def _attended(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        here = self.in_force()
        taken = None if here is None else here[0].taken.pop(self, None)
        if taken is None or here is None:
            return None
        forward, tree = here
        tokens = _tokens(forward, self.point, taken["hidden"])
        state = AttentionState(
            taken["key"], taken["value"], taken["mask"], taken["bias"], hidden=taken["hidden"], tokens=tokens
        )
        state = self.run(tree, state)
        dropout = float(self.module.dropout.p)  # type: ignore[union-attr]
        return (attention.attend_with_state(taken["query"], state, dropout, self.module.training), *args[1:])


class _Unmark:
    """A handle for a mark, so that it is taken back like a hook."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def remove(self) -> None:
        attention.mark(self.module, None)


def _tokens(forward: Forward, point: Point, hidden: Tensor) -> Tensor | None:
    return forward.tokens[point.stack].mask(hidden.shape[1])
