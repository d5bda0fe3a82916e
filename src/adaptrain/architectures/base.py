"""What an architecture is: a table of paths into somebody else's model.

All paths are dotted attribute names. Those of a stack are relative to the base model (`BertModel`, not
`BertForSequenceClassification`), all others to the layer. A family is a value; a new member of it is the family with a
field replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from adaptrain.errors import UnsupportedError, unknown


@dataclass(frozen=True)
class Projection:
    """One linear map, or one of the equal parts of a fused one.

    Attributes:
        path: module with a `weight`.
        part, parts: which of how many equal, contiguous slices of its output.
    """

    path: str
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class Sublayer:
    """Where a sublayer's output is, and what the model adds to it.

    Attributes:
        output: module whose output (or first output) the residual is added to.
        residual: module whose input is that residual; the empty path is the layer itself.
        argument: position of the residual among that module's arguments; as a keyword it is `hidden_states`.
        norm: the norm right after the addition; None in pre-norm models.
    """

    output: str
    residual: str
    argument: int = 0
    norm: str | None = None


@dataclass(frozen=True)
class Attention:
    """Where keys and values can be reached.

    Attributes:
        path: the attention module, the one that transformers' attention functions are given.
        head_size: its attribute that holds the size of one head.
        output: None where the module calls transformers' attention registry. Where it computes attention itself, the
            module that takes the attended values: its input is then computed anew from queries, keys and values.
    """

    path: str
    head_size: str = "head_dim"
    output: str | None = None


@dataclass(frozen=True)
class Embeddings:
    """Where a stack's hidden states begin. Paths are relative to the base model.

    Attributes:
        words: the lookup of word ids.
        output: module whose output is the first hidden states, positions and norm included; None: not reached.
        reader: the module that is given words and attention mask.
        prompt: how a prompt comes in. `behind` the output module, so that it has no position; `words`: before the
            looked-up words, where it takes positions; None: not at all.
        end: module whose `last_hidden_state` loses the prompt's positions again; None where they stay, because a
            decoder attends to them.
    """

    words: str
    output: str | None = None
    reader: str = ""
    prompt: Literal["behind", "words"] | None = None
    end: str | None = None


@dataclass(frozen=True)
class Stack:
    """A stack of equal layers.

    Attributes:
        name: `encoder` or `decoder`.
        layers: path of the module list.
        projections: canonical name (`attention.query`, `mlp.up`) → projection.
        sublayers: `attention`, `cross_attention`, `mlp` → sublayer.
        attentions: `attention`, `cross_attention` → attention.
        embeddings: where its hidden states begin.
    """

    name: Literal["encoder", "decoder"]
    layers: str
    projections: Mapping[str, Projection]
    sublayers: Mapping[str, Sublayer]
    attentions: Mapping[str, Attention]
    embeddings: Embeddings


@dataclass(frozen=True)
class Architecture:
    """A model family.

    Attributes:
        name: of the family.
        model_types: values of `config.model_type` that it serves.
        stacks: encoder and decoder.
        pooling: the position a sequence classifier reads: the first, or the last that is not padding.
    """

    name: str
    model_types: tuple[str, ...]
    stacks: tuple[Stack, ...]
    pooling: Literal["first", "last"] = field(default="first")


_BY_TYPE: dict[str, Architecture] = {}


def register_architecture(architecture: Architecture) -> Architecture:
    """Make a family known for its model types."""
    _BY_TYPE.update(dict.fromkeys(architecture.model_types, architecture))
    return architecture


def architectures() -> dict[str, Architecture]:
    """Model type → architecture."""
    return dict(_BY_TYPE)


def architecture_of(model_type: str) -> Architecture:
    """The table of a model type.

    Raises:
        UnsupportedError: no table; names the nearest and all others.
    """
    if model_type not in _BY_TYPE:
        raise UnsupportedError(unknown("architecture for", model_type, sorted(_BY_TYPE), "The model types are"))
    return _BY_TYPE[model_type]
