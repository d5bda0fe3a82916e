"""Architectures: tables that name points in transformers' models; they know no method."""

from adaptrain.architectures import bart, bert, compact, decoder, gpt2, pair, sound, t5, towers, vision, written
from adaptrain.architectures.base import (
    Architecture,
    Attention,
    Embeddings,
    Projection,
    Prompt,
    Stack,
    Sublayer,
    architecture_of,
    architectures,
    register_architecture,
)
from adaptrain.architectures.written import read_architecture

__all__ = [
    "Architecture",
    "Attention",
    "Embeddings",
    "Projection",
    "Prompt",
    "Stack",
    "Sublayer",
    "architecture_of",
    "architectures",
    "bart",
    "bert",
    "compact",
    "decoder",
    "gpt2",
    "pair",
    "read_architecture",
    "register_architecture",
    "sound",
    "t5",
    "towers",
    "vision",
    "written",
]
