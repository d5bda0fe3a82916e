"""Frozen maps whose weights are kept in a few bits, by bitsandbytes or torchao, and their weights in float.

    bitsandbytes, 8-bit   W = q · scale / 127, a scale a row                (Dettmers et al. 2022, *LLM.int8()*)
    bitsandbytes, 4-bit   W = code[q] · scale, a scale a block              (Dettmers et al. 2023, *QLoRA*, equation 6)
    torchao               what its tensor's own `dequantize` returns

Neither library is imported here: where a weight is of one of them, it has been imported already.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adaptrain.errors import UnsupportedError

_BITS = {"Params4bit": "bitsandbytes, 4-bit", "Int8Params": "bitsandbytes, 8-bit"}


def scheme(weight: Any) -> str | None:
    """What a weight is quantised with, in words; None for plain numbers."""
    kind = type(weight)
    library = kind.__module__.partition(".")[0]
    if library == "bitsandbytes":
        return _BITS.get(kind.__name__, library)
    return f"torchao, {kind.__name__}" if library == "torchao" else None


def scheme_of(model: nn.Module) -> str | None:
    """What the first quantised weight of a model is quantised with; None where all are plain numbers."""
    return next((found for each in model.parameters() if (found := scheme(each)) is not None), None)


def float_weight(module: Any) -> Tensor:
    """A module's weight as it lies, (out, in) for a linear map; in float where it is quantised, and a copy then.

    In the dtype that its library dequantises to: float32 for bitsandbytes' 8 bits, else what the base was loaded in.

    Raises:
        UnsupportedError: the module keeps its numbers in a way of its own.
    """
    weight: Any = getattr(module, "weight", None)
    if weight is None:
        raise UnsupportedError(f"The numbers of a {type(module).__name__} cannot be read, and this method needs them")
    found = scheme(weight)
    if found is None:
        return weight.detach()
    if found.startswith("torchao"):
        return weight.detach().dequantize()
    if weight.is_floating_point():  # 8 bits that bitsandbytes makes anew in every forward
        return weight.detach()
    if hasattr(weight, "quant_state"):
        return sys.modules["bitsandbytes"].functional.dequantize_4bit(weight.data, weight.quant_state)
    scales = weight.SCB if weight.SCB is not None else module.state.SCB  # the first forward moves them
    return weight.data.float() * (scales.float() / 127)[:, None]


def keep_as_loaded(model: nn.Module) -> None:
    """Let bitsandbytes leave its 4-bit weights as they are.

    On CPUs with AVX512-BF16 it would repack them in the first evaluation: with coarser scales, only for some sizes, and
    so that no gradient comes through them any more.

    Raises:
        UnsupportedError: it has done so already.
    """
    for name, module in model.named_modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
                raise UnsupportedError(
                    f"bitsandbytes has repacked the weight of {name} for evaluation on this CPU, and cannot train "
                    "through it any more; load the base model again, and wrap it with adaptrain.init before it runs"
                )
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def refuse_training(model: PreTrainedModel) -> None:
    """Refuse a base model that no gradient comes through.

    Raises:
        UnsupportedError: names the quantisation and what can be trained on.
    """
    quantiser: Any = getattr(model, "hf_quantizer", None)
    if quantiser is not None and not quantiser.is_trainable:
        raise UnsupportedError(
            f"No gradient comes through this base model's weights ({scheme_of(model) or type(quantiser).__name__}), so "
            "an adapter can be run on it, but not trained; load it with BitsAndBytesConfig(load_in_4bit=True), or "
            "with 8 bits of either library"
        )


def dequantise(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Put plain linear maps of the same numbers in the place of quantised ones, and forget that they were quantised.

    Raises:
        UnsupportedError: a quantised weight is of no linear map.
    """
    for name, module in list(model.named_modules()):
        if (found := scheme(getattr(module, "weight", None))) is None:
            continue
        if not isinstance(module, nn.Linear):
            raise UnsupportedError(f"{name} ({type(module).__name__}; {found}) cannot be dequantised")
        model.set_submodule(name, _plain(module, dtype))
    known: Any = model
    known.hf_quantizer.remove_quantization_config(known)
    known.is_loaded_in_4bit = known.is_loaded_in_8bit = False
    known.to(dtype=dtype)


def _plain(module: nn.Linear, dtype: torch.dtype) -> nn.Module:
    rows, columns = module.out_features, module.in_features
    weight = float_weight(module).to(dtype)
    turned = getattr(module, "source_cls", None) is Conv1D  # what bitsandbytes' map stands for
    with torch.device("meta"):
        plain = Conv1D(rows, columns) if turned else nn.Linear(columns, rows, bias=module.bias is not None)
    plain.weight = nn.Parameter(weight.t().contiguous() if turned else weight, requires_grad=False)
    if module.bias is not None:
        plain.bias = nn.Parameter(module.bias.detach().to(dtype), requires_grad=False)
    return plain.train(module.training)
