"""Architectures: tables that name points in transformers' models; they know no method."""

from adaptrain.architectures import bart, bert, decoder, gpt2
from adaptrain.architectures.base import (
    Architecture,
    Attention,
    Embeddings,
    Projection,
    Stack,
    Sublayer,
    architecture_of,
    architectures,
    register_architecture,
)

__all__ = [
    "Architecture",
    "Attention",
    "Embeddings",
    "Projection",
    "Stack",
    "Sublayer",
    "architecture_of",
    "architectures",
    "bart",
    "bert",
    "decoder",
    "gpt2",
    "register_architecture",
]
