"""Fusions, compositions and set-ups of AdapterHub's library: its numbers, or a refusal with the reason."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

import adaptrain
from adaptrain import Fuse, Stack
from adaptrain.composition import Average, parse
from adaptrain.errors import CheckpointError
from adaptrain.methods import AdapterFusionConfig
from foreign_folders import REFERENCE
from matrix import gap

ARCHS = ("bert", "gpt2", "bart", "roberta")
SETUP, FUSION, WEIGHTS = "adapter_setup.json", "adapter_fusion_config.json", "model_adapter_fusion.safetensors"
CASES: dict[str, dict[str, Any]] = {
    arch: json.loads((REFERENCE / arch / "blocks" / "cases.json").read_text()) for arch in ARCHS
}
DIFFERENT = {"parallel_form": "adds the residual twice"}
"""What the library computes by another formula, and a part of what is said."""

SAME = [(arch, case) for arch in ARCHS for case in CASES[arch] if case not in DIFFERENT]


@cache
def _made(arch: str, attention: str) -> adaptrain.AdaptedModel:
    model = bare(arch, attention)
    for folder in sorted((REFERENCE / arch / "blocks" / "adapters").iterdir()):
        model.load_adapter(folder)
    return model


def bare(arch: str, attention: str = "sdpa") -> adaptrain.AdaptedModel:
    folder = REFERENCE / arch / "base"
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    return adaptrain.init(getattr(hf, name).from_pretrained(folder, attn_implementation=attention)).eval()


@cache
def _stored(arch: str, file: str) -> dict[str, np.ndarray]:
    return dict(np.load(REFERENCE / arch / "blocks" / file))


def inputs_of(arch: str) -> dict[str, Any]:
    inputs = {key: torch.tensor(value) for key, value in np.load(REFERENCE / arch / "inputs.npz").items()}
    return inputs | ({"use_cache": False} if "decoder_input_ids" in inputs else {})


def run(model: adaptrain.AdaptedModel, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        out = model(**inputs)
    return out.logits if "logits" in out else out.last_hidden_state


def expected(arch: str, case: str) -> Tensor:
    return torch.tensor(_stored(arch, "expected.npz")[case])


def blocks(arch: str, *path: str) -> Path:
    return REFERENCE.joinpath(arch, "blocks", *path)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("arch", "case"), SAME)
def test_parity_with_the_reference_library(arch, case, attention):
    model, inputs, record = _made(arch, attention), inputs_of(arch), CASES[arch][case]
    plain = torch.tensor(np.load(REFERENCE / arch / "base.npy"))
    if "fusion" in record:
        model.load_adapter_fusion(blocks(arch, "fusions", record["fusion"]))
    elif "fuse" in record["composition"]:
        model.load_adapter_fusion(blocks(arch, "fusions", "static"))
    if case == "temperature":  # which is not in the file; this is what it was
        model.get_fusion("hot").shared["temperature.fusion"].T.fill_(50)  # type: ignore[union-attr]
    if "task_ids" in record:
        inputs["task_ids"] = record["task_ids"]
    model.set_active_adapters(record["composition"])
    with torch.no_grad():
        out = model(**inputs, output_adapter_fusion_attentions=True)
    found = out.logits if "logits" in out else out.last_hidden_state
    assert gap(found, expected(arch, case)) < 1e-5
    assert gap(found[: len(plain)], plain) > 0.05
    attentions = {
        f"{case}/{layer}/{place}": value
        for layers in out.adapter_fusion_attentions.values()
        for layer, places in layers.items()
        for place, value in places.items()
    }
    stored = {key: value for key, value in _stored(arch, "attentions.npz").items() if key.startswith(f"{case}/")}
    assert attentions.keys() == stored.keys()
    assert ("fuse" in record["composition"]) == bool(stored)
    for key, value in stored.items():
        assert np.abs(attentions[key] - value).max() < 1e-5
        assert np.abs(value.sum(-1) - 1).max() < 1e-6


@pytest.mark.parametrize("case", ["parallel_form"])
@pytest.mark.parametrize("arch", ["bert", "gpt2"])
def test_a_fusion_that_the_library_computes_otherwise_is_refused(arch, case):
    model = bare(arch)
    for name in "pq":
        model.load_adapter(blocks(arch, "adapters", name))
    with pytest.raises(CheckpointError, match=DIFFERENT[case]):
        model.load_adapter_fusion(blocks(arch, "fusions", case))
    assert model.fusion_names() == []


def test_what_the_library_does_with_a_parallel_bottleneck_is_what_the_refusal_says():
    """GPT-2 has one place a layer and no norm behind it, so that r once more is all of the difference there."""
    model, inputs = bare("gpt2"), inputs_of("gpt2")
    for name in "pq":
        model.load_adapter(blocks("gpt2", "adapters", name))
    from adaptrain.interop import adapterhub

    read = adapterhub.read_fusion_folder(blocks("gpt2", "fusions", "parallel_form"), model.base_model)
    model.add_adapter_fusion(["p", "q"], read.config)
    model.get_fusion("p,q").load_tensors(read.tensors)
    model.set_active_adapters("fuse(p, q)")
    theirs = expected("gpt2", "parallel_form")
    assert gap(run(model, inputs), theirs) > 0.01
    base: Any = model.base_model
    for block in base.transformer.h:  # r + h + c is what leaves a layer, and r what enters its MLP's norm
        block.ln_2.register_forward_pre_hook(lambda norm, args, block=block: setattr(block, "entered", args[0]))
        block.register_forward_hook(lambda block, _, out: _more(out, block.entered))
    assert gap(run(model, inputs), theirs) < 1e-5


def _more(out: Any, residual: Tensor) -> Any:
    return (out[0] + residual, *out[1:]) if isinstance(out, tuple) else out + residual


def test_a_fusion_is_read_with_its_config():
    model = _made("bert", "sdpa")
    assert (
        model.load_adapter_fusion(blocks("bert", "fusions", "double_before"), load_as="mine", set_active=True) == "mine"
    )
    assert str(model.active_adapters) == "fuse(e, d, name='mine')"
    assert model.get_fusion("mine").config == AdapterFusionConfig(
        value=False,
        regularization=False,
        value_initialized=False,
        query_before_ln=True,
        residual_before=True,
        dropout_prob=0.1,
        sublayers=("attention", "mlp"),
    )
    assert gap(run(model, inputs_of("bert")), expected("bert", "double_before")) < 1e-5
    model.load_adapter_fusion(blocks("bert", "fusions", "temperature"))
    assert model.get_fusion("hot").shared["temperature.fusion"].T == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("value", ["dynamic", "static"])
def test_a_config_can_be_a_word(value, tmp_path):
    copy = shutil.copytree(
        blocks("bert", "fusions", "double" if value == "dynamic" else "double_before"), tmp_path / "x"
    )
    changed(copy / FUSION, config=value)
    model = _made("bert", "sdpa")
    model.load_adapter_fusion(copy, load_as=value)
    assert (model.get_fusion(value).config.value) == (value == "dynamic")  # type: ignore[attr-defined]


def changed(file: Path, **values: Any) -> None:
    whole = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in whole.items() if value is not None}))


def test_a_fusion_from_before_the_library_wrote_its_adapters(tmp_path):
    copy = shutil.copytree(blocks("bert", "fusions", "double"), tmp_path / "x")
    changed(copy / FUSION, adapter_names=None)
    model = _made("bert", "sdpa")
    assert model.load_adapter_fusion(copy, set_active=True) == "d,e"
    assert gap(run(model, inputs_of("bert")), expected("bert", "double")) < 1e-5


def test_fusions_whose_names_begin_alike_lie_in_one_file_of_the_library():
    """Those of `a,b` and `a,b,lang`; only the first is the folder's."""
    folder = blocks("bert", "setups", "fused", "a,b")
    keys = load_file(folder / WEIGHTS)
    assert any(".a,b,lang." in key for key in keys)
    model = bare("bert")
    model.load_composition(folder.parent)
    assert model.fusion_names() == ["a,b"]
    assert gap(run(model, inputs_of("bert")), expected("bert", "static")) < 1e-5


def _without_adapters(copy: Path) -> adaptrain.AdaptedModel:
    return bare("bert")


def _of_gpt2(copy: Path) -> None:
    changed(copy / FUSION, model_type="gpt2")


def _strange_key(copy: Path) -> None:
    tensors = load_file(copy / WEIGHTS)
    save_file(
        tensors | {"encoder.layer.0.intermediate.adapter_fusion_layer.a,b,lang.key.bias": torch.zeros(3)},
        copy / WEIGHTS,
    )


def _missing_key(copy: Path) -> None:
    tensors = load_file(copy / WEIGHTS)
    del tensors["encoder.layer.1.output.adapter_fusion_layer.a,b,lang.value.weight"]
    save_file(tensors, copy / WEIGHTS)


def _no_weights(copy: Path) -> None:
    (copy / WEIGHTS).unlink()


def _other_name(copy: Path) -> None:
    changed(copy / FUSION, name="a,b")


def _unknown_option(copy: Path) -> None:
    values = json.loads((copy / FUSION).read_text())["config"]
    changed(copy / FUSION, config=values | {"keys": True})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without_adapters, "the model has no adapter 'a'; load the adapters first"),
        (_of_gpt2, "was made for a gpt2, and this model is a bert"),
        (_strange_key, r"no place here: encoder\.layer\.0\.intermediate\.adapter_fusion_layer"),
        (_missing_key, r"'encoder\.1\.mlp\.fusion\.value\.weight' is missing"),
        (_no_weights, "has neither model_adapter_fusion.safetensors nor pytorch_model_adapter_fusion.bin"),
        (_other_name, "holds no tensor of the fusion 'a,b'"),
        (_unknown_option, "did you mean 'key'"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(change, said, tmp_path):
    copy = shutil.copytree(blocks("bert", "fusions", "dynamic"), tmp_path / "x")
    model = change(copy)
    if model is None:
        model = bare("bert")
        for name in ("a", "b", "lang"):
            model.load_adapter(blocks("bert", "adapters", name))
    with pytest.raises(CheckpointError, match=said):
        model.load_adapter_fusion(copy)
    assert model.fusion_names() == []


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("arch", "setup", "case", "tree"),
    [
        ("bert", "fused", "static", Fuse("a", "b", name="a,b")),
        ("bert", "named", "query_before_ln", Fuse("b", "a", name="before")),
        ("bert", "language", "on_language", Stack("lang", Fuse("a", "b", name="a,b"))),
        ("bert", "batchsplit", "stack_batchsplit", parse("stack(lang, batchsplit(b, a, sizes=[1, 2]))")),
        ("bert", "average", "average_double", Average("d", "e", weights=[0.15, 0.45], normalize_weights=False)),
        ("gpt2", "language", "on_language", Stack("lang", Fuse("a", "b", name="a,b"))),
    ],
)
def test_a_set_up_is_read_whole(arch, setup, case, tree, attention, tmp_path):
    """Also a fusion that has a name of its own, and the average, which the library divides once more."""
    model, inputs = bare(arch, attention), inputs_of(arch)
    assert model.load_adapter_setup(blocks(arch, "setups", setup)) == tree
    assert model.active_adapters == tree
    assert gap(run(model, inputs), expected(arch, case)) < 1e-5
    model.save_composition(tmp_path / "own")
    other = bare(arch, attention)
    assert other.load_composition(tmp_path / "own") == tree
    assert torch.equal(run(other, inputs), run(model, inputs))


def test_heads_of_a_set_up():
    model, inputs = bare("bert"), inputs_of("bert")
    model.load_composition(blocks("bert", "setups", "head"))
    assert gap(run(model, inputs), expected("bert", "setup/head/0")) < 1e-5
    model.load_composition(blocks("bert", "setups", "heads"))
    with torch.no_grad():
        out = model(**inputs)
    for index, each in enumerate(out.head_outputs):
        assert gap(each.logits, expected("bert", f"setup/heads/{index}")) < 1e-5
    other = bare("bert")
    other.load_composition(blocks("bert", "setups", "head"), with_head=False, set_active=False)
    assert (list(other.heads), other.active_adapters, other.adapter_names()) == ([], None, ["b"])


def _tree(kind: str, *children: Any, **options: Any) -> dict[str, Any]:
    made = [child if isinstance(child, dict) else {"type": "single", "children": [child]} for child in children]
    return {"type": kind, "children": made} | ({"kwargs": options} if options else {})


def written(folder: Path, arch: str, tree: dict[str, Any], *fusions: str, **values: Any) -> Path:
    """A set-up of the stored adapters and fusions."""
    shutil.copytree(blocks(arch, "adapters"), folder)
    if arch == "bert":  # e, without its first layer
        shutil.copytree(folder / "e", folder / "half")
        file = folder / "half" / "adapter_config.json"
        changed(file, name="half", config=json.loads(file.read_text())["config"] | {"leave_out": [0]})
        tensors = load_file(folder / "e" / "adapter.safetensors")
        kept = {key.replace(".e.", ".half."): tensor for key, tensor in tensors.items() if "layer.0." not in key}
        save_file(kept, folder / "half" / "adapter.safetensors")
    for fusion in fusions:
        name = json.loads(blocks(arch, "fusions", fusion, FUSION).read_text())["name"]
        shutil.copytree(blocks(arch, "fusions", fusion), folder / name)
    (folder / SETUP).write_text(json.dumps({"adapter_setup": tree, "head_setup": None} | values))
    return folder


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (_tree("Fuse", "p", "q"), "adds the residual twice"),
        (_tree("Fuse", "b", "a", "lang"), "has none"),
        (_tree("Stack", "p", "a"), "loses a part of the sum"),
        (_tree("BatchSplit", "x", "a", batch_sizes=[1, 2]), "differ in length"),
        (_tree("BatchSplit", _tree("Stack", "a"), "b", batch_sizes=[1, 2]), "original_ln_before. twice"),
        (_tree("Average", "l", "m", weights=[0.5, 0.5]), "divides the deltas"),
        (_tree("Average", "r", "d", weights=[0.5, 0.5]), "differ in original_ln_before"),
        (_tree("Average", "d", "half", weights=[0.5, 0.5]), "act at different places"),
        (_tree("Stack", "l", "m"), "nests a stack of LoRAs"),
        (_tree("Parallel", "a", "d"), "differ in original_ln_before"),
        (_tree("BatchSplit", _tree("Stack", "lang", "a"), "b", batch_sizes=[1, 2]), "original_ln_before. twice"),
        (_tree("MultiTask", "a", "b"), "original_ln_before. twice"),
        (_tree("Parallel", "x", "y"), "differ in length"),
        (_tree("Merge", "a", "b"), "Known are"),
        (_tree("Split", "a", "b", sizes=[1, 2]), "'splits'"),
        (_tree("Stack", "a", "nobody"), "nobody"),
        (_tree("Stack", "../a"), "is not a folder inside"),
        ({"type": "Stack"}, "'children'"),
        (None, "not a set-up"),
    ],
)
def test_a_set_up_that_is_another_formula_is_refused(tree, said, tmp_path):
    folder = written(tmp_path / "x", "bert", tree, "parallel_form")
    model = bare("bert")
    with pytest.raises(CheckpointError, match=said):
        model.load_composition(folder)
    assert (model.adapter_names(), model.fusion_names(), model.active_adapters) == ([], [], None)


def test_two_fusions_of_the_same_adapters_cannot_be_told_apart(tmp_path):
    folder = written(tmp_path / "x", "bert", _tree("Fuse", "a", "b"), "static", "residual_before")
    with pytest.raises(CheckpointError, match="several, 'a,b', 'residual'"):
        bare("bert").load_composition(folder)


@pytest.mark.parametrize(
    ("preset", "tree", "said"),
    [
        ("loreft19", _tree("Stack", "t", "d"), "prompts and ReFT of the first only"),
        ("seq_bn_inv", _tree("Stack", "d", "t"), "'t' has an invertible adapter"),
        ("seq_bn_inv", _tree("Split", "t", "a", splits=[1, 8]), "'t' has an invertible adapter"),
    ],
)
def test_units_that_only_the_first_adapter_has_in_the_library_are_refused_elsewhere(preset, tree, said, tmp_path):
    folder = written(tmp_path / "x", "bert", tree)
    shutil.copytree(REFERENCE / "bert" / preset, folder / "t")
    with pytest.raises(CheckpointError, match=said):
        bare("bert").load_composition(folder)


def test_an_invertible_language_adapter_in_front_of_a_stack_is_read(tmp_path):
    folder = written(tmp_path / "x", "bert", _tree("Stack", "t", "a"))
    shutil.copytree(REFERENCE / "bert" / "seq_bn_inv", folder / "t")
    assert bare("bert").load_composition(folder) == Stack("t", "a")


def test_gated_bottlenecks_are_not_fused_as_the_library_does(tmp_path):
    folder = written(tmp_path / "x", "bert", _tree("Fuse", "a", "b"), "static")
    file = folder / "b" / "adapter_config.json"
    values = json.loads(file.read_text())["config"] | {"ln_after": True}
    changed(file, config=values)
    tensors = load_file(folder / "b" / "adapter.safetensors")
    for layer in (0, 1):
        for leaf in ("weight", "bias"):
            tensors[f"encoder.layer.{layer}.output.adapters.b.adapter_norm_after.{leaf}"] = torch.ones(32)
    save_file(tensors, folder / "b" / "adapter.safetensors")
    with pytest.raises(CheckpointError, match="before use_gating and ln_after"):
        bare("bert").load_composition(folder)
