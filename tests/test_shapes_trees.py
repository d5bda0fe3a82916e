"""Dependency parsing: where words begin, labels of a sentence that is cut, predictions, bad rows, runs."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaptrain import AutoAdapterModel
from adaptrain.config.schema import ColumnsConfig, DataConfig, HeadConfig, SplitsConfig, TaskConfig
from adaptrain.errors import ConfigError, DataError
from adaptrain.evaluation.asked import predict_rows
from adaptrain.evaluation.predict import predict
from adaptrain.evaluation.run import evaluate_folder
from adaptrain.tasks.reading import Read
from adaptrain.tasks.rows import Rows, load_rows
from adaptrain.tasks.settle import settle_task
from adaptrain.tasks.shapes import SHAPES
from adaptrain.tasks.shapes.trees import TreeReader
from adaptrain.tasks.sources import FolderSource
from adaptrain.training.loop import Plan, optimise
from adaptrain.training.precision import find_hardware
from adaptrain.training.run import train
from matrix import randomise
from tiny_run import BAD, GOOD, PLAIN, Recorder, run_config, save_base, save_splits, tokenizer_of, write_jsonl

RELATIONS = ("root", "mod", "obj:far")
TASK = TaskConfig(
    name="trees",
    type="dependency_parsing",
    path="somebody/trees",
    columns=ColumnsConfig(tokens="words", heads="head", relations="deprel"),
    labels=RELATIONS,
    metric="las",
    extra_metrics=("uas", "las_subtypes"),
    splits=SplitsConfig(test="test"),
)
LONG = "room.cook"
"""One word of three pieces."""


def sentences(count: int, seed: int) -> list[dict[str, Any]]:
    """The one good word is the root; bad ones are its objects, all others modify it. Heads are texts, as in files."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        words = chance.choices((*PLAIN, LONG, *BAD), k=chance.randint(1, 7))
        words.insert(root := chance.randrange(len(words) + 1), chance.choice(GOOD))
        heads = [str(root + 1)] * len(words)
        heads[root] = "0"
        kinds = ["obj:far" if word in BAD else "root" if word in GOOD else "mod" for word in words]
        rows.append({"words": words, "head": heads, "deprel": kinds})
    return rows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mirror")
    save_splits(folder / "trees", sentences, train=120, dev=20, test=30)
    return folder


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    made = AutoAdapterModel.from_pretrained(base)
    made.add_adapter("trees", "seq_bn")
    made.add_dependency_parsing_head("trees", num_labels=3)
    made.train_adapter("trees")
    for part in (made.get_adapter("trees"), made.heads):
        randomise(part, 0.3, 4)
    return made.eval()


def reader_of(base: Path, model: Any, **data: Any) -> TreeReader:
    tokenizer = tokenizer_of(base)
    return TreeReader.of(tokenizer, model.base_model, DataConfig(**data))


def rows_of(words: list[list[str]], heads: list[list[int]] | None = None, kinds: Any = None) -> Rows:
    columns: dict[str, Any] = {"tokens": words}
    if heads is not None:
        columns |= {"heads": heads, "relations": kinds}
    return Rows("test", columns, "here", len(words), "")


# ---- encode and collate


def test_examples_by_hand(base: Path, model: Any) -> None:
    reader = reader_of(base, model)
    encoded = reader.encode(rows_of([["the", LONG, "kind"], ["day"]], [[3, 3, 0], [0]], [[1, 1, 0], [0]]))
    batch = reader.collate(encoded, [1, 0])
    ids = reader.processor.convert_tokens_to_ids(["the", "room", "[UNK]", "cook", "kind"])
    assert batch["input_ids"].tolist()[1] == [2, *ids, 3]
    assert batch["word_starts"].tolist() == [[1, 2, -1, -1], [1, 2, 5, 6]]
    assert batch["labels"].tolist() == [[[0, 0], [-100, -100], [-100, -100]], [[3, 1], [3, 1], [0, 0]]]
    assert (encoded.weights, encoded.truncated, encoded.lengths, encoded.origin) == ([3, 1], 0, [7, 3], None)
    unlabelled = reader.encode(rows_of([["the", "day"]]))
    assert set(reader.collate(unlabelled, [0])) == {"input_ids", "token_type_ids", "attention_mask", "word_starts"}


def test_of_a_sentence_that_does_not_fit_arcs_to_lost_words_have_no_label(base: Path, model: Any) -> None:
    reader = reader_of(base, model, max_length=6)  # room for four pieces
    words = [["the", LONG, "kind"], ["a", "day"], [".".join(["room"] * 4), "day"]]
    encoded = reader.encode(rows_of(words, [[3, 1, 0], [2, 0], [2, 0]], [[1, 1, 0], [1, 0], [1, 0]]))
    assert [each.tolist() for each in encoded.features["labels"]] == [
        [[-100, -100], [1, 1]],
        [[2, 1], [0, 0]],
        [[-100, -100]],
    ]
    assert (encoded.truncated, encoded.weights, encoded.lengths) == (2, [1, 2, 0], [6, 4, 6])
    with torch.no_grad():
        batch = reader.collate(encoded, [0, 1, 2])
        assert float(model(**reader.collate(encoded, [2])).loss) == 0
        whole = float(model(**batch).loss) * 3
        parts = [float(model(**reader.collate(encoded, [row])).loss) * encoded.weight([row]) for row in range(3)]
    assert whole == pytest.approx(sum(parts), rel=1e-5)


def test_a_step_on_rows_without_any_label_changes_nothing(base: Path, model: Any, mirror: Path) -> None:
    reader = reader_of(base, model, max_length=6)
    encoded = reader.encode(rows_of([[".".join(["room"] * 4), "day"]], [[2, 0]], [[1, 0]]))
    plan = Plan(encoded, reader.collate.training(1, 0), dict, "loss", False, 1, 1)
    optimizer = torch.optim.SGD([parameter for _, parameter in model.trainable_parameters()], lr=1.0)
    before = {name: tensor.clone() for name, tensor in model.trainable_state().items()}
    config = run_config(base, mirror, mirror).trainer
    assert float(optimise(model, optimizer, plan, [0], config, find_hardware("cpu", "fp32", False))) == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.trainable_state().items())


# ---- answers and the loss


def test_every_word_takes_the_likeliest_head_whatever_the_batch(base: Path, model: Any, mirror: Path) -> None:
    reader = reader_of(base, model)
    rows = load_rows(TASK, "test", FolderSource(mirror / "trees"))
    read, hardware = Read(rows, reader.encode(rows)), find_hardware("cpu", "fp32", False)
    found = predict(model, reader, read, TASK, 7, hardware)
    for size in (1, 40):
        other = predict(model, reader, read, TASK, size, hardware)
        assert list(other.rows()) == list(found.rows()) and other.scores() == found.scores()
    said = SHAPES["dependency_parsing"].predictions(found)
    right, labelled, words = 0, 0, 0
    for row, tokens in enumerate(rows.columns["tokens"]):
        pieces = [len(reader.processor.tokenize(word)) for word in tokens]
        starts = torch.tensor([[1 + sum(pieces[:word]) for word in range(len(tokens) + 1)]])
        inputs = reader.processor(" ".join(tokens), return_tensors="pt")
        with torch.no_grad():
            arcs, relations = model(**inputs, word_starts=starts).logits
        for word in range(len(tokens)):
            head = int(arcs[0, word].argmax())
            kind = int(relations[0, word, head].argmax())
            assert said[row]["heads"][word] == head and said[row]["relations"][word] == RELATIONS[kind]
            words += 1
            right += (hit := head == rows.columns["heads"][row][word])
            labelled += hit and kind == rows.columns["relations"][row][word]
    scores = found.scores()
    assert (scores["uas"], scores["las_subtypes"]) == pytest.approx((right / words, labelled / words))
    first = next(found.rows())
    assert first["prediction"] == said[0] and first["label"]["heads"] == rows.columns["heads"][0]


def test_words_that_are_not_read_hang_on_the_one_before(base: Path, model: Any) -> None:
    reader = reader_of(base, model, max_length=6)
    rows = rows_of([["the", LONG, "kind", "day"], ["a"]], [[3, 1, 0, 3], [0]], [[1, 1, 0, 1], [0]])
    read = Read(rows, reader.encode(rows))
    found = predict(model, reader, read, TASK, 2, find_hardware("cpu", "fp32", False))
    (long, short) = SHAPES["dependency_parsing"].predictions(found)
    assert long["heads"][2:] == [2, 3] and long["relations"][2:] == ["dep", "dep"]
    assert [len(long["heads"]), len(short["heads"]), len(short["relations"])] == [4, 1, 1]
    assert set(found.scores()) == {"las", "uas", "las_subtypes"}


class Keep(torch.optim.SGD):
    """Keeps the gradients instead of using them."""

    def step(self, closure: Any = None) -> None:
        self.kept = [p.grad.clone() for group in self.param_groups for p in group["params"] if p.grad is not None]


def test_accumulation_is_exact_although_sentences_differ_in_length(base: Path, model: Any, mirror: Path) -> None:
    reader = reader_of(base, model)
    encoded = reader.encode(load_rows(TASK, "test", FolderSource(mirror / "trees")))
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
    ("change", "reason", "said"),
    [
        ({"words": []}, "no tokens", "row 2: there are no tokens in column 'words'"),
        ({"head": ["2", "0"]}, "not one for each token", "there are 3 tokens in column 'words' and 2 heads in column"),
        (
            {"deprel": ["mod"]},
            "not one for each token",
            "3 tokens in column 'words' and 1 relations in column",
        ),
        ({"head": ["2", "0", "4"]}, "head outside the sentence", r"token 3 \('dull'\): its head in column 'head' is 4"),
        ({"head": ["2", "0", "-1"]}, "head outside the sentence", "its head in column 'head' is '-1'; the number of a"),
        ({"head": ["2", "0", "1.5"]}, "head outside the sentence", "is '1.5'; the number of a token is due"),
        (
            {"head": ["2", "0", "_"]},
            "word without a head",
            r"token 3 \('dull'\): it has no head in column 'head' \('_'",
        ),
        ({"head": ["2", "0", None]}, "word without a head", r"it has no head in column 'head' \(None\)"),
        ({"head": ["2", "0", "3"]}, "heads that lead to no root", r"token 3 \('dull'\): the heads in column 'head' go"),
        ({"head": ["2", "3", "1"]}, "heads that lead to no root", r"token 1 \('the'\): .* in a circle .* no root"),
        ({"deprel": ["mod", "root", "obj"]}, "label outside the map", r"token 3 \('dull'\): the label 'obj' in column"),
    ],
)
def test_bad_rows_are_refused_with_their_row_or_left_out_and_counted(
    change: dict[str, Any], reason: str, said: str, tmp_path: Path
) -> None:
    good = {"words": ["the", "kind", "dull"], "head": ["2", "0", "2"], "deprel": ["mod", "root", "obj:far"]}
    write_jsonl(tmp_path / "train.jsonl", [good, good | change, good])
    with pytest.raises(DataError, match=said) as caught:
        load_rows(TASK, "train", FolderSource(tmp_path))
    assert "split 'train', row 2" in str(caught.value)
    rows = load_rows(TASK, "train", FolderSource(tmp_path), "skip")
    assert rows.bad == {reason: 1} and rows.columns["heads"] == [[2, 0, 2]] * 2


def test_several_roots_are_none_too_many_and_numbers_are_heads_too(tmp_path: Path) -> None:
    rows = [{"words": ["a", "b", "c"], "head": [0, 1, 0], "deprel": ["root", "mod", "root"]}]
    write_jsonl(tmp_path / "train.jsonl", rows)
    found = load_rows(TASK, "train", FolderSource(tmp_path)).columns
    assert found["heads"] == [[0, 1, 0]] and found["relations"] == [[0, 1, 0]]


def test_columns_and_relations_are_inferred(tmp_path: Path) -> None:
    rows = [{"tokens": row["words"], "head": row["head"], "deprel": row["deprel"]} for row in sentences(20, 1)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    settled = settle_task(
        dataclasses.replace(TASK, columns=ColumnsConfig(), labels=(), path=str(tmp_path)), DataConfig()
    )
    assert settled.task.columns == ColumnsConfig(tokens="tokens", heads="head", relations="deprel")
    assert settled.task.labels == ("mod", "obj:far", "root")


# ---- runs


def test_a_head_with_layers_is_refused(base: Path) -> None:
    made = AutoAdapterModel.from_pretrained(base)
    with pytest.raises(ConfigError, match=r"head\.layers=2: a head for dependency parsing has no layers"):
        SHAPES["dependency_parsing"].put_head(made, TASK, HeadConfig(layers=2))


def test_a_run_learns_and_its_folder_evaluates_to_the_same(base: Path, mirror: Path, tmp_path: Path) -> None:
    config = run_config(base, mirror, tmp_path, task=TASK, epochs=6, learning_rate=2e-2)
    result = train(config, display=Recorder())
    row = result.row
    assert (row["baseline"]["name"], row["baseline"]["answer"]) == ("previous word", "mod")
    columns = load_rows(TASK, "test", FolderSource(mirror / "trees")).columns
    trivial = [
        head == place and RELATIONS[kind] == ("mod" if place else "root")
        for heads, kinds in zip(columns["heads"], columns["relations"], strict=True)
        for place, (head, kind) in enumerate(zip(heads, kinds, strict=True))
    ]
    assert row["baseline"]["score"] == pytest.approx(np.mean(trivial))
    assert row["score"] == row["metrics"]["las"] > row["baseline"]["score"] + 0.3
    again = evaluate_folder(result.folder)
    assert again.reproduced and again.metrics == pytest.approx(row["metrics"])
    lines = [json.loads(line) for line in (result.folder / "predictions.jsonl").read_text().splitlines()]
    asked = [{"tokens": words} for words in (columns["tokens"][0], ["day", " "])]
    told = predict_rows(result.folder, asked, skip_bad=True)
    assert told.bad == 1 and "token 2 in column 'tokens' is empty" in told.rows[1]["error"]
    assert {key: told.rows[0][key] for key in ("heads", "relations")} == lines[0]["prediction"]
    right = [a == b for line in lines for a, b in zip(line["label"]["heads"], line["prediction"]["heads"], strict=True)]
    assert np.mean(right) == pytest.approx(row["metrics"]["uas"])
