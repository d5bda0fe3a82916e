"""AdapterDrop: layers left out at creation, at load time and at run time, all of which compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import adaptrain
from adaptrain.composition import Average, Parallel, Split, Stack
from adaptrain.context import AdapterSetup
from adaptrain.errors import CheckpointError, CompositionError, ConfigError, UnsupportedError
from adaptrain.methods import ConfigUnion, LoRAConfig, LoReftConfig, MethodConfig, PrefixTuningConfig
from foreign_folders import REFERENCE
from matrix import METHODS, adapted, add, base, batch, gap, run

LAW = [
    ("bert", "bn-norms"),
    ("bert", "compacter"),
    ("bert", "seq_bn_inv"),
    ("bert", "unipelt"),
    ("bert", "union"),
    ("mpnet", "prefix_tuning"),
    ("gpt2", "lora-o-words"),
    ("gpt2", "ia3"),
    ("llama", "prefix-gated"),
    ("llama", "pissa"),
    ("llama", "vera"),
    ("bart", "prefix_tuning_flat"),
    ("bart", "mam"),
    ("distilbert", "loreft"),
]


def every_layer(config: MethodConfig) -> MethodConfig:
    """The config with nothing left out."""
    if isinstance(config, ConfigUnion):
        return ConfigUnion(*map(every_layer, config.configs))
    return config.replace(leave_out=()) if "leave_out" in config.fields() else config


# ---- creation, load time, run time


@pytest.mark.parametrize(("arch", "method"), LAW)
def test_skipped_is_loaded_without_is_made_without(arch: str, method: str, tmp_path: Path) -> None:
    config, inputs = every_layer(METHODS[method]), batch(arch)
    layers = [1] if arch != "bart" else [1, 2]  # of the encoder, and of the decoder
    whole = adapted(arch, config)
    full = run(whole, inputs)
    whole.save_adapter(tmp_path / "whole", "a", with_head=False)
    whole.set_active_adapters("a", skip_layers=layers)
    assert whole.skip_layers == tuple(layers)
    skipped = run(whole, inputs)
    assert gap(skipped, full) > 1e-3
    with AdapterSetup("a"):
        assert torch.equal(run(whole, inputs), full)

    part = adapted(arch)
    part.load_adapter(tmp_path / "whole", load_as="b", set_active=True, leave_out=layers)
    assert torch.equal(run(part, inputs), skipped)
    made = adapted(arch)
    made.add_adapter("c", config.without(layers), set_active=True)
    made.get_adapter("c").load_tensors(part.get_adapter("b").tensors())
    assert torch.equal(run(made, inputs), skipped)
    assert part.get_adapter("b").config == made.get_adapter("c").config
    missing = {place for place in part.get_adapter("b").units if part.sites.by_name[place].point.layer in layers}
    assert not missing and part.get_adapter("b").parameter_count() < whole.get_adapter("a").parameter_count()

    part.save_adapter(tmp_path / "part", "b", with_head=False)
    again = adapted(arch)
    again.load_adapter(tmp_path / "part", set_active=True)
    assert torch.equal(run(again, inputs), skipped)


def test_what_has_been_left_out_stays_out(tmp_path: Path) -> None:
    model = adapted("bart", METHODS["lora-everywhere"].replace(leave_out=(3,)))
    model.save_adapter(tmp_path, "a", with_head=False)
    model.load_adapter(tmp_path, load_as="b", leave_out=[0, 0])
    config: Any = model.get_adapter("b").config
    assert config.leave_out == (0, 3)


def test_a_method_without_layers_is_loaded_whole(tmp_path: Path) -> None:
    model, inputs = adapted("bert", METHODS["prompt_tuning"]), batch("bert")
    expected = run(model, inputs)
    model.save_adapter(tmp_path, "a", with_head=False)
    model.load_adapter(tmp_path, load_as="b", leave_out=[0, 1], set_active=True)
    assert torch.equal(run(model, inputs), expected)
    model.set_active_adapters("a", skip_layers=[0, 1])
    assert torch.equal(run(model, inputs), expected)


@pytest.mark.parametrize("case", ["prefix_tuning_flat", "seq_bn_inv"])
def test_a_folder_of_adapterhub_without_layers(case: str) -> None:
    folder = REFERENCE / "distilbert"
    inputs = {"input_ids": torch.randint(5, 30, (2, 6)), "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2])}
    import transformers

    kept = []
    for leave_out in ([], [1]):
        model = adaptrain.init(transformers.DistilBertModel.from_pretrained(folder / "base")).eval()
        name = model.load_adapter(folder / case, with_head=False, leave_out=leave_out)
        model.set_active_adapters(name, skip_layers=[1])
        kept.append(run(model, inputs))
    assert torch.equal(*kept)


@pytest.mark.parametrize(
    "config",
    [
        LoRAConfig(leave_out=(0, 2)),
        LoRAConfig(leave_out=(-1,), embeddings_lora=True),
        PrefixTuningConfig(leave_out=(5,)),
        LoReftConfig(leave_out=(5,)),
        METHODS["seq_bn"].replace(leave_out=(12,)),
    ],
    ids=lambda config: config.method,
)
def test_layers_that_do_not_exist_cannot_be_left_out(config: MethodConfig) -> None:
    with pytest.raises(ConfigError, match=r"leave_out names (2|-1|5|12); this model has layers 0 to 1"):
        adapted("bert", config)


def test_every_method_with_layers_can_leave_some_out() -> None:
    model = adapted("bert")
    for method, config in METHODS.items():
        for member in config.members():
            covered = [point.layer for point in model.sites.points if config.has_units and member.covers(point)]
            assert max(covered, default=-1) < 0 or "leave_out" in member.fields(), method


def test_what_cannot_be_left_out_at_load_time(tmp_path: Path) -> None:
    model = adapted("bert", METHODS["lora"])
    model.save_adapter(tmp_path / "lora", "a", with_head=False)
    with pytest.raises(ConfigError, match=r"leave_out names 2, 7; this model has layers 0 to 1"):
        model.load_adapter(tmp_path / "lora", load_as="b", leave_out=[7, 0, 2])
    with pytest.raises(CheckpointError, match="covers none of the model's points"):
        model.load_adapter(tmp_path / "lora", load_as="b", leave_out=[0, 1])
    model.add_adapter("f", "full")
    model.save_adapter(tmp_path / "full", "f", with_head=False)
    with pytest.raises(ConfigError, match="holds the base model's own weights"):
        model.load_adapter(tmp_path / "full", load_as="b", leave_out=[0])
    # the encoder of this BART is wider than the decoder, and VeRA's matrices are drawn for the widest map
    wide = adapted("bart", METHODS["vera"])
    wide.save_adapter(tmp_path / "vera", "a", with_head=False)
    with pytest.raises(CheckpointError, match=r"widest map.*skip_layers"):
        wide.load_adapter(tmp_path / "vera", load_as="b", leave_out=[0, 1])
    assert model.adapter_names() == ["a", "f"] and wide.adapter_names() == ["a"]


TREES = [Stack("a", "b"), Average("a", "b"), Parallel("a", "b"), Split("a", "b", sizes=(3, 4))]


@pytest.mark.parametrize("tree", TREES, ids=str)
def test_compositions_skip_layers(tree: Any) -> None:
    """The same composition over adapters that were made without the layer."""
    inputs, configs = batch("bert"), {"a": METHODS["lora"], "b": METHODS["double_seq_bn"]}
    whole, part = adapted("bert"), adapted("bert")
    for seed, (name, config) in enumerate(configs.items()):
        add(whole, name, config, seed=seed)
        part.add_adapter(name, config.without([0]))
        part.get_adapter(name).take(whole.get_adapter(name))
    whole.set_active_adapters(tree, skip_layers=[0])
    part.set_active_adapters(tree)
    expected = run(part, inputs)
    assert torch.equal(run(whole, inputs), expected)
    whole.set_active_adapters("a")
    assert whole.skip_layers == ()
    with AdapterSetup(tree, skip_layers=[0]):
        assert torch.equal(run(whole, inputs), expected)


def test_all_layers_skipped_is_the_base_model() -> None:
    model, inputs = adapted("bert", METHODS["unipelt"]), batch("bert")
    model.set_active_adapters("a", skip_layers=range(2))
    assert torch.equal(run(model, inputs), run(base("bert"), inputs))


def test_skipping_a_layer_that_is_not_there() -> None:
    model = adapted("bert", METHODS["lora"])
    message = r"skip_layers names 2; this model has layers 0 to 1, counted over the whole model"
    with pytest.raises(CompositionError, match=message):
        model.set_active_adapters("a", skip_layers=[0, 2])
    with pytest.raises(CompositionError, match=message):
        model.skip_layers = (2,)
    with AdapterSetup("a", skip_layers=[2]), pytest.raises(CompositionError, match=message):
        run(model, batch("bert"))
    assert model.skip_layers == ()


def test_merging_leaves_skipped_layers_out() -> None:
    model, inputs = adapted("bert", METHODS["lora-everywhere"]), batch("bert")
    model.set_active_adapters("a", skip_layers=[1])
    expected = run(model, inputs)
    model.merge_adapter("a")
    assert gap(run(model, inputs), expected) < 1e-10
    with pytest.raises(UnsupportedError, match="'a' is merged"):
        model.skip_layers = ()
    model.reset_adapter()
    assert model.skip_layers == (1,) and torch.equal(run(model, inputs), expected)
