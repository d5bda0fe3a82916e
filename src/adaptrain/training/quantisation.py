"""How `model.quantize` keeps the frozen base in few bits.

    bnb_4bit   NF4, its scales quantised too, multiplied in the dtype of the run   (Dettmers et al. 2023, *QLoRA*)
    bnb_8bit   a scale a row; large inputs apart, in 16 bits                        (Dettmers et al. 2022)
    ao_int8    torchao's int8 weights, a scale a row; inputs stay in float

torchao's int4 is not among them: no gradient comes through it.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from adaptrain.config.schema import ModelConfig
from adaptrain.errors import ModelError
from adaptrain.quantised import scheme_of

_PACKAGES = {"bnb_4bit": "bitsandbytes", "bnb_8bit": "bitsandbytes", "ao_int8": "torchao"}


def check_library(config: ModelConfig) -> None:
    """Refuse a quantisation whose library is not installed, before anything is loaded.

    Raises:
        ModelError: names the command that installs it.
    """
    if config.quantize is not None and importlib.util.find_spec(_PACKAGES[config.quantize]) is None:
        raise ModelError(
            f"model.quantize={config.quantize} needs the Python package '{_PACKAGES[config.quantize]}', which is not "
            "installed: pip install 'adaptrain[quantised]'"
        )


def loading_options(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `AutoAdapterModel.from_pretrained` is given for a quantised base; nothing for one in float.

    The base is quantised where it will run, and multiplied in the dtype that the rest of it is in.
    """
    if config.quantize is None:
        return {}
    return {"quantization_config": _quantization_config(config.quantize, dtype), "device_map": {"": device}}


def check_quantised(config: ModelConfig, model: Any) -> None:
    """Refuse a base in which nothing could be quantised.

    Raises:
        ModelError: names the model type.
    """
    if config.quantize is not None and scheme_of(model.base_model) is None:
        kind = model.base_model.config.model_type
        raise ModelError(
            f"model.quantize={config.quantize} finds nothing to quantise in {config.name}: torchao knows torch's "
            f"Linear only, and the maps of {kind} are of another kind; take bnb_8bit or bnb_4bit"
        )


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Neither the libraries' remarks on being imported, nor a line for every map in every forward later on."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _quantization_config(name: str, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if name == "bnb_8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    if name == "bnb_4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    from torchao.quantization import Int8WeightOnlyConfig  # pyright: ignore[reportMissingImports]

    return TorchAoConfig(Int8WeightOnlyConfig())
