"""Questions whose answers stand in a text: rows, windows, spans, thresholds, a run."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel
from torch.nn import functional as F
from transformers import BertModel, PreTrainedTokenizerFast

import tiny_run
from adaptrain import AutoAdapterModel
from adaptrain.cli.main import main
from adaptrain.config.schema import ColumnsConfig, DataConfig, HeadConfig, SplitsConfig, TaskConfig
from adaptrain.errors import ConfigError, DataError
from adaptrain.evaluation.answers import squad_v2
from adaptrain.evaluation.baseline import trivial_baseline
from adaptrain.evaluation.run import evaluate_folder
from adaptrain.tasks.reading import Read
from adaptrain.tasks.rows import Rows, load_rows
from adaptrain.tasks.settle import settle_task
from adaptrain.tasks.shapes import SHAPES, Answered
from adaptrain.tasks.shapes.answers import LONGEST, best_span
from adaptrain.tasks.sources import FolderSource
from adaptrain.tasks.windows import WindowReader
from adaptrain.training.prepare import prepare
from adaptrain.training.run import complete, train

QA = SHAPES["question_answering"]
TASK = TaskConfig(
    name="rooms",
    type="question_answering",
    path="somebody/rooms",
    columns=ColumnsConfig(question="question", context="context", answers="answers"),
    metric="squad_v2_f1",
    extra_metrics=("squad_v2_em", "squad_v2_best_f1"),
    splits=SplitsConfig(validation="dev", test="test"),
)
QUESTION = "was the soup warm"


def row(context: str, answer: str | None, question: str = QUESTION) -> dict[str, Any]:
    found = [] if answer is None else [answer]
    starts = [context.index(each) for each in found]
    return {"question": question, "context": context, "answers": {"text": found, "answer_start": starts}}


def rows_of(*given: dict[str, Any]) -> Rows:
    columns = {role: [each[role] for each in given] for role in ("question", "context", "answers")}
    return Rows("dev", columns, "here", len(given), "")


def numbers(count: int, seed: int) -> list[dict[str, Any]]:
    """The answer is the one number in the context; some have none."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        words = chance.choices(tiny_run.PLAIN, k=chance.randint(6, 24))
        answer = None if chance.random() < 0.4 else str(chance.randrange(10))
        if answer is not None:
            words.insert(chance.randrange(len(words)), answer)
        found.append(row(" ".join(words), answer))
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    return tiny_run.tokenizer_of(base)


def reader_of(base: Path, tokenizer: Any, **data: Any) -> WindowReader:
    return WindowReader.of(tokenizer, BertModel.from_pretrained(base), DataConfig(**({"stride": 3} | data)))


@pytest.fixture(scope="module")
def reader(base: Path, tokenizer: Any) -> WindowReader:
    return reader_of(base, tokenizer, max_length=16)


# ---- windows


def test_windows_are_those_of_the_tokenizer(reader: WindowReader, tokenizer: Any) -> None:
    given = numbers(30, 0)
    encoded = reader.encode(rows_of(*given))
    theirs = tokenizer(
        [each["question"] for each in given],
        [each["context"] for each in given],
        truncation="only_second",
        max_length=16,
        stride=3,
        return_overflowing_tokens=True,
    )
    assert [ids.tolist() for ids in encoded.features["input_ids"]] == theirs["input_ids"]
    assert [ids.tolist() for ids in encoded.features["token_type_ids"]] == theirs["token_type_ids"]
    assert list(encoded.origin or ()) == theirs["overflow_to_sample_mapping"]
    assert len(encoded) > 60 and max(encoded.lengths) == 16 and encoded.truncated == 0


def test_labels_are_the_answers_tokens(reader: WindowReader, tokenizer: Any) -> None:
    given = numbers(40, 1)
    given.append(row("a room a cook a day was very kind and our host was rude", "very kind and"))
    encoded = reader.encode(rows_of(*given), training=True)
    held = dict.fromkeys(range(len(given)), 0)
    for example, number in enumerate(encoded.origin or ()):
        start, end = encoded.labels[example]
        ids = encoded.features["input_ids"][example]
        answers = given[number]["answers"]["text"]
        if (start, end) == (0, 0):
            words = f" {tokenizer.decode(ids[6:-1])} "
            assert not answers or f" {answers[0]} " not in words
        else:
            assert tokenizer.decode(ids[start : end + 1]) == answers[0]
            held[number] += 1
    assert all((count > 0) == bool(each["answers"]["text"]) for count, each in zip(held.values(), given, strict=True))
    assert max(held.values()) > 1, "an answer in what two windows share is in both"


def test_a_long_question_leaves_less_room_and_windows_share_no_more_than_half(reader: WindowReader) -> None:
    context = "the a room cook soup walk day was and very our host"
    encoded = reader.encode(rows_of(row(context, "very", "the soup the soup the soup the soup the")))
    assert [len(ends) for ends in encoded.features["ends"]] == [4] * 5  # 16 − 9 − 3, two of which are shared
    with pytest.raises(
        DataError, match=r"question 'the a.*' of row 2 takes 17 tokens .* leaves no room .*max_length=16"
    ):
        reader.encode(rows_of(row(context, None), row(context, None, " ".join(["the a"] * 7))))


def test_windows_that_would_share_everything_are_refused(base: Path, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\.stride=64 is not below data\.max_length=64"):
        reader_of(base, tokenizer, max_length=64, stride=64)


def test_a_tokenizer_that_counts_blanks_in_and_adds_no_class_token(base: Path) -> None:
    words = ["<pad>", "was", "Ġthe", "Ġsoup", "Ġwarm", "the", "Ġroom", "Ġ7", "ĠĠ", "Ġ"]
    made = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", model_input_names=["input_ids"])
    reader = reader_of(base, tokenizer, max_length=16)
    context = "the room   7 soup"
    read = Read(rows := rows_of(row(context, "7")), reader.encode(rows))
    features = read.encoded.features
    texts = [context[a:b] for a, b in zip(features["begins"][0], features["ends"][0], strict=True)]
    assert texts == ["the", "room", "", "7", "soup"]
    assert features["labels"].tolist() == [[4 + 3, 4 + 3]] and features["null"].tolist() == [0]
    scores = np.zeros((2, 9))
    scores[:, 6] = 5  # the blank token, which is no answer
    scores[0, 7] = scores[1, 8] = 2
    (answer,) = QA.predictions(Answered(TASK, reader, read, [scores]))
    assert answer == {"text": "7 soup", "no_answer": pytest.approx(2 / (1 + np.exp(4)))}


# ---- what a model says


def answered(
    reader: WindowReader, given: Sequence[dict[str, Any]], seed: int = 0, task: TaskConfig = TASK, **settings: float
) -> Answered:
    rows = rows_of(*given)
    encoded = reader.encode(rows)
    chance = np.random.default_rng(seed)
    found = [chance.normal(size=(2, length)).astype(np.float32) * 2 for length in encoded.lengths]
    return Answered(task, reader, Read(rows, encoded), found, settings)


def obvious(said: Answered, row: int) -> tuple[str, float]:
    """The best span of a row by trying all of them, and null − span."""
    features, best, null = said.read.encoded.features, (-np.inf, ""), np.inf
    for example, number in enumerate(said.read.encoded.origin or ()):
        if number != row:
            continue
        starts, ends = said.answers[example].astype(np.float64)
        null = min(null, starts[0] + ends[0])
        count, first = len(features["begins"][example]), features["first"][example]
        for i in range(count):
            for j in range(i, min(i + LONGEST, count)):
                context = said.read.rows.columns["context"][row]
                text = context[features["begins"][example][i] : features["ends"][example][j]]
                best = max(best, (starts[first + i] + ends[first + j], text), key=lambda each: each[0])
    return best[1], null - best[0]


def test_answers_are_the_best_spans_of_all_windows(reader: WindowReader) -> None:
    said = answered(reader, given := numbers(30, 2))
    for number, answer in enumerate(QA.predictions(said)):
        text, doubt = obvious(said, number)
        assert answer["text"] == text and text in given[number]["context"]
        assert answer["no_answer"] == pytest.approx(2 / (1 + np.exp(-doubt)), rel=1e-9)
    moved = dataclasses.replace(said, settings={"no_answer_threshold": -4.0})
    assert all((a["no_answer"] > 1) == (obvious(said, n)[1] > -4) for n, a in enumerate(QA.predictions(moved)))


def test_an_answer_has_at_most_thirty_tokens() -> None:
    starts, ends = np.zeros(50), np.zeros(50)
    starts[3] = ends[3 + LONGEST] = 5  # one too far
    ends[20] = 4
    assert best_span(starts, ends) == (9, 3, 20)
    assert best_span(np.array([0.0, 9.0]), np.array([9.0, 0.0])) == (9, 0, 0)  # an end does not stand before its start
    score, start, end = best_span(np.full(3, -np.inf), np.full(3, -np.inf))
    assert score == -np.inf and (start, end) == (0, 0)


def test_the_threshold_is_the_best_of_the_split_that_chooses(reader: WindowReader) -> None:
    said = answered(reader, numbers(60, 3), seed=4)
    features = said.read.encoded.features
    for example, (start, end) in enumerate(features["labels"]):  # a model that knows something
        said.answers[example][0, start] += 3
        said.answers[example][1, end] += 3
    settings = QA.calibrate(said)
    assert set(settings) == {"no_answer_threshold"}
    references = QA.references(TASK, said.read)

    def f1(threshold: float) -> float:
        found = dataclasses.replace(said, settings={"no_answer_threshold": threshold})
        return squad_v2(QA.predictions(found), references)["f1"]

    tried = np.linspace(-15, 15, 301)
    assert f1(settings["no_answer_threshold"]) >= max(map(f1, tried)) > max(f1(-50), f1(50), f1(0.0))
    answerable = answered(reader, [row("the room", "room")] * 3)
    assert QA.calibrate(answerable) == {}


def test_what_is_written(reader: WindowReader) -> None:
    given = [row("the room was warm", "warm"), row("a day", None)]
    written = list(QA.written(answered(reader, given, no_answer_threshold=50.0)))
    assert [each["label"] for each in written] == [["warm"], []] and all(each["prediction"] for each in written)
    refused = list(QA.written(answered(reader, given, no_answer_threshold=-50.0)))
    assert [each["prediction"] for each in refused] == ["", ""] and refused[0]["no_answer"] == pytest.approx(2)
    old = dataclasses.replace(TASK, metric="squad_f1", extra_metrics=())  # whose metric knows no refusal
    kept = list(QA.written(answered(reader, given, task=old, no_answer_threshold=-50.0)))
    assert kept == [{key: each[key] for key in ("label", "prediction")} for each in written]


def test_the_loss_and_the_answers_of_a_batch_by_hand(base: Path, reader: WindowReader) -> None:
    model = AutoAdapterModel.from_pretrained(base)
    model.add_adapter("rooms", config="lora")
    assert QA.put_head(model, TASK, HeadConfig()) is None
    model.train_adapter("rooms")
    torch.manual_seed(0)
    with torch.no_grad():
        for _, parameter in model.trainable_parameters():
            parameter.normal_(std=0.2)
    model.eval()
    encoded = reader.encode(rows_of(*numbers(6, 5), row("a day", "day")), training=True)
    indices = list(range(len(encoded)))
    batch = reader.collate(encoded, indices)
    assert len(set(encoded.lengths)) > 2
    with torch.no_grad():
        loss = float(model(**batch).loss)
        found = QA.answers(model, batch, reader)
        alone = [QA.answers(model, reader.collate(encoded, [each]), reader)[0] for each in indices]
    assert [each.shape for each in found] == [(2, length) for length in encoded.lengths]
    assert all(np.allclose(one, other, atol=1e-5) for one, other in zip(found, alone, strict=True))
    losses = [
        F.cross_entropy(torch.from_numpy(scores).double(), torch.tensor(label), reduction="mean")
        for scores, label in zip(found, encoded.labels, strict=True)
    ]
    assert loss == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_the_trivial_answer_by_hand(reader: WindowReader) -> None:
    def read(*given: dict[str, Any]) -> Read:
        return Read(rows := rows_of(*given), reader.encode(rows))

    lead = [row("warm soup was the day", "warm soup"), row("our host was kind", "our host"), row("a day", None)]
    found = trivial_baseline(TASK, reader, read(*lead), read(*lead[1:], row("cold cook", "cook")), ("squad_v2_f1",))
    assert (found.name, found.answer) == ("first words", "the first 2 of the context")
    assert found.metrics["squad_v2_f1"] == pytest.approx((1 + 0 + 2 / 3) / 3)
    late = [row("warm soup was the day", "day"), row("a day", None)]
    found = trivial_baseline(TASK, reader, read(*late), read(*late, *late[1:]), ("squad_v2_f1",))
    assert (found.name, found.answer) == ("empty answer", "")
    assert found.metrics["squad_v2_f1"] == pytest.approx(2 / 3)


# ---- rows


CONTEXT = "soup and warm soup"


@pytest.mark.parametrize(
    ("changed", "reason", "message"),
    [
        ({"question": " "}, "empty text", "the question in column 'question' is empty"),
        ({"question": None}, "missing text", "the question in column 'question' is missing"),
        ({"context": ""}, "empty text", "the context in column 'context' is empty"),
        ({"answers": None}, "missing label", "the answers in column 'answers' are missing; an empty list says"),
        (
            {"answers": {"text": ["soup"], "answer_start": [11]}},
            "answer outside the context",
            "have 'soup', which does not stand at character 11 of the context; it stands at 14. Correct the row",
        ),
        (
            {"answers": {"text": ["stew"], "answer_start": [0]}},
            "answer outside the context",
            "have 'stew', which does not stand at character 0 of the context, nor elsewhere in it",
        ),
        ({"answers": {"text": ["soup"], "answer_start": [-4]}}, "answer outside the context", "character -4"),
        ({"answers": {"text": ["soup", "warm"], "answer_start": [0]}}, "answer outside the context", "2 texts and 1 v"),
        ({"answers": {"text": ["soup"], "answer_start": [None]}}, "answer outside the context", "answer_start=None"),
        ({"answers": {"text": [" "], "answer_start": [4]}}, "answer outside the context", "' ', which is empty"),
    ],
)
def test_bad_rows(changed: dict[str, Any], reason: str, message: str, tmp_path: Path) -> None:
    good = {"question": QUESTION, "context": CONTEXT, "answers": {"text": ["soup"], "answer_start": [14]}}
    tiny_run.write_jsonl(tmp_path / "dev.jsonl", [good, good | changed])
    with pytest.raises(DataError) as error:
        load_rows(TASK, "dev", FolderSource(tmp_path))
    assert "split 'dev', row 2: the " in str(error.value) and message in str(error.value)
    rows = load_rows(TASK, "dev", FolderSource(tmp_path), "skip")
    assert len(rows) == 1 and rows.bad == {reason: 1}


def test_a_fraction_is_no_place(tmp_path: Path) -> None:
    answers = {"text": ["soup"], "answer_start": [0.5]}
    tiny_run.write_jsonl(tmp_path / "dev.jsonl", [{"question": QUESTION, "context": CONTEXT, "answers": answers}])
    with pytest.raises(DataError, match=r"answer_start=0\.5 for 'soup'; a whole number is due"):
        load_rows(TASK, "dev", FolderSource(tmp_path))


def test_answers_as_a_list_of_mappings_and_inferred_columns(tmp_path: Path) -> None:
    answers: list[list[dict[str, Any]]] = [[{"text": "soup", "answer_start": 0}], []]
    given = [{"id": "q", "question": QUESTION, "context": CONTEXT, "answers": each} for each in answers]
    tiny_run.write_jsonl(tmp_path / "train.jsonl", given)
    task = dataclasses.replace(TASK, columns=ColumnsConfig(), path=str(tmp_path))
    settled = settle_task(task, DataConfig(), FolderSource(tmp_path))
    assert settled.task.columns == TASK.columns and settled.unused == ("id",)
    rows = load_rows(settled.task, "train", FolderSource(tmp_path))
    assert rows.columns["answers"] == [{"text": ["soup"], "answer_start": [0]}, {"text": [], "answer_start": []}]


def test_a_look_at_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    given = [row(CONTEXT, "warm"), row(CONTEXT, None), row("a day", None)]
    tiny_run.write_jsonl(tmp_path / "rooms/train.jsonl", given)
    tiny_run.write_jsonl(tmp_path / "rooms/dev.jsonl", given[2:])
    Path("rooms.yaml").write_text(
        "name: rooms\ntype: question_answering\npath: ./rooms\nmetric: squad_v2_f1\nsplits: {validation: dev}\n"
    )
    assert main(["data", "task=./rooms.yaml"]) == 0
    out = capsys.readouterr().out
    table = [line.split() for line in out.splitlines()]
    assert ["train", "trains", "3", "0", "1", "1"] in table  # one input twice, with two answers
    assert ["an", "answer", "1", "33.3", "0", "0.0"] in table and ["no", "answer", "2", "66.7", "1", "100.0"] in table
    assert ["train", "6", "8", "8", "8", "8", "8"] in table  # words of question and context


# ---- a run


def test_a_run_learns_and_its_folder_evaluates_to_the_same(base: Path, tmp_path: Path) -> None:
    for split, count, seed in (("train", 300, 0), ("dev", 40, 1), ("test", 40, 2)):
        tiny_run.write_jsonl(tmp_path / "mirror/rooms" / f"{split}.jsonl", numbers(count, seed))
    told = tiny_run.Recorder()
    config = tiny_run.run_config(
        base,
        tmp_path / "mirror",
        tmp_path / "out",
        task=TASK,
        data={"max_length": 20, "stride": 6},
        adapter={"method": "lora", "attn_matrices": ["q", "k", "v", "o"], "output_lora": True},
        epochs=4,
        eval_every=4,
        learning_rate=2e-2,
    )
    result = train(config, display=told)
    line = result.row
    assert line["score"] > 0.8 > line["baseline"]["score"] and line["baseline"]["name"] == "empty answer"
    assert (line["split"], line["chosen_on"]) == ("test", "dev")
    assert any(" of 300 rows are read in several windows of at most 20 tokens" in note for note in told.of("note"))
    settings = json.loads((result.folder / "task.json").read_text())["settings"]
    assert set(settings) == {"no_answer_threshold"}
    assert told.of("note")[-1] == f"no_answer_threshold={settings['no_answer_threshold']:.4g}, chosen on split 'dev'"
    again = evaluate_folder(result.folder)
    assert again.reproduced and again.metrics == pytest.approx(line["metrics"])
    best = max(evaluation.score for evaluation, _ in told.of("evaluated"))
    assert evaluate_folder(result.folder, split="dev").score == pytest.approx(best)
    fresh = prepare(*complete(config))  # epoch and threshold are chosen together, from the first
    chosen, plain = fresh.choose().scores(), fresh.predict("validation").scores()
    assert chosen["squad_v2_f1"] == pytest.approx(plain["squad_v2_best_f1"]) and chosen != pytest.approx(plain)
    assert evaluate_folder(result.folder, batch_size=3).score == pytest.approx(again.score)
    lines = [json.loads(each) for each in (result.folder / "predictions.jsonl").read_text().splitlines()]
    assert set(lines[0]) == {"index", "label", "prediction", "no_answer"} and len(lines) == 40
    exact = [each["prediction"] in (each["label"] or [""]) for each in lines]
    assert sum(exact) / 40 == pytest.approx(line["metrics"]["squad_v2_em"])
