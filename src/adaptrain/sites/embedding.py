"""Embeddings: changed on their way into the first layer and back before the output embedding; and prompts."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptrain.composition import Composition, names
from adaptrain.context import Forward, current_forward
from adaptrain.errors import UnsupportedError
from adaptrain.evaluator import mirror
from adaptrain.points import Point
from adaptrain.sites.base import Handle, Site, first_of, with_first
from adaptrain.state import EmbeddingState, PromptState
from adaptrain.upstream import Arguments


class EmbeddingSite(Site):
    """The first hidden states. What is done to them is undone before the model's output embedding, in reverse order.

    Args:
        output: module whose output they are.
        head: the model's output embedding; None where it has none.
        words: whether that module is the lookup of words, which a forward that is given embeddings leaves out.
        scale: what the reader multiplies words with that it looks up itself, behind this point.
    """

    def __init__(
        self, point: Point, output: nn.Module, head: nn.Module | None, words: bool = False, scale: float = 1.0
    ) -> None:
        super().__init__(point)
        self.output, self.head, self.words, self.scale = output, head, words, scale

    def hook(self) -> Iterator[Handle]:
        yield self.output.register_forward_hook(self._out)
        if self.head is not None:
            yield self.head.register_forward_pre_hook(self._before_head)

    def _out(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        here = self.in_force()
        return None if here is None else with_first(output, self.run(here[1], EmbeddingState(first_of(output))).h)

    def embedded(self, embeds: Tensor) -> Tensor:
        """Embeddings that the caller has looked up and scaled as the model does, (rows, positions, embedding size)."""
        here = self.in_force()
        if here is None:
            return embeds
        return self.run(here[1], EmbeddingState(embeds / self.scale)).h * self.scale

    def _before_head(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        here = self.in_force()
        return None if here is None else (self.undone(here[1], EmbeddingState(args[0])), *args[1:])

    def undone(self, tree: Composition, state: EmbeddingState) -> Tensor:
        """Hidden states with what the composition does to the embeddings undone, (rows, positions, embedding size)."""
        return self.run(mirror(tree), state, self._undo).h

    def _undo(self, name: str, state: EmbeddingState) -> EmbeddingState:
        for unit in reversed(self.units[name]):
            state = unit.inverse(state)
        return state


@dataclass(frozen=True)
class Prompt:
    """What one forward reads besides the words.

    It stands beside the row's first token, not at the row's edge: padding between the two would count in a sliding
    window.

    Attributes:
        before, after: in front of the text and behind its first token, (rows, any number, embedding size).
        first: index of each row's first token, (rows, 1).
        keep: whether the outputs keep the prompt's positions.
    """

    before: Tensor
    after: Tensor
    first: Tensor
    keep: bool

    @property
    def length(self) -> int:
        return self.before.shape[1] + self.after.shape[1]

    def insert(self, text: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """(rows, positions, …) with what belongs to the prompt's positions put in."""
        p, q = before.shape[1], after.shape[1]
        here = torch.arange(p + q + text.shape[1], device=text.device)[None]
        since = here - self.first
        # where each position comes from, in the prompt's two parts and the text one after the other
        source = torch.where(since < 0, here + p + q, since)
        source = torch.where(since == p, self.first + p + q, source)
        source = torch.where((since > p) & (since <= p + q), since - 1, source)
        source = torch.where(since > p + q, here, source)
        return _rows_of(torch.cat([before, after, text], 1), source)

    def cut(self, whole: Tensor) -> Tensor:
        """(rows, positions, …) without the prompt's positions."""
        return _rows_of(whole, self._moved(whole.shape[1] - self.length, whole.device))

    def _moved(self, length: int, device: torch.device) -> Tensor:
        """Where the text's positions are, (rows, length)."""
        here = torch.arange(length, device=device)[None]
        return here + self.before.shape[1] * (here >= self.first) + self.after.shape[1] * (here > self.first)

    def see(self, mask: Tensor) -> Tensor:
        """An attention mask (rows, positions) with the prompt in sight."""
        before, after = (mask.new_ones(mask.shape[0], part.shape[1]) for part in (self.before, self.after))
        return self.insert(mask, before, after)

    def move(self, positions: Tensor, past: bool) -> Tensor:
        """Position ids of the text, (rows or 1, positions), with the prompt's.

        Args:
            past: whether the prompt is in the cache already.
        """
        if past:
            return positions + self.length
        p, q = self.before.shape[1], self.after.shape[1]
        positions = positions.expand(self.before.shape[0], -1)
        begin = positions.gather(1, self.first)
        before = begin + torch.arange(p, device=positions.device)
        after = begin + p + 1 + torch.arange(q, device=positions.device)
        here = torch.arange(positions.shape[1], device=positions.device)
        return self.insert(positions + self._moved(positions.shape[1], positions.device) - here, before, after)


class PromptSite(Site):
    """Trained vectors that the model reads besides the words.

    Behind an embedding module they have no position, as in BERT; before the looked-up words of a decoder they take
    positions and stay in its cache. Masks and positions are widened where the forward begins, so that everything below
    sees one length.

    Args:
        words: the lookup of word ids; None where the stack reads images.
        output: the module behind which the prompt comes in; None where it comes in before the looked-up words.
        reader: the module that is given words and mask.
        end: module whose hidden states lose the prompt's positions again; None where they stay.
        scale: what the reader multiplies words with that it looks up itself.
    """

    def __init__(
        self,
        point: Point,
        words: nn.Module | None,
        output: nn.Module | None,
        reader: nn.Module,
        end: nn.Module | None,
        scale: float = 1.0,
    ) -> None:
        super().__init__(point)
        self.words, self.output, self.reader, self.end, self.scale = words, output, reader, end, scale
        self.arguments = Arguments(reader)

    def check(self) -> None:
        if self.output is None:
            self.arguments.require("input_ids", "inputs_embeds", *(["position_ids"] if self.point.causal else []))

    def hook(self) -> Iterator[Handle]:
        if self.output is not None:
            if "mask" in inspect.signature(self.output.forward).parameters:
                yield self.output.register_forward_pre_hook(self._narrow, with_kwargs=True)
            yield self.output.register_forward_hook(self._behind)
        else:
            yield self.reader.register_forward_pre_hook(self._instead_of_words, with_kwargs=True)
        if self.end is not None:
            yield self.end.register_forward_hook(self._cut)

    def widen(self, forward: Forward, named: dict[str, Any], decoder_alone: bool = False) -> dict[str, Any]:
        """The arguments of a forward with masks and positions widened for the prompt.

        Args:
            decoder_alone: whether the decoder of an encoder-decoder is called without the model around it.

        Raises:
            UnsupportedError: a mask that is not one number a position, token types of a decoder; or a cache, or an
                encoder's states, that the prompt is not in.
        """
        tree, encoded = forward.plan[self], None
        past, keys, seen = int(forward.tokens[self.point.stack].past), ("pixel_values",), "attention_mask"
        if decoder_alone:
            keys, seen, encoded = (), "encoder_attention_mask", named.get("encoder_hidden_states")
        elif self.words is not None:
            keys, encoded = ("input_ids", "inputs_embeds"), named.get("encoder_outputs")
            encoded = None if encoded is None else encoded[0]
        mask = None if self.words is None else named.get(seen)
        text = mask if encoded is not None else next((each for k in keys if (each := named.get(k)) is not None), mask)
        if text is None:
            return named  # over an encoder that has run, without a mask; or the other one of two towers
        if mask is not None and mask.dim() != 2:
            raise UnsupportedError("Prompt tuning needs an attention mask of one number a position (rows, positions)")
        if self.output is None and named.get("token_type_ids") is not None:
            raise UnsupportedError("Prompt tuning of a decoder cannot take token_type_ids; leave them out")
        weight = next((self.words or self.output or self.reader).parameters())
        empty = weight.new_zeros(text.shape[0], 0, self.point.out_features)
        state = self.run(tree, PromptState(empty, empty))
        first = torch.zeros(text.shape[0], 1, dtype=torch.long, device=text.device)
        if mask is not None:
            first = mask.long().argmax(1, keepdim=True)
        keep = any(getattr(unit, "keep", False) for name in names(tree) for unit in self.units.get(name, ()))
        prompt = Prompt(state.before.to(weight.dtype), state.after.to(weight.dtype), first, keep)
        if mask is None and self.output is not None and self.words is not None:
            mask = torch.ones(text.shape[:2], dtype=torch.long, device=text.device)
        named = dict(named)
        if mask is not None:
            of = (past + text.shape[1], "the cache's and the given positions") if past else None
            of = of if encoded is None else (encoded.shape[1], "the encoder's states")
            if of is not None and of[0] != mask.shape[1] + prompt.length:
                raise UnsupportedError(
                    f"{seen} has {mask.shape[1]} positions and {of[1]} are {of[0]}, which the {prompt.length} of the "
                    f"prompt '{tree}' are not among; let the adapted model make them with the same adapter, and give "
                    "the mask of the text alone"
                )
            named[seen] = prompt.see(mask)
        if encoded is not None:
            return named
        if self.output is None and named.get("position_ids") is not None:
            named["position_ids"] = prompt.move(named["position_ids"], past > 0)
        if not past:
            forward.taken[self] = prompt
        tokens = forward.tokens[self.point.stack]
        if tokens.prompt is not None:
            tokens.prompt += prompt.length
        return named

    def _prompt(self) -> Prompt | None:
        forward = current_forward()
        return None if forward is None else forward.taken.get(self)

    def _narrow(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The mask of the text alone, for embeddings that are multiplied with it (DeBERTa)."""
        prompt = self._prompt()
        if prompt is None or kwargs.get("mask") is None:
            return None
        return args, kwargs | {"mask": prompt.cut(kwargs["mask"])}

    def _behind(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        prompt = self._prompt()
        if prompt is None:
            return None
        return prompt.insert(output, prompt.before.to(output.dtype), prompt.after.to(output.dtype))

    def _instead_of_words(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        prompt = self._prompt()
        if prompt is None:
            return None
        named = self.arguments.named(args, kwargs)
        words = named.get("inputs_embeds")
        if words is None:
            assert self.words is not None  # a prompt that does not stand before words stands behind a module
            words = self.words(named["input_ids"]) * self.scale
        embeds = prompt.insert(words, prompt.before.to(words.dtype), prompt.after.to(words.dtype))
        return (), named | {"input_ids": None, "inputs_embeds": embeds}

    def _cut(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        prompt = self._prompt()
        if prompt is None or prompt.keep:
            return None
        if isinstance(output, tuple | Tensor):
            return with_first(output, prompt.cut(first_of(output)))
        output["last_hidden_state"] = prompt.cut(output["last_hidden_state"])
        return output


def _rows_of(whole: Tensor, source: Tensor) -> Tensor:
    """whole[row, source[row, i]] for (rows, positions, …) and (rows or 1, positions)."""
    source = source.expand(whole.shape[0], -1)
    if whole.dim() == 2:
        return whole.gather(1, source)
    return whole.gather(1, source.unsqueeze(-1).expand(-1, -1, whole.shape[-1]))
