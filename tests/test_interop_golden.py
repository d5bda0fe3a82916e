"""AdapterHub folders of every family: the library's numbers, or a refusal with the reason."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

import adaptrain
from adaptrain.architectures import architectures
from adaptrain.errors import CheckpointError
from adaptrain.interop import adapterhub
from float64 import Float64
from foreign_folders import REFERENCE, WHERE
from matrix import cache_argument, copies, gap

OTHERS = ("bert", "bart", "gpt2")
"""Whose cases `test_interop.py` has."""

WITHOUT_SDPA = ("deberta", "deberta-v2", "gemma2", "gptj")
"""What transformers computes in one way only."""

_NORM = "leaves out the norm after"
_PLACES = ("double_seq_bn", "double_seq_bn_ln", "par_bn", "seq_bn_inv")
REFUSED: dict[tuple[str, str], str] = {
    **{(arch, case): "the last layer's norms in every layer" for arch in ("gemma2", "gemma3_text") for case in _PLACES},
    **{("modernbert", case): "takes what the norms return for the residual" for case in _PLACES},
    **{("xmod", case): _NORM for case in ("double_seq_bn_ln",)},
    ("deberta", "unipelt"): "gates thirds of the heads",
}
"""What cannot be computed as the library did, and a part of what is said."""

FOLDERS = sorted(path.parent for path in REFERENCE.glob(f"*/*/{WHERE}") if path.parts[-3] not in OTHERS)
NAMES = [(path.parts[-2], path.name) for path in FOLDERS]
READ = [pair for pair in NAMES if pair not in REFUSED]
EVERY = [
    (arch, case, attention)
    for arch, case in READ
    for attention in ("eager", "sdpa")
    if attention == "eager" or arch not in WITHOUT_SDPA
]


@cache
def _bases(arch: str, attention: str) -> Callable[[], hf.PreTrainedModel]:
    folder = REFERENCE / arch / "base"
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    return copies(getattr(hf, name).from_pretrained(folder, attn_implementation=attention).double())


def made(arch: str, attention: str = "eager") -> adaptrain.AdaptedModel:
    return adaptrain.init(_bases(arch, attention)()).eval()


def inputs_of(arch: str) -> dict[str, Tensor]:
    """In float64, as the model: what differs then is the rounding of the stored numbers, the same on every machine."""
    inputs = {key: torch.tensor(value) for key, value in np.load(REFERENCE / arch / "inputs.npz").items()}
    return {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}


def run(model: adaptrain.AdaptedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Logits, hidden states, or of two towers both embeddings, one below the other."""
    with torch.no_grad(), Float64():
        out = model(**inputs)
    if "text_embeds" in out:
        return torch.cat([out.text_embeds, out.image_embeds])
    return out.logits if "logits" in out else out.last_hidden_state


def numbers(arch: str, *path: str) -> Tensor:
    return torch.tensor(np.load(REFERENCE.joinpath(arch, *path)))


def test_every_family_of_the_library_has_cases_and_a_table():
    kinds = {json.loads((path / "base" / "config.json").read_text())["model_type"] for path in REFERENCE.glob("*/")}
    assert kinds == {*adapterhub.FAMILIES, "encoder-decoder"}
    assert kinds <= set(architectures())


@pytest.mark.parametrize("arch", sorted(path.name for path in REFERENCE.glob("*/")))
def test_the_places_of_a_family_are_those_of_its_table(arch):
    model = made(arch)
    names = {point.name for point in model.sites.points}
    stacks = {name.split(".")[0] for name in names}
    family = adapterhub.family_of(model.base_model)
    places = {place for places in family.projections.values() for place in places} | set(family.sublayers.values())
    for stack in stacks & set(family.layers.values()):
        for place in places:
            crosses = place.startswith("cross_attention")
            if not crosses or (stack == "decoder" and {"encoder", "decoder"} <= stacks):
                assert f"{stack}.0.{place}" in names
    for stack, sublayer in (location.split(".") for location in family.prefixes.values()):
        assert stack not in stacks or f"{stack}.0.{sublayer}.key_value" in names
        assert sublayer in family.attentions.values()
    read = {case for known, case in READ if known == arch}
    assert "seq_bn_inv" not in read or f"{family.first}.embeddings.output" in names
    assert "prompt_tuning" not in read or f"{family.first}.embeddings.prompt" in names


@pytest.mark.parametrize(("arch", "case", "attention"), EVERY)
def test_parity_with_the_reference_library(arch, case, attention):
    model, inputs = made(arch, attention), inputs_of(arch)
    plain, expected = run(model, inputs), numbers(arch, case, "expected.npy")
    assert gap(plain, numbers(arch, "base.npy")) < 1e-5
    assert model.load_adapter(REFERENCE / arch / case, set_active=True) == "t"
    found = run(model, inputs)
    assert found.shape == expected.shape
    if arch in ("deberta", "deberta-v2") and case == "prompt_tuning":  # there a prompt sees the padding
        padded = (inputs["attention_mask"] == 0).any(1)
        found, expected = found[~padded], expected[~padded]
    assert gap(found, expected) < 3e-5
    if case != "prompt_tuning":  # whose output is longer
        assert gap(found, plain) > 0.05


@pytest.mark.parametrize(("arch", "case"), [pair for pair in REFUSED if pair in NAMES])
def test_what_the_library_computes_otherwise_is_refused(arch, case):
    model, inputs = made(arch), inputs_of(arch)
    before = run(model, inputs)
    with pytest.raises(CheckpointError, match=REFUSED[arch, case]):
        model.load_adapter(REFERENCE / arch / case, set_active=True)
    assert model.adapter_names() == []
    assert torch.equal(run(model, inputs), before)


@pytest.mark.parametrize("arch", sorted({arch for arch, _ in READ} - {"encoder-decoder", "bert_decoder"}))
def test_folders_of_a_class_with_a_head_say_where_its_base_is(arch, tmp_path):
    """Their keys begin with the name of the base model in that class, or with that of the library's own classes."""
    folder = REFERENCE / arch / "lora"
    expected = adapterhub.read(folder, made(arch).base_model).tensors
    tensors = load_file(folder / "adapter.safetensors")
    for prefix in ("transformer.", "model."):
        copy = shutil.copytree(folder, tmp_path / prefix)
        save_file({prefix + key: tensor for key, tensor in tensors.items()}, copy / "adapter.safetensors")
        found = adapterhub.read(copy, made(arch).base_model).tensors
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize(
    ("arch", "case"),
    [
        ("deberta", "lora"),
        ("deberta", "ia3"),
        ("albert", "double_seq_bn_inv"),
        ("encoder-decoder", "prefix_tuning_flat"),
        ("encoder-decoder", "compacter"),
        ("clip", "prefix_tuning_flat"),
        ("modernbert", "lora"),
    ],
)
def test_an_import_can_be_saved_as_our_own(arch, case, tmp_path):
    model, inputs = made(arch), inputs_of(arch)
    model.load_adapter(REFERENCE / arch / case, load_as="mine", set_active=True)
    model.save_adapter(tmp_path, "mine", with_head=False)
    other = made(arch)
    assert other.load_adapter(tmp_path, set_active=True) == "mine"
    assert torch.equal(run(other, inputs), run(model, inputs))


def test_the_librarys_thirds_of_deberta_have_the_rank_of_all_together():
    """Three of rank 2 and alpha 3 in the file; a row of any projection can read through any of them."""
    model = made("deberta")
    model.load_adapter(REFERENCE / "deberta" / "lora")
    config: Any = model.get_adapter("t").config
    assert (config.r, config.alpha, config.attn_matrices) == (6, 9, ("q", "k", "v"))
    own = model.get_adapter("t").tensors()
    rows = [own[f"encoder.0.attention.{role}.lora.A"] for role in ("query", "key", "value")]
    assert rows[0].shape == (6, 16)
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])
    assert own["encoder.0.mlp.down.lora.A"][2:].count_nonzero() == 0


def test_an_xmod_whose_own_adapters_do_something_is_refused():
    model = made("xmod")
    base: Any = model.base_model
    ends = [adapter.dense2 for layer in base.encoder.layer for adapter in layer.output.adapter_modules.values()]
    ends[-1].bias.data[3] = 0.1
    with pytest.raises(CheckpointError, match="deletes X-MOD's own language adapters"):
        model.load_adapter(REFERENCE / "xmod" / "lora")
    ends[-1].bias.data.zero_()
    model.config.ln_before_adapter = False
    with pytest.raises(CheckpointError, match="ln_before_adapter"):
        model.load_adapter(REFERENCE / "xmod" / "lora")


def test_an_encoder_decoder_of_other_parts_is_refused():
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    encoder = hf.BertConfig(**sizes, vocab_size=20)
    decoder = hf.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, bos_token_id=0, eos_token_id=1)
    model = hf.EncoderDecoderModel(hf.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder))
    with pytest.raises(CheckpointError, match="these are bert and gpt2"):
        adapterhub.read(REFERENCE / "encoder-decoder" / "lora", model)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"original_ln_after": False}, "original_ln_after is false"),
        ({"ln_after": True, "adapter_residual_before_ln": True}, "adapter_residual_before_ln is true"),
        ({"stochastic_depth": 0.1}, "stochastic_depth is not 0"),
        ({"phm_layer": True, "phm_dim": 2}, "its PHM layers share numbers"),
        ({"original_ln_before": True, "original_ln_after": False}, "original_ln_after is false"),
    ],
)
def test_a_bottleneck_after_alberts_attention_that_has_no_other_form_is_refused(options, said, tmp_path):
    copy = shutil.copytree(REFERENCE / "albert" / "double_seq_bn", tmp_path / "x")
    values = json.loads((copy / WHERE).read_text())
    values["config"] |= options
    (copy / WHERE).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=f"{said}: on this family the library takes the residual"):
        made("albert").load_adapter(copy)


@pytest.mark.parametrize("arch", ["t5", "t5_gated"])
def test_a_prefix_among_the_relative_positions_stays_there_while_decoding(arch):
    model, inputs = made(arch, "sdpa"), inputs_of(arch)
    model.load_adapter(REFERENCE / arch / "prefix_tuning_flat", set_active=True)
    words = inputs.pop("decoder_input_ids")
    whole = run(model, inputs | {"decoder_input_ids": words})
    with torch.no_grad():
        past = model(**inputs, decoder_input_ids=words[:, :2], use_cache=True)
        pieces = []
        for index in range(2, words.shape[1]):
            out = model(**inputs, decoder_input_ids=words[:, index : index + 1], **cache_argument(past), use_cache=True)
            pieces.append(out.last_hidden_state)
    assert gap(torch.cat(pieces, 1), whole[:, 2:]) < 1e-5


def test_a_prefix_of_t5_has_no_position_where_it_is_our_own():
    """The library's formula is another function of the same numbers."""
    model, inputs = made("t5"), inputs_of("t5")
    model.load_adapter(REFERENCE / "t5" / "prefix_tuning_flat", set_active=True)
    theirs = run(model, inputs)
    config: Any = model.get_adapter("t").config
    assert config.as_adapterhub
    model.add_adapter("own", dataclasses.replace(config, as_adapterhub=False))
    model.get_adapter("own").load_tensors(model.get_adapter("t").tensors())
    model.set_active_adapters("own")
    assert gap(run(model, inputs), theirs) > 0.05


def test_a_prefix_of_t5_that_leaves_layers_out_is_refused(tmp_path):
    copy = shutil.copytree(REFERENCE / "t5" / "prefix_tuning_flat", tmp_path / "x")
    values = json.loads((copy / WHERE).read_text())
    values["config"]["leave_out"] = [1]
    (copy / WHERE).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"leave_out is \[1\]: on this family the library loses"):
        made("t5").load_adapter(copy)


def test_a_config_that_does_not_say_which_matrices_means_queries_and_values(tmp_path):
    copy = shutil.copytree(REFERENCE / "gpt2" / "lora13", tmp_path / "x")
    values = json.loads((copy / WHERE).read_text())
    assert values["config"].pop("attn_matrices") == ["q", "v"]
    (copy / WHERE).write_text(json.dumps(values))
    found, expected = (adapterhub.read(folder, made("gpt2").base_model) for folder in (copy, REFERENCE / "gpt2/lora13"))
    assert found.config == expected.config
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(found.tensors[key], expected.tensors[key]) for key in found.tensors)
