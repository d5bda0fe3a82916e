"""Tagging: words as pieces, windows, labels, predictions of every word, bad rows, runs."""

from __future__ import annotations

import dataclasses
import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast, RobertaTokenizer

from adaptrain import AutoAdapterModel
from adaptrain.config.schema import ColumnsConfig, DataConfig, SplitsConfig, TaskConfig
from adaptrain.errors import DataError
from adaptrain.evaluation.asked import predict_rows
from adaptrain.evaluation.predict import predict
from adaptrain.evaluation.run import evaluate_folder
from adaptrain.tasks.cache import digest
from adaptrain.tasks.reading import Read
from adaptrain.tasks.rows import Rows, load_rows
from adaptrain.tasks.settle import settle_task
from adaptrain.tasks.shapes import SHAPES
from adaptrain.tasks.shapes.tags import TaggingReader
from adaptrain.tasks.sources import FolderSource
from adaptrain.tasks.words import Words, shared_out, windows
from adaptrain.training.loop import Plan, optimise
from adaptrain.training.precision import find_hardware
from adaptrain.training.run import train
from matrix import randomise
from tiny_run import BAD, GOOD, PLAIN, Recorder, run_config, save_base, save_splits, tokenizer_of, write_jsonl

TAGS = ("O", "B-UP", "I-UP", "B-DOWN", "I-DOWN")
TASK = TaskConfig(
    name="spans",
    type="tagging",
    path="somebody/spans",
    columns=ColumnsConfig(tokens="words", tags="tags"),
    labels=TAGS,
    metric="entity_f1",
    extra_metrics=("tag_accuracy",),
    splits=SplitsConfig(test="test"),
)
LONG = "room.cook.soup"
"""One word of five pieces: the base's tokenizer parts it at the points."""


def sentences(count: int, seed: int) -> list[dict[str, Any]]:
    """Words with runs of good and bad ones, which are what is to be found."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        words, tags = [], []
        for _ in range(chance.randint(1, 4)):
            plain = chance.choices((*PLAIN, LONG), k=chance.randint(1, 3))
            kind, name = chance.choice(((GOOD, "UP"), (BAD, "DOWN")))
            run = chance.choices(kind, k=chance.randint(1, 2))
            words += [*plain, *run]
            tags += [*("O" for _ in plain), f"B-{name}", *(f"I-{name}" for _ in run[1:])]
        rows.append({"words": words, "tags": tags})
    return rows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mirror")
    save_splits(folder / "spans", sentences, train=120, dev=20, test=30)
    return folder


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    made = AutoAdapterModel.from_pretrained(base)
    made.add_adapter("spans", "seq_bn")
    made.add_tagging_head("spans", num_labels=5)
    made.train_adapter("spans")
    for part in (made.get_adapter("spans"), made.heads):
        randomise(part, 0.3, 4)
    return made.eval()


def reader_of(base: Path, model: Any, **data: Any) -> TaggingReader:
    return TaggingReader.of(tokenizer_of(base), model.base_model, DataConfig(**data))


def rows_of(words: list[list[str]], tags: list[list[int]] | None = None) -> Rows:
    columns: dict[str, Any] = {"tokens": words} if tags is None else {"tokens": words, "tags": tags}
    return Rows("test", columns, "here", len(words), "")


# ---- words as pieces


def byte_level(kind: type | None, **more: Any) -> Any:
    """Letters, with the blank of the one before: GPT-2's and RoBERTa's own classes, or any such file."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, "<|endoftext|>": 5}
    known = special | {letter: index for index, letter in enumerate(letters, start=6)}
    if kind is not None:
        return kind(vocab=known, merges=[], **more)
    made = Tokenizer(models.BPE(vocab=known, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>", pad_token="<pad>")


def sentence_piece() -> Any:
    """LLaMA's way: a mark for the blank before each word, the first included; a token before the text."""
    known = {"<s>": 0, "<unk>": 1, "▁": 2, **{letter: index for index, letter in enumerate("abcdefghijkl", start=3)}}
    made = Tokenizer(models.BPE(vocab=known, merges=[], unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", unk_token="<unk>", pad_token="<unk>")


TOKENIZERS = {
    "GPT-2": lambda: byte_level(GPT2Tokenizer),
    "GPT-2 with a blank": lambda: byte_level(GPT2Tokenizer, add_prefix_space=True),
    "RoBERTa": lambda: byte_level(RobertaTokenizer),
    "byte level": lambda: byte_level(None),
    "LLaMA": sentence_piece,
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_words_have_the_pieces_that_they_have_in_running_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    words, sentence = Words.of(tokenizer), ["ab", "c", "defg", "b"]
    (pieces,) = words.pieces([sentence])
    running = tokenizer(" ".join(sentence))["input_ids"]
    assert words.framed("input_ids", pieces).tolist() == running
    places = words.places(pieces)
    assert len(places) == 5 and places[-1] + len(words.after["input_ids"]) == len(running)
    assert "".join(tokenizer.convert_ids_to_tokens(running[places[2] : places[3]])).lstrip("Ġ▁") == "defg"


def test_what_a_byte_level_tokenizer_makes_of_words_without_their_blanks_is_something_else() -> None:
    """The reason why they are given with them."""
    tokenizer = byte_level(None)
    apart = tokenizer(["ab", "cd"], is_split_into_words=True)["input_ids"]
    assert apart == tokenizer("abcd")["input_ids"] != tokenizer("ab cd")["input_ids"]


def test_a_word_of_which_nothing_is_left_is_an_unknown_one(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    words = Words.of(tokenizer)
    assert list(words.pieces([["the", "\u200b", "room", "zzz"], ["\u200b"]])) == [
        [[tokenizer.convert_tokens_to_ids("the")], [1], [tokenizer.convert_tokens_to_ids("room")], [1]],
        [[1]],
    ]


# ---- windows


@pytest.mark.parametrize(("room", "shared"), [(4, 0), (5, 2), (7, 3), (9, 4), (60, 30)])
def test_windows_hold_every_word_and_each_is_predicted_once(room: int, shared: int) -> None:
    chance = random.Random(room)
    for count in (1, 2, 7, 30):
        sizes = [chance.randint(1, 4) for _ in range(count)]
        spans = windows(sizes, room, shared)
        assert spans[0][0] == 0 and spans[-1][1] == count
        assert all(sum(sizes[first:behind]) <= room for first, behind in spans)
        for (first, behind), (start, end) in pairwise(spans):
            assert first < start <= behind < end  # none is left out, none is a part of another
            assert sum(sizes[start:behind]) <= shared
            assert sum(sizes[first : behind + 1]) > room  # as long as it can be
        own = shared_out(sizes, spans)
        assert sorted(word for words in own for word in words) == list(range(count))
        for number, words in enumerate(own):
            for word in words:
                around = [
                    min(sum(sizes[first:word]), sum(sizes[word + 1 : behind])) if first <= word < behind else -1
                    for first, behind in spans
                ]
                assert number == around.index(max(around))


# ---- encode and collate


def test_examples_by_hand(base: Path, model: Any) -> None:
    reader = reader_of(base, model)
    ids = reader.processor.convert_tokens_to_ids
    encoded = reader.encode(rows_of([["the", LONG, "kind"], ["day"]], [[0, 3, 1], [2]]))
    batch = reader.collate(encoded, [1, 0])
    whole = [2, *ids(["the", "room", "[UNK]", "cook", "[UNK]", "soup", "kind"]), 3]
    assert batch["input_ids"].tolist() == [[2, ids("day"), 3] + [0] * 6, whole]
    assert batch["labels"].tolist() == [[-100, 2, -100] + [-100] * 6, [-100, 0, 3, -100, -100, -100, -100, 1, -100]]
    assert batch["attention_mask"].sum(1).tolist() == [3, 9] and set(batch) == {
        "input_ids",
        "token_type_ids",
        "attention_mask",
        "labels",
    }
    assert (encoded.weights, encoded.origin, encoded.truncated, encoded.lengths) == ([3, 1], [0, 1], 0, [9, 3])
    unlabelled = reader.encode(rows_of([["the", "day"]]))
    assert "labels" not in reader.collate(unlabelled, [0]) and unlabelled.weight([0]) == 2


def test_a_long_sentence_is_read_in_windows_and_a_long_word_is_cut(base: Path, model: Any) -> None:
    reader = reader_of(base, model, max_length=8, stride=2)  # room for six
    words = ["the", "a", LONG, "kind", "day", "was", ".".join(["room"] * 5)]  # 1 1 5 1 1 1 9
    encoded = reader.encode(rows_of([["day"], words], [[4], [0, 1, 2, 3, 4, 0, 1]]))
    assert encoded.truncated == 1 and encoded.origin == [0, 1, 1, 1, 1]
    chosen = [each.tolist() for each in encoded.features["words"]]
    assert chosen == [[0], [0, 1], [2], [3, 4, 5], [6]]
    assert max(encoded.lengths) == 8 and encoded.weights == [1, 2, 1, 3, 1]
    labels = [value for row in range(1, 5) for value in encoded.features["labels"][row] if value >= 0]
    assert labels == [0, 1, 2, 3, 4, 0, 1]


def test_what_is_read_has_a_name_by_its_content(base: Path, model: Any) -> None:
    """So that the cells of a sweep share it."""
    rows = rows_of([["the", "day"]], [[0, 1]])
    names = {digest(reader_of(base, model, stride=stride), rows, True) for stride in (4, 4, 5)}
    assert len(names) == 2


# ---- answers and the loss


@pytest.mark.parametrize("data", [{}, {"max_length": 12, "stride": 3}])
def test_every_word_is_predicted_where_it_begins_whatever_the_batch(
    data: dict[str, Any], base: Path, model: Any, mirror: Path
) -> None:
    reader = reader_of(base, model, **data)
    rows = load_rows(TASK, "test", FolderSource(mirror / "spans"))
    read = Read(rows, reader.encode(rows))
    assert (max(read.encoded.lengths) > 12) == (not data) and (len(read.encoded) > len(rows)) == bool(data)
    hardware = find_hardware("cpu", "fp32", False)
    found = predict(model, reader, read, TASK, 7, hardware)
    for size in (1, 40):
        other = predict(model, reader, read, TASK, size, hardware)
        assert list(other.rows()) == list(found.rows()) and other.scores() == found.scores()
    said = SHAPES["tagging"].predictions(found)
    tokenizer, count = reader.processor, 0
    for row, words in enumerate(rows.columns["tokens"]):
        assert len(said[row]) == len(words)
        if data and len(tokenizer(" ".join(words))["input_ids"]) > 12:
            continue
        count += 1
        for word, tag in enumerate(said[row]):
            place = 1 + len(tokenizer.tokenize(" ".join(words[:word])))
            with torch.no_grad():
                logits = model(**tokenizer(" ".join(words), return_tensors="pt")).logits
            assert TAGS[int(logits[0, place].argmax())] == tag
    assert count > 5
    (first, *_), right = found.rows(), [TAGS[tag] for tag in rows.columns["tags"][0]]
    assert first == {"index": 0, "label": right, "prediction": said[0]}
    right = [[TAGS[tag] for tag in tags] for tags in rows.columns["tags"]]
    equal = [a == b for one, two in zip(said, right, strict=True) for a, b in zip(one, two, strict=True)]
    assert found.scores()["tag_accuracy"] == pytest.approx(np.mean(equal))


def test_the_loss_of_a_batch_is_the_mean_over_its_words(base: Path, model: Any, mirror: Path) -> None:
    reader = reader_of(base, model, max_length=12, stride=3)
    encoded = reader.encode(load_rows(TASK, "test", FolderSource(mirror / "spans")))
    losses = []
    with torch.no_grad():
        loss = float(model(**reader.collate(encoded, list(range(9)))).loss)
        for example in range(9):
            batch = reader.collate(encoded, [example])
            shares = model(**{**batch, "labels": None}).logits[0].double().softmax(-1)
            for place, label in enumerate(batch["labels"][0].tolist()):
                losses += [] if label < 0 else [-float(shares[place, label].log())]
    assert len(losses) == encoded.weight(range(9))
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)


class Keep(torch.optim.SGD):
    """Keeps the gradients instead of using them."""

    def step(self, closure: Any = None) -> None:
        self.kept = [p.grad.clone() for group in self.param_groups for p in group["params"] if p.grad is not None]


def test_accumulation_is_exact_although_rows_have_different_numbers_of_words(
    base: Path, model: Any, mirror: Path
) -> None:
    reader = reader_of(base, model, max_length=12, stride=3)
    encoded = reader.encode(load_rows(TASK, "test", FolderSource(mirror / "spans")))
    found = {}
    for name, rows, micro in (
        ("whole", encoded, None),
        ("pieces", encoded, 2),
        ("by rows", dataclasses.replace(encoded, weights=None), 2),
    ):
        config = dataclasses.replace(
            run_config(base, mirror, mirror).trainer, batch_size=7, micro_batch_size=micro, max_grad_norm=None
        )
        plan = Plan(rows, reader.collate.training(1, 0), dict, "loss", False, 1, 1)
        optimizer = Keep([parameter for _, parameter in model.trainable_parameters()], lr=0.0)
        loss = optimise(model, optimizer, plan, list(range(7)), config, find_hardware("cpu", "fp32", False))
        found[name] = torch.cat([loss.reshape(1), *(each.reshape(-1) for each in optimizer.kept)])
    most = float(found["whole"].abs().max())
    assert float((found["whole"] - found["pieces"]).abs().max()) < 1e-5 * most
    assert float((found["whole"] - found["by rows"]).abs().max()) > 1e-3 * most


# ---- rows


@pytest.mark.parametrize(
    ("row", "reason", "said"),
    [
        ({"words": [], "tags": []}, "no tokens", r"row 2: there are no tokens in column 'words'"),
        ({"words": None, "tags": ["O"]}, "no tokens", r"row 2: there are no tokens in column 'words'"),
        ({"words": ["a", " "], "tags": ["O", "O"]}, "empty token", r"row 2: token 2 in column 'words' is empty"),
        ({"words": ["a", None], "tags": ["O", "O"]}, "token that is no text", r"token 2 .* is None, which is no text"),
        (
            {"words": ["a", "day"], "tags": ["O"]},
            "not one for each token",
            r"there are 2 tokens in column 'words' and 1 tags in column 'tags'. Give one for each token",
        ),
        ({"words": ["a", "day"], "tags": None}, "not one for each token", "2 tokens in column 'words' and 0 tags"),
        (
            {"words": ["a", "day"], "tags": ["O", "B-UQ"]},
            "label outside the map",
            r"row 2, token 2 \('day'\): the label 'B-UQ' in column 'tags' is not in the label map .* 'B-UP'",
        ),
        (
            {"words": ["a", "day"], "tags": ["O", None]},
            "label outside the map",
            r"token 2 \('day'\): its value .* mis",
        ),
    ],
)
def test_bad_rows_are_refused_with_their_row_or_left_out_and_counted(
    row: dict[str, Any], reason: str, said: str, tmp_path: Path
) -> None:
    good = {"words": ["a", "day"], "tags": ["O", "B-UP"]}
    write_jsonl(tmp_path / "train.jsonl", [good, row, good])
    with pytest.raises(DataError, match=said) as caught:
        load_rows(TASK, "train", FolderSource(tmp_path))
    assert "split 'train'" in str(caught.value) and str(caught.value).endswith("data.bad_rows=skip leaves it out")
    rows = load_rows(TASK, "train", FolderSource(tmp_path), "skip")
    assert rows.bad == {reason: 1} and rows.columns["tags"] == [[0, 1], [0, 1]]


def test_columns_and_labels_are_inferred(tmp_path: Path) -> None:
    import datasets

    open_ = dataclasses.replace(TASK, columns=ColumnsConfig(), labels=(), path=str(tmp_path))
    write_jsonl(tmp_path / "train.jsonl", [{"id": "1", "tokens": ["a"], "ner_tags": ["O"]}, *_two()])
    settled = settle_task(open_, DataConfig())
    assert settled.task.columns == ColumnsConfig(tokens="tokens", tags="ner_tags")
    assert settled.task.labels == ("B-UP", "I-UP", "O")  # by the alphabet
    (tmp_path / "train.jsonl").unlink()
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "tags": datasets.List(datasets.ClassLabel(names=["O", "B-UP", "I-UP"])),
        }
    )
    table = datasets.Dataset.from_dict({"tokens": [["a", "b"]], "tags": [[2, 0]]}, features=features)
    table.to_parquet(tmp_path / "train.parquet")
    settled = settle_task(open_, DataConfig())
    assert settled.task.labels == ("O", "B-UP", "I-UP")  # as the data have it
    rows = load_rows(settled.task, "train", FolderSource(tmp_path))
    assert rows.columns["tags"] == [[2, 0]]
    other = dataclasses.replace(settled.task, labels=("I-UP", "B-UP", "O"))  # names decide, not their numbers
    assert load_rows(other, "train", FolderSource(tmp_path)).columns["tags"] == [[0, 2]]


def _two() -> list[dict[str, Any]]:
    return [{"id": "2", "tokens": ["b", "c"], "ner_tags": ["B-UP", "I-UP"]}]


# ---- runs


def test_a_run_learns_and_its_folder_evaluates_to_the_same(base: Path, mirror: Path, tmp_path: Path) -> None:
    config = run_config(base, mirror, tmp_path, task=TASK, epochs=10, learning_rate=1e-2, data={"max_length": 16})
    result = train(config, display=Recorder())
    row = result.row
    assert row["baseline"]["name"] == "commonest tag" and row["baseline"]["answer"] == "O"
    assert row["baseline"]["score"] == 0 and row["score"] == row["metrics"]["entity_f1"] > 0.2
    again = evaluate_folder(result.folder)
    assert again.reproduced and again.metrics == pytest.approx(row["metrics"])
    lines = [json.loads(line) for line in (result.folder / "predictions.jsonl").read_text().splitlines()]
    rows = load_rows(TASK, "test", FolderSource(mirror / "spans"))
    asked = [{"tokens": words} for words in (rows.columns["tokens"][0], ["day", " "])]
    told = predict_rows(result.folder, asked, skip_bad=True)
    assert told.bad == 1 and "token 2 in column 'tokens' is empty" in told.rows[1]["error"]
    assert told.rows[0]["prediction"] == lines[0]["prediction"]
    assert [len(line["prediction"]) for line in lines] == [len(words) for words in rows.columns["tokens"]]
    tags = [pair for line in lines for pair in zip(line["label"], line["prediction"], strict=True)]
    assert np.mean([a == b for a, b in tags]) == pytest.approx(row["metrics"]["tag_accuracy"])
    assert row["metrics"]["tag_accuracy"] > np.mean([a == "O" for a, _ in tags])
