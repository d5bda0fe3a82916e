"""The next word as a task: what is read and predicted, what it costs, and a run from rows to a score."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import tiny_run
from adaptrain.auto import AutoAdapterModel
from adaptrain.config.schema import ColumnsConfig, DataConfig, GenerationConfig, HeadConfig, SplitsConfig, TaskConfig
from adaptrain.errors import ConfigError, DataError, UnsupportedError
from adaptrain.evaluation.run import evaluate_folder
from adaptrain.tasks.language import PROMPT, PromptedReader, TextsReader, collator, predicted, prompts
from adaptrain.tasks.rows import Rows, load_rows
from adaptrain.tasks.shapes import SHAPES
from adaptrain.tasks.shapes import language as shape_module
from adaptrain.tasks.shapes.language import summed
from adaptrain.tasks.sources import FolderSource
from adaptrain.training.loop import Plan, optimise
from adaptrain.training.precision import find_hardware
from adaptrain.training.prepare import prepare
from adaptrain.training.run import complete, train
from tiny_writers import FRENCH, WORDS, save_writer, tales, tokenizer, translations

TEXTS = TaskConfig(
    name="tale",
    type="causal_lm",
    path="somebody/tale",
    columns=ColumnsConfig(text="text"),
    metric="perplexity",
    extra_metrics=("loss", "token_accuracy"),
    splits=SplitsConfig(validation="dev"),
)
ORDERS = dataclasses.replace(
    TEXTS, name="order", columns=ColumnsConfig(source="translation.en", target="translation.fr"), prompt="say {source}:"
)


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split(" ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language")
    for kind in ("gpt2", "llama"):
        save_writer(folder / kind, kind)
    for seed, (split, count) in enumerate((("train", 96), ("dev", 21))):
        tiny_run.write_jsonl(folder / "mirror" / "order" / f"{split}.jsonl", translations(count, seed))
        lines = [row["text"] for row in tales(count, seed)]
        (folder / "mirror" / "tale").mkdir(parents=True, exist_ok=True)
        (folder / "mirror" / "tale" / f"{split}.txt").write_text("\n".join([*lines[:5], "", *lines[5:]]) + "\n")
    return folder


def rows_of(**columns: Any) -> Rows:
    return Rows("dev", columns, "here", 9, "")


# ---- what is read


def test_a_text_ends_and_all_but_its_first_token_are_predicted() -> None:
    reader = TextsReader(tokenizer(), collator(tokenizer()), 4, [1])
    found = reader.encode(rows_of(text=["e1 e2", "e1 e2 e3 e4", "e1 e2 e3 e4 e5", "e7"]))
    assert [each.tolist() for each in found.features["input_ids"]] == [
        ids("e1 e2 </s>"),
        ids("e1 e2 e3 e4"),
        ids("e1 e2 e3 e4"),
        ids("e7 </s>"),
    ]
    assert found.truncated == 2  # one has lost its end alone
    assert found.weights == [2, 3, 3, 1] and list(found.lengths) == [3, 4, 4, 2]
    batch = reader.collate(found, [0, 3])
    assert batch["labels"].tolist() == [ids("e1 e2 </s>"), [*ids("e7 </s>"), -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert predicted(found)[0].tolist() == ids("e2 </s>")


def test_a_tokenizer_without_an_end_adds_none_and_one_that_begins_predicts_the_first_word() -> None:
    keys = collator(tokenizer())
    bare = TextsReader(tokenizer(end=False), keys, 4, [])
    with pytest.raises(DataError, match="here, split 'dev': nothing of the text 'e7' can be predicted"):
        bare.encode(rows_of(text=["e1 e2", "e7"]))
    begun = TextsReader(tokenizer(begins=True, ends=True), keys, 9, [1])
    assert begun.encode(rows_of(text=["e7"])).features["input_ids"][0].tolist() == ids("<s> e7 </s>")


def prompted(template: str, longest: int = 9, target: int = 4, asks: bool = False, **options: Any) -> PromptedReader:
    made = tokenizer(**options)
    keys = collator(made)
    return PromptedReader(made, keys, longest, GenerationConfig(), template, target, [1], asks)


def test_a_target_alone_is_predicted() -> None:
    rows = rows_of(source=["e1 e2", "e3"], target=["f1 f2", "f3 f4 f5 f6"])
    found = prompted("say {source} :", begins=True).encode(rows)
    assert [each.tolist() for each in found.features["input_ids"]] == [
        ids("<s> say e1 e2 : f1 f2 </s>"),
        ids("<s> say e3 : f3 f4 f5 f6"),  # cut: it has no end
    ]
    assert [each.tolist() for each in found.features["labels"]] == [
        [*[-100] * 5, *ids("f1 f2 </s>")],
        [*[-100] * 4, *ids("f3 f4 f5 f6")],
    ]
    assert (found.weights, found.truncated) == ([3, 4], 1)
    asked = prompted("say {source} :", asks=True, ends=True)
    assert [each.tolist() for each in asked.encode(rows).features["input_ids"]] == [
        ids("say e1 e2 :"),  # what the tokenizer ends every text with is taken off
        ids("say e3 :"),
    ]
    assert "labels" not in asked.encode(rows).features and "labels" in asked.encode(rows, training=True).features


@pytest.mark.parametrize("longest", range(5, 12))
def test_a_long_source_loses_its_end_and_the_prompt_stays(longest: int) -> None:
    found = prompts(tokenizer(begins=True), "sum : {source}\nsay", ["e1 e2 e3 e4 e5", "e6"], longest + 1)
    whole = ["<s> sum : e1 e2 e3 e4 e5 \n say", "<s> sum : e6 \n say"]
    left = " ".join(["e1", "e2", "e3", "e4", "e5"][: longest + 1 - 5])
    assert found[0] == (ids(f"<s> sum : {left} \n say"), longest < 9)
    assert found[1] == (ids(whole[1]), False)


def test_a_prompt_without_room_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="data.max_length=4 leaves no room for a source in the prompt 'sum : {source}"
    ):
        prompts(tokenizer(), "sum : {source}\nsay", ["e1 e2"], 4)


def test_room_in_the_model(place: Path) -> None:
    model = AutoAdapterModel.from_pretrained(place / "gpt2", own_head="causal_lm").base_model
    reader = PromptedReader.of(tokenizer(), model, ORDERS, DataConfig(max_length=190, max_target_length=20), asks=False)
    assert reader.max_length == 180
    assert PromptedReader.of(tokenizer(), model, ORDERS, DataConfig(), asks=False).max_length == 200 - 128
    with pytest.raises(ConfigError, match="data.max_target_length=200 leaves no room for a prompt"):
        PromptedReader.of(tokenizer(), model, ORDERS, DataConfig(max_target_length=200), asks=False)
    plain = dataclasses.replace(ORDERS, prompt=None)
    assert PromptedReader.of(tokenizer(), model, plain, DataConfig(), asks=False).template == PROMPT == "{source}\n"
    with pytest.raises(ConfigError, match="task.prompt is set, and the texts of this task are read as they are"):
        SHAPES["causal_lm"].reader(tokenizer(), model, dataclasses.replace(TEXTS, prompt="{source}"), DataConfig())


def test_keys_that_do_not_go_together() -> None:
    both = dataclasses.replace(TEXTS, columns=ColumnsConfig(text="a", source="b"))
    assert "beside columns.text" in dict(both.problems())["columns.source"]
    assert "more than once" in dict(dataclasses.replace(ORDERS, prompt="{source} {source}").problems())["prompt"]
    writes = dataclasses.replace(ORDERS, generation=GenerationConfig(max_new_tokens=3))
    assert "are not written" in dict(writes.problems())["generation"]


@pytest.mark.parametrize(
    ("row", "reason", "message"),
    [
        ({"en": " ", "fr": "f1"}, "empty source", "row 2: the source in column 'translation.en' is empty"),
        ({"en": "e1", "fr": None}, "missing text", "row 2: the target in column 'translation.fr' is missing"),
        (None, "missing text", "row 2: the source in column 'translation.en' is missing"),
    ],
)
def test_bad_rows(row: Any, reason: str, message: str, tmp_path: Path) -> None:
    good = {"translation": {"en": "e1", "fr": "f1"}}
    tiny_run.write_jsonl(tmp_path / "dev.jsonl", [good, {"translation": row}, good])
    with pytest.raises(DataError, match=message):
        load_rows(ORDERS, "dev", FolderSource(tmp_path))
    left = load_rows(ORDERS, "dev", FolderSource(tmp_path), "skip")
    assert (len(left), dict(left.bad)) == (2, {reason: 1})


# ---- what it costs to be wrong


def by_hand(model: Any, batch: dict[str, torch.Tensor]) -> tuple[float, list[tuple[float, int]]]:
    """Mean loss of all predicted tokens; of each row the summed loss and the right ones."""
    rows, total, count = [], 0.0, 0
    for row in range(len(batch["labels"])):
        loss, right = 0.0, 0
        length = int(batch["attention_mask"][row].sum())
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"][row : row + 1, :length]).logits[0].double()
        for position in range(1, length):
            label = int(batch["labels"][row, position])
            if label != -100:
                loss -= float(F.log_softmax(logits[position - 1], -1)[label])
                right += int(logits[position - 1].argmax()) == label
                count += 1
        rows.append((loss, right))
        total += loss
    return total / count, rows


def randomised(model: Any, name: str) -> None:
    with torch.no_grad():
        for parameter in model.get_adapter(name).parameters():
            parameter.normal_(std=0.2)


@pytest.mark.parametrize(
    ("kind", "task", "own"), [("gpt2", TEXTS, True), ("gpt2", ORDERS, False), ("llama", ORDERS, True)]
)
def test_the_loss_of_a_batch_and_of_its_rows(kind: str, task: TaskConfig, own: bool, place: Path) -> None:
    shape = SHAPES["causal_lm"]
    model = AutoAdapterModel.from_pretrained(place / kind, own_head="causal_lm" if own else None)
    model.add_adapter(task.name, config="seq_bn[reduction_factor=2]")
    note = shape.put_head(model, task, HeadConfig())
    assert ("checkpoint's own" in str(note)) == own
    model.train_adapter(task.name)
    randomised(model, task.name)
    model.eval()
    reader = shape.reader(tokenizer(begins=kind == "llama"), model.base_model, task, DataConfig())
    rows = load_rows(task, "dev", FolderSource(place / "mirror" / task.name))
    encoded = reader.encode(rows)
    batch = reader.collate(encoded, range(7))
    loss, single = by_hand(model, batch)
    assert float(model(**batch).loss.detach()) == pytest.approx(loss, rel=1e-5)
    assert encoded.weight(range(7)) == int((batch["labels"][:, 1:] != -100).sum())
    with torch.no_grad():
        found = shape.answers(model, batch, reader)
    assert torch.allclose(found, torch.tensor(single), rtol=1e-4, atol=1e-4)  # type: ignore[arg-type]


def test_pieces_of_a_batch_have_its_gradient(place: Path) -> None:
    """However a batch is divided: rows have different numbers of labels."""
    gradients = []
    for size in (None, 1, 3):
        config = tiny_run.run_config(place / "gpt2", place / "mirror", place, task=ORDERS, micro_batch_size=size)
        config, method, _ = complete(config)
        run = prepare(config, method)
        run.model.eval()
        randomised(run.model, "order")
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in run.model.get_adapter("order").parameters():
                parameter.normal_(std=0.2)
        parameters = [parameter for _, parameter in run.model.trainable_parameters()]
        plan = Plan(run.splits["train"].encoded, run.reader.collate, dict, "loss", False, 1, 0)
        before = [parameter.detach().clone() for parameter in parameters]
        optimizer = torch.optim.SGD(parameters, lr=1.0)
        trainer = dataclasses.replace(config.trainer, max_grad_norm=None)
        optimise(run.model, optimizer, plan, range(7), trainer, find_hardware("cpu", "fp32", False))
        gradients.append([one - other.detach() for one, other in zip(before, parameters, strict=True)])
    for other in gradients[1:]:
        for one, two in zip(gradients[0], other, strict=True):
            assert torch.allclose(one, two, atol=1e-5)
    assert max(float(each.abs().max()) for each in gradients[0]) > 1e-2


class Widest(TorchDispatchMode):
    """Remembers the largest float32 tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else (made,):
            if isinstance(each, torch.Tensor) and each.dtype == torch.float32:
                self.numbers = max(self.numbers, each.numel())
        return made


def test_only_a_piece_of_the_scores_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shape_module, "PIECE", 5000)
    torch.manual_seed(0)
    logits = torch.randn(4, 50, 1000, dtype=torch.bfloat16)
    labels = torch.randint(0, 1000, (4, 50))
    labels[1, :30] = -100
    with Widest() as widest:
        found = summed(logits, labels)
    assert widest.numbers == 5000
    expected = F.cross_entropy(logits[1, 29:-1].float(), labels[1, 30:], reduction="sum")
    assert float(found[1, 0]) == pytest.approx(float(expected), rel=1e-5)


# ---- a run


def test_a_run_on_texts_is_evaluated_to_the_same_score(place: Path, tmp_path: Path) -> None:
    adapter = {"method": "lora", "r": 8, "alpha": 16, "intermediate_lora": True}
    config = tiny_run.run_config(
        place / "gpt2", place / "mirror", tmp_path, task=TEXTS, adapter=adapter, epochs=15, learning_rate=2e-2
    )
    result = train(config, display=tiny_run.Recorder())
    again = evaluate_folder(result.folder)
    assert again.reproduced, (again.score, again.stored)
    assert again.rows == 21
    assert result.row["baseline"]["name"] == "unigram"
    assert result.row["score"] < result.row["baseline"]["score"]
    lines = [dict(row) for row in again.predictions.rows()]
    assert set(lines[0]) == {"index", "tokens", "loss", "right"}
    tokens = sum(line["tokens"] for line in lines)
    mean = sum(line["loss"] * line["tokens"] for line in lines) / tokens
    assert again.metrics["loss"] == pytest.approx(mean) and again.score == pytest.approx(math.exp(mean))
    small = evaluate_folder(result.folder, batch_size=1)
    assert small.score == pytest.approx(again.score, rel=1e-4)


def test_the_trivial_answer_is_the_share_of_each_word(place: Path) -> None:
    config, method, _ = complete(tiny_run.run_config(place / "gpt2", place / "mirror", place, task=ORDERS))
    run = prepare(config, method)
    labels = run.splits["train"].encoded.features["labels"]
    due = [label for row in range(len(labels)) for label in labels[row] if label != -100]
    share = {word: (due.count(word) + 1) / (len(due) + len(WORDS)) for word in range(len(WORDS))}
    scored = run.splits["validation"].encoded.features["labels"]
    told = [label for row in range(len(scored)) for label in scored[row] if label != -100]
    assert run.baseline.metrics["loss"] == pytest.approx(-np.mean([math.log(share[int(word)]) for word in told]))
    assert set(told) > {1} and {WORDS[label] for label in told} <= {"</s>", *FRENCH}


def test_an_encoder_is_refused(tmp_path: Path, place: Path) -> None:
    tiny_run.save_base(tmp_path / "bert")
    config, method, _ = complete(tiny_run.run_config(tmp_path / "bert", place / "mirror", tmp_path, task=TEXTS))
    with pytest.raises(
        UnsupportedError, match="task.type=causal_lm predicts each word from those before it, and a bert"
    ):
        prepare(config, method)
