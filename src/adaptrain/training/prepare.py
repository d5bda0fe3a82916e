"""Everything that a run needs, loaded and checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from adaptrain.config.schema import RunConfig
from adaptrain.evaluation.baseline import Baseline, trivial_baseline, unigram_baseline
from adaptrain.evaluation.predict import Predictions, predict
from adaptrain.methods import MethodConfig
from adaptrain.sites.below import Below
from adaptrain.tasks.rows import Rows, load_evaluation_rows, load_training_rows
from adaptrain.tasks.sources import locate
from adaptrain.tasks.text import Encoded, TextReader, text_reader
from adaptrain.training.base_model import BaseModel, find_base, load_model, load_tokenizer
from adaptrain.training.drop import check_drop
from adaptrain.training.frozen import Begin, Kept, bytes_kept, from_the_words, keep, layers_below
from adaptrain.training.heads import put_head
from adaptrain.training.members import Source, assemble, source_notes, train_composition
from adaptrain.training.precision import Hardware, find_hardware
from adaptrain.training.quantisation import check_library
from adaptrain.training.seeds import seed_everything

KEPT = ("train", "validation")
"""The splits that every epoch reads."""


@dataclass(frozen=True)
class Prepared:
    """A run that can begin.

    Attributes:
        model: the base model with a fresh adapter and head, both named after the task, that train; or with the adapters
            of the run's composition.
        reader: rows to batches.
        splits: rows by role: `train`, `validation`, and `test` where the task names one.
        encoded: the same as tokens.
        reported: role of the split that the score is of.
        baseline: the trivial answer on that split.
        notes: what a person should know of the data and of saved adapters.
        sources: the saved adapters of the composition.
        below: the layers whose states are kept; None where none are.
        kept: role → those states, once `keep` has computed them.
    """

    config: RunConfig
    hardware: Hardware
    base: BaseModel
    model: Any
    reader: TextReader
    splits: dict[str, Rows]
    encoded: dict[str, Encoded]
    reported: str
    baseline: Baseline
    notes: tuple[str, ...]
    sources: tuple[Source, ...] = ()
    below: Below | None = None
    kept: dict[str, Kept] = field(default_factory=dict)

    def keep(self) -> None:
        """Compute what lies below the adapters for the rows that every epoch reads (`trainer.cache_frozen`)."""
        if self.below is None:
            return
        size, collate = self.config.trainer.eval_batch_size, self.reader.collate
        for role in KEPT:
            self.kept[role] = keep(self.model, self.below, self.encoded[role], collate, size, self.hardware)

    def begin(self, role: str) -> Begin:
        """Around the forward of rows of a split."""
        return self.kept[role].begin if role in self.kept else from_the_words

    def predict(self, role: str) -> Predictions:
        """What the model, as it is now, says of a split."""
        size, task, collate = self.config.trainer.eval_batch_size, self.config.task, self.reader.collate
        return predict(self.model, self.encoded[role], collate, task, size, self.hardware, self.begin(role))

    def parameter_counts(self) -> tuple[int, int, int]:
        """Numbers that train in the adapter, in the head, and those of the base model."""
        trainable = sum(parameter.numel() for _, parameter in self.model.trainable_parameters())
        if self.config.plain:
            adapter = self.model.parameter_count(self.config.task.name)
        else:
            adapter = trainable - sum(parameter.numel() for parameter in self.model.heads.parameters())
        return adapter, trainable - adapter, self.model.base_model.num_parameters()

    def describe_data(self) -> list[dict[str, Any]]:
        """One mapping a split, for the manifest."""
        return [
            {
                "role": role,
                "split": rows.split,
                "place": rows.place,
                "fingerprint": rows.fingerprint,
                "rows": len(rows),
                "rows_of_split": rows.found,
                "truncated": self.encoded[role].truncated,
                "empty": rows.empty,
                "skipped": rows.skipped,
            }
            for role, rows in self.splits.items()
        ]


def prepare(config: RunConfig, method: MethodConfig) -> Prepared:
    """Load and check everything, cheap things first.

    Raises:
        CheckpointError: a saved adapter of the composition is missing or wrong.
        ConfigError: a device that is not there, a `max_length` without room for text; words to mask and a tokenizer
            without a mask token; a key of a head that is the checkpoint's own.
        DataError: rows that are missing or wrong.
        ModelError: a base model that is missing or wrong.
        UnsupportedError: a method or model that do not go together.
    """
    task = config.task
    check_library(config.model)
    drops = config.trainer.adapter_drop
    trains_base = config.plain and method.trains_base
    hardware = find_hardware(config.trainer.device, config.trainer.precision, trains_base, drops > 0)
    source = locate(task, config.data)
    splits = {
        "train": load_training_rows(task, config.data, config.seed, source),
        "validation": load_evaluation_rows(task, config.data, task.splits.validation, source),
    }
    if task.splits.test is not None:
        splits["test"] = load_evaluation_rows(task, config.data, task.splits.test, source)
    reported = "test" if "test" in splits else "validation"

    base = find_base(config.model)
    tokenizer = load_tokenizer(base)
    own_head = "masked_lm" if task.type == "masked_lm" else None
    model, base = load_model(base, hardware.precision.base, hardware.device, config.architecture, own_head)
    seed_everything(config.seed)
    sources = () if config.plain else assemble(model, config)
    if config.plain:
        model.add_adapter(task.name, config=method)
    head_note = put_head(model, config)
    if config.plain:
        model.train_adapter(task.name)
    else:
        train_composition(model, config)
    if drops:
        check_drop(model, drops)
    if config.trainer.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    model.to(hardware.device)

    reader = text_reader(tokenizer, model.base_model, task, config.data)
    encoded = {role: reader.encode(rows) for role, rows in splits.items()}
    metrics = (task.metric, *task.extra_metrics)
    if reader.collate.masking is None:
        baseline = trivial_baseline(task, splits["train"].labels, splits[reported].labels, metrics)
    else:
        baseline = unigram_baseline(task, reader, encoded["train"], encoded[reported], metrics)
    notes = tuple(note for role in splits for note in notes_of(splits[role], encoded[role], reader.max_length))
    notes = notes if head_note is None else (head_note, *notes)
    notes += source_notes(sources, base.fingerprint)
    below = None
    if config.trainer.cache_frozen:
        below = layers_below(model)
        size = bytes_kept(model, [encoded[role] for role in KEPT]) / 2**20
        notes += (
            f"the first {below.count} layers are computed once, without dropout; their states take {size:.0f} MB",
        )
    return Prepared(config, hardware, base, model, reader, splits, encoded, reported, baseline, notes, sources, below)


def notes_of(rows: Rows, encoded: Encoded, max_length: int) -> list[str]:
    """What a person should know of a split."""
    notes = []
    if encoded.truncated:
        notes.append(f"split '{rows.split}': {encoded.truncated} of {len(rows)} rows were cut to {max_length} tokens")
    if rows.empty:
        notes.append(f"split '{rows.split}': {rows.empty} of {len(rows)} rows have an empty text")
    if rows.skipped:
        notes.append(f"split '{rows.split}': {rows.skipped} of {rows.found} texts are empty and were left out")
    return notes
