"""Tiny models in few bits, by every library that is here, and the mark that skips those that are not."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

import matrix


def base(arch: str, auto: type | None = None) -> hf.PreTrainedModel:
    """The matrix's tiny model in float32: few bits are multiplied in that."""
    return matrix.base(arch, auto=auto).float()


def batch(arch: str, *options: Any) -> dict[str, Tensor]:
    inputs = matrix.batch(arch, *options)
    return {key: value.float() if value.is_floating_point() else value for key, value in inputs.items()}


def _library(name: str) -> Any:
    with warnings.catch_warnings():  # both warn while they are imported
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError:
            return None


bnb, ao = _library("bitsandbytes"), _library("torchao.quantization")


@dataclass(frozen=True)
class Scheme:
    """A way of keeping numbers in few bits.

    Attributes:
        library: None where it is not installed.
        config: what transformers is given.
        plain: a module's weight in float, as the library itself says.
    """

    name: str
    library: Any
    config: Callable[[], Any]
    plain: Callable[[Any], Tensor]


def _8bit(module: Any) -> Tensor:
    scales = module.state.SCB if module.weight.SCB is None else module.weight.SCB
    return bnb.functional.int8_vectorwise_dequant(module.weight.data, scales)


SCHEMES = [
    Scheme("bnb_8bit", bnb, lambda: hf.BitsAndBytesConfig(load_in_8bit=True), _8bit),
    Scheme(
        "bnb_4bit",
        bnb,
        lambda: hf.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),  # multiplied in float32
        lambda module: bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state),
    ),
    Scheme(
        "ao_int8",
        ao,
        lambda: hf.TorchAoConfig(ao.Int8WeightOnlyConfig()),
        lambda module: module.weight.dequantize(),
    ),
]


def installed(chosen: list[Scheme] = SCHEMES) -> Any:
    skipped = [
        pytest.mark.skipif(each.library is None, reason=f"{each.name}: its library is not here") for each in chosen
    ]
    return pytest.mark.parametrize(
        "scheme", [pytest.param(each, id=each.name, marks=mark) for each, mark in zip(chosen, skipped, strict=True)]
    )


DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob", "resid_pdrop", "embd_pdrop", "attn_pdrop")


def folders_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A tiny model in a folder, dropout off: in training, bitsandbytes' 8 bits are plain numbers, unlike in evaluation,
    where inputs are rounded too."""
    made: dict[tuple[str, type], Path] = {}

    def folder(arch: str, auto: type = hf.AutoModel) -> Path:
        if (arch, auto) not in made:
            model = base(arch, auto=auto)
            for key in DROPOUT:
                if hasattr(model.config, key):
                    setattr(model.config, key, 0.0)
            made[arch, auto] = tmp_path_factory.mktemp(arch)
            model.save_pretrained(made[arch, auto])
        return made[arch, auto]

    return folder


def loader(folders: Callable[..., Path]) -> Callable[..., Any]:
    """A tiny model, quantised."""

    def loaded(scheme: Scheme, arch: str, auto: type = hf.AutoModel, **options: Any) -> Any:
        options = {"quantization_config": scheme.config(), "dtype": torch.float32} | options
        return auto.from_pretrained(folders(arch, auto), **options)

    return loaded
