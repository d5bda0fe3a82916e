"""The results row of a run: one line of the story, in `result.json`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from adaptrain.composition import parse
from adaptrain.config.composition import members_of
from adaptrain.config.schema import RunConfig
from adaptrain.methods import config_from_dict, presets, read_fusion

FORMAT = "adaptrain-result/1"

_NO_INFLUENCE = {
    "data.mirror",
    "trainer.micro_batch_size",
    "trainer.eval_batch_size",
    "trainer.device",
    "trainer.precision",
    "trainer.gradient_checkpointing",
}
"""Settings that change where or how fast a score is computed, not what it stands for. Precision is compared as part of
the environment, resolved."""


def result_row(
    config: RunConfig,
    *,
    run: str,
    score: float,
    metrics: Mapping[str, float],
    signatures: Mapping[str, str],
    baseline: Mapping[str, Any],
    split: str,
    chosen_on: str | None,
    carved: Mapping[str, str],
    rows: int,
    adapter_parameters: int,
    head_parameters: int,
    base_parameters: int,
    epochs: float,
    steps: int,
    best_epoch: float | None,
    seconds: float,
    peak_memory: int,
    precision: str,
    device: str,
    versions: Mapping[str, Any],
    data_fingerprint: str,
) -> dict[str, Any]:
    """One results row.

    Args:
        run: name of the run's folder.
        score: of `task.metric` on `split`.
        metrics: all of them on `split`.
        signatures: how those are computed whose name does not say it all (`metrics.signatures`).
        baseline: the trivial answer's `name`, `answer`, `score`.
        split: that is scored.
        chosen_on: the split that chose the epoch, or what else a score depends on; None where nothing was chosen.
        carved: of these two, those that were taken out of another: name → where from.
        rows: of that split.
    """
    trainable = adapter_parameters + head_parameters
    return {
        "format": FORMAT,
        "recipe": config.recipe,
        "run": run,
        "method": method_name(config),
        "adapter": dict(config.adapter) if config.plain else _described(config),
        "model": config.model.name,
        "task": config.task.name,
        "task_type": config.task.type,
        "metric": config.task.metric,
        "score": score,
        "metrics": dict(metrics),
        "signatures": dict(signatures),
        "baseline": dict(baseline),
        "split": split,
        "chosen_on": chosen_on,
        "carved": dict(carved),
        "rows": rows,
        "seed": config.seed,
        "adapter_parameters": adapter_parameters,
        "head_parameters": head_parameters,
        "trainable_parameters": trainable,
        "base_parameters": base_parameters,
        "percent_of_base": 100 * trainable / base_parameters,
        "epochs": epochs,
        "steps": steps,
        "best_epoch": best_epoch,
        "minutes": round(seconds / 60, 3),
        "peak_memory_bytes": peak_memory,
        "settings": settings(config),
        "environment": {
            "adaptrain": versions["adaptrain"],
            "torch": versions["torch"],
            "transformers": versions["transformers"],
            "precision": precision,
            "device": device,
            "data": data_fingerprint,
        },
    }


def method_name(config: RunConfig) -> str:
    """What a run trains: a preset, or the composition."""
    return preset_name(config.adapter) if config.plain else str(parse(config.expression))


def _described(config: RunConfig) -> dict[str, Any]:
    """What tells a composition from another of the same expression; not which runs its saved adapters come from, so
    that those of several seeds can be repetitions of one another."""
    found: dict[str, Any] = {"composition": str(parse(config.expression))}
    for name, member in members_of(config).items():
        found[f"{name}.train"] = member.trains
        found |= {f"{name}.{key}": value for key, value in (member.adapter or {"method": "saved"}).items()}
        if member.leave_out:
            found[f"{name}.leave_out"] = list(member.leave_out)
    fusion = {} if config.fusion is None else read_fusion(config.fusion).to_dict()
    return found | {f"fusion.{key}": value for key, value in fusion.items() if key != "method"}


def preset_name(adapter: Mapping[str, Any]) -> str:
    """What people call a method: the preset that an adapter config is nearest to (`seq_bn`, not `bottleneck`). A union
    that is none of the published ones bears its members' names."""
    values = config_from_dict(adapter).to_dict()
    made = {name: make().to_dict() for name, make in presets().items()}
    if "configs" in values:
        members = _members(values)
        named = [name for name, other in made.items() if "configs" in other and _members(other) == members]
        return named[0] if named else "|".join(name for name, _ in members)
    distances = {name: _distance(values, other) for name, other in made.items()}
    nearest = min(distances, key=lambda name: distances[name])
    return values["method"] if math.isinf(distances[nearest]) else nearest


def _members(union: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """What a union's members are called, and whether they are gated."""
    return [(preset_name(member), bool(member.get("use_gating"))) for member in union["configs"]]


def _distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Keys whose values differ; another method is further than anything."""
    if one["method"] != other["method"]:
        return math.inf
    return sum(value != other[key] for key, value in one.items())


def settings(config: RunConfig) -> dict[str, Any]:
    """Everything but method, model, task and seed that shapes a score, as `group.key` → value. Runs that differ here
    are not repetitions of one another."""
    found = {}
    for group in ("head", "data", "trainer"):
        for key, value in dataclasses.asdict(getattr(config, group)).items():
            if (name := f"{group}.{key}") not in _NO_INFLUENCE:
                found[name] = value
    if config.model.quantize is not None:
        found["model.quantize"] = config.model.quantize
    return found
