"""Every exception that adaptrain raises for something its user did.

    AdaptrainError                    exit code
    ├── UsageError                        2     a wrong command line
    ├── ConfigError                       2     configuration: all mistakes at once
    ├── CompositionError                  2     a composition that cannot be parsed, or not on this model
    ├── UnsupportedError                  2     a method, block or model that do not go together
    ├── DataError                         3     a data file, column, label or split
    ├── ModelError                        3     a base model that is missing or unreadable
    ├── CheckpointError                   3     an adapter folder that is missing, unreadable or does not fit
    ├── OutputError                       3     a result that cannot be written
    ├── AdapterNameError                  2     an adapter or head that the model does not have, or has already
    └── OutOfMemoryError                  4     the device's memory is too small

A message names the thing, the place and the cure; it is complete without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class AdaptrainError(Exception):
    """Base class. `exit_code` is what the command line returns for it."""

    exit_code = 1


class UsageError(AdaptrainError):
    """The command line cannot be understood."""

    exit_code = 2


class ConfigError(AdaptrainError, ValueError):
    """One or more configuration mistakes, reported together.

    Args:
        problems: one complete sentence a mistake.
    """

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class CompositionError(AdaptrainError, ValueError):
    """A composition that cannot be parsed, or that this model cannot run."""

    exit_code = 2


class UnsupportedError(AdaptrainError):
    """A method, a block and a model that do not go together; names all of them."""

    exit_code = 2


class AdapterNameError(AdaptrainError, KeyError):
    """An adapter or head name that is unknown, taken or not allowed."""

    exit_code = 2

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0])


class DataError(AdaptrainError, ValueError):
    """A data file, column, label or split that is missing or wrong.

    Args:
        message: complete.
        key: of the task's config, where the mistake may be in it: `columns.text`, `labels`, `splits`; and
        value: what stands there, where the key has several.
    """

    exit_code = 3

    def __init__(self, message: str = "", key: str | None = None, value: str | None = None) -> None:
        super().__init__(message)
        self.key, self.value = key, value


class ModelError(AdaptrainError):
    """A base model that is missing, unreadable or not the one expected."""

    exit_code = 3


class CheckpointError(AdaptrainError):
    """An adapter folder that is missing, unreadable or does not fit the model."""

    exit_code = 3


class OutputError(AdaptrainError):
    """A result that cannot be written."""

    exit_code = 3


class OutOfMemoryError(AdaptrainError):
    """The device's memory is too small for this run."""

    exit_code = 4


def nearest(word: str, known: Iterable[str]) -> str:
    """`", did you mean 'x'?"` when a known word is near, else the empty string.

    >>> nearest("learnin_rate", ["learning_rate", "epochs"])
    ", did you mean 'learning_rate'?"
    """
    match = difflib.get_close_matches(str(word), [str(name) for name in known], n=1, cutoff=0.6)
    return f", did you mean '{match[0]}'?" if match else ""


def unknown(kind: str, name: object, known: Iterable[str], lead: str) -> str:
    """The sentences for a name that is not known: the nearest that is, and all of them.

    >>> unknown("metric", "acuracy", ["accuracy", "f1"], "The metrics are")
    "There is no metric 'acuracy', did you mean 'accuracy'? The metrics are: accuracy, f1"
    """
    known = list(known)
    return f"There is no {kind} '{name}'{nearest(str(name), known) or '.'} {lead}: {listed(known)}"


def listed(names: Iterable[object]) -> str:
    """Names for a message: `a, b, c`, or `(none)`."""
    return ", ".join(str(name) for name in names) or "(none)"
