"""What the frozen layers below the adapters make of every row, computed once and kept across epochs.

Source: Rücklé et al. 2021, *AdapterDrop*: layers below the lowest adapter need no backward pass. As they
are the same in every epoch, they need no second forward pass either.

The states are those of evaluation: there is no dropout in the layers below. The adapters' own dropout, and that of the
layers above, are drawn as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from adaptrain.composition import names
from adaptrain.context import AdapterSetup
from adaptrain.errors import UnsupportedError
from adaptrain.sites.below import Below
from adaptrain.tasks.encoded import Collator, Encoded
from adaptrain.training.batching import evaluation_batches
from adaptrain.training.precision import Hardware, memory_errors

Begin = Callable[[Sequence[int]], AbstractContextManager[Any]]
"""Rows of a split → a context for their forward."""


def from_the_words(rows: Sequence[int]) -> AbstractContextManager[Any]:
    """A forward that begins with the words."""
    return nullcontext()


def layers_below(model: Any) -> Below:
    """The layers whose states can be kept while the active adapters of a model train.

    Raises:
        UnsupportedError: something below the adapters trains, nothing lies below, or an adapter reads padding, which is
            not kept.
    """
    tree = model.active_adapters
    frozen = [*model.base_model.base_model.named_parameters(), *model.vocabularies.named_parameters()]
    if trained := [name for name, parameter in frozen if parameter.requires_grad]:
        raise UnsupportedError(
            f"trainer.cache_frozen: {trained[0]} trains, so that states cannot be kept; set it to false"
        )
    for name in names(tree):
        if any(getattr(each, "use_gating", False) and each.as_adapterhub for each in _members(model, name)):
            raise UnsupportedError(
                f"trainer.cache_frozen: the gates of '{name}' read padding (as_adapterhub), whose states are not kept; "
                "set it to false"
            )
    try:
        return Below(model.sites, tree)
    except UnsupportedError as error:
        raise UnsupportedError(f"trainer.cache_frozen: {error}; or set it to false") from None


def _members(model: Any, name: str) -> tuple[Any, ...]:
    return model.get_adapter(name).config.members()


def bytes_kept(model: Any, splits: Sequence[Encoded]) -> int:
    """What the states of some splits take."""
    embeddings = model.base_model.get_input_embeddings()
    return sum(sum(rows.lengths) for rows in splits) * model.config.hidden_size * embeddings.weight.element_size()


@dataclass(frozen=True)
class Kept:
    """The hidden states of every row of a split as they leave the layers below, without padding.

    Attributes:
        below: the layers.
        states: (tokens of all rows, hidden), on the CPU, in the base's dtype.
        starts: where each row begins; one more for the end.
        device: where forwards run.
    """

    below: Below
    states: Tensor
    starts: list[int]
    device: torch.device

    def begin(self, rows: Sequence[int]) -> AbstractContextManager[Any]:
        """For a forward of these rows, padded on the right to the longest of them."""
        found = [self.states[self.starts[row] : self.starts[row + 1]] for row in rows]
        return self.below.given(pad_sequence(found, batch_first=True).to(self.device))


def keep(model: Any, below: Below, rows: Encoded, collate: Collator, batch_size: int, hardware: Hardware) -> Kept:
    """Compute the layers below for all rows, in the batches that an evaluation makes.

    Every process computes all rows: which ones it needs changes from epoch to epoch.

    Raises:
        OutOfMemoryError: the device's memory is too small.
    """
    starts = [0]
    for length in rows.lengths:
        starts.append(starts[-1] + length)
    kept: Tensor | None = None
    training = model.training
    model.eval()
    cure = f"Try a trainer.eval_batch_size below {batch_size}, or trainer.cache_frozen=false"
    with AdapterSetup(None), memory_errors(cure):
        for batch in evaluation_batches(rows.lengths, batch_size):
            inputs = {key: value.to(hardware.device) for key, value in collate(rows, batch).items() if key != "labels"}
            with hardware.forward():
                states = below.states(inputs).cpu()
            if kept is None:
                kept = states.new_empty(starts[-1], states.shape[-1])
            for row, found in zip(batch, states, strict=True):
                kept[starts[row] : starts[row + 1]] = found[: rows.lengths[row]]
    model.train(training)
    assert kept is not None, "a split has rows"
    return Kept(below, kept, starts, hardware.device)
