"""One prediction from one vector of a sequence: classes, several classes at once, regression, and one of several
choices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import (
    ImageClassifierOutput,
    MultipleChoiceModelOutput,
    SequenceClassifierOutput,
)

from adaptrain.errors import DataError
from adaptrain.heads.base import LayeredHead, exact, label_names, passed_on, wrong_labels
from adaptrain.heads.labels import check_shape, class_labels, many_labels, number_labels
from adaptrain.heads.pooling import Pooling, end_of_text, pooled, unknown_pooling

_MANY = "multi_label_classification"
"""What transformers calls classes that do not exclude each other."""


class _Pooled(LayeredHead):
    """A head that reads one vector of each row."""

    pooling: Pooling

    def vector(self, outputs: Any, inputs: Mapping[str, Any]) -> Tensor:
        """(rows, hidden)."""
        model = self.live().model if self.pooling == "mean" else None
        eos = end_of_text(self.live()) if self.pooling == "eos" else None
        return pooled(self.pooling, outputs, inputs, model, eos)

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.kind, **self.options}


class ClassificationHead(_Pooled):
    """Label scores from one vector of the sequence.

        z₀ = what `pooling` reads, in `heads.pooling`
        zᵢ = act(Wᵢ Dropout(zᵢ₋₁) + bᵢ)                     for all layers but the last
        logits = W Dropout(z) + b

    Loss: mean cross-entropy over rows; mean squared error with one label (regression).

    Args:
        hidden_size: of the base model.
        num_labels: 1 for regression.
        layers: linear maps, the last one included.
        activation: between them.
        dropout: before each of them.
        pooling: which vector is read.
        id2label: names of the labels, in order.
        bias: of the last map.
    """

    kind = "classification"
    made = SequenceClassifierOutput

    def __init__(
        self,
        hidden_size: int,
        num_labels: int = 2,
        layers: int = 2,
        activation: str = "tanh",
        dropout: float = 0.0,
        pooling: Pooling = "first",
        id2label: Mapping[int, str] | list[str] | None = None,
        bias: bool = True,
    ) -> None:
        names = label_names(id2label)
        problems = [*wrong_labels(num_labels, names), *filter(None, [unknown_pooling(pooling)])]
        super().__init__(hidden_size, num_labels, layers, activation, dropout, bias, problems)
        self.options = {
            "hidden_size": hidden_size,
            "num_labels": num_labels,
            "layers": layers,
            "activation": activation,
            "dropout": dropout,
            "pooling": pooling,
            "id2label": names or None,
            "bias": bias,
        }
        self.num_labels, self.pooling = num_labels, pooling
        self.problem_type = "regression" if num_labels == 1 else "single_label_classification"

    def forward(self, outputs: Any, inputs: Mapping[str, Any], labels: Tensor | None) -> Any:
        z = self.vector(outputs, inputs)
        # in the head's own dtype even under autocast: a head is small, and bf16 logits are coarse
        with torch.autocast(z.device.type, enabled=False):
            logits = self.scores(self.cast(z))  # (rows, num_labels)
            loss = None if labels is None else self.loss(exact(logits), labels)
        return self.made(loss=loss, logits=logits, **passed_on(outputs))  # type: ignore[arg-type]

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss over rows.

        Raises:
            DataError: a label is no whole number, or outside 0 … num_labels − 1; in a regression not finite.
        """
        if self.num_labels == 1:
            return F.mse_loss(logits[:, 0], number_labels(labels, logits[:, 0]))
        labels = class_labels(labels.view(-1), self.num_labels)
        check_shape(labels, (len(logits),), "row")
        return F.cross_entropy(logits, labels)


class MultiLabelClassificationHead(ClassificationHead):
    """A `ClassificationHead` whose classes do not exclude each other.

    Loss: −mean over rows and classes of y log σ(logit) + (1 − y) log(1 − σ(logit)). Labels are (rows, num_labels).
    """

    kind = "multilabel_classification"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.problem_type = _MANY

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss over rows and classes.

        Raises:
            DataError: labels of another shape, or outside 0 … 1.
        """
        return F.binary_cross_entropy_with_logits(logits, many_labels(labels, logits))


class ImageClassificationHead(ClassificationHead):
    """A `ClassificationHead` for images; with `multilabel` the loss is a `MultiLabelClassificationHead`'s."""

    kind = "image_classification"
    made = ImageClassifierOutput

    def __init__(
        self,
        hidden_size: int,
        num_labels: int = 2,
        layers: int = 1,
        activation: str = "tanh",
        dropout: float = 0.0,
        pooling: Pooling = "first",
        id2label: Mapping[int, str] | list[str] | None = None,
        bias: bool = True,
        multilabel: bool = False,
    ) -> None:
        super().__init__(hidden_size, num_labels, layers, activation, dropout, pooling, id2label, bias)
        self.options["multilabel"] = self.multilabel = multilabel
        if multilabel:
            self.problem_type = _MANY

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss over rows; with `multilabel` over rows and classes.

        Raises:
            DataError: labels of another shape or dtype, or outside their range.
        """
        if self.multilabel:
            return F.binary_cross_entropy_with_logits(logits, many_labels(labels, logits))
        return super().loss(logits, labels)


class MultipleChoiceHead(_Pooled):
    """Which of several texts is the one. Each is scored for itself, and the scores of one question are compared.

        logits[q, c] = score of row q · num_choices + c

    The model is given (questions, choices, positions), or the same as (questions · choices, positions), the choices of
    a question one after the other. Labels are (questions).

    Loss: mean cross-entropy over questions.

    Args:
        num_choices: of every question.
        others: as in `ClassificationHead`.
    """

    kind = "multiple_choice"

    def __init__(
        self,
        hidden_size: int,
        num_choices: int = 2,
        layers: int = 2,
        activation: str = "tanh",
        dropout: float = 0.0,
        pooling: Pooling = "first",
        id2label: Mapping[int, str] | list[str] | None = None,
        bias: bool = True,
    ) -> None:
        names = label_names(id2label)
        problems = [
            *([f"num_choices is {num_choices}; it must be at least 2"] if num_choices < 2 else []),
            *(
                [f"id2label names {len(names)} choices, num_choices is {num_choices}"]
                if names and len(names) != num_choices
                else []
            ),
            *filter(None, [unknown_pooling(pooling)]),
        ]
        super().__init__(hidden_size, 1, layers, activation, dropout, bias, problems)
        self.options = {
            "hidden_size": hidden_size,
            "num_choices": num_choices,
            "layers": layers,
            "activation": activation,
            "dropout": dropout,
            "pooling": pooling,
            "id2label": names or None,
            "bias": bias,
        }
        self.grouped = self.num_labels = num_choices
        self.pooling = pooling

    def forward(self, outputs: Any, inputs: Mapping[str, Any], labels: Tensor | None) -> MultipleChoiceModelOutput:
        """
        Raises:
            DataError: the rows are no multiple of the choices, or a label is none of them.
        """
        z = self.vector(outputs, inputs)
        if len(z) % self.grouped:
            raise DataError(f"{len(z)} rows are no multiple of the {self.grouped} choices of the head '{self.name}'")
        with torch.autocast(z.device.type, enabled=False):
            logits = self.scores(self.cast(z)).view(-1, self.grouped)  # (questions, num_choices)
            loss = None
            if labels is not None:
                labels = class_labels(labels.view(-1), self.grouped)
                check_shape(labels, (len(logits),), "question")
                loss = F.cross_entropy(exact(logits), labels)
        return MultipleChoiceModelOutput(loss=loss, logits=logits, **passed_on(outputs))  # type: ignore[arg-type]
