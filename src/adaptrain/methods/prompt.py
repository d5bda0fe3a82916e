"""Prompt tuning: trained vectors that the model reads besides the words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import nn

from adaptrain.methods.base import Build, MethodConfig, PointLike, Unit, register_method, register_preset
from adaptrain.state import PromptState


@register_method
@dataclass(frozen=True, kw_only=True)
class PromptTuningConfig(MethodConfig):
    """Prompt tuning.

        E' = [P ; E]     or, with combine "prefix_after_bos",     [E_0 ; P ; E_1 …]

    with P (p, e) trained and E (positions, e) the embeddings. P ~ U(-scale, scale), or the embeddings of a text.

    Source: Lester et al. 2021, *The Power of Scale for Parameter-Efficient Prompt Tuning*, section 2.

    Attributes:
        prompt_length: p.
        prompt_init: `random_uniform` or `from_string`.
        prompt_init_text: whose words P starts from, repeated or cut to p.
        random_uniform_scale: of the uniform start.
        combine: before the text, or behind its first token.
        as_adapterhub: the sequence output keeps the prompt's positions, as AdapterHub's does; encoders only.
    """

    method: ClassVar[str] = "prompt_tuning"

    prompt_length: int = 10
    prompt_init: Literal["random_uniform", "from_string"] = "random_uniform"
    prompt_init_text: str | None = None
    random_uniform_scale: float = 0.5
    combine: Literal["prefix", "prefix_after_bos"] = "prefix"
    as_adapterhub: bool = False

    def problems(self) -> Iterator[str]:
        if self.prompt_length < 1:
            yield f"prompt_length is {self.prompt_length}; it must be at least 1"
        if self.random_uniform_scale <= 0:
            yield f"random_uniform_scale is {self.random_uniform_scale}; it must be positive"
        if self.prompt_init == "from_string" and not (self.prompt_init_text or "").strip():
            yield "prompt_init_text is missing; prompt_init 'from_string' needs it"
        if self.prompt_init != "from_string" and self.prompt_init_text is not None:
            yield "prompt_init_text is for prompt_init 'from_string'; leave it out"

    def covers(self, point: PointLike) -> bool:
        return point.kind == "prompt" and (point.stack == "encoder" or not point.encoder_decoder)

    def missing(self, points: Sequence[PointLike]) -> Iterator[str]:
        if not any(self.covers(point) for point in points):
            yield "there is no place where a prompt could come in"

    def build(self, points: Sequence[PointLike]) -> Build:
        if self.as_adapterhub and any(point.stack == "decoder" for point in points):
            raise self.error("as_adapterhub is for encoders; AdapterHub has no prompt tuning of decoders")
        return Build({point.name: Prompt(self, point.out_features) for point in points})

    def start(self, build: Build, points: Sequence[PointLike]) -> None:
        if self.prompt_init_text is None:
            return
        for point in points:
            words = point.embed(self.prompt_init_text)
            unit = build.units[point.name]
            assert isinstance(unit, Prompt)
            with torch.no_grad():
                unit.prompt.copy_(words[torch.arange(self.prompt_length) % len(words)])


class Prompt(Unit):
    """P before the text or behind its first token; see `PromptTuningConfig`."""

    def __init__(self, config: PromptTuningConfig, size: int) -> None:
        super().__init__()
        self.after = config.combine == "prefix_after_bos"
        self.keep = config.as_adapterhub
        self.extends = (0, config.prompt_length) if self.after else (config.prompt_length, 0)
        scale = config.random_uniform_scale
        self.prompt = nn.Parameter(torch.empty(config.prompt_length, size).uniform_(-scale, scale))

    def forward(self, state: PromptState) -> PromptState:
        prompt = self.prompt.to(state.before.dtype).expand(state.before.shape[0], -1, -1)  # (rows, p, e)
        if self.after:
            return replace(state, after=torch.cat([prompt, state.after], 1))
        return replace(state, before=torch.cat([prompt, state.before], 1))


register_preset("prompt_tuning", PromptTuningConfig)
