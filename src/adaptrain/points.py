"""Points: what a table names, found in a live model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from adaptrain.errors import ConfigError, UnsupportedError, nearest
from adaptrain.quantised import float_weight, scheme


class LinearPart:
    """The linear map of a module, or one slice of a fused one.

    `weight` (out, in) and `bias` (out) are views: they follow the module to another device, and what is copied into
    them is the module's. The weight of a quantised map is a float copy, made anew whenever it is read.

    Args:
        module: Linear, transformers' Conv1D, or an embedding, which is the linear map of one-hot words.
        part, parts: which of how many equal slices of the output.
    """

    def __init__(self, module: nn.Module, part: int = 0, parts: int = 1) -> None:
        self.module = module
        self.size = linear_sizes(module)[0] // parts
        self.start = part * self.size
        self.fused = parts > 1

    @property
    def weight(self) -> Tensor:
        weight = float_weight(self.module)
        weight = weight if hasattr(self.module, "out_features") else weight.t()
        return weight.narrow(0, self.start, self.size) if self.fused else weight

    @property
    def quantised(self) -> str | None:
        """What the weight is quantised with, in words."""
        return scheme(getattr(self.module, "weight", None))

    @property
    def bias(self) -> Tensor | None:
        bias: Any = getattr(self.module, "bias", None)
        return None if bias is None else bias.detach().narrow(0, self.start, self.size)


class WordReader:
    """The model's own embeddings of a text's words."""

    def __init__(self, model: PreTrainedModel, words: nn.Module) -> None:
        self.model, self.words = model, words

    def embed(self, text: str) -> Tensor:
        """(words, embedding size), in float32.

        Raises:
            ConfigError: the base model has no tokenizer, or the text no words.
        """
        name = self.model.name_or_path
        try:
            if not name:
                raise ValueError("the base model was not loaded from anywhere")
            ids = AutoTokenizer.from_pretrained(name)(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"The prompt's text {text!r} needs the base model's tokenizer: {reason}") from None
        if not ids.numel():
            raise ConfigError(f"The prompt's text {text!r} has no words")
        with torch.no_grad():
            return self.words(ids.to(self.model.device))[0].float().cpu()


@dataclass(frozen=True)
class Point:
    """A site as methods see it; the fields are those of `methods.PointLike`."""

    kind: str
    stack: str
    layer: int
    sublayer: str
    role: str
    name: str
    hidden_size: int
    in_features: int
    out_features: int
    heads: int
    head_dim: int
    encoder_decoder: bool
    causal: bool = False
    map: LinearPart | None = field(default=None, compare=False)
    reader: WordReader | None = field(default=None, compare=False)

    def embed(self, text: str) -> Tensor:
        """The model's own embeddings of a text's words, at a prompt."""
        assert self.reader is not None, "only a prompt has words"
        return self.reader.embed(text)


def entrances(model: PreTrainedModel) -> list[nn.Module]:
    """The modules through which a caller, or `generate`, enters: the model, its base, and an encoder or decoder."""
    base = model.base_model
    candidates = [model, base, getattr(base, "encoder", None), getattr(base, "decoder", None)]
    return list(dict.fromkeys(module for module in candidates if isinstance(module, nn.Module)))


def linear_sizes(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear map; transformers' Conv1D and embeddings keep their weight the other way round."""
    if hasattr(module, "out_features"):
        return int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
    if isinstance(module, nn.Embedding):  # a quantised one's weight has another shape
        return module.embedding_dim, module.num_embeddings
    first, second = module.weight.shape  # type: ignore[misc]
    return int(second), int(first)


def module_at(module: nn.Module, path: str, place: str) -> Any:
    """The module at a dotted path below another.

    Raises:
        UnsupportedError: there is none; names path, place and the nearest module.
    """
    for step in path.split(".") if path else []:
        found = getattr(module, step, None)
        if not isinstance(found, nn.Module):
            known = [name for name, _ in module.named_children()]
            raise UnsupportedError(f"There is no module '{path}' in {place}: '{step}' is missing{nearest(step, known)}")
        module = found
    return module
