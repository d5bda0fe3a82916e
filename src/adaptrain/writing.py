"""Text from a bare base model and a named head: the family's own model that writes, around both."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    PreTrainedModel,
)

from adaptrain.errors import UnsupportedError
from adaptrain.heads import LMHead, Seq2SeqLMHead
from adaptrain.upstream import attribute


def writer(base: PreTrainedModel, head: LMHead) -> PreTrainedModel:
    """The family's model with an output embedding, made of the base's own modules and a head; nothing is copied, and
    the base does not change.

    Raises:
        UnsupportedError: transformers has no such model of this family.
    """
    kinds = (AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq) if isinstance(head, Seq2SeqLMHead) else ()
    found = next(
        (k for k in kinds or (AutoModelForCausalLM,) if type(base.config) in attribute(k, "_model_mapping")), None
    )
    if found is None:
        raise UnsupportedError(f"transformers has no {base.config.model_type} that generates")
    made: Any = attribute(found, "_model_mapping")[type(base.config)]
    with torch.device("meta"):
        model = made(copy.deepcopy(base.config))
    model.config = base.config
    if hasattr(model, base.base_model_prefix):
        setattr(model, base.base_model_prefix, base)
    else:  # a T5 that writes has the parts of the bare one
        for name, part in base.named_children():
            setattr(model, name, part)
    model.set_output_embeddings(_Scores(head))
    if (bias := model._buffers.get("final_logits_bias")) is not None:  # BART's, zero where it is not trained
        model._buffers["final_logits_bias"] = torch.zeros(bias.shape, device=base.device)
    return model.train(base.training)


class _Scores(nn.Module):
    """A head in the place of an output embedding."""

    def __init__(self, head: LMHead) -> None:
        super().__init__()
        self.head = head

    @property
    def weight(self) -> Tensor:
        """transformers asks for its dtype."""
        return self.head.table()

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head.embedded(self.head.cast(hidden))
