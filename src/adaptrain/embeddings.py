"""Embeddings of another tokenizer's words: added, trained, saved and exchanged, while the original stays as it was."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from adaptrain.adapter import as_precise, check_name, key_of
from adaptrain.errors import AdapterNameError, CheckpointError, ConfigError, UnsupportedError, unknown
from adaptrain.files import read_json, read_tensors, write_json, write_tensors
from adaptrain.sites import Sites
from adaptrain.sites.words import ROLES, Vocabulary, Words

CONFIG, TENSORS, TOKENIZER = "embeddings_config.json", "embeddings.safetensors", "tokenizer"
FORMAT = "adaptrain-embeddings/1"
THEIRS = "embedding.pt"
"""AdapterHub's file: one pickled tensor."""

DEFAULT = "default"
"""The base model's own."""

STD = 0.02
"""Of new words' vectors."""


class WithEmbeddings(nn.Module):
    """The part of an adapted model that exchanges the words.

    Attributes:
        vocabularies: key of a name → its vocabulary.
    """

    base_model: PreTrainedModel
    sites: Sites
    vocabularies: nn.ModuleDict
    identity: dict[str, Any]

    def add_embeddings(
        self,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        reference_embedding: str | None = None,
        reference_tokenizer: PreTrainedTokenizerBase | None = None,
        embedding_dim: int | None = None,
    ) -> None:
        """Add embeddings for a tokenizer's words, and activate them.

        A word's vector is N(0, 0.02²), or a copy of what it has in the reference, where both tokenizers have it. An
        output embedding of its own gets rows in the same way, and a bias of zero where nothing is copied; where the
        model ties it to the lookup, it follows.

        Args:
            reference_embedding: the embeddings to copy from (`default` are the base model's), with
                `reference_tokenizer`, whose words they are.
            embedding_dim: the model's own; another one does not fit.

        Raises:
            AdapterNameError: the name is taken, or cannot be one.
            ConfigError: only one half of the reference, one that does not fit, or another `embedding_dim`.
            UnsupportedError: the model looks up no words, or its stacks have words of their own each.
        """
        check_name(name)
        self._free(name)
        words, size = self._words(), _size_of(tokenizer)
        if embedding_dim not in (None, words.weight.shape[1]):
            raise ConfigError(
                f"embedding_dim is {embedding_dim}, and this base model goes on with {words.weight.shape[1]} numbers a "
                "word; leave it out"
            )
        if (reference_embedding is None) != (reference_tokenizer is None):
            raise ConfigError("reference_embedding and reference_tokenizer are given together: words are found by both")
        made = self._random(name, size, _special(tokenizer))
        if reference_embedding is not None and reference_tokenizer is not None:
            _copy(made, tokenizer, self._tables(reference_embedding), reference_tokenizer, reference_embedding)
        self._keep(made)
        self.set_active_embeddings(name)

    @property
    def active_embeddings(self) -> str:
        """The name of the embeddings in force; `default` are the base model's own."""
        words = self.sites.words
        return DEFAULT if words is None or words.active is None else words.active.name

    def set_active_embeddings(self, name: str) -> None:
        """Look words up in these embeddings, and choose from them, in every forward from now on.

        `config.vocab_size` of the base model follows, since losses and `generate` read it.

        Raises:
            AdapterNameError: no such embeddings.
            UnsupportedError: an active or merged adapter adapts the base model's own words.
        """
        chosen = None if name == DEFAULT else self._get(name)
        if chosen is None and self.sites.words is None:
            return
        words = self._words()
        before = words.active
        words.activate(chosen)
        try:
            self.sites.accept(self.sites.active if self.sites.merged is None else self.sites.merged.name)
        except UnsupportedError:
            words.activate(before)
            raise
        self.sites.refresh()

    def delete_embeddings(self, name: str) -> None:
        """Remove embeddings.

        Raises:
            AdapterNameError: no such embeddings, the base model's own, or they are active.
        """
        if name == DEFAULT:
            raise AdapterNameError("The embeddings 'default' are the base model's own and stay")
        self._get(name)
        if name == self.active_embeddings:
            raise AdapterNameError(f"The embeddings '{name}' are active; set_active_embeddings('default') first")
        del self.vocabularies[key_of(name)]

    def save_embeddings(self, path: str | Path, name: str, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Write embeddings to a folder, and the tokenizer into `tokenizer/` beside them.

        Raises:
            AdapterNameError: no such embeddings.
            OutputError: the folder cannot be written.
        """
        folder, kept = Path(path), self._tables(name)
        tensors = {key: value.detach() for key, value in _named(kept).items()}
        write_tensors(folder / TENSORS, tensors)
        base = {**self.identity, "model_type": self.base_model.config.model_type}
        write_json(
            folder / CONFIG,
            {
                "format": FORMAT,
                "name": name,
                "words": kept.size,
                "size": kept.weight.shape[1],
                "special": kept.special,
                "base_model": base,
            },
        )
        if tokenizer is not None:
            tokenizer.save_pretrained(folder / TOKENIZER)

    def load_embeddings(self, path: str | Path, name: str | None = None) -> PreTrainedTokenizerBase | None:
        """Read embeddings from a folder, ours or AdapterHub's, and activate them.

        Args:
            name: the name they get; their own when None (AdapterHub's have none).

        Returns:
            The tokenizer that was saved with them, or None.

        Raises:
            CheckpointError: missing, unreadable, or not made for this model; the model is left as it was.
            AdapterNameError: the name is taken, or none is known.
        """
        folder = Path(path)
        theirs = not (folder / CONFIG).is_file() and (folder / THEIRS).is_file()
        own, special, tensors = (None, None, {"weight": _unpickled(folder / THEIRS)}) if theirs else self._read(folder)
        name = name or own
        if name is None:
            raise AdapterNameError(f"The embeddings in {folder} have no name of their own; give one: name='…'")
        check_name(name)
        self._free(name)
        made = self._fitting(folder, name, tensors)
        tokenizer = None
        if (folder / TOKENIZER).is_dir():
            try:
                tokenizer = AutoTokenizer.from_pretrained(folder / TOKENIZER, trust_remote_code=False)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"Cannot read {folder / TOKENIZER}: {str(error).splitlines()[0]}") from None
        made.special = _special(tokenizer) if special is None and tokenizer is not None else special
        self._keep(made)
        self.set_active_embeddings(name)
        return tokenizer

    def generation_options(self) -> dict[str, Any]:
        """Options of `generate` that name words: padding, begin, end and the decoder's start, in the active ids."""
        return {} if self.sites.words is None else self.sites.words.generation()

    # ---- inside

    def _words(self) -> Words:
        if self.sites.words is None:
            self.sites.words = Words(self.base_model, self.sites.architecture)
        return self.sites.words

    def _get(self, name: str) -> Vocabulary:
        if key_of(name) not in self.vocabularies:
            known = [DEFAULT, *(each.name for each in self.vocabularies.values())]
            raise AdapterNameError(unknown("set of embeddings", name, known, "The model has"))
        found = self.vocabularies[key_of(name)]
        assert isinstance(found, Vocabulary)
        return found

    def _free(self, name: str) -> None:
        if name == DEFAULT or key_of(name) in self.vocabularies:
            raise AdapterNameError(f"There are embeddings '{name}' already; choose another name")

    def _keep(self, made: Vocabulary) -> None:
        made.requires_grad_(False)
        made = as_precise(made, self.base_model.dtype)
        self.vocabularies[key_of(made.name)] = made.to(self.base_model.device).train(self.training)

    def _random(self, name: str, size: int, special: dict[str, int] | None = None) -> Vocabulary:
        words = self._words()
        output = bias = None
        final = None if words.final_bias is None else torch.zeros(size)
        if not words.tied:
            output = torch.randn(size, words.head.weight.shape[1]) * STD
        if words.head is not None and words.head.bias is not None:
            bias = torch.zeros(size)
        return Vocabulary(name, torch.randn(size, words.weight.shape[1]) * STD, output, bias, final, special)

    def _tables(self, name: str) -> Vocabulary:
        """The tables of a name, the base model's own among them, as float32 copies where they are its."""
        if name != DEFAULT:
            return self._get(name)
        words = self._words()
        output = None if words.tied else words.head.weight.detach().float()
        bias = None if words.head is None or words.head.bias is None else words.head.bias.detach().float()
        final = None if words.final_bias is None else words.final_bias.detach().float()
        return Vocabulary(DEFAULT, words.weight.detach().float(), output, bias, final, words.special())

    def _read(self, folder: Path) -> tuple[str, dict[str, int] | None, dict[str, Tensor]]:
        values = read_json(folder / CONFIG)
        if values.get("format") != FORMAT:
            raise CheckpointError(f"{folder / CONFIG} has the format {values.get('format')!r}; this reads {FORMAT}")
        made_for, kind = values.get("base_model", {}).get("model_type"), self.base_model.config.model_type
        if made_for != kind:
            raise CheckpointError(f"{folder} was made for a {made_for}, and this model is a {kind}")
        special = values.get("special")
        if special is not None and not (
            isinstance(special, dict)
            and special.keys() <= set(ROLES)
            and all(type(number) is int for number in special.values())
        ):
            raise CheckpointError(f"{folder / CONFIG} has special {special!r}, which is no id for each of {ROLES}")
        return str(values.get("name")), special, read_tensors(folder / TENSORS)

    def _fitting(self, folder: Path, name: str, tensors: dict[str, Tensor]) -> Vocabulary:
        words = self._words()
        made = self._random(name, len(tensors.get("weight", ())))
        due = _named(made)
        if (folder / THEIRS).is_file() and set(tensors) == {"weight"} and not words.tied:
            raise CheckpointError(f"{folder} has no output embedding, and this model has one of its own")
        problems = [f"'{key}' is missing" for key in due if key not in tensors and not _fills(key, folder)]
        problems += [f"'{key}' has no place" for key in tensors if key not in due]
        problems += [
            f"'{key}' is {tuple(tensors[key].shape)}, this model needs {tuple(due[key].shape)}"
            for key in due
            if key in tensors and tensors[key].shape != due[key].shape
        ]
        if problems:
            raise CheckpointError(f"The embeddings in {folder} do not fit this model: {'; '.join(problems)}")
        with torch.no_grad():
            for key, tensor in tensors.items():
                due[key].copy_(tensor)
        return made


def _named(tables: Vocabulary) -> dict[str, Tensor]:
    keys = ("weight", "output", "bias", "final_bias")
    return {key: value for key in keys if (value := getattr(tables, key)) is not None}


def _fills(key: str, folder: Path) -> bool:
    """Whether zeros stand for what AdapterHub does not write."""
    return key in ("bias", "final_bias") and (folder / THEIRS).is_file()


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    found = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ROLES}
    return {role: number for role, number in found.items() if isinstance(number, int)}


def _size_of(tokenizer: PreTrainedTokenizerBase) -> int:
    return max([len(tokenizer) - 1, *tokenizer.get_vocab().values()]) + 1


def _copy(
    made: Vocabulary,
    tokenizer: PreTrainedTokenizerBase,
    reference: Vocabulary,
    reference_tokenizer: PreTrainedTokenizerBase,
    name: str,
) -> None:
    ours, theirs = tokenizer.get_vocab(), reference_tokenizer.get_vocab()
    common = sorted(ours.keys() & theirs.keys())
    here, there = (torch.tensor([ids[word] for word in common], dtype=torch.long) for ids in (ours, theirs))
    if common and int(there.max()) >= reference.size:
        raise ConfigError(
            f"reference_tokenizer has ids up to {int(there.max())}, and the embeddings '{name}' have {reference.size} "
            "words; give the tokenizer that they were made for"
        )
    found = _named(reference)
    with torch.no_grad():
        for key, table in _named(made).items():
            table[here] = found[key].to(table.device, table.dtype)[there]


def _unpickled(file: Path) -> Tensor:
    try:
        tensor = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"Cannot read {file} with the weights-only loader: {reason}") from None
    if not isinstance(tensor, Tensor) or tensor.dim() != 2 or not math.prod(tensor.shape):
        raise CheckpointError(f"{file} is no table of words")
    return tensor.detach().float()
