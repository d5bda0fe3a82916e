"""A base model without a head, ready for adapters and named heads."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from adaptrain.architectures import architecture_of, architectures
from adaptrain.errors import ConfigError, ModelError, UnsupportedError, listed, nearest, unknown
from adaptrain.model import AdaptedModel
from adaptrain.upstream import attribute, warn_if_untested

OwnHead = Literal["masked_lm", "causal_lm", "seq2seq_lm"]

_WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "subfolder", "token", "code_revision")
"""Keywords of transformers' `from_pretrained` that say where files are: of the config too."""

_LOADING = ("variant", "max_memory", "offload_folder", "offload_buffers", "key_mapping", "disable_mmap")
"""Those that say how weights are read."""

_DONE: dict[str, tuple[Any, str]] = {
    "use_safetensors": (True, "only safetensors are read; convert the weights"),
    "weights_only": (True, "nothing is unpickled; leave it out"),
    "low_cpu_mem_usage": (True, "transformers 5 always loads so; leave it out"),
    "ignore_mismatched_sizes": (False, "weights that do not fit would be random; give a config that fits them"),
    "output_loading_info": (False, "a checkpoint that lacks weights is refused anyway; leave it out"),
    "load_in_8bit": (False, "give quantization_config=BitsAndBytesConfig(load_in_8bit=True)"),
    "load_in_4bit": (False, "give quantization_config=BitsAndBytesConfig(load_in_4bit=True)"),
    "use_kernels": (False, "kernels take the place of modules in which adapters act; leave it out"),
}
"""Keyword → the value that means what is done anyway, and why there is no other."""

_LABELS = "labels belong to heads: add_classification_head(name, num_labels=…, id2label=…), and the other heads alike"
_INIT = "load the base model with transformers, and give it to adaptrain.init()"
_REFUSED = (
    dict.fromkeys(("num_labels", "id2label", "label2id", "problem_type"), _LABELS)
    | dict.fromkeys(
        ("state_dict", "gguf_file", "generation_config", "experts_implementation", "fusion_config", "kernel_config"),
        _INIT,
    )
    | dict.fromkeys(
        ("tp_plan", "tp_size", "device_mesh", "distributed_config"), "accelerate distributes adapted models"
    )
    | dict.fromkeys(("adapter_kwargs", "adapter_name"), "load the adapter with load_adapter(folder)")
)
"""Keyword → what to do instead."""


class AutoAdapterModel:
    """Loads the bare base model of any family that has an architecture.

    Attributes:
        model_type: the only one that it loads; None loads all of them.
    """

    model_type: ClassVar[str | None] = None

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path | None = None,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        architecture: str | Path | Mapping[str, Any] | None = None,
        quantization_config: Any = None,
        device_map: Any = None,
        own_head: OwnHead | None = None,
        config: PreTrainedConfig | str | Path | None = None,
        torch_dtype: torch.dtype | str | None = None,
        **more: Any,
    ) -> AdaptedModel:
        """Load from a local folder or the hub; safetensors only.

        Args:
            name: a folder or a hub id; transformers calls it `pretrained_model_name_or_path`.
            dtype: of the frozen base; when None the dtype that its 4-bit weights are multiplied in, else float32, so
                that results do not depend on how a file was saved.
            trust_remote_code: permission to run the code beside this base model, in this call.
            quantization_config: transformers' `BitsAndBytesConfig` or `TorchAoConfig`, to keep the base in few bits.
            device_map: where transformers puts the base; of use with `quantization_config`, which quantises there.
            architecture: the table to use where the model type has none (`AdaptedModel`).
            own_head: load the head of this kind with which the base was pre-trained, as a part of the base model, whose
                `generate` uses it; where the checkpoint or its family has none, the base comes without.
            config: in the place of the checkpoint's own; a folder or hub id of one too.
            torch_dtype: `dtype` by its older name.
            more: transformers' keywords that say where files are and how they are read (`cache_dir`, `token`,
                `local_files_only`, `subfolder`, `variant`, …), and keys of the config that shall have other values.

        Raises:
            ConfigError: a keyword that is neither; or two that exclude each other.
            ModelError: missing, unreadable or incomplete; of another model type than the class is for; quantised by a
                library that is not here, or cannot do so on this device.
            UnsupportedError: no architecture for its model type, or a keyword of transformers that has no place here.
        """
        warn_if_untested()
        name = more.pop("pretrained_model_name_or_path", name)
        if name is None:
            raise ConfigError("from_pretrained: no base model is named; give a folder or a hub id first")
        _check_keywords(more)
        dtype = _dtype(dtype, torch_dtype)
        options = {
            "attn_implementation": attn_implementation,
            "quantization_config": quantization_config,
            "device_map": device_map,
        }
        given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
        given |= {key: more.pop(key) for key in _LOADING if key in more}
        where = {key: more.pop(key) for key in _WHERE if key in more}
        where |= {"revision": revision or "main", "trust_remote_code": bool(trust_remote_code)}
        if dtype is None and getattr(quantization_config, "load_in_4bit", False):
            dtype = quantization_config.bnb_4bit_compute_dtype  # bitsandbytes would cast the biases to it in place

        def load(kind: Any, **more: Any) -> tuple[PreTrainedModel, set[str]]:
            made, found = kind.from_pretrained(
                str(name),
                config=used,
                dtype=dtype or torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **where,
                **more,
                **given,
            )
            return made, set(found["missing_keys"])

        try:
            used = _config(name, config, where, more)
            cls._check_type(used, str(name))
            if attn_implementation is None and not trust_remote_code:
                _refuse_kernel(used, str(name))
            base, missing = None, set[str]()
            if (headed := _with_head(own_head, used, architecture is not None)) is not None:
                base, missing = load(headed)
                if _headless(base, missing):
                    base = None
            if base is None:
                base, missing = load(_class_of(used), **({} if trust_remote_code else _unused_pooler(used)))
        except ConfigError:
            raise
        except (OSError, ValueError, SafetensorError, StrictDataclassError) as error:
            raise ModelError(f"Cannot load the base model '{name}': {_first_line(error)}") from None
        except (ImportError, RuntimeError) as error:
            if quantization_config is None or isinstance(error, torch.OutOfMemoryError):
                raise
            kind = type(quantization_config).__name__
            raise ModelError(
                f"The base model '{name}' cannot be quantised with {kind} here: {_first_line(error)}"
            ) from error
        missing -= _remove_spare(base, missing)
        if missing:
            few = ", ".join(sorted(missing)[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            raise ModelError(
                f"The base model '{name}' lacks weights, which would be random: {few}; use a complete checkpoint"
            )
        return AdaptedModel(base, architecture)

    @classmethod
    def from_config(
        cls,
        config: PreTrainedConfig,
        architecture: str | Path | Mapping[str, Any] | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        **unknown_keywords: Any,
    ) -> AdaptedModel:
        """A base model with random weights. Arguments as in `from_pretrained`.

        Raises:
            ConfigError: an unknown keyword.
            ModelError: of another model type than the class is for.
        """
        if unknown_keywords:
            known = [key for key in signature(cls.from_config).parameters if key != "unknown_keywords"]
            raise ConfigError([unknown("keyword", key, known, "from_config takes") for key in unknown_keywords])
        cls._check_type(config, "the config")
        found = _class_of(config)
        options: dict[str, Any] = {"dtype": _dtype(dtype, torch_dtype), "attn_implementation": attn_implementation}
        options = {key: value for key, value in options.items() if value is not None}
        if found is AutoModel:
            make, options = found.from_config, options | {"trust_remote_code": bool(trust_remote_code)}
        else:
            make = attribute(found, "_from_config")
        return AdaptedModel(make(config, **_unused_pooler(config), **options), architecture)

    @classmethod
    def _check_type(cls, config: PreTrainedConfig, name: str) -> None:
        if cls.model_type not in (None, config.model_type):
            raise ModelError(
                f"{cls.__name__} is for {cls.model_type}, and {name} is a {config.model_type}; use AutoAdapterModel"
            )


def class_for(name: str) -> type[AutoAdapterModel]:
    """`AutoAdapterModel` for one model type, by the name that it has in the reference: `BertAdapterModel`.

    Raises:
        AttributeError: no architecture has this name; suggests the nearest.
    """
    if name not in _CLASSES:
        types = {_class_name(model_type): model_type for model_type in architectures()}
        if name not in types:
            raise AttributeError(unknown("model class", name, sorted(types), "There are AutoAdapterModel and"))
        said = f"`AutoAdapterModel` for {types[name]} alone."
        _CLASSES[name] = type(name, (AutoAdapterModel,), {"model_type": types[name], "__doc__": said})
    return _CLASSES[name]


_CLASSES: dict[str, type[AutoAdapterModel]] = {}


def _check_keywords(more: Mapping[str, Any]) -> None:
    """Refuse keywords of transformers that have no place here.

    Raises:
        UnsupportedError: names the first, and what to do instead.
    """
    for key, value in more.items():
        if key in _REFUSED and value is not None:
            raise UnsupportedError(f"from_pretrained: {key} has no place here; {_REFUSED[key]}")
        if key in _DONE and value not in (None, _DONE[key][0]):
            raise UnsupportedError(f"from_pretrained: {key} cannot be {value!r}; {_DONE[key][1]}")


def _dtype(dtype: Any, torch_dtype: Any) -> Any:
    if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
        raise ConfigError([f"dtype is {dtype}, and torch_dtype, its older name, is {torch_dtype}; give one of them"])
    return torch_dtype if dtype is None else dtype


def _config(
    name: str | Path, config: PreTrainedConfig | str | Path | None, where: Mapping[str, Any], more: Mapping[str, Any]
) -> PreTrainedConfig:
    """The config that a base model is loaded with: the checkpoint's own, or a copy of one that is given, with other
    values for some keys.

    Raises:
        ConfigError: a key that it does not have.
    """
    changed = {key: value for key, value in more.items() if key not in _DONE and key not in _REFUSED}
    place = str(name if config is None else config)
    used = copy.deepcopy(config) if isinstance(config, PreTrainedConfig) else AutoConfig.from_pretrained(place, **where)
    strange = [key for key in changed if not hasattr(used, key) or callable(getattr(used, key))]
    if strange:
        raise ConfigError([_unknown_keyword(key, used) for key in strange])
    if changed and not isinstance(config, PreTrainedConfig):
        return AutoConfig.from_pretrained(place, **where, **changed)  # what follows from a key follows
    for key, value in changed.items():
        setattr(used, key, value)
    return used


def _unknown_keyword(key: str, config: PreTrainedConfig) -> str:
    own: Iterable[str] = signature(AutoAdapterModel.from_pretrained).parameters
    known = [*(each for each in own if each != "more"), *_WHERE, *_LOADING]
    near = nearest(key, [*known, *config.to_dict()])
    return (
        f"from_pretrained has no keyword '{key}'{near or '.'} It takes: {listed(known)}; and keys of the config "
        f"({type(config).__name__})"
    )


def _class_name(model_type: str) -> str:
    """`BertModel` → `BertAdapterModel`; `BertGenerationEncoder` is the bare one too."""
    found: Any = _BARE.get(model_type) or MODEL_MAPPING_NAMES[model_type]
    first = found if isinstance(found, str) else next(iter(found))
    return first.removesuffix("Model").removesuffix("Encoder") + "AdapterModel"


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


_SPARE = ("pooler", "mask_token", "masked_spec_embed")
"""Parts of base models that no head of ours needs: what feeds `pooler_output` alone, and what stands for what is masked
in pre-training."""


def _remove_spare(model: PreTrainedModel, missing: set[str]) -> set[str]:
    """Remove the spare parts that a checkpoint lacks, so that nothing can read their random weights: a head with
    `use_pooler` is then refused, and sound is trained on without SpecAugment.

    Returns:
        The names among `missing` that are gone.
    """
    removed = set[str]()
    for name in missing:
        path = name.split(".")
        part = next((at for at, word in enumerate(path) if word in _SPARE), None)
        if part is None:
            continue
        owner: Any = model.get_submodule(".".join(path[:part]))
        if path[part] == "pooler" and "add_pooling_layer" not in inspect.signature(type(owner).__init__).parameters:
            continue  # the class cannot do without
        setattr(owner, path[part], None)
        if path[part] == "masked_spec_embed":
            owner.config.apply_spec_augment = False
        removed.add(name)
    return removed


_HEADED: dict[str, tuple[Any, ...]] = {
    "masked_lm": (AutoModelForMaskedLM,),
    "causal_lm": (AutoModelForCausalLM,),
    "seq2seq_lm": (AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq),
}


def _with_head(kind: OwnHead | None, config: PreTrainedConfig, written: bool) -> Any:
    """The class that loads a model of this family with its own head; None where the family has none.

    Args:
        written: whether the user has given a table of his own.
    """
    if kind is None:
        return None
    if kind not in _HEADED:
        raise ModelError(unknown("own head", kind, _HEADED, "There are"))
    known = config.model_type in architectures() or not written
    # transformers has a language model of half a BART, and of a BERT
    if kind == "causal_lm" and known and [stack.causal for stack in architecture_of(config).stacks] != [True]:
        return None
    return next((each for each in _HEADED[kind] if type(config) in attribute(each, "_model_mapping")), None)


def _headless(model: PreTrainedModel, missing: set[str]) -> bool:
    """Whether a checkpoint has nothing of a model's own head. Where it has a part, it is incomplete."""
    output, words = model.get_output_embeddings(), model.get_input_embeddings()
    inside = {id(parameter) for parameter in model.base_model.parameters()}
    if output is not None:  # a T5 with a head is its own base model
        inside -= {id(parameter) for parameter in output.parameters()}
        inside |= {id(parameter) for parameter in words.parameters()}
    head = {name for name, parameter in model.named_parameters() if id(parameter) not in inside}
    return bool(head) and head <= missing


def _refuse_kernel(config: PreTrainedConfig, name: str) -> None:
    """Refuse a checkpoint that chooses its attention from the hub: transformers would fetch and run that code."""
    parts = [config, *(getattr(config, part, None) for part in config.sub_configs)]
    for wanted in (getattr(part, "_attn_implementation", None) for part in parts):
        if isinstance(wanted, str) and "/" in wanted:
            raise ModelError(
                f"The config of the base model '{name}' asks for attention from the hub ('{wanted}'), which is code "
                "that does not run; take transformers' own: attn_implementation='sdpa' (in YAML model.attention=sdpa)"
            )


def _first_line(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "it comes with Python code of its own, which runs only where trust_remote_code=True allows it"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[: 2 if isinstance(error, StrictDataclassError) else 1]) or type(error).__name__
