"""The legal keys of a run, typed: one dataclass a folder of `conf/`. What is not here is not a key.

Values that are wrong by themselves (a negative learning rate) are found by `problems`, so that the command line can
report all of them at once with the file each came from.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from adaptrain.config.task import (
    WRITES,
    CarveConfig,
    ColumnsConfig,
    DataConfig,
    GenerationConfig,
    SplitsConfig,
    TaskConfig,
)

__all__ = [
    "PRECISIONS",
    "CarveConfig",
    "ColumnsConfig",
    "DataConfig",
    "GenerationConfig",
    "HeadConfig",
    "MemberConfig",
    "ModelConfig",
    "RunConfig",
    "SplitsConfig",
    "TaskConfig",
    "TrainerConfig",
]

PRECISIONS = ("auto", "fp32", "bf16")

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def code_word(name: str, revision: str | None) -> str:
    """What names the code of a model: `owner/name`, `owner/name@revision`, `./folder`."""
    return name if revision is None else f"{name}@{revision}"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The frozen base model.

    Attributes:
        name: hub id or local folder.
        revision: branch, tag or commit on the hub.
        package: Python package that carries the model, as `module:folder`; used before the hub.
        sha256: of the weights file that the package carries; checked when loaded.
        attention: `auto` takes transformers' choice.
        quantize: keep the frozen maps in few bits (`docs/quantised.md`); null keeps them in `trainer.precision`.
        allow_remote_code: the one model whose own code may run: `name`, or `name@revision` where there is a revision.
            Legal on the command line alone (`adaptrain.config.remote_code`).
    """

    name: str
    revision: str | None = None
    package: str | None = None
    sha256: str | None = None
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    quantize: Literal["bnb_4bit", "bnb_8bit", "ao_int8"] | None = None
    allow_remote_code: str | None = None

    @property
    def code(self) -> str:
        """What `allow_remote_code` says to let this model's own code run."""
        return code_word(self.name, self.revision)

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.name.strip():
            yield "name", "is empty; give a hub id or a folder"
        if self.sha256 is not None and _SHA256.fullmatch(self.sha256) is None:
            yield "sha256", f"is '{self.sha256}'; it must be 64 hexadecimal digits in lower case"
        if self.package is not None and self.package.count(":") != 1:
            yield "package", f"is {self.package!r}; write it as module:folder"
        if self.allow_remote_code not in (None, self.code):
            word = f"model.allow_remote_code={shlex.quote(self.code)}"
            yield "allow_remote_code", f"is {self.allow_remote_code!r}; it must name the code that may run: {word}"
        elif self.allow_remote_code is not None and self.package is not None:
            yield (
                "package",
                "stands beside allow_remote_code, and no code of a package's model runs: leave one of them out",
            )


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Optimisation.

    Attributes:
        epochs: passes over the training rows.
        max_steps: stop after so many optimiser steps, whatever `epochs` says.
        batch_size: rows in one optimiser step.
        micro_batch_size: rows in one forward; null takes `batch_size`. Accumulation is exact: the loss is the mean
            over the rows of the whole batch, however they are divided.
        schedule: after the warm-up the rate falls linearly or as a cosine to 0, or stays.
        warmup: fraction of all steps (below 1) or number of steps.
        eval_every: epochs between two evaluations.
        patience: stop after so many evaluations without a better score; null never stops.
        keep: which weights a run ends with, those of the best evaluation or the last.
        precision: of the frozen base; `auto` takes bf16 where the hardware is native in it.
        group_by_length: rows of similar length go together.
        adapter_drop: in each optimiser step the adapters of the first n layers are skipped, n drawn uniformly from 0 to
            this number (`docs/adapterdrop.md`).
        cache_frozen: the layers below the lowest adapter are computed once for each row and kept in memory, as in
            evaluation, without dropout (`docs/adapterdrop.md`).
    """

    epochs: int = 3
    max_steps: int | None = None
    batch_size: int = 32
    micro_batch_size: int | None = None
    eval_batch_size: int = 64
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = 0.0
    max_grad_norm: float | None = 1.0
    eval_every: int = 1
    patience: int | None = None
    keep: Literal["best", "last"] = "best"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "auto"
    gradient_checkpointing: bool = False
    group_by_length: bool = True
    adapter_drop: int = 0
    cache_frozen: bool = False

    def problems(self) -> Iterator[tuple[str, str]]:
        for key in ("epochs", "batch_size", "eval_batch_size", "eval_every"):
            if getattr(self, key) < 1:
                yield key, f"is {getattr(self, key)}; it must be at least 1"
        for key in ("max_steps", "micro_batch_size", "patience"):
            value = getattr(self, key)
            if value is not None and value < 1:
                yield key, f"is {value}; it must be at least 1, or null"
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            yield "micro_batch_size", f"is {self.micro_batch_size}, more than batch_size {self.batch_size}"
        for key in ("learning_rate", "adam_epsilon"):
            if getattr(self, key) <= 0:
                yield key, f"is {getattr(self, key)}; it must be positive"
        for key in ("weight_decay", "warmup", "adapter_drop"):
            if getattr(self, key) < 0:
                yield key, f"is {getattr(self, key)}; it must not be negative"
        for key in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, key) < 1:
                yield key, f"is {getattr(self, key)}; it must lie in [0, 1)"
        if self.warmup > 1 and not float(self.warmup).is_integer():
            yield "warmup", f"is {self.warmup}; it must be a fraction below 1, or a whole number of steps"
        if _DEVICE.fullmatch(self.device) is None:
            yield "device", f"is '{self.device}'; it must be auto, cpu, mps, cuda or cuda:N"
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            yield "max_grad_norm", f"is {self.max_grad_norm}; it must be positive, or null"


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The prediction head beside the adapter.

    Attributes:
        layers: linear maps; null takes what the type of the task has (`docs/tasks.md`).
        dropout: before each of them; null takes the base model's own.
    """

    layers: int | None = None
    dropout: float | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.layers is not None and self.layers < 1:
            yield "layers", f"is {self.layers}; it must be at least 1"
        if self.dropout is not None and not 0 <= self.dropout < 1:
            yield "dropout", f"is {self.dropout}; it must lie in [0, 1)"


@dataclass(frozen=True, kw_only=True)
class MemberConfig:
    """One adapter of the run's composition, under its name in `adapters:`.

    Attributes:
        path: run folder, adapter folder or hub id of a saved one; null makes a fresh one.
        revision: of a hub id.
        adapter: `method:` and that method's own keys, of a fresh one; null takes the run's.
        train: null trains a fresh one and keeps a saved one as it is.
        leave_out: layers of a saved one that are not used, counted over the whole model.
        task: of a branch; null takes the run's.
        seed: of a branch's data order and initialisation; null takes the run's.
        trainer: of a branch; null takes the run's.
    """

    path: str | None = None
    revision: str | None = None
    adapter: dict[str, Any] | None = None
    train: bool | None = None
    leave_out: tuple[int, ...] = ()
    task: TaskConfig | None = None
    seed: int | None = None
    trainer: TrainerConfig | None = None

    @property
    def trains(self) -> bool:
        """Whether its weights change."""
        return self.path is None if self.train is None else self.train

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.path is not None and not self.path.strip():
            yield "path", "is empty; give a folder or a hub id"
        if self.path is not None and self.adapter is not None:
            yield "adapter", "is given together with path: a saved adapter has its own config; leave one of them out"
        if self.path is None and self.revision is not None:
            yield "revision", "is of a hub id, and there is no path"
        if self.path is None and self.leave_out:
            yield "leave_out", "is for a saved adapter; of a fresh one it is a key of adapter"
        if any(layer < 0 for layer in self.leave_out):
            yield "leave_out", f"is {list(self.leave_out)}; layers count from 0"
        if self.seed is not None and not 0 <= self.seed < 2**32:
            yield "seed", f"is {self.seed}; it must lie in [0, 2^32)"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, resolved.

    Attributes:
        recipe: name of the recipe, or of the group choices where there is none; the run's folder has this name.
        adapter: `method:` and that method's own keys (`adaptrain.methods`).
        architecture: where the model's own type has no table: the model type whose table is used, or the content of a
            file (`adaptrain.architectures.written`); null otherwise.
        composition: how several adapters work together, an expression or a mapping, as written; null is the adapter
            that is named after the task, alone.
        adapters: what the composition names beside that one.
        fusion: of a composition with `fuse(…)`: a preset, or the keys of a fusion config.
        outputs: folder that holds the folders of all runs.
        force: train again although a finished run is there.
    """

    recipe: str
    seed: int = 42
    outputs: str = "outputs"
    force: bool = False
    model: ModelConfig
    architecture: str | dict[str, Any] | None = None
    adapter: dict[str, Any]
    composition: str | dict[str, Any] | None = None
    adapters: dict[str, MemberConfig] = field(default_factory=dict)
    fusion: str | dict[str, Any] | None = None
    head: HeadConfig = field(default_factory=HeadConfig)
    task: TaskConfig
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        if not 0 <= self.seed < 2**32:
            yield "seed", f"is {self.seed}; it must lie in [0, 2^32)"
        if self.task.type == "masked_lm" and self.trainer.cache_frozen:
            yield "trainer.cache_frozen", "is true; other words are masked in every epoch, so nothing stays the same"
        if self.task.type in WRITES and self.trainer.cache_frozen:
            yield "trainer.cache_frozen", "is true; what is written is not known before, so that nothing could be kept"
        if self.task.type == "multiple_choice" and self.trainer.cache_frozen:
            yield "trainer.cache_frozen", "is true; a row has several texts here, and the states of one a row are kept"
        if self.task.type in ("masked_lm", "causal_lm", *WRITES) and self.head.dropout is not None:
            what = "masked words" if self.task.type == "masked_lm" else "words"
            yield "head.dropout", f"is {self.head.dropout}; a head for {what} has none: leave it null"

    @property
    def plain(self) -> bool:
        """Whether this is one fresh adapter, named after the task, and nothing else."""
        return self.composition in (None, self.task.name) and not self.adapters and self.fusion is None

    @property
    def expression(self) -> str | dict[str, Any]:
        """The composition as written; the task's name where there is none."""
        return self.task.name if self.composition is None else self.composition

    def resolved(self) -> dict[str, Any]:
        """Every key and its value. A plain run says nothing of compositions."""
        values = dataclasses.asdict(self)
        if self.plain:
            for key in ("composition", "adapters", "fusion"):
                del values[key]
        return values
