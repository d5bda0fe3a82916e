"""What a prediction head is: a small float32 network on what the base model returns, with its own config and loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptrain.errors import CheckpointError, ConfigError, UnsupportedError, unknown
from adaptrain.methods.activations import ACTIVATIONS, unknown_activation

if TYPE_CHECKING:
    from adaptrain.sites import Sites


class Head(nn.Module):
    """A named head. Subclasses register themselves under their `kind`.

    Attributes:
        arguments: of the model's forward, which are the head's own: the base model is not given them.
        grouped: how many rows make one prediction.
        num_labels: how many labels it chooses from; 0 where it does not choose among labels.
        problem_type: what transformers calls its kind of classification, or None.
    """

    kind: ClassVar[str] = ""
    arguments: ClassVar[tuple[str, ...]] = ()
    name: str = ""
    """Set when the head is added to a model."""
    grouped: int = 1
    num_labels: int = 0
    problem_type: str | None = None
    options: dict[str, Any]
    _sites: Callable[[], Sites] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The config that makes this head again, `type` included."""
        raise NotImplementedError

    def forward(self, outputs: Any, inputs: Mapping[str, Any], labels: Tensor | None) -> Any:
        """Predict from the base model's outputs.

        Args:
            outputs: what the base model returned.
            inputs: what it was given (masks), and the head's own `arguments`.
            labels: with them, the loss is computed.
        """
        raise NotImplementedError

    def label_map(self) -> dict[int, str]:
        """Number → name of its labels, `LABEL_0` and so on where it was given no names; empty without labels."""
        names = label_names(getattr(self, "options", {}).get("id2label"))
        return dict(enumerate(names or [f"LABEL_{number}" for number in range(self.num_labels)]))

    @property
    def label_arguments(self) -> tuple[str, ...]:
        """Those of its own `arguments` that are labels."""
        return tuple(key for key in self.arguments if key.startswith("labels_") or key.endswith("_positions"))

    def cast(self, hidden: Tensor) -> Tensor:
        """Hidden states in the dtype of the head's own weights; in float32 or wider where it has no weights."""
        weight = next((each for each in self.parameters() if each.is_floating_point()), None)
        return exact(hidden) if weight is None else hidden.to(weight.dtype)

    def bind(self, sites: Callable[[], Sites]) -> None:
        """Called when the head is added to a model, with what returns the model's sites."""
        self._sites = sites

    def live(self) -> Sites:
        """The sites of the model that the head is on.

        Raises:
            UnsupportedError: it is on none.
        """
        if self._sites is None:
            raise UnsupportedError(f"A head of type {self.kind} reads its model; add it to one with add_head")
        return self._sites()

    def __init_subclass__(cls) -> None:
        if not cls.kind:
            return  # a part that several heads have in common
        known = _REGISTRY.get(cls.kind)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigError([f"{cls.__qualname__}: the type of head '{cls.kind}' is {known.__qualname__} already"])
        _REGISTRY[cls.kind] = cls


_REGISTRY: dict[str, type[Head]] = {}


class LayeredHead(Head):
    """A head of a few linear maps.

        zᵢ = act(Wᵢ Dropout(zᵢ₋₁) + bᵢ)                     for all layers but the last
        logits = W Dropout(z) + b

    Args:
        hidden_size: of the base model.
        num_outputs: of the last map.
        layers: linear maps, the last one included.
        activation: between them.
        dropout: before each of them.
        bias: of the last one.
        problems: what a subclass finds wrong, said together.

    Raises:
        ConfigError: all that is wrong.
    """

    def __init__(
        self,
        hidden_size: int,
        num_outputs: int,
        layers: int,
        activation: str,
        dropout: float,
        bias: bool = True,
        problems: Iterable[str] = (),
    ) -> None:
        super().__init__()
        wrong = [
            *problems,
            *([f"layers is {layers}; it must be at least 1"] if layers < 1 else []),
            *([f"dropout is {dropout}; it must lie in [0, 1)"] if not 0 <= dropout < 1 else []),
            *filter(None, [unknown_activation(activation)]),
        ]
        if wrong:
            raise ConfigError([f"{self.kind} head: {problem}" for problem in wrong])
        self.dropout = dropout
        self.activation = ACTIVATIONS[activation.lower()]
        self.hidden = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(layers - 1))
        self.out = nn.Linear(hidden_size, num_outputs, bias=bias)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02) if parameter.dim() > 1 else nn.init.zeros_(parameter)

    def scores(self, z: Tensor) -> Tensor:
        """(…, hidden) → (…, num_outputs)."""
        for layer in self.hidden:
            z = self.activation(layer(F.dropout(z, self.dropout, self.training)))
        return self.out(F.dropout(z, self.dropout, self.training))


def exact(values: Tensor) -> Tensor:
    """Numbers in float32 or wider: losses of bf16 or fp16 logits are coarse."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def label_names(id2label: Mapping[int, str] | list[str] | None) -> list[str]:
    """Names of labels in order; empty where there are none."""
    return list(id2label.values()) if isinstance(id2label, Mapping) else list(id2label or [])


def wrong_labels(num_labels: int, names: list[str]) -> list[str]:
    """What is wrong with a number of labels and their names."""
    return [
        *([f"num_labels is {num_labels}; it must be at least 1"] if num_labels < 1 else []),
        *(
            [f"id2label names {len(names)} labels, num_labels is {num_labels}"]
            if names and len(names) != num_labels
            else []
        ),
    ]


def model_dropout(config: Any) -> float:
    """The dropout that a base model's own heads have."""
    given = (getattr(config, key, None) for key in ("classifier_dropout", "hidden_dropout_prob", "resid_pdrop"))
    return float(next((value for value in given if value is not None), 0.0))


def passed_on(outputs: Any, kind: type | None = None) -> dict[str, Any]:
    """What a head hands on of the base model's outputs.

    Args:
        kind: the class of the head's output, whose fields are handed on, whatever this release of transformers calls
            them; hidden states and attentions where it is None.
    """
    names = ("hidden_states", "attentions") if kind is None else [field.name for field in dataclasses.fields(kind)]
    return {name: getattr(outputs, name, None) for name in names if name not in ("loss", "logits")}


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
