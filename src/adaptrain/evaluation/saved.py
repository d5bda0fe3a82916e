"""`task.json`: what a run folder knows beside its adapter, so that it can be evaluated with nothing else given."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptrain.checkpoint import CONFIG, OWN, AdapterFile, read_adapter_config
from adaptrain.composed import CONFIG as COMPOSITION
from adaptrain.composed import OWN_HEAD
from adaptrain.composed import read as read_composition
from adaptrain.composition import names, parse
from adaptrain.config.schema import (
    ColumnsConfig,
    DataConfig,
    GenerationConfig,
    ModelConfig,
    RunConfig,
    SplitsConfig,
    TaskConfig,
)
from adaptrain.errors import AdaptrainError, CheckpointError, CompositionError, ModelError
from adaptrain.evaluation.overrides import Overrides, base_of, check_folder, check_keys, check_rows, is_there, rows_of
from adaptrain.files import read_json, write_json
from adaptrain.tasks.reading import Reader
from adaptrain.tasks.rows import Rows, load_evaluation_rows
from adaptrain.tasks.shapes import SHAPES
from adaptrain.tasks.sources import absolute_path
from adaptrain.training.base_model import BaseModel, find_base, load_model, load_processor, read_config
from adaptrain.training.members import load_member
from adaptrain.training.precision import Hardware

if TYPE_CHECKING:
    from adaptrain.config.swap import Swap

TASK = "task.json"
FORMAT = "adaptrain-task/1"


@dataclass(frozen=True)
class SavedRun:
    """A run folder, as far as an evaluation needs it.

    Attributes:
        folder: where.
        adapter: what its adapter files say; None for a composition.
        composition: that was trained; None for one adapter.
        base: what its files say of the base model.
        model, task, data: as trained, with paths that work from any folder.
        precision: resolved (`fp32`, `bf16`).
        eval_batch_size: rows in a batch; part of the numbers, because it decides the padding.
        split: that was reported.
        score: of `task.metric` on it; None for an average, which nobody has evaluated yet.
        data_fingerprint: of that split.
        architecture: as in `RunConfig`.
        settings: what was chosen on the split that chooses (`Shape.calibrate`).
        averaged_scores: of an average: those that the adapters within were reported with, on the same rows.
        overrides: what the call says in place of the folder.
    """

    folder: Path
    adapter: AdapterFile | None
    composition: str | None
    base: Mapping[str, Any]
    model: ModelConfig
    task: TaskConfig
    data: DataConfig
    precision: str
    eval_batch_size: int
    split: str
    score: float | None
    data_fingerprint: str
    architecture: str | dict[str, Any] | None = None
    settings: Mapping[str, float] = field(default_factory=dict)
    averaged_scores: tuple[float, ...] = ()
    overrides: Overrides = field(default_factory=dict)

    @property
    def trains_base(self) -> bool:
        return self.adapter is not None and self.adapter.config.trains_base


def write_task(
    folder: Path,
    config: RunConfig,
    base: BaseModel,
    *,
    head: Mapping[str, Any],
    precision: str,
    split: str,
    score: float,
    data_fingerprint: str,
    settings: Mapping[str, float],
) -> None:
    """Write `task.json`. Relative paths are kept as configured, and where they point to from here is put beside them.

    Raises:
        OutputError: the folder cannot be written.
    """
    places = {
        "model.name": str(folder_.absolute()) if (folder_ := Path(config.model.name).expanduser()).is_dir() else None,
        "task.path": absolute_path(config.task.path),
        "data.mirror": absolute_path(config.data.mirror) if config.data.mirror is not None else None,
    }
    write_json(
        folder / TASK,
        {
            "format": FORMAT,
            "model": dataclasses.asdict(config.model),
            "task": dataclasses.asdict(config.task),
            "data": dataclasses.asdict(config.data),
            "architecture": config.architecture,
            "head": dict(head),
            "precision": precision,
            "eval_batch_size": config.trainer.eval_batch_size,
            "revision": base.revision,
            "places": {key: place for key, place in places.items() if place is not None},
            "split": split,
            "score": score,
            "data_fingerprint": data_fingerprint,
            "settings": dict(settings),
        },
    )


def read_saved(folder: Path, overrides: Overrides | None = None) -> SavedRun:
    """Read a run folder.

    Args:
        overrides: what the call says of the base model and the rows in place of the folder; it alone can allow code
            (`adaptrain.evaluation.overrides`).

    Raises:
        CheckpointError: it is not one, or cannot be read.
        ConfigError: overrides that are wrong.
        ModelError: the folder asks for code, or for a package, and the call does not allow it.
    """
    folder, overrides = Path(folder), overrides or {}
    check_keys(overrides)
    if not folder.is_dir():
        raise CheckpointError(f"There is no folder {folder}; name a run folder such as outputs/<recipe>/<hash>")
    composed = (folder / COMPOSITION).is_file()
    if not composed and not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} holds no adapter: there is no {CONFIG}. Name a folder that `train` made")
    if not (folder / TASK).is_file():
        raise CheckpointError(
            f"{folder} holds an adapter but no {TASK}, so its task is not known; only folders that "
            "`adaptrain train` made can be evaluated with nothing else given"
        )
    values = read_json(folder / TASK)
    if values.get("format") != FORMAT:
        raise CheckpointError(f"{folder / TASK} has the format {values.get('format')!r}, this version reads {FORMAT}")
    adapter = None if composed else read_adapter_config(folder)
    setup: dict[str, Any] = {"base_model": adapter.base} if adapter is not None else read_composition(folder)
    try:
        places = values["places"]
        model = ModelConfig(**values["model"])
        model = dataclasses.replace(
            model,
            name=_existing(model.name, places.get("model.name")),
            revision=values["revision"] or model.revision,
        )
        model = base_of(model, overrides, folder / TASK)
        task = _task(values["task"])
        task = dataclasses.replace(task, path=_existing(task.path, places.get("task.path")))
        data = DataConfig(**values["data"])
        if data.mirror is not None:
            data = dataclasses.replace(data, mirror=_existing(data.mirror, places.get("data.mirror")))
        task, data = rows_of(task, data, overrides)
        return SavedRun(
            folder,
            adapter,
            str(setup["composition"]) if composed else None,
            setup["base_model"],
            model,
            task,
            data,
            str(values["precision"]),
            int(values["eval_batch_size"]),
            str(values["split"]),
            None if values["score"] is None else float(values["score"]),
            str(values["data_fingerprint"]),
            values.get("architecture"),
            {key: float(value) for key, value in values.get("settings", {}).items()},
            tuple(float(score) for score in values.get("averaged_scores", ())),
            overrides,
        )
    except AdaptrainError:
        raise
    except KeyError as error:
        raise CheckpointError(f"{folder / TASK} has no key {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / TASK} cannot be read: {error}") from None


def saved_rows(saved: SavedRun, split: str) -> Rows:
    """The rows of a split of a saved run.

    Raises:
        DataError: they are missing or wrong, or in a package that the call does not name.
    """
    check_rows(saved.task, saved.data, saved.overrides, saved.folder / TASK)
    return load_evaluation_rows(saved.task, saved.data, split)


def load_saved(saved: SavedRun, hardware: Hardware, swap: Swap | None = None) -> tuple[Any, Reader]:
    """The base model with the folder's adapters and head active, on the device, and how it reads rows.

    Args:
        swap: other adapters to use.

    Raises:
        CompositionError: `swap` names an adapter that is neither in the folder nor given.
        ModelError: the base is missing, or is not the one that the adapter was trained on.
        CheckpointError: the adapter files are damaged or do not fit.
    """
    check_folder(saved.model, saved.folder / TASK)
    base = find_base(saved.model)
    shape = SHAPES[saved.task.type]
    processor = load_processor(base, shape.reads)
    own_head = None if _names_a_head(saved) else shape.own_head(read_config(saved.model))
    model, base = load_model(base, hardware.precision.base, hardware.device, saved.architecture, own_head)
    check_same(saved.folder, saved.base, base)
    if saved.composition is None:
        model.load_adapter(saved.folder, set_active=True)
    else:
        model.load_composition(saved.folder)
    if swap is not None:
        _exchange(model, swap)
    model.to(hardware.device)
    model.eval()
    return model, shape.reader(processor, model.base_model, saved.task, saved.data)


def _names_a_head(saved: SavedRun) -> bool:
    """Whether the folder has a head beside its adapters; where it has none, or only the changed parts of the
    checkpoint's own, that one is used."""
    if saved.adapter is None:
        return any(name != OWN_HEAD for name in read_composition(saved.folder).get("heads", {}))
    return (saved.adapter.head or {}).get("type", OWN) != OWN


def _exchange(model: Any, swap: Swap) -> None:
    """Load other adapters and activate the composition with them, under the head that was trained."""
    head, tree = model.active_head, parse(swap.composition) or model.active_adapters
    if missing := [name for name in swap.adapters if name not in names(tree)]:
        raise CompositionError(f"{tree} does not name '{missing[0]}', which adapters.{missing[0]}.path is given for")
    model.set_active_adapters(None)
    for name, member in swap.adapters.items():
        load_member(model, name, member)
    model.set_active_adapters(tree)
    model.active_head = head


def check_same(folder: Path, identity: Mapping[str, Any], base: BaseModel) -> None:
    """Refuse another base model than the one that an adapter was trained on.

    Args:
        identity: what the adapter's files say of it.

    Raises:
        ModelError: the weights are others.
    """
    trained_on = identity.get("fingerprint")
    # a sum of weights can only be compared with a sum, a commit only with a commit
    if trained_on and len(trained_on) == len(base.fingerprint) and trained_on != base.fingerprint:
        raise ModelError(
            f"The base model '{base.config.name}' in {base.location} is not the one that the adapter in {folder} "
            f"was trained on: its weights have the sum {base.fingerprint[:12]}…, not {trained_on[:12]}…. Name that "
            "one: model.name=FOLDER"
        )


def _existing(configured: str, absolute: str | None) -> str:
    """The place itself rather than how it was called: a relative path means something else in another folder. Where
    both are gone, the place, so that messages name it and the hub is not asked for a folder."""
    if absolute is None or (not is_there(absolute) and is_there(configured)):
        return configured
    return absolute


def _task(values: Mapping[str, Any]) -> TaskConfig:
    return TaskConfig(
        **{
            **values,
            "columns": ColumnsConfig(**values["columns"]),
            "splits": SplitsConfig(**values["splits"]),
            "generation": GenerationConfig(**values["generation"]),
            "labels": tuple(values["labels"]),
            "extra_metrics": tuple(values["extra_metrics"]),
        }
    )
