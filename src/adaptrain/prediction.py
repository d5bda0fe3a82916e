"""Named prediction heads on a bare base model, which of them are in force, and what they make of its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from adaptrain.adapter import check_name, key_of
from adaptrain.architectures import Architecture
from adaptrain.branches import ends, outlets
from adaptrain.composition import Composition, width
from adaptrain.context import current_setup, current_tasks
from adaptrain.errors import AdapterNameError, CompositionError, UnsupportedError, listed, unknown
from adaptrain.heads import ClassificationHead, Head, MaskedLMHead
from adaptrain.sites import Sites, repeated, resolve, rows_of, taken

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
        """Not the inherited one, which looks for tensors in what may be no tensor."""

    @property
    def logits(self) -> tuple[Tensor, ...]:
        """Of each head."""
        return tuple(output.logits for output in self.head_outputs)

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


class WithHeads(nn.Module):
    """The part of an adapted model that keeps its heads."""

    base_model: PreTrainedModel
    architecture: Architecture
    sites: Sites

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict()
        self._active_head: Heads = None

    def add_classification_head(
        self,
        head_name: str,
        num_labels: int = 2,
        layers: int = 2,
        activation_function: str = "tanh",
        dropout: float | None = None,
        id2label: Mapping[int, str] | None = None,
        overwrite_ok: bool = False,
    ) -> None:
        """Add a head for sequence classification, or regression with one label; see `heads.ClassificationHead`.

        Args:
            dropout: the base model's own when None.

        Raises:
            AdapterNameError: the name is taken and not `overwrite_ok`.
            UnsupportedError: the base model has a head of its own.
        """
        config: Any = self.base_model.config
        if dropout is None:
            given = (getattr(config, key, None) for key in ("classifier_dropout", "hidden_dropout_prob", "resid_pdrop"))
            dropout = float(next((value for value in given if value is not None), 0.0))
        head = ClassificationHead(
            config.hidden_size,
            num_labels,
            layers,
            activation_function,
            dropout,
            self.architecture.pooling,
            id2label,
        )
        self.add_head(head_name, head, overwrite_ok)

    def add_masked_lm_head(
        self,
        head_name: str,
        layers: int = 2,
        activation_function: str = "gelu",
        layer_norm: bool = True,
        bias: bool = True,
        sparse_prediction: bool = False,
        overwrite_ok: bool = False,
    ) -> None:
        """Add a head for masked words over the embeddings in force; see `heads.MaskedLMHead`.

        Raises:
            AdapterNameError: the name is taken and not `overwrite_ok`.
            ConfigError: an option is wrong.
            UnsupportedError: the base model has a head of its own, does not see both sides of a masked word, or looks
                up no words.
        """
        config: Any = self.base_model.config
        if self.architecture.encoder_decoder or any(stack.causal for stack in self.architecture.stacks):
            raise UnsupportedError(
                f"A {config.model_type} does not see what follows a masked word; a masked_lm head is for encoders"
            )
        words, size = self.sites.word_table(), int(config.hidden_size)
        eps = float(getattr(config, "layer_norm_eps", 1e-12))
        head = MaskedLMHead(
            size, words.shape[1], len(words), layers, activation_function, layer_norm, eps, bias, sparse_prediction
        )
        self.add_head(head_name, head, overwrite_ok)

    def _live_sites(self) -> Sites:
        return self.sites

    def add_head(self, name: str, head: Head, overwrite_ok: bool = False) -> None:
        """Add a head under a name and make it the active one."""
        check_name(name)
        if self.base_model.base_model is not self.base_model:
            raise UnsupportedError(
                f"{type(self.base_model).__name__} has a prediction head of its own; load the base with "
                "AutoAdapterModel.from_pretrained to put named heads on it"
            )
        if key_of(name) in self.heads and not overwrite_ok:
            raise AdapterNameError(f"There is a head '{name}' already; give overwrite_ok=True to replace it")
        head.name = name
        head.bind(self._live_sites)
        self.heads[key_of(name)] = head.to(self.base_model.device).train(self.training)
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

    def _predict(
        self, tree: Composition | None, heads: str | tuple[str | None, ...], inputs: dict[str, Any], labels: Any
    ) -> Any:
        """Run the base model and the heads on what it returns.

        Args:
            labels: of the batch's rows; of several heads also a sequence or a mapping with those of each.
        """
        times = width(tree)
        given, batch = repeated(inputs, times), rows_of(inputs)
        if isinstance(heads, str):
            head = self._known(heads)
            told = labels if times == 1 or labels is None else labels.repeat(times, *[1] * (labels.dim() - 1))
            return head(self.base_model(**inputs), given, told)
        names = _complete(tree, heads)
        assert tree is not None
        if any(isinstance(self._known(name), MaskedLMHead) for name in names) and self.sites.inverted(tree):
            raise UnsupportedError(
                f"{tree} changes the embeddings, which a masked_lm head undoes for all rows together, not for one "
                "branch of several; set active_head to one name"
            )
        tasks = resolve(tree, current_tasks())
        rows = outlets(tree, range(batch * times), None if tasks is None else tasks * times)
        each = _labels(labels, names, [[row % batch for row in share] for share in rows])
        whole = self.base_model(**inputs)
        found = []
        for name, share, own in zip(names, rows, each, strict=True):
            own = own if share else None
            outputs = taken(whole, batch * times, share)
            found.append(self._known(name)(outputs, taken(given, batch * times, share), own))
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


def _labels(labels: Any, names: tuple[str, ...], rows: Sequence[Sequence[int]]) -> list[Any]:
    """The labels of each head."""
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
    return [labels[torch.tensor(share, dtype=torch.long, device=labels.device)] for share in rows]
