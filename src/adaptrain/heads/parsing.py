"""Dependency parsing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils.generic import ModelOutput

from adaptrain.errors import ConfigError, DataError
from adaptrain.heads.base import Head, exact, label_names, passed_on, wrong_labels
from adaptrain.heads.labels import IGNORED, check_shape, class_labels, first_row
from adaptrain.heads.pooling import first_token
from adaptrain.heads.tokens import paired


@dataclass
class DependencyParsingOutput(ModelOutput):
    """Scores of every word's head and of the relation to each.

    Attributes:
        arc_preds: (rows, words, 1 + words); 0 is the root, j the j-th word.
        rel_preds: (rows, words, 1 + words, num_labels).
    """

    loss: Tensor | None = None
    rel_preds: Tensor | None = None
    arc_preds: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

    @property
    def logits(self) -> tuple[Tensor | None, Tensor | None]:
        """Of arcs, and of relations."""
        return self.arc_preds, self.rel_preds


class DependencyParsingHead(Head):
    """The head of every word and its relation to it, biaffine (Dozat & Manning 2017) on the words' vectors without
    further layers (Glavaš & Vulić 2021).

        wᵢ = mean of the hidden states of word i's pieces;   w₀ = that of the first token, the root
        arc[i, j] = [wᵢ; 1]ᵀ U wⱼ                            (rows, words, 1 + words)
        rel[i, j] = [wᵢ; 1]ᵀ Vᵣ [wⱼ; 1]                      (rows, words, 1 + words, num_labels)

    `word_starts` is (rows, words + 1): the position where each word begins and, behind the last word, the one where it
    ends. Rows of fewer words are filled up with negative numbers. A word that a row does not have is nobody's head:
    its scores are the lowest number there is.

    Labels are `labels_arcs` (0 for the root, j for the j-th word) and `labels_rels`, (rows, words) each, or `labels`,
    (rows, words, 2) with both; negative where there is no word.

    Loss: mean cross-entropy of the arcs over all words, plus that of the relations to the words' true heads; 0 where
    there is none.

    U and V begin at zero, as in the reference: every head and relation is equally likely. They have a gradient all the
    same, being linear in it; what is below them has one from the second step on.

    Args:
        hidden_size: of the base model.
        num_labels: how many relations there are.
        dropout: on the hidden states.
        id2label: names of the relations, in order.
    """

    kind = "dependency_parsing"
    arguments = ("word_starts", "labels_arcs", "labels_rels")

    def __init__(
        self,
        hidden_size: int,
        num_labels: int = 2,
        dropout: float = 0.0,
        id2label: Mapping[int, str] | list[str] | None = None,
    ) -> None:
        super().__init__()
        names = label_names(id2label)
        problems = [
            *wrong_labels(num_labels, names),
            *([f"dropout is {dropout}; it must lie in [0, 1)"] if not 0 <= dropout < 1 else []),
        ]
        if problems:
            raise ConfigError([f"{self.kind} head: {problem}" for problem in problems])
        self.options = {
            "hidden_size": hidden_size,
            "num_labels": num_labels,
            "dropout": dropout,
            "id2label": names or None,
        }
        self.num_labels, self.dropout = num_labels, dropout
        self.arcs = nn.Parameter(torch.zeros(hidden_size + 1, hidden_size))
        self.rels = nn.Parameter(torch.zeros(num_labels, hidden_size + 1, hidden_size + 1))

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.kind, **self.options}

    def forward(self, outputs: Any, inputs: Mapping[str, Any], labels: Tensor | None) -> DependencyParsingOutput:
        """
        Raises:
            DataError: no `word_starts`, or they are outside of the row or do not rise; labels of another shape, or
                outside their range.
        """
        starts = inputs.get("word_starts")
        if starts is None:
            raise DataError("A dependency_parsing head needs word_starts, (rows, words + 1)")
        hidden = outputs.last_hidden_state  # (rows, positions, hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = F.dropout(self.cast(hidden), self.dropout, self.training)
            words, there = _words(hidden, starts)  # (rows, words, hidden), (rows, words)
            root = first_token(hidden, inputs)[:, None]
            heads = torch.cat([root, words], 1)  # (rows, 1 + words, hidden)
            left = _with_one(words)
            arcs = torch.einsum("rwi,ij,rhj->rwh", left, self.arcs, heads)
            absent = ~torch.cat([there.new_ones(len(there), 1), there], 1)
            arcs = arcs.masked_fill(absent[:, None], torch.finfo(arcs.dtype).min)
            rels = torch.einsum("rwi,nij,rhj->rwhn", left, self.rels, _with_one(heads))
            told = paired(inputs, labels, "labels_arcs", "labels_rels")
            loss = None if told is None else self.loss(exact(arcs), exact(rels), told, there)
        return DependencyParsingOutput(loss=loss, rel_preds=rels, arc_preds=arcs, **passed_on(outputs))

    def loss(self, arcs: Tensor, rels: Tensor, labels: Tensor, there: Tensor) -> Tensor:
        """The sum of both mean cross-entropies.

        Args:
            labels: (rows, words, 2).
            there: (rows, words), which words a row has.
        """
        check_shape(labels, (*there.shape, 2), "word's arc and relation")
        labels = labels.masked_fill(labels < 0, IGNORED)
        on_cpu = labels.device.type == "cpu"
        heads = class_labels(labels[..., 0], arcs.shape[-1], ignored=True, what="arc")
        kinds = class_labels(labels[..., 1], self.num_labels, ignored=True, what="relation")
        beyond = (heads > there.sum(1, keepdim=True)) | ((heads >= 0) & ~there)
        if on_cpu and bool(beyond.any()):
            raise DataError(
                f"Row {first_row(beyond)}: the arc {int(heads[beyond][0])} is of, or to, a word that word_starts does "
                "not have"
            )
        if on_cpu and bool(((heads < 0) != (kinds < 0)).any()):
            raise DataError(f"Row {first_row((heads < 0) != (kinds < 0))}: a word has an arc or a relation, not both")
        known = heads >= 0
        chosen = rels[known, heads[known]] if known.any() else rels.new_zeros(0, self.num_labels)
        one = F.cross_entropy(arcs[known], heads[known], reduction="sum")
        other = F.cross_entropy(chosen, kinds[known], reduction="sum")
        return (one + other) / known.sum().clamp(min=1)


def _words(hidden: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each word's pieces, zero for words that a row does not have; and which it has."""
    begin, end = starts[:, :-1, None], starts[:, 1:, None]  # (rows, words, 1)
    there = ((begin >= 0) & (end >= 0))[..., 0]
    if starts.device.type == "cpu":
        wrong = there & ((end <= begin) | (end > hidden.shape[1]))[..., 0]
        if bool(wrong.any()):
            raise DataError(
                f"Row {first_row(wrong)}: word_starts must rise, and lie within the {hidden.shape[1]} positions"
            )
    at = torch.arange(hidden.shape[1], device=hidden.device)
    inside = ((at >= begin) & (at < end) & there[..., None]).to(hidden.dtype)  # (rows, words, positions)
    return inside @ hidden / inside.sum(-1, keepdim=True).clamp(min=1), there


def _with_one(vectors: Tensor) -> Tensor:
    return torch.cat([vectors, torch.ones_like(vectors[..., :1])], -1)
