"""How many tokens a base model can tell apart by their place."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

Half = Literal["encoder", "decoder"]
"""Of an encoder-decoder."""

_TABLES = ("position_embeddings", "position_embedding", "embed_positions", "wpe")
"""What model families call the table of their positions. Tables of distances (T5, DeBERTa) have other names: distances
beyond them share the last row."""


def halves(model: Any) -> dict[str, Any]:
    """What reads or writes words in a base model: the encoder and the decoder, or the model itself under no name."""
    if not getattr(model.config, "is_encoder_decoder", False):
        return {"": model}
    return {"encoder": model.get_encoder(), "decoder": model.get_decoder()}


def positions_of(model: Any, half: Half | None = None) -> int | None:
    """Tokens that a model can tell apart by their place; None where there is no bound.

    Args:
        half: of an encoder-decoder; None: where both halves read the same tokens, so that the shorter one counts.
    """
    read = [part for name, part in halves(model).items() if not name or half in (None, name)]
    bounds = [bound for part in read if (bound := _bound(part)) is not None]
    return min(bounds, default=None)


def _bound(part: Any) -> int | None:
    if (table := table_of_positions(part)) is not None:
        return table
    config: Any = getattr(part.config, "text_config", part.config)  # of a model with two towers
    declared = getattr(config, "max_position_embeddings", None)
    return declared if isinstance(declared, int) and declared > 0 else None


def table_of_positions(part: nn.Module) -> int | None:
    """Positions that a model, or a half of one, looks up, so that one beyond the last is an error; None where it
    computes them, and the bound in its config says what it was trained for."""
    for name, module in part.named_modules():
        if name.rpartition(".")[2] in _TABLES and isinstance(module, nn.Embedding):
            # BART's rows begin behind an offset; RoBERTa and its kin count from the padding index + 1
            before = getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - before
    named = (buffer for name, buffer in part.named_buffers() if name.rpartition(".")[2] in _TABLES)
    return next((len(buffer) for buffer in named), None)  # GPT-J's sines
