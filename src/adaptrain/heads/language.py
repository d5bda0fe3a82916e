"""Language modelling: masked words, the next word, and the words that an encoder-decoder writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import CausalLMOutputWithPast, MaskedLMOutput, Seq2SeqLMOutput

from adaptrain.errors import ConfigError, DataError, UnsupportedError
from adaptrain.heads.base import Head, exact, passed_on
from adaptrain.heads.labels import IGNORED, check_shape, first_row
from adaptrain.heads.pooling import visible
from adaptrain.methods.activations import ACTIVATIONS, unknown_activation

UNMASKED = IGNORED
"""The label of a position that is not predicted."""


class LMHead(Head):
    """Scores of words.

        zᵢ = LayerNorm(act(Wᵢ zᵢ₋₁ + bᵢ))                    for all layers but the last; z₀ = s · the hidden states
        logits = f⁻¹(z) Eᵀ + b;                              with a cap c: c tanh(logits / c)

    E are the input embeddings in force, which the head shares and does not own; or, where `tied` is False, a table of
    its own. f⁻¹ undoes what invertible adapters of the active composition do to the embeddings.

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
        tied: whether the words are the model's.
        scale: s, with which the family multiplies its hidden states before its words (T5).
        cap: c, where the family bounds its logits (Gemma 2); None: no bound.
    """

    def __init__(
        self,
        hidden_size: int,
        embedding_size: int,
        vocab_size: int,
        layers: int,
        activation: str,
        layer_norm: bool,
        eps: float,
        bias: bool,
        tied: bool = True,
        scale: float = 1.0,
        cap: float | None = None,
    ) -> None:
        super().__init__()
        problems = [
            *([f"layers is {layers}; it must be at least 1"] if layers < 1 else []),
            *([f"eps is {eps}; it must be positive"] if eps <= 0 else []),
            *([f"cap is {cap}; it must be positive"] if cap is not None and cap <= 0 else []),
            *filter(None, [unknown_activation(activation)]),
        ]
        if layers == 1 and hidden_size != embedding_size:
            problems.append(
                f"layers is 1, and this model's words have {embedding_size} numbers where its hidden states have "
                f"{hidden_size}; 2 layers are due"
            )
        if problems:
            raise ConfigError([f"{self.kind} head: {problem}" for problem in problems])
        self.options = {
            "hidden_size": hidden_size,
            "embedding_size": embedding_size,
            "vocab_size": vocab_size,
            "layers": layers,
            "activation": activation,
            "layer_norm": layer_norm,
            "eps": eps,
            "bias": bias,
        }
        self.options |= {} if tied else {"tied": False}
        self.options |= {} if scale == 1.0 else {"scale": scale}
        self.options |= {} if cap is None else {"cap": cap}
        self.vocab_size, self.scale, self.cap = vocab_size, scale, cap
        self.activation = ACTIVATIONS[activation.lower()]
        sizes = [hidden_size] * (layers - 1) + [embedding_size]
        maps = [nn.Linear(sizes[index], sizes[index + 1]) for index in range(layers - 1)]
        self.hidden = nn.ModuleList(maps)
        self.norms = nn.ModuleList(nn.LayerNorm(layer.out_features, eps) for layer in maps if layer_norm)
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if bias else None
        self.words = None if tied else nn.Parameter(torch.empty(vocab_size, embedding_size).normal_(std=0.02))
        for layer in maps:
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.kind, **self.options}

    def transformed(self, hidden: Tensor) -> Tensor:
        """What is compared with the words, (rows, positions, embedding_size)."""
        return self._through(hidden * self.scale)

    def embedded(self, hidden: Tensor) -> Tensor:
        """The head as an output embedding, whose model does itself what `scale` and `cap` say."""
        z = self._through(hidden)
        return F.linear(z, self.table().to(z.dtype), self.bias)

    def _through(self, hidden: Tensor) -> Tensor:
        for index, layer in enumerate(self.hidden):
            hidden = self.activation(layer(hidden))
            if self.norms:
                hidden = self.norms[index](hidden)
        return self.live().undone(hidden).to(hidden.dtype)

    def compared(self, z: Tensor) -> Tensor:
        """The words' scores, (…, vocab_size).

        Raises:
            UnsupportedError: the embeddings in force have another number of words.
        """
        logits = F.linear(z, self.table().to(z.dtype), self.bias)
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over the positions whose label is not −100.

        Raises:
            DataError: a label is neither −100 nor a word.
        """
        if labels.device.type == "cpu":  # elsewhere the check would wait for the device at every step
            beyond = (labels != UNMASKED) & ((labels < 0) | (labels >= self.vocab_size))
            if bool(beyond.any()):
                where = f"Row {first_row(beyond)}: " if labels.dim() > 1 else ""
                raise DataError(
                    f"{where}A label is no word: {int(labels[beyond][0])}. There are {self.vocab_size} words, and "
                    f"{UNMASKED} marks a position that is not predicted"
                )
        total = F.cross_entropy(
            logits.reshape(-1, self.vocab_size), labels.reshape(-1).long(), ignore_index=UNMASKED, reduction="sum"
        )
        return total / (labels != UNMASKED).sum().clamp(min=1)

    def table(self) -> Tensor:
        """The words, (vocab_size, embedding_size).

        Raises:
            UnsupportedError: the embeddings in force have another number of words.
        """
        words = self.live().word_table() if self.words is None else self.words
        if len(words) != self.vocab_size:
            raise UnsupportedError(
                f"The {self.kind} head '{self.name}' is for {self.vocab_size} words, and the embeddings in force have "
                f"{len(words)}; activate the embeddings that it was made for, or add a head for these"
            )
        return words


class MaskedLMHead(LMHead):
    """The words that were masked, as BERT predicts them (Devlin et al. 2019); formula and loss are those of `LMHead`.

    Args:
        sparse_prediction: with labels, only the positions that have one are compared with the words, so that logits
            are (labelled positions, vocab_size). The loss is the same, and most of its cost is saved.
        others: as in `LMHead`.
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
        tied: bool = True,
    ) -> None:
        super().__init__(hidden_size, embedding_size, vocab_size, layers, activation, layer_norm, eps, bias, tied)
        self.options["sparse_prediction"] = self.sparse = sparse_prediction

    def forward(self, outputs: Any, inputs: Mapping[str, Any], labels: Tensor | None) -> MaskedLMOutput:
        """The words' scores, (rows, positions, vocab_size), unless `sparse_prediction` and labels say otherwise.

        Raises:
            UnsupportedError: the head is on no model, or the embeddings in force have another number of words.
            DataError: a label is neither −100 nor a word.
        """
        hidden = outputs.last_hidden_state  # (rows, positions, hidden)
        with torch.autocast(hidden.device.type, enabled=False):  # in its own dtype, as all heads of ours
            z = self.transformed(self.cast(hidden))  # (rows, positions, embedding_size)
            if labels is not None and self.sparse:
                z, labels = z[labels != UNMASKED], labels[labels != UNMASKED]
            logits = self.compared(z)
            loss = None if labels is None else self.loss(exact(logits), labels)
        return MaskedLMOutput(loss=loss, logits=logits, **passed_on(outputs))  # type: ignore[arg-type]


class CausalLMHead(LMHead):
    """The next word; formula and loss are those of `LMHead`. With one layer and no bias it is the output embedding of
    a model that ties it to its words.

    Labels are the texts themselves, (rows, positions), −100 where no word is due: the label of position t + 1 is
    compared with the logits of position t. What the attention mask hides is neither predicted nor predicted from.

    Args:
        shift_labels: False for labels that are shifted already.
        others: as in `LMHead`.
    """

    kind = "causal_lm"

    def __init__(
        self,
        hidden_size: int,
        embedding_size: int,
        vocab_size: int,
        layers: int = 1,
        activation: str = "gelu",
        layer_norm: bool = True,
        eps: float = 1e-12,
        bias: bool = False,
        shift_labels: bool = True,
        tied: bool = True,
        scale: float = 1.0,
        cap: float | None = None,
    ) -> None:
        sizes = hidden_size, embedding_size, vocab_size
        super().__init__(*sizes, layers, activation, layer_norm, eps, bias, tied, scale, cap)
        self.options["shift_labels"] = self.shift_labels = shift_labels

    def forward(self, outputs: Any, inputs: Mapping[str, Any], labels: Tensor | None) -> CausalLMOutputWithPast:
        """The words' scores, (rows, positions, vocab_size).

        Raises:
            UnsupportedError: the head is on no model, or the embeddings in force have another number of words.
            DataError: labels of another shape, or one is neither −100 nor a word.
        """
        hidden = outputs.last_hidden_state  # (rows, positions, hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            logits = self.compared(self.transformed(self.cast(hidden)))
            loss = None
            if labels is not None:
                check_shape(labels, tuple(hidden.shape[:2]), "row and position")
                seen, told = visible(inputs, hidden), logits
                if self.shift_labels:
                    labels, told, seen = labels[:, 1:], logits[:, :-1], seen[:, 1:] & seen[:, :-1]
                loss = self.loss(exact(told), labels.masked_fill(~seen, UNMASKED))
        more = passed_on(outputs, CausalLMOutputWithPast)
        return CausalLMOutputWithPast(loss=loss, logits=logits, **more)  # type: ignore[arg-type]


class Seq2SeqLMHead(LMHead):
    """The words that an encoder-decoder writes; formula and loss are those of `LMHead`.

    Labels are those words, (rows, decoder positions), −100 where none is due. Where no `decoder_input_ids` are given,
    the decoder reads the labels, each one position later.

    Args:
        others: as in `LMHead`.
    """

    kind = "seq2seq_lm"

    def __init__(
        self,
        hidden_size: int,
        embedding_size: int,
        vocab_size: int,
        layers: int = 1,
        activation: str = "gelu",
        layer_norm: bool = False,
        eps: float = 1e-12,
        bias: bool = False,
        tied: bool = True,
        scale: float = 1.0,
    ) -> None:
        sizes = hidden_size, embedding_size, vocab_size
        super().__init__(*sizes, layers, activation, layer_norm, eps, bias, tied, scale)

    def forward(self, outputs: Any, inputs: Mapping[str, Any], labels: Tensor | None) -> Seq2SeqLMOutput:
        """The words' scores, (rows, decoder positions, vocab_size).

        Raises:
            UnsupportedError: the head is on no model, or the embeddings in force have another number of words.
            DataError: labels of another shape, or one is neither −100 nor a word.
        """
        hidden = outputs.last_hidden_state  # (rows, positions, hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            logits = self.compared(self.transformed(self.cast(hidden)))
            loss = None
            if labels is not None:
                check_shape(labels, tuple(hidden.shape[:2]), "row and position of the decoder")
                loss = self.loss(exact(logits), labels)
        more = passed_on(outputs, Seq2SeqLMOutput)
        return Seq2SeqLMOutput(loss=loss, logits=logits, **more)  # type: ignore[arg-type]
