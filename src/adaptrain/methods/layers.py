"""Values that may differ between layers: one number, or a mapping from a layer (its index, as a word) or `default`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

from adaptrain.errors import listed

N = TypeVar("N", int, float)


def at_layer(value: N | Mapping[str, N], layer: int) -> N | None:
    """The number of a layer; None where the mapping names neither the layer nor a default."""
    return value.get(str(layer), value.get("default")) if isinstance(value, Mapping) else value


def numbers(value: N | Mapping[str, N]) -> list[tuple[str, N]]:
    """The numbers, each with the words that say where it holds: none, or ` of layer 3`."""
    if not isinstance(value, Mapping):
        return [("", value)]
    return [(f" of layer {where}", number) for where, number in value.items()]


def misnamed(key: str, value: N | Mapping[str, N]) -> Iterator[str]:
    """A sentence for each layer that is no layer."""
    for where in value if isinstance(value, Mapping) else ():
        if where != "default" and not where.isdecimal():
            yield f"{key} names the layer '{where}'; layers are numbers as words, or 'default'"


class Placed(Protocol):
    """What has a layer: a point."""

    @property
    def layer(self) -> int: ...


def absent(key: str, layers: Iterable[int], points: Iterable[Placed]) -> str:
    """A sentence on the layers that are not among those of a model's points; empty where all are."""
    known = {point.layer for point in points if point.layer >= 0}
    missing = sorted(set(layers) - known, key=str)
    if not missing:
        return ""
    there = f"layers 0 to {max(known)}, counted over the whole model" if known else "no layers"
    return f"{key} names {listed(missing)}; this model has {there}"
