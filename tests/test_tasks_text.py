from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoTokenizer,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from adaptrain.config.schema import DataConfig, TaskConfig
from adaptrain.errors import ConfigError
from adaptrain.tasks.reading import Reader
from adaptrain.tasks.rows import Rows
from adaptrain.tasks.shapes import SHAPES
from adaptrain.tasks.text import longest_input, prepare_tokenizer
from tiny_run import MOOD, NUMBER, save_base

SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 8, "vocab_size": 50}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("text") / "base")


@pytest.fixture
def tokenizer(base: Path) -> Any:
    made = AutoTokenizer.from_pretrained(base)
    assert made.backend_tokenizer.padding is not None and made.backend_tokenizer.truncation is not None
    prepare_tokenizer(made)
    return made


def rows(texts: list[str], pairs: list[str] | None = None, labels: list[Any] | None = None) -> Rows:
    columns = {"text": texts, "label": labels or [0] * len(texts)} | ({} if pairs is None else {"text_pair": pairs})
    return Rows("train", columns, "here", len(texts), "0")


def text_reader(tokenizer: Any, model: Any, task: TaskConfig, data: DataConfig) -> Reader:
    return SHAPES[task.type].reader(tokenizer, model, task, data)


def test_what_is_baked_into_the_file_is_undone(tokenizer: Any) -> None:
    assert tokenizer.backend_tokenizer.padding is None and tokenizer.backend_tokenizer.truncation is None
    assert len(tokenizer("a day")["input_ids"]) == 4
    assert len(tokenizer("day " * 60)["input_ids"]) == 62


def test_batches_are_padded_to_their_own_longest_row(base: Path, tokenizer: Any) -> None:
    model = BertModel.from_pretrained(base)
    reader = text_reader(tokenizer, model, MOOD, DataConfig())
    encoded = reader.encode(rows(["the warm day", "a day", "the very very cold day"], labels=[1, 0, 1]))
    assert encoded.lengths == [5, 4, 7] and encoded.truncated == 0
    batch = reader.collate(encoded, [1, 0])
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch["input_ids"][0].tolist() == [2, *tokenizer("a day", add_special_tokens=False)["input_ids"], 3, 0]
    assert batch["labels"].tolist() == [0, 1] and batch["labels"].dtype == torch.long
    alone = reader.collate(encoded, [1])["input_ids"]
    assert alone.shape == (1, 4)


def test_pairs_have_segments_and_regressions_have_numbers(base: Path, tokenizer: Any) -> None:
    reader = text_reader(tokenizer, BertModel.from_pretrained(base), NUMBER, DataConfig())
    batch = reader.collate(reader.encode(rows(["a day"], ["the room"], [2.5])), [0])
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1]]
    assert batch["labels"].tolist() == [2.5] and batch["labels"].dtype == torch.float32


def test_segments_go_only_to_models_that_take_them(tokenizer: Any) -> None:
    model = DistilBertModel(DistilBertConfig(dim=8, n_heads=2, n_layers=1, hidden_dim=8, vocab_size=50))
    reader = text_reader(tokenizer, model, MOOD, DataConfig())
    batch = reader.collate(reader.encode(rows(["a day"])), [0])
    del batch["labels"]
    assert "token_type_ids" not in batch and model(**batch).last_hidden_state.shape == (1, 4, 8)


def test_long_rows_are_cut_and_counted(base: Path, tokenizer: Any) -> None:
    model = BertModel.from_pretrained(base)
    reader = text_reader(tokenizer, model, MOOD, DataConfig(max_length=6))
    encoded = reader.encode(rows(["day " * 4, "day " * 5, "day " * 60]))
    assert encoded.lengths == [6, 6, 6] and encoded.truncated == 2
    assert [ids[-1] for ids in encoded.features["input_ids"]] == [3, 3, 3]
    pairs = text_reader(tokenizer, model, NUMBER, DataConfig(max_length=9))
    found = pairs.encode(rows(["day " * 9], ["room room"]))
    assert found.truncated == 1
    words = found.features["input_ids"][0].tolist()
    assert words.count(tokenizer.convert_tokens_to_ids("room")) == 2  # the longer text is cut first


def test_the_models_positions_bound_the_length(base: Path, tokenizer: Any) -> None:
    assert longest_input(tokenizer, BertModel.from_pretrained(base), 500) == 40
    assert longest_input(tokenizer, BertModel.from_pretrained(base), 7) == 7
    # RoBERTa's and MPNet's first position is the padding index + 1
    for model in (
        RobertaModel(RobertaConfig(**SMALL, max_position_embeddings=34, pad_token_id=1)),
        MPNetModel(MPNetConfig(**SMALL, max_position_embeddings=34)),
    ):
        assert longest_input(tokenizer, model, 500) == 32
        ids = torch.full((1, 32), 5)
        assert model(input_ids=ids).last_hidden_state.shape == (1, 32, 8)
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, 33), 5))
    tokenizer.model_max_length = 12
    assert longest_input(tokenizer, BertModel.from_pretrained(base), 500) == 12


def test_a_length_without_room_for_text_is_refused(base: Path, tokenizer: Any) -> None:
    model = BertModel.from_pretrained(base)
    assert longest_input(tokenizer, model, 3) == 3 and longest_input(tokenizer, model, 5, pair=True) == 5
    with pytest.raises(ConfigError, match=r"data.max_length=2 .* adds 2 tokens"):
        longest_input(tokenizer, model, 2)
    with pytest.raises(ConfigError, match=r"data.max_length=4 .* adds 3 tokens of its own to every pair"):
        longest_input(tokenizer, model, 4, pair=True)


def gpt2() -> tuple[Any, GPT2Model]:
    """A tokenizer without a padding token and without tokens of its own, that would rather pad on the left."""
    words = Tokenizer(WordLevel({"<end>": 0, "day": 1, "night": 2}, unk_token="<end>"))
    words.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    made = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", unk_token="<end>", padding_side="left")
    return made, GPT2Model(GPT2Config(vocab_size=3, n_embd=8, n_layer=1, n_head=2, n_positions=16))


def test_decoders_pad_with_their_end_token_on_the_right() -> None:
    tokenizer, model = gpt2()
    assert tokenizer.pad_token is None
    prepare_tokenizer(tokenizer)
    assert tokenizer.pad_token_id == 0
    reader = text_reader(tokenizer, model, MOOD, DataConfig())
    assert reader.max_length == 16
    encoded = reader.encode(rows(["day night day", "night", ""]))
    batch = reader.collate(encoded, [0, 1, 2])
    assert batch["input_ids"].tolist() == [[1, 2, 1], [2, 0, 0], [0, 0, 0]]
    # an empty text has one token to look at, or a head would look at none
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 0, 0]]


def test_padding_changes_no_output(base: Path, tokenizer: Any) -> None:
    model = BertModel.from_pretrained(base).eval()
    reader = text_reader(tokenizer, model, MOOD, DataConfig())
    encoded = reader.encode(rows(["a day", "the very very cold day and our host"]))

    def hidden(indices: list[int]) -> torch.Tensor:
        batch = reader.collate(encoded, indices)
        del batch["labels"]
        with torch.no_grad():
            return model(**batch).last_hidden_state

    assert torch.allclose(hidden([0]), hidden([0, 1])[:1, :4], atol=1e-6)


def test_rows_are_kept_small(base: Path, tokenizer: Any) -> None:
    reader = text_reader(tokenizer, BertModel.from_pretrained(base), MOOD, DataConfig())
    assert isinstance(reader.encode(rows(["a day"])).features["input_ids"][0], np.ndarray)
