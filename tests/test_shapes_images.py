"""Image classification: images of every kind as rows, their batches, a run, and what is bad."""

from __future__ import annotations

import dataclasses
import io
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoModel

import tiny_media
import tiny_run
from adaptrain.auto import AutoAdapterModel
from adaptrain.config.schema import ColumnsConfig, DataConfig, HeadConfig, ModelConfig, SplitsConfig, TaskConfig
from adaptrain.errors import ConfigError, DataError, ModelError, UnsupportedError
from adaptrain.evaluation.run import evaluate_folder
from adaptrain.tasks import media
from adaptrain.tasks.rows import load_rows
from adaptrain.tasks.settle import settle_task
from adaptrain.tasks.shapes import SHAPES
from adaptrain.tasks.sources import locate
from adaptrain.training.base_model import find_base, load_processor
from adaptrain.training.run import train

SHAPE = SHAPES["image_classification"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_media.save_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows of paths, with three splits."""
    place = tmp_path_factory.mktemp("pictures")
    for seed, (split, count) in enumerate((("train", 48), ("validation", 14), ("test", 12))):
        tiny_run.write_jsonl(place / f"{split}.jsonl", tiny_media.save_pictures(place / split, count, 3, seed))
    return place


def task(place, **more):
    given = {"columns": ColumnsConfig(image="image", label="label"), "labels": ("red", "blue", "green")} | more
    return TaskConfig(name="colours", type="image_classification", path=str(place), metric="accuracy", **given)


def rows_of(place, split="train", bad_rows="error", **more):
    config = task(place, **more)
    return load_rows(config, split, locate(config, DataConfig()), bad_rows)


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


# ---- where images come from


def test_the_same_images_are_read_from_paths_bytes_numbers_folders_and_archives(tmp_path):
    arrays = [tiny_media.picture(index % 2, index) for index in range(6)]
    grey = [array[:, :, 0] for array in arrays]
    labels = [index % 2 for index in range(6)]
    (tmp_path / "paths").mkdir()
    for index, array in enumerate(arrays):
        (tmp_path / "paths" / f"{index}.png").write_bytes(png(array))
        near = tmp_path / "classes" / "train" / ("red", "blue")[index % 2]
        near.mkdir(parents=True, exist_ok=True)
        (near / f"{index}.png").write_bytes(png(array))
    tiny_run.write_jsonl(
        tmp_path / "paths" / "train.jsonl", [{"image": f"{i}.png", "label": y} for i, y in enumerate(labels)]
    )
    (tmp_path / "bytes").mkdir()
    stored = {"image": [{"bytes": png(array), "path": None} for array in arrays], "label": labels}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(stored, features=features).to_parquet(tmp_path / "bytes" / "train.parquet")
    (tmp_path / "numbers").mkdir()
    numbers = [{"image": array.tolist(), "label": y} for array, y in zip(arrays, labels, strict=True)]
    tiny_run.write_jsonl(tmp_path / "numbers" / "train.jsonl", numbers)
    np.savez(tmp_path / "colours.npz", x_train=np.stack(arrays), y_train=labels)
    np.savez(tmp_path / "medical.npz", train_images=np.stack(grey), train_labels=np.asarray(labels)[:, None])

    order = [0, 2, 4, 1, 3, 5]
    for place in ("paths", "bytes", "numbers", "colours.npz"):
        rows = rows_of(tmp_path / place, labels=("red", "blue"))
        assert list(rows.labels) == labels
        for image, array in zip(rows.columns["image"], arrays, strict=True):
            assert image.mode == "RGB"
            assert np.array_equal(np.asarray(image), array)
    rows = rows_of(tmp_path / "classes", labels=("red", "blue"))
    assert sorted(rows.labels) == sorted(labels)
    found = {
        np.asarray(image).tobytes(): label for image, label in zip(rows.columns["image"], rows.labels, strict=True)
    }
    assert found == {arrays[row].tobytes(): row % 2 for row in order}
    for image, array in zip(rows_of(tmp_path / "medical.npz", labels=("a", "b")).columns["image"], grey, strict=True):
        assert np.array_equal(np.asarray(image), np.stack([array] * 3, -1))


def test_a_fingerprint_is_of_the_content(tmp_path):
    for name, first in (("one", "a.png"), ("two", "b.png"), ("three", "a.png")):
        (tmp_path / name).mkdir()
        (tmp_path / name / first).write_bytes(png(tiny_media.picture(0, name == "three")))
        (tmp_path / name / "c.png").write_bytes(png(tiny_media.picture(1, 5)))
        rows = [{"image": first, "label": 0}, {"image": str(tmp_path / name / "c.png"), "label": 1}]
        tiny_run.write_jsonl(tmp_path / name / "train.jsonl", rows)
    one, two, three = (rows_of(tmp_path / name).fingerprint for name in ("one", "two", "three"))
    assert one == two != three


def test_grey_transparent_turned_and_16_bit_images_become_rgb(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    Image.fromarray(array).save(tmp_path / "grey.png")
    Image.fromarray(array.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(np.dstack([array] * 3 + [array * 0])).save(tmp_path / "clear.png")
    turned = Image.fromarray(np.rot90(array))
    exif = turned.getexif()
    exif[0x0112] = 6  # the top is on the right
    turned.save(tmp_path / "turned.png", exif=exif)
    names = ("grey", "deep", "clear", "turned")
    tiny_run.write_jsonl(tmp_path / "train.jsonl", [{"image": f"{name}.png", "label": 0} for name in names])
    for image in rows_of(tmp_path).columns["image"]:
        assert np.array_equal(np.asarray(image), np.stack([array] * 3, -1))


def test_columns_and_labels_are_inferred(tmp_path, folder):
    rows = [{"img": "a.png", "caption": "no", "fine": "x"}]
    tiny_run.write_jsonl(tmp_path / "train.jsonl", rows)
    settled = settle_task(task(folder, columns=ColumnsConfig(), labels=()), DataConfig()).task
    assert (settled.columns.image, settled.columns.label, settled.labels) == ("image", "label", ("0", "1", "2"))
    found = task(tmp_path, columns=ColumnsConfig(label="fine"), labels=("x", "y"))
    assert settle_task(found, DataConfig()).task.columns.image == "img"


def test_a_folder_of_classes_names_its_labels_and_splits(tmp_path):
    for split in ("train", "val"):
        for name in ("zebra", "ant") if split == "train" else ("zebra",):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "1.png").write_bytes(png(tiny_media.picture(0, 1)))
    config = task(tmp_path, columns=ColumnsConfig(), labels=())
    assert settle_task(config, DataConfig()).task.labels == ("ant", "zebra")
    source = locate(config, DataConfig())
    assert source.splits() == ("train", "validation")
    assert load_rows(dataclasses.replace(config, labels=("ant", "zebra")), "validation", source).labels == [1]
    with pytest.raises(DataError, match="has no split 'test'"):
        source.read("test")


def test_an_archive_of_other_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", first=np.zeros(3))
    with pytest.raises(DataError, match="arrays named by column and split are due"):
        locate(task(tmp_path / "a.npz"), DataConfig()).read("train")
    np.savez(tmp_path / "b.npz", x_train=np.zeros((3, 2, 2), np.uint8), y_train=np.zeros(2))
    with pytest.raises(DataError, match="different numbers of rows"):
        locate(task(tmp_path / "b.npz"), DataConfig()).read("train")
    (tmp_path / "c.npz").write_bytes(b"PK no")
    with pytest.raises(DataError, match="cannot be read as npz"):
        locate(task(tmp_path / "c.npz"), DataConfig()).read("train")


# ---- bad rows

GOOD = png(tiny_media.picture(0, 0))
BAD = {
    "missing image": (None, "missing"),
    "missing image file": ({"bytes": None, "path": "gone.png"}, "gone.png, and there is no file"),
    "image that does not open": ({"bytes": GOOD[:-60], "path": "cut.png"}, r"cut\.png, which does not open \(.*\)"),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_image_is_refused_with_its_row_or_skipped(reason, tmp_path):
    value, told = BAD[reason]
    stored = {"image": [{"bytes": GOOD, "path": None}, value], "label": [0, 1]}
    datasets.Dataset.from_dict(stored).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=f"row 2: the image in column 'image' is .*{told}.*bad_rows=skip"):
        rows_of(tmp_path)
    rows = rows_of(tmp_path, bad_rows="skip")
    assert len(rows) == 1
    assert rows.bad == {reason: 1}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([[1, 2], [3]], "different lengths"),
        ([[0, 256]], "go from 0 to 256"),
        ([[-1, 2]], "go from -1 to 2"),
        ([[0.5, 0.1]], "numbers of type double"),
        ([[[1, 2], [3, 4]]], "1 × 2 × 2 numbers"),
        (3, "3, which is no image"),
    ],
)
def test_numbers_that_are_no_image_are_refused(value, told, tmp_path):
    tiny_run.write_jsonl(tmp_path / "train.jsonl", [{"image": value, "label": 0}])
    with pytest.raises(DataError, match=told):
        rows_of(tmp_path)


def test_bytes_that_are_no_image_and_a_jpeg_that_ends_early_do_not_open(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(stream, "JPEG")
    (tmp_path / "b.jpg").write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    Image.fromarray(np.ones((2, 2), np.int32)).save(tmp_path / "c.tif")
    names = ("a.png", "b.jpg", "c.tif")
    tiny_run.write_jsonl(tmp_path / "train.jsonl", [{"image": name, "label": 0} for name in names])
    with pytest.raises(DataError, match="3 of 3 rows are bad: 2 image that does not open, 1 image of other numbers"):
        rows_of(tmp_path)


def test_a_label_outside_the_map_is_a_bad_row(folder):
    with pytest.raises(DataError, match="the label 2 in column 'label' is not in the label map"):
        rows_of(folder, labels=("red", "blue"))


def test_without_pillow_it_says_what_to_install(folder, monkeypatch):
    monkeypatch.setattr(media, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package PIL.*adaptrain\[vision\]"):
        rows_of(folder)


def test_an_image_that_vanishes_is_told_with_its_row(tmp_path):
    tiny_run.write_jsonl(tmp_path / "train.jsonl", tiny_media.save_pictures(tmp_path / "all", 3))
    rows = rows_of(tmp_path, labels=("a", "b"))
    (tmp_path / "all" / "1.png").unlink()
    with pytest.raises(DataError, match="row 2: the image in column 'image' is all/1.png, and there is no file"):
        rows.columns["image"][1]


# ---- what a model reads of them


def reader_of(base, place):
    processor = load_processor(find_base(ModelConfig(name=str(base))), "images")
    model = AutoAdapterModel.from_pretrained(base)
    config = task(place)
    model.add_adapter("colours", config="lora")
    SHAPE.put_head(model, config, HeadConfig())
    return model, SHAPE.reader(processor, model.base_model, config, DataConfig())


def test_a_batch_is_what_the_processor_makes_and_its_loss_that_of_the_head(base, folder):
    model, reader = reader_of(base, folder)
    rows = rows_of(folder)
    encoded = reader.encode(rows)
    batch = reader.collate(encoded, [5, 3])
    assert set(batch) == {"pixel_values", "labels"}
    raw = [Image.open(folder / "train" / f"{index}.png").convert("RGB") for index in (5, 3)]
    small = [np.asarray(image.resize((12, 12), Image.Resampling.BILINEAR), dtype=np.float32) for image in raw]
    expected = torch.from_numpy(np.stack([(each / 255 - 0.5) / 0.5 for each in small])).permute(0, 3, 1, 2)
    torch.testing.assert_close(batch["pixel_values"], expected, atol=1e-5, rtol=0)
    assert batch["labels"].tolist() == [2, 0]

    model.eval()
    with torch.no_grad():
        found = model(**batch)
        bare = AutoModel.from_pretrained(base).eval()(pixel_values=batch["pixel_values"]).last_hidden_state[:, 0]
        (head,) = model.heads.values()
        logits = head.scores(bare)
    torch.testing.assert_close(found.logits, logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.loss, F.cross_entropy(logits, torch.tensor([2, 0])), atol=1e-5, rtol=0)


def test_images_come_in_the_numbers_of_the_base(base, folder):
    model = AutoAdapterModel.from_pretrained(base, dtype=torch.bfloat16)
    processor = load_processor(find_base(ModelConfig(name=str(base))), "images")
    reader = SHAPE.reader(processor, model.base_model, task(folder), DataConfig())
    assert reader.collate(reader.encode(rows_of(folder)), [0])["pixel_values"].dtype == torch.bfloat16


def test_a_processor_that_keeps_the_shape_is_refused(base, folder):
    _, reader = reader_of(base, folder)
    reader.processor.do_resize = False
    with pytest.raises(DataError, match="makes images of different sizes, 12 × 12 and 13 × 13"):
        reader.collate(reader.encode(rows_of(folder)), [0, 1])


# ---- runs


def run(base, place, outputs, **more):
    given = {"labels": (), "columns": ColumnsConfig(), "splits": SplitsConfig(test="test")} | more.pop("task", {})
    config = tiny_run.run_config(base, place, outputs, task=task(place, **given), data={"mirror": None}, **more)
    return train(config)


def trivial(result):
    return json.loads((result.folder / "metrics.json").read_text())["baseline"]["metrics"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_beats_the_majority_and_evaluates_to_the_same(precision, base, folder, tmp_path):
    more = {"task": {"extra_metrics": ("top1", "macro_f1")}, "epochs": 4, "precision": precision}
    result = run(base, folder, tmp_path, **more)
    assert result.row["baseline"]["answer"] == "0"
    assert result.row["score"] > trivial(result)["accuracy"] + 0.3
    assert result.row["metrics"]["top1"] == result.row["metrics"]["accuracy"] == result.row["score"]
    assert trivial(result)["top1"] == trivial(result)["accuracy"] == pytest.approx(1 / 3)
    again = evaluate_folder(result.folder)
    assert again.reproduced
    other = evaluate_folder(result.folder, batch_size=5)
    assert other.score == pytest.approx(again.score, abs=0.1)
    again.predictions.write(tmp_path / "said.jsonl")
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert np.mean([row["label"] == row["prediction"] for row in said]) == pytest.approx(again.score)
    assert len(said[0]["logits"]) == 3


def test_top5_is_of_the_ranked_labels(base, tmp_path):
    chance = np.random.default_rng(0)
    images = chance.integers(0, 255, (40, 12, 12), dtype=np.uint8)
    np.savez(tmp_path / "many.npz", x_train=images, y_train=np.arange(40) % 8, x_test=images, y_test=np.arange(40) % 8)
    names = tuple(f"class {index}" for index in range(8))
    splits = SplitsConfig(validation="test")
    given = {"labels": names, "splits": splits, "extra_metrics": ("top5",)}
    result = run(base, tmp_path / "many.npz", tmp_path / "out", task=given, epochs=1)
    said = [row["logits"] for row in evaluate_folder(result.folder).predictions.rows()]
    right = [label in np.argsort(logits)[-5:] for logits, label in zip(said, np.arange(40) % 8, strict=True)]
    assert result.row["metrics"]["top5"] == pytest.approx(np.mean(right))
    assert trivial(result)["top5"] == pytest.approx(5 / 8)


def test_a_model_of_texts_is_refused(folder, tmp_path):
    words = tiny_run.save_base(tmp_path / "bert")
    with pytest.raises(UnsupportedError, match=r"\(a bert\) reads texts, and the task's rows are images"):
        run(words, folder, tmp_path / "out")


def test_a_model_of_images_is_refused_for_texts(base, tmp_path):
    mirror = tiny_run.save_data(tmp_path / "mirror")
    with pytest.raises(UnsupportedError, match=r"\(a vit\) reads images, and the task's rows are texts"):
        train(tiny_run.run_config(base, mirror, tmp_path / "out"))


def test_a_model_without_a_processor_is_refused(base, folder, tmp_path):
    AutoModel.from_pretrained(base).save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match=r"has no usable image processor .* preprocessor_config\.json is due"):
        run(tmp_path / "bare", folder, tmp_path / "out")
