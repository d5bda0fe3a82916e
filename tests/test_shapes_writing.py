"""Texts that are written: what is read and learned, that greedy writing is what argmax without a cache says, and runs
from rows to a score."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch.nn import functional as F

import tiny_run
from adaptrain.auto import AutoAdapterModel
from adaptrain.config.schema import (
    ColumnsConfig,
    DataConfig,
    GenerationConfig,
    HeadConfig,
    MemberConfig,
    SplitsConfig,
    TaskConfig,
    TrainerConfig,
)
from adaptrain.errors import ConfigError, DataError, UnsupportedError
from adaptrain.evaluation.metrics import compute
from adaptrain.evaluation.run import evaluate_folder
from adaptrain.tasks.language import PairReader, PromptedReader
from adaptrain.tasks.rows import Rows, load_rows
from adaptrain.tasks.shapes import SHAPES
from adaptrain.tasks.sources import FolderSource
from adaptrain.tasks.writing import check_room, ends_of, texts_of, to_the_right, write
from adaptrain.training.prepare import prepare
from adaptrain.training.run import complete, train
from tiny_writers import PAIRS, WORDS, save_writer, summaries, tokenizer, translations, writer

SPEAK = TaskConfig(
    name="speak",
    type="translation",
    path="somebody/speak",
    columns=ColumnsConfig(source="translation.en", target="translation.fr"),
    metric="chrf",
    extra_metrics=("bleu",),
    splits=SplitsConfig(validation="dev"),
    generation=GenerationConfig(max_new_tokens=8),
)
BRIEF = dataclasses.replace(
    SPEAK,
    name="brief",
    type="summarisation",
    columns=ColumnsConfig(source="document", target="summaries"),
    metric="rouge1",
    extra_metrics=("rougeL",),
    prompt="sum: {source}",
)
KINDS = ("gpt2", "llama", *PAIRS)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("writing")
    for kind in KINDS:
        save_writer(folder / kind, kind)
    for seed, (split, count) in enumerate((("train", 48), ("dev", 11))):
        tiny_run.write_jsonl(folder / "mirror" / "speak" / f"{split}.jsonl", translations(count, seed))
        tiny_run.write_jsonl(folder / "mirror" / "brief" / f"{split}.jsonl", summaries(count, seed))
    return folder


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split(" ")]


def adapted(place: Path, kind: str, config: Any, own: bool = True, task: TaskConfig = SPEAK) -> tuple[Any, Any]:
    """A model with a random adapter, and its reader."""
    shape = SHAPES[task.type]
    own_head = ("seq2seq_lm" if kind in PAIRS else "causal_lm") if own else None
    model = AutoAdapterModel.from_pretrained(place / kind, own_head=own_head)
    model.add_adapter(task.name, config=config)
    shape.put_head(model, task, HeadConfig())
    model.train_adapter(task.name)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.get_adapter(task.name).parameters():
            parameter.normal_(std=0.3)
    model.eval()
    words = hf.AutoTokenizer.from_pretrained(place / kind)
    return model, shape.reader(words, model.base_model, task, DataConfig())


def rows_of(sources: list[str], targets: list[Any]) -> Rows:
    return Rows("dev", {"source": sources, "target": targets}, "here", len(sources), "")


# ---- what is read


def test_an_encoder_decoder_reads_the_source_and_learns_the_target(place: Path) -> None:
    _, reader = adapted(place, "t5", "lora")
    assert isinstance(reader, PairReader)
    reader = dataclasses.replace(reader, max_length=4, target_length=3, template="say {source}")
    rows = rows_of(["e1 e2", "e3 e4 e5"], [["f1", "f9"], ["f1 f2 f3"]])
    found = reader.encode(rows, training=True)
    assert [each.tolist() for each in found.features["input_ids"]] == [ids("say e1 e2 </s>"), ids("say e3 e4 </s>")]
    assert [each.tolist() for each in found.features["labels"]] == [ids("f1 </s>"), ids("f1 f2")]  # no end where cut
    assert (found.weights, found.truncated, found.lengths) == ([2, 2], 1, [6, 6])
    batch = reader.collate(dataclasses.replace(found), [0, 1])
    assert batch["labels"].tolist() == [ids("f1 </s>"), ids("f1 f2")]
    asked = reader.encode(rows)
    assert "labels" not in asked.features and asked.truncated == 1
    assert reader.collate(asked, [0])["input_ids"].tolist() == [ids("say e1 e2 </s>")]


def test_padding_comes_round_to_the_front() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    found = to_the_right({"input_ids": torch.arange(12).view(3, 4), "attention_mask": mask})
    assert found["input_ids"].tolist() == [[3, 0, 1, 2], [4, 5, 6, 7], [9, 10, 11, 8]]
    assert found["attention_mask"].tolist() == [[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]]


# ---- what is written


def naive(model: Any, reader: Any, source: list[int], words: hf.PreTrainedTokenizerBase, count: int) -> list[int]:
    """One row alone, without padding or cache: the likeliest token each time, until an end."""
    ends, config, base = ends_of(words, model.base_model), model.base_model.config, model.writer()
    forced = getattr(base.generation_config, "forced_bos_token_id", None)
    written: list[int] = []
    for step in range(count):
        if config.is_encoder_decoder:
            start = config.decoder_start_token_id
            inputs = {"input_ids": torch.tensor([source]), "decoder_input_ids": torch.tensor([[start, *written]])}
        else:
            inputs = {"input_ids": torch.tensor([source + written])}
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1]
        token = int(forced) if step == 0 and forced is not None else int(logits.argmax())
        if token in ends:
            break
        written.append(token)
    return [token for token in written if token not in words.all_special_ids]


LAWS = [(kind, "prefix_tuning[prefix_length=3]", True) for kind in KINDS]
LAWS += [("gpt2", "prompt_tuning[prompt_length=3]", True), ("bart", "lora[r=4]", True)]
LAWS += [(kind, "seq_bn[reduction_factor=2]", False) for kind in ("llama", "t5", "bart")]


@pytest.mark.parametrize(("kind", "config", "own"), LAWS)
def test_greedy_writing_is_argmax_without_a_cache(kind: str, config: str, own: bool, place: Path) -> None:
    model, reader = adapted(place, kind, config, own)
    rows = rows_of(["e1 e2 e3 e4", "e7", "e30 e31 e9"], [["f1"]] * 3)
    found, shape = reader.encode(rows), SHAPES["translation"]
    words = reader.tokenizer
    expected = [
        naive(model, reader, found.features["input_ids"][row].tolist(), words, SPEAK.generation.max_new_tokens)
        for row in range(3)
    ]
    with torch.no_grad():
        together = shape.answers(model, reader.collate(found, range(3)), reader)
        single = [shape.answers(model, reader.collate(found, [row]), reader)[0] for row in range(3)]
    assert [each.tolist() for each in together] == expected == [each.tolist() for each in single]
    assert any(expected)
    model.set_active_adapters(None)
    if not own:
        model.active_head = "speak"
    with torch.no_grad():
        base = shape.answers(model, reader.collate(found, range(3)), reader)
    assert [each.tolist() for each in base] != expected


def test_nothing_of_a_checkpoints_taste_is_left(place: Path) -> None:
    """BART's settings here ask for four beams, at least five tokens and no pair of words twice."""
    model, reader = adapted(place, "bart", "lora")
    own = model.base_model.generation_config
    batch = reader.collate(reader.encode(rows_of(["e1 e2 e3", "e8"], [["f"], ["f"]])), [0, 1])
    greedy = write(model, batch, GenerationConfig(max_new_tokens=30), reader.tokenizer)
    for mine, source in zip(greedy, ("e1 e2 e3", "e8"), strict=True):
        assert mine.tolist() == naive(model, reader, ids(f"<s> {source} </s>"), reader.tokenizer, 30)
    assert model.base_model.generation_config is own and own.num_beams == 4  # as it was
    beams = GenerationConfig(max_new_tokens=30, num_beams=3, length_penalty=2.0, no_repeat_ngram_size=1)
    for row in write(model, batch, beams, reader.tokenizer):
        assert len(set(row.tolist())) == len(row)


def test_the_first_end_ends_an_answer() -> None:
    words = tokenizer()
    made = hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=len(WORDS), n_embd=8, n_layer=1, n_head=1, eos_token_id=5))
    assert ends_of(words, made) == [1, 5]
    assert ends_of(tokenizer(end=False), made) == [5]
    assert texts_of(words, [np.asarray(ids("f1 f2")), np.asarray([], dtype=np.int64)]) == ["f1 f2", ""]


# ---- what it costs to be wrong


@pytest.mark.parametrize(
    ("kind", "own"), [("t5", True), ("bart", True), ("marian", True), ("t5", False), ("bart", False)]
)
def test_the_loss_of_a_batch_by_hand(kind: str, own: bool, place: Path) -> None:
    model, reader = adapted(place, kind, "seq_bn[reduction_factor=2]", own)
    rows = rows_of(["e1 e2 e3 e4", "e7", "e3 e9"], [["f1"], ["f2 f3 f4 f5"], ["f9 f9"]])
    found = reader.encode(rows, training=True)
    batch = reader.collate(found, range(3))
    start, total, count = model.base_model.config.decoder_start_token_id, 0.0, 0
    for source, target in zip(found.features["input_ids"], found.features["labels"], strict=True):
        shifted = torch.tensor([[start, *target.tolist()[:-1]]])
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(source)[None], decoder_input_ids=shifted).logits[0]
        total += float(F.cross_entropy(logits.double(), torch.from_numpy(target), reduction="sum"))
        count += len(target)
    assert count == found.weight(range(3))
    assert float(model(**batch).loss.detach()) == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("kind", PAIRS)
def test_the_loss_in_bf16_has_all_its_digits(kind: str, place: Path) -> None:
    """The model is bf16; its loss is that of its logits in float32, and so is what it learns from it."""
    model = AutoAdapterModel.from_pretrained(place / kind, own_head="seq2seq_lm", dtype=torch.bfloat16)
    model.add_adapter("speak", config="lora")
    model.train_adapter("speak")
    model.eval()
    _, reader = adapted(place, kind, "lora")
    rows = rows_of(["e1 e2 e3 e4", "e7"], [["f1"], ["f2 f3 f4 f5"]])
    batch = reader.collate(reader.encode(rows, training=True), range(2))
    found = model(**batch)
    shifted = model.base_model.prepare_decoder_input_ids_from_labels(batch["labels"])
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits = model(**inputs, decoder_input_ids=shifted).logits
    assert logits.dtype == torch.bfloat16 and found.loss.dtype == torch.float32
    expected = F.cross_entropy(logits.float().flatten(0, 1), batch["labels"].flatten())
    assert float(found.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    base: Any = model.base_model
    own = base(**batch).loss
    assert own.dtype == torch.bfloat16 and float(own.detach()) == pytest.approx(float(expected.detach()), rel=1e-2)
    found.loss.backward()
    assert any(parameter.grad is not None for _, parameter in model.trainable_parameters())


# ---- rows


@pytest.mark.parametrize(
    ("target", "reason", "message"),
    [
        ([], "missing text", "row 2: the target in column 'summaries' is missing"),
        (None, "missing text", "row 2: the target in column 'summaries' is missing"),
        (["f1", " "], "empty text", "row 2: the target in column 'summaries' is .'f1', ' '., where one is empty"),
        (["f1", None], "missing text", "row 2: the target in column 'summaries' is .'f1', None., where one is missing"),
    ],
)
def test_bad_targets(target: Any, reason: str, message: str, tmp_path: Path) -> None:
    good = {"document": "e1", "summaries": ["f1", "f2"]}
    tiny_run.write_jsonl(tmp_path / "dev.jsonl", [good, good | {"summaries": target}, good])
    with pytest.raises(DataError, match=message):
        load_rows(BRIEF, "dev", FolderSource(tmp_path))
    left = load_rows(BRIEF, "dev", FolderSource(tmp_path), "skip")
    assert (left.columns["target"], dict(left.bad)) == ([["f1", "f2"]] * 2, {reason: 1})


def test_a_target_of_another_type(tmp_path: Path) -> None:
    tiny_run.write_jsonl(tmp_path / "dev.jsonl", [{"document": "e1", "summaries": 3}])
    with pytest.raises(DataError, match="is 3, which is not text but int"):
        load_rows(BRIEF, "dev", FolderSource(tmp_path))


# ---- runs


@pytest.mark.parametrize("kind", ["gpt2", "t5", "marian"])
def test_a_run_is_evaluated_to_the_same_score(kind: str, place: Path, tmp_path: Path) -> None:
    task = BRIEF if kind == "gpt2" else SPEAK
    config = tiny_run.run_config(place / kind, place / "mirror", tmp_path, task=task, epochs=1, eval_batch_size=4)
    result = train(config, display=tiny_run.Recorder())
    again = evaluate_folder(result.folder)
    assert again.reproduced, (again.score, again.stored)
    lines = [json.loads(line) for line in (result.folder / "predictions.jsonl").read_text().splitlines()]
    assert lines == list(again.predictions.rows()) and set(lines[0]) == {"index", "label", "prediction"}
    said = [line["prediction"] for line in lines]
    right = [[line["label"]] if isinstance(line["label"], str) else line["label"] for line in lines]
    assert again.metrics == compute((task.metric, *task.extra_metrics), said, right)
    rows = load_rows(task, "dev", FolderSource(place / "mirror" / task.name))
    sources = list(rows.columns["source"])
    if task is SPEAK:
        assert result.row["baseline"]["name"] == "copy"
        assert result.row["baseline"]["score"] == compute(["chrf"], sources, rows.columns["target"])["chrf"]
    else:
        assert (result.row["baseline"]["name"], result.row["baseline"]["answer"]) == ("lead-1", "first sentence")
        first = [source.partition(".")[0] + "." for source in sources]
        assert result.row["baseline"]["score"] == compute(["rouge1"], first, rows.columns["target"])["rouge1"]


@pytest.mark.parametrize(("kind", "rate"), [("t5", 2e-2), ("gpt2", 5e-3)])
def test_what_is_learned_is_written(kind: str, rate: float, place: Path, tmp_path: Path) -> None:
    """Full fine-tuning on rows of one word."""
    rows = [{"translation": {"en": f"e{n}", "fr": f"f{n}"}} for n in range(12)]
    for split in ("train", "dev"):
        tiny_run.write_jsonl(tmp_path / "mirror" / "speak" / f"{split}.jsonl", rows)
    config = tiny_run.run_config(
        place / kind, tmp_path / "mirror", tmp_path, task=SPEAK, adapter={"method": "full"}, epochs=40, eval_every=40,
        batch_size=4, learning_rate=rate,
    )  # fmt: skip
    result = train(config, display=tiny_run.Recorder())
    assert result.row["score"] > 0.9 > result.row["baseline"]["score"]
    assert evaluate_folder(result.folder).reproduced


@pytest.mark.parametrize("kind", ["gpt2", "bart"])
def test_a_stack_on_a_saved_adapter_writes_too(kind: str, place: Path, tmp_path: Path) -> None:
    first = train(tiny_run.run_config(place / kind, place / "mirror", tmp_path / "a", task=SPEAK, max_steps=1))
    config = dataclasses.replace(
        tiny_run.run_config(place / kind, place / "mirror", tmp_path / "b", task=BRIEF, max_steps=1),
        composition="Stack(speak, brief)",
        adapters={"speak": MemberConfig(path=str(first.folder)), "brief": MemberConfig(adapter={"method": "lora"})},
    )
    result = train(config, display=tiny_run.Recorder())
    assert evaluate_folder(result.folder).reproduced


# ---- what is refused


def test_what_cannot_write_is_refused(place: Path, tmp_path: Path) -> None:
    base = tiny_run.save_base(tmp_path / "bert")
    config, method, _ = complete(tiny_run.run_config(base, place / "mirror", tmp_path, task=SPEAK))
    with pytest.raises(UnsupportedError, match="choose a decoder .* or an encoder-decoder"):
        prepare(config, method)
    long = dataclasses.replace(SPEAK, generation=GenerationConfig(max_new_tokens=200))
    config, method, _ = complete(tiny_run.run_config(place / "bart", place / "mirror", tmp_path, task=long))
    with pytest.raises(ConfigError, match="task.generation.max_new_tokens=200 does not fit behind 1 tokens"):
        prepare(config, method)
    check_room(201, 1, long.generation)
    model = writer("gpt2")
    with pytest.raises(ConfigError, match="task.generation.max_new_tokens=200 leaves no room for a prompt"):
        PromptedReader.of(tokenizer(), model, long, DataConfig(), asks=True)
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    with pytest.raises(ConfigError, match="needs a tokenizer with an end token"):
        PromptedReader.of(tokenizer(end=False), model, SPEAK, DataConfig(), asks=True)
    marked = tokenizer()
    marked.tgt_lang = "ro_RO"
    with pytest.raises(ConfigError, match="marks every text with its language"):
        PairReader.of(marked, writer("bart"), SPEAK, DataConfig())
    kept = dataclasses.replace(config, trainer=TrainerConfig(cache_frozen=True), head=HeadConfig(dropout=0.1))
    found = dict(kept.problems())
    assert "not known before" in found["trainer.cache_frozen"] and "has none" in found["head.dropout"]


def test_a_run_with_nothing_to_train_is_refused(place: Path, tmp_path: Path) -> None:
    adapter = {"method": "none"}
    config = tiny_run.run_config(place / "gpt2", place / "mirror", tmp_path, task=SPEAK, adapter=adapter)
    config, method, _ = complete(config)
    with pytest.raises(UnsupportedError, match="adapter=none has nothing to train here"):
        prepare(config, method)
