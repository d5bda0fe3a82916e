"""Unions: several methods in one adapter; and the two published ones, Mix-and-Match and UniPELT."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from adaptrain.errors import ConfigError
from adaptrain.methods.base import Build, MethodConfig, PointLike, register_method, register_preset
from adaptrain.methods.bottleneck import BnConfig
from adaptrain.methods.bottleneck_presets import ParBnConfig, SeqBnConfig
from adaptrain.methods.lora import LoRAConfig
from adaptrain.methods.prefix import PrefixTuningConfig


@register_method
@dataclass(frozen=True, kw_only=True, init=False)
class ConfigUnion(MethodConfig):
    """Several configs as one adapter: trained, saved and activated together.

    Args:
        configs: configs, config strings, or mappings with `method`. Of one method only where each keeps to places of
            its own; of the LoRA family only one.

    Raises:
        ConfigError: none, a union within a union, a baseline, or two that would meet at one place.
    """

    method: ClassVar[str] = "union"

    configs: tuple[MethodConfig, ...]

    def __init__(self, *configs: MethodConfig | str | Mapping[str, Any], init_weights_seed: int | None = None) -> None:
        from adaptrain.methods.strings import read_config  # late: strings make unions

        read = [read_config(config) if isinstance(config, str | Mapping) else config for config in configs]
        object.__setattr__(self, "configs", tuple(read))
        object.__setattr__(self, "init_weights_seed", init_weights_seed)
        self.__post_init__()

    @property
    def identity_at_start(self) -> bool:  # type: ignore[override]
        return all(config.identity_at_start for config in self.configs)

    def problems(self) -> Iterator[str]:
        if not self.configs:
            yield "configs is empty; name at least one"
        for config in self.configs:
            if isinstance(config, ConfigUnion):
                yield "configs holds a union; name its members instead"
            elif not config.has_units:
                yield f"configs holds '{config.method}', which adds nothing; leave it out"
        family = [config.method for config in self.configs if isinstance(config, LoRAConfig)]
        if len(family) > 1:
            yield f"configs holds {' and '.join(family)}; one of the LoRA family is possible"
        if self.init_weights_seed is not None:
            yield "init_weights_seed is for the members; set it there"

    def members(self) -> tuple[MethodConfig, ...]:
        return self.configs

    def covers(self, point: PointLike) -> bool:
        return any(config.covers(point) for config in self.configs)

    def choose(self, points: Sequence[PointLike]) -> list[PointLike]:
        taken: set[tuple[str, str]] = set()
        names: set[str] = set()
        for config in self.configs:
            for point in config.choose(points):
                if (point.name, config.method) in taken:
                    raise self.error(
                        f"two configs of method {config.method} meet at {point.name}; keep them apart by their places "
                        "or by leave_out"
                    )
                taken.add((point.name, config.method))
                names.add(point.name)
        return [point for point in points if point.name in names]

    def without(self, layers: Collection[int]) -> MethodConfig:
        return self.replace(configs=[config.without(layers) for config in self.configs])

    def missing(self, points: Sequence[PointLike]) -> Iterator[str]:
        for config in self.configs:
            yield from (f"{config.method}: {each}" for each in config.missing(points))

    def build(self, points: Sequence[PointLike]) -> Build:
        raise NotImplementedError("a union is built member by member")

    def rate(self, parameter: str) -> float:
        owners = [config for config in self.configs if f".{config.method}." in parameter]
        return owners[0].rate(parameter) if owners else 1.0

    def to_dict(self) -> dict[str, Any]:
        return {"method": self.method, "configs": [config.to_dict() for config in self.configs]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ConfigUnion:  # type: ignore[override]
        if problems := [cls._unknown(key) for key in values if key != "method" and key not in cls.fields()]:
            raise ConfigError(problems)
        configs = values.get("configs")
        if not isinstance(configs, Sequence) or isinstance(configs, str):
            raise ConfigError("ConfigUnion needs 'configs', a list of configs")
        return ConfigUnion(*configs, init_weights_seed=values.get("init_weights_seed"))

    def replace(self, **changes: Any) -> ConfigUnion:  # type: ignore[override]
        return self.from_dict({"configs": self.configs} | changes)

    def _type_problems(self) -> list[str]:
        foreign = [config for config in self.configs if not isinstance(config, MethodConfig)]
        return [f"configs holds {config!r}, which is no config" for config in foreign] or super()._type_problems()


@dataclass(frozen=True, kw_only=True, init=False)
class MAMConfig(ConfigUnion):
    """Mix-and-Match: a prefix in the attention, a parallel bottleneck beside the MLP. He et al. 2022, section 4.6."""

    def __init__(self, prefix_tuning: PrefixTuningConfig | None = None, adapter: BnConfig | None = None) -> None:
        super().__init__(prefix_tuning or PrefixTuningConfig(bottleneck_size=800), adapter or ParBnConfig())


@dataclass(frozen=True, kw_only=True, init=False)
class UniPELTConfig(ConfigUnion):
    """A prefix, a bottleneck and LoRA, each behind a gate. Mao et al. 2022, section 3."""

    def __init__(
        self,
        prefix_tuning: PrefixTuningConfig | None = None,
        adapter: BnConfig | None = None,
        lora: LoRAConfig | None = None,
    ) -> None:
        super().__init__(
            prefix_tuning or PrefixTuningConfig(prefix_length=10, use_gating=True),
            adapter or SeqBnConfig(reduction_factor=16, use_gating=True),
            lora or LoRAConfig(r=8, alpha=2, use_gating=True),
        )


register_preset("mam", MAMConfig)
register_preset("unipelt", UniPELTConfig)
