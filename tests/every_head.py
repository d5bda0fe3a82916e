"""One line a type of head: on which tiny model it is, how it is added, and what it is given beside the inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adaptrain.model import AdaptedModel
from matrix import METHODS, adapted, batch, randomise

NAMES = {0: "cat", 1: "dog", 2: "owl"}


@dataclass(frozen=True)
class Line:
    """A type of head.

    Attributes:
        arch: the tiny model.
        add: `AdaptedModel`'s method.
        options: of that method.
        more: labels and other arguments of `forward`, from the inputs.
        job: the transformers class that does the same.
    """

    arch: str
    add: str
    options: dict[str, Any]
    more: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    job: str


def ids(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"labels": inputs["input_ids"]}


def spans(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 2])}


def tree(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "word_starts": torch.tensor([[1, 2, 3, 5], [1, 2, 3, -1]]),
        "labels_arcs": torch.tensor([[2, 0, 2], [0, 1, -1]]),
        "labels_rels": torch.tensor([[1, 0, 2], [0, 1, -1]]),
    }


def written(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"labels": inputs["decoder_input_ids"]}


def classes(*labels: Any) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda inputs: {"labels": torch.tensor(labels)}


def tags(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"labels": inputs["input_ids"] % 3}


THREE = {"num_labels": 3, "id2label": NAMES}
CLASSES, IMAGES = "add_classification_head", "add_image_classification_head"
EVERY = {
    "classification": Line("bert", CLASSES, THREE, classes(2, 0), "BertForSequenceClassification"),
    "regression": Line("bert", CLASSES, {"num_labels": 1}, classes(0.5, 2.0), "BertForSequenceClassification"),
    "multilabel": Line(
        "bert", CLASSES, THREE | {"multilabel": True}, classes([1, 0, 1], [0, 0, 1]), "BertForSequenceClassification"
    ),
    "image": Line("vit", IMAGES, THREE, classes(2, 0), "ViTForImageClassification"),
    "image-multilabel": Line(
        "vit", IMAGES, THREE | {"multilabel": True}, classes([1, 0, 1], [0, 0, 1]), "ViTForImageClassification"
    ),
    "sound": Line("wav2vec2", CLASSES, THREE, classes(2, 0), "Wav2Vec2ForSequenceClassification"),
    "choice": Line("bert", "add_multiple_choice_head", {"num_choices": 2}, classes(1), "BertForMultipleChoice"),
    "tagging": Line("bert", "add_tagging_head", THREE, tags, "BertForTokenClassification"),
    "spans": Line("bert", "add_qa_head", {}, spans, "BertForQuestionAnswering"),
    "tree": Line("bert", "add_dependency_parsing_head", {"num_labels": 3}, tree, "BertForDependencyParsing"),
    "masked": Line("bert", "add_masked_lm_head", {}, ids, "BertForMaskedLM"),
    "next": Line("gpt2", "add_causal_lm_head", {"layers": 2, "bias": True}, ids, "GPT2LMHeadModel"),
    "next-tied": Line("gpt2", "add_causal_lm_head", {}, ids, "GPT2LMHeadModel"),
    "writing": Line(
        "t5", "add_seq2seq_lm_head", {"layers": 2, "layer_norm": True}, written, "T5ForConditionalGeneration"
    ),
}


def headed(kind: str, method: str = "lora") -> tuple[AdaptedModel, dict[str, Tensor]]:
    """A tiny float32 model with the adapter and the head `a`, of trained-like weights; and a batch with labels."""
    line = EVERY[kind]
    model = adapted(line.arch, METHODS[method]).float()
    inputs = {key: value.float() if value.is_floating_point() else value for key, value in batch(line.arch).items()}
    getattr(model, line.add)("a", **line.options)
    randomise(model.heads, 0.3, seed=1)
    return model, inputs | line.more(inputs)
