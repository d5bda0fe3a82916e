"""Runs that are over, for tests of what they left: where they are made, one that learnt, and how its files are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adaptrain.config.schema import RunConfig
from adaptrain.training.run import RunResult, train
from tiny_run import Recorder, run_config, save_base, save_data

PREFIX = {"method": "prefix_tuning", "prefix_length": 5, "bottleneck_size": 16}
"""An adapter section: a prefix that can be made flat."""


def save_place(folder: Path) -> Path:
    """A folder with a model, `base`, and a mirror, `data`."""
    save_base(folder / "base")
    save_data(folder / "data")
    return folder


def config_of(place: Path, outputs: Path, **changes: Any) -> RunConfig:
    """A run in such a place."""
    return run_config(place / "base", place / "data", outputs, **changes)


def finish(place: Path) -> RunResult:
    """A run of four epochs, which is enough to learn."""
    config = config_of(place, place / "outputs", epochs=4)
    return train(config, origins_yaml="seed: 1  # here\n", command=("adaptrain", "train"), display=Recorder())


def read(folder: Path, name: str) -> dict:
    """One of the JSON files of a run's folder."""
    return json.loads((folder / name).read_text())
