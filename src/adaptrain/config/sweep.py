"""A sweep: overrides with several values, one run for each combination.

The grammar, the sweeper and the launcher are Hydra's, so that its plug-ins carry a sweep to other processes and
machines. A cell is composed by `compose` like a single run; Hydra only hands out the overrides.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from hydra.version import setbase

from adaptrain.config import source
from adaptrain.config.arguments import is_choice, parse_override
from adaptrain.config.compose import VERSION_BASE, Run, compose
from adaptrain.config.library import library
from adaptrain.errors import ConfigError, OutputError, UsageError

CellFunction = Callable[[int, Sequence[str]], Any]
"""Runs one cell: its number, from 0, and its swept overrides. Must be picklable for launchers of other processes."""


@dataclass(frozen=True)
class Sweep:
    """A checked sweep.

    Attributes:
        fixed: overrides that all cells share.
        swept: the swept overrides of each cell.
        runs: the composed cells, in the same order.
        hydra: settings of Hydra itself (`hydra/launcher=…`).
        lines: what Hydra's sweeper is given.
    """

    fixed: tuple[str, ...]
    swept: tuple[tuple[str, ...], ...]
    runs: tuple[Run, ...]
    hydra: tuple[str, ...]
    lines: tuple[str, ...]


def plan(arguments: Sequence[str]) -> Sweep:
    """Expand a sweep and compose every cell, before any of them starts.

    Raises:
        ConfigError: every mistake in any cell, each once.
    """
    books, problems = library(), []
    fixed: list[str] = []
    hydra: list[str] = []
    sweeps: dict[str, Override] = {}
    for argument in arguments:
        try:
            override = parse_override(argument, books)
        except UsageError as error:
            problems.append(str(error))
            continue
        if override.is_hydra_override():
            hydra.append(argument)
        elif override.is_sweep_override():
            sweeps[override.key_or_group] = override
        else:
            fixed.append(argument)
    own_sweeper = any(argument.lstrip("+").startswith("hydra/sweeper") for argument in hydra)
    swept = _combinations(list(sweeps.values()), own_sweeper, problems)
    runs: list[Run] = []
    for cell in swept:
        try:
            runs.append(compose([*fixed, *cell]))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return Sweep(tuple(fixed), tuple(swept), tuple(runs), tuple(hydra), tuple(map(_line, sweeps.values())))


def _combinations(sweeps: list[Override], own_sweeper: bool, problems: list[str]) -> list[tuple[str, ...]]:
    """The swept overrides of each cell. What another sweeper draws is not known before; its bounds stand for it."""
    samples: list[Override] = []
    source.register()
    setbase(VERSION_BASE)
    loader = ConfigLoaderImpl(create_config_search_path(source.URL))
    for override in sweeps:
        override.config_loader = loader  # for glob(*)
        value = override.value()
        if isinstance(value, IntervalSweep):
            if not own_sweeper:
                problems.append(
                    f"{override.input_line} (command line): an interval has no single values; list them "
                    f"({override.key_or_group}=1,2,3), or name a sweeper that draws from it by hydra/sweeper="
                )
                continue
            bounds = f"{override.key_or_group}={value.start},{value.end}"
            override = parse_override(bounds, library())
        samples.append(override)
    try:
        cells = BasicSweeper.split_arguments(samples, max_batch_size=None)[0]
    except HydraException as error:
        problems.append(f"command line: {error}")
        return []
    return [tuple(f"{line.lstrip('+')}" for line in cell) for cell in cells]


def _line(override: Override) -> str:
    """A swept override as Hydra's own composition takes it: `++` because our keys need not stand in a file."""
    line = (override.input_line or "").lstrip("+")
    return line if is_choice(override) else f"++{line}"


@dataclass(frozen=True)
class _Job:
    """What a launcher runs, here or in another process."""

    function: CellFunction

    def __call__(self, config: Any) -> Any:
        hydra = HydraConfig.get()
        return self.function(hydra.job.num, [str(line).lstrip("+") for line in hydra.overrides.task])


def launch(sweep: Sweep, function: CellFunction, outputs: Path) -> list[Any]:
    """Run all cells by Hydra's sweeper and launcher.

    Args:
        function: must not raise; a cell that fails says so in what it returns.
        outputs: launchers that need a folder of their own get one in it.

    Returns:
        what the cells returned, as far as the sweeper hands it on.

    Raises:
        ConfigError: the sweeper or launcher is not installed.
        OutputError: `outputs` cannot be written.
    """
    source.register()
    setbase(VERSION_BASE)
    with _scratch(outputs) as folder:
        quiet = ["hydra.output_subdir=null", "hydra/hydra_logging=none", "hydra/job_logging=none"]
        place = [f"hydra.sweep.dir='{folder}'", "hydra.sweep.subdir=."]
        try:
            hydra = Hydra.create_main_hydra2("adaptrain", create_config_search_path(source.URL))
            found = hydra.multirun(
                config_name="config",
                task_function=_Job(function),
                overrides=[*quiet, *place, *sweep.hydra, *sweep.lines],
                with_log_configuration=False,
            )
        except (HydraException, ImportError) as error:
            reason = " ".join(str(error).split("Config search path")[0].split())
            raise ConfigError(f"hydra (command line): {reason}; launchers are plug-ins to be installed") from error
        finally:
            GlobalHydra.instance().clear()
    batches = found if isinstance(found, list) else []
    return [job.return_value for batch in batches for job in batch]


@contextmanager
def _scratch(outputs: Path) -> Iterator[Path]:
    """A folder for what sweepers and launchers leave behind. What is only Hydra's own copy of the config goes."""
    try:
        outputs.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".sweep-", dir=outputs)).absolute()
    except OSError as error:
        raise OutputError(f"Cannot write {outputs}: {error.strerror}; choose another folder by outputs=") from None
    try:
        yield folder
    finally:
        (folder / "multirun.yaml").unlink(missing_ok=True)
        if not any(path.is_file() for path in folder.rglob("*")):
            shutil.rmtree(folder, ignore_errors=True)
