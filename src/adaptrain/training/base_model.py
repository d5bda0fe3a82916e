"""The frozen base model of a run: where it is, whether it is the right one, and how it is loaded.

A local folder, a folder inside an installed Python package and the hub are the same thing from here on. Only
safetensors are read, and code that comes with a model runs only where the caller allows that one model
(`adaptrain.config.remote_code`).
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedConfig,
)

from adaptrain.auto import AutoAdapterModel, OwnHead
from adaptrain.config.remote_code import cure, may_run
from adaptrain.config.schema import ModelConfig
from adaptrain.errors import AdaptrainError, ModelError, UnsupportedError, listed
from adaptrain.reporting.sums import sum_of_files
from adaptrain.tasks.media import need
from adaptrain.tasks.text import prepare_tokenizer
from adaptrain.training.local_base import INDEX, WEIGHTS, base_folder, weight_files
from adaptrain.training.quantisation import check_library, check_quantised, loading_options, quiet_libraries
from adaptrain.upstream import warn_if_untested

CPU = torch.device("cpu")


@dataclass(frozen=True)
class BaseModel:
    """A base model that has been found.

    Attributes:
        config: what was asked for.
        location: folder or hub id to load from.
        revision: commit on the hub, None for a folder.
        fingerprint: sha256 of the weights (of the list of sums where they are in several files); the same wherever the
            model came from. The commit stands in where the files cannot be told.
    """

    config: ModelConfig
    location: str
    revision: str | None
    fingerprint: str

    @property
    def identity(self) -> dict[str, str | None]:
        """What is saved beside an adapter."""
        return {"name": self.config.name, "revision": self.revision, "fingerprint": self.fingerprint}

    @property
    def remote_code(self) -> bool:
        """Whether code that comes with it may run.

        Raises:
            ModelError: other code is allowed than what was found.
        """
        return may_run(self.config, self.location)


def find_base(config: ModelConfig) -> BaseModel:
    """Find the base model: a local folder, an installed package, or the hub.

    Raises:
        ModelError: it is nowhere, has no safetensors, or its weights are not the expected ones.
    """
    folder = base_folder(config)
    return _on_hub(config) if folder is None else _in_folder(config, folder)


def read_config(config: ModelConfig) -> PreTrainedConfig:
    """The base model's own config; its weights are not looked at.

    Raises:
        ModelError: it is nowhere, or of a model type that transformers does not know.
    """
    location = str(base_folder(config) or config.name)
    with _told(config, f"has no config that can be read in {location}"), quiet():
        return AutoConfig.from_pretrained(
            location,
            revision=config.revision or "main",  # of no meaning in a folder
            trust_remote_code=may_run(config, location),
        )


def _in_folder(config: ModelConfig, folder: Path) -> BaseModel:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no model: there is no config.json. It holds: {listed(_files(folder))}")
    weights = weight_files(folder)
    if not weights:
        raise ModelError(
            f"{folder} has no weights that can be read: {WEIGHTS} is due, and pickled weights are not loaded. "
            f"It holds: {listed(_files(folder))}. Save the model again with save_pretrained"
        )
    fingerprint = sum_of_files(weights)
    if config.sha256 is not None and fingerprint != config.sha256:
        raise ModelError(
            f"The weights of model {config.name} in {folder} are not the expected ones: sha256 {fingerprint}, "
            f"not {config.sha256}. {'Install the package again' if config.package else 'Name the right folder'}, or "
            "correct model.sha256"
        )
    return BaseModel(config, str(folder), None, fingerprint)


def _on_hub(config: ModelConfig) -> BaseModel:
    built_in = "model=minilm (built in)"
    if config.package is not None:
        package = config.package.partition(":")[0]
        built_in = f"the Python package '{package}' (pip install 'adaptrain[quickstart]' brings the built-in model)"
    cures = (built_in, "model.name=FOLDER (a saved model)")
    with _told(config, "cannot be had from the hub", f"Without the hub: {' or '.join(cures)}"), quiet():
        # The cache lays a file under snapshots/<commit>/: all else is then loaded from that very commit
        commit = Path(hf_hub_download(config.name, "config.json", revision=config.revision)).parent.name
    return BaseModel(config, config.name, commit, commit)


def load_tokenizer(base: BaseModel) -> Any:
    """The base model's fast tokenizer, with nothing baked in.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    with _told(base.config, f"has no usable tokenizer in {base.location}"), quiet():
        tokenizer = AutoTokenizer.from_pretrained(
            base.location, revision=base.revision, trust_remote_code=base.remote_code
        )
    if not tokenizer.is_fast:
        raise ModelError(
            f"Model {base.config.name} has only a slow tokenizer; convert it with "
            "transformers.convert_slow_tokenizer and save it as tokenizer.json beside the model"
        )
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes where there are no files
        raise ModelError(
            f"Model {base.config.name} has no tokenizer in {base.location}: its vocabulary is empty. Save the "
            "tokenizer beside the model with save_pretrained"
        )
    prepare_tokenizer(tokenizer)
    return tokenizer


@dataclass(frozen=True)
class SpeechProcessor:
    """What makes numbers of recordings, and of what was said in them."""

    feature_extractor: Any
    tokenizer: Any


def load_processor(base: BaseModel, reads: str) -> Any:
    """What makes numbers of what a task reads, as the base model was pre-trained with it: of texts the tokenizer, of
    images the image processor that computes with Pillow and numpy, of sound a `SpeechProcessor`.

    Args:
        reads: as in `Shape.reads`.

    Raises:
        ConfigError: a package is not installed.
        ModelError: there is none, or it cannot be read.
        UnsupportedError: the base model reads something else.
    """
    found = _reads(base)
    if found not in (None, reads):
        kind = read_config(base.config).model_type
        raise UnsupportedError(
            f"The base model {base.config.name} (a {kind}) reads {found}, and the task's rows are {reads}; choose a "
            f"base model that reads {reads}"
        )
    if reads == "texts":
        return load_tokenizer(base)
    given: dict[str, Any] = {"revision": base.revision, "trust_remote_code": base.remote_code}
    told = f"in {base.location}: preprocessor_config.json is due, which save_pretrained of it writes"
    if reads == "images":
        need("PIL", "vision", "A base model that reads images")
        with _told(base.config, f"has no usable image processor {told}"), quiet():
            return AutoImageProcessor.from_pretrained(base.location, backend="pil", **given)
    need("soundfile", "speech", "A base model that reads sound")
    with _told(base.config, f"has no usable feature extractor {told}"), quiet():
        extractor = AutoFeatureExtractor.from_pretrained(base.location, **given)
    return SpeechProcessor(extractor, load_tokenizer(base))


def _reads(base: BaseModel) -> str | None:
    """What the base model reads; None where its class is not transformers' own."""
    config = read_config(base.config)
    kind: Any = MODEL_MAPPING.get(type(config), None)  # pyright: ignore[reportArgumentType]
    kind = kind[0] if isinstance(kind, tuple) else kind
    sound = dict.fromkeys(("input_values", "input_features"), "sound")
    return None if kind is None else {"pixel_values": "images", **sound}.get(kind.main_input_name, "texts")


def load_model(
    base: BaseModel,
    dtype: torch.dtype,
    device: torch.device = CPU,
    architecture: str | dict[str, Any] | None = None,
    own_head: OwnHead | None = None,
) -> tuple[Any, BaseModel]:
    """The base model, ready for adapters, and what is known of it now that its weights are on this machine.

    Args:
        device: where a quantised base is quantised; any other is loaded on the CPU.
        architecture: as in `RunConfig`.
        own_head: as in `AutoAdapterModel.from_pretrained`.

    Raises:
        ModelError: the files are not readable, or of a model type that transformers does not know; or the base cannot
            be quantised as its config says.
        UnsupportedError: adaptrain has no table for the model type.
    """
    attention = None if base.config.attention == "auto" else base.config.attention
    check_library(base.config)
    warn_if_untested()  # before libraries are made quiet
    silence = quiet_libraries() if base.config.quantize else nullcontext()
    with _told(base.config, f"cannot be loaded from {base.location}"), quiet(), silence:
        model = AutoAdapterModel.from_pretrained(
            base.location,
            revision=base.revision,
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=base.remote_code,
            architecture=architecture,
            own_head=own_head,
            **loading_options(base.config, dtype, device),
        )
    check_quantised(base.config, model)
    if base.fingerprint == base.revision:
        base = dataclasses.replace(base, fingerprint=_cached_fingerprint(base) or base.fingerprint)
    model.set_base_identity(**base.identity)
    return model, base


def _cached_fingerprint(base: BaseModel) -> str | None:
    """Sum of the weights that the hub's cache holds, so that a copy in a folder is known for the same model."""
    for name in (WEIGHTS, INDEX):
        file = try_to_load_from_cache(base.location, name, revision=base.revision)
        if isinstance(file, str):
            weights = weight_files(Path(file).parent)
            return sum_of_files(weights) if weights else None
    return None


def _files(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@contextmanager
def _told(config: ModelConfig, what: str, more: str = "") -> Iterator[None]:
    """Whatever transformers, the hub client or safetensors raise, told as one sentence."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # each library has its own exceptions, many of them bare
        if "trust_remote_code" in str(error):  # an argument of transformers that no command takes
            raise ModelError(
                f"Model '{config.name}' comes with Python code, which does not run by itself; {cure(config)}"
            ) from None
        if isinstance(error, AdaptrainError):
            raise
        raise ModelError(f"Model '{config.name}' {what} ({_reason(error)}). {more}".rstrip()) from error


def _reason(error: Exception) -> str:
    if isinstance(error, LocalEntryNotFoundError):
        return "it cannot be reached, and the local cache has no copy"
    if isinstance(error, RevisionNotFoundError):
        return "it has no such revision"
    if isinstance(error, RepositoryNotFoundError):
        return "it has no such model, or a private one"
    return textwrap.shorten(str(error), 160, placeholder=" …") or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, loading reports and lists of attempts: they would fall into our own display."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    level, hub_level, shown = logging.get_verbosity(), hub_logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        hub_logging.set_verbosity(hub_level)
        if shown:
            logging.enable_progress_bar()
