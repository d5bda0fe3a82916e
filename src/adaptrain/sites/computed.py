"""Keys and values of attention modules that compute attention inside their own forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from adaptrain import attention
from adaptrain.context import current_forward
from adaptrain.points import LinearPart, Point
from adaptrain.sites.base import Handle, Site
from adaptrain.sites.key_value import Overridden, visible_tokens
from adaptrain.state import AttentionState
from adaptrain.upstream import Arguments, attribute, strange

_COMPUTED = ("hidden_states", "attention_mask", "position_bias", "output_attentions")
_DISENTANGLED = ("query_states", "relative_pos", "rel_embeddings")
"""The arguments of attention modules whose computation is known; with others it would be another one."""

_BIASES = ("q_bias", "v_bias")


class ComputedAttentionSite(Site):
    """Keys and values of an attention module that computes attention itself (MPNet).

    Queries, keys and values are taken from the projections as the adapters before have left them; when the module
    hands its attended values to the output projection, they are computed anew, with the prefix, and put in their place.

    Args:
        parts: `query`, `key` and `value` → projection.
        output: the module that takes the attended values.
    """

    def __init__(self, point: Point, module: nn.Module, parts: Mapping[str, LinearPart], output: nn.Module) -> None:
        super().__init__(point)
        self.module, self.parts, self.output = module, parts, output
        self.arguments = Arguments(module)

    def check(self) -> None:
        self.arguments.require(*_COMPUTED[:2])
        self.arguments.allow(*_COMPUTED, *_DISENTANGLED)
        for name in self.module._parameters:
            if name not in _BIASES:
                raise strange(f"the parameter `{name}`", type(self.module).__name__)
        attribute(self.module, "dropout")

    def hook(self) -> Iterator[Handle]:
        yield self.module.register_forward_pre_hook(self._in, with_kwargs=True)
        for module in dict.fromkeys(part.module for part in self.parts.values()):
            yield module.register_forward_hook(self._projected)
        yield self.output.register_forward_pre_hook(self._attended)

    def _in(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forward = current_forward()
        if forward is not None and self in forward.plan:
            named = self.arguments.named(args, kwargs)
            forward.taken[self] = {
                "hidden": named["hidden_states"],
                "mask": named.get("attention_mask"),
                "bias": named.get("position_bias"),
            }

    def _projected(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        forward = current_forward()
        taken = None if forward is None else forward.taken.get(self)
        if taken is None:
            return
        for role, part in self.parts.items():
            # once: DeBERTa goes on to project relative positions with the same maps
            if part.module is module and role not in taken:
                heads = part.cut(output, -1).unflatten(-1, (-1, self.point.head_dim))
                taken[role] = heads.transpose(1, 2)  # (rows, heads, positions, head_dim)

    def _attended(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        here = self.in_force()
        taken = None if here is None else here[0].taken.pop(self, None)
        if taken is None or here is None:
            return None
        forward, tree = here
        tokens = visible_tokens(forward, self.point, taken["hidden"])
        state = AttentionState(
            taken["key"], taken["value"], taken["mask"], taken["bias"], hidden=taken["hidden"], tokens=tokens
        )
        return (self.attend(taken["query"], self.run(tree, state)), *args[1:])

    def attend(self, query: Tensor, state: AttentionState, scale: float | None = None) -> Tensor:
        """The attended values, (rows, positions, heads · head_dim)."""
        dropout = float(attribute(self.module, "dropout").p)
        return attention.attend_with_state(query, state, dropout, self.module.training, scale)


class DisentangledAttentionSite(ComputedAttentionSite):
    """Keys and values of DeBERTa's attention. The bias of relative positions is kept as the module's own method returns
    it; a prefix has no position, and a bias of zero.

    Source: He et al. 2021, *DeBERTa*, section 3.1.

    Args:
        method: name of that method, called with (queries, keys, relative positions, their embeddings, scale factor).
    """

    def __init__(
        self, point: Point, module: nn.Module, parts: Mapping[str, LinearPart], output: nn.Module, method: str
    ) -> None:
        super().__init__(point, module, parts, output)
        self.method = method

    def hook(self) -> Iterator[Handle]:
        yield Overridden(self.module, self.method, self._bias)
        yield from super().hook()

    def _in(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super()._in(module, args, kwargs)
        forward = current_forward()
        if forward is not None and self in forward.taken:
            forward.taken[self]["mask"] = forward.taken[self]["mask"].bool()

    def _bias(self, *args: Any) -> Tensor:
        bias = getattr(type(self.module), self.method)(self.module, *args)
        forward = current_forward()
        if forward is not None and self in forward.taken:
            forward.taken[self]["bias"] = bias.reshape(-1, self.point.heads, *bias.shape[-2:])
        return bias

    def _attended(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        forward = current_forward()
        taken = None if forward is None else forward.taken.get(self)
        for role in ("query", "value"):
            own: Any = getattr(self.module, f"{role[0]}_bias", None)  # which DeBERTa adds to what it has projected
            if taken is not None and own is not None:
                taken[role] = taken[role] + own.view(1, -1, 1, self.point.head_dim)
        return super()._attended(module, args)

    def attend(self, query: Tensor, state: AttentionState, scale: float | None = None) -> Tensor:
        terms = 1 + len(attribute(self.module, "pos_att_type"))  # content, and each kind of position
        return super().attend(query, state, (self.point.head_dim * terms) ** -0.5)
