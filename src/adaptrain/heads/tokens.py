"""A prediction for every token: its class, or whether an answer begins and ends there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import QuestionAnsweringModelOutput, TokenClassifierOutput

from adaptrain.errors import DataError
from adaptrain.heads.base import LayeredHead, exact, label_names, passed_on, wrong_labels
from adaptrain.heads.labels import IGNORED, check_shape, class_labels
from adaptrain.heads.pooling import visible


class _PerToken(LayeredHead):
    """A head that reads every position.

    Args:
        hidden_size: of the base model.
        num_labels: of every token.
        layers: linear maps, the last one included.
        activation: between them.
        dropout: before each of them.
        id2label: names of the labels, in order.
        bias: of the last map.
    """

    def __init__(
        self,
        hidden_size: int,
        num_labels: int = 2,
        layers: int = 1,
        activation: str = "tanh",
        dropout: float = 0.0,
        id2label: Mapping[int, str] | list[str] | None = None,
        bias: bool = True,
    ) -> None:
        names = label_names(id2label)
        problems = [*wrong_labels(num_labels, names), *self.problems(num_labels)]
        super().__init__(hidden_size, num_labels, layers, activation, dropout, bias, problems)
        self.options = {
            "hidden_size": hidden_size,
            "num_labels": num_labels,
            "layers": layers,
            "activation": activation,
            "dropout": dropout,
            "id2label": names or None,
            "bias": bias,
        }
        self.num_labels = num_labels

    def problems(self, num_labels: int) -> list[str]:
        """What else is wrong with a number of labels."""
        return []

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.kind, **self.options}


class TaggingHead(_PerToken):
    """A class for every token.

        zᵢ = act(Wᵢ Dropout(zᵢ₋₁) + bᵢ)                     for all layers but the last; z₀ = the hidden states
        logits = W Dropout(z) + b                            (rows, positions, num_labels)

    Labels are (rows, positions), −100 where none is due (padding, special tokens, later pieces of a word).

    Loss: mean cross-entropy over the tokens whose label is not −100, of all rows together; 0 where there is none. What
    the attention mask hides is not predicted, whatever its label.
    """

    kind = "tagging"

    def forward(self, outputs: Any, inputs: Mapping[str, Any], labels: Tensor | None) -> TokenClassifierOutput:
        """
        Raises:
            DataError: labels of another shape or dtype, or outside 0 … num_labels − 1; names the row.
        """
        hidden = outputs.last_hidden_state  # (rows, positions, hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            logits = self.scores(self.cast(hidden))
            loss = None if labels is None else self.loss(exact(logits), labels, visible(inputs, hidden))
        return TokenClassifierOutput(loss=loss, logits=logits, **passed_on(outputs))  # type: ignore[arg-type]

    def loss(self, logits: Tensor, labels: Tensor, seen: Tensor) -> Tensor:
        """Mean cross-entropy over the labelled tokens.

        Args:
            seen: (rows, positions), what is not padding.
        """
        check_shape(labels, tuple(logits.shape[:2]), "row and position")
        labels = class_labels(labels, self.num_labels, ignored=True).masked_fill(~seen, IGNORED)
        total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        return total / (labels != IGNORED).sum().clamp(min=1)


@dataclass
class SpanOutput(QuestionAnsweringModelOutput):
    """Scores of every position to be the start and the end of the answer, (rows, positions) each."""

    @property
    def logits(self) -> Tensor:
        """Both, (rows, positions, 2)."""
        assert self.start_logits is not None and self.end_logits is not None
        return torch.stack([self.start_logits, self.end_logits], -1)


class QuestionAnsweringHead(_PerToken):
    """Where in a text the answer begins and ends (Rajpurkar et al. 2016; as BERT does, Devlin et al. 2019).

        zᵢ = act(Wᵢ Dropout(zᵢ₋₁) + bᵢ)                     for all layers but the last; z₀ = the hidden states
        (start, end) = W Dropout(z) + b                      (rows, positions) each

    Padding is never an answer: its scores are the lowest number there is. Labels are `start_positions` and
    `end_positions`, (rows) each, or `labels`, (rows, 2) with both. They count the positions of the padded row. One that
    is outside of the row, or in its padding, is ignored: an answer that was cut off.

    Loss: half the cross-entropy of starts plus half that of ends, each a mean over the rows where it is not ignored; 0
    where there is none.
    """

    kind = "question_answering"
    arguments = ("start_positions", "end_positions")

    def problems(self, num_labels: int) -> list[str]:
        return [] if num_labels == 2 else [f"num_labels is {num_labels}; a start and an end are 2"]

    def forward(self, outputs: Any, inputs: Mapping[str, Any], labels: Tensor | None) -> SpanOutput:
        """
        Raises:
            DataError: labels are no whole numbers, of another shape, or only half of them is there.
        """
        hidden = outputs.last_hidden_state  # (rows, positions, hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            logits = self.scores(self.cast(hidden))  # (rows, positions, 2)
            seen = visible(inputs, hidden)
            logits = logits.masked_fill(~seen[..., None], torch.finfo(logits.dtype).min)
            spans = paired(inputs, labels, *self.arguments)
            loss = None if spans is None else self.loss(exact(logits), spans, seen)
        start, end = logits.unbind(-1)
        return SpanOutput(loss=loss, start_logits=start, end_logits=end, **passed_on(outputs))  # type: ignore[arg-type]

    def loss(self, logits: Tensor, spans: Tensor, seen: Tensor) -> Tensor:
        """The mean of both cross-entropies.

        Args:
            spans: (rows, 2).
            seen: (rows, positions), what is not padding.
        """
        rows, positions = seen.shape
        check_shape(spans, (rows, 2), "row's start and end")
        if spans.is_floating_point():
            raise DataError(f"Positions are whole numbers, not {spans.dtype}")
        spans = spans.long()
        inside = (spans >= 0) & (spans < positions)
        inside &= seen.gather(1, spans.clamp(0, max(positions - 1, 0)))
        spans = spans.masked_fill(~inside, IGNORED)
        total = F.cross_entropy(logits, spans, ignore_index=IGNORED, reduction="none").sum(0)  # (2,)
        return (total / inside.sum(0).clamp(min=1)).mean()


def paired(inputs: Mapping[str, Any], labels: Tensor | None, one: str, other: str) -> Tensor | None:
    """Labels that come in two halves, stacked along a last axis: as `labels`, or each by its own name.

    Raises:
        DataError: both, or only one half.
    """
    halves = [inputs.get(one), inputs.get(other)]
    given = [half for half in halves if half is not None]
    if not given:
        return labels
    if len(given) == 1 or labels is not None:
        raise DataError(f"Labels are {one} and {other}, or labels with both along their last axis")
    halves = [half.squeeze(-1) if half.dim() > 1 and half.shape[-1] == 1 else half for half in given]
    if halves[0].shape != halves[1].shape:
        raise DataError(f"{one} is {tuple(halves[0].shape)}, and {other} is {tuple(halves[1].shape)}")
    return torch.stack(halves, -1)
