"""Named prediction heads on a bare base model, which of them are in force, and what they make of its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils.generic import ModelOutput

from adaptrain.adapter import as_precise, check_name, key_of
from adaptrain.branches import ends, outlets
from adaptrain.composition import Composition, width
from adaptrain.context import current_setup, current_tasks
from adaptrain.errors import AdapterNameError, CompositionError, DataError, UnsupportedError, listed, unknown
from adaptrain.heads import CausalLMHead, Head, LMHead, Seq2SeqLMHead
from adaptrain.new_heads import AddsHeads, shifted
from adaptrain.sites import Sites, repeated, resolve, rows_of, taken
from adaptrain.writing import writer

Heads = str | tuple[str | None, ...] | None
"""A head for all rows, one for each branch of the composition, or none. In a tuple, None stands for a branch that has
no head of its name."""


@dataclass
class MultiHeadOutput(ModelOutput):
    """What several heads say, one for each branch of the composition; an index or a head's name gives one of them.

    Attributes:
        loss: Σ of the heads' losses, of those that have rows and labels.
        head_outputs: of each head, on its own rows.
        heads: their names.
        rows: of each head, as numbered in the batch; Parallel's heads have all of them.
    """

    loss: Tensor | None = None
    head_outputs: tuple[Any, ...] = ()
    heads: tuple[str, ...] = ()
    rows: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        """Not the inherited one, which looks for tensors in what may be no tensor. What takes outputs apart and puts
        them together again, as accelerate does, gives all fields as one mapping."""
        if isinstance(self.loss, Mapping):
            values, self.loss = dict(self.loss), None
            for key, value in values.items():
                setattr(self, key, value)

    @property
    def logits(self) -> tuple[Tensor, ...]:
        """Of each head."""
        return tuple(output.logits for output in self.head_outputs)

    def __contains__(self, key: object) -> bool:
        return key in (*self.keys(), "logits", *self.heads)

    def keys(self) -> Any:
        """Names of the fields."""
        return dict(self.items()).keys()

    def values(self) -> Any:
        """The fields."""
        return dict(self.items()).values()

    def items(self) -> Any:
        """Name and value of each field; of the loss where there is one."""
        loss = {} if self.loss is None else {"loss": self.loss}
        return (loss | {"head_outputs": self.head_outputs, "heads": self.heads, "rows": self.rows}).items()

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int):
            return self.head_outputs[key]
        if isinstance(key, str) and key in self.heads:
            return self.head_outputs[self.heads.index(key)]
        return getattr(self, key)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.head_outputs)

    def __len__(self) -> int:
        return len(self.head_outputs)


class WithHeads(AddsHeads):
    """The part of an adapted model that keeps its heads."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict()
        self._chosen: Heads = None
        self._writers: dict[tuple[str, str], Any] = {}  # no modules of ours: they share the base's and the heads'

    def _live_sites(self) -> Sites:
        return self.sites

    @property
    def _active_head(self) -> Heads:
        return self._chosen

    @_active_head.setter
    def _active_head(self, heads: Heads) -> None:
        self._chosen = heads
        self._dress()

    def _dress(self) -> None:
        """Called when other heads are active."""
        raise NotImplementedError

    def add_head(self, name: str, head: Head, overwrite_ok: bool = False) -> None:
        """Add a head under a name and make it the active one."""
        check_name(name)
        self._bare()
        if key_of(name) in self.heads and not overwrite_ok:
            raise AdapterNameError(f"There is a head '{name}' already; give overwrite_ok=True to replace it")
        head.name = name
        head.bind(self._live_sites)
        head = as_precise(head, self.base_model.dtype).to(self.base_model.device)
        self.heads[key_of(name)] = head.train(self.training)
        self._active_head = name

    def _head_names(self) -> list[str]:
        return [str(head.name) for head in self.heads.values()]

    @property
    def active_head(self) -> Heads:
        """The head whose prediction the next forward returns, or one for each branch of the composition; None returns
        the base model's outputs."""
        return self._active_head

    @active_head.setter
    def active_head(self, heads: str | Sequence[str] | None) -> None:
        self._active_head = self._checked(heads)

    def delete_head(self, name: str) -> None:
        """Remove a head.

        Raises:
            AdapterNameError: no such head.
        """
        self._known(name)
        del self.heads[key_of(name)]
        active = (self._active_head,) if isinstance(self._active_head, str) else self._active_head or ()
        if name in active:
            self._active_head = None

    def _follow(self, tree: Composition | None) -> Heads:
        """The heads that bear the names of a composition's ends; None where there is none."""
        names = [] if tree is None else ends(tree)
        found = tuple(name if name is not None and key_of(name) in self.heads else None for name in names)
        if not any(found):
            return None
        return found[0] if len(found) == 1 else found

    def _heads_for(self, tree: Composition | None) -> Heads:
        """The heads that bear the names of a composition's ends; else the active ones, if they are one, or as many."""
        found, active = self._follow(tree), self._active_head
        if found is not None or not isinstance(active, tuple):
            return found or active
        return active if tree is not None and len(ends(tree)) == len(active) else None

    def _own_heads(self, tree: Composition | None) -> list[Head]:
        """The heads that train with a composition: never those of adapters that are not its ends."""
        found = self._follow(tree)
        if found is None and tree is not None and not set(ends(tree)) & self.sites.methods.keys():
            found = self._active_head
        names = (found,) if isinstance(found, str) else found or ()
        return [self._known(name) for name in names if name is not None]

    def in_force(self) -> tuple[Composition | None, Heads]:
        """The composition and the heads that the next forward runs: those of an `AdapterSetup`, or the active ones."""
        setup = current_setup()
        if setup is None:
            return self.sites.active, self._active_head
        return setup.composition, self._checked(setup.heads) or self._heads_for(setup.composition)

    def _checked(self, heads: str | Sequence[str] | None) -> Heads:
        if heads is None or isinstance(heads, str):
            return None if heads is None else str(self._known(heads).name)
        return tuple(str(self._known(name).name) for name in heads)

    def _known(self, name: str) -> Head:
        if key_of(name) not in self.heads:
            raise AdapterNameError(unknown("head", name, self._head_names(), "The model has"))
        head = self.heads[key_of(name)]
        assert isinstance(head, Head)
        return head

    def writer(self) -> Any:
        """What generates: the base model where it has an output embedding, else the family's model that writes, around
        the base and the active head.

        Raises:
            UnsupportedError: the base has none, and the active head does not write.
        """
        base = self.base_model
        if self._headed():
            return base
        _, name = self.in_force()
        head = self._known(name) if isinstance(name, str) else None
        if not isinstance(head, CausalLMHead | Seq2SeqLMHead):
            raise UnsupportedError(
                f"A bare {type(base).__name__} writes nothing; activate one head that does (add_causal_lm_head, "
                "add_seq2seq_lm_head), or load the checkpoint's own (own_head)"
            )
        place = head.name, str(base.device)
        made = self._writers.get(place)
        if made is None or made.get_output_embeddings().head is not head:
            made = self._writers[place] = writer(base, head)
        return made

    def _decoded(self, inputs: dict[str, Any], heads: Sequence[Head], labels: Any) -> dict[str, Any]:
        """What the decoder reads where nobody says so: of a head that writes, the labels, each one position later;
        else the text itself, as BART classifies."""
        if any(inputs.get(key) is not None for key in ("decoder_input_ids", "decoder_inputs_embeds")):
            return inputs
        writes = any(isinstance(head, Seq2SeqLMHead) for head in heads)
        source = labels if writes and isinstance(labels, Tensor) else None if writes else inputs.get("input_ids")
        if source is None:
            return inputs
        return inputs | {"decoder_input_ids": self._shifted(source)}

    def _shifted(self, labels: Tensor) -> Tensor:
        """What the decoder reads in order to write labels, with the active words' own padding and start."""
        special = {} if self.sites.words is None else self.sites.words.generation()
        return shifted(self.base_model, labels, special)

    def _through_base(self, args: Sequence[Any], inputs: dict[str, Any], labels: Any) -> Any:
        """The base model alone, which has a head of its own where labels are given.

        Encoder-decoders take the loss over their words in the model's dtype, of which bf16 keeps three digits; here it
        is float32, as decoders and heads of ours have it.
        """
        base, words = self.base_model, self.sites.words
        asked = {"labels", "decoder_input_ids", "decoder_inputs_embeds"}.isdisjoint(inputs)
        plain = (
            asked and not args and inputs.get("return_dict") is not False and (words is None or words.active is None)
        )
        low = base.dtype in (torch.bfloat16, torch.float16) and self.architecture.encoder_decoder
        if labels is None or not (low and plain and base.get_output_embeddings() is not None):
            return base(*args, **(inputs if labels is None else inputs | {"labels": labels}))
        outputs = base(**inputs, decoder_input_ids=shifted(base, labels, {}))
        outputs.loss = F.cross_entropy(outputs.logits.float().flatten(0, 1), labels.flatten())
        return outputs

    def _predict(
        self, tree: Composition | None, heads: str | tuple[str | None, ...], inputs: dict[str, Any], labels: Any
    ) -> Any:
        """Run the base model and the heads on what it returns.

        Args:
            labels: of the batch's rows; of several heads also a sequence or a mapping with those of each.
        """
        names = (heads,) if isinstance(heads, str) else _complete(tree, heads)
        chosen = [self._known(name) for name in names]
        if any(head.grouped > 1 for head in chosen):
            inputs = _unfolded(inputs, max(head.grouped for head in chosen))
        times, batch = width(tree), rows_of(inputs)
        given = repeated(inputs, times)
        own = {key for head in chosen for key in head.arguments}
        asked = {key: value for key, value in inputs.items() if key not in own}
        if self.architecture.encoder_decoder:
            asked = self._decoded(asked, chosen, labels)
        if isinstance(heads, str):
            told = labels if times == 1 or labels is None else labels.repeat(times, *[1] * (labels.dim() - 1))
            return chosen[0](self.base_model(**asked), given, told)
        assert tree is not None
        if any(isinstance(head, LMHead) for head in chosen) and self.sites.inverted(tree):
            raise UnsupportedError(
                f"{tree} changes the embeddings, which a language-modelling head undoes for all rows together, not for "
                "one branch of several; set active_head to one name"
            )
        tasks = resolve(tree, current_tasks())
        rows = outlets(tree, range(batch * times), None if tasks is None else tasks * times)
        each = _labels(labels, chosen, [[row % batch for row in share] for share in rows], batch)
        whole = self.base_model(**asked)
        found = []
        for head, share, told in zip(chosen, rows, each, strict=True):
            outputs, mine = taken(whole, batch * times, share), taken(given, batch * times, share)
            if not share:  # no rows, no loss
                mine, told = {key: value for key, value in mine.items() if key not in head.label_arguments}, None
            found.append(head(outputs, mine, told))
        losses = [output.loss for output in found if output.loss is not None]
        return MultiHeadOutput(
            loss=torch.stack(losses).sum() if losses else None,
            head_outputs=tuple(found),
            heads=names,
            rows=tuple(tuple(row % batch for row in share) for share in rows),
        )


def _complete(tree: Composition | None, heads: tuple[str | None, ...]) -> tuple[str, ...]:
    """The names of the heads.

    Raises:
        CompositionError: there is not one for each branch.
    """
    branches = [None] if tree is None else ends(tree)
    if len(heads) != len(branches):
        raise CompositionError(
            f"{len(heads)} heads are active ({listed(heads)}), and {tree or 'no composition'} has {len(branches)} "
            "branches; give one head for each, or one name for all rows"
        )
    if missing := [str(branch) for branch, head in zip(branches, heads, strict=True) if head is None]:
        raise CompositionError(
            f"{tree}: there is a head for {listed(head for head in heads if head)}, and none for {listed(missing)}; "
            "add one of that name, or set active_head"
        )
    return tuple(head for head in heads if head is not None)


def _unfolded(inputs: dict[str, Any], choices: int) -> dict[str, Any]:
    """(questions, choices, …) → (questions · choices, …), of everything that a model reads.

    Raises:
        DataError: another number of choices than the head's.
    """
    text = next((each for key, rank in _FOLDED.items() if (each := inputs.get(key)) is not None), None)
    rank = next((rank for key, rank in _FOLDED.items() if inputs.get(key) is not None), 0)
    if text is None or text.dim() != rank + 1:
        return inputs
    if text.shape[1] != choices:
        raise DataError(f"The inputs have {text.shape[1]} choices a question, and the head is for {choices}")
    return {
        key: value.flatten(0, 1) if isinstance(value, Tensor) and value.shape[:2] == text.shape[:2] else value
        for key, value in inputs.items()
    }


_FOLDED = {"input_ids": 2, "inputs_embeds": 3}
"""What says how many rows there are, and its axes where choices are rows."""


def _labels(labels: Any, heads: Sequence[Head], rows: Sequence[Sequence[int]], batch: int) -> list[Any]:
    """The labels of each head."""
    names = tuple(head.name for head in heads)
    if isinstance(labels, Mapping):
        if strange := [str(key) for key in labels if key not in names]:
            raise CompositionError(unknown("head", strange[0], names, "Labels are for the active heads, which are"))
        return [labels.get(name) for name in names]
    if isinstance(labels, list | tuple):
        if len(labels) != len(names):
            raise CompositionError(f"There are labels for {len(labels)} heads, and {len(names)} are active")
        return list(labels)
    if labels is None:
        return [None] * len(names)
    return [
        labels[torch.tensor(_groups(head, share, len(labels), batch), dtype=torch.long, device=labels.device)]
        for head, share in zip(heads, rows, strict=True)
    ]


def _groups(head: Head, share: Sequence[int], labels: int, batch: int) -> list[int]:
    """Which labels are those of a head's rows, where several rows make one prediction.

    Raises:
        CompositionError: the labels are of other groups; or rows of one group go to different heads.
    """
    size = head.grouped
    if labels * size != batch:
        raise CompositionError(
            f"There are {labels} labels for {batch} rows, and the head '{head.name}' has one for {size}; give each "
            "head its own: labels={name: labels, …}"
        )
    found = [row // size for row in share[::size]]
    if [row for group in found for row in range(group * size, (group + 1) * size)] != list(share):
        raise CompositionError(f"The rows of the head '{head.name}' are not whole groups of {size} choices")
    return found
