"""A run small enough for a test: a random two-layer BERT, a tokenizer of few words, and a task it can learn."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from adaptrain.config.schema import (
    ColumnsConfig,
    DataConfig,
    ModelConfig,
    RunConfig,
    SplitsConfig,
    TaskConfig,
    TrainerConfig,
)
from adaptrain.tasks.text import prepare_tokenizer

GOOD, BAD = ("bright", "kind", "warm", "fresh"), ("dull", "rude", "cold", "stale")
PLAIN = ("the", "a", "room", "cook", "soup", "walk", "day", "was", "and", "very", "our", "host")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def save_base(folder: Path, padding_baked_in: bool = True) -> Path:
    """A tiny BERT and its tokenizer as a model folder; padding and truncation are baked in as in MiniLM's file."""
    torch.manual_seed(0)
    words = [*SPECIAL, *GOOD, *BAD, *PLAIN, *(str(number) for number in range(10))]
    model = BertModel(config := _config(len(words)))
    with torch.no_grad():  # words of one mood, and the numbers in their order, lie in one direction: it has meaning
        meaning = torch.randn(config.hidden_size)
        for word, weight in [(w, 1.5) for w in GOOD] + [(w, -1.5) for w in BAD] + [(str(n), n / 2) for n in range(10)]:
            model.embeddings.word_embeddings.weight[words.index(word)] += weight * meaning
    model.save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    if padding_baked_in:
        tokenizer.enable_padding(length=30, pad_token="[PAD]")
        tokenizer.enable_truncation(30)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    fast.save_pretrained(folder)
    return folder


def _config(words: int) -> BertConfig:
    return BertConfig(
        vocab_size=words,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        initializer_range=0.2,
    )


def sentences(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows whose label is whether their one telling word is a good one."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        label = chance.randrange(2)
        words = chance.choices(PLAIN, k=chance.randint(2, 12))
        words.insert(chance.randrange(len(words)), chance.choice((BAD, GOOD)[label]))
        rows.append({"sentence": " ".join(words), "label": label})
    return rows


def counts(count: int, seed: int) -> list[dict[str, Any]]:
    """Pairs whose label is a number that stands in the second text."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        number = chance.randrange(10)
        first = " ".join(chance.choices(PLAIN, k=chance.randint(2, 5)))
        rows.append({"one": first, "two": f"the {number}", "score": float(number)})
    return rows


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer of a model folder as a run reads with it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prepare_tokenizer(tokenizer)
    return tokenizer


def save_splits(folder: Path, made: Callable[[int, int], list[dict[str, Any]]], **counts: int) -> None:
    """Splits as a mirror has them, each of other rows.

    Args:
        made: count and seed → rows.
        counts: split → its rows.
    """
    for seed, (split, count) in enumerate(counts.items()):
        write_jsonl(folder / f"{split}.jsonl", made(count, seed))


def write_jsonl(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def save_data(folder: Path) -> Path:
    """A mirror with the tasks `mood` and `number`."""
    for task, make in (("mood", sentences), ("number", counts)):
        for seed, (split, count) in enumerate((("train", 200), ("dev", 50), ("test", 40))):
            write_jsonl(folder / task / f"{split}.jsonl", make(count, seed))
    return folder


MOOD = TaskConfig(
    name="mood",
    type="classification",
    path="somebody/mood",
    columns=ColumnsConfig(text="sentence"),
    labels=("bad", "good"),
    metric="mcc",
    extra_metrics=("accuracy",),
)
NUMBER = TaskConfig(
    name="number",
    type="regression",
    path="somebody/number",
    columns=ColumnsConfig(text="one", text_pair="two", label="score"),
    metric="pearson",
    extra_metrics=("mse",),
    splits=SplitsConfig(test="test"),
)


def run_config(
    base: Path,
    mirror: Path,
    outputs: Path,
    *,
    task: TaskConfig = MOOD,
    adapter: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    seed: int = 1,
    force: bool = False,
    recipe: str = "tiny",
    **trainer: Any,
) -> RunConfig:
    """A run of a second: float32 on the CPU unless said otherwise."""
    given = {"epochs": 2, "batch_size": 16, "learning_rate": 5e-3, "precision": "fp32", "device": "cpu"} | trainer
    return RunConfig(
        recipe=recipe,
        seed=seed,
        outputs=str(outputs),
        force=force,
        model=ModelConfig(name=str(base)),
        adapter=dict(adapter or {"method": "lora"}),
        task=task,
        data=DataConfig(**({"mirror": str(mirror)} | dict(data or {}))),
        trainer=TrainerConfig(**given),
    )


class Recorder:
    """A display that remembers what it was told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def note(self, text: str) -> None:
        self.events.append(("note", text))

    def start(self, title: str, steps: int, metric: Any) -> None:
        self.events.append(("start", (title, steps, metric and metric.name)))

    def step(self, progress: Any, branch: str = "") -> None:
        self.events.append((f"{branch}.step" if branch else "step", progress))

    def evaluated(self, evaluation: Any, better: bool, branch: str = "", metric: Any = None) -> None:
        self.events.append((f"{branch}.evaluated" if branch else "evaluated", (evaluation, better)))

    def stop(self) -> None:
        self.events.append(("stop", None))

    def of(self, kind: str) -> list[Any]:
        return [value for event, value in self.events if event == kind]
