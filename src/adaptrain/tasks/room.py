"""Whether rows that have been read fit a base model: its tables of words, of token types and of positions. An index
beyond a table ends a forward with an error that names no row, and on a GPU the whole process; so rows are compared with
the tables before a model reads any of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn

from adaptrain.composition import Composition, Stack
from adaptrain.errors import DataError, ModelError, listed
from adaptrain.methods.prompt import Prompt
from adaptrain.tasks.cache import TokenCache
from adaptrain.tasks.encoded import Encoded, Ragged
from adaptrain.tasks.positions import halves, table_of_positions
from adaptrain.tasks.reading import Read, Reader
from adaptrain.tasks.rows import Rows
from adaptrain.tasks.writing import WritingReader

_SHOWN = ("text", "question", "context", "tokens", "source", "choices")
"""Roles by whose value a row is named, the first that it has."""


def read_rows(reader: Reader, rows: Rows, model: Any, cache: TokenCache | None = None, training: bool = False) -> Read:
    """Rows as numbers that the model has room for.

    Args:
        model: adapted, with the adapters active that it runs under.
        cache: of rows that were tokenised before.
        training: as in `Reader.encode`.

    Raises:
        ConfigError: the prompt of a task leaves no room for a source.
        DataError: a row that cannot be read, or that is too large for a table.
        ModelError: the tokenizer pads with a word that the base model does not have.
    """
    encoded = (cache or TokenCache(None)).encode(reader, rows, training)
    read = Read(rows, encoded)
    for half, part, names in _reads(reader, encoded, model.base_model):
        _check_words(reader, read, model, half, part, names)
        _check_positions(reader, read, model, half, part, names)
    _check_types(reader, read, model.base_model)
    return read


def unread_words(reader: Reader, model: Any) -> str | None:
    """A sentence on the words of a tokenizer that the base model has no embedding for; None where there are none. A
    checkpoint may be sound all the same: Gemma 3's tokenizer has a token for images, and the models of texts do not."""
    tokenizer, count = _tokenizer(reader), _words_of(model, model.base_model)
    if tokenizer is None or count is None or len(tokenizer) <= count:
        return None
    beyond = sorted((index, word) for word, index in tokenizer.get_vocab().items() if index >= count)
    if not beyond:
        return None
    shown = listed([word for _, word in beyond[:3]]) + (" …" if len(beyond) > 3 else "")
    return (
        f"the tokenizer has words that the base model has no embedding for ({len(beyond)}: {shown}); rows with such a "
        "word are refused"
    )


def _reads(reader: Reader, encoded: Encoded, base: Any) -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    """What reads words in a model, and the names in a batch of those that it reads."""
    for half, part in halves(base).items():
        names = reader.decoded if half == "decoder" and reader.decoded else ("input_ids",)
        here = tuple(name for name in names if name in encoded.features)
        if here:
            yield half, part, here


def _check_words(reader: Reader, read: Read, model: Any, half: str, part: Any, names: Sequence[str]) -> None:
    count = _words_of(model, part)
    if count is None:
        return
    where = f"the embeddings of its {half}" if half else "its embeddings"
    cure = (
        "Use the tokenizer that was saved with the base model, or give the base model embeddings for new words: "
        "model.resize_token_embeddings({}), then save_pretrained"
    )
    for name in names:
        key = reader.collate.keys.get(name)
        if key is not None and key.padding is not None and key.padding >= count:
            raise ModelError(
                f"The tokenizer pads with {_word(reader, int(key.padding))}, and the base model cannot read it: "
                f"{where} are {count:,} (ids 0 to {count - 1}). {cure.format(int(key.padding) + 1)}"
            )
        found = _first_beyond(read.encoded, name, count)
        if found is not None:
            example, rows, highest = found
            values = np.asarray(read.encoded.features[name][example])
            word = _word(reader, int(values[values >= count][0]))
            raise DataError(
                f"{_place(read)}: {rows} of {len(read.rows)} rows have words that the base model cannot read, the "
                f"first is {_shown(read, example)} with {word}, and {where} are {count:,} (ids 0 to {count - 1}). "
                f"{cure.format(highest + 1)}"
            )


def _check_types(reader: Reader, read: Read, base: Any) -> None:
    table = next(
        (each for name, each in base.named_modules() if name.rpartition(".")[2] == "token_type_embeddings"), None
    )
    if not isinstance(table, nn.Embedding) or "token_type_ids" not in read.encoded.features:
        return
    found = _first_beyond(read.encoded, "token_type_ids", table.num_embeddings)
    if found is not None:
        raise DataError(
            f"{_place(read)}: {found[1]} of {len(read.rows)} rows have tokens of type {found[2]}, the first is "
            f"{_shown(read, found[0])}, and the base model knows {table.num_embeddings} (types 0 to "
            f"{table.num_embeddings - 1}). Use the tokenizer that was saved with the base model, or take "
            "token_type_ids out of model_input_names in its tokenizer_config.json"
        )


def _check_positions(reader: Reader, read: Read, model: Any, half: str, part: Any, names: Sequence[str]) -> None:
    positions = table_of_positions(part)
    lengths = [len(ids) for name in names for ids in read.encoded.features[name]]
    if positions is None or not lengths:
        return
    prompt = 0 if half == "decoder" else _prompt_length(model)
    more = 0
    if isinstance(reader, WritingReader) and not half and "labels" not in read.encoded.features:
        more = reader.generation.max_new_tokens
    if max(lengths) + prompt + more <= positions:
        return
    beside = [f"a prompt of {prompt}"] * bool(prompt) + [f"{more} that are written"] * bool(more)
    left = positions - prompt - more
    cure = f"Set data.max_length={left} or less" if left > 0 else "Set a smaller prompt_length"
    raise DataError(
        f"{_place(read)}: the longest row has {max(lengths)} tokens{''.join(f', beside {each}' for each in beside)}, "
        f"and the base model{f' ({half})' if half else ''} has {positions} positions. {cure}"
    )


def _first_beyond(encoded: Encoded, name: str, count: int) -> tuple[int, int, int] | None:
    """The first example with a number that a table of `count` rows does not have, how many rows have one, and the
    highest; None where all are inside."""
    feature = encoded.features[name]
    values = feature.values if isinstance(feature, Ragged) else np.concatenate([np.ravel(each) for each in feature])
    if not len(values) or values.max() < count:
        return None
    texts = [text for text, ids in enumerate(feature) if np.max(ids, initial=0) >= count]
    examples = [text // encoded.texts for text in texts]
    origin = examples if encoded.origin is None else [encoded.origin[example] for example in examples]
    return texts[0], len(set(origin)), int(values.max())


def _words_of(model: Any, part: Any) -> int | None:
    """Words that are looked up, None where that is unknown; those of other embeddings where such are active."""
    words = model.sites.words
    if words is not None and words.active is not None:
        return words.active.size
    table = part.get_input_embeddings()
    return table.num_embeddings if isinstance(table, nn.Embedding) else None


def _prompt_length(model: Any) -> int:
    """Positions that prompts take from the text: none where a prompt comes in behind the positions."""
    if all(stack.prompt is None or stack.prompt.behind is not None for stack in model.architecture.stacks):
        return 0

    def length(tree: Composition | None) -> int:
        if tree is None:
            return 0
        if isinstance(tree, str):
            units = model.get_adapter(tree).modules()
            return max((sum(unit.extends) for unit in units if isinstance(unit, Prompt)), default=0)
        lengths = [length(child) for child in tree.children]
        return sum(lengths) if isinstance(tree, Stack) else max(lengths)

    return length(getattr(model, "tree", model.active_adapters))


def _place(read: Read) -> str:
    return f"{read.rows.place}, split '{read.rows.split}'" if read.rows.split else read.rows.place


def _shown(read: Read, text: int) -> str:
    example = text // read.encoded.texts
    row = example if read.encoded.origin is None else read.encoded.origin[example]
    role = next((role for role in _SHOWN if role in read.rows.columns), None)
    return f"row {row + 1}" if role is None else f"{read.rows.columns[role][row]!r:.60}"


def _tokenizer(reader: Reader) -> Any:
    found = getattr(reader, "tokenizer", reader.processor)
    return found if hasattr(found, "convert_ids_to_tokens") else None


def _word(reader: Reader, index: int) -> str:
    tokenizer = _tokenizer(reader)
    return f"id {index}" if tokenizer is None else f"{tokenizer.convert_ids_to_tokens(index)!r} (id {index})"
