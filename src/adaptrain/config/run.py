"""A composed run: its config, and where each key was set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from adaptrain.config.documents import COMMAND_LINE, DEFAULT, Origin
from adaptrain.config.schema import RunConfig
from adaptrain.errors import DataError


@dataclass(frozen=True)
class Run:
    """A composed run.

    Attributes:
        config: checked and complete.
        origins: dotted key → where it was set; keys that are not in it have the dataclass's own default.
        choices: group → what was chosen.
        notes: what an override took away, a sentence each.
    """

    config: RunConfig
    origins: Mapping[str, Origin]
    choices: Mapping[str, str | None]
    notes: tuple[str, ...] = ()

    def origin(self, key: str) -> Origin:
        """Where a key's value was set, or the section that holds it."""
        while key:
            if key in self.origins:
                return self.origins[key]
            key = key.rpartition(".")[0]
        return DEFAULT

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Errors about rows that blame a key of a task also say where that key was set: what a file of `conf/` says of
        its own rows may be wrong for others.

        Raises:
            DataError: what the block raises.
        """
        try:
            yield
        except DataError as error:
            places = [] if error.key is None else self._places(error.key, error.value)
            if not places:
                raise
            told = "; ".join(f"{key} is set in {origin}" for key, origin in places)
            raise DataError(f"{str(error).rstrip('.')}. {told}") from error

    def _places(self, key: str, value: str | None) -> list[tuple[str, Origin]]:
        """Where the tasks of the run set a key, or the keys of a section, to a value."""
        sections = {"task": self.config.task}
        sections |= {f"adapters.{name}.task": m.task for name, m in self.config.adapters.items() if m.task is not None}
        found: dict[str, Origin] = {}
        for section, task in sections.items():
            values = dataclasses.asdict(task)
            for name in key.split("."):
                values = values[name]
            for name, each in values.items() if isinstance(values, dict) else [("", values)]:
                dotted = f"{section}.{key}.{name}".rstrip(".")
                holds = value is None or value == each or (isinstance(each, tuple) and value in each)
                if holds and each and (origin := self.origin(dotted)) not in (DEFAULT, COMMAND_LINE):
                    found[dotted] = origin
        return list(found.items())
