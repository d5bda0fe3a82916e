"""The library's weight files: safetensors, or a pickle that only torch's weights-only loader opens."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from adaptrain.errors import CheckpointError
from adaptrain.files import read_tensors


def read_weights(folder: Path, names: tuple[str, str]) -> dict[str, Tensor]:
    """The tensors of the first of two files that is there: in safetensors, or pickled.

    Raises:
        CheckpointError: neither is there, or what is there is not a dictionary of tensors.
    """
    safe, pickled = (folder / name for name in names)
    if safe.exists():
        return read_tensors(safe)
    if not pickled.exists():
        raise CheckpointError(f"{folder} has neither {safe.name} nor {pickled.name}")
    try:
        tensors = torch.load(pickled, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"Cannot read {pickled} with the weights-only loader: {reason}") from None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(f"{pickled} is not a dictionary of tensors")
    return tensors
