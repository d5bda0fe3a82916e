"""Images and recordings small enough for a test, and random models that read them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image
from transformers import (
    GenerationConfig,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

SIDE, RATE = 12, 16000
COLOURS = ((200, 40, 40), (40, 60, 200), (60, 190, 60))
TONES = {"low": 300.0, "high": 2400.0}
LANGUAGES = ("en", "fr")


def save_vit(folder: Path) -> Path:
    """A ViT for images of 12 × 12 in 9 patches, and its processor."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = ViTConfig(**sizes, image_size=SIDE, patch_size=4, initializer_range=0.2)
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def picture(label: int, seed: int, side: int = SIDE) -> np.ndarray:
    """(side, side, 3): noise around the colour of a label."""
    noise = np.random.default_rng((label, seed)).normal(0, 25, (side, side, 3))
    return np.clip(np.asarray(COLOURS[label]) + noise, 0, 255).astype(np.uint8)


def save_pictures(folder: Path, count: int, labels: int = 2, seed: int = 0) -> list[dict[str, Any]]:
    """PNGs of several sizes and modes; a row each, with the path from the folder above."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        label = index % labels
        image = Image.fromarray(picture(label, seed * 1000 + index, SIDE + index % 5))
        name = f"{index}.png"
        (image.convert("RGBA") if index % 7 == 3 else image).save(folder / name)
        rows.append({"image": f"{folder.name}/{name}", "label": label})
    return rows


def save_whisper(folder: Path, multilingual: bool = False, headed: bool = True) -> Path:
    """A Whisper that hears one second in 16 mel bins and writes letters.

    Args:
        headed: whether the output embedding is saved with it, as with the real ones.
    """
    torch.manual_seed(0)
    letters = [*"abcdefghijklmnopqrstuvwxyz", "Ġ", "."]
    special = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{name}|>" for name in LANGUAGES)]
    special += [f"<|{name}|>" for name in ("translate", "transcribe", "startoflm", "startofprev", "nospeech")]
    special += ["<|notimestamps|>"]
    words = {word: index for index, word in enumerate([*letters, *special])}
    tokenizer = WhisperTokenizer(vocab=words, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    config = WhisperConfig(
        vocab_size=len(words),
        num_mel_bins=16,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=50,
        max_target_positions=40,
        decoder_start_token_id=words["<|startoftranscript|>"],
        bos_token_id=words["<|endoftext|>"],
        eos_token_id=words["<|endoftext|>"],
        pad_token_id=words["<|endoftext|>"],
        init_std=0.15,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config)
    more: dict[str, Any] = {"lang_to_id": {f"<|{name}|>": words[f"<|{name}|>"] for name in LANGUAGES}}
    more["task_to_id"] = {name: words[f"<|{name}|>"] for name in ("transcribe", "translate")}
    model.generation_config = GenerationConfig(
        decoder_start_token_id=config.decoder_start_token_id,
        eos_token_id=config.eos_token_id,
        bos_token_id=config.bos_token_id,
        pad_token_id=config.pad_token_id,
        no_timestamps_token_id=words["<|notimestamps|>"],
        is_multilingual=multilingual,
        max_length=40,
        begin_suppress_tokens=[words["<|endoftext|>"]],
        forced_decoder_ids=[[1, words["<|notimestamps|>"]]],
        **(more if multilingual else {}),
    )
    (model if headed else model.model).save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    WhisperProcessor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def tone(word: str, seconds: float = 0.5, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """(time): the tone of a word with a little noise."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(0, 0.02, len(time))
    return (0.5 * np.sin(2 * np.pi * TONES[word] * time) + noise).astype(np.float32)


def save_tones(folder: Path, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Wav and flac files of several rates and channels; a row each, with the path from the folder above."""
    folder.mkdir(parents=True, exist_ok=True)
    chance, rows = random.Random(seed), []
    for index in range(count):
        word, rate = chance.choice(tuple(TONES)), chance.choice((8000, 16000, 22050))
        samples = tone(word, chance.uniform(0.2, 0.9), rate, seed * 1000 + index)
        name = f"{index}.{'flac' if index % 3 == 0 else 'wav'}"
        soundfile.write(folder / name, np.stack([samples, samples], 1) if index % 2 else samples, rate)
        rows.append({"audio": f"{folder.name}/{name}", "text": word})
    return rows
