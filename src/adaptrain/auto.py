"""A base model without a head, ready for adapters and named heads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel

from adaptrain.checkpoint import own_head as own_head_of
from adaptrain.errors import ModelError
from adaptrain.model import AdaptedModel


class AutoAdapterModel:
    """Loads the bare base model of any family that has an architecture."""

    @staticmethod
    def from_pretrained(
        name: str | Path,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        architecture: str | Path | Mapping[str, Any] | None = None,
        quantization_config: Any = None,
        device_map: Any = None,
        own_head: Literal["masked_lm"] | None = None,
    ) -> AdaptedModel:
        """Load from a local folder or the hub; safetensors only.

        Args:
            dtype: of the frozen base; when None the dtype that its 4-bit weights are multiplied in, else float32, so
                that results do not depend on how a file was saved.
            quantization_config: transformers' `BitsAndBytesConfig` or `TorchAoConfig`, to keep the base in few bits.
            device_map: where transformers puts the base; of use with `quantization_config`, which quantises there.
            architecture: the table to use where the model type has none (`AdaptedModel`).
            own_head: load the head of this kind with which the base was pre-trained, as a part of the base model; where
                the checkpoint has none, the base comes without.

        Raises:
            ModelError: missing, unreadable or incomplete; quantised by a library that is not here, or cannot do so on
                this device.
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
            base, missing = None, set[str]()
            if own_head is not None and type(config) in AutoModelForMaskedLM._model_mapping:
                base, missing = load(AutoModelForMaskedLM)
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
        if missing:
            few = ", ".join(sorted(missing)[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            raise ModelError(
                f"The base model '{name}' lacks weights, which would be random: {few}; use a complete checkpoint"
            )
        return AdaptedModel(base, architecture)

    @staticmethod
    def from_config(config: PreTrainedConfig, **options: Any) -> AdaptedModel:
        """A base model with random weights."""
        found = _class_of(config)
        make = found.from_config if found is AutoModel else found._from_config
        return AdaptedModel(make(config, **_unused_pooler(config), **options))


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


def _headless(model: PreTrainedModel, missing: set[str]) -> bool:
    """Whether a checkpoint has nothing of a model's own head. Where it has a part, it is incomplete."""
    head = set(own_head_of(model))
    return bool(head) and head <= missing


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
