"""MAD-X in small (Pfeiffer et al. 2020): a task adapter is trained in English on an English language adapter; at
evaluation in French the language adapter is exchanged.

    python benchmarks/madx.py FOLDER MODEL --out OUT [--steps N] [--rows N] [--epochs N] [--seeds 1,2,3] [--only STAGE]
        [--shared-steps N]

FOLDER holds `train.jsonl`, `dev.jsonl` and `test.jsonl` with a caption a line in both languages,
`{"en": …, "fr": …}`; MODEL is a base model's folder. OUT keeps the corpora, the language adapters' run folders, the
task adapters (what is there is not trained again) and `results.jsonl`, a line for each evaluation. `docs/madx.md` has
the table that this prints. The stages `en`, `fr`, `shared` and `tasks` can be run one by one; the last two need `en`.

Where the base model has no masked-LM head, each language adapter is trained with a head of its own. `--shared-steps N`
adds a second French one, trained under the English head, which stays as it is: what the published models have anyway.

The task: who a caption is about. Its labels come from the English side by a rule, so that the French side has them too
without ever being looked at: the first word of the caption that is in `WHO` says it; captions without one are left out.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from adaptrain import AutoAdapterModel, Stack
from adaptrain.config.compose import compose
from adaptrain.config.schema import ModelConfig, RunConfig
from adaptrain.methods import SeqBnConfig
from adaptrain.training.base_model import find_base, load_tokenizer
from adaptrain.training.batching import epoch_batches, evaluation_batches
from adaptrain.training.display import Displays
from adaptrain.training.loop import Plan, fit
from adaptrain.training.prepare import prepare
from adaptrain.training.run import complete, train
from adaptrain.training.state import TrainState, make_optimizer

LANGUAGES = ("en", "fr")
WHO = {
    "man": ("man", "guy", "gentleman"),
    "woman": ("woman", "lady"),
    "boy": ("boy",),
    "girl": ("girl",),
    "child": ("child", "kid", "toddler", "baby"),
    "dog": ("dog", "puppy"),
    "several": ("men", "women", "boys", "girls", "children", "kids", "people", "dogs", "group", "crowd"),
}
LABELS = tuple(WHO)
WORDS = {word: LABELS.index(label) for label, words in WHO.items() for word in words}
TASK = "subject"


def label_of(english: str) -> int | None:
    """Who the caption is about, None where the rule does not say."""
    return next((WORDS[word] for word in re.findall(r"[a-z]+", english.lower()) if word in WORDS), None)


def read(folder: Path, split: str) -> list[dict[str, Any]]:
    lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def write_corpora(folder: Path, out: Path) -> None:
    """The captions of one language, one a line."""
    for split in ("train", "dev"):
        rows = read(folder, split)
        for language in LANGUAGES:
            file = out / "corpus" / language / f"{split}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(" ".join(row[language].split()) + "\n" for row in rows), encoding="utf-8")


def language_run(language: str, model: str, out: Path, steps: int) -> RunConfig:
    return compose(
        [
            *("model=minilm", "model.package=null", "model.sha256=null", f"model.name={model}"),
            *("adapter=seq_bn_inv", "adapter.reduction_factor=2", "task=masked_lm", f"task.name={language}"),
            *(f"task.path={out.absolute()}/corpus/{language}", f"outputs={out}/runs"),
            *("trainer.batch_size=64", f"trainer.max_steps={steps}", "trainer.learning_rate=1e-3"),
            *("trainer.warmup=0.06", "trainer.eval_batch_size=128", "seed=1"),
        ]
    ).config


def train_language(language: str, model: str, out: Path, steps: int) -> Path:
    """The run folder of a language adapter."""
    result = train(language_run(language, model, out, steps))
    row = result.row
    print(
        f"language adapter {language}: perplexity {row['score']:.1f} (unigram {row['baseline']['score']:.1f}), "
        f"token accuracy {100 * row['metrics']['token_accuracy']:.1f} %, {row['minutes']:.1f} min"
    )
    return result.folder


def train_under_head(language: str, head: Path, model: str, out: Path, steps: int) -> Path:
    """A language adapter under the masked-LM head of another one, which stays as it is."""
    folder = out / "shared" / language
    if folder.exists():
        return folder
    config, method = complete(language_run(language, model, out, steps))
    run, begun = prepare(config, method), time.perf_counter()
    (kept,) = run.model.heads.values()
    kept.load_state_dict(load_file(head / "head.safetensors"))
    kept.requires_grad_(False)
    state = TrainState(make_optimizer(run.model.trainable_parameters(), config.trainer, run.model.rate))
    plan = Plan(
        rows=run.splits["train"].encoded,
        collate=run.reader.collate,
        evaluate=lambda: run.predict("validation").scores(),
        metric="perplexity",
        higher_is_better=False,
        steps=steps,
        seed=config.seed,
    )
    fit(run.model, state, plan, config.trainer, run.hardware, Displays([]))
    scores = run.predict("validation").scores()
    run.model.save_adapter(folder, language)
    print(
        f"language adapter {language} under the other's head: perplexity {scores['perplexity']:.1f}, token accuracy "
        f"{100 * scores['token_accuracy']:.1f} %, {(time.perf_counter() - begun) / 60:.1f} min"
    )
    return folder


class Captions:
    """Labelled captions of a split, as tokens of each language."""

    def __init__(self, tokenizer: Any, rows: list[dict[str, Any]]) -> None:
        found = [(row, label) for row in rows if (label := label_of(row["en"])) is not None]
        self.labels = torch.tensor([label for _, label in found])
        self.texts = {language: [row[language] for row, _ in found] for language in LANGUAGES}
        self.ids = {
            language: tokenizer(self.texts[language], truncation=True, max_length=64)["input_ids"]
            for language in LANGUAGES
        }

    def tokens_a_word(self, language: str) -> float:
        return sum(len(ids) - 2 for ids in self.ids[language]) / sum(len(text.split()) for text in self.texts[language])

    def batch(self, language: str, indices: list[int]) -> dict[str, torch.Tensor]:
        rows = [torch.tensor(self.ids[language][index]) for index in indices]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return {"input_ids": ids, "attention_mask": mask}


def run(model: Any, **inputs: torch.Tensor) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return model(**inputs)


def train_task(given: argparse.Namespace, english: Path, captions: Captions, kind: str, seed: int) -> Path:
    """A task adapter and its head, trained in English on the English language adapter, or alone."""
    folder = given.out / "tasks" / f"{kind}-{seed}"
    if folder.exists():
        return folder
    begun = time.perf_counter()
    model = AutoAdapterModel.from_pretrained(given.model, dtype=torch.bfloat16)
    model.load_adapter(english, load_as="en", with_head=False)
    torch.manual_seed(seed)
    model.add_adapter(TASK, SeqBnConfig())
    model.add_classification_head(TASK, num_labels=len(LABELS))
    model.train_adapter(TASK)  # the language adapter stays as it is
    model.set_active_adapters(Stack("en", TASK) if kind == "stacked" else TASK)
    optimizer = torch.optim.AdamW([parameter for _, parameter in model.trainable_parameters()], lr=1e-3)
    chosen = np.random.default_rng(seed).permutation(len(captions.labels))[: given.rows]
    lengths = [len(captions.ids["en"][index]) for index in chosen]
    batches = [batch for epoch in range(given.epochs) for batch in epoch_batches(lengths, 32, seed, epoch)]
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / len(batches))
        indices = chosen[batch].tolist()
        run(model, **captions.batch("en", indices), labels=captions.labels[indices]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_adapter(folder, TASK)
    print(f"task adapter {kind}, seed {seed}: {time.perf_counter() - begun:.0f} s", flush=True)
    return folder


@torch.no_grad()
def accuracy(model: Any, captions: Captions, language: str) -> float:
    right = 0
    for batch in evaluation_batches([len(ids) for ids in captions.ids[language]], 64):
        right += int((run(model, **captions.batch(language, batch)).logits.argmax(-1) == captions.labels[batch]).sum())
    return right / len(captions.labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1200, help="of each language adapter, 64 captions each")
    parser.add_argument("--shared-steps", type=int, default=0, help="of a French adapter under the English head")
    parser.add_argument("--rows", type=int, default=6000, help="English captions that a task adapter is trained on")
    parser.add_argument("--epochs", type=int, default=2, help="passes over them")
    parser.add_argument("--seeds", default="1,2,3", help="of the task adapter")
    parser.add_argument("--only", choices=(*LANGUAGES, "shared", "tasks"), help="run one stage")
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    write_corpora(given.folder, given.out)
    languages = {"tasks": ("en",), "shared": ("en",), None: LANGUAGES}.get(given.only, (given.only,))
    folders = {language: train_language(language, given.model, given.out, given.steps) for language in languages}
    if given.shared_steps and given.only in (None, "shared"):
        folders["shared"] = train_under_head("fr", folders["en"], given.model, given.out, given.shared_steps)
    if given.only in (*LANGUAGES, "shared"):
        return

    tokenizer = load_tokenizer(find_base(ModelConfig(name=given.model)))
    training, test = (Captions(tokenizer, read(given.folder, split)) for split in ("train", "test"))
    tasks = {
        (kind, seed): train_task(given, folders["en"], training, kind, seed)
        for seed in seeds
        for kind in ("stacked", "alone")
    }
    if given.only == "tasks":
        return
    words = {language: test.tokens_a_word(language) for language in LANGUAGES}
    majority = Counter(training.labels.tolist()).most_common(1)[0][0]
    constant = float((test.labels == majority).float().mean())
    print(
        f"{len(training.labels)} training and {len(test.labels)} test captions with a subject; always "
        f"'{LABELS[majority]}' {100 * constant:.1f} %; tokens a word: en {words['en']:.2f}, fr {words['fr']:.2f}"
    )
    found: dict[tuple[str, str, str], list[float]] = {}
    file = (given.out / "results.jsonl").open("w", encoding="utf-8")
    model = AutoAdapterModel.from_pretrained(given.model, dtype=torch.bfloat16).eval()
    for language, folder in folders.items():
        model.load_adapter(folder, load_as=language, with_head=False)
    for (kind, seed), folder in tasks.items():
        model.set_active_adapters(None)
        model.load_adapter(folder)
        under: dict[str, Any] = {f"`{name}`": Stack(name, TASK) for name in folders} | {"none": TASK}
        for name, composition in under.items() if kind == "stacked" else [("none", TASK)]:
            model.set_active_adapters(composition)
            for language in LANGUAGES:
                score = accuracy(model, test, language)
                found.setdefault((kind, name, language), []).append(score)
                line = {"seed": seed, "trained": kind, "language_adapter": name, "text": language, "score": score}
                file.write(json.dumps(line) + "\n")
    print("\n| task adapter trained | evaluated with | English | French |\n|---|---|---|---|")
    for kind, name in dict.fromkeys(key[:2] for key in found):
        cells = [shown(found[kind, name, language]) for language in LANGUAGES]
        print(f"| {'on `en`' if kind == 'stacked' else 'alone'} | {name} | {' | '.join(cells)} |")
    print(f"| always '{LABELS[majority]}' | | {100 * constant:.1f} | {100 * constant:.1f} |")


def shown(scores: list[float]) -> str:
    spread = f" ± {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{100 * statistics.fmean(scores):.1f}{spread}"


if __name__ == "__main__":
    main()
