"""Ejecting a reparameterised prefix: the MLP that made the prefix goes, the prefix stays, the outputs are the same."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptrain.checkpoint import CONFIG, TENSORS, read_adapter_config
from adaptrain.config.schema import ModelConfig
from adaptrain.errors import CheckpointError, DataError, OutputError, UnsupportedError
from adaptrain.evaluation.overrides import Overrides, base_of, check_folder, check_keys
from adaptrain.evaluation.saved import TASK, SavedRun, check_same, load_saved, read_saved, saved_rows
from adaptrain.files import read_json, write_json
from adaptrain.methods import PrefixTuningConfig
from adaptrain.reporting.folder import RESULT, made_whole
from adaptrain.training.base_model import find_base, load_model
from adaptrain.training.batching import evaluation_batches
from adaptrain.training.precision import find_hardware

TOLERANCE = 1e-6
PROBE_ROWS, PROBE_POSITIONS = 16, 24


@dataclass(frozen=True)
class EjectResult:
    """What an ejection changed.

    Attributes:
        folder: that holds the flat prefix.
        bytes_before, bytes_after: of the tensor file.
        numbers_before, numbers_after: that the adapter stores.
        difference: largest difference of any output on the probe, in float32.
        probe: what was run to find it.
    """

    folder: Path
    bytes_before: int
    bytes_after: int
    numbers_before: int
    numbers_after: int
    difference: float
    probe: str


def eject_prefix(path: Path, out: Path | None = None, overrides: Overrides | None = None) -> EjectResult:
    """Make the prefix of a run folder, or of any adapter folder, flat. Nothing is replaced before the outputs of both
    have been found equal.

    Args:
        out: folder for the result; the adapter's own folder is replaced when None.
        overrides: as of `evaluate_folder`.

    Raises:
        CheckpointError: not an adapter folder, damaged, or the outputs differ.
        ModelError: the base model is missing, or another one.
        UnsupportedError: not prefix tuning, or flat already.
        OutputError: `out` is there already, or cannot be written.
    """
    path = Path(path)
    if not (path / CONFIG).is_file():
        raise CheckpointError(f"{path} holds no adapter: there is no {CONFIG}")
    adapter = read_adapter_config(path)
    prefixes = [config for config in adapter.config.members() if isinstance(config, PrefixTuningConfig)]
    if not prefixes:
        raise UnsupportedError(f"{path} holds a {adapter.config.method} adapter; only prefix_tuning can be ejected")
    if all(config.flat for config in prefixes):
        raise UnsupportedError(f"{path} holds a flat prefix already; there is nothing to eject")
    target = path if out is None else Path(out)
    if out is not None and target.exists():
        raise OutputError(f"{target} is there already; name a new folder")

    model, batch, probe = _model_and_probe(path, overrides or {})
    before, numbers_before = _outputs(model, batch), model.parameter_count(adapter.name)
    model.eject_prefix_tuning(adapter.name)
    after, numbers_after = _outputs(model, batch), model.parameter_count(adapter.name)
    difference = float((before - after).abs().max())
    if not difference <= TOLERANCE:  # also catches NaN
        raise CheckpointError(
            f"{path}: the outputs of the flat prefix differ by {difference:.2e}, more than {TOLERANCE}; "
            "nothing was changed"
        )
    bytes_before = (path / TENSORS).stat().st_size
    with made_whole(target, "out=") as work:
        shutil.copytree(path, work, dirs_exist_ok=True)
        model.save_adapter(work, adapter.name)
        _update_result(work, numbers_after)
    return EjectResult(
        target, bytes_before, (target / TENSORS).stat().st_size, numbers_before, numbers_after, difference, probe
    )


def _model_and_probe(path: Path, overrides: Overrides) -> tuple[Any, dict[str, Tensor], str]:
    """The model with the adapter active, in float32 on the CPU, and a batch to compare on."""
    hardware = find_hardware("cpu", "fp32", trains_base=False)
    if not (path / TASK).is_file():
        identity, file = read_adapter_config(path).base, path / CONFIG
        check_keys(overrides)
        name, revision = identity.get("name"), identity.get("revision")
        config = base_of(ModelConfig(name=str(name or ""), revision=revision), overrides, file)
        check_folder(config, file)
        model, base = load_model(find_base(config), torch.float32)
        check_same(path, identity, base)
        model.load_adapter(path, set_active=True)
        return model.eval(), _random_batch(model), "random tokens"
    saved = read_saved(path, overrides)
    model, reader = load_saved(saved, hardware)
    try:
        return model, *_real_batch(saved, reader)
    except DataError:  # the data need not be here to eject
        return model, _random_batch(model), "random tokens"


def _real_batch(saved: SavedRun, reader: Any) -> tuple[dict[str, Tensor], str]:
    rows = reader.encode(saved_rows(saved, saved.split), training=True)
    chosen = evaluation_batches(rows.lengths, PROBE_ROWS)[0]
    batch = reader.collate(rows, chosen)  # with its labels: a decoder reads them
    return batch, f"{len(chosen)} rows of {saved.task.name}, split '{saved.split}'"


def _random_batch(model: Any) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(0)
    words = torch.randint(5, model.config.vocab_size, (PROBE_ROWS, PROBE_POSITIONS), generator=chance)
    mask = (torch.arange(PROBE_POSITIONS) < torch.arange(PROBE_ROWS)[:, None] + 4).long()
    return {"input_ids": words, "attention_mask": mask}


def _outputs(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found = model(**batch)
    logits = getattr(found, "logits", None)
    return found.last_hidden_state if logits is None else logits


def _update_result(folder: Path, numbers: int) -> None:
    """The folder stores fewer numbers now; what was trained stands beside."""
    if not (folder / RESULT).is_file():
        return
    row = read_json(folder / RESULT)
    row["trained_adapter_parameters"] = row.get("trained_adapter_parameters", row.get("adapter_parameters"))
    row["adapter_parameters"] = numbers
    row["trainable_parameters"] = numbers + row.get("head_parameters", 0)
    if row.get("base_parameters"):
        row["percent_of_base"] = 100 * row["trainable_parameters"] / row["base_parameters"]
    write_json(folder / RESULT, row)
