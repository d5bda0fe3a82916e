"""Every method on the weights of a saved model: what it changes, learns, costs, saves and merges.

    python benchmarks/every_method.py FOLDER [--steps N] [--pairs N] [--lr RATE] [--only preset,…] [--json FILE]

A model of text with a language-model head of its own (LLaMA) learns a paragraph, a model of speech (Whisper) learns
words for a noise, an encoder (BERT) learns random classes of eight sentences. The head is frozen, at its random start
where it is new, so that whatever is learnt is learnt by the adapter; `none` is the control, and learns nothing.
Dropout is off. Differences are the largest of the logits, to be read beside their size, which is printed above:

    fresh     a new adapter against the base model; 0 is promised where the method starts as the identity (=)
    saved     the trained adapter against itself, saved and loaded into an untouched copy of the base model
    merged    the trained adapter against itself, worked into the base weights; then how far the base model is from
              what it was once the adapter is taken out again

`step` is a forward, a backward and an update beside the same of full fine-tuning: the median of pairs, taken in turns.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import adaptrain
from adaptrain.errors import AdaptrainError, UnsupportedError
from adaptrain.methods import presets

Batch = Mapping[str, torch.Tensor]

TEXTS = (
    "The ferry leaves at six, whatever the weather.",
    "Nobody had told the baker that the mill was closed.",
    "A short walk.",
    "She counted the coins twice and found one too many.",
    "Under the bridge the water ran brown after three days of rain, and the children threw sticks into it.",
    "He does not like tea.",
    "The letter arrived a week late, opened and badly glued together again.",
    "Snow.",
)
CLASSES = 4
RATES = {"full": 1e-4}
"""Learning rates other than --lr."""


def load(folder: str) -> tuple[Any, Batch]:
    """The base model in float32, dropout off, and its batch, labels included."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = str((config.architectures or [""])[0])
    if config.model_type == "whisper":
        base: Any = transformers.WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        features = torch.randn(2, config.num_mel_bins, 2 * config.max_source_positions).clamp(-1, 1)
        return base, {"input_features": features, "labels": torch.randint(0, config.vocab_size, (2, 12))}
    causal = kind.endswith(("ForCausalLM", "LMHeadModel"))
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    if causal:
        base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        ids = tokenizer(" ".join(TEXTS), return_tensors="pt")["input_ids"]
        return base, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    base = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    batch = dict(tokenizer(list(TEXTS), padding=True, return_tensors="pt"))
    return base, {**batch, "labels": torch.randint(0, CLASSES, (len(TEXTS),))}


def adapted(base: Any) -> adaptrain.AdaptedModel:
    """Adapters around an untouched copy; on a bare encoder with a head that never trains, always the same."""
    model = adaptrain.init(copy.deepcopy(base))
    for module in model.modules():  # dropout is a number in a config, or in a module
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if base.base_model is base:
        torch.manual_seed(0)
        model.add_classification_head("classes", CLASSES, dropout=0.0)  # no adapter has its name, so it stays frozen
        for parameter in model.heads.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def logits(model: adaptrain.AdaptedModel, batch: Batch) -> torch.Tensor:
    """In evaluation."""
    model.eval()
    with torch.no_grad():
        return model(**batch).logits


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest absolute difference."""
    return float((a - b).abs().max())


def ready(model: adaptrain.AdaptedModel, name: str, rate: float, batch: Batch) -> Callable[[bool], float]:
    """Train an adapter and nothing else: a step, which returns its loss; without an update where told so."""
    model.train_adapter(name)
    groups = [{"params": [value], "lr": rate * model.rate(key)} for key, value in model.trainable_parameters()]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0) if groups else None

    def step(update: bool = True) -> float:
        model.train()
        loss = model(**batch).loss
        if optimizer is not None:
            loss.backward()
            if update:
                optimizer.step()
            optimizer.zero_grad()
        return float(loss.detach())

    return step


def seconds(step: Callable[[bool], float]) -> float:
    """Of one step that changes nothing."""
    begun = time.perf_counter()
    step(False)
    return time.perf_counter() - begun


def merging(model: adaptrain.AdaptedModel, batch: Batch, trained: torch.Tensor) -> dict[str, Any]:
    """The difference that merging makes, and what is left of it afterwards; nothing where it cannot be merged."""
    model.set_active_adapters(None)
    base = logits(model, batch)
    try:
        model.merge_adapter("a")
    except UnsupportedError as error:
        return {"merged": None, "reset": None, "not_merged": str(error)}
    merged = distance(logits(model, batch), trained)
    model.reset_adapter()
    return {"merged": merged, "reset": distance(logits(model, batch), base)}


def measure(preset: str, base: Any, batch: Batch, options: Any, rival: Callable[[bool], float]) -> dict[str, Any]:
    """A line of the table."""
    model = adapted(base)
    before = logits(model, batch)
    config = presets()[preset]()
    model.add_adapter("a", config)
    model.set_active_adapters("a")
    row: dict[str, Any] = {"identity": config.identity_at_start, "fresh": distance(logits(model, batch), before)}
    rate = RATES.get(preset, options.lr)
    step = ready(model, "a", rate, batch)
    row |= {"lr": rate, "parameters": sum(value.numel() for _, value in model.trainable_parameters())}
    row["step"] = statistics.median(seconds(step) / seconds(rival) for _ in range(options.pairs))
    losses = [step(True) for _ in range(options.steps)]
    trained = logits(model, batch)
    with torch.no_grad():
        row |= {"before": losses[0], "after": float(model(**batch).loss)}
    with tempfile.TemporaryDirectory() as folder:
        model.save_adapter(folder, "a")
        row["bytes"] = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        other = adapted(base)
        other.load_adapter(folder, set_active=True)
    row["saved"] = distance(logits(other, batch), trained)
    return row | merging(model, batch, trained)


def line(preset: str, row: Mapping[str, Any]) -> list[str]:
    """The cells of a row."""
    if "refused" in row:
        return [preset, "refused", *[""] * 7]
    small = lambda value: "–" if value is None else "0" if value == 0 else f"{value:.0e}"  # noqa: E731
    fresh = small(row["fresh"]) + (" =" if row["identity"] else "")
    losses = [f"{row[key]:.3f}" for key in ("before", "after")]
    differences = [small(row[key]) for key in ("saved", "merged", "reset")]
    return [preset, f"{row['parameters']:,}", fresh, *losses, f"{row['step']:.2f}", *differences]


def main(arguments: list[str]) -> None:
    """Print the table; write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(presets()))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    base, batch = load(options.folder)
    full = adapted(base)
    size = float(logits(full, batch).abs().max())
    full.add_adapter("rival", "full")
    rival = ready(full, "rival", 0.0, batch)
    console, rows = Console(width=None if sys.stdout.isatty() else 120), {}
    heads = ("method", "trained", "fresh", "loss before", "after", "step", "saved", "merged", "reset")
    title = f"{Path(options.folder).name}: {options.steps} steps, logits up to {size:.1f}"
    table = Table(*heads[:1], title=title, title_justify="left", header_style="bold", pad_edge=False)
    for head in heads[1:]:
        table.add_column(head, justify="right")
    for preset in options.only:
        try:
            rows[preset] = measure(preset, base, batch, options, rival)
        except AdaptrainError as error:
            rows[preset] = {"refused": str(error)}
        table.add_row(*map(escape, line(preset, rows[preset])))
    console.print(table)
    for preset, row in rows.items():
        if "refused" in row:
            console.print(f"{preset}: {row['refused']}", markup=False, style="dim")
    if options.json is not None:
        told = {"model": Path(options.folder).name, "steps": options.steps, "logits": size, "methods": rows}
        options.json.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
