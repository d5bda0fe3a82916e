"""Evaluating a saved run folder with nothing else given."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptrain.errors import UnsupportedError, listed
from adaptrain.evaluation.eject import EjectResult, eject_prefix
from adaptrain.evaluation.overrides import Overrides
from adaptrain.evaluation.predict import Predictions, predict
from adaptrain.evaluation.saved import load_saved, read_saved, saved_rows
from adaptrain.tasks.cache import usual_cache
from adaptrain.tasks.room import read_rows
from adaptrain.training.precision import find_hardware

if TYPE_CHECKING:
    from adaptrain.config.swap import Swap

__all__ = ["EjectResult", "EvalResult", "eject_prefix", "evaluate_folder"]


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found.

    Attributes:
        folder: that was evaluated.
        task: its name.
        split: evaluated on.
        rows: of it.
        metric: name of the task's metric.
        score: of that metric.
        metrics: all of them.
        stored: the score that training reported, None where this is another split.
        notes: why the two may differ.
        predictions: of every row.
    """

    folder: Path
    task: str
    split: str
    rows: int
    metric: str
    score: float
    metrics: dict[str, float]
    stored: float | None
    notes: tuple[str, ...]
    predictions: Predictions

    @property
    def reproduced(self) -> bool | None:
        """Whether the stored score came out again, to 1e-6; None where there is none to compare with."""
        return None if self.stored is None else abs(self.score - self.stored) <= 1e-6


def evaluate_folder(
    path: Path,
    *,
    mirror: str | None = None,
    precision: str | None = None,
    split: str | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    swap: Swap | None = None,
    skip_layers: Sequence[int] = (),
    overrides: Overrides | None = None,
) -> EvalResult:
    """Evaluate a run folder: the same number as at the end of training, unless something is changed here.

    Args:
        mirror: folder of `<task>/<split>.jsonl` to take the rows from.
        precision: `auto`, `fp32` or `bf16`; that of training when None.
        split: the one that training reported when None.
        batch_size: that of training when None.
        swap: other adapters than those that were trained.
        skip_layers: evaluate without the adapters of these layers, counted over the whole model.
        overrides: where the base model and the rows are now, and whose code may run, as `model.name`, `model.revision`,
            `model.package`, `model.allow_remote_code` and `task.path`.

    Raises:
        CheckpointError: not a run folder, or damaged.
        CompositionError: `swap` names an adapter that is neither in the folder nor given; or the model does not have a
            layer of `skip_layers`.
        UnsupportedError: the adapter has nothing in `skip_layers`.
        ModelError: the base model is missing, or another one.
        DataError: the rows are missing or wrong.
    """
    saved = read_saved(Path(path), overrides)
    if mirror is not None:
        saved = dataclasses.replace(saved, data=dataclasses.replace(saved.data, mirror=mirror))
    task, split = saved.task, split or saved.split
    rows = saved_rows(saved, split)
    hardware = find_hardware(device, precision or saved.precision, saved.trains_base)
    model, reader = load_saved(saved, hardware, swap)
    if skip_layers:
        _skip(model, skip_layers)
    cache = usual_cache()
    read, size = read_rows(reader, rows, model, cache), batch_size or saved.eval_batch_size
    predictions = predict(model, reader, read, task, size, hardware, settings=saved.settings)
    metrics = predictions.scores()
    notes = list(cache.notes)
    if split == saved.split and swap is None and saved.averaged_scores:
        scores = ", ".join(f"{score:.8f}" for score in saved.averaged_scores)
        notes.append(f"an average of {len(saved.averaged_scores)} adapters, for which training reported {scores}")
    if split == saved.split and rows.fingerprint != saved.data_fingerprint:
        notes.append(f"the rows of split '{split}' ({rows.place}) are not those that training reported on")
    if swap is not None:
        trained = saved.composition or saved.task.name
        paths = [f", {name} from {member.path}" for name, member in swap.adapters.items()]
        notes.append(f"this is {model.active_adapters}{''.join(paths)}; what was trained is {trained}")
    if hardware.precision.name != saved.precision:
        notes.append(f"computed in {hardware.precision.name}, trained in {saved.precision}")
    if batch_size not in (None, saved.eval_batch_size):
        notes.append(f"batches of {batch_size} rows, not {saved.eval_batch_size}: the last digits may differ")
    if skip_layers:
        notes.append(f"without the adapters of layers {listed(model.skip_layers)}, which is not what training reported")
    return EvalResult(
        folder=saved.folder,
        task=task.name,
        split=split,
        rows=len(rows),
        metric=task.metric,
        score=metrics[task.metric],
        metrics=metrics,
        stored=saved.score if split == saved.split and swap is None else None,
        notes=tuple(notes),
        predictions=predictions,
    )


def _skip(model: Any, layers: Sequence[int]) -> None:
    """Skip layers of the active adapter; refused where that changes nothing."""
    model.skip_layers = layers
    sites, tree = model.sites, model.active_adapters
    if len(sites.plan(tree, sites.skipped)) == len(sites.plan(tree)):
        raise UnsupportedError(f"skip_layers: '{tree}' has nothing in layers {listed(model.skip_layers)}")
