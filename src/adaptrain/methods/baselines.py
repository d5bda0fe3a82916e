"""The two ends of the scale that methods are compared with: everything trains, or only the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from adaptrain.methods.base import Build, MethodConfig, PointLike, register_method, register_preset


@dataclass(frozen=True, kw_only=True)
class Baseline(MethodConfig):
    """A method without units: it adds nothing to the model."""

    has_units: ClassVar[bool] = False
    identity_at_start: ClassVar[bool] = True

    def covers(self, point: PointLike) -> bool:
        return False

    def build(self, points: Sequence[PointLike]) -> Build:
        return Build({})


@register_method
@dataclass(frozen=True, kw_only=True)
class FullConfig(Baseline):
    """Full fine-tuning: every parameter of the base model trains. Its checkpoint is the whole base model."""

    method: ClassVar[str] = "full"
    trains_base: ClassVar[bool] = True


@register_method
@dataclass(frozen=True, kw_only=True)
class NoneConfig(Baseline):
    """No adapter: only the prediction head trains, on the frozen base model."""

    method: ClassVar[str] = "none"


register_preset("full", FullConfig)
register_preset("none", NoneConfig)
