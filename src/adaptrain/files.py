"""Reading and writing files: safetensors and JSON, the two kinds that a checkpoint has, and text. A file is
written whole or not at all, and nothing is unpickled."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from adaptrain.errors import CheckpointError, OutputError


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file in one piece.

    Raises:
        OutputError: the folder cannot be written.
    """
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file in one piece, its ends of lines as they are.

    Raises:
        OutputError: the folder cannot be written.
    """
    _replace(path, lambda part: part.write_text(text, encoding="utf-8", newline=""))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file in one piece.

    Raises:
        OutputError: the folder cannot be written.
    """
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    umask = os.umask(0)
    os.umask(umask)

    def write(part: Path) -> None:
        save_file(plain, part, metadata={"format": "pt"})
        part.chmod(0o666 & ~umask)  # safetensors makes files that only their owner can read

    _replace(path, write)


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise OutputError(f"Cannot write {path}: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: missing, unreadable, not JSON, or not an object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"There is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"Cannot read {path}: {error}") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}:{error.lineno} is not JSON: {error.msg}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds {type(values).__name__}, not a JSON object")
    return values


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: missing, cut off, or not safetensors.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"There is no file {path}") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot read {path}: {error}; the file is damaged or not safetensors") from None
