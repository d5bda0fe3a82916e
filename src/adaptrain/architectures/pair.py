"""An encoder and a decoder of two families, in transformers' `EncoderDecoderModel`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from adaptrain.architectures.base import Architecture, Stack, architecture_of, register_architecture
from adaptrain.errors import UnsupportedError


def pair(config: Any) -> Architecture:
    """The tables of both, one after the other. The decoder lies in a model with a head, whose base it is.

    Raises:
        UnsupportedError: one of the two is an encoder-decoder itself, or has no table.
    """
    encoder = _only(config.encoder).below("encoder")
    if encoder.prompt is not None:  # the decoder attends to it
        encoder = replace(encoder, prompt=replace(encoder.prompt, end=None))
    decoder = _only(config.decoder).below("decoder.base_model")
    words = replace(decoder.embeddings, output=None)  # what is invertible stands in the encoder
    decoder = replace(
        decoder, name="decoder", causal=True, embeddings=words, prompt=None, mask="decoder_attention_mask"
    )
    return Architecture("encoder-decoder", (replace(encoder, name="encoder"), decoder), pooling="last")


def _only(config: Any) -> Stack:
    first, *others = architecture_of(config).stacks
    if others:
        raise UnsupportedError(f"A {config.model_type} has two stacks and cannot be one half of an encoder-decoder")
    return first


register_architecture(("encoder-decoder",), pair)
