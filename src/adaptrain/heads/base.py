"""What a prediction head is: a small float32 network on what the base model returns, with its own config and loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from adaptrain.errors import CheckpointError, unknown

if TYPE_CHECKING:
    from adaptrain.sites import Sites


class Head(nn.Module):
    """A named head. Subclasses register themselves under their `kind`."""

    kind: ClassVar[str] = ""
    name: str = ""
    """Set when the head is added to a model."""

    def to_dict(self) -> dict[str, Any]:
        """The config that makes this head again, `type` included."""
        raise NotImplementedError

    def forward(self, outputs: Any, inputs: Mapping[str, Any], labels: Tensor | None) -> Any:
        """Predict from the base model's outputs.

        Args:
            outputs: what the base model returned.
            inputs: what it was given (masks).
            labels: with them, the loss is computed.
        """
        raise NotImplementedError

    def bind(self, sites: Callable[[], Sites]) -> None:
        """Called when the head is added to a model, with what returns the model's sites; a head that reads hidden
        states alone needs none."""

    def __init_subclass__(cls) -> None:
        _REGISTRY[cls.kind] = cls


_REGISTRY: dict[str, type[Head]] = {}


def head_from_dict(values: Mapping[str, Any]) -> Head:
    """The head that `Head.to_dict` described.

    Raises:
        CheckpointError: unknown type or options.
    """
    options = dict(values)
    kind = str(options.pop("type", ""))
    if kind not in _REGISTRY:
        raise CheckpointError(unknown("head of type", kind, _REGISTRY, "The types are"))
    try:
        return _REGISTRY[kind](**options)
    except TypeError as error:
        raise CheckpointError(f"The head's config does not fit type '{kind}': {error}") from None
