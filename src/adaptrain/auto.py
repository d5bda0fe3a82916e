"""A base model without a head, ready for adapters and named heads."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from adaptrain.architectures import architecture_of, architectures
from adaptrain.errors import ModelError, unknown
from adaptrain.model import AdaptedModel

OwnHead = Literal["masked_lm", "causal_lm", "seq2seq_lm"]


class AutoAdapterModel:
    """Loads the bare base model of any family that has an architecture.

    Attributes:
        model_type: the only one that it loads; None loads all of them.
    """

    model_type: ClassVar[str | None] = None

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        architecture: str | Path | Mapping[str, Any] | None = None,
        quantization_config: Any = None,
        device_map: Any = None,
        own_head: OwnHead | None = None,
    ) -> AdaptedModel:
        """Load from a local folder or the hub; safetensors only.

        Args:
            dtype: of the frozen base; when None the dtype that its 4-bit weights are multiplied in, else float32, so
                that results do not depend on how a file was saved.
            quantization_config: transformers' `BitsAndBytesConfig` or `TorchAoConfig`, to keep the base in few bits.
            device_map: where transformers puts the base; of use with `quantization_config`, which quantises there.
            architecture: the table to use where the model type has none (`AdaptedModel`).
            own_head: load the head of this kind with which the base was pre-trained, as a part of the base model, whose
                `generate` uses it; where the checkpoint or its family has none, the base comes without.

        Raises:
            ModelError: missing, unreadable or incomplete; of another model type than the class is for; quantised by a
                library that is not here, or cannot do so on this device.
            UnsupportedError: no architecture for its model type.
        """
        options = {
            "attn_implementation": attn_implementation,
            "quantization_config": quantization_config,
            "device_map": device_map,
        }
        given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
        if dtype is None and getattr(quantization_config, "load_in_4bit", False):
            dtype = quantization_config.bnb_4bit_compute_dtype  # bitsandbytes would cast the biases to it in place

        def load(kind: Any, **more: Any) -> tuple[PreTrainedModel, set[str]]:
            made, found = kind.from_pretrained(
                str(name),
                revision=revision or "main",
                dtype=dtype or torch.float32,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **more,
                **given,
            )
            return made, set(found["missing_keys"])

        try:
            config = AutoConfig.from_pretrained(
                str(name), revision=revision or "main", trust_remote_code=trust_remote_code
            )
            cls._check_type(config, str(name))
            base, missing = None, set[str]()
            if (headed := _with_head(own_head, config, architecture is not None)) is not None:
                base, missing = load(headed)
                if _headless(base, missing):
                    base = None
            if base is None:
                base, missing = load(_class_of(config), **({} if trust_remote_code else _unused_pooler(config)))
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelError(f"Cannot load the base model '{name}': {_first_line(error)}") from None
        except (ImportError, RuntimeError) as error:
            if quantization_config is None or isinstance(error, torch.OutOfMemoryError):
                raise
            kind = type(quantization_config).__name__
            raise ModelError(
                f"The base model '{name}' cannot be quantised with {kind} here: {_first_line(error)}"
            ) from error
        missing -= _remove_spare(base, missing)
        if missing:
            few = ", ".join(sorted(missing)[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            raise ModelError(
                f"The base model '{name}' lacks weights, which would be random: {few}; use a complete checkpoint"
            )
        return AdaptedModel(base, architecture)

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **options: Any) -> AdaptedModel:
        """A base model with random weights.

        Raises:
            ModelError: of another model type than the class is for.
        """
        cls._check_type(config, "the config")
        found = _class_of(config)
        make = found.from_config if found is AutoModel else found._from_config
        return AdaptedModel(make(config, **_unused_pooler(config), **options))

    @classmethod
    def _check_type(cls, config: PreTrainedConfig, name: str) -> None:
        if cls.model_type not in (None, config.model_type):
            raise ModelError(
                f"{cls.__name__} is for {cls.model_type}, and {name} is a {config.model_type}; use AutoAdapterModel"
            )


def class_for(name: str) -> type[AutoAdapterModel]:
    """`AutoAdapterModel` for one model type, by the name that it has in the reference: `BertAdapterModel`.

    Raises:
        AttributeError: no architecture has this name; suggests the nearest.
    """
    if name not in _CLASSES:
        types = {_class_name(model_type): model_type for model_type in architectures()}
        if name not in types:
            raise AttributeError(unknown("model class", name, sorted(types), "There are AutoAdapterModel and"))
        said = f"`AutoAdapterModel` for {types[name]} alone."
        _CLASSES[name] = type(name, (AutoAdapterModel,), {"model_type": types[name], "__doc__": said})
    return _CLASSES[name]


_CLASSES: dict[str, type[AutoAdapterModel]] = {}


def _class_name(model_type: str) -> str:
    """`BertModel` → `BertAdapterModel`; `BertGenerationEncoder` is the bare one too."""
    found: Any = _BARE.get(model_type) or MODEL_MAPPING_NAMES[model_type]
    first = found if isinstance(found, str) else next(iter(found))
    return first.removesuffix("Model").removesuffix("Encoder") + "AdapterModel"


_BARE = {"encoder-decoder": "EncoderDecoderModel", "siglip_text_model": "SiglipTextModel"}
"""What AutoModel does not know by its model type."""


def _class_of(config: PreTrainedConfig) -> Any:
    """The class of the model without a head."""
    name = _BARE.get(config.model_type)
    return AutoModel if name is None else getattr(transformers, name)


def _unused_pooler(config: PreTrainedConfig) -> dict[str, Any]:
    """Our heads read hidden states, so BERT's pooler would be dead weight, randomly initialised where a checkpoint
    has none."""
    return {"add_pooling_layer": False} if config.model_type in ("bert", "roberta", "xlm-roberta", "mpnet") else {}


_SPARE = ("pooler", "mask_token", "masked_spec_embed")
"""Parts of base models that no head of ours needs: what feeds `pooler_output` alone, and what stands for what is masked
in pre-training."""


def _remove_spare(model: PreTrainedModel, missing: set[str]) -> set[str]:
    """Remove the spare parts that a checkpoint lacks, so that nothing can read their random weights: a head with
    `use_pooler` is then refused, and sound is trained on without SpecAugment.

    Returns:
        The names among `missing` that are gone.
    """
    removed = set[str]()
    for name in missing:
        path = name.split(".")
        part = next((at for at, word in enumerate(path) if word in _SPARE), None)
        if part is None:
            continue
        owner: Any = model.get_submodule(".".join(path[:part]))
        if path[part] == "pooler" and "add_pooling_layer" not in inspect.signature(type(owner).__init__).parameters:
            continue  # the class cannot do without
        setattr(owner, path[part], None)
        if path[part] == "masked_spec_embed":
            owner.config.apply_spec_augment = False
        removed.add(name)
    return removed


_HEADED: dict[str, tuple[Any, ...]] = {
    "masked_lm": (AutoModelForMaskedLM,),
    "causal_lm": (AutoModelForCausalLM,),
    "seq2seq_lm": (AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq),
}


def _with_head(kind: OwnHead | None, config: PreTrainedConfig, written: bool) -> Any:
    """The class that loads a model of this family with its own head; None where the family has none.

    Args:
        written: whether the user has given a table of his own.
    """
    if kind is None:
        return None
    if kind not in _HEADED:
        raise ModelError(unknown("own head", kind, _HEADED, "There are"))
    known = config.model_type in architectures() or not written
    # transformers has a language model of half a BART, and of a BERT
    if kind == "causal_lm" and known and [stack.causal for stack in architecture_of(config).stacks] != [True]:
        return None
    return next((each for each in _HEADED[kind] if type(config) in each._model_mapping), None)


def _headless(model: PreTrainedModel, missing: set[str]) -> bool:
    """Whether a checkpoint has nothing of a model's own head. Where it has a part, it is incomplete."""
    output, words = model.get_output_embeddings(), model.get_input_embeddings()
    inside = {id(parameter) for parameter in model.base_model.parameters()}
    if output is not None:  # a T5 with a head is its own base model
        inside -= {id(parameter) for parameter in output.parameters()}
        inside |= {id(parameter) for parameter in words.parameters()}
    head = {name for name, parameter in model.named_parameters() if id(parameter) not in inside}
    return bool(head) and head <= missing


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
