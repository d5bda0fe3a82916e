"""What averaging takes: adapters as config and tensors, whether they go together, and with which strategy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from adaptrain.errors import CheckpointError, UnsupportedError, listed
from adaptrain.methods import BnConfig, LoRAConfig, MethodConfig, MTLLoRAConfig, ReftConfig
from adaptrain.mixture import NEGATE_B, SPARSE, UPDATE, Mixture

_OF_TRAINING = {
    *("dropout", "stochastic_depth", "init_weights_seed", "lora_plus_ratio", "vera_d", "vera_b"),
    *("prompt_init", "prompt_init_text", "random_uniform_scale", "hypercomplex_nonlinearity"),
}
"""Keys of a config that its tensors mean the same without."""

_OF_FACTORS = {"r", "alpha", "use_rslora", "dtype", "init_weights"}
"""Keys that adapters may differ in where their updates are taken, not their tensors."""


@dataclass(frozen=True)
class Source:
    """One of the adapters.

    Attributes:
        name: for messages.
        config, tensors: of it.
        starts: unit (`encoder.0.attention.query.lora`) → A₀ and B₀ of PiSSA. They are made of the base model's weights,
            and files do not hold them.
    """

    name: str
    config: MethodConfig
    tensors: Mapping[str, Tensor]
    starts: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def check_method(source: Source, mixture: Mixture) -> None:
    """Refuse a method that a strategy has no meaning for.

    Raises:
        UnsupportedError: names both, and why.
    """
    of_update = mixture.strategy in (UPDATE, NEGATE_B) or mixture.svd_rank is not None
    if not of_update and mixture.strategy not in SPARSE:
        return
    name = mixture.strategy if mixture.strategy not in SPARSE or not of_update else f"{mixture.strategy} with svd_rank"
    if of_update:
        if reason := _no_update(source, mixture.strategy):
            raise UnsupportedError(f"{name} is for LoRA's update B A; {reason}. Use linear")
        return
    for member in source.config.members():
        if reason := _not_thin(member):
            raise UnsupportedError(
                f"{name} takes numbers out of '{source.name}' ({member.method}), which {reason}; use linear"
            )


def _no_update(source: Source, strategy: str) -> str:
    """Why a source has no update B A of its own; empty where it has one."""
    config = source.config
    what = f"'{source.name}' ({config.method}) "
    if len(config.members()) > 1:
        return what + "has other methods beside"
    if not isinstance(config, LoRAConfig) or config.composition_mode == "scale":
        return what + "has none"
    if isinstance(config, MTLLoRAConfig):
        return what + "has matrices of its task within"
    if config.init_weights == "vera":
        return what + "trains vectors around matrices that are drawn"
    if config.use_dora:
        return what + "has magnitudes beside, which are no part of it"
    if config.use_gating:
        return what + "has gates, which depend on the input"
    if config.init_weights == "pissa" and strategy == NEGATE_B:
        return what + "has init_weights 'pissa', whose B is counted from where it started"
    if config.init_weights == "pissa" and not source.starts:
        return (
            what + "has init_weights 'pissa', whose update is counted from the base model's weights, which its folder "
            "does not hold: load it onto its base model and call average_adapter there"
        )
    return ""


def _not_thin(config: MethodConfig) -> str:
    """Why no number of a method may be set to 'no change' by itself; empty where each may."""
    if isinstance(config, LoRAConfig):
        if config.init_weights == "pissa":
            return "has init_weights 'pissa': a zero is far from where it started, give svd_rank"
        if isinstance(config, MTLLoRAConfig):
            return "has matrices of its task, where a zero is no lack of change"
        if config.use_dora:
            return "has magnitudes, whose start is the base model's"
    if isinstance(config, LoRAConfig | BnConfig):
        return "has gates, where a zero opens half" if config.use_gating else ""
    if isinstance(config, ReftConfig):
        return "makes its rows orthonormal, so that a zero does not stay one" if config.orthogonality else ""
    return "has none that add to the base model's one by one"


def check_same(one: Source, other: Source, mixture: Mixture) -> None:
    """Refuse two adapters whose tensors do not mean the same.

    Raises:
        UnsupportedError: other methods or hyperparameters; names the keys, with both values.
        CheckpointError: other names or shapes of tensors.
    """
    both = f"'{one.name}' and '{other.name}'"
    kinds = [[member.method for member in source.config.members()] for source in (one, other)]
    if kinds[0] != kinds[1]:
        raise UnsupportedError(
            f"{both} are of different methods, {' | '.join(kinds[0])} and {' | '.join(kinds[1])}; their tensors have "
            "nothing in common"
        )
    pairs = list(zip(one.config.members(), other.config.members(), strict=True))
    free = set() if mixture.svd_rank is None else _OF_FACTORS
    found = []
    for first, second in pairs:
        meanings = [
            {key: value for key, value in _meaning(each).items() if key not in free} for each in (first, second)
        ]
        if differs := difference(*meanings):
            found.append(differs if len(pairs) == 1 else f"{first.method}: {differs}")
    if found:
        lora = all(isinstance(member, LoRAConfig) for pair in pairs for member in pair) and len(pairs) == 1
        cure = f"; {UPDATE} takes LoRAs of different r, alpha and use_rslora" if lora and not free else ""
        raise UnsupportedError(
            f"{both} differ in {'; '.join(found)}, so that their tensors do not mean the same; average adapters of "
            f"equal configs{cure}"
        )
    check_tensors(one, other, inner=mixture.svd_rank is None)


def _meaning(config: MethodConfig) -> dict[str, Any]:
    """The keys of a config that decide what its tensors mean."""
    values = {key: value for key, value in config.to_dict().items() if key not in _OF_TRAINING}
    if values.get("init_weights") not in ("pissa", "vera", "ia3"):
        values.pop("init_weights", None)
    if values.get("learn_phm"):  # a rule that is not learnt is drawn from these, and stored nowhere
        values = {key: value for key, value in values.items() if key not in ("phm_c_init", "phm_init_range")}
    return values


def check_tensors(one: Source, other: Source, inner: bool = True) -> None:
    """Refuse tensors of other names or shapes.

    Args:
        inner: whether the side that LoRA's A and B share counts.
    """

    def shape(source: Source, key: str) -> tuple[int, ...] | None:
        tensor = source.tensors.get(key)
        if tensor is None or inner:
            return None if tensor is None else tuple(tensor.shape)
        return tuple(tensor.shape[1:] if key.endswith(".A") else tensor.shape[:1])

    keys = sorted(one.tensors.keys() | other.tensors.keys())
    if wrong := [key for key in keys if shape(one, key) != shape(other, key)]:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CheckpointError(
            f"The tensors of '{one.name}' and '{other.name}' have other names or shapes, although their configs are "
            f"the same; they were not made for one model: {listed(wrong[:5])}{more}"
        )


def neutral(config: MethodConfig, key: str) -> float:
    """What a tensor's numbers are where they change nothing."""
    if key.endswith((".scaling", "norm_before.weight", "norm_after.weight")):
        return 1.0
    if key.endswith(".scale"):  # IA³: alpha times the factor is one
        return next(1 / member.alpha for member in config.members() if isinstance(member, LoRAConfig))
    return 0.0


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The keys that two sets of options differ in, with both values; empty where they are the same."""
    keys = [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]
    return listed(f"{key} ({one.get(key)} and {other.get(key)})" for key in sorted(keys)) if keys else ""


def head_meaning(options: Mapping[str, Any]) -> dict[str, Any]:
    """A head's options, without those of training."""
    return {key: value for key, value in options.items() if key not in _OF_TRAINING}
