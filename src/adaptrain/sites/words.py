"""Other words in the place of the model's own: what it looks up, and what it chooses from.

The model's own tables are neither changed nor replaced. Where another vocabulary is in force, the lookups are given ids
that they have and their result is put aside; the output embedding's logits are computed anew, over the other words.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from adaptrain.architectures import Architecture
from adaptrain.context import current_forward
from adaptrain.errors import DataError, UnsupportedError
from adaptrain.points import module_at
from adaptrain.sites.base import Handle
from adaptrain.sites.key_value import Overridden


class Vocabulary(nn.Module):
    """The embeddings of a tokenizer's words.

    Args:
        weight: (words, embedding size); what is looked up, and the output embedding of models that tie both.
        output: (words, hidden size), where the model's output embedding is one of its own; else None.
        bias: (words), where the output embedding has one; else None.
    """

    def __init__(self, name: str, weight: Tensor, output: Tensor | None = None, bias: Tensor | None = None) -> None:
        super().__init__()
        self.name = name
        self.weight = nn.Parameter(weight)
        self.output = None if output is None else nn.Parameter(output)
        self.bias = None if bias is None else nn.Parameter(bias)

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
                f"The ids go up to {int(ids.max())}, and the embeddings '{self.name}' have {self.size} words; tokenise "
                "with their own tokenizer, or activate the embeddings of this one"
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
        if self.head is not None:
            yield self.head.register_forward_hook(self._scored)
        own = self.model._buffers.get("final_logits_bias")
        if own is not None:  # BART adds it behind the output embedding
            yield Overridden(self.model, "final_logits_bias", own.new_zeros(1, self.active.size))

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
        return (self.active.look_up(ids) * getattr(module, "embed_scale", 1.0)).to(output.dtype)

    def _scored(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        return None if current_forward() is None or self.active is None else self.active.score(args[0])
