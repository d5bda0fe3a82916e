"""Speech recognition: recordings of every kind as rows, their batches, what is written of them, and what is bad."""

from __future__ import annotations

import io
import json
import logging
import re

import datasets
import numpy as np
import pytest
import soundfile
import torch
from torch.nn import functional as F
from transformers import WhisperForConditionalGeneration

import tiny_media
import tiny_run
from adaptrain.auto import AutoAdapterModel
from adaptrain.cli.main import main
from adaptrain.config.schema import (
    ColumnsConfig,
    DataConfig,
    GenerationConfig,
    HeadConfig,
    ModelConfig,
    SplitsConfig,
    TaskConfig,
)
from adaptrain.errors import ConfigError, DataError, ModelError, UnsupportedError
from adaptrain.evaluation.run import evaluate_folder
from adaptrain.tasks import media
from adaptrain.tasks.rows import load_rows
from adaptrain.tasks.settle import settle_task
from adaptrain.tasks.shapes import SHAPES
from adaptrain.tasks.sources import locate
from adaptrain.training.base_model import find_base, load_processor
from adaptrain.training.run import train

SHAPE = SHAPES["speech_recognition"]
SHORT = GenerationConfig(max_new_tokens=12)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_media.save_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    return tiny_media.save_whisper(tmp_path_factory.mktemp("multilingual"), multilingual=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("tones")
    for seed, (split, count) in enumerate((("train", 32), ("validation", 9), ("test", 8))):
        tiny_run.write_jsonl(place / f"{split}.jsonl", tiny_media.save_tones(place / split, count, seed))
    return place


def task(place, generation=SHORT, **more):
    given = {"columns": ColumnsConfig(audio="audio", target="text"), "metric": "wer"} | more
    return TaskConfig(name="tones", type="speech_recognition", path=str(place), generation=generation, **given)


def rows_of(place, split="train", bad_rows="error", **more):
    config = task(place, **more)
    return load_rows(config, split, locate(config, DataConfig()), bad_rows)


def reader_of(base, place, generation=SHORT, data=None, dtype=None):
    processor = load_processor(find_base(ModelConfig(name=str(base))), "sound")
    model = AutoAdapterModel.from_pretrained(base, own_head="seq2seq_lm", dtype=dtype)
    model.add_adapter("tones", config="lora")
    config = task(place, generation)
    SHAPE.put_head(model, config, HeadConfig())
    model.set_active_adapters("tones")
    return model, SHAPE.reader(processor, model.base_model, config, data or DataConfig())


def wav(samples, rate=tiny_media.RATE, subtype="FLOAT", kind="WAV"):
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=kind, subtype=subtype)
    return stream.getvalue()


# ---- where recordings come from


def test_the_same_recordings_are_read_from_paths_bytes_and_numbers(tmp_path):
    tones = [tiny_media.tone(word, 0.3, seed=index) for index, word in enumerate(("low", "high", "low"))]
    texts = ["low", "high", "low"]
    for name in ("paths", "bytes", "numbers"):
        (tmp_path / name).mkdir()
    rows = []
    for index, (tone, text) in enumerate(zip(tones, texts, strict=True)):
        soundfile.write(tmp_path / "paths" / f"{index}.wav", tone, tiny_media.RATE, subtype="FLOAT")
        rows.append({"audio": f"{index}.wav", "text": text})
    rows[1]["audio"] = str(tmp_path / "paths" / "1.wav")
    tiny_run.write_jsonl(tmp_path / "paths" / "train.jsonl", rows)
    stored = {"audio": [{"bytes": wav(tone), "path": None} for tone in tones], "text": texts}
    made = datasets.Dataset.from_dict(stored).cast_column("audio", datasets.Audio(decode=False))
    made.to_parquet(tmp_path / "bytes" / "train.parquet")
    numbers = [{"audio": {"array": tone.tolist(), "sampling_rate": tiny_media.RATE}} for tone in tones]
    tiny_run.write_jsonl(
        tmp_path / "numbers" / "train.jsonl", [r | {"text": t} for r, t in zip(numbers, texts, strict=True)]
    )
    for name in ("paths", "bytes", "numbers"):
        found = rows_of(tmp_path / name)
        assert list(found.columns["target"]) == texts
        for sound, tone in zip(found.columns["audio"], tones, strict=True):
            assert sound.rate == tiny_media.RATE
            np.testing.assert_allclose(sound.samples, tone, atol=1e-7)
    again = rows_of(tmp_path / "paths", columns=ColumnsConfig())
    assert again.fingerprint == rows_of(tmp_path / "paths").fingerprint == rows_of(tmp_path / "bytes").fingerprint


def test_several_channels_become_their_mean(tmp_path):
    left, right = tiny_media.tone("low", 0.1), tiny_media.tone("high", 0.1)
    (tmp_path / "a.flac").write_bytes(wav(np.stack([left, right], 1), subtype="PCM_24", kind="FLAC"))
    pair = {"array": np.stack([left, right]).tolist(), "sampling_rate": tiny_media.RATE}
    tiny_run.write_jsonl(tmp_path / "train.jsonl", [{"audio": "a.flac", "text": "x"}])
    tiny_run.write_jsonl(tmp_path / "numbers.jsonl", [{"audio": pair, "text": "x"}])
    for sound in (
        rows_of(tmp_path).columns["audio"][0],
        rows_of(tmp_path / "numbers.jsonl").columns["audio"][0],
    ):
        np.testing.assert_allclose(sound.samples, (left + right) / 2, atol=1e-6)


def test_columns_are_inferred(folder):
    settled = settle_task(task(folder, columns=ColumnsConfig()), DataConfig()).task
    assert (settled.columns.audio, settled.columns.target) == ("audio", "text")


# ---- bad rows

TONE = wav(tiny_media.tone("low", 0.2))
FLAC = wav(np.random.default_rng(0).normal(0, 0.1, 40000), subtype="PCM_16", kind="FLAC")
BAD = {
    "missing sound": (None, "low", "is missing"),
    "missing sound file": ({"bytes": None, "path": "gone.wav"}, "low", "gone.wav, and there is no file"),
    "sound that does not open": ({"bytes": b"RIFF no sound", "path": "a.wav"}, "low", "a.wav, which does not open"),
    "empty sound": ({"bytes": wav(np.zeros(0)), "path": "b.wav"}, "low", "b.wav, which has no sample"),
    "sound longer than 30 s": ({"bytes": wav(np.zeros(30_100), 1000), "path": "c.wav"}, "low", r"30\.1 s long"),
    "missing text": ({"bytes": TONE, "path": None}, None, "the target in column 'text' is missing"),
    "empty text": ({"bytes": TONE, "path": None}, " ", "the target in column 'text' is empty"),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_recording_is_refused_with_its_row_or_skipped(reason, tmp_path):
    value, text, told = BAD[reason]
    stored = {"audio": [{"bytes": TONE, "path": None}, value], "text": ["high", text]}
    datasets.Dataset.from_dict(stored).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=f"row 2: .*{told}.*bad_rows=skip"):
        rows_of(tmp_path)
    rows = rows_of(tmp_path, bad_rows="skip")
    assert len(rows) == 1
    assert rows.bad == {reason: 1}


def test_a_recording_that_ends_early_does_not_open(tmp_path):
    (tmp_path / "a.flac").write_bytes(FLAC[: len(FLAC) // 2])
    tiny_run.write_jsonl(tmp_path / "train.jsonl", [{"audio": "a.flac", "text": "x"}])
    with pytest.raises(DataError, match=r"a\.flac, which does not open"):
        rows_of(tmp_path)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"array": [], "sampling_rate": 16000}, "its array has no number"),
        ({"array": [0.1], "sampling_rate": None}, "sampling_rate None"),
        ({"array": [[[0.1]]], "sampling_rate": 16000}, "no sound"),
    ],
)
def test_numbers_that_are_no_sound_are_refused(value, told, tmp_path):
    tiny_run.write_jsonl(tmp_path / "train.jsonl", [{"audio": value, "text": "x"}])
    with pytest.raises(DataError, match=told):
        rows_of(tmp_path)


def test_without_soundfile_it_says_what_to_install(folder, monkeypatch):
    monkeypatch.setattr(media, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package soundfile.*adaptrain\[speech\]"):
        rows_of(folder)


def test_a_recording_longer_than_the_model_hears_is_refused(base, tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(np.zeros(20000)))
    tiny_run.write_jsonl(tmp_path / "train.jsonl", [{"audio": "a.wav", "text": "x"}])
    _, reader = reader_of(base, tmp_path)
    with pytest.raises(DataError, match=r"1 recordings are longer than the 1 s .* 1\.2 s"):
        reader.encode(rows_of(tmp_path))


# ---- what a model reads of them


def letters(reader, text):
    return [ord(letter) - 97 if letter != " " else 26 for letter in text]


def test_a_batch_by_hand_and_its_loss(base, folder):
    """The prefix is <|startoftranscript|> (29), <|notimestamps|> (37); the end is 28, which pads too."""
    model, reader = reader_of(base, folder)
    rows = rows_of(folder)
    texts = list(rows.columns["target"])
    low, high = texts.index("low"), texts.index("high")
    encoded = reader.encode(rows)
    batch = reader.collate(encoded, [low, high])
    assert batch["decoder_input_ids"].tolist() == [
        [29, 37, *letters(reader, " low"), 28],
        [29, 37, *letters(reader, " high")],
    ]
    assert batch["labels"].tolist() == [
        [-100, *letters(reader, " low"), 28, -100],
        [-100, *letters(reader, " high"), 28],
    ]
    assert [encoded.lengths[low], encoded.lengths[high]] == [6, 7]
    assert encoded.weight([low, high]) == 5 + 6

    extractor = reader.processor.feature_extractor
    sound = rows.columns["audio"][low].at(16000)
    expected = extractor(sound, sampling_rate=16000, return_tensors="pt")["input_features"][0]
    assert expected.shape == (16, 100)
    torch.testing.assert_close(batch["input_features"][0], expected)

    model.eval()
    plain = WhisperForConditionalGeneration.from_pretrained(base).eval()
    with torch.no_grad():
        found = model(**batch)
        losses = []
        for row, count in ((0, 5), (1, 6)):  # each alone, without padding
            ids, right = batch["decoder_input_ids"][row, : count + 1], batch["labels"][row, 1 : count + 1]
            features = batch["input_features"][row : row + 1]
            logits = plain(input_features=features, decoder_input_ids=ids[None]).logits[0, 1:]
            losses.append(F.cross_entropy(logits, right, reduction="sum"))
    torch.testing.assert_close(found.loss, sum(losses) / 11, atol=1e-5, rtol=1e-5)


def test_long_transcripts_are_cut_and_counted_without_an_end(base, folder):
    _, reader = reader_of(base, folder, data=DataConfig(max_target_length=4))
    rows = rows_of(folder)
    encoded = reader.encode(rows)
    assert encoded.truncated == len(rows)  # " low" and its end are five
    low = list(rows.columns["target"]).index("low")
    assert list(encoded.features["labels"][low]) == [-100, *letters(reader, " low")]
    assert list(encoded.features["decoder_input_ids"][low]) == [29, 37, *letters(reader, " lo")]


def test_sound_comes_in_the_numbers_of_the_base(base, folder):
    model, reader = reader_of(base, folder, dtype=torch.bfloat16)
    batch = reader.collate(reader.encode(rows_of(folder)), [0, 1])
    assert batch["input_features"].dtype == torch.bfloat16
    assert torch.isfinite(model(**batch).loss)
    assert len(SHAPE.answers(model, batch, reader)) == 2


def test_a_language_is_asked_for_where_there_are_several(several, base, folder):
    with pytest.raises(ConfigError, match=r"say the one of the transcripts: task\.generation\.language=en"):
        reader_of(several, folder)
    with pytest.raises(ConfigError, match=r"language=frensh: this Whisper does not write it.*'french'"):
        reader_of(several, folder, GenerationConfig(max_new_tokens=5, language="frensh"))
    with pytest.raises(ConfigError, match="this Whisper writes English alone"):
        reader_of(base, folder, GenerationConfig(max_new_tokens=5, language="fr"))
    assert reader_of(base, folder, GenerationConfig(max_new_tokens=5, language="en"))[1].prefix == (29, 37)
    for name in ("fr", "French"):
        _, reader = reader_of(several, folder, GenerationConfig(max_new_tokens=5, language=name))
        assert reader.tokenizer.convert_ids_to_tokens(reader.prefix) == [
            "<|startoftranscript|>",
            "<|fr|>",
            "<|transcribe|>",
            "<|notimestamps|>",
        ]


def test_a_language_and_long_answers_are_checked():
    found = TaskConfig(
        name="a", type="summarisation", path="p", metric="rouge1", generation=GenerationConfig(language="en")
    )
    assert ("generation.language", "is set; task.type=summarisation does not read it") in list(found.problems())


def test_answers_longer_than_the_model_are_refused(base, folder):
    with pytest.raises(ConfigError, match="max_new_tokens=39 does not fit behind 2 tokens in a model of 40"):
        reader_of(base, folder, GenerationConfig(max_new_tokens=39))


# ---- what it writes


def slow(model, features, prefix, count, banned, end=28):
    """The likeliest token each time, without a cache."""
    ids = list(prefix)
    while len(ids) < len(prefix) + count:
        with torch.no_grad():
            logits = model(input_features=features, decoder_input_ids=torch.tensor([ids])).logits[0, -1]
        if len(ids) == len(prefix):
            logits[banned] = -torch.inf
        ids.append(int(logits.argmax()))
        if ids[-1] == end:
            break
    return ids[len(prefix) :]


@pytest.mark.parametrize("kind", ["base", "several"])
def test_what_is_written_is_the_likeliest_each_time_with_the_adapter(kind, folder, request, caplog):
    place, language = request.getfixturevalue(kind), "fr" if kind == "several" else None
    model, reader = reader_of(place, folder, GenerationConfig(max_new_tokens=6, language=language))
    torch.manual_seed(1)
    for _, parameter in model.trainable_parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    model.eval()
    batch = reader.collate(reader.encode(rows_of(folder)), [0, 1, 2, 3])
    with caplog.at_level(logging.WARNING):
        answers = SHAPE.answers(model, batch, reader)
    assert not caplog.records
    special = set(reader.tokenizer.all_special_ids)
    for row, answer in enumerate(answers):
        expected = slow(model, batch["input_features"][row : row + 1], reader.prefix, 6, [28])
        assert [token for token in expected if token not in special] == list(answer)


# ---- runs


def run(base, place, outputs, **more):
    given = {"splits": SplitsConfig(test="test"), "extra_metrics": ("cer", "wer_normalised")} | more.pop("task", {})
    config = tiny_run.run_config(base, place, outputs, task=task(place, **given), data={"mirror": None}, **more)
    return train(config)


@pytest.mark.parametrize(("headed", "precision"), [(True, "fp32"), (False, "bf16")])
def test_a_run_beats_silence_and_evaluates_to_the_same(headed, precision, folder, tmp_path):
    base = tiny_media.save_whisper(tmp_path / "base", headed=headed)
    more = {"epochs": 6, "batch_size": 4, "learning_rate": 3e-3, "precision": precision}
    more["adapter"] = {"method": "full"}  # an adapter learns little on a base that has learnt nothing
    result = run(base, folder, tmp_path / "out", **more)
    baseline = json.loads((result.folder / "metrics.json").read_text())["baseline"]
    assert (baseline["name"], baseline["metrics"]["wer"], baseline["metrics"]["cer"]) == ("silence", 1.0, 1.0)
    assert result.row["score"] < 0.9
    again = evaluate_folder(result.folder)
    assert again.reproduced
    said = list(again.predictions.rows())
    assert [set(row) for row in said] == [{"index", "label", "prediction"}] * 8
    assert np.mean([row["label"] != row["prediction"] for row in said]) == pytest.approx(again.score, abs=0.3)
    assert evaluate_folder(result.folder, batch_size=3).score == pytest.approx(again.score, abs=0.2)


def test_a_run_with_an_adapter_evaluates_to_the_same_in_bf16(base, folder, tmp_path):
    result = run(base, folder, tmp_path / "out", epochs=1, precision="bf16")
    assert evaluate_folder(result.folder).reproduced


def test_a_model_of_texts_or_without_its_processor_is_refused(base, folder, tmp_path):
    words = tiny_run.save_base(tmp_path / "bert")
    with pytest.raises(UnsupportedError, match="a bert writes no transcripts. Whisper does"):
        run(words, folder, tmp_path / "out")
    model = WhisperForConditionalGeneration.from_pretrained(base)
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match=r"has no usable feature extractor .* preprocessor_config\.json is due"):
        run(tmp_path / "bare", folder, tmp_path / "out")


def test_a_model_that_spells_is_refused():
    class Config:
        model_type = "wav2vec2"

    with pytest.raises(UnsupportedError, match="it spells with a CTC head, which is not supported"):
        SHAPE.own_head(Config())


# ---- looking at data


def test_the_survey_shows_seconds_and_duplicates(tmp_path, capsys):
    rows = []
    for index, seconds in enumerate((0.2, 0.5, 0.9, 0.5)):
        name = f"{index}.wav"
        soundfile.write(tmp_path / name, tiny_media.tone("low", seconds), tiny_media.RATE)
        rows.append({"audio": name, "text": "low" if index < 3 else "high"})
    tiny_run.write_jsonl(tmp_path / "train.jsonl", rows)
    tiny_run.write_jsonl(tmp_path / "validation.jsonl", rows[:1])
    for arguments in (["task=own_speech", f"task.path={tmp_path}"], [str(tmp_path), "task.columns.target=text"]):
        assert main(["data", *arguments]) == 0
        told = capsys.readouterr().out
        assert "(speech_recognition," in told
        assert "lengths in seconds" in told
        assert re.search(r"train +(trains +)?4 +0 +1 +1\b", told)
        assert re.search(r"train +0\.2 +0\.5 +0\.9", told)
