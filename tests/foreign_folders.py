"""Folders in the form of AdapterHub's library, written by hand, and what the tests of reading them share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import adaptrain
from adaptrain.errors import CheckpointError
from matrix import adapted, batch, gap, run

WHERE = "adapter_config.json"
REFERENCE = Path(__file__).parent / "reference"
"""Folders that the library itself wrote, and what it said."""

LORA = {
    "architecture": "lora",
    "selfattn_lora": True,
    "intermediate_lora": False,
    "output_lora": False,
    "r": 2,
    "alpha": 5,
    "dropout": 0.0,
    "attn_matrices": ["q"],
    "composition_mode": "add",
    "init_weights": "lora",
    "use_gating": False,
    "use_dora": False,
    "vera_d": None,
    "vera_b": None,
    "dtype": None,
    "leave_out": [],
    "init_weights_seed": None,
}

BN = {
    "mh_adapter": False,
    "output_adapter": True,
    "reduction_factor": 16,
    "non_linearity": "relu",
    "original_ln_before": True,
    "original_ln_after": True,
    "ln_before": False,
    "ln_after": False,
    "residual_before_ln": True,
    "adapter_residual_before_ln": False,
    "init_weights": "bert",
    "is_parallel": False,
    "scaling": 1.0,
    "use_gating": False,
    "cross_adapter": False,
    "dropout": 0.0,
    "stochastic_depth": 0.0,
    "inv_adapter": None,
    "inv_adapter_reduction_factor": None,
    "leave_out": [],
    "phm_layer": False,
    "phm_dim": 4,
    "factorized_phm_W": True,
    "shared_W_phm": False,
    "shared_phm_rule": True,
    "factorized_phm_rule": False,
    "phm_c_init": "normal",
    "phm_init_range": 0.0001,
    "phm_rank": 1,
    "phm_bias": True,
    "learn_phm": True,
    "hypercomplex_nonlinearity": "glorot-uniform",
    "init_weights_seed": None,
}

REFT = {
    "architecture": "reft",
    "layers": "all",
    "prefix_positions": 2,
    "suffix_positions": 1,
    "r": 3,
    "orthogonality": False,
    "tied_weights": False,
    "dropout": 0.0,
    "non_linearity": None,
    "dtype": None,
    "init_weights_seed": None,
    "output_reft": True,
}


def folder_of(
    path: Path, config: Any, tensors: dict[str, Tensor], name: str = "t", safe: bool = False, **values: Any
) -> Path:
    """A folder as the library writes it; a value that is None is left out."""
    path.mkdir(exist_ok=True)
    whole = {
        "config": config,
        "hidden_size": 32,
        "model_class": "X",
        "model_name": "",
        "model_type": "bert",
        "name": name,
        "version": "adapters.1.3.0",
    } | values
    (path / WHERE).write_text(json.dumps({key: value for key, value in whole.items() if value is not None}))
    if safe:
        save_file(tensors, path / "adapter.safetensors")
    else:
        torch.save(tensors, path / "pytorch_adapter.bin")
    return path


def random_tensors(shapes: dict[str, tuple[int, ...]], places: tuple[str, ...] = ("{}",)) -> dict[str, Tensor]:
    """Random tensors under each place's name."""
    generator = torch.Generator().manual_seed(0)
    return {
        place.format(key): torch.randn(shape, generator=generator) for place in places for key, shape in shapes.items()
    }


def lora_tensors(path: str = "encoder.layer.{}.attention.self.query", name: str = "t", sizes: tuple = (32, 32)):
    shapes = {"lora_A": (2, sizes[0]), "lora_B": (sizes[1], 2)}
    return random_tensors(shapes, tuple(f"{path.format(layer)}.loras.{name}.{{}}" for layer in (0, 1)))


def bn_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return random_tensors(shapes, tuple(f"encoder.layer.{layer}.output.adapters.t.{{}}" for layer in (0, 1)))


PLAIN_BN = {
    "adapter_down.0.weight": (2, 32),
    "adapter_down.0.bias": (2,),
    "adapter_up.weight": (32, 2),
    "adapter_up.bias": (32,),
}


def loaded(folder: Path, arch: str = "bert", **options: Any) -> adaptrain.AdaptedModel:
    """The tiny model of a family with a folder's adapter, active."""
    model = adapted(arch, **options)
    model.load_adapter(folder, set_active=True)
    return model


def refused(folder: Path, *said: str, model: adaptrain.AdaptedModel | None = None) -> None:
    """The folder is refused with these words, and nothing of it stays."""
    model = model or adapted("bert")
    inputs = batch(model.config.model_type)
    before, out = model.state_dict(), run(model, inputs)
    with pytest.raises(CheckpointError) as caught:
        model.load_adapter(folder, set_active=True)
    assert all(word in str(caught.value) for word in said), str(caught.value)
    assert "\n" not in str(caught.value)
    assert model.adapter_names() == []
    assert list(model.state_dict()) == list(before)
    assert torch.equal(run(model, inputs), out)


def same(model: Any, plain: Any, arch: str = "bert") -> bool:
    """Whether both say the same of a batch of the family."""
    return gap(run(model, batch(arch)), run(plain, batch(arch))) < 1e-10
