"""The manifest of a run: what one must know to repeat it, or to see why a repetition differs."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from adaptrain.version import __version__

FORMAT = "adaptrain-run/1"

LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "accelerate",
    "evaluate",
    "safetensors",
    "numpy",
    "hydra-core",
    "bitsandbytes",
    "torchao",
)


def manifest(
    *,
    command: Sequence[str],
    started: datetime,
    seed: int,
    device: torch.device,
    processes: int,
    precision: str,
    base_dtype: torch.dtype,
    base_model: Mapping[str, Any],
    data: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
    peak_memory: int,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The manifest as JSON-able values.

    Args:
        base_model: name, revision, fingerprint, where it was loaded from, how it is quantised.
        data: one mapping a split: name, place, fingerprint, rows, truncated.
        seconds: wall time of `train`, `evaluate` and `total`.
        peak_memory: bytes; the device's on cuda, the process's elsewhere.
    """
    return {
        "format": FORMAT,
        "command": list(command),
        "started": started.astimezone(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "git": git_state(),
        "seed": seed,
        "hardware": {
            "device": str(device),
            "name": device_name(device),
            "processes": processes,
            "threads": torch.get_num_threads(),
            "platform": platform.platform(),
        },
        "precision": precision,
        "base_dtype": str(base_dtype).removeprefix("torch."),
        "base_model": dict(base_model),
        "data": [dict(split) for split in data],
        "seconds": {key: round(value, 2) for key, value in seconds.items()},
        "peak_memory_bytes": peak_memory,
        "notes": list(notes),
    }


def versions() -> dict[str, str | None]:
    """Of adaptrain, Python, and the libraries that a result can depend on."""
    return {"adaptrain": __version__, "python": platform.python_version()} | {
        name: _version(name) for name in LIBRARIES
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def git_state() -> dict[str, Any] | None:
    """Commit of the repository that the command ran in, and whether its files differ from it; None outside of one."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--ignore-submodules=dirty"))}


def _git(*arguments: str) -> str | None:
    """What git says. The repository may be a stranger's, and its own config can name programs for git to run: a file
    system monitor, filters, ways to fetch what is missing. They are switched off."""
    listed = _run_git("config", "--name-only", "-z", "--get-regexp", r"^filter\..*\.(clean|smudge|process|required)$")
    filters = [key for key in (listed or "").split("\0") if key]
    off = {"core.fsmonitor": "false"} | {key: "false" if key.endswith(".required") else "" for key in filters}
    return _run_git(*arguments, config=off)


def _run_git(*arguments: str, config: Mapping[str, str] | None = None) -> str | None:
    """What a command of git prints, None where it fails.

    Args:
        config: that goes before the repository's, handed over by the environment, where a key may hold any sign.
    """
    environment = {**os.environ, "GIT_ALLOW_PROTOCOL": "none"}
    count = os.environ.get("GIT_CONFIG_COUNT", "")
    users = int(count) if count.isdecimal() else 0  # what the user hands over in this way stays
    for index, (key, value) in enumerate((config or {}).items(), start=users):
        environment |= {f"GIT_CONFIG_KEY_{index}": key, f"GIT_CONFIG_VALUE_{index}": value}
    environment["GIT_CONFIG_COUNT"] = str(users + len(config or {}))
    try:
        done = subprocess.run(
            ("git", *arguments), capture_output=True, text=True, timeout=20, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def device_name(device: torch.device) -> str:
    """The chip that computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if sys.platform == "linux":
        try:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        except (OSError, StopIteration):
            pass
    return platform.processor() or platform.machine()
