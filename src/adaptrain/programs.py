"""An adapted model inside programs that are written for transformers' own models.

What such a program may do with the model inside it may do with the adapted model, and to the same effect; where that
cannot be, the method is refused by its name, with what to call instead. Attributes that an adapted model does not have
are those of the model inside.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig

from adaptrain.architectures import Architecture
from adaptrain.composition import Fuse, blocks, names
from adaptrain.errors import AdapterNameError, UnsupportedError, listed
from adaptrain.face import face, is_face, labelled
from adaptrain.heads import Head
from adaptrain.prediction import WithHeads
from adaptrain.quantised import scheme_of

if TYPE_CHECKING:
    from typing_extensions import Self


class RefusedMethod(UnsupportedError, AttributeError):
    """A method of the base model that an adapted model does not have, so that `hasattr` is false."""


_PEFT = "adapters here are not PEFT's; "
_BEFORE = "adapters act in the modules that it would exchange; call it on the base model, before adaptrain.init()"
_WORDS = (
    "adapters and heads are made for the words that the model has; call it on the base model before adaptrain.init(), "
    "or add_embeddings(name, tokenizer, reference_embedding='default', reference_tokenizer=…)"
)
_AGAIN = "it would give the base model random weights; load the base model again"
_PAGED = "it runs the base model in a way of its own, past prompts, masks and Parallel; call generate()"
_WHOLE = "it would save the base model; call save_adapter(folder, name), or save_composition(folder)"

REFUSED: dict[str, str] = {
    "set_adapter": _PEFT + "call set_active_adapters(name)",
    "enable_adapters": _PEFT + "call set_active_adapters(name)",
    "disable_adapters": _PEFT + "call set_active_adapters(None), or with AdapterSetup(None): for a while",
    "get_adapter_state_dict": _PEFT + "get_adapter(name).tensors() are its tensors",
    "enable_peft_hotswap": _PEFT + "call load_adapter(folder) and set_active_adapters(name)",
    "push_to_hub": _WHOLE + ", and upload that folder (hf upload)",
    "save_distributed_checkpoint": _WHOLE,
    "resize_token_embeddings": _WORDS,
    "resize_position_embeddings": _BEFORE,
    "set_input_embeddings": _WORDS,
    "set_output_embeddings": _WORDS,
    "set_encoder": _BEFORE,
    "set_decoder": _BEFORE,
    "set_use_kernels": "kernels take the place of modules in which adapters act; load the base model without them",
    "prune_heads": _BEFORE,
    "init_weights": _AGAIN,
    "initialize_weights": _AGAIN,
    "post_init": _AGAIN,
    "from_pretrained": "call AutoAdapterModel.from_pretrained, or init() with a base model",
    "generate_batch": _PAGED,
    "init_continuous_batching": _PAGED,
    "continuous_batching_context_manager": _PAGED,
}
"""Methods of transformers' models that reach around adapters, each with the reason and the cure."""

_SAVED = {"save_function": torch.save, "safe_serialization": True, "push_to_hub": False, "state_dict": None}
"""What transformers' `save_pretrained` takes, with the values that mean what is done here anyway."""


class InPrograms(WithHeads):
    """The part of an adapted model that behaves as the transformers model inside it."""

    architecture: Architecture

    if TYPE_CHECKING:  # of other parts, which come behind this one

        def adapter_names(self) -> list[str]: ...

        def save_adapter(self, save_directory: str | Path, adapter_name: str, with_head: bool = True) -> None: ...

        def save_composition(self, save_directory: str | Path, composition: Any = None) -> None: ...

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in REFUSED:
                raise RefusedMethod(f"An adapted model has no {name}(): {REFUSED[name]}") from None
            if name == "base_model":
                raise
            if name == _SHIFT and not hasattr(self.base_model, _SHIFT) and self.architecture.encoder_decoder:
                return self._shifted
            return getattr(self.base_model, name)

    # ---- how it looks

    def _dress(self) -> None:
        """Take the class that shows what the base model and the active heads read and do."""
        kind = type(self)
        owner: type = getattr(kind, "_owner", kind)
        if "base_model" not in self._modules or not (kind is owner or is_face(kind)):
            return  # not made yet; or FSDP has given it a class of its own
        made = face(owner, self.base_model, not self._headed(), self._active())
        if made is not kind:
            self.__class__ = made  # type: ignore[assignment]

    def _active(self) -> list[Head]:
        names = (self._active_head,) if isinstance(self._active_head, str) else self._active_head or ()
        return [self._known(name) for name in names if name is not None]

    def __reduce_ex__(self, protocol: Any) -> Any:
        _, (kind, *_), *rest = super().__reduce_ex__(max(int(protocol), 2))  # type: ignore[misc]
        return _blank, (getattr(kind, "_owner", kind),), *rest

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._dress()

    @property
    def config(self) -> PreTrainedConfig:
        """The base model's config. Where one head with labels is in force, in this thread, it shows the head's
        `id2label`, `label2id`, `num_labels` and `problem_type`; all else is read from the base model's and written to
        it."""
        config = self.base_model.config
        try:
            _, name = self.in_force()
        except AdapterNameError:  # a setup for another model; a forward would say so
            return config
        head = self._known(name) if isinstance(name, str) else None
        return config if head is None or not head.num_labels else labelled(config, head)

    @config.setter
    def config(self, config: PreTrainedConfig) -> None:
        self.base_model.config = config

    @property
    def generation_config(self) -> Any:
        """Of what generates: the base model, or the one that writes with the active head."""
        return self._generator().generation_config

    @generation_config.setter
    def generation_config(self, config: Any) -> None:
        self._generator().generation_config = config

    def _generator(self) -> Any:
        try:
            return self.writer()
        except UnsupportedError:
            return self.base_model

    def can_generate(self) -> bool:
        """Whether the base model generates, or another one with the active head."""
        return bool(self._generator().can_generate())

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether the loss can be a sum over words divided by `num_items_in_batch`, as transformers' Trainer asks for
        when it accumulates gradients. Named heads and fusions' regularisation are means over their own batch."""
        tree, heads = self.in_force()
        if heads is not None or any(isinstance(block, Fuse) for block in blocks(tree)):
            return False
        accepts = getattr(self.base_model, "accepts_loss_kwargs", None)
        if accepts is not None:
            return bool(accepts)
        parameters = inspect.signature(self.base_model.forward).parameters.values()
        return any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Numbers of the base model (as transformers counts them) and of everything on it."""
        count = self.base_model.num_parameters(only_trainable, exclude_embeddings)
        return count + sum(each.numel() for each in self._added() if each.requires_grad or not only_trainable)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the base model (as transformers counts them) and of everything on it."""
        count = self.base_model.get_memory_footprint(return_buffers)
        return count + sum(each.numel() * each.element_size() for each in self._added())

    def _added(self) -> Iterator[nn.Parameter]:
        base = {id(parameter) for parameter in self.base_model.parameters()}
        return (parameter for parameter in self.parameters() if id(parameter) not in base)

    # ---- activation checkpointing

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute layers in the backward pass instead of storing them, under the composition of the forward. Layers
        below the lowest adapter are neither recomputed nor part of that pass.

        Args:
            activation_checkpointing_kwargs: of torch's `checkpoint`. Whatever `use_reentrant` says, it is false:
                gradients are the same, and a reentrant checkpoint would lose them where its inputs are frozen.
            options: `every_n_layers` and `offload`, where transformers has them.

        Raises:
            UnsupportedError: transformers cannot do so for this model, or does not have an option.
        """
        model: Any = self.base_model
        # renamed in transformers 5.2x; the old name warns until it goes
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        known = inspect.signature(enable).parameters
        if strange := [key for key in options if key not in known]:
            raise UnsupportedError(
                f"transformers {transformers.__version__} has no option {listed(strange)} of gradient checkpointing; "
                "leave it out, or install a newer version"
            )
        asked = hasattr(model, "_require_grads_hook")
        try:
            enable(dict(activation_checkpointing_kwargs or {}) | {"use_reentrant": False}, **options)
        except ValueError:
            kind = model.config.model_type
            raise UnsupportedError(f"transformers has no gradient checkpointing for {kind}; leave it off") from None
        if not asked and hasattr(model, "_require_grads_hook"):
            # transformers lets embeddings require a gradient, for reentrant checkpoints, and all layers take part then
            model.disable_input_require_grads()

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        """`activation_checkpointing_enable` by its older name."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    # ---- casts

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast everything, as torch's `to` does; adapters and heads are cast too.

        Raises:
            UnsupportedError: a cast of a quantised base model.
        """
        given = [*args, *kwargs.values()]
        dtypes = [each if isinstance(each, torch.dtype) else each.dtype for each in given if _has_dtype(each)]
        if dtypes:
            self._castable(f"to({dtypes[0]})")
        return super().to(*args, **kwargs)

    def half(self) -> Self:
        """Cast everything to float16."""
        self._castable("half()")
        return super().half()

    def bfloat16(self) -> Self:
        """Cast everything to bfloat16."""
        self._castable("bfloat16()")
        return super().bfloat16()

    def float(self) -> Self:
        """Cast everything to float32."""
        self._castable("float()")
        return super().float()

    def double(self) -> Self:
        """Cast everything to float64."""
        self._castable("double()")
        return super().double()

    def type(self, dst_type: Any) -> Self:
        """Cast everything to a type."""
        self._castable(f"type({dst_type})")
        return super().type(dst_type)

    def _castable(self, cast: str) -> None:
        if (scheme := scheme_of(self.base_model)) is not None:
            raise UnsupportedError(
                f"{cast}: the base model is quantised ({scheme}), and a cast would change what its numbers stand for; "
                "load it with the dtype that you want, or call dequantize(dtype)"
            )

    # ---- files

    def save_pretrained(self, save_directory: str | Path, is_main_process: bool = True, **options: Any) -> None:
        """Write what is active: an adapter with its head as `save_adapter` does, else the composition as
        `save_composition` does. The base model is not written. Adapters that are not active are named in a warning.

        Args:
            is_main_process: False writes nothing; another process does.

        Raises:
            UnsupportedError: nothing is active, or an option that adapter folders do not have.
        """
        if strange := [key for key, value in options.items() if key not in _SAVED or value != _SAVED[key]]:
            raise UnsupportedError(
                f"save_pretrained: {listed(strange)} cannot be chosen for an adapted model, which writes its adapters' "
                "own tensors to safetensors; leave it out"
            )
        if not is_main_process:
            return
        tree, all_names = self.sites.active, self.adapter_names()
        if tree is None:
            raise UnsupportedError(
                f"save_pretrained: no adapter is active (the model has {listed(all_names)}); activate what is to be "
                "saved, or call save_adapter(folder, name)"
            )
        if others := [name for name in all_names if name not in names(tree)]:
            warnings.warn(f"save_pretrained writes {tree}; {listed(others)} are not active and not saved", stacklevel=2)
        if isinstance(tree, str) and self._active_head in (None, tree):
            self.save_adapter(save_directory, tree)
        else:
            self.save_composition(save_directory)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """All tensors by their names; one that is tied has its first name alone, as in transformers' files."""
        state = super().state_dict(*args, **kwargs)
        if args or kwargs.get("destination") is not None or kwargs.get("prefix"):
            return state  # of a module around this one, which may read it back by all names
        for alias in self._aliases():
            state.pop(alias, None)
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Take what `state_dict` gave."""
        first = {alias: name for alias, name in self._aliases().items() if name in state_dict}
        more = {alias: state_dict[name] for alias, name in first.items() if alias not in state_dict}
        return super().load_state_dict({**state_dict, **more}, *args, **kwargs)

    def _aliases(self) -> dict[str, str]:
        """Later name → first name, of each parameter that has several."""
        first: dict[int, str] = {}
        every = self.named_parameters(remove_duplicate=False)
        return {name: known for name, each in every if (known := first.setdefault(id(each), name)) != name}


_SHIFT = "prepare_decoder_input_ids_from_labels"
"""What transformers' data collators ask an encoder-decoder for."""


def _has_dtype(value: Any) -> bool:
    return isinstance(value, torch.dtype | Tensor)


def _blank(kind: Any) -> Any:
    return kind.__new__(kind)
