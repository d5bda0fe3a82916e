"""Keys and values of attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from adaptrain import attention
from adaptrain.context import Forward, current_forward
from adaptrain.points import Point
from adaptrain.sites.base import Handle, Site
from adaptrain.state import AttentionState
from adaptrain.upstream import Arguments, attribute, missing


class AttentionSite(Site):
    """Keys and values of one attention."""

    def __init__(self, point: Point, module: nn.Module) -> None:
        super().__init__(point)
        self.module, self.arguments = module, Arguments(module)

    def hook(self) -> Iterator[Handle]:
        yield self.module.register_forward_pre_hook(self._in, with_kwargs=True)

    def _in(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forward = current_forward()
        if forward is not None and self in forward.plan:
            forward.taken[self] = self.arguments.at(0, args, kwargs)

    def change(self, state: AttentionState) -> AttentionState:
        here = self.in_force()
        if here is None:
            return state
        forward, tree = here
        hidden = forward.taken.pop(self)
        return self.run(tree, replace(state, hidden=hidden, tokens=visible_tokens(forward, self.point, hidden)))


class RegistryAttentionSite(AttentionSite):
    """Keys and values of a module that calls transformers' attention registry.

    Attributes:
        relative: the attention of the stack's first layer, whose relative positions serve all layers (T5); else None.
    """

    relative: Any = None

    def hook(self) -> Iterator[Handle]:
        attention.mark(self.module, self)
        yield _Unmark(self.module)
        yield from super().hook()

    def change(self, state: AttentionState) -> AttentionState:
        if self.relative is not None:
            if state.bias is None:
                raise missing("`position_bias` in a call of the attention registry", self.arguments.owner)
            state = replace(state, wider=partial(self._wider, state.bias.shape[2], state.keys.shape[2]))
        return super().change(state)

    def _wider(self, queries: int, own: int, keys: int) -> Tensor:
        """The bias of `keys` keys, of which the last `own` are the model's, (1, heads, queries, keys)."""
        # of the queries before these, too: the argument that counts them has another name in each release
        return attribute(self.relative, "compute_bias")(own, keys)[:, :, -queries:]


class MethodAttentionSite(AttentionSite):
    """Keys and values of a module that attends in a method of its own, (query, key, value, mask) after rotary embedding
    and cache (GPT-J). The instance gets ours in its place.

    Args:
        method: the method's name.
    """

    def __init__(self, point: Point, module: nn.Module, method: str) -> None:
        super().__init__(point, module)
        self.method = method

    def hook(self) -> Iterator[Handle]:
        yield Overridden(self.module, self.method, self._attend)
        yield from super().hook()

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        state = self.change(AttentionState(key, value, attention_mask))
        if state.gates is not None:
            dropout = float(attribute(self.module, "attn_dropout").p)
            attended = attention.attend_gated(query, state, self.module.training, dropout=dropout)
            return attended.transpose(1, 2), None
        own = getattr(type(self.module), self.method)
        return own(self.module, query, state.keys, state.values, state.mask)


class Overridden:
    """An attribute of one module's instance with another in its place; a handle that takes it back."""

    def __init__(self, module: nn.Module, name: str, value: Any) -> None:
        self.module, self.name = module, name
        module.__dict__[name] = value  # past nn.Module's bookkeeping: it must not look like a part of the base model

    def remove(self) -> None:
        self.module.__dict__.pop(self.name, None)


class _Unmark:
    """A handle for a mark, so that it is taken back like a hook."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def remove(self) -> None:
        attention.mark(self.module, None)


def visible_tokens(forward: Forward, point: Point, hidden: Tensor) -> Tensor | None:
    """Which positions of an attention's queries are tokens."""
    return forward.tokens[point.stack].mask(hidden.shape[1])


def check_attended(forward: Forward) -> None:
    """Refuse a forward in which an attention module has run and its keys and values have come by no site.

    Raises:
        UnsupportedError: names the module.
    """
    for site in forward.taken:
        if isinstance(site, Site) and site.point.kind == "attention":
            raise missing(f"keys and values of {site.point.name}", "a call of the attention registry")
