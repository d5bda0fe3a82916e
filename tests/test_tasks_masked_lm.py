"""Masked words as a task: what is masked, what it costs to be wrong, and a run from rows to a table."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertForMaskedLM, BertModel

from adaptrain.auto import AutoAdapterModel
from adaptrain.cli.main import main
from adaptrain.config.schema import ColumnsConfig, DataConfig, HeadConfig, SplitsConfig, TaskConfig
from adaptrain.errors import ConfigError, DataError, ModelError
from adaptrain.evaluation.baseline import trivial_baseline
from adaptrain.evaluation.metrics import compute
from adaptrain.evaluation.run import evaluate_folder
from adaptrain.methods import SeqBnInvConfig
from adaptrain.tasks.encoded import Encoded
from adaptrain.tasks.masking import UNMASKED, MaskedReader, Masking
from adaptrain.tasks.reading import Read
from adaptrain.tasks.rows import load_evaluation_rows, load_rows, load_training_rows
from adaptrain.tasks.shapes import SHAPES
from adaptrain.tasks.sources import FolderSource
from adaptrain.training.loop import Plan, optimise
from adaptrain.training.precision import find_hardware
from adaptrain.training.run import complete, train
from tiny_run import PLAIN, Recorder, run_config, save_base, sentences, tokenizer_of, write_jsonl

TASK = TaskConfig(
    name="tongue",
    type="masked_lm",
    path="somebody/tongue",
    columns=ColumnsConfig(text="text"),
    metric="perplexity",
    extra_metrics=("loss", "token_accuracy"),
    splits=SplitsConfig(validation="dev"),
)
INVERTIBLE = SeqBnInvConfig(reduction_factor=4).to_dict()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("masked") / "base")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """The same base with a masked-LM head that it was pre-trained with."""
    folder = tmp_path_factory.mktemp("masked") / "own"
    save_base(folder)
    torch.manual_seed(1)
    model = BertForMaskedLM(BertModel.from_pretrained(base).config)
    model.bert.load_state_dict(BertModel.from_pretrained(base).state_dict(), strict=False)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masked") / "mirror" / "tongue"
    folder.mkdir(parents=True)
    for seed, (split, count) in enumerate((("train", 96), ("dev", 20))):
        words = random.Random(seed).choices(PLAIN, k=count)  # what is masked can be told from what is not
        lines = [" ".join([word] * (2 + row % 18)) for row, word in enumerate(words)]
        (folder / f"{split}.txt").write_text("\n".join([*lines[:5], "", *lines[5:]]) + "\n")
    return folder.parent


def reader_of(base: Path, **data: Any) -> MaskedReader:
    return MaskedReader.of(tokenizer_of(base), BertModel.from_pretrained(base), DataConfig(**data))


@pytest.fixture(scope="module")
def reader(base: Path) -> MaskedReader:
    return reader_of(base)


@pytest.fixture(scope="module")
def encoded(reader: MaskedReader, mirror: Path) -> Encoded:
    return reader.encode(load_training_rows(TASK, DataConfig(mirror=str(mirror)), 0))


# ---- what is masked


MASKING = Masking(4, np.arange(100) < 5, np.arange(5, 100))


def test_fifteen_in_a_hundred_are_predicted_and_read_as_devlin_says() -> None:
    ids = np.concatenate([[2], np.tile(np.arange(5, 100), 40), [3]])
    read, labels = MASKING.masked(ids, 7, (0, 0))
    chosen = labels != UNMASKED
    assert chosen.sum() == MASKING.count(ids) == round(0.15 * 3800)
    assert not chosen[[0, -1]].any()
    assert np.array_equal(labels[chosen], ids[chosen]) and np.array_equal(read[~chosen], ids[~chosen])
    hidden = read[chosen] == 4
    same = read[chosen] == ids[chosen]
    assert abs(hidden.mean() - 0.8) < 0.05 and abs(same.mean() - 0.1) < 0.04
    other = read[chosen][~hidden & ~same]
    assert abs(len(other) / chosen.sum() - 0.1) < 0.04
    assert other.min() >= 5 and len(set(other.tolist())) > 20  # words, and not always the same


@pytest.mark.parametrize("free", [1, 2, 3, 9, 10, 11, 20])
def test_every_text_has_a_masked_word(free: int) -> None:
    ids = np.array([2, *range(5, 5 + free), 3])
    for epoch in range(5):
        labels = MASKING.masked(ids, 0, (3, epoch))[1]
        assert (labels != UNMASKED).sum() == max(1, round(0.15 * free)) == MASKING.count(ids)


def test_special_tokens_are_never_masked_wherever_they_stand() -> None:
    ids = np.array([2, 1, 4, 50, 3, 0, 3])
    for row in range(20):
        labels = MASKING.masked(ids, row, None)[1]
        assert np.flatnonzero(labels != UNMASKED).tolist() == [3]
    assert MASKING.count(np.array([2, 1, 3])) == 0


def test_masks_depend_on_seed_epoch_and_row_and_on_nothing_else(reader: MaskedReader, encoded: Encoded) -> None:
    training = reader.collate.training(3, 1)
    whole = training(encoded, list(range(8)))
    np.random.seed(0)
    torch.manual_seed(0)
    for row in range(8):
        alone, length = training(encoded, [row]), encoded.lengths[row]
        for key in ("input_ids", "labels"):
            assert torch.equal(alone[key][0], whole[key][row, :length])
    assert (whole["labels"][whole["attention_mask"] == 0] == UNMASKED).all()
    for other in (reader.collate.training(3, 2), reader.collate.training(4, 1), reader.collate):
        assert not torch.equal(other(encoded, list(range(8)))["labels"], whole["labels"])
    assert torch.equal(reader.collate(encoded, [5, 2])["labels"], reader.collate(encoded, [5, 2])["labels"])
    same = {key: [found[0]] * 8 for key, found in encoded.features.items()}
    twins = dataclasses.replace(encoded, features=same, lengths=[encoded.lengths[0]] * 8)
    assert len({tuple(row) for row in training(twins, list(range(8)))["input_ids"].tolist()}) > 1


# ---- rows


def test_rows_need_no_labels_and_empty_ones_are_left_out(mirror: Path, tmp_path: Path) -> None:
    rows = load_evaluation_rows(TASK, DataConfig(mirror=str(mirror)), "dev")
    assert (len(rows), rows.found, rows.bad, rows.labels) == (20, 21, {"empty text": 1}, ())
    (tmp_path / "dev.jsonl").write_text('{"text": "a day"}\n{"text": " "}\n{"text": "the room"}\n')
    assert load_rows(TASK, "dev", FolderSource(tmp_path)).texts == ["a day", "the room"]
    (tmp_path / "train.csv").write_text('text\n""\n" "\n')
    with pytest.raises(DataError, match="all 2 texts are empty"):
        load_rows(TASK, "train", FolderSource(tmp_path))
    few = load_training_rows(TASK, DataConfig(mirror=str(mirror), max_train=7), 1)
    assert len(few) == 7 and few.labels == ()


def test_long_texts_are_cut_and_counted(base: Path, mirror: Path) -> None:
    rows = load_training_rows(TASK, DataConfig(mirror=str(mirror)), 0)
    cut = reader_of(base, max_length=6).encode(rows)
    assert max(cut.lengths) == 6 and cut.truncated == sum(len(text.split()) > 4 for text in rows.texts) > 0
    assert cut.weights == [1] * len(rows)


def test_a_text_of_special_tokens_alone_is_refused(reader: MaskedReader, mirror: Path) -> None:
    rows = load_evaluation_rows(TASK, DataConfig(mirror=str(mirror)), "dev")
    rows.texts[3] = "[UNK] unheard"
    with pytest.raises(DataError, match=r"split 'dev': nothing of the text '\[UNK\] unheard' can be masked"):
        reader.encode(rows)


def test_a_tokenizer_without_a_mask_token_is_refused(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.mask_token = None
    with pytest.raises(ConfigError, match="needs a tokenizer with a mask token"):
        MaskedReader.of(tokenizer, BertModel.from_pretrained(base), DataConfig())


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"labels": ("a", "b")}, "labels"),
        ({"columns": ColumnsConfig(text="text", text_pair="other")}, "columns.text_pair"),
        ({"columns": ColumnsConfig(text="text", label="mood")}, "columns.label"),
    ],
)
def test_keys_without_a_meaning_are_refused(change: dict[str, Any], key: str) -> None:
    assert [name for name, _ in dataclasses.replace(TASK, **change).problems()] == [key]


def test_the_head_has_no_dropout_and_the_metric_is_of_words(base: Path, mirror: Path, tmp_path: Path) -> None:
    config = run_config(base, mirror, tmp_path, task=TASK)
    assert list(config.problems()) == []
    dropped = dataclasses.replace(config, head=HeadConfig(dropout=0.1))
    assert [name for name, _ in dropped.problems()] == ["head.dropout"]
    cached = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, cache_frozen=True))
    assert [name for name, _ in cached.problems()] == ["trainer.cache_frozen"]
    with pytest.raises(ConfigError, match="Metrics for masked_lm are: loss, perplexity, token_accuracy"):
        complete(dataclasses.replace(config, task=dataclasses.replace(TASK, metric="accuracy")))


# ---- the loss


def heads(base: Path, own: Path) -> dict[str, Any]:
    named = AutoAdapterModel.from_pretrained(base)
    named.add_adapter("a", INVERTIBLE)
    named.add_masked_lm_head("a", sparse_prediction=True)
    theirs = AutoAdapterModel.from_pretrained(own, own_head="masked_lm")
    theirs.add_adapter("a", INVERTIBLE)
    for model in (named, theirs):
        model.train_adapter("a")
        torch.manual_seed(2)
        with torch.no_grad():
            for _, parameter in model.trainable_parameters():
                parameter.normal_(std=0.3)
        model.eval()
    return {"named": named, "own": theirs}


@pytest.fixture(scope="module")
def models(base: Path, own: Path) -> dict[str, Any]:
    return heads(base, own)


@pytest.mark.parametrize("kind", ["named", "own"])
def test_scores_are_those_of_single_words(kind: str, models: dict[str, Any], reader: MaskedReader, encoded: Encoded):
    """Row sums from one padded batch equal what each row's own logits say, in float64."""
    model, shape = models[kind], SHAPES["masked_lm"]
    batch = reader.collate(encoded, [0, 3, 9])
    with torch.no_grad():
        found = shape.answers(model, batch, reader)
        for row, index in enumerate((0, 3, 9)):
            alone = reader.collate(encoded, [index])
            logits = model(**{key: value for key, value in alone.items() if key != "labels"}).logits[0].double()
            where = alone["labels"][0] != UNMASKED
            wanted = alone["labels"][0][where]
            losses = -logits.softmax(-1).log()[where, wanted]
            assert float(found[row, 0]) == pytest.approx(float(losses.sum()), rel=1e-4)
            assert int(found[row, 1]) == int((logits.argmax(-1)[where] == wanted).sum())
        loss = model(**batch).loss
    weight = encoded.weight([0, 3, 9])
    assert float(loss) == pytest.approx(float(found[:, 0].sum()) / weight, rel=1e-5)
    scores = compute(("loss",), found.numpy(), np.asarray(encoded.weights)[[0, 3, 9]])
    assert scores["loss"] == pytest.approx(float(loss))


class Keep(torch.optim.SGD):
    """Keeps the gradients instead of using them."""

    def step(self, closure: Any = None) -> None:
        self.kept = [p.grad.clone() for group in self.param_groups for p in group["params"] if p.grad is not None]


@pytest.mark.parametrize("kind", ["named", "own"])
@pytest.mark.parametrize("size", [1, 3])
def test_accumulation_is_exact_although_rows_have_different_numbers_of_words(
    kind: str, size: int, models: dict[str, Any], reader: MaskedReader, encoded: Encoded, mirror: Path, base: Path
) -> None:
    model = models[kind]
    batch = [0, 17, 3, 12, 5, 16, 8]
    weights = dataclasses.replace(encoded, weights=None)
    assert [encoded.weight([row]) for row in batch] == [1, 3, 1, 2, 1, 3, 2]
    found = {}
    for name, rows, micro in (("whole", encoded, None), ("pieces", encoded, size), ("by rows", weights, size)):
        config = dataclasses.replace(
            run_config(base, mirror, mirror).trainer, batch_size=7, micro_batch_size=micro, max_grad_norm=None
        )
        plan = Plan(rows, reader.collate.training(1, 0), dict, "loss", False, 1, 1)
        optimizer = Keep([parameter for _, parameter in model.trainable_parameters()], lr=0.0)
        loss = optimise(model, optimizer, plan, batch, config, find_hardware("cpu", "fp32", False))
        found[name] = [loss.reshape(1), *(gradient.reshape(-1) for gradient in optimizer.kept)]
    whole, pieces, by_rows = (torch.cat(values) for values in found.values())
    assert float((whole - pieces).abs().max()) < 1e-5 * float(whole.abs().max())
    assert float((whole - by_rows).abs().max()) > 1e-3 * float(whole.abs().max())  # the mean over rows is another


def test_the_unigram_baseline_by_hand(reader: MaskedReader, encoded: Encoded) -> None:
    masking = reader.masking
    words = [int(token) for row in encoded.features["input_ids"] for token in row if not masking.special[token]]
    rows = dataclasses.replace(
        encoded,
        features={key: found[:9] for key, found in encoded.features.items()},
        lengths=encoded.lengths[:9],
        weights=(encoded.weights or ())[:9],
    )
    labels = reader.collate(rows, list(range(9)))["labels"]
    masked = labels[labels != UNMASKED].tolist()
    p = {word: (words.count(word) + 1) / (len(words) + len(masking.words)) for word in masking.words.tolist()}
    assert sum(p.values()) == pytest.approx(1)
    likely = max(p, key=lambda word: p[word])
    found = trivial_baseline(
        TASK, reader, Read(Mock(), encoded), Read(Mock(), rows), ("loss", "perplexity", "token_accuracy")
    )
    assert found.metrics["loss"] == pytest.approx(-np.mean([np.log(p[word]) for word in masked]))
    assert found.metrics["token_accuracy"] == pytest.approx(np.mean([word == likely for word in masked]))
    assert (found.name, found.answer) == ("unigram", reader.processor.convert_ids_to_tokens(likely))


# ---- which head


def test_the_checkpoints_own_head_is_loaded_where_it_has_one(base: Path, own: Path, tmp_path: Path) -> None:
    assert type(AutoAdapterModel.from_pretrained(own, own_head="masked_lm").base_model) is BertForMaskedLM
    assert type(AutoAdapterModel.from_pretrained(own).base_model) is BertModel
    assert type(AutoAdapterModel.from_pretrained(base, own_head="masked_lm").base_model) is BertModel
    from safetensors.torch import load_file, save_file

    tensors = load_file(own / "model.safetensors")
    del tensors["cls.predictions.transform.dense.bias"]
    (tmp_path / "config.json").write_text((own / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights, which would be random: cls\.predictions\.transform"):
        AutoAdapterModel.from_pretrained(tmp_path, own_head="masked_lm")


@pytest.mark.parametrize("kind", ["named", "own"])
def test_a_run_learns_and_its_folder_evaluates_to_the_same(
    kind: str, base: Path, own: Path, mirror: Path, tmp_path: Path
) -> None:
    told = Recorder()
    config = run_config(
        base if kind == "named" else own, mirror, tmp_path, task=TASK, adapter=INVERTIBLE, epochs=20, eval_every=10
    )
    result = train(config, display=told)
    row = result.row
    first = told.of("evaluated")[0][0].score
    assert row["score"] < first and row["score"] < row["baseline"]["score"] and row["baseline"]["name"] == "unigram"
    notes = told.of("note")
    assert ("no masked-LM head" if kind == "named" else "checkpoint's own (BertForMaskedLM)") in notes[0]
    assert any("1 of 97 rows were left out: 1 empty text" in note for note in notes)
    head = json.loads((result.folder / "head_config.json").read_text())["config"]
    assert head["type"] == ("masked_lm" if kind == "named" else "own") and row["head_parameters"] > 0
    again = evaluate_folder(result.folder)
    assert again.reproduced and again.metrics == pytest.approx(row["metrics"])
    assert "batches of 3 rows" in evaluate_folder(result.folder, batch_size=3).notes[0]
    lines = [json.loads(line) for line in (result.folder / "predictions.jsonl").read_text().splitlines()]
    assert set(lines[0]) == {"index", "masked", "loss", "right"} and len(lines) == row["rows"] == 20
    words = sum(line["masked"] for line in lines)
    assert sum(line["loss"] * line["masked"] for line in lines) / words == pytest.approx(row["metrics"]["loss"])


def test_layers_of_a_head_that_is_the_checkpoints_own_are_refused(own: Path, mirror: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(run_config(own, mirror, tmp_path, task=TASK), head=HeadConfig(layers=3))
    with pytest.raises(ConfigError, match=r"head\.layers=3: this checkpoint has a masked-LM head of its own"):
        train(config, display=Recorder())


def test_a_task_on_a_language_which_is_exchanged_at_evaluation(
    base: Path, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipes of MAD-X from the command line to a table."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "dev"):
        write_jsonl(tmp_path / "mood" / f"{split}.jsonl", sentences(16, 5))
    (tmp_path / "task.yaml").write_text(
        "name: mood\ntype: classification\npath: ./mood\ncolumns: {text: sentence}\nlabels: [bad, good]\n"
        "splits: {validation: dev}\nmetric: accuracy\n"
    )
    tiny = [f"model.name={base}", "trainer.precision=fp32", "trainer.max_steps=2", "trainer.batch_size=8"]
    corpus = f"task.path='{mirror}/tongue/{{split}}.txt'"
    for name in ("en", "fr"):
        more = [f"task.name={name}", corpus, "task.splits.validation=dev", f"outputs=outputs/{name}"]
        assert main(["train", "recipe=madx_language", *more, *tiny]) == 0
    task = ["task=./task.yaml", "composition=stack(lang, mood)", "trainer.learning_rate=0.05"]
    assert main(["train", "recipe=madx_task", *task, *tiny]) == 0
    (folder,) = map(str, Path("outputs/madx_task").glob("*"))
    capsys.readouterr()
    assert main(["eval", folder]) == 0
    assert "is the same as training reported" in capsys.readouterr().out
    assert main(["eval", folder, "composition=stack(fr, mood)", "adapters.fr.path=outputs/fr/madx_language"]) == 0
    (language,) = map(str, Path("outputs/fr/madx_language").glob("*"))
    assert main(["eval", language]) == 0
    told = capsys.readouterr().out
    assert "perplexity" in told and "is the same as training reported" in told
    assert main(["table", "outputs/fr"]) == 0
    assert "unigram" in capsys.readouterr().out
