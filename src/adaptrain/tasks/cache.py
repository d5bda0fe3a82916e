"""Tokenised rows, kept on disk by their content: the cells of a sweep make them once.

A file is named by the sha256 of everything that it is made of: the rows in their roles, the tokenizer, what the reader
says of itself, and our own code that reads. So a file is never out of date, and never has to be asked whether it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

from adaptrain.errors import OutputError
from adaptrain.files import write_tensors
from adaptrain.tasks.encoded import Encoded, Feature, Ragged
from adaptrain.tasks.reading import Reader

if TYPE_CHECKING:
    from adaptrain.tasks.rows import Rows

VARIABLE = "ADAPTRAIN_CACHE"
"""Of the environment: the folder. Empty: nothing is kept."""

LEAST = 2000
"""Rows from which a split is kept. Fewer are tokenised as fast as they are looked up."""

MOST = 10 * 2**30
"""Bytes that all files may take; those that were not used for longest go first."""

_ABOUT, _VALUES, _STARTS, _ARRAY = "about", "values", "starts", "array"
_KINDS = {"<i8", "<i4", "<i2", "|i1", "|u1", "<f8", "<f4", "|b1"}


class _Unknown(Exception):
    """Something that has no name by its content."""


def cache_folder() -> Path | None:
    """`$ADAPTRAIN_CACHE`, or `adaptrain/tokens` in the user's folder of caches (`$XDG_CACHE_HOME`, `~/.cache`); None
    where that is not wanted."""
    given = os.environ.get(VARIABLE)
    if given is not None:
        return Path(given).expanduser().absolute() if given else None
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "adaptrain" / "tokens"


class TokenCache:
    """Reads rows, or finds them read.

    Attributes:
        folder: of the files; None: nothing is kept.
        notes: what a person should know: that the folder cannot be written.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.notes: list[str] = []

    def encode(self, reader: Reader, rows: Rows, training: bool = False) -> Encoded:
        """What `reader.encode` makes. Where that is kept, it is mapped from the file; else it is made, and kept if it
        is arrays and the split is large enough.

        Raises:
            DataError: as `reader.encode`.
        """
        if self.folder is None or not reader.cached or len(rows) < LEAST:
            return reader.encode(rows, training)
        try:
            file = self.folder / f"{digest(reader, rows, training)}.safetensors"
        except _Unknown:
            return reader.encode(rows, training)
        found = _read(file)
        if found is None:
            found = reader.encode(rows, training)
            self._keep(file, found)
        return found

    def _keep(self, file: Path, encoded: Encoded) -> None:
        tensors = _tensors(encoded)
        if tensors is None or self.notes:
            return
        try:
            write_tensors(file, tensors)
            _prune(file.parent, MOST)
        except (OSError, OutputError) as error:
            self.notes.append(f"tokenised rows are not kept for other runs: {error}; name a folder in {VARIABLE}")


# ---- names


def digest(reader: Reader, rows: Rows, training: bool) -> str:
    """sha256 over all that decides what `reader.encode` makes of rows.

    Raises:
        _Unknown: something in it has no name by its content.
    """
    found = hashlib.sha256()
    about = {"reader": _described(reader), "training": training, "code": _code(), "versions": _versions()}
    found.update(_json(about))
    for role, values in rows.columns.items():
        if not isinstance(values, list | tuple | range | np.ndarray):  # computed when asked for: images, sound
            raise _Unknown(role)
        part = _json(values)
        found.update(f"\n{role} {len(values)} {len(part)}\n".encode())
        found.update(part)
    return found.hexdigest()


def _described(value: Any) -> Any:
    """A value by its content, as JSON has it."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, PreTrainedTokenizerBase):
        return _tokenizer(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {each.name: _described(getattr(value, each.name)) for each in dataclasses.fields(value)}
        return {"": f"{type(value).__module__}.{type(value).__qualname__}"} | fields
    if isinstance(value, Mapping):
        return [[_described(key), _described(each)] for key, each in value.items()]
    if isinstance(value, list | tuple):
        return [_described(each) for each in value]
    if isinstance(value, np.ndarray) and value.dtype.str in _KINDS:
        return [value.dtype.str, list(value.shape), hashlib.sha256(np.ascontiguousarray(value).data).hexdigest()]
    if isinstance(value, torch.dtype):
        return str(value)
    raise _Unknown(type(value).__name__)


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # one in Python: its code is its own
        raise _Unknown(type(tokenizer).__name__)
    backend.no_truncation()  # what the last call has left behind; each call sets its own
    backend.no_padding()
    return {
        "class": f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}",
        "backend": hashlib.sha256(backend.to_str().encode()).hexdigest(),
        "special": {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
        "sides": [tokenizer.padding_side, tokenizer.truncation_side],
        "inputs": list(tokenizer.model_input_names),
        "longest": tokenizer.model_max_length,
        "template": str(tokenizer.chat_template),
    }


@cache
def _code() -> str:
    """sha256 over the files that read rows."""
    found = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        found.update(file.read_bytes())
    return found.hexdigest()


@cache
def _versions() -> list[str]:
    return [f"{name} {metadata.version(name)}" for name in ("tokenizers", "transformers", "numpy")]


def _json(value: Any) -> bytes:
    def plain(each: Any) -> Any:
        if isinstance(each, np.ndarray | np.generic):
            return each.tolist()
        if isinstance(each, range):
            return list(each)
        raise _Unknown(type(each).__name__)

    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=plain).encode("utf-8", "surrogatepass")


# ---- files


def _tensors(encoded: Encoded) -> dict[str, torch.Tensor] | None:
    """The arrays of rows, and what is to be known of them; None where some are no arrays."""
    arrays: dict[str, np.ndarray] = {}
    for name, feature in encoded.features.items():
        if isinstance(feature, Ragged):
            arrays |= {f"{name}/{_VALUES}": feature.values, f"{name}/{_STARTS}": feature.starts}
        elif isinstance(feature, np.ndarray):
            arrays[f"{name}/{_ARRAY}"] = feature
        else:
            return None
    for name in ("lengths", "weights", "origin"):
        if (values := getattr(encoded, name)) is not None:
            arrays[f"/{name}"] = np.asarray(values, dtype=np.int64)
    if any(array.dtype.str not in _KINDS for array in arrays.values()):
        return None
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    about = {"truncated": encoded.truncated, "texts": encoded.texts, "features": list(encoded.features)}
    about["sums"] = {name: _sum(array) for name, array in arrays.items()}
    return tensors | {_ABOUT: torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8)}


def _read(file: Path) -> Encoded | None:
    """What a file holds, mapped into memory; None where there is none, or it is damaged."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = opened.keys()
            arrays = {name: opened.get_tensor(name).numpy() for name in names}
        about = json.loads(arrays.pop(_ABOUT).tobytes())
        if {name: _sum(array) for name, array in arrays.items()} != about["sums"]:
            return None
        features: dict[str, Feature] = {}
        for name in about["features"]:
            whole = arrays.get(f"{name}/{_ARRAY}")
            features[name] = (
                Ragged(arrays[f"{name}/{_VALUES}"], arrays[f"{name}/{_STARTS}"]) if whole is None else whole
            )
        lists: dict[str, Any] = {
            name: arrays[f"/{name}"].tolist() for name in ("lengths", "weights", "origin") if f"/{name}" in arrays
        }
        found = Encoded(features, truncated=about["truncated"], texts=about["texts"], **lists)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    with suppress(OSError):
        os.utime(file)  # used now
    return found


def _sum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _prune(folder: Path, most: int) -> None:
    """Remove the files that were not used for longest, until the rest take at most so many bytes. One that a run has
    mapped stays readable to it."""
    known: list[tuple[float, int, Path]] = []
    for file in folder.glob("*.safetensors"):
        with suppress(OSError):  # another process was faster
            known.append(((state := file.stat()).st_mtime, state.st_size, file))
    taken = sum(size for _, size, _ in known)
    for _, size, file in sorted(known):
        if taken <= most:
            return
        with suppress(OSError):
            file.unlink()
        taken -= size


def usual_cache() -> TokenCache:
    """That of `cache_folder`."""
    return TokenCache(cache_folder())
