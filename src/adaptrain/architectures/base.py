"""What an architecture is: a table of paths into somebody else's model.

All paths are dotted attribute names. Those of a stack are relative to the base model (`BertModel`, not
`BertForSequenceClassification`), all others to the layer. A family is a value, or a function of the model's config
where the modules depend on it; a new member of it is the family with a field replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from adaptrain.errors import UnsupportedError, unknown


@dataclass(frozen=True)
class Projection:
    """One linear map, or one part of a fused one.

    Attributes:
        path: module with a `weight`.
        part, parts: which of how many parts of its output.
        layout: how a fused output is divided. `equal`: slices of one size. `grouped`: queries first, as wide as the
            input of `attention.output`, then keys and values, which share the rest (grouped-query attention).
            `interleaved`: the parts of the first head, then those of the second, and so on.
    """

    path: str
    part: int = 0
    parts: int = 1
    layout: Literal["equal", "grouped", "interleaved"] = "equal"


@dataclass(frozen=True)
class Sublayer:
    """Where a sublayer's output is, and what the model adds to it.

    Attributes:
        output: module whose output (or first output) the residual is added to.
        residual: module whose input is that residual; the empty path is the layer itself.
        argument: position of the residual among that module's arguments; as a keyword it is `hidden_states`.
        norm: the norm right after the addition; None in pre-norm models.
        beside: a sublayer before this one whose output is added at the same time; it counts as part of the residual.
    """

    output: str
    residual: str
    argument: int = 0
    norm: str | None = None
    beside: str | None = None


@dataclass(frozen=True)
class Attention:
    """Where keys and values can be reached.

    Attributes:
        path: the attention module, the one that transformers' attention functions are given.
        head_size: its attribute that holds the size of one head.
        method: None where the module calls transformers' attention registry; else its own method that attends, with
            (query, key, value, mask), after rotary embedding and cache.
        or_registry: whether the module calls the registry in releases of transformers where it has no such method.
        output: where neither can be reached, the module that takes the attended values: its input is then computed
            anew from queries, keys and values.
        bias: with `output`: the module's method that returns what is added to the scores (DeBERTa).
    """

    path: str
    head_size: str = "head_dim"
    method: str | None = None
    or_registry: bool = False
    output: str | None = None
    bias: str | None = None


@dataclass(frozen=True)
class Embeddings:
    """Where a stack's hidden states begin. Paths are relative to the base model.

    Attributes:
        words: the lookup of word ids; None where the stack reads something else (images, sound).
        output: module whose output invertible adapters change; None: there is no such place.
    """

    words: str | None = None
    output: str | None = None


@dataclass(frozen=True)
class Prompt:
    """How a prompt comes into a stack. Paths are relative to the base model.

    Attributes:
        behind: module behind whose output the prompt stands, so that it has no position; None: before the looked-up
            words, where it takes positions.
        reader: the module that is given words and attention mask.
        end: module whose output loses the prompt's positions again; None where they stay, because a decoder attends
            to them.
        scale: attribute of the reader with which it multiplies the words that it looks up itself.
    """

    behind: str | None = None
    reader: str = ""
    end: str | None = None
    scale: str | None = None


@dataclass(frozen=True)
class Stack:
    """A stack of equal layers.

    Attributes:
        name: `encoder` or `decoder`; in a model of two towers `text` or `vision`.
        layers: path of the module list; `*` stands for each module of a list on the way.
        projections: canonical name (`attention.query`, `mlp.up`) → projection.
        sublayers: `attention`, `cross_attention`, `mlp` → sublayer.
        attentions: `attention`, `cross_attention` → attention.
        embeddings: where its hidden states begin.
        prompt: how a prompt comes in; None: not at all.
        causal: whether a position sees only what came before it.
        mask: the argument of the model that says which positions are tokens; None: there is none.
        mask_at: module that is given this mask as `attention_mask`, where the model's own counts something else
            (samples of sound).
        optional: whether a model may lack the stack: one tower of two, or half of an encoder-decoder.
    """

    name: str
    layers: str
    projections: Mapping[str, Projection]
    sublayers: Mapping[str, Sublayer]
    attentions: Mapping[str, Attention]
    embeddings: Embeddings = field(default_factory=Embeddings)
    prompt: Prompt | None = None
    causal: bool = False
    mask: str | None = "attention_mask"
    mask_at: str | None = None
    optional: bool = False

    def below(self, path: str) -> Stack:
        """The same stack of a model that is a part of a larger one, at this path."""

        def under(each: str | None) -> str | None:
            return None if each is None else ".".join(filter(None, (path, each)))

        words, prompt = self.embeddings, self.prompt
        if prompt is not None:
            prompt = replace(
                prompt, behind=under(prompt.behind), reader=under(prompt.reader) or "", end=under(prompt.end)
            )
        return replace(
            self,
            layers=f"{path}.{self.layers}",
            embeddings=Embeddings(under(words.words), under(words.output)),
            prompt=prompt,
            mask_at=under(self.mask_at),
        )


@dataclass(frozen=True)
class Architecture:
    """A model family.

    Attributes:
        name: of the family.
        stacks: in the order in which their layers are counted.
        pooling: the position a sequence classifier reads: the first, or the last that is not padding.
    """

    name: str
    stacks: tuple[Stack, ...]
    pooling: Literal["first", "last"] = "first"

    @property
    def encoder_decoder(self) -> bool:
        """Whether a decoder attends to an encoder."""
        return [stack.name for stack in self.stacks] == ["encoder", "decoder"]


Table = Callable[[Any], Architecture]
"""A model's config → its architecture."""

_TABLES: dict[str, Table] = {}


def register_architecture(model_types: tuple[str, ...], table: Architecture | Table) -> None:
    """Make a family known for its values of `config.model_type`."""
    made = (lambda config: table) if isinstance(table, Architecture) else table
    _TABLES.update(dict.fromkeys(model_types, made))


def architectures() -> dict[str, Table]:
    """Model type → table."""
    return dict(_TABLES)


def architecture_of(config: Any) -> Architecture:
    """The table of a model, from its config.

    Raises:
        UnsupportedError: no table for its `model_type`; names the nearest and all others.
    """
    if config.model_type not in _TABLES:
        raise UnsupportedError(unknown("architecture for", config.model_type, sorted(_TABLES), "The model types are"))
    return _TABLES[config.model_type](config)
