"""Which projections a config names: `attention.query`, `mlp.down`, `encoder.3.*`, `*.attention.*`."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from adaptrain.errors import listed, nearest
from adaptrain.methods.base import PointLike

ACTIVATION = "mlp.activation"


def short_name(point: PointLike) -> str:
    """A point's name without stack and layer."""
    return ACTIVATION if point.kind == "activation" else f"{point.sublayer}.{point.role}"


def matches(target: str, point: PointLike) -> bool:
    """Whether a target names a point, by its short name or its whole name.

    A pattern speaks of projections only; the inner activation of an MLP is meant where a target ends with its name.
    """
    if point.kind != "projection" and not (point.kind == "activation" and target.endswith(ACTIVATION)):
        return False
    return fnmatchcase(short_name(point), target) or fnmatchcase(point.name, target)


def unmatched(targets: Sequence[str], points: Sequence[PointLike]) -> list[str]:
    """A sentence for each target that names none of the points."""
    known = list(dict.fromkeys(map(short_name, points)))
    return [
        f"targets names '{target}', which is none of this model's{nearest(target, known) or '.'} "
        f"They are {listed(known)}; or a pattern such as encoder.3.*"
        for target in targets
        if not any(matches(target, point) for point in points)
    ]
