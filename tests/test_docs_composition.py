"""What the page about compositions shows is what happens."""

from __future__ import annotations

import re

import pytest
import torch

import adaptrain
from adaptrain.composition import BLOCKS, parse
from adaptrain.config.library import library
from matrix import base, batch

DOCS = library().conf.parent / "docs"
PAGE = (DOCS / "composition.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_three_ways_to_write_one_composition():
    expressions = [eval(line, vars(adaptrain) | BLOCKS_BY_NAME) for line in SNIPPETS[0].splitlines()]
    assert len({parse(each) for each in expressions}) == 1


BLOCKS_BY_NAME = {block.__name__: block for block in BLOCKS.values()}


def test_the_snippets_run(tmp_path):
    base("bert").save_pretrained(tmp_path / "base")
    names = {
        "adaptrain": adaptrain,
        **BLOCKS_BY_NAME,
        "folder": tmp_path / "base",
        "target": tmp_path / "saved",
        "inputs": batch("bert"),
        "labels": torch.tensor([0, 1]),
    }
    for snippet in SNIPPETS[1:]:
        exec(compile(snippet, "composition.md", "exec"), names)
    assert names["fresh"].active_head == ("sst2", "mrpc")
    assert names["model"].fusion_names() == ["sst2,mrpc", "again"]


def test_every_block_has_a_line_and_a_recipe():
    recipes = [file.read_text(encoding="utf-8") for file in library().choices("recipe").values()]
    for word, block in BLOCKS.items():
        assert f"| `{block.__name__}(" in PAGE
        assert any(re.search(rf"^composition:.*\b{word}\(", text, re.MULTILINE) for text in recipes), word
    named = re.search(r"The recipes (.*?) show a\s+block each", PAGE, re.DOTALL)
    assert named is not None
    assert set(re.findall(r"`(\w+)`", named[1])) <= set(library().choices("recipe"))


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([\w./-]+)(?:#\w+)?\)", PAGE))))
def test_links_lead_somewhere(link):
    assert (DOCS / link).exists()
