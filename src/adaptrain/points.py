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
    """The linear map of a module, or one part of a fused one.

    Args:
        module: Linear, transformers' Conv1D, or an embedding, which is the linear map of one-hot words.
        part, parts, layout: which of how many parts of the output, and how they lie in it (`architectures.Projection`).
        width: of the queries where the layout is `grouped`, of one head where it is `interleaved`.

    Attributes:
        size: number of outputs of the part.
        quantised: what the module's weight is quantised with, in words; None for plain numbers.
    """

    def __init__(self, module: nn.Module, part: int = 0, parts: int = 1, layout: str = "equal", width: int = 0) -> None:
        self.module, self.part, self.parts = module, part, parts
        out = linear_sizes(module)[0]
        sizes = [out // parts] * parts
        if layout == "grouped":
            sizes = [width, *[(out - width) // (parts - 1)] * (parts - 1)]
        self.size, self.start = sizes[part], sum(sizes[:part])
        self.fused = parts > 1
        self.quantised = scheme(getattr(module, "weight", None))
        self.head = width if layout == "interleaved" else 0

    def cut(self, whole: Tensor, axis: int) -> Tensor:
        """The part of what the whole map has along an axis."""
        if not self.fused:
            return whole
        if not self.head:
            return whole.narrow(axis, self.start, self.size)
        axis %= whole.dim()
        return whole.unflatten(axis, (-1, self.parts, self.head)).select(axis + 1, self.part).flatten(axis, axis + 1)

    def put(self, whole: Tensor, part: Tensor, axis: int) -> Tensor:
        """The whole with another part in the place of this one; the inverse of `cut`."""
        if not self.fused:
            return part
        axis %= whole.dim()
        if not self.head:
            stop = self.start + self.size
            after = whole.narrow(axis, stop, whole.shape[axis] - stop)
            return torch.cat([whole.narrow(axis, 0, self.start), part, after], axis)
        pieces = list(whole.unflatten(axis, (-1, self.parts, self.head)).unbind(axis + 1))
        pieces[self.part] = part.unflatten(axis, (-1, self.head))
        return torch.stack(pieces, axis + 1).flatten(axis, axis + 2)

    @property
    def weight(self) -> Tensor:
        """(out, in), in float; it follows the module to another device. Of a quantised map it is a copy, made anew."""
        return self.cut(self._weight(), 0)

    @property
    def bias(self) -> Tensor | None:
        """(out), or None."""
        bias: Any = getattr(self.module, "bias", None)
        return None if bias is None else self.cut(bias.detach(), 0)

    def write(self, weight: Tensor, bias: Tensor | None) -> None:
        """Put other numbers into the module, in place."""
        with torch.no_grad():
            whole = self._weight()
            whole.copy_(self.put(whole, weight.to(whole.dtype), 0))
            own: Any = getattr(self.module, "bias", None)
            if own is not None and bias is not None:
                own.copy_(self.put(own, bias.to(own.dtype), 0))

    def _weight(self) -> Tensor:
        module: Any = self.module
        weight = module.weight.detach() if self.quantised is None else float_weight(module)
        return weight if hasattr(module, "out_features") else weight.t()


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
            own = self.words.forward  # without hooks: the tokenizer is the base model's, and so must be the words
            words = own(ids.to(self.model.device))[0].cpu()
            return words.to(torch.promote_types(words.dtype, torch.float32))


@dataclass(frozen=True)
class Point:
    """A site as methods see it; the fields are those of `methods.PointLike`.

    Attributes:
        by_row: whether everything that flows here has the batch's rows.
    """

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
    by_row: bool = True
    map: LinearPart | None = field(default=None, compare=False)
    reader: WordReader | None = field(default=None, compare=False)

    def embed(self, text: str) -> Tensor:
        """The model's own embeddings of a text's words, at a prompt."""
        assert self.reader is not None, "only a prompt has words"
        return self.reader.embed(text)


def entrances(model: PreTrainedModel) -> list[nn.Module]:
    """The modules through which a caller, or `generate`, enters: the model, its base, and one of two stacks."""
    base = model.base_model
    parts = [getattr(base, name, None) for name in ("encoder", "decoder", "text_model", "vision_model")]
    return list(dict.fromkeys(module for module in (model, base, *parts) if isinstance(module, nn.Module)))


def linear_sizes(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear map; transformers' Conv1D and embeddings keep their weight the other way round."""
    if hasattr(module, "out_features"):
        return int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
    if isinstance(module, nn.Embedding):  # a quantised one's weight has another shape
        return module.embedding_dim, module.num_embeddings
    first, second = module.weight.shape  # type: ignore[misc]
    return int(second), int(first)


def modules_at(module: nn.Module, path: str, place: str) -> list[nn.Module]:
    """The modules of the list at a path; `*` in it stands for each module of a list on the way."""
    before, star, behind = path.partition(".*.")
    found = list(module_at(module, before, place).children())
    return [each for one in found for each in modules_at(one, behind, place)] if star else found


def has_module(module: nn.Module, path: str) -> bool:
    """Whether there is a module at a dotted path."""
    try:
        module_at(module, path, "")
    except UnsupportedError:
        return False
    return True


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
