"""Models that write, small enough for a test: random decoders and encoder-decoders of a hundred words."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing

PAD, END, UNK, BEGIN = "<pad>", "</s>", "<unk>", "<s>"
SPECIAL = (PAD, END, UNK, BEGIN)
SIGNS = ("\n", ":", ".", "sum", "say")
ENGLISH = tuple(f"e{number}" for number in range(40))
FRENCH = tuple(f"f{number}" for number in range(40))
WORDS = (*SPECIAL, *SIGNS, *ENGLISH, *FRENCH)
MANY = 200
"""Positions."""


def tokenizer(ends: bool = False, begins: bool = False, end: bool = True) -> hf.PreTrainedTokenizerFast:
    """Of words, a newline among them.

    Args:
        ends: whether it ends every text, as that of an encoder-decoder does.
        begins: whether it begins every text, as LLaMA's does.
        end: whether it has an end at all.
    """
    made = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token=UNK))
    made.pre_tokenizer = Split(Regex(r"\n|[.:]|[^\s.:]+"), "removed", invert=True)  # pyright: ignore[reportAttributeAccessIssue]
    if ends or begins:
        single = f"{f'{BEGIN} ' if begins else ''}$A{f' {END}' if ends else ''}"
        made.post_processor = TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single=single, pair=f"{single} $B", special_tokens=[(BEGIN, WORDS.index(BEGIN)), (END, WORDS.index(END))]
        )
    names: dict[str, Any] = {"pad_token": PAD, "unk_token": UNK, "model_max_length": 1000}
    names |= ({"eos_token": END} if end else {}) | ({"bos_token": BEGIN} if begins else {})
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=["input_ids", "attention_mask"], **names)


def writer(kind: str) -> hf.PreTrainedModel:
    """A model with its own output embedding, tied for some; biases are not zero."""
    torch.manual_seed(0)
    ids: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 1, "vocab_size": len(WORDS)}
    small: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    half: dict[str, Any] = {"layers": 2, "attention_heads": 4, "ffn_dim": 48}
    both: dict[str, Any] = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in half.items()}
    both |= {"d_model": 32, "init_std": 0.3, "max_position_embeddings": MANY, **ids}
    model: Any
    if kind == "gpt2":
        sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": MANY, "initializer_range": 0.3}
        model = hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, **ids, bos_token_id=3))
    elif kind == "llama":
        more: dict[str, Any] = {"num_key_value_heads": 2, "max_position_embeddings": MANY, "initializer_range": 0.3}
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**small, **more, **ids, bos_token_id=3, tie_word_embeddings=False))
    elif kind == "t5":
        sizes: dict[str, Any] = {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "initializer_factor": 3.0,
        }
        sizes["decoder_start_token_id"] = 0
        model = hf.T5ForConditionalGeneration(hf.T5Config(**sizes, **ids))
    elif kind == "bart":
        model = hf.BartForConditionalGeneration(hf.BartConfig(**both, bos_token_id=3, decoder_start_token_id=1))
        model.generation_config.update(num_beams=4, max_length=20, min_length=5, forced_bos_token_id=3)
        model.generation_config.update(length_penalty=2.0, no_repeat_ngram_size=2, early_stopping=True)
    else:
        config = hf.MarianConfig(**both, decoder_start_token_id=0, share_encoder_decoder_embeddings=False)
        config.tie_word_embeddings, config.decoder_vocab_size = False, len(WORDS)
        model = hf.MarianMTModel(config)
        model.final_logits_bias.normal_()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2)
    return model.eval()


PAIRS = ("t5", "bart", "marian")


def save_writer(folder: Path, kind: str, **options: Any) -> Path:
    """A model folder, with a tokenizer as its family has it."""
    writer(kind).save_pretrained(folder)
    tokenizer(**({"ends": kind in PAIRS, "begins": kind in ("llama", "bart")} | options)).save_pretrained(folder)
    return folder


def translations(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of two languages, word for word, in one column of mappings."""
    chance = random.Random(seed)
    numbers = [chance.choices(range(40), k=chance.randint(1, 7)) for _ in range(count)]
    return [
        {"translation": {"en": " ".join(ENGLISH[n] for n in row), "fr": " ".join(FRENCH[n] for n in row)}}
        for row in numbers
    ]


def summaries(count: int, seed: int) -> list[dict[str, Any]]:
    """Documents of a few sentences, and what each says, in one way and in several."""
    chance, rows = random.Random(seed), []
    for _ in range(count):
        said = [" ".join(chance.choices(ENGLISH, k=chance.randint(2, 5))) for _ in range(chance.randint(1, 4))]
        first = said[0].replace("e", "f")
        document = " ".join(f"{each.capitalize()}." for each in said)
        rows.append({"document": document, "summary": first, "summaries": [first, said[-1]]})
    return rows


def tales(count: int, seed: int) -> list[dict[str, Any]]:
    """Texts that count on from any word."""
    chance, rows = random.Random(seed), []
    for _ in range(count):
        start, length = chance.randrange(40), chance.randint(1, 9)
        rows.append({"text": " ".join(ENGLISH[(start + step) % 40] for step in range(length))})
    return rows
