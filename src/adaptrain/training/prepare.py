"""Everything that a run needs, loaded and checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from adaptrain.config.schema import CarveConfig, RunConfig, SplitsConfig
from adaptrain.errors import UnsupportedError
from adaptrain.evaluation.baseline import Baseline, trivial_baseline
from adaptrain.evaluation.predict import Predictions, predict
from adaptrain.methods import MethodConfig
from adaptrain.sites.below import Below
from adaptrain.tasks.bad_rows import in_words
from adaptrain.tasks.cache import TokenCache, usual_cache
from adaptrain.tasks.reading import Read, Reader
from adaptrain.tasks.room import read_rows, unread_words
from adaptrain.tasks.rows import Rows, load_evaluation_rows, load_training_rows
from adaptrain.tasks.shapes import SHAPES, Shape
from adaptrain.tasks.sources import locate, usual
from adaptrain.training.base_model import BaseModel, find_base, load_model, load_processor, read_config
from adaptrain.training.drop import check_drop
from adaptrain.training.frozen import Begin, Kept, bytes_kept, from_the_words, keep, layers_below
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
        splits: what was read, by role: `train`, `validation`, and `test` where the task names one.
        reported: role of the split that the score is of.
        baseline: the trivial answer on that split.
        notes: what a person should know of the data and of saved adapters.
        sources: the saved adapters of the composition.
        below: the layers whose states are kept; None where none are.
        kept: role → those states, once `keep` has computed them.
        settings: what is chosen on the split that chooses, once `calibrate` has done so.
    """

    config: RunConfig
    hardware: Hardware
    base: BaseModel
    model: Any
    reader: Reader
    splits: dict[str, Read]
    reported: str
    baseline: Baseline
    notes: tuple[str, ...]
    sources: tuple[Source, ...] = ()
    below: Below | None = None
    kept: dict[str, Kept] = field(default_factory=dict)
    settings: dict[str, float] = field(default_factory=dict)

    def keep(self) -> None:
        """Compute what lies below the adapters for the rows that every epoch reads (`trainer.cache_frozen`)."""
        if self.below is None:
            return
        size, collate = self.config.trainer.eval_batch_size, self.reader.collate
        for role in KEPT:
            self.kept[role] = keep(self.model, self.below, self.splits[role].encoded, collate, size, self.hardware)

    def begin(self, role: str) -> Begin:
        """Around the forward of rows of a split."""
        return self.kept[role].begin if role in self.kept else from_the_words

    def predict(self, role: str) -> Predictions:
        """What the model, as it is now, says of a split."""
        size, task, begin = self.config.trainer.eval_batch_size, self.config.task, self.begin(role)
        return predict(self.model, self.reader, self.splits[role], task, size, self.hardware, begin, self.settings)

    def choose(self) -> Predictions:
        """What the model, as it is now, says of the split that chooses, with the settings that are best there: epochs
        and settings are chosen together."""
        said = self.predict("validation")
        return replace(said, settings=SHAPES[self.config.task.type].calibrate(said)) if self.calibrates else said

    @property
    def calibrates(self) -> bool:
        """Whether scores depend on something that is chosen on one split for another. Where one split does both,
        nothing is chosen: the score would be an upper bound."""
        return self.reported != "validation" and type(SHAPES[self.config.task.type]).calibrate is not Shape.calibrate

    def calibrate(self) -> None:
        """Keep what is chosen for the model as it is now."""
        if self.calibrates:
            self.settings.update(self.choose().settings)

    def parameter_counts(self) -> tuple[int, int, int]:
        """Numbers that train in the adapter, in the head, and those of the base model."""
        trainable = sum(parameter.numel() for _, parameter in self.model.trainable_parameters())
        if self.config.plain:
            adapter = self.model.parameter_count(self.config.task.name)
        else:
            adapter = trainable - sum(parameter.numel() for parameter in self.model.heads.parameters())
        return adapter, trainable - adapter, self.model.base_model.num_parameters()

    def carved(self) -> dict[str, str]:
        """The splits that were taken out of another: name → where from."""
        carve, found = self.config.task.splits.carve, {}
        for read in self.splits.values():
            if words := carved_words(read.rows, carve):
                found[read.rows.split] = words
        return found

    def describe_data(self) -> list[dict[str, Any]]:
        """One mapping a split, for the manifest."""
        carved = self.carved()
        return [
            {
                "role": role,
                "split": read.rows.split,
                "carved": carved.get(read.rows.split),
                "place": read.rows.place,
                "fingerprint": read.rows.fingerprint,
                "rows": len(read.rows),
                "rows_of_split": read.rows.found,
                "truncated": read.encoded.truncated,
                "skipped": dict(read.rows.bad),
            }
            for role, read in self.splits.items()
        ]


def prepare(config: RunConfig, method: MethodConfig, said: Sequence[str] = ()) -> Prepared:
    """Load and check everything, cheap things first.

    Args:
        said: notes that there are already.

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
    shape = SHAPES[task.type]
    rows = load_splits(config)

    base = find_base(config.model)
    own_head = shape.own_head(read_config(config.model))
    processor = load_processor(base, shape.reads)
    model, base = load_model(base, hardware.precision.base, hardware.device, config.architecture, own_head)
    seed_everything(config.seed)
    sources = () if config.plain else assemble(model, config)
    if config.plain:
        model.add_adapter(task.name, config=method)
    head_note = shape.put_head(model, task, config.head)
    if config.plain:
        model.train_adapter(task.name)
    else:
        train_composition(model, config)
    if next(iter(model.trainable_parameters()), None) is None:
        raise UnsupportedError(
            f"adapter={config.adapter['method']} has nothing to train here: the head of task {task.name} is the "
            "checkpoint's own, which stays as it is; choose an adapter that has units"
        )
    if drops:
        check_drop(model, drops)
    if config.trainer.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    model.to(hardware.device)

    reader = shape.reader(processor, model.base_model, task, config.data)
    cache = usual_cache()
    splits = encode(reader, rows, model, cache)
    reported = "test" if "test" in splits else "validation"
    metrics = (task.metric, *task.extra_metrics)
    baseline = trivial_baseline(task, reader, splits["train"], splits[reported], metrics)
    notes = (
        *said,
        *(note for read in splits.values() for note in notes_of(read, reader, task.splits)),
        *cache.notes,
    )
    notes = notes if head_note is None else (head_note, *notes)
    notes += () if (unread := unread_words(reader, model)) is None else (unread,)
    notes += source_notes(sources, base.fingerprint)
    below = None
    if config.trainer.cache_frozen:
        below = layers_below(model)
        size = bytes_kept(model, [splits[role].encoded for role in KEPT]) / 2**20
        notes += (
            f"the first {below.count} layers are computed once, without dropout; their states take {size:.0f} MB",
        )
    return Prepared(config, hardware, base, model, reader, splits, reported, baseline, notes, sources, below)


def load_splits(config: RunConfig) -> dict[str, Rows]:
    """The rows of each split of a task by role.

    Raises:
        DataError: rows that are missing or wrong.
    """
    task, data = config.task, config.data
    source = locate(task, data)
    rows = {
        "train": load_training_rows(task, data, config.seed, source),
        "validation": load_evaluation_rows(task, data, task.splits.validation, source),
    }
    if task.splits.test is not None:
        rows["test"] = load_evaluation_rows(task, data, task.splits.test, source)
    return rows


def encode(reader: Reader, rows: Mapping[str, Rows], model: Any, cache: TokenCache) -> dict[str, Read]:
    """The same as numbers that the model has room for, by role.

    Raises:
        DataError: a row that cannot be read, or that is too large for a table of the model's.
    """
    return {role: read_rows(reader, each, model, cache, training=role == "train") for role, each in rows.items()}


def carved_words(rows: Rows, carve: CarveConfig | None) -> str | None:
    """Where the rows of a split were taken from, if from another split: `from train, 1,000 rows, seed 0`."""
    if carve is None or usual(rows.split) != usual(carve.to):
        return None
    return f"from {carve.of}, {rows.found:,} rows, seed {carve.seed}"


def notes_of(read: Read, reader: Reader, splits: SplitsConfig) -> list[str]:
    """What a person should know of a split."""
    rows, cut = read.rows, read.encoded.truncated
    words = carved_words(rows, splits.carve)
    notes = [] if words is None else [f"split '{rows.split}' is carved {words}"]
    notes += rows.unused if rows.split == splits.train else ()
    notes += [f"split '{rows.split}': {cut} of {len(rows)} rows were cut to {reader.limit}"] if cut else []
    several = 0 if read.encoded.origin is None else int((np.bincount(read.encoded.origin) > 1).sum())
    if several:
        notes.append(
            f"split '{rows.split}': {several} of {len(rows)} rows are read in several windows of at most "
            f"{reader.max_length} tokens, {len(read.encoded)} windows in all"
        )
    if rows.bad:
        notes.append(
            f"split '{rows.split}': {sum(rows.bad.values())} of {rows.found} rows were left out: {in_words(rows.bad)}"
        )
    return notes
