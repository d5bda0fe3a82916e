"""Images and base models that take others: channels, sizes, and processors of another model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from adaptrain.auto import AutoAdapterModel
from adaptrain.config.schema import ColumnsConfig, DataConfig, HeadConfig, ModelConfig, TaskConfig
from adaptrain.errors import AdaptrainError
from adaptrain.tasks.room import read_rows
from adaptrain.tasks.rows import load_rows
from adaptrain.tasks.shapes import SHAPES
from adaptrain.tasks.sources import FolderSource
from adaptrain.training.base_model import find_base, load_processor
from tiny_media import SIDE, picture
from tiny_run import write_jsonl

SHAPE = SHAPES["image_classification"]
TASK = TaskConfig(
    name="t",
    type="image_classification",
    path="p",
    metric="accuracy",
    columns=ColumnsConfig(image="image", label="label"),
    labels=("red", "blue"),
)
EQUAL: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def save_base(folder: Path, channels: int = 3, **processor: Any) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ViTConfig(**sizes, image_size=SIDE, patch_size=4, num_channels=channels, initializer_range=0.3)
    ViTModel(config).save_pretrained(folder)
    given = {"size": {"height": SIDE, "width": SIDE}} | EQUAL | processor
    ViTImageProcessorPil(**given).save_pretrained(folder)
    return folder


def reader_of(base: Path) -> tuple[Any, Any]:
    processor = load_processor(find_base(ModelConfig(name=str(base))), "images")
    model = AutoAdapterModel.from_pretrained(base)
    SHAPE.put_head(model, TASK, HeadConfig())
    return model, SHAPE.reader(processor, model.base_model, TASK, DataConfig())


def images() -> dict[str, Image.Image]:
    """One picture in the modes that files have."""
    colour = Image.fromarray(picture(0, 1))
    grey = colour.convert("L")
    deep = Image.fromarray((np.asarray(grey).astype(np.uint16) << 8) | np.asarray(grey))
    return {
        "RGB": colour,
        "L": grey,
        "I;16": deep,
        "RGBA": colour.convert("RGBA"),
        "LA": grey.convert("LA"),
        "P": grey.convert("P"),
        "1": grey.convert("1"),
    }


@pytest.mark.parametrize("channels", [3, 1])
def test_images_of_every_mode_go_into_bases_of_three_channels_and_of_one(channels: int, tmp_path: Path) -> None:
    files = images()
    for mode, image in files.items():
        image.save(tmp_path / f"{mode.replace(';', '')}.png")
    rows = [{"image": f"{mode.replace(';', '')}.png", "label": 0} for mode in files]
    write_jsonl(tmp_path / "train.jsonl", rows)
    model, reader = reader_of(save_base(tmp_path / "base", channels))
    read = read_rows(reader, load_rows(TASK, "train", FolderSource(tmp_path)), model)
    batch = reader.collate(read.encoded, range(len(rows)))
    assert batch["pixel_values"].shape == (len(rows), channels, SIDE, SIDE)
    pixels = dict(zip(files, batch["pixel_values"], strict=True))
    right = np.asarray(files["L" if channels == 1 else "RGB"], dtype=np.float32)[None if channels == 1 else ...]
    right = right if channels == 1 else right.transpose(2, 0, 1)
    np.testing.assert_allclose(pixels["RGB"], (right / 255 - 0.5) / 0.5, atol=1e-5)
    for mode in ("I;16", "LA", "P"):
        np.testing.assert_allclose(pixels[mode], pixels["L"], atol=1e-5)
    np.testing.assert_allclose(pixels["RGBA"], pixels["RGB"], atol=1e-5)
    assert model(**{key: value for key, value in batch.items() if key != "labels"}).logits.isfinite().all()


@pytest.mark.parametrize(
    ("channels", "processor", "message"),
    [
        (1, {"image_mean": [0.4, 0.5, 0.6]}, r"one channel, and image_mean in its preprocessor_config\.json"),
        (4, {}, "images of 4 channels"),
        (3, {"size": {"height": 16, "width": 16}}, r"images of 3 × 16 × 16 .* 3 channels of 12.*preprocessor_config"),
        (3, {"do_resize": False}, "images of different sizes, 48 × 64 and 64 × 48.*preprocessor_config"),
        (3, {"image_mean": [0.5]}, "image processor makes nothing of an image: .*mean"),
    ],
)
def test_a_processor_that_does_not_belong_to_the_base_is_refused_when_it_is_loaded(
    channels: int, processor: dict[str, Any], message: str, tmp_path: Path
) -> None:
    base = save_base(tmp_path, channels, **processor)
    with pytest.raises(AdaptrainError, match=message):
        reader_of(base)


def test_trying_a_base_out_draws_no_random_number_and_changes_no_mode(tmp_path: Path) -> None:
    base = save_base(tmp_path)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.5}))
    model, reader = reader_of(base)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for training in (True, False):
        model.base_model.train(training)
        SHAPE.reader(reader.processor, model.base_model, TASK, DataConfig())
        assert model.base_model.training is training
    assert torch.equal(before, torch.get_rng_state())
