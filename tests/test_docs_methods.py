"""Every preset has a file, a recipe and a page; what the pages show can be run, and their numbers are counted."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from transformers import RobertaConfig

import adaptrain
from adaptrain.adapter import Adapter
from adaptrain.config.compose import compose
from adaptrain.config.library import library
from adaptrain.config.sweep import plan
from adaptrain.methods import config_from_dict, config_from_string, methods, presets, read_config

BOOKS = library()
FOLDER = BOOKS.conf.parent / "docs" / "methods"
PAGES = {page.name: page.read_text(encoding="utf-8") for page in sorted(FOLDER.glob("*.md"))}
INDEX = PAGES["README.md"]
METHOD_PAGES = [name for name in PAGES if name != "README.md"]

BLOCKS = [
    pytest.param(block, id=f"{name}-{number}")
    for name, text in PAGES.items()
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
]
CONFIGS = [name for name in adaptrain.__all__ if name.endswith(("Config", "Union"))]
COMMANDS = sorted(
    {line.strip() for text in PAGES.values() for line in text.splitlines() if line.startswith("    adaptrain train ")}
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def _file(preset: str) -> str:
    """Name of a preset's YAML file: the command line's grammar has no plus in names."""
    return re.sub(r"\++", lambda plus: "_plus" * len(plus.group()), preset)


@pytest.mark.parametrize("preset", sorted(presets()))
def test_a_preset_has_a_file_that_is_it(preset):
    values = yaml.safe_load(BOOKS.choices("adapter")[_file(preset)].read_text(encoding="utf-8"))
    assert config_from_dict(values).to_dict() == presets()[preset]().to_dict()
    assert compose([f"adapter={_file(preset)}"]).choices["adapter"] == _file(preset)


def test_there_is_no_other_adapter_file():
    assert set(BOOKS.choices("adapter")) == {_file(preset) for preset in presets()}


@pytest.mark.parametrize("preset", sorted(presets()))
def test_a_preset_has_a_recipe_or_a_command(preset):
    """A command where nothing is published and a recipe of the same kind is there."""
    chosen = f"override /adapter: {_file(preset)}\n"
    recipes = [file.read_text(encoding="utf-8") for file in BOOKS.choices("recipe").values()]
    commands = [shlex.split(command) for command in COMMANDS]
    assert any(chosen in recipe for recipe in recipes) or any(f"adapter={preset}" in words for words in commands)


@pytest.mark.parametrize("preset", sorted(presets()))
def test_a_preset_is_in_the_index_and_on_a_page(preset):
    row = next(line for line in INDEX.splitlines() if line.startswith("|") and f"`{preset}`" in line)
    if methods()[presets()[preset]().method].has_units:
        assert any(f"`{preset}`" in PAGES[name] for name in METHOD_PAGES), row


def test_every_method_has_a_preset():
    """So that no method is without a page."""
    assert {presets()[preset]().method for preset in presets()} == set(methods())


@pytest.mark.parametrize("block", BLOCKS)
def test_python_on_a_page_is_python_of_ours(block):
    tree = ast.parse(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "adaptrain":
            assert node.attr in adaptrain.__all__
        if isinstance(node, ast.ImportFrom):
            assert node.module == "adaptrain"
            assert {alias.name for alias in node.names} <= set(adaptrain.__all__)


@pytest.mark.parametrize("block", BLOCKS)
def test_configs_on_a_page_can_be_made(block):
    """Whatever `add_adapter` is given: strings, mappings and calls of config classes."""
    known = {"adaptrain": adaptrain} | {name: getattr(adaptrain, name) for name in CONFIGS}
    calls = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    configs = [call.args[1] for call in calls if ast.unparse(call.func) == "model.add_adapter"]
    assert configs
    for config in configs:
        read_config(eval(ast.unparse(config), dict(known)))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_on_a_page_composes(command):
    words = shlex.split(command)[2:]
    if words[0] == "-m":
        assert len(plan(words[1:]).runs) > 1
    else:
        compose(words)


@pytest.mark.parametrize("name", METHOD_PAGES)
def test_a_page_has_all_parts(name):
    text = PAGES[name]
    for part in (
        "**When.**",
        "**Cost.**",
        "## How to",
        "## Against AdapterHub's library",
        "```python",
        "    adaptrain train ",
    ):
        assert part in text, part
    assert re.search(r"[│┌▲]", text), "a picture"
    assert re.search(r"et al\. 20\d\d", text), "a citation"
    assert re.search(rf"\]\({name}\)", INDEX), "not in the index"
    assert 40 <= len(text.splitlines()) <= 80


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere_and_lines_are_short(name):
    for target in re.findall(r"\]\(([\w.]+\.md)\)", PAGES[name]):
        assert target in PAGES
    for path in re.findall(r"`((?:conf|recipes)/[\w/]+\.yaml)`", PAGES[name]):
        assert (BOOKS.conf.parent / Path(path)).is_file()
    assert not [line for line in PAGES[name].splitlines() if len(line) > 120]


# ---- numbers


L, D, FFN = 12, 768, 3072  # roberta-base


def _bottleneck(b: int) -> int:
    return 2 * D * b + b + D


def _prefix(length: int, k: int) -> int:
    return length * D + D * k + k + (k + 1) * 2 * L * D


def _phm(b: int) -> int:
    return 2 * (D + b) + b + D


TRAINED = {
    "pissa": 294_912,
    "rslora": 2_359_296,
    "lora": 2 * L * 8 * 2 * D,
    "dora": 2 * L * (8 * 2 * D + D),
    "vera": 2 * L * (8 + D),
    "dvora": 2 * L * (8 + 2 * D),
    "ia3": L * (2 * D + FFN),
    "mtl_lora": 2 * L * (8 * 2 * D + 1 + 8),
    "seq_bn": L * _bottleneck(48),
    "double_seq_bn": 2 * L * _bottleneck(48),
    "par_bn": L * _bottleneck(384),
    "scaled_par_bn": L * (_bottleneck(384) + 1),
    "adapterplus": L * (_bottleneck(8) + D),
    "compacter": 2 * L * _phm(24) + 4**3,
    "compacter++": L * _phm(24) + 4**3,
    "seq_bn_inv": L * _bottleneck(48) + 2 * (2 * 384 * 192 + 192 + 384),
    "double_seq_bn_inv": 2 * L * _bottleneck(48) + 2 * (2 * 384 * 192 + 192 + 384),
    "prefix_tuning": _prefix(30, 512),
    "prefix_tuning_flat": 2 * L * 30 * D,
    "prompt_tuning": 10 * D,
    "loreft": 2 * L * (2 * D + 1),
    "mam": _prefix(30, 800) + L * _bottleneck(384),
    "unipelt": _prefix(10, 512) + L * _bottleneck(48) + 2 * L * 8 * 2 * D + 4 * L * (D + 1),
}


@pytest.fixture(scope="module")
def roberta():
    with torch.device("meta"):
        return adaptrain.AutoAdapterModel.from_config(RobertaConfig())


def test_the_index_has_every_preset_with_numbers():
    others = {"noreft", "direft", "full", "none"}
    assert set(TRAINED) | others == set(presets())


@pytest.mark.parametrize("preset", TRAINED)
def test_numbers_of_the_index_are_the_closed_forms_and_are_counted(preset, roberta):
    row = next(line for line in INDEX.splitlines() if line.startswith("|") and f"`{preset}`" in line)
    assert row.split("|")[3].strip() == f"{TRAINED[preset]:,}"
    assert Adapter("a", presets()[preset](), roberta.sites, fresh=False).parameter_count() == TRAINED[preset]


@pytest.mark.parametrize("preset", sorted(presets()))
def test_identity_in_the_index(preset):
    row = next(line for line in INDEX.splitlines() if line.startswith("|") and f"`{preset}`" in line)
    assert (row.split("|")[4].strip() == "yes") == (presets()[preset]().identity_at_start or preset in {"full", "none"})


@pytest.mark.parametrize(
    ("text", "count", "page"),
    [
        ("lora[r=64,use_rslora=True]", 2_359_296, "lora"),
        ("lora[intermediate_lora=True,output_lora=True,attn_matrices=('q','k','v')]", 1_179_648, "lora"),
        ("vera[r=1024]", 43_008, "vera"),
        ("mtl_lora[n_up_projection=3]", 590_088, "mtl_lora"),
        ("mtl_lora[task_specific_matrix_type='linear']", 296_472, "mtl_lora"),
        ("prompt_tuning[prompt_length=100]", 76_800, "prompt_tuning"),
        ("direft", 36_888, "reft"),
        ("noreft", 36_888, "reft"),
        ("loreft[tied_weights=True]", 18_444, "reft"),
        ("loreft[r=8]", 295_104, "reft"),
        ("prefix_tuning[bottleneck_size=800]", 15_402_272, "union"),
        ("prefix_tuning_flat|par_bn", 7_644_672, "union"),
        ("prefix_tuning[prefix_length=10]", 9_857_024, "union"),
    ],
)
def test_other_numbers_on_the_pages_are_counted(text, count, page, roberta):
    assert f"{count:,}" in PAGES[f"{page}.md"]
    assert Adapter("a", config_from_string(text), roberta.sites, fresh=False).parameter_count() == count
