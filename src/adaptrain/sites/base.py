"""What a site is.

A site takes what it needs on the way in, asks the evaluator on the way out, and returns what the model goes on with.
Hooks are bound methods, so that `deepcopy` and `pickle` carry the sites with the model. They exist only where an
adapter has a unit, and in one fixed order, whatever order the adapters came in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from adaptrain.composition import Composition, Fuse, Stack, last
from adaptrain.context import Forward, current_forward
from adaptrain.evaluator import evaluate
from adaptrain.methods import Unit
from adaptrain.methods.base import Offer
from adaptrain.points import Point
from adaptrain.sites.recompute import refuse_unknown
from adaptrain.state import State

S = TypeVar("S", bound=State)


class Handle(Protocol):
    """What takes a hook back."""

    def remove(self) -> None: ...


class Site:
    """One point of one layer, and the units that adapters have there.

    Attributes:
        units: adapter name → its units, applied in order.
        fusions: fusion name → its unit.
        reads: the stack whose positions flow here.
    """

    def __init__(self, point: Point) -> None:
        self.point, self.reads = point, point.stack
        self.units: dict[str, tuple[Unit, ...]] = {}
        self.fusions: dict[str, Unit] = {}

    def check(self) -> None:
        """Refuse a model that lacks a name which this site reads while the model runs.

        Raises:
            UnsupportedError: names it, and the releases of transformers that have it.
        """

    def hook(self) -> Iterator[Handle]:
        """Register this site's hooks."""
        raise NotImplementedError

    def in_force(self) -> tuple[Forward, Composition] | None:
        """The forward and what it runs here; None where nothing is to be done.

        Raises:
            UnsupportedError: a layer is run again in a backward pass, and what it repeats is not known.
        """
        forward = current_forward()
        if forward is None:
            refuse_unknown()
        tree = None if forward is None else forward.plan.get(self)
        return None if forward is None or tree is None else (forward, tree)

    def run(self, tree: Composition, state: S, apply: Callable[[str, S], S] | None = None) -> S:
        """What the composition makes of a state; `apply` where an adapter does something else than go forward."""
        forward = current_forward()
        if forward is not None and (forward.tasks is not None or forward.past):
            state = dataclasses.replace(state, tasks=forward.tasks, earlier=forward.past.get(self.reads))
        return evaluate(tree, state, apply or self._apply, self._fuse)

    def _apply(self, name: str, state: S) -> S:
        self._tell(name)
        for unit in self.units[name]:
            state = unit(state)
        return state

    def _fuse(self, tree: Fuse, state: S) -> S:
        """AdapterFusion over what the last unit of each child has to offer. What asks the question, and what the fused
        sum is added to, are those of the last adapter in front of the fusion, also where it ends a stack."""
        offers = []
        for child in tree.children:
            *before, name = child.children if isinstance(child, Stack) else (child,)
            assert isinstance(name, str)  # refused at activation
            here = state
            for each in before:
                here = evaluate(each, here, self._apply, self._fuse)
            offers.append(self._offer(name, here))
        if isinstance(tree.children[-1], Stack):
            offers[-1] = self._offer(last(tree), state)._replace(added=offers[-1].added)
        self._tell(tree.fusion)
        return self.fusions[tree.fusion](offers)

    def _offer(self, name: str, state: Any) -> Offer:
        """What the last of an adapter's units would add to a state."""
        self._tell(name)
        *first, unit = self.units[name]
        for each in first:
            state = each(state)
        return unit.offer(state)

    def _tell(self, name: str) -> None:
        """Say who acts here, for those who record it."""
        forward = current_forward()
        if forward is not None and forward.records is not None:
            forward.records.place = (name, self.point.layer, _place(self.point))


def first_of(output: Any) -> Any:
    """The tensor that a module returned, alone or first of several."""
    return output[0] if isinstance(output, tuple) else output


def with_first(output: Any, value: Any) -> Any:
    """The module's output with another first tensor."""
    return (value, *output[1:]) if isinstance(output, tuple) else value


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
