"""transformers' pipelines around an adapted model: the names of the head's labels, and the numbers of the head."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from adaptrain.programs import REFUSED
from every_head import NAMES, headed
from matrix import METHODS, adapted, add, base, randomise

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "sees", "the", "dog"]


def tokenizer() -> Any:
    own = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    return hf.PreTrainedTokenizerFast(tokenizer_object=own, model_max_length=32, eos_token="[SEP]", **special)


def processor() -> Any:
    return hf.ViTImageProcessor(size={"height": 16, "width": 16})


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What pipelines log about a model that they do not take for one of theirs."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.ERROR, "transformers")
    return caplog.messages


TEXT = "a cat sees the dog"


@pytest.mark.parametrize("way", ["active", "trained", "loaded"])
def test_texts_are_classified_by_name(way, complaints, tmp_path):
    model, _ = headed("classification")
    if way == "trained":
        model.train_adapter("a")
        model.eval()
    if way == "loaded":
        model.save_adapter(tmp_path, "a")
        model = adapted("bert")
        model.load_adapter(tmp_path, set_active=True)
    ids = torch.tensor([[WORDS.index(word) for word in TEXT.split()]])
    with torch.no_grad():
        wanted = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.softmax(-1)[0]
    said = hf.pipeline("text-classification", model=model, tokenizer=tokenizer())(TEXT, top_k=None)
    assert {each["label"]: pytest.approx(each["score"], abs=1e-5) for each in said} == {
        name: wanted[number].item() for number, name in NAMES.items()
    }
    assert complaints == []


@pytest.mark.parametrize("kind", ["multilabel", "regression"])
def test_scores_of_several_classes_and_numbers(kind, complaints):
    model, _ = headed(kind)
    said = hf.pipeline("text-classification", model=model, tokenizer=tokenizer())(TEXT, top_k=None)
    ids = torch.tensor([[WORDS.index(word) for word in TEXT.split()]])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    wanted = logits.sigmoid() if kind == "multilabel" else logits
    names = NAMES if kind == "multilabel" else {0: "LABEL_0"}
    found = {each["label"]: each["score"] for each in said}
    assert found == {name: pytest.approx(wanted[number].item(), abs=1e-5) for number, name in names.items()}
    assert complaints == []


def test_tokens_images_and_masked_words(complaints):
    said = hf.pipeline("token-classification", model=headed("tagging")[0], tokenizer=tokenizer())(TEXT)
    assert len(said) == 5 and {each["entity"] for each in said} <= set(NAMES.values())
    picture = Image.new("RGB", (16, 16), (200, 10, 30))
    for kind in ("image", "image-multilabel"):
        said = hf.pipeline("image-classification", model=headed(kind)[0], image_processor=processor())(picture)
        assert {each["label"] for each in said} == set(NAMES.values())
    told = hf.pipeline("fill-mask", model=headed("masked")[0], tokenizer=tokenizer())("a [MASK] sees", top_k=2)
    assert len(told) == 2 and all(each["score"] > 0 for each in told)
    assert complaints == []


def test_a_model_that_writes(complaints):
    model, _ = headed("next")
    options = {"max_new_tokens": 3, "do_sample": False, "return_full_text": False}
    said = hf.pipeline("text-generation", model=model, tokenizer=tokenizer())(TEXT, **options)
    assert isinstance(said[0]["generated_text"], str)
    assert complaints == []


@pytest.mark.skipif("question-answering" not in hf.pipelines.get_supported_tasks(), reason="not in this transformers")
def test_answers(complaints):
    said = hf.pipeline("question-answering", model=headed("spans")[0], tokenizer=tokenizer())(
        question="a dog sees", context=TEXT
    )
    assert said["answer"] in TEXT and complaints == []


def test_a_pipeline_follows_the_active_head(complaints):
    """It asks for the names at every call."""
    model, _ = headed("classification")
    add(model, "b", METHODS["ia3"])
    model.add_classification_head("b", num_labels=2, id2label={0: "no", 1: "yes"})
    randomise(model.heads, 0.3, seed=1)
    classify = hf.pipeline("text-classification", model=model, tokenizer=tokenizer())
    assert {each["label"] for each in classify(TEXT, top_k=None)} == {"no", "yes"}
    model.set_active_adapters("a")
    assert {each["label"] for each in classify(TEXT, top_k=None)} == set(NAMES.values())


@pytest.mark.filterwarnings("ignore:.*checkpointing.*deprecated:FutureWarning", "ignore:'pin_memory':UserWarning")
def test_the_pages_example_runs(tmp_path):
    page = (Path(__file__).parents[1] / "docs/programs.md").read_text(encoding="utf-8")
    base("bert").save_pretrained(tmp_path / "base")
    rows = [{"input_ids": torch.tensor([5, 6, 7]), "labels": torch.tensor(number % 3)} for number in range(4)]
    places = {"folder": tmp_path / "base", "output": str(tmp_path / "run"), "adapter_folder": tmp_path / "mood"}
    names: dict[str, Any] = places | {"train_rows": rows, "test_rows": rows, "tokenizer": tokenizer()}
    exec(page.split("```python\n")[1].split("```")[0], names)
    assert names["classify"]("the cat")[0]["label"] in ("bad", "fair", "good")
    other = adapted("bert")
    assert other.load_adapter(tmp_path / "mood", set_active=True) == "mood"
    assert other.config.id2label == {0: "bad", 1: "fair", 2: "good"}


def test_the_page_names_all_that_is_refused():
    page = (Path(__file__).parents[1] / "docs/programs.md").read_text(encoding="utf-8")
    assert [name for name in REFUSED if f"`{name}`" not in page] == []
