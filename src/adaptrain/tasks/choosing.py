"""Several texts of which one is right, each read by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from adaptrain.config.schema import DataConfig
from adaptrain.tasks.assembled import assembled
from adaptrain.tasks.encoded import Collator, Encoded, Feature, Ragged, text_keys
from adaptrain.tasks.reading import Reader
from adaptrain.tasks.text import longest_input, token_keys

if TYPE_CHECKING:
    import torch

    from adaptrain.tasks.rows import Rows


@dataclass(frozen=True)
class ChoiceReader(Reader):
    """Each choice with what it is about. Of a row with n choices n texts are read, one after the other:

        (context, question + blank + choice)    where there are both
        (context, choice) or (question, choice) where there is one of them
        choice                                  alone

    Of what is too long the first text loses its end.
    """

    @staticmethod
    def of(tokenizer: Any, model: nn.Module, data: DataConfig, label_dtype: torch.dtype) -> ChoiceReader:
        """For a base model.

        Raises:
            ConfigError: `data.max_length` leaves no room for text.
        """
        collate = Collator(text_keys(token_keys(tokenizer, model), label_dtype))
        return ChoiceReader(tokenizer, collate, longest_input(tokenizer, model, data.max_length, pair=True))

    def encode(self, rows: Rows, training: bool = False) -> Encoded:
        """
        Raises:
            DataError: a text without a token.
        """
        choices = rows.columns["choices"]
        count, names = len(choices[0]), [name for name in self.collate.keys if name != "labels"]
        found: dict[str, list[np.ndarray]] = {name: [] for name in names}
        cut = []
        texts = choice_texts(rows.columns)
        for made in assembled(self.processor, texts, names, f"{rows.place}, split '{rows.split}'"):
            for name, values in made.taken(made.shortened(self.max_length)).items():
                found[name].append(values)
            cut.append(len(made) > self.max_length)
        features: dict[str, Feature] = {name: Ragged.of(values) for name, values in found.items()}
        lengths = np.array([len(ids) for ids in found["input_ids"]]).reshape(-1, count).sum(1).tolist()
        truncated = int(np.array(cut).reshape(-1, count).any(1).sum())
        return Encoded(features | {"labels": np.asarray(rows.labels)}, lengths, truncated, texts=count)


def choice_texts(columns: Mapping[str, Sequence[Any]]) -> tuple[list[str], ...]:
    """What is read of each choice of each row: a column of texts, or two that are read together."""
    choices = columns["choices"]
    contexts, questions = columns.get("context"), columns.get("question")
    flat = [choice for each in choices for choice in each]
    about = contexts if contexts is not None else questions
    if about is None:
        return (flat,)
    first = [text for text, each in zip(about, choices, strict=True) for _ in each]
    if contexts is None or questions is None:
        return first, flat
    return first, [f"{text} {choice}" for text, each in zip(questions, choices, strict=True) for choice in each]
