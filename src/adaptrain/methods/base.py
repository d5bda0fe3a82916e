"""What a method is: a config, a unit at each point it covers, and perhaps parts that its layers share."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from adaptrain.context import current_forward
from adaptrain.errors import ConfigError, UnsupportedError, listed, nearest, unknown
from adaptrain.hints import words
from adaptrain.methods.fits import fits
from adaptrain.methods.layers import absent
from adaptrain.state import LinearMap
from adaptrain.synonyms import translation

if TYPE_CHECKING:
    from typing_extensions import Self


class PointLike(Protocol):
    """What a method may know of a point in a model. Sites (floor 3) provide it.

    Attributes:
        kind: `projection`, `activation`, `sublayer`, `attention`, `layer`, `embedding` or `prompt`.
        hidden_size: of the model.
        stack: `encoder` or `decoder`.
        layer: index of the layer over the whole model, encoder layers first (what `leave_out` counts); -1 for what
            belongs to no layer.
        sublayer: `attention`, `cross_attention`, `mlp` or `embeddings`; empty for a layer.
        role: for a projection its name (`query`, `key`, `value`, `output`, `up`, `gate`, `down`, `words`), else empty.
        name: canonical name, `encoder.3.attention.query`.
        in_features, out_features: sizes of a projection; at other points both are the width of what flows there.
        heads, head_dim: key/value heads of an attention and their size.
        encoder_decoder: whether the model has both stacks.
        causal: whether a position sees only what came before it.
        map: the frozen linear map of a projection, else None.
        embed: at the prompt: the model's own embeddings of a text's words, (words, out_features).
    """

    @property
    def kind(self) -> str: ...
    @property
    def stack(self) -> str: ...
    @property
    def layer(self) -> int: ...
    @property
    def sublayer(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def encoder_decoder(self) -> bool: ...
    @property
    def causal(self) -> bool: ...
    @property
    def map(self) -> LinearMap | None: ...
    def embed(self, text: str) -> Tensor: ...


class Offer(NamedTuple):
    """What a unit adds to a state, before it is added: what AdapterFusion puts together.

    Attributes:
        raw: what flows into the adapter's place, (rows, positions, d).
        query: what the adapter reads, after the norm where it reads that; shaped as `raw`.
        added: its contribution u.
        rest: ρ, what it is added to.
        finish: the state for a sum u + ρ.
    """

    raw: Tensor
    query: Tensor
    added: Tensor
    rest: Tensor
    finish: Callable[[Tensor], Any]


class Unit(nn.Module):
    """A method's module at one site, for one adapter: takes a state, returns a state of the same kind.

    Attributes:
        extends: how many positions it puts in front of the sequence, and behind its first token.
    """

    extends: tuple[int, int] = (0, 0)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The map's weight (out, in) and bias (out) with the unit worked into them, in float32 or wider.

        Raises:
            UnsupportedError: what the unit does depends on the input.
        """
        raise UnsupportedError(f"{type(self).__name__} cannot be merged into a linear map")

    def offer(self, state: Any) -> Offer:
        """What the unit would add; only units that add something to a sublayer have it."""
        raise UnsupportedError(f"{type(self).__name__} cannot be fused")

    def inverse(self, state: Any) -> Any:
        """Undo `forward`, for the units of embeddings."""
        raise UnsupportedError(f"{type(self).__name__} has no inverse")

    def take(self, whole: Any) -> None:
        """Take the parameters of the same unit of an adapter that has more layers."""
        self.load_state_dict(whole.state_dict())


U = TypeVar("U", bound=Unit)


def kept_in(dtype: str | None, unit: U) -> U:
    """The unit with its parameters in a dtype, as it is for None."""
    return unit if dtype is None else unit.to(getattr(torch, dtype))


class Shared(nn.Module):
    """Parameters that several units of one adapter use.

    What `compute` returns does not depend on the batch. The sites compute it once a forward, before the first layer:
    never once a layer or once a row, and outside what gradient checkpointing recomputes.
    """

    def compute(self) -> Any:
        """The value that the units use."""
        raise NotImplementedError("a shared module computes a value")

    def current(self) -> Any:
        """The value of the current forward; computed anew outside one."""
        forward = current_forward()
        return forward.once[self] if forward is not None and self in forward.once else self.compute()

    def take(self, whole: Any) -> None:
        """Take the parameters of the same module of an adapter that has more layers.

        Raises:
            UnsupportedError: what is drawn from a seed depends on the layers that are left out.
        """
        if any(whole.get_buffer(name).shape != buffer.shape for name, buffer in self.named_buffers()):
            raise UnsupportedError(
                "leave_out names the layers of the widest map, to which frozen matrices are cut; use skip_layers"
            )
        self.load_state_dict(whole.state_dict())


@dataclass(frozen=True)
class Build:
    """The parts of one adapter, made by one method.

    Attributes:
        units: site name → unit.
        shared: canonical location → module whose parameters several units use.
    """

    units: Mapping[str, Unit]
    shared: Mapping[str, Shared] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MethodConfig:  # noqa: PLW1641  (the dataclass adds it)
    """A method's hyperparameters: typed, immutable, complete.

    Raises:
        ConfigError: impossible values; every mistake at once.
    """

    method: ClassVar[str] = ""
    """Name in the registry; what `method:` says in YAML and in a checkpoint."""

    has_units: ClassVar[bool] = True
    """Whether the method adds anything to the model (the baselines do not)."""

    trains_base: ClassVar[bool] = False
    """Whether the method trains the base model's own parameters (full fine-tuning)."""

    identity_at_start: ClassVar[bool] = False
    """Whether a fresh adapter leaves the model's output as it was, exactly."""

    init_weights_seed: int | None = None
    """Seed of the initial weights, drawn without touching the program's own generator; None draws from that one."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__eq__ = MethodConfig.__eq__  # before the dataclass decorator would set one that compares classes

    def __eq__(self, other: object) -> bool:
        """Whether both say the same: a preset class equals what is read back from its file."""
        return isinstance(other, MethodConfig) and self.to_dict() == other.to_dict()

    def __new__(cls, *args: Any, **values: Any) -> Self:
        """Refuse keys that the class does not have, in the words of `from_dict` instead of a TypeError."""
        known = inspect.signature(cls.__init__).parameters
        if problems := [cls._unknown(key) for key in values if key not in known]:
            raise ConfigError(problems)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for key in self.fields():  # what others can change is copied: lists as tuples, mappings as dicts
            value = getattr(self, key)
            if isinstance(value, list | Mapping):
                object.__setattr__(self, key, tuple(value) if isinstance(value, list) else dict(value))
        problems = self._type_problems() or list(self.problems())
        if problems:
            raise ConfigError([f"{type(self).__name__}: {problem}" for problem in problems])

    def problems(self) -> Iterator[str]:
        """Impossible values, a sentence each. Methods override it."""
        yield from ()

    def members(self) -> tuple[MethodConfig, ...]:
        """The configs that an adapter is built of: this one, or those of a union."""
        return (self,)

    def covers(self, point: PointLike) -> bool:
        """Whether this adapter has a unit at the point."""
        raise NotImplementedError

    def choose(self, points: Sequence[PointLike]) -> list[PointLike]:
        """Those of a model's points that get a unit.

        Raises:
            ConfigError: the config names points, or layers in `leave_out`, that the model does not have.
        """
        if problem := absent("leave_out", getattr(self, "leave_out", ()), points):
            raise self.error(problem)
        return [point for point in points if self.covers(point)]

    def without(self, layers: Collection[int]) -> MethodConfig:
        """The config with more layers left out; the same one where the method has no layers."""
        before = getattr(self, "leave_out", None)
        return self if before is None else self.replace(leave_out=tuple(sorted({*before, *layers})))

    def missing(self, points: Sequence[PointLike]) -> Iterator[str]:
        """What this config asks for and a model with these points has no place for; a phrase each."""
        if self.has_units and not any(self.covers(point) for point in points):
            yield "its config covers none of the model's points"

    def build(self, points: Sequence[PointLike]) -> Build:
        """Make the units for the covered points, freshly initialised, in float32 on the CPU."""
        raise NotImplementedError

    def rate(self, parameter: str) -> float:
        """What the learning rate of a parameter is multiplied with (LoRA+); `parameter` is its canonical name."""
        return 1.0

    def start(self, build: Build, points: Sequence[PointLike]) -> None:
        """Set initial weights that need more than shapes: a text, the base model's weights. Not called for an adapter
        whose weights are about to be loaded."""

    def error(self, problem: str) -> ConfigError:
        """An error that names this config's class."""
        return ConfigError(f"{type(self).__name__}: {problem}")

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        if problems := [self._unknown(key) for key in changes if key not in self.fields()]:
            raise ConfigError(problems)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Every field, and the method: what is saved. `config_from_dict` is its inverse."""
        return {"method": self.method} | {key: _plain(getattr(self, key)) for key in self.fields()}

    @classmethod
    def fields(cls) -> dict[str, dataclasses.Field[Any]]:
        """Name → field; what all methods have comes last."""
        own = {field.name: field for field in dataclasses.fields(cls)}
        common = {field.name for field in dataclasses.fields(MethodConfig)}
        return {key: own[key] for key in sorted(own, key=common.__contains__)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain values, refusing unknown keys.

        Raises:
            ConfigError: unknown keys (with the nearest legal one), missing keys, or impossible values.
        """
        values = {key: value for key, value in values.items() if key != "method"}
        problems = [cls._unknown(key) for key in values if key not in cls.fields()]
        no_default = [key for key, field in cls.fields().items() if field.default is dataclasses.MISSING]
        problems += [f"{cls.__name__} needs '{key}'" for key in no_default if key not in values]
        if problems:
            raise ConfigError(problems)
        return cls(**values)

    @classmethod
    def _unknown(cls, key: str) -> str:
        """Why a key is refused, with the name that it has here where another tool calls it so."""
        what = f"There is no key of {cls.__name__} '{key}'"
        if told := translation(key, cls.fields()):
            return what + told
        return f"{what}{nearest(key, cls.fields()) or '.'} Its keys are: {listed(cls.fields())}"

    def _type_problems(self) -> list[str]:
        hints = typing.get_type_hints(type(self))
        return [
            f"{key} is {value!r}; it must be {words(hints[key])}"
            for key in self.fields()
            if not fits(value := getattr(self, key), hints[key])
        ]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


_REGISTRY: dict[str, type[MethodConfig]] = {}
_PRESETS: dict[str, Callable[[], MethodConfig]] = {}


C = TypeVar("C", bound="type[MethodConfig]")


def register_method(config_class: C) -> C:
    """Class decorator: makes a method known by its `method` name."""
    _REGISTRY[config_class.method] = config_class
    return config_class


def register_preset(name: str, make: Callable[[], MethodConfig]) -> None:
    """Makes a preset string (`seq_bn`) known."""
    _PRESETS[name] = make


def methods() -> dict[str, type[MethodConfig]]:
    """Method name → config class."""
    return dict(_REGISTRY)


def presets() -> dict[str, Callable[[], MethodConfig]]:
    """Preset string → maker of its config."""
    return dict(_PRESETS)


def config_class(method: str) -> type[MethodConfig]:
    """The config class of a method.

    Raises:
        ConfigError: unknown method; names the nearest.
    """
    if method not in _REGISTRY:
        raise ConfigError(unknown("method", method, sorted(_REGISTRY), "The methods are"))
    return _REGISTRY[method]


def config_from_dict(values: Mapping[str, Any]) -> MethodConfig:
    """The config that `MethodConfig.to_dict` wrote, or that YAML says.

    Raises:
        ConfigError: no `method`, unknown method or keys, impossible values.
    """
    if "method" not in values:
        raise ConfigError(f"An adapter config needs `method:`, one of: {listed(sorted(_REGISTRY))}")
    return config_class(str(values["method"])).from_dict(values)
