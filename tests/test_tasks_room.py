"""Rows that a base model has no room for: found before any work, for every type of task, in every split."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from transformers import AutoTokenizer

import tiny_media
from adaptrain.auto import AutoAdapterModel
from adaptrain.composition import Parallel, Stack
from adaptrain.config.schema import ColumnsConfig, DataConfig, GenerationConfig, SplitsConfig, TaskConfig
from adaptrain.errors import AdaptrainError, DataError, ModelError
from adaptrain.evaluation.asked import predict_rows
from adaptrain.evaluation.run import evaluate_folder
from adaptrain.tasks.positions import positions_of
from adaptrain.tasks.room import read_rows
from adaptrain.tasks.rows import Rows
from adaptrain.tasks.shapes import SHAPES
from adaptrain.training.prepare import prepare
from adaptrain.training.run import complete, train
from tiny_run import MOOD, Recorder, run_config, save_base, tokenizer_of, write_jsonl
from tiny_writers import save_writer, tokenizer

NEW = "zebra"
"""A word that a tokenizer has and its base model has not."""

Make = Callable[[str], dict[str, Any]]

ROWS: dict[str, tuple[str, Make, dict[str, Any]]] = {
    "classification": ("bert", lambda word: {"text": f"the {word}", "label": "x"}, {}),
    "multilabel": ("bert", lambda word: {"text": f"the {word}", "label": ["x"]}, {"metric": "multilabel_macro_f1"}),
    "regression": ("bert", lambda word: {"text": f"the {word}", "label": 1.0}, {"metric": "mse"}),
    "multiple_choice": ("bert", lambda word: {"choices": ["a day", f"the {word}"], "label": "x"}, {}),
    "question_answering": (
        "bert",
        lambda word: {
            "question": "a day",
            "context": f"a room {word}",
            "answers": {"text": ["room"], "answer_start": [2]},
        },
        {"metric": "squad_f1"},
    ),
    "tagging": ("bert", lambda word: {"tokens": ["a", word], "tags": ["x", "y"]}, {"metric": "tag_accuracy"}),
    "dependency_parsing": (
        "bert",
        lambda word: {"tokens": ["a", word], "heads": [2, 0], "relations": ["x", "y"]},
        {"metric": "las"},
    ),
    "masked_lm": ("bert", lambda word: {"text": f"the {word} a day"}, {"metric": "loss"}),
    "causal_lm": ("gpt2", lambda word: {"text": f"e1 {word} e2"}, {"metric": "perplexity"}),
    "translation": ("t5", lambda word: {"source": f"e1 {word}", "target": "f1"}, {"metric": "bleu"}),
    "summarisation": ("bart", lambda word: {"source": "e1", "target": f"f1 {word}"}, {"metric": "rouge1"}),
}
"""Type of a task → a base model, a row with a word in it, and what else the task says."""

KNOWN = {"bert": "room", "gpt2": "e3", "t5": "e3", "bart": "e3"}
LABELLED = ("classification", "multilabel", "multiple_choice", "tagging", "dependency_parsing")


def add_word(folder: Path) -> None:
    """Give a tokenizer a word, and the base model beside it none."""
    made = AutoTokenizer.from_pretrained(folder)
    made.add_tokens([NEW])
    made.save_pretrained(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("room")
    save_base(folder / "bert")
    for kind in ("gpt2", "t5", "bart"):
        save_writer(folder / kind, kind)
    for kind in KNOWN:
        add_word(folder / kind)
    return folder


def task_of(kind: Any, folder: Path) -> TaskConfig:
    _, make, more = ROWS[kind]
    columns = ColumnsConfig(**{role: role for role in make("")})
    labels = ("x", "y") if kind in LABELLED else ()
    given: dict[str, Any] = {"metric": "accuracy", "labels": labels} | more
    return TaskConfig(name="t", type=kind, path=str(folder), columns=columns, splits=SplitsConfig(), **given)


@pytest.mark.parametrize("kind", ROWS)
def test_a_word_without_an_embedding_is_refused_before_any_work(kind: str, place: Path, tmp_path: Path) -> None:
    base, make, _ = ROWS[kind]
    task = task_of(kind, tmp_path)
    config = run_config(place / base, tmp_path, tmp_path, task=task, data={"mirror": None})
    clean, wrong = [make(KNOWN[base])] * 3, [make(KNOWN[base]), make(NEW)]
    for split, rows in (("train", (wrong, clean)), ("validation", (clean, wrong))):
        for name, each in zip(("train", "validation"), rows, strict=True):
            write_jsonl(tmp_path / f"{name}.jsonl", each)
        evaluates_targets = not (kind == "summarisation" and split == "validation")  # compared as texts
        if evaluates_targets:
            with pytest.raises(DataError, match=rf"split '{split}': 1 of 2 rows .*'{NEW}'.*resize_token"):
                prepare(*complete(config)[:2])
    write_jsonl(tmp_path / "validation.jsonl", clean)
    run = prepare(*complete(config)[:2])
    assert any(NEW in note for note in run.notes)
    said = [role for role in ("label", "answers", "tags", "heads", "relations", "target") if role in make("")]
    read = {role: [make(NEW)[role]] for role in make("") if role not in said}
    if kind != "summarisation":
        with pytest.raises(DataError, match=f"somewhere: 1 of 1 rows .*'{NEW}'"):
            read_rows(run.reader, Rows("", read, "somewhere", 1, ""), run.model)


@pytest.fixture(scope="module")
def finished(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    for split, word in (("train", "room"), ("validation", "room"), ("other", NEW)):
        write_jsonl(folder / f"{split}.jsonl", [{"text": f"the {word}", "label": each} for each in "xy"])
    config = run_config(
        place / "bert",
        folder,
        folder / "out",
        task=task_of("classification", folder),
        data={"mirror": None},
        epochs=1,
    )
    return train(config, origins_yaml="", command=("adaptrain", "train"), display=Recorder()).folder


def test_a_finished_run_refuses_such_rows_before_it_computes(finished: Path, monkeypatch: Any) -> None:
    for module in ("run", "asked"):
        monkeypatch.setattr(f"adaptrain.evaluation.{module}.predict", lambda *_, **__: pytest.fail("computes"))
    with pytest.raises(DataError, match=f"split 'other': 2 of 2 rows .*'{NEW}'"):
        evaluate_folder(finished, split="other")
    with pytest.raises(DataError, match=f"1 of 2 rows .*the {NEW}.*'{NEW}'"):
        predict_rows(finished, [{"text": "the room"}, {"text": f"the {NEW}"}])


def test_a_transcript_with_a_word_that_the_model_does_not_have(tmp_path: Path) -> None:
    base = tiny_media.save_whisper(tmp_path / "base")
    add_word(base)
    for split in ("train", "validation"):
        rows = tiny_media.save_tones(tmp_path / split, 2)
        write_jsonl(tmp_path / f"{split}.jsonl", [row | {"text": f"a {NEW}"} for row in rows])
    task = TaskConfig(
        name="t",
        type="speech_recognition",
        path=str(tmp_path),
        columns=ColumnsConfig(audio="audio", target="text"),
        metric="wer",
        generation=GenerationConfig(max_new_tokens=5),
    )
    config = run_config(base, tmp_path, tmp_path, task=task, data={"mirror": None})
    with pytest.raises(DataError, match=f"split 'train': 2 of 2 rows .*'{NEW}'.* the embeddings of its decoder"):
        prepare(*complete(config)[:2])


# ---- other tables


def read(model: Any, texts: list[str], words: Any, task: TaskConfig = MOOD, **data: Any) -> Any:
    """Rows of texts as a task of one text, or of two, reads them."""
    shape = SHAPES[task.type]
    pairs = {"text_pair": texts} if task.columns.text_pair else {}
    reader = shape.reader(words, model.base_model, task, DataConfig(**data))
    return read_rows(reader, Rows("train", {"text": texts, **pairs}, "here", len(texts), ""), model)


SMALL: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def test_token_types_that_the_model_does_not_have(place: Path) -> None:
    """The tokenizer of a BERT beside a RoBERTa, which knows one type."""
    config = hf.RobertaConfig(**SMALL, vocab_size=60, max_position_embeddings=40, type_vocab_size=1)
    model = AutoAdapterModel.from_config(config)
    words = tokenizer_of(place / "bert")
    assert len(read(model, ["a day"], words).encoded) == 1
    pairs = dataclasses.replace(MOOD, columns=ColumnsConfig(text="text", text_pair="text_pair"))
    with pytest.raises(DataError, match="1 of 1 rows .*type 1.* knows 1 .*model_input_names"):
        read(model, ["a day"], words, pairs)


def test_a_token_to_pad_with_that_the_model_does_not_have() -> None:
    config = hf.GPT2Config(vocab_size=len(tokenizer()), n_embd=8, n_layer=1, n_head=2, n_positions=16)
    model, words = AutoAdapterModel.from_config(config), tokenizer()
    words.add_special_tokens({"pad_token": "<new pad>"})
    with pytest.raises(ModelError, match=rf"<new pad>.*resize_token_embeddings\({len(tokenizer()) + 1}\)"):
        read(model, ["e1"], words)


def test_words_are_masked_by_words_that_the_model_has(place: Path) -> None:
    model = AutoAdapterModel.from_pretrained(place / "bert")
    words = tokenizer_of(place / "bert")
    reader: Any = SHAPES["masked_lm"].reader(words, model.base_model, task_of("masked_lm", place), DataConfig())
    assert reader.masking.words.max() == model.base_model.config.vocab_size - 1 == len(words) - 2
    config = hf.BertConfig(**SMALL, vocab_size=words.mask_token_id, max_position_embeddings=40)
    small = AutoAdapterModel.from_config(config).base_model
    with pytest.raises(ModelError, match=f"mask token .*{words.mask_token_id}"):
        SHAPES["masked_lm"].reader(words, small, task_of("masked_lm", place), DataConfig())


def paired(encoder: int, decoder: int) -> hf.EncoderDecoderConfig:
    many = {"vocab_size": 100}
    return hf.EncoderDecoderConfig.from_encoder_decoder_configs(
        hf.RobertaConfig(**SMALL, **many, max_position_embeddings=encoder + 2, pad_token_id=1),
        hf.GPT2Config(**many, n_embd=8, n_layer=1, n_head=2, n_positions=decoder),
    )


def test_positions_are_those_of_each_half(place: Path) -> None:
    model: Any = AutoAdapterModel.from_config(paired(30, 20)).base_model
    assert [positions_of(model, half) for half in ("encoder", "decoder", None)] == [30, 20, 20]
    task = dataclasses.replace(task_of("translation", place), generation=GenerationConfig(max_new_tokens=8))
    reader: Any = SHAPES["translation"].reader(
        tokenizer(), model, task, DataConfig(max_length=100, max_target_length=100)
    )
    assert (reader.max_length, reader.target_length) == (30, 20)
    relative = hf.T5Config(d_model=8, num_layers=1, num_heads=2, d_ff=8, vocab_size=100)
    assert positions_of(AutoAdapterModel.from_config(relative).base_model) is None


def test_a_prompt_takes_positions_from_the_text() -> None:
    config = hf.GPT2Config(vocab_size=100, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    model = AutoAdapterModel.from_config(config)
    for name in "ab":
        model.add_adapter(name, config="prompt_tuning[prompt_length=4]")
    for tree, prompt in (("a", 4), (Parallel("a", "b"), 4), (Stack("a", "b"), 8)):
        model.set_active_adapters(tree)
        longest = read(model, [" ".join(["e1"] * (16 - prompt))], tokenizer())
        ids = torch.as_tensor(longest.encoded.features["input_ids"][0])[None]
        model(input_ids=ids, attention_mask=torch.ones_like(ids))  # there is room
        message = rf"beside a prompt of {prompt},.* 16 positions\. Set data\.max_length={16 - prompt}"
        with pytest.raises(DataError, match=message):
            read(model, ["e1", " ".join(["e1"] * (17 - prompt))], tokenizer())
    model = AutoAdapterModel.from_config(hf.BertConfig(**SMALL, vocab_size=100, max_position_embeddings=16))
    model.add_adapter("a", config="prompt_tuning")
    model.set_active_adapters("a")
    assert read(model, [" ".join(["e1"] * 99)], tokenizer()).encoded.lengths == [16]  # a prompt without positions


def test_what_is_written_takes_positions_too(place: Path) -> None:
    model = AutoAdapterModel.from_pretrained(place / "gpt2", own_head="causal_lm")
    model.add_adapter("a", config="prompt_tuning[prompt_length=20]")
    model.set_active_adapters("a")
    task = dataclasses.replace(task_of("translation", place), generation=GenerationConfig(max_new_tokens=30))
    reader = SHAPES["translation"].reader(
        tokenizer(), model.base_model, task, DataConfig(max_length=180, max_target_length=10)
    )
    rows = Rows("", {"source": [" ".join(["e1"] * 155)]}, "here", 1, "")
    with pytest.raises(DataError, match="beside a prompt of 20, beside 30 that are written.*200 positions"):
        read_rows(reader, rows, model)


# ---- images and sound


def speech_of(base: Path) -> Any:
    from adaptrain.config.schema import ModelConfig
    from adaptrain.training.base_model import find_base, load_processor

    processor = load_processor(find_base(ModelConfig(name=str(base))), "sound")
    model = AutoAdapterModel.from_pretrained(base, own_head="seq2seq_lm")
    task: Any = TaskConfig(
        name="t",
        type="speech_recognition",
        path="p",
        metric="wer",
        generation=GenerationConfig(max_new_tokens=5),
    )
    return SHAPES["speech_recognition"].reader(processor, model.base_model, task, DataConfig())


@pytest.mark.parametrize(
    "change", [{"feature_size": 20}, {"chunk_length": 2, "n_samples": 32000, "nb_max_frames": 200}]
)
def test_a_spectrogram_of_another_size_is_refused(change: dict[str, int], tmp_path: Path) -> None:
    base = tiny_media.save_whisper(tmp_path)
    assert speech_of(base).max_length
    file = next(file for file in (base / "processor_config.json", base / "preprocessor_config.json") if file.is_file())
    values = json.loads(file.read_text())
    values.get("feature_extractor", values).update(change)
    file.write_text(json.dumps(values))
    with pytest.raises(AdaptrainError, match=r"spectrograms of .*takes 16 and 100"):
        speech_of(base)
