"""Other words in the place of the model's own: what it looks up, and what it chooses from.

The model's own tables are neither changed nor replaced. Where another vocabulary is in force, the lookups are given ids
that they have and their result is put aside; the output embedding's logits are computed anew, over the other words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from adaptrain.architectures import Architecture
from adaptrain.context import current_forward
from adaptrain.errors import DataError, UnsupportedError
from adaptrain.points import module_at
from adaptrain.sites.base import Handle
from adaptrain.sites.key_value import Overridden
from adaptrain.upstream import Arguments, lookup_scale

ROLES = ("pad", "bos", "eos")
"""Of words that a model itself writes or looks for."""


class Vocabulary(nn.Module):
    """The embeddings of a tokenizer's words.

    Args:
        weight: (words, embedding size); what is looked up, and the output embedding of models that tie both.
        output: (words, hidden size), where the model's output embedding is one of its own; else None.
        bias: (words), where the output embedding has one; else None.
        final_bias: (words), where the model adds one behind the output embedding that is not trained (Marian); or None.
        special: role (`pad`, `bos`, `eos`) → id, of the roles that the tokenizer has; None: not known.
    """

    final_bias: Tensor | None

    def __init__(
        self,
        name: str,
        weight: Tensor,
        output: Tensor | None = None,
        bias: Tensor | None = None,
        final_bias: Tensor | None = None,
        special: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.special = name, special
        self.weight = nn.Parameter(weight)
        self.output = None if output is None else nn.Parameter(output)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.register_buffer("final_bias", final_bias)

    @property
    def size(self) -> int:
        return len(self.weight)

    def look_up(self, ids: Tensor) -> Tensor:
        """(rows, positions, embedding size).

        Raises:
            DataError: an id is beyond the words; on devices that check ids.
        """
        try:
            return F.embedding(ids, self.weight)
        except IndexError:
            raise DataError(
                f"The ids go from {int(ids.min())} to {int(ids.max())}, and the embeddings '{self.name}' have "
                f"{self.size} words; tokenise with their own tokenizer, or activate the embeddings of this one"
            ) from None

    def score(self, hidden: Tensor) -> Tensor:
        """The logits, (rows, positions, words)."""
        weight = self.weight if self.output is None else self.output
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        return F.linear(hidden, weight.to(hidden.dtype), bias)


class Words:
    """Where a live model looks words up and where it chooses from them.

    Attributes:
        lookups: the modules that look words up; they share one table.
        head: the module that chooses from them, or None.
        active: the vocabulary in force, None for the model's own.

    Raises:
        UnsupportedError: the model has no words, or stacks with different ones.
    """

    def __init__(self, model: PreTrainedModel, architecture: Architecture) -> None:
        paths = [stack.embeddings.words for stack in architecture.stacks if stack.embeddings.words is not None]
        kind = model.config.model_type
        if not paths:
            raise UnsupportedError(f"A {kind} looks up no words, so that it can have no other embeddings of words")
        self.model = model
        place = f"the {architecture.name} table"
        self.lookups: list[Any] = [module_at(model.base_model, path, place) for path in paths]
        if any(lookup.weight is not self.lookups[0].weight for lookup in self.lookups):
            raise UnsupportedError(f"The stacks of this {kind} have words of their own each; they cannot be exchanged")
        for lookup in self.lookups:
            lookup_scale(lookup)  # refuses one that does something else
        self.head: Any = model.get_output_embeddings()
        self.active: Vocabulary | None = None
        # what losses and generation read the number of words from
        self._counts: list[tuple[Any, str]] = [
            (owner, name)
            for owner in (model.config, model)
            for name in ("vocab_size", "decoder_vocab_size")
            if vars(owner).get(name) == len(self.weight)
        ]

    @property
    def weight(self) -> Tensor:
        """The model's own embeddings, (words, embedding size)."""
        return self.lookups[0].weight

    @property
    def tied(self) -> bool:
        """Whether the output embedding is the lookup's table."""
        return self.head is None or self.head.weight is self.weight

    @property
    def final_bias(self) -> Tensor | None:
        """What the model adds to its logits behind the output embedding, (words)."""
        found = self.model._buffers.get("final_logits_bias")
        return None if found is None else found[0]

    def special(self) -> dict[str, int]:
        """The model's own words of each role, as far as they are one each."""
        sources = [getattr(self.model, "generation_config", None), self.model.config]
        found = {
            role: next((i for s in sources if isinstance(i := getattr(s, f"{role}_token_id", None), int)), None)
            for role in ROLES
        }
        return {role: number for role, number in found.items() if number is not None}

    def generation(self) -> dict[str, Any]:
        """Options of `generate` that name words, as the active vocabulary has them; none where that is not known."""
        if self.active is None or self.active.special is None:
            return {}
        options: dict[str, Any] = {f"{role}_token_id": self.active.special.get(role) for role in ROLES}
        forced = {key: self._translated(key) for key in ("forced_bos_token_id", "forced_eos_token_id")}
        start = self._translated("decoder_start_token_id")
        return options | forced | ({} if start is None else {"decoder_start_token_id": start})

    def _translated(self, key: str) -> int | None:
        """The active id for what the model's config names by the id of a role; None where no role has it."""
        assert self.active is not None
        sources = [getattr(self.model, "generation_config", None), self.model.config]
        old = next((i for s in sources if (i := getattr(s, key, None)) is not None), None)
        roles = [role for role, number in self.special().items() if number == old]
        return next((new for role in roles if (new := (self.active.special or {}).get(role)) is not None), None)

    def activate(self, vocabulary: Vocabulary | None) -> None:
        """Say whose words are in force. The config's `vocab_size` follows."""
        self.active = vocabulary
        for owner, name in self._counts:
            setattr(owner, name, len(self.weight) if vocabulary is None else vocabulary.size)

    def hook(self) -> Iterator[Handle]:
        """Register the hooks, where another vocabulary is in force."""
        if self.active is None:
            return
        for lookup in self.lookups:
            yield lookup.register_forward_pre_hook(self._before)
            yield lookup.register_forward_hook(self._looked_up)
        if (own := self.final_bias) is not None and self.active.final_bias is not None:
            yield Overridden(self.model, "final_logits_bias", self.active.final_bias.to(own.dtype)[None])
        if self.active.special is None:
            return
        reader: Any = getattr(self.model.base_model, "embeddings", None)
        if getattr(getattr(reader, "position_embeddings", None), "padding_idx", None) is not None:
            yield reader.register_forward_pre_hook(self._count, with_kwargs=True)
        if self.head is not None and getattr(self.model.config, "is_encoder_decoder", False):
            yield self.model.register_forward_pre_hook(self._shift, with_kwargs=True)

    def hook_head(self) -> Iterator[Handle]:
        """Register the output embedding's hooks; after all others, so that it is given what they make of its input."""
        if self.active is not None and self.head is not None:
            yield self.head.register_forward_pre_hook(self._before_head)
            yield self.head.register_forward_hook(self._scored)

    def _before_head(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        forward = current_forward()
        if forward is None:
            return None
        forward.taken[self, module] = args[0]
        return (args[0][:0], *args[1:])  # its own logits would cost as much as the ones that are wanted

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        forward = current_forward()
        if forward is None:
            return None
        forward.taken[self, module] = args[0]
        return (args[0].new_zeros(args[0].shape), *args[1:])  # an id that every table has

    def _looked_up(self, module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        forward = current_forward()
        ids = None if forward is None else forward.taken.pop((self, module), None)
        if ids is None or self.active is None:
            return None
        scale = getattr(module, "embed_scale", 1.0)
        scale = scale.to(output.dtype) if isinstance(scale, Tensor) else scale  # as Gemma rounds it
        return self.active.look_up(ids).to(output.dtype) * scale

    def _scored(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        forward = current_forward()
        hidden = None if forward is None else forward.taken.pop((self, module), None)
        return None if hidden is None or self.active is None else self.active.score(hidden)

    def _count(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Positions of a model that counts them over the ids that are not padding (RoBERTa): not the active padding."""
        forward, arguments = current_forward(), Arguments(module)
        arguments.require("input_ids", "position_ids")
        named = arguments.named(args, kwargs)
        ids = named.get("input_ids")
        if ids is None or named.get("position_ids") is not None or self.active is None or forward is None:
            return None
        pad = (self.active.special or {}).get("pad", -1)
        seen = ids.ne(pad).long()
        past = next(iter(forward.tokens.values())).past  # of a decoder; the one stack of these models
        counted = (seen.cumsum(1) + past) * seen
        return (), named | {"position_ids": counted + module.position_embeddings.padding_idx}

    def _shift(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """What the decoder reads where only labels are given: its start in the active vocabulary, then the labels."""
        arguments = Arguments(module)
        arguments.require("labels", "decoder_input_ids", "decoder_inputs_embeds")
        named = arguments.named(args, kwargs)
        labels = named.get("labels")
        given = any(named.get(key) is not None for key in ("decoder_input_ids", "decoder_inputs_embeds"))
        start = self._translated("decoder_start_token_id")
        if labels is None or given or start is None or self.active is None:
            return None
        before = labels[:, :-1].masked_fill(labels[:, :-1] == -100, (self.active.special or {}).get("pad", start))
        return (), named | {"decoder_input_ids": torch.cat([torch.full_like(labels[:, :1], start), before], 1)}
