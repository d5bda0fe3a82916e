"""What a site is.

A site takes what it needs on the way in, asks the evaluator on the way out, and returns what the model goes on with.
Hooks are bound methods, so that `deepcopy` and `pickle` carry the sites with the model. They exist only where an
adapter has a unit, and in one fixed order, whatever order the adapters came in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

from adaptrain.composition import Composition, Fuse, evaluate
from adaptrain.context import Forward, current_forward
from adaptrain.errors import UnsupportedError
from adaptrain.methods import Unit
from adaptrain.points import Point
from adaptrain.state import State

S = TypeVar("S", bound=State)


class Handle(Protocol):
    """What takes a hook back."""

    def remove(self) -> None: ...


class Site:
    """One point of one layer, and the units that adapters have there.

    Attributes:
        units: adapter name → its units, applied in order.
    """

    def __init__(self, point: Point) -> None:
        self.point = point
        self.units: dict[str, tuple[Unit, ...]] = {}

    def hook(self) -> Iterator[Handle]:
        """Register this site's hooks."""
        raise NotImplementedError

    def in_force(self) -> tuple[Forward, Composition] | None:
        """The forward and what it runs here; None where nothing is to be done."""
        forward = current_forward()
        tree = None if forward is None else forward.plan.get(self)
        return None if forward is None or tree is None else (forward, tree)

    def run(self, tree: Composition, state: S) -> S:
        """What the composition makes of a state."""
        return evaluate(tree, state, self._apply, _no_fusion)

    def _apply(self, name: str, state: S) -> S:
        forward = current_forward()
        if forward is not None and forward.records is not None:
            forward.records.place = (name, self.point.layer, _place(self.point))
        for unit in self.units[name]:
            state = unit(state)
        return state


def first_of(output: Any) -> Any:
    """The tensor that a module returned, alone or first of several."""
    return output[0] if isinstance(output, tuple) else output


def with_first(output: Any, value: Any) -> Any:
    """The module's output with another first tensor."""
    return (value, *output[1:]) if isinstance(output, tuple) else value


def _no_fusion(tree: Fuse, *_: Any) -> Any:
    raise UnsupportedError(f"{tree} was activated although no method can be fused")  # refused at activation


_PLACES = {
    ("sublayer", "attention"): "mh_adapter",
    ("sublayer", "cross_attention"): "cross_adapter",
    ("sublayer", "mlp"): "output_adapter",
    ("projection", "attention"): "selfattn_lora",
    ("projection", "cross_attention"): "crossattn_lora",
    ("attention", "cross_attention"): "cross_prefix",
}


def _place(point: Point) -> str:
    """What the reference library calls the places of one layer, in the scores that it returns."""
    if point.kind == "attention" and point.sublayer == "attention":
        return "encoder_prefix" if point.encoder_decoder and point.stack == "encoder" else "self_prefix"
    if point.kind == "projection" and point.sublayer == "mlp":
        return {"up": "intermediate_lora", "down": "output_lora"}.get(point.role, f"{point.role}_lora")
    return _PLACES.get((point.kind, point.sublayer), point.sublayer)
