"""The two ends of the scale that methods are compared with: everything trains, or only the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from adaptrain.methods.base import Build, MethodConfig, PointLike, register_method, register_preset


@register_method
@dataclass(frozen=True, kw_only=True)
class FullConfig(MethodConfig):
    """Full fine-tuning: every parameter of the base model trains. Its checkpoint is the whole base model."""

    method: ClassVar[str] = "full"
    has_units: ClassVar[bool] = False
    trains_base: ClassVar[bool] = True
    identity_at_start: ClassVar[bool] = True

    def covers(self, point: PointLike) -> bool:
        return False

    def build(self, points: Sequence[PointLike]) -> Build:
        return Build({})


@register_method
@dataclass(frozen=True, kw_only=True)
class NoneConfig(MethodConfig):
    """No adapter: only the prediction head trains, on the frozen base model."""

    method: ClassVar[str] = "none"
    has_units: ClassVar[bool] = False
    identity_at_start: ClassVar[bool] = True

    def covers(self, point: PointLike) -> bool:
        return False

    def build(self, points: Sequence[PointLike]) -> Build:
        return Build({})


register_preset("full", FullConfig)
register_preset("none", NoneConfig)
