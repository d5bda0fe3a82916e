"""The test matrix: one line a method, one line an architecture. The laws in `test_matrix*.py` run over all pairs.

Everything is tiny, random and made from a config: no file is read, nothing is downloaded. Weights are far from their
initial values, biases are not zero, norms are not the identity, alpha is never r: bugs hide where any of that holds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

import adaptrain
from adaptrain.architectures import architecture_of
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

METHODS: dict[str, MethodConfig] = {
    "lora": LoRAConfig(r=3, alpha=5),
    "lora-everywhere": LoRAConfig(
        r=2, alpha=7, attn_matrices=("q", "k", "v"), intermediate_lora=True, output_lora=True
    ),
    "lora-bert-init": LoRAConfig(r=4, alpha=2, attn_matrices=("k",), init_weights="bert", leave_out=(0,)),
    "lora-gated": LoRAConfig(r=2, alpha=5, use_gating=True, output_lora=True),
    "lora-o-gate-words": LoRAConfig(
        r={"0": 2, "default": 3},
        alpha=5,
        use_rslora=True,
        attn_matrices=("o",),
        gate_lora=True,
        embeddings_lora=True,
        intermediate_lora=True,
    ),
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


@dataclass(frozen=True)
class Arch:
    """A line of the matrix.

    Attributes:
        config: of the tiny model.
        decoder: causal; padded on the left, and given the position ids that `generate` would give (a prefix has no
            position, so even rotary models need the right ones with it).
        attention: the implementations that it has, the usual one first.
    """

    config: Callable[..., hf.PreTrainedConfig]
    decoder: bool = False
    attention: tuple[str, ...] = ("sdpa", "eager")


_ENCODER = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
_DECODER = _ENCODER | {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 99}
_GPT2 = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48}
_BART = {
    "vocab_size": 100,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
    "forced_eos_token_id": None,
}

ARCHITECTURES: dict[str, Arch] = {
    "bert": Arch(lambda: hf.BertConfig(**_ENCODER)),
    "roberta": Arch(lambda: hf.RobertaConfig(**_ENCODER)),
    "xlm-roberta": Arch(lambda: hf.XLMRobertaConfig(**_ENCODER)),
    "electra": Arch(lambda: hf.ElectraConfig(**_ENCODER, embedding_size=16)),
    "mpnet": Arch(lambda: hf.MPNetConfig(**_ENCODER), attention=("eager",)),
    "gpt2": Arch(lambda: hf.GPT2Config(**_GPT2, bos_token_id=1, eos_token_id=99, pad_token_id=0), True),
    # grouped queries, and heads whose size is not hidden / heads
    "llama": Arch(lambda: hf.LlamaConfig(**_DECODER, head_dim=12, attention_bias=True, mlp_bias=True), True),
    # a window that is shorter than the batches below
    "mistral": Arch(lambda: hf.MistralConfig(**_DECODER, sliding_window=4), True),
    "qwen2": Arch(lambda: hf.Qwen2Config(**_DECODER), True),
    "bart": Arch(lambda: hf.BartConfig(**_BART)),
}

FAMILIES: list[str] = list(
    {architecture_of(row.config().model_type).name: arch for arch, row in [*ARCHITECTURES.items()][::-1]}.values()
)
"""One line of each table, for laws that do not depend on more than the table."""


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
    model = auto.from_config(ARCHITECTURES[arch].config(), attn_implementation=attention)
    randomise(model, 0.15, seed=1)
    return model.eval()


def base(arch: str, attention: str | None = None, auto: type = hf.AutoModel) -> hf.PreTrainedModel:
    """A tiny random model of a family; a fresh copy, always with the same weights."""
    return copy.deepcopy(_base(arch, attention or ARCHITECTURES[arch].attention[0], auto))


def adapted(
    arch: str,
    config: MethodConfig | None = None,
    attention: str | None = None,
    auto: type = hf.AutoModel,
    trained: bool = True,
    name: str = "a",
) -> AdaptedModel:
    """The tiny model with an active adapter of trained-like weights; without a config, no adapter."""
    model = adaptrain.init(base(arch, attention, auto))
    if config is not None:
        add(model, name, config, trained=trained)
        model.set_active_adapters(name)
    return model.eval()


def add(model: AdaptedModel, name: str, config: MethodConfig, seed: int = 2, trained: bool = True) -> None:
    """Add an adapter with trained-like weights."""
    model.add_adapter(name, config)
    if trained:
        randomise(model.get_adapter(name), 0.3, seed)


def batch(arch: str, lengths: tuple[int, ...] = (7, 4), seed: int = 3, side: str | None = None) -> dict[str, Tensor]:
    """A padded batch: on the left for decoders, on the right for the others."""
    row = ARCHITECTURES[arch]
    side = side or ("left" if row.decoder else "right")
    pad = row.config().pad_token_id
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 99, (len(lengths), max(lengths)), generator=generator)
    mask = torch.zeros_like(ids)
    for index, length in enumerate(lengths):
        (mask[index, -length:] if side == "left" else mask[index, :length]).fill_(1)
    inputs = {"input_ids": ids.where(mask.bool(), torch.tensor(pad)), "attention_mask": mask}
    if row.decoder:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    if arch == "bart":
        inputs["decoder_input_ids"] = torch.randint(5, 99, (len(lengths), 5), generator=generator)
    return inputs


def alone(arch: str, inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One row of a batch, its padding cut off."""
    seen = inputs["attention_mask"][row].bool()
    return {
        key: value[row : row + 1] if key.startswith("decoder") else value[row : row + 1, seen]
        for key, value in inputs.items()
    }


@torch.no_grad()
def run(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """What the model says: logits where it has a head, hidden states where it has none."""
    outputs = model(**inputs)
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


def gap(one: Tensor, other: Tensor) -> float:
    """The largest absolute difference."""
    return (one.double() - other.double()).abs().max().item()
