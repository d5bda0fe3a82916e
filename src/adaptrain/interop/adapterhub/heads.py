"""The library's prediction heads.

Each is an `nn.Sequential`, whose modules are numbered: (dropout, linear, activation) for each hidden layer and
(dropout, linear) at the end; of language models (linear, activation, norm), and the words at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adaptrain.architectures import architecture_of
from adaptrain.errors import AdaptrainError, CheckpointError, listed
from adaptrain.files import read_json
from adaptrain.heads import (
    CausalLMHead,
    ClassificationHead,
    DependencyParsingHead,
    Head,
    ImageClassificationHead,
    MaskedLMHead,
    MultiLabelClassificationHead,
    MultipleChoiceHead,
    QuestionAnsweringHead,
    Seq2SeqLMHead,
    TaggingHead,
    model_dropout,
)
from adaptrain.interop.adapterhub.weights import read_weights
from adaptrain.new_heads import pooling_of


def read_head(folder: Path, model: PreTrainedModel) -> Head | None:
    """The folder's named head. A head that is part of the library's model class has no config and is not ours to place.

    Raises:
        CheckpointError: of an unknown type; it reads a pooler that this base does not have; or its tensors do not fit
            its config.
    """
    path = folder / "head_config.json"
    if not path.exists():
        return None
    values = read_json(path)
    config = values.get("config")
    if not config:
        return None
    kind = str(config.get("head_type"))
    if kind not in _MAKERS:
        raise CheckpointError(
            f"{folder} has a head of type '{kind}', which this version cannot read; load with with_head=False"
        )
    tensors = read_weights(folder, ("model_head.safetensors", "pytorch_model_head.bin"))
    own = {
        key.removeprefix(prefix): tensor
        for prefix in (f"heads.{values.get('name')}.",)
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }
    try:
        head = _MAKERS[kind](config, model, own)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: the head's config lacks or misuses {error}") from None
    except AdaptrainError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    places = _places(head, config)
    for key, parameter in places.items():
        if key not in own or own[key].shape != parameter.shape:
            raise CheckpointError(
                f"{folder}: the head's tensor 'heads.{values.get('name')}.{key}' is missing or of another shape"
            )
        parameter.data.copy_(own[key])
    if strange := sorted(own.keys() - places.keys() - {_words_key(head, config)}):
        raise CheckpointError(f"{folder}: the head has tensors that its type does not: {listed(strange[:5])}")
    if isinstance(head, QuestionAnsweringHead) and (scale := _scale(model)) != 1.0:
        first: Any = (*head.hidden, head.out)[0]
        first.weight.data.mul_(scale)
    return head


def _places(head: Head, config: Mapping[str, Any]) -> dict[str, Any]:
    """Key → parameter."""
    if isinstance(head, DependencyParsingHead):
        return {"biaffine_arcs.weight": head.arcs.data[None], "biaffine_rels.weight": head.rels}
    if isinstance(head, CausalLMHead | MaskedLMHead | Seq2SeqLMHead):
        step = _step(head, config)
        found = {
            f"{step * index + part}.{name}": getattr(module, name)
            for part, modules in ((0, head.hidden), (step - 1, head.norms))
            for index, module in enumerate(modules)
            for name in ("weight", "bias")
        }
        last = {"weight": head.words, "bias": head.bias}
        behind = step * len(head.hidden)
        return found | {f"{behind}.{name}": each for name, each in last.items() if each is not None}
    step = 3 if config.get("activation_function") else 2
    maps: Any = (*head.hidden, head.out)  # type: ignore[misc]
    return {
        f"{step * index + 1}.{name}": parameter
        for index, module in enumerate(maps)
        for name in ("weight", "bias")
        if (parameter := getattr(module, name)) is not None
    }


def _step(head: CausalLMHead | MaskedLMHead | Seq2SeqLMHead, config: Mapping[str, Any]) -> int:
    return 1 + bool(config.get("activation_function")) + bool(head.norms)


def _words_key(head: Head, config: Mapping[str, Any]) -> str:
    """Where a language-modelling head has its words, which it may share with the model."""
    if isinstance(head, CausalLMHead | MaskedLMHead | Seq2SeqLMHead):
        return f"{_step(head, config) * len(head.hidden)}.weight"
    return ""


def _common(config: Mapping[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """Options that all heads but the language models have."""
    labels = config.get("label2id")
    dropout = config.get("dropout_prob")
    return {
        "hidden_size": int(model.config.hidden_size),  # type: ignore[attr-defined]
        "dropout": model_dropout(model.config) if dropout is None else float(dropout),
        "id2label": None if not labels else sorted(labels, key=lambda label: labels[label]),
    }


def _layered(config: Mapping[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    activation = {"layers": config["layers"], "activation": config["activation_function"] or "linear"}
    return _common(config, model) | activation | {"bias": config.get("bias", True)}


def _pooled(config: Mapping[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """Options of a head that reads one vector; BEiT's read its mean, which transformers calls its pooler."""
    pooling = pooling_of(model, architecture_of(model.config))
    if config.get("use_pooler") or model.config.model_type == "beit":
        if getattr(model, "pooler", None) is None:
            raise CheckpointError(
                "the head reads the base model's pooler (use_pooler), and this base was loaded without one; load it "
                "with transformers' AutoModel and adaptrain.init(), or the adapter with with_head=False"
            )
        pooling = "pooler"
    return _layered(config, model) | {"pooling": pooling}


def _classes(made: Callable[..., Head], *more: str) -> Callable[..., Head]:
    """What makes a head of labels."""
    options = _pooled if made not in (TaggingHead, QuestionAnsweringHead) else _layered

    def make(config: Mapping[str, Any], model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Head:
        return made(**options(config, model), **{key: config[key] for key in more})

    return make


def _parsing(config: Mapping[str, Any], model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Head:
    return DependencyParsingHead(**_common(config, model), num_labels=config["num_labels"])


def _language(made: Callable[..., Head]) -> Callable[..., Head]:
    """What makes a head over words: the model's own where the file has the same ones, else its own."""

    def make(config: Mapping[str, Any], model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Head:
        table: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
        hidden = int(model.config.hidden_size)  # type: ignore[attr-defined]
        step = 1 + bool(config["activation_function"]) + bool(config["layer_norm"])
        words = tensors.get(f"{step * (config['layers'] - 1)}.weight")
        tied = words is None or (
            words.shape == table.shape and torch.equal(words, table.detach().cpu().to(words.dtype))
        )
        options: dict[str, Any] = {
            "embedding_size": config.get("embedding_size") or hidden,
            "vocab_size": config["vocab_size"],
            "layers": config["layers"],
            "activation": config["activation_function"] or "linear",
            "layer_norm": config["layer_norm"],
            "eps": float(getattr(model.config, "layer_norm_eps", 1e-12)),
            "bias": config["bias"],
            "tied": tied,
        }
        if made is CausalLMHead:
            options["shift_labels"] = config.get("shift_labels", True)
        elif config.get("shift_labels"):
            raise CheckpointError(f"a {config['head_type']} head with shift_labels, which has no meaning there")
        if made is Seq2SeqLMHead:
            options["scale"] = _scale(model, tied)
        return made(hidden_size=hidden, **options)

    return make


def _scale(model: PreTrainedModel, tied: bool = False) -> float:
    """With what the library multiplies the decoder's states of a T5 that ties its words, before all heads but
    classifiers. Whether an mT5 does, transformers forgets; a head's own words say that it does not."""
    config: Any = model.config
    scaled = tied if config.model_type == "mt5" else getattr(config, "scale_decoder_outputs", False)
    return float(config.d_model) ** -0.5 if scaled else 1.0


_MAKERS: dict[str, Callable[..., Head]] = {
    "classification": _classes(ClassificationHead, "num_labels"),
    "multilabel_classification": _classes(MultiLabelClassificationHead, "num_labels"),
    "image_classification": _classes(ImageClassificationHead, "num_labels", "multilabel"),
    "multiple_choice": _classes(MultipleChoiceHead, "num_choices"),
    "tagging": _classes(TaggingHead, "num_labels"),
    "question_answering": _classes(QuestionAnsweringHead, "num_labels"),
    "dependency_parsing": _parsing,
    "masked_lm": _language(MaskedLMHead),
    "causal_lm": _language(CausalLMHead),
    "seq2seq_lm": _language(Seq2SeqLMHead),
}
