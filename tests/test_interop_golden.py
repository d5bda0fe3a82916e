"""AdapterHub folders of every family: the library's numbers, or a refusal with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor

import adaptrain
from adaptrain.architectures import architectures
from adaptrain.errors import CheckpointError
from foreign_folders import WHERE
from matrix import gap

REFERENCE = Path(__file__).parent / "reference"
OTHERS = ("bert", "bart", "gpt2")
"""Whose cases `test_interop.py` has."""

WITHOUT_SDPA = ("deberta", "deberta-v2", "gemma2", "gptj")
"""What transformers computes in one way only."""

_NORM = "cannot be computed with the norm"
_PLACES = ("double_seq_bn", "double_seq_bn_ln", "par_bn", "seq_bn_inv")
REFUSED: dict[tuple[str, str], str] = {
    **{(arch, case): "the last layer's norms in every layer" for arch in ("gemma2", "gemma3_text") for case in _PLACES},
    **{("modernbert", case): "takes what the norms return for the residual" for case in _PLACES},
    **{("xmod", case): _NORM for case in ("double_seq_bn_ln", "seq_bn_inv", "seq_bn_plus", "unipelt")},
    **{(arch, "prefix_tuning_flat"): "in the relative positions" for arch in ("t5", "t5_gated", "mt5")},
    **{(arch, "unipelt"): "in the relative positions" for arch in ("t5", "t5_gated")},
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


def made(arch: str, attention: str = "eager") -> adaptrain.AdaptedModel:
    folder = REFERENCE / arch / "base"
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    return adaptrain.init(getattr(hf, name).from_pretrained(folder, attn_implementation=attention)).eval()


def inputs_of(arch: str) -> dict[str, Tensor]:
    return {key: torch.tensor(value) for key, value in np.load(REFERENCE / arch / "inputs.npz").items()}


def run(model: adaptrain.AdaptedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Logits, hidden states, or of two towers both embeddings, one below the other."""
    with torch.no_grad():
        out = model(**inputs)
    if "text_embeds" in out:
        return torch.cat([out.text_embeds, out.image_embeds])
    return out.logits if "logits" in out else out.last_hidden_state


def numbers(arch: str, *path: str) -> Tensor:
    return torch.tensor(np.load(REFERENCE.joinpath(arch, *path)))


def test_every_family_has_a_table():
    kinds = {json.loads((path / "base" / "config.json").read_text())["model_type"] for path in REFERENCE.glob("*/")}
    assert kinds <= set(architectures())


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
    assert gap(found, expected) < 1e-4
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
