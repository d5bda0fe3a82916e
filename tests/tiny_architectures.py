"""One line an architecture: the config of a tiny model, and what is to know of it. `matrix.py` makes the models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import transformers as hf

from adaptrain.architectures import Architecture, architecture_of


@dataclass(frozen=True)
class Arch:
    """A line of the matrix.

    Attributes:
        config: of the tiny model.
        decoder: causal; padded on the left, and given the position ids that `generate` would give (a prefix has no
            position, so even rotary models need the right ones with it).
        attention: the implementations that it has, the usual one first.
        reads: texts, images, sound (samples, or a spectrogram of fixed length), or texts and images.
        auto: what makes the model from its config.
    """

    config: Callable[..., hf.PreTrainedConfig]
    decoder: bool = False
    attention: tuple[str, ...] = ("sdpa", "eager")
    reads: str = "texts"
    auto: type = hf.AutoModel

    @property
    def table(self) -> Architecture:
        return _table(self)

    @property
    def encoder_decoder(self) -> bool:
        return self.table.encoder_decoder


@cache
def _table(row: Arch) -> Architecture:
    return architecture_of(row.config())


_ENCODER = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_DECODER = _ENCODER | {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 99}
_GPT2 = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48}
_GPT2 |= {"bos_token_id": 1, "eos_token_id": 99, "pad_token_id": 0}
_GPT2_PAIR = {key: value for key, value in _GPT2.items() if "token" not in key}
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
_T5 = {"vocab_size": 100, "d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_heads": 4, "pad_token_id": 0}
_T5 |= {"decoder_start_token_id": 0}
_DEBERTA = _ENCODER | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 6}
_IMAGE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_IMAGE |= {"image_size": 16, "patch_size": 8}
_SOUND = {
    "vocab_size": 30,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16, 16),
    "conv_kernel": (8, 4),
    "conv_stride": (4, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 4,
    "feat_extract_norm": "layer",  # the other one looks at the whole row, padding included
    "layerdrop": 0.0,
    "mask_time_prob": 0.0,  # it draws from numpy
}
_WHISPER = {key: value for key, value in _BART.items() if key not in ("max_position_embeddings", "forced_eos_token_id")}
_WHISPER |= {"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 64, "suppress_tokens": None}
_WHISPER |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 99, "decoder_start_token_id": 3}
_WHISPER |= {"begin_suppress_tokens": None}


def _pair(encoder: type, decoder: type, **more: Any) -> hf.EncoderDecoderConfig:
    kind = {"is_decoder": True, "add_cross_attention": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 99}
    one, other = encoder(**_ENCODER), decoder(**kind, **more)
    return hf.EncoderDecoderConfig.from_encoder_decoder_configs(one, other, decoder_start_token_id=1, pad_token_id=0)


ARCHITECTURES: dict[str, Arch] = {
    "bert": Arch(lambda: hf.BertConfig(**_ENCODER)),
    "roberta": Arch(lambda: hf.RobertaConfig(**_ENCODER)),
    "xlm-roberta": Arch(lambda: hf.XLMRobertaConfig(**_ENCODER)),
    "electra": Arch(lambda: hf.ElectraConfig(**_ENCODER, embedding_size=16)),
    "bert-generation": Arch(lambda: hf.BertGenerationConfig(**_ENCODER)),
    "mpnet": Arch(lambda: hf.MPNetConfig(**_ENCODER), attention=("eager",)),
    # two modules that serve two layers each
    "albert": Arch(
        lambda: hf.AlbertConfig(**_ENCODER | {"num_hidden_layers": 4}, embedding_size=16, num_hidden_groups=2)
    ),
    "distilbert": Arch(
        lambda: hf.DistilBertConfig(
            vocab_size=100, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=64
        )
    ),
    "deberta": Arch(lambda: hf.DebertaConfig(**_DEBERTA), attention=("eager",)),
    "deberta-v2": Arch(
        lambda: hf.DebertaV2Config(**_DEBERTA, share_att_key=True, position_buckets=4, norm_rel_ebd="layer_norm"),
        attention=("eager",),
    ),
    "xmod": Arch(lambda: hf.XmodConfig(**_ENCODER, languages=("en", "de"), default_language="de")),
    "modernbert": Arch(
        lambda: hf.ModernBertConfig(
            **_ENCODER | _TOKENS, local_attention=4, layer_types=["full_attention", "sliding_attention"]
        )
    ),
    "gpt2": Arch(lambda: hf.GPT2Config(**_GPT2), True),
    "gptj": Arch(lambda: hf.GPTJConfig(**_GPT2, rotary_dim=4), True, ("eager",)),
    # grouped queries, and heads whose size is not hidden / heads
    "llama": Arch(lambda: hf.LlamaConfig(**_DECODER, head_dim=12, attention_bias=True, mlp_bias=True), True),
    # a window that is shorter than the batches
    "mistral": Arch(lambda: hf.MistralConfig(**_DECODER, sliding_window=4), True),
    "qwen2": Arch(lambda: hf.Qwen2Config(**_DECODER), True),
    "qwen3": Arch(lambda: hf.Qwen3Config(**_DECODER, head_dim=12), True),
    "smollm3": Arch(lambda: hf.SmolLM3Config(**_DECODER), True),
    "gemma": Arch(lambda: hf.GemmaConfig(**_DECODER, head_dim=12), True),
    "gemma2": Arch(lambda: hf.Gemma2Config(**_DECODER, head_dim=12, sliding_window=4), True, ("eager",)),
    "gemma3_text": Arch(lambda: hf.Gemma3TextConfig(**_DECODER, head_dim=12, sliding_window=4), True),
    "olmo2": Arch(lambda: hf.Olmo2Config(**_DECODER), True),
    "olmo3": Arch(lambda: hf.Olmo3Config(**_DECODER, sliding_window=4), True),
    "phi3": Arch(lambda: hf.Phi3Config(**_DECODER), True),
    "bart": Arch(lambda: hf.BartConfig(**_BART)),
    "mbart": Arch(lambda: hf.MBartConfig(**_BART)),
    "plbart": Arch(lambda: hf.PLBartConfig(**_BART)),
    "marian": Arch(lambda: hf.MarianConfig(**_BART, pad_token_id=1, scale_embedding=True, decoder_start_token_id=1)),
    "t5": Arch(lambda: hf.T5Config(**_T5)),
    "t5-gated": Arch(lambda: hf.T5Config(**_T5, feed_forward_proj="gated-gelu")),
    "mt5": Arch(lambda: hf.MT5Config(**_T5)),
    "whisper": Arch(lambda: hf.WhisperConfig(**_WHISPER), reads="spectrogram"),
    "bert-bert": Arch(lambda: _pair(hf.BertConfig, hf.BertConfig, **_ENCODER), auto=hf.AutoModelForSeq2SeqLM),
    "bert-gpt2": Arch(lambda: _pair(hf.BertConfig, hf.GPT2Config, **_GPT2_PAIR), auto=hf.AutoModelForSeq2SeqLM),
    "vit": Arch(lambda: hf.ViTConfig(**_IMAGE), reads="images"),
    "deit": Arch(lambda: hf.DeiTConfig(**_IMAGE), reads="images"),
    "beit": Arch(lambda: hf.BeitConfig(**_IMAGE, use_relative_position_bias=True, drop_path_rate=0.1), reads="images"),
    "dinov2": Arch(lambda: hf.Dinov2Config(**_IMAGE, drop_path_rate=0.1), reads="images"),
    "dinov2-giant": Arch(lambda: hf.Dinov2Config(**_IMAGE, use_swiglu_ffn=True), reads="images"),
    "clip": Arch(lambda: hf.CLIPConfig(text_config=_ENCODER | _TOKENS, vision_config=_IMAGE), reads="texts and images"),
    "clip_text_model": Arch(lambda: hf.CLIPTextConfig(**_ENCODER | _TOKENS)),
    "clip_vision_model": Arch(lambda: hf.CLIPVisionConfig(**_IMAGE), reads="images"),
    "siglip": Arch(
        lambda: hf.SiglipConfig(text_config=_ENCODER | _TOKENS, vision_config=_IMAGE), reads="texts and images"
    ),
    "siglip_text_model": Arch(lambda: hf.SiglipTextConfig(**_ENCODER | _TOKENS), auto=hf.SiglipTextModel),
    "siglip_vision_model": Arch(lambda: hf.SiglipVisionConfig(**_IMAGE), reads="images"),
    "wav2vec2": Arch(lambda: hf.Wav2Vec2Config(**_SOUND), reads="sound"),
    "wav2vec2-stable": Arch(lambda: hf.Wav2Vec2Config(**_SOUND, do_stable_layer_norm=True), reads="sound"),
    "hubert": Arch(lambda: hf.HubertConfig(**_SOUND), reads="sound"),
}
