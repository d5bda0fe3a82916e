"""What the pages about architectures and embeddings show is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import transformers as hf
import yaml

import adaptrain
from adaptrain.architectures import architectures, read_architecture
from adaptrain.config.library import library
from matrix import ARCHITECTURES, adapted, base, batch, run
from novel_model import novel
from other_words import tokenizer

DOCS = library().conf.parent / "docs"
PAGE = (DOCS / "architectures.md").read_text(encoding="utf-8")
FILES = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
ROOT = Path(adaptrain.__file__).parent


@pytest.mark.parametrize("text", FILES)
def test_the_files_on_the_page_are_tables(text):
    table = read_architecture(yaml.safe_load(text))(ARCHITECTURES["llama"].config())
    assert table.stacks[0].causal
    assert table.pooling == "last"


def test_what_the_page_says_of_an_unknown_type_is_said():
    shown = re.search(r"There is no architecture for 'my_model',.*?'llama'\)", PAGE, re.DOTALL)
    assert shown is not None
    with pytest.raises(adaptrain.errors.UnsupportedError) as caught:
        adaptrain.init(novel())
    assert " ".join(shown[0].split()) == str(caught.value).replace("'novel'", "'my_model'")


def test_the_page_quotes_the_tables():
    """Adding a LLaMA-like model costs what the page says."""
    code = (ROOT / "architectures" / "decoder.py").read_text(encoding="utf-8")
    (quoted,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert quoted in code
    word = re.search(r'_decoder\(("llama".*?)\)', code)
    assert word is not None
    assert {"qwen3", "smollm3", "gemma"} <= set(re.findall(r'"(\w+)"', word[1])) <= set(architectures())


def test_every_key_of_a_table_is_on_the_page():
    from dataclasses import fields

    from adaptrain.architectures import Attention, Embeddings, Projection, Prompt, Stack, Sublayer

    table = PAGE[PAGE.index("### The keys") : PAGE.index("## A model type for everybody")]
    for kind in (Projection, Sublayer, Attention, Embeddings, Prompt, Stack):
        for field in fields(kind):
            if field.name not in ("name", "projections", "sublayers", "attentions", "embeddings", "prompt"):
                assert f"`{field.name}`" in table, (kind.__name__, field.name)


def test_the_snippet_about_embeddings_runs(tmp_path, monkeypatch):
    page = (DOCS / "embeddings.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    base("bert", auto=hf.AutoModelForMaskedLM).save_pretrained(tmp_path / "base")
    names = {
        "adaptrain": adaptrain,
        "AutoModelForMaskedLM": hf.AutoModelForMaskedLM,
        "folder": tmp_path / "base",
        "new_tokenizer": tokenizer(120),
        "old_tokenizer": tokenizer(100),
    }
    exec(compile(snippet, "embeddings.md", "exec"), names)
    model = names["model"]
    assert model.active_embeddings == "again"
    assert names["tokenizer"].get_vocab() == tokenizer(120).get_vocab()
    assert run(model, batch("bert")).shape[-1] == 120
    assert adapted("bert").active_embeddings == "default"
