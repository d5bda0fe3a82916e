"""The test matrix: one line a method here, one line an architecture in `tiny_architectures.py`.

The laws in `test_matrix*.py` run over all pairs. Everything is tiny, random and made from a config: no file is read,
nothing is downloaded. Weights are far from their initial values, biases are not zero, norms are not the identity, alpha
is never r: bugs hide where any of that holds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import adaptrain
from adaptrain.methods import (
    AdapterPlusConfig,
    BnConfig,
    CompacterConfig,
    CompacterPlusPlusConfig,
    ConfigUnion,
    DiReftConfig,
    DoRAConfig,
    DoubleSeqBnConfig,
    DoubleSeqBnInvConfig,
    DvoRAConfig,
    FullConfig,
    IA3Config,
    LoRAConfig,
    LoReftConfig,
    MAMConfig,
    MethodConfig,
    MTLLoRAConfig,
    NoneConfig,
    NoReftConfig,
    ParBnConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    SeqBnConfig,
    SeqBnInvConfig,
    UniPELTConfig,
    VeraConfig,
)
from adaptrain.model import AdaptedModel
from float64 import Float64
from model_copies import copies
from tiny_architectures import ARCHITECTURES

METHODS: dict[str, MethodConfig] = {
    "lora": LoRAConfig(r=3, alpha=5),
    "lora-everywhere": LoRAConfig(
        r=2, alpha=7, attn_matrices=("q", "k", "v"), intermediate_lora=True, output_lora=True
    ),
    "lora-bert-init": LoRAConfig(r=4, alpha=2, attn_matrices=("k",), init_weights="bert", leave_out=(0,)),
    "lora-gated": LoRAConfig(r=2, alpha=5, use_gating=True, output_lora=True),
    "lora-o-words": LoRAConfig(
        r={"0": 2, "default": 3},
        alpha=5,
        use_rslora=True,
        attn_matrices=("o",),
        embeddings_lora=True,
        intermediate_lora=True,
    ),
    "lora-gate": LoRAConfig(r=2, alpha=3, selfattn_lora=False, gate_lora=True),
    "lora-targets": LoRAConfig(r=2, alpha=3, targets=("*.1.attention.*", "mlp.down")),
    "pissa": LoRAConfig(r=2, alpha=3, init_weights="pissa"),
    "dora": DoRAConfig(r=3, alpha=5, output_lora=True),
    "vera": VeraConfig(r=4, alpha=6, attn_matrices=("q", "k", "v"), intermediate_lora=True),
    "dvora": DvoRAConfig(r=4, alpha=6),
    "ia3": IA3Config(),
    "ia3-everywhere": IA3Config(attn_matrices=("q", "k", "v"), output_lora=True, alpha=1.5),
    "mtl_lora": MTLLoRAConfig(r=3, alpha=5, n_up_projection=2, weights_sharpness=0.8),
    "mtl_lora-linear": MTLLoRAConfig(
        r=3, alpha=5, n_up_projection=3, task_specific_matrix_type="linear", weights_sharpness=1.5
    ),
    "seq_bn": SeqBnConfig(reduction_factor=4),
    "double_seq_bn": DoubleSeqBnConfig(reduction_factor=4, cross_adapter=True),
    "par_bn": ParBnConfig(reduction_factor=4),
    "scaled_par_bn": ParBnConfig(reduction_factor=4, scaling="learned"),
    "bn-norms": BnConfig(
        mh_adapter=True,
        output_adapter=True,
        cross_adapter=True,
        reduction_factor={"0": 8, "default": 4},
        non_linearity="gelu",
        original_ln_before=True,
        residual_before_ln="post_add",
        ln_before=True,
        ln_after=True,
        adapter_residual_before_ln=True,
        scaling="channel",
        init_weights="houlsby",
    ),
    "bn-gated": DoubleSeqBnConfig(reduction_factor=4, use_gating=True, cross_adapter=True),
    "adapterplus": AdapterPlusConfig(reduction_factor=4),
    "compacter": CompacterConfig(reduction_factor=4, phm_dim=2, phm_init_range=0.2),
    "compacter++": CompacterPlusPlusConfig(reduction_factor=4, phm_dim=4, phm_rank=2, phm_init_range=0.2),
    "phm-own": SeqBnConfig(
        reduction_factor=4, phm_layer=True, phm_dim=2, shared_phm_rule=False, factorized_phm_W=False, phm_bias=False
    ),
    "phm-shared": DoubleSeqBnConfig(
        reduction_factor=4, phm_layer=True, phm_dim=2, factorized_phm_rule=True, shared_W_phm=True, phm_init_range=0.3
    ),
    "seq_bn_inv": SeqBnInvConfig(reduction_factor=4),
    "double_seq_bn_inv-glow": DoubleSeqBnInvConfig(reduction_factor=4, inv_adapter="glow"),
    "prefix_tuning": PrefixTuningConfig(prefix_length=3, bottleneck_size=8),
    "prefix_tuning_flat": PrefixTuningConfig(prefix_length=4, flat=True),
    "prefix-gated": PrefixTuningConfig(prefix_length=3, flat=True, use_gating=True),
    "prompt_tuning": PromptTuningConfig(prompt_length=3),
    "prompt-after-bos": PromptTuningConfig(prompt_length=2, combine="prefix_after_bos"),
    "loreft": LoReftConfig(r=2, suffix_positions=2),
    "noreft": NoReftConfig(r=2, tied_weights=True, prefix_positions=2, suffix_positions=1, non_linearity="relu"),
    "direft": DiReftConfig(r=2, layers=(1,), suffix_positions=1),
    "union": ConfigUnion(IA3Config(), SeqBnConfig(reduction_factor=4), LoReftConfig(suffix_positions=1)),
    "mam": MAMConfig(PrefixTuningConfig(prefix_length=3, bottleneck_size=8), ParBnConfig(reduction_factor=4)),
    "unipelt": UniPELTConfig(
        PrefixTuningConfig(prefix_length=3, bottleneck_size=8, use_gating=True),
        SeqBnConfig(reduction_factor=4, use_gating=True),
        LoRAConfig(r=2, alpha=5, use_gating=True),
    ),
    "full": FullConfig(),
    "none": NoneConfig(),
}
UNITS = {name: config for name, config in METHODS.items() if config.has_units}
"""The methods that put something into the model."""

FAMILIES: list[str] = ["bert", "mpnet", "gpt2", "llama", "bart"]
"""What the laws run on with every method; on the other lines with one of each kind (`KINDS`)."""

SHAPES: list[str] = [
    *FAMILIES,
    "albert",
    "deberta",
    "deberta-v2",
    "gptj",
    "phi3",
    "t5",
    "whisper",
    "bert-bert",
    "vit",
    "clip",
    "wav2vec2",
]
"""One line of each way in which a model differs for the sites: layers that share modules, attentions that are reached
in a way of their own, fused maps, relative positions, towers, what is read. For laws about what happens between units
(the evaluator, the plans, files), for which two lines of one shape are the same."""

QUICK: list[str] = [*FAMILIES, "deberta", "t5", "vit"]
"""Of these the ones that `make test` looks at where a law is slow and CI runs it on all lines."""

KINDS = [
    "lora-everywhere",
    "ia3",
    "bn-norms",
    "adapterplus",
    "seq_bn_inv",
    "prefix_tuning",
    "prompt-after-bos",
    "loreft",
]
"""One method of each kind of point."""


def supported(arch: str, method: str) -> bool:
    """Whether the table has a place for everything that the method asks for."""
    stacks = ARCHITECTURES[arch].table.stacks
    asked = [member for member in METHODS[method].members() if member.has_units]
    places = {
        "inv_adapter": any(stack.embeddings.output for stack in stacks),
        "embeddings_lora": any(stack.embeddings.words for stack in stacks),
        "gate_lora": any("mlp.gate" in stack.projections for stack in stacks),
        "prompt_length": any(stack.prompt for stack in stacks),
    }
    return all(there or not getattr(member, key, None) for member in asked for key, there in places.items())


def pairs(*methods: str, archs: list[str] | None = None, turns: bool = False, quick: list[str] | None = None) -> Any:
    """Parametrises over architecture and method: all methods of the matrix, or those named, on the families; on the
    other lines those of `KINDS` among them.

    Which laws may run on less: one that a mistake in a single table can break runs on all lines, `pairs()`. One that
    only a method and the floor below can break has `turns`: the methods of `KINDS` run on all families, each of the
    others on three, in turn. One about what happens between units has `archs=SHAPES` as well. Every method stays on
    several families, and every line that is left has every kind of site. With `quick` all other lines are `long`.
    """
    chosen, lines = methods or tuple(METHODS), ARCHITECTURES if archs is None else archs

    def runs(arch: str, method: str) -> bool:
        if method in KINDS:
            return True
        turn = [*METHODS].index(method) if turns else 0
        return arch in FAMILIES and (not turns or (FAMILIES.index(arch) + turn) % len(FAMILIES) < 3)

    every = [(arch, method) for arch in lines for method in chosen if runs(arch, method) and supported(arch, method)]
    return pytest.mark.parametrize(
        ("arch", "method"), [pair if quick is None or pair[0] in quick else long(*pair) for pair in every]
    )


def long(*values: Any) -> Any:
    """A case that `make test` leaves out and CI runs."""
    return pytest.param(*values, marks=pytest.mark.long)


def randomise(module: nn.Module, std: float, seed: int) -> None:
    """Weights as after training: every parameter random, scales and norms around one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            norm = parameter.dim() == 1 and name.endswith("weight")
            scale = norm or name.endswith("scaling")
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std + (1.0 if scale else 0.0))


@cache
def _base(arch: str, attention: str, auto: type) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    make = getattr(auto, "from_config", None) or auto._from_config  # transformers' Auto classes lack SigLIP's texts
    model = make(ARCHITECTURES[arch].config(), attn_implementation=attention)
    randomise(model, 0.15, seed=1)
    return model.double().eval()


@cache
def _copies(arch: str, attention: str, auto: type) -> Callable[[], hf.PreTrainedModel]:
    return copies(_base(arch, attention, auto))


def base(arch: str, attention: str | None = None, auto: type | None = None) -> hf.PreTrainedModel:
    """A tiny random model of a family; a fresh copy, always with the same weights."""
    row = ARCHITECTURES[arch]
    return _copies(arch, attention or row.attention[0], auto or row.auto)()


_SAID: dict[Any, Tensor] = {}


def bare(arch: str, inputs: dict[str, Tensor]) -> Tensor:
    """What the base model says, one that never had anything to do with adapters; computed once for each input."""
    key = arch, *((name, tensor.dtype, tensor.shape, tensor.numpy().tobytes()) for name, tensor in inputs.items())
    if key not in _SAID:
        _SAID[key] = run(_base(arch, ARCHITECTURES[arch].attention[0], ARCHITECTURES[arch].auto), inputs)
    return _SAID[key].clone()


def adapted(
    arch: str,
    config: MethodConfig | None = None,
    attention: str | None = None,
    auto: type | None = None,
    trained: bool = True,
    name: str = "a",
) -> AdaptedModel:
    """The tiny model with an active adapter of trained-like weights; without a config, no adapter."""
    model = adaptrain.init(base(arch, attention, auto))
    if config is not None:
        add(model, name, config, trained=trained)
        model.set_active_adapters(name)
    return model.eval()


def add(
    model: AdaptedModel, name: str, config: MethodConfig, seed: int = 2, trained: bool = True, overwrite: bool = False
) -> None:
    """Add an adapter with trained-like weights."""
    model.add_adapter(name, config, overwrite_ok=overwrite)
    if trained:
        randomise(model.get_adapter(name), 0.3, seed)


def batch(arch: str, lengths: tuple[int, ...] = (7, 4), seed: int = 3, side: str | None = None) -> dict[str, Tensor]:
    """A padded batch: on the left for decoders, on the right for the others. An image has no length; of sound, a length
    is the number of frames."""
    inputs = _batch(arch, lengths, seed, side)
    return {key: value.double() if value.is_floating_point() else value.clone() for key, value in inputs.items()}


@cache
def _batch(arch: str, lengths: tuple[int, ...], seed: int, side: str | None) -> dict[str, Tensor]:
    row, rows = ARCHITECTURES[arch], len(lengths)
    generator = torch.Generator().manual_seed(seed)
    inputs: dict[str, Tensor] = {}
    if "texts" in row.reads:
        config = row.config()
        inputs = _texts(lengths, side or ("left" if row.decoder else "right"), generator, _pad(config))
        if row.decoder:
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    if "images" in row.reads:
        inputs["pixel_values"] = torch.randn(rows, 3, 16, 16, generator=generator)
    if row.reads == "spectrogram":
        inputs["input_features"] = torch.randn(rows, 8, 40, generator=generator)
    if row.reads == "sound":
        samples = [8 + 4 * (4 + 4 * (length - 1) - 1) for length in lengths]  # two convolutions, of 8 and 4, by 4
        mask = torch.stack([(torch.arange(max(samples)) < each).long() for each in samples])
        inputs = {"input_values": torch.randn(mask.shape, generator=generator) * mask, "attention_mask": mask}
    if row.encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(5, 99, (rows, 5), generator=generator)
    return inputs


def _texts(lengths: tuple[int, ...], side: str, generator: torch.Generator, pad: int) -> dict[str, Tensor]:
    ids = torch.randint(5, 99, (len(lengths), max(lengths)), generator=generator)
    mask = torch.zeros_like(ids)
    for index, length in enumerate(lengths):
        (mask[index, -length:] if side == "left" else mask[index, :length]).fill_(1)
    return {"input_ids": ids.where(mask.bool(), torch.tensor(pad)), "attention_mask": mask}


def _pad(config: hf.PreTrainedConfig) -> int:
    return next((each for each in (getattr(config, "pad_token_id", None),) if each is not None), 0)


def alone(arch: str, inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One row of a batch, its padding cut off."""
    seen = inputs["attention_mask"][row].bool() if "attention_mask" in inputs else None
    whole = ("decoder_input_ids", "pixel_values", "input_features")
    return {
        key: value[row : row + 1] if key in whole or seen is None else value[row : row + 1, seen]
        for key, value in inputs.items()
    }


def visible(arch: str, inputs: dict[str, Tensor], output: Tensor) -> Tensor:
    """Which positions of an output are not padding, (rows, positions)."""
    row, mask = ARCHITECTURES[arch], inputs.get("attention_mask")
    every = torch.ones(output.shape[:2], dtype=torch.bool)
    if mask is None or row.encoder_decoder:
        return every
    if row.reads == "sound":
        frames = _base(arch, row.attention[0], row.auto)._get_feat_extract_output_lengths(mask.sum(1))
        return torch.arange(output.shape[1]) < frames[:, None]
    every[:, : mask.shape[1]] = mask.bool()  # behind a text's tokens come an image's
    return every


@torch.no_grad()
def run(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """What the model says: logits where it has a head, hidden states where it has none."""
    exact = any(parameter.dtype == torch.float64 for parameter in model.parameters())
    with Float64() if exact else nullcontext():
        return said(model(**inputs))


def said(outputs: Any) -> Tensor:
    """The logits or hidden states of a model's outputs; of two towers, those of texts and then of images."""
    if "logits" in outputs:
        return outputs.logits
    if "text_model_output" in outputs:
        return torch.cat([outputs[f"{tower}_model_output"].last_hidden_state for tower in ("text", "vision")], 1)
    return outputs.last_hidden_state


def cache_argument(cache: Any) -> dict[str, Any]:
    """A cache as an argument of a forward, or as a model has returned it in its outputs."""
    names = inspect.signature(hf.GPT2Model.forward).parameters
    name = next(each for each in ("cache", "past_key_values") if each in names)  # the second one before 5.24
    return {name: cache.get(name) if isinstance(cache, Mapping) else cache}


def gap(one: Tensor, other: Tensor) -> float:
    """The largest absolute difference."""
    return (one.double() - other.double()).abs().max().item()
