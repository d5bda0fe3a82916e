"""Masked language modelling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import MaskedLMOutput

from adaptrain.errors import ConfigError, DataError, UnsupportedError
from adaptrain.heads.base import Head
from adaptrain.methods.activations import ACTIVATIONS, unknown_activation

if TYPE_CHECKING:
    from adaptrain.sites import Sites

UNMASKED = -100
"""The label of a position that is not predicted."""


class MaskedLMHead(Head):
    """The words that were masked, as BERT predicts them (Devlin et al. 2019).

        zᵢ = LayerNorm(act(Wᵢ zᵢ₋₁ + bᵢ))                    for all layers but the last; z₀ = the hidden states
        logits = f⁻¹(z) Eᵀ + b

    E are the input embeddings in force, which the head shares and does not own. f⁻¹ undoes what invertible adapters of
    the active composition do to them.

    Loss: mean cross-entropy over the positions whose label is not −100, of all rows together; 0 where there is none.

    Args:
        hidden_size: of the base model.
        embedding_size: of its words.
        vocab_size: how many words there are.
        layers: linear maps, the one onto the words included.
        activation: behind each of the others.
        layer_norm: behind each activation.
        eps: of the norm.
        bias: of the map onto the words.
        sparse_prediction: with labels, only the positions that have one are compared with the words, so that logits
            are (labelled positions, vocab_size). The loss is the same, and most of its cost is saved.
    """

    kind = "masked_lm"

    def __init__(
        self,
        hidden_size: int,
        embedding_size: int,
        vocab_size: int,
        layers: int = 2,
        activation: str = "gelu",
        layer_norm: bool = True,
        eps: float = 1e-12,
        bias: bool = True,
        sparse_prediction: bool = False,
    ) -> None:
        super().__init__()
        problems = [
            *([f"layers is {layers}; it must be at least 1"] if layers < 1 else []),
            *([f"eps is {eps}; it must be positive"] if eps <= 0 else []),
            *filter(None, [unknown_activation(activation)]),
        ]
        if layers == 1 and hidden_size != embedding_size:
            problems.append(
                f"layers is 1, and this model's words have {embedding_size} numbers where its hidden states have "
                f"{hidden_size}; 2 layers are due"
            )
        if problems:
            raise ConfigError([f"masked_lm head: {problem}" for problem in problems])
        self.options = {
            "hidden_size": hidden_size,
            "embedding_size": embedding_size,
            "vocab_size": vocab_size,
            "layers": layers,
            "activation": activation,
            "layer_norm": layer_norm,
            "eps": eps,
            "bias": bias,
            "sparse_prediction": sparse_prediction,
        }
        self.vocab_size, self.sparse = vocab_size, sparse_prediction
        self.activation = ACTIVATIONS[activation.lower()]
        sizes = [hidden_size] * (layers - 1) + [embedding_size]
        maps = [nn.Linear(sizes[index], sizes[index + 1]) for index in range(layers - 1)]
        self.hidden = nn.ModuleList(maps)
        self.norms = nn.ModuleList(nn.LayerNorm(layer.out_features, eps) for layer in maps if layer_norm)
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if bias else None
        for layer in maps:
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self._sites: Callable[[], Sites] | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.kind, **self.options}

    def bind(self, sites: Callable[[], Sites]) -> None:
        self._sites = sites

    def forward(self, outputs: Any, inputs: Mapping[str, Any], labels: Tensor | None) -> MaskedLMOutput:
        """The words' scores, (rows, positions, vocab_size), unless `sparse_prediction` and labels say otherwise.

        Raises:
            UnsupportedError: the head is on no model, or the embeddings in force have another number of words.
            DataError: a label is neither −100 nor a word.
        """
        hidden = outputs.last_hidden_state  # (rows, positions, hidden)
        with torch.autocast(hidden.device.type, enabled=False):  # float32, as all heads of ours
            z = self.transformed(hidden.float())  # (rows, positions, embedding_size)
            if labels is not None and self.sparse:
                z, labels = z[labels != UNMASKED], labels[labels != UNMASKED]
            logits = F.linear(z, self._words().float(), self.bias)
            loss = None if labels is None else self.loss(logits, labels)
        return MaskedLMOutput(
            loss=loss,  # type: ignore[arg-type]
            logits=logits,
            hidden_states=getattr(outputs, "hidden_states", None),
            attentions=getattr(outputs, "attentions", None),
        )

    def transformed(self, hidden: Tensor) -> Tensor:
        """What is compared with the words, (rows, positions, embedding_size)."""
        for index, layer in enumerate(self.hidden):
            hidden = self.activation(layer(hidden))
            if self.norms:
                hidden = self.norms[index](hidden)
        return self._live().undone(hidden)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over the positions whose label is not −100.

        Raises:
            DataError: a label is neither −100 nor a word.
        """
        if labels.device.type == "cpu":  # elsewhere the check would wait for the device at every step
            beyond = (labels != UNMASKED) & ((labels < 0) | (labels >= self.vocab_size))
            if bool(beyond.any()):
                raise DataError(
                    f"A label is no word: {int(labels[beyond][0])}. There are {self.vocab_size} words, and "
                    f"{UNMASKED} marks a position that is not predicted"
                )
        total = F.cross_entropy(
            logits.reshape(-1, self.vocab_size), labels.reshape(-1), ignore_index=UNMASKED, reduction="sum"
        )
        return total / (labels != UNMASKED).sum().clamp(min=1)

    def _words(self) -> Tensor:
        words = self._live().word_table()
        if len(words) != self.vocab_size:
            raise UnsupportedError(
                f"The masked_lm head '{self.name}' is for {self.vocab_size} words, and the embeddings in force have "
                f"{len(words)}; activate the embeddings that it was made for, or add a head for these"
            )
        return words

    def _live(self) -> Sites:
        if self._sites is None:
            raise UnsupportedError("A masked_lm head shares a model's embeddings; add it to a model with add_head")
        return self._sites()
