"""Where a base model is on this machine, told from its config alone. Nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adaptrain.config.schema import ModelConfig
from adaptrain.errors import ModelError
from adaptrain.tasks.packages import package_folder

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_BESIDE = (
    *("config.json", "generation_config.json", "*tokenizer*.json", "*tokenizer*.model", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.*", "merges.txt", "*.spm", "spiece.model", "sentencepiece*.model"),
    *("preprocessor_config.json", "processor_config.json"),
)
"""Files that decide, beside the weights, what a base model computes from a row."""


def base_folder(config: ModelConfig) -> Path | None:
    """The model's folder on this machine: its name, or inside an installed package; None where it is on the hub.

    Raises:
        ModelError: a folder that was named is not there.
    """
    folder = Path(config.name).expanduser()
    if folder.is_dir():
        return folder
    if config.name.startswith((".", "/", "~")):
        raise ModelError(f"model.name={config.name}: there is no such folder ({folder.absolute()}); correct the path")
    carried = None if config.package is None else package_folder(config.package)
    return carried if carried is not None and carried.is_dir() else None


def weight_files(folder: Path) -> list[Path]:
    """The files of the weights, all of them safetensors."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    return sorted(folder.glob("model-*-of-*.safetensors")) if (folder / INDEX).is_file() else []


def model_files(folder: Path, with_code: bool) -> Iterator[Path]:
    """Every file of a model's folder that decides what it computes.

    Args:
        with_code: whether its own code may run.
    """
    yield from weight_files(folder)
    for pattern in (*_BESIDE, INDEX, *(("*.py",) if with_code else ())):
        yield from sorted(file for file in folder.glob(pattern) if file.is_file())
