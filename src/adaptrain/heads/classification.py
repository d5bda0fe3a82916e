"""Sequence classification and regression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput

from adaptrain.errors import ConfigError, DataError
from adaptrain.heads.base import Head
from adaptrain.methods.activations import ACTIVATIONS, unknown_activation


class ClassificationHead(Head):
    """Label scores from one vector of the sequence.

        z₀ = hidden state of the first position, or of the last that is not padding
        zᵢ = act(Wᵢ Dropout(zᵢ₋₁) + bᵢ)                     for all layers but the last
        logits = W Dropout(z) + b

    Loss: mean cross-entropy over rows; mean squared error with one label (regression).

    Args:
        hidden_size: of the base model.
        num_labels: 1 for regression.
        layers: linear maps, the last one included.
        activation: between them.
        dropout: before each of them.
        pooling: which position is read.
        id2label: names of the labels, in order.
    """

    kind = "classification"

    def __init__(
        self,
        hidden_size: int,
        num_labels: int = 2,
        layers: int = 2,
        activation: str = "tanh",
        dropout: float = 0.0,
        pooling: Literal["first", "last"] = "first",
        id2label: Mapping[int, str] | list[str] | None = None,
    ) -> None:
        super().__init__()
        problems = [
            *([f"num_labels is {num_labels}; it must be at least 1"] if num_labels < 1 else []),
            *([f"layers is {layers}; it must be at least 1"] if layers < 1 else []),
            *([f"dropout is {dropout}; it must lie in [0, 1)"] if not 0 <= dropout < 1 else []),
            *filter(None, [unknown_activation(activation)]),
        ]
        names = list(id2label.values()) if isinstance(id2label, Mapping) else list(id2label or [])
        if names and len(names) != num_labels:
            problems.append(f"id2label names {len(names)} labels, num_labels is {num_labels}")
        if problems:
            raise ConfigError([f"classification head: {problem}" for problem in problems])
        self.options = {
            "hidden_size": hidden_size,
            "num_labels": num_labels,
            "layers": layers,
            "activation": activation,
            "dropout": dropout,
            "pooling": pooling,
            "id2label": names or None,
        }
        self.num_labels, self.pooling, self.dropout = num_labels, pooling, dropout
        self.activation = ACTIVATIONS[activation.lower()]
        self.hidden = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(layers - 1))
        self.out = nn.Linear(hidden_size, num_labels)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02) if parameter.dim() > 1 else nn.init.zeros_(parameter)

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.kind, **self.options}

    def forward(self, outputs: Any, inputs: Mapping[str, Any], labels: Tensor | None) -> SequenceClassifierOutput:
        hidden = outputs.last_hidden_state  # (rows, positions, hidden)
        z = hidden[:, 0] if self.pooling == "first" else _last(hidden, _mask(inputs, hidden))
        # float32 even under autocast: a head is small, and losses of bf16 logits are coarse
        with torch.autocast(hidden.device.type, enabled=False):
            z = z.float()
            for layer in self.hidden:
                z = self.activation(layer(F.dropout(z, self.dropout, self.training)))
            logits = self.out(F.dropout(z, self.dropout, self.training))  # (rows, num_labels)
            loss = None if labels is None else self.loss(logits, labels)
        return SequenceClassifierOutput(
            loss=loss,  # type: ignore[arg-type]
            logits=logits,
            hidden_states=getattr(outputs, "hidden_states", None),
            attentions=getattr(outputs, "attentions", None),
        )

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss over rows.

        Raises:
            DataError: a label that is no whole number, or outside 0 … num_labels − 1.
        """
        if self.num_labels == 1:
            return F.mse_loss(logits[:, 0], labels.to(logits.dtype).view(-1))
        if labels.is_floating_point():
            raise DataError(f"Labels of {self.num_labels} classes are whole numbers, not {labels.dtype}")
        on_cpu = labels.device.type == "cpu"  # elsewhere the check would wait for the device at every step
        if on_cpu and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_labels:
            raise DataError(f"A label is outside 0 … {self.num_labels - 1}: {sorted(set(labels.tolist()))}")
        return F.cross_entropy(logits, labels.view(-1))


def _mask(inputs: Mapping[str, Any], hidden: Tensor) -> Tensor:
    """The mask over the positions of `hidden`; an encoder-decoder's own decoder mask where it has one."""
    key = "decoder_attention_mask" if inputs.get("decoder_input_ids") is not None else "attention_mask"
    mask = inputs.get(key)
    return hidden.new_ones(hidden.shape[:2]) if mask is None else mask


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    """The hidden state at the last position that is not padding, on whichever side the padding is."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (mask.ne(0) * positions).argmax(-1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]
