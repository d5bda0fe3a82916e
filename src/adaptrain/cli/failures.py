"""Whatever goes wrong, told in a line a problem, with an exit code."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from adaptrain.cli.screen import styled
from adaptrain.errors import AdaptrainError, OutOfMemoryError

INTERRUPTED = 130
"""128 + SIGINT, what shells expect."""

BROKEN_PIPE = 141
"""128 + SIGPIPE: whoever read the output has gone (`| head`)."""


@dataclass(frozen=True)
class Failure:
    """An exception as the command line tells it.

    Attributes:
        problems: one line each.
        exit_code: 2 usage and configuration, 3 data, model, checkpoint or output, 4 memory, 1 anything else.
    """

    problems: tuple[str, ...]
    exit_code: int


def describe(error: BaseException) -> Failure:
    """Tell an exception. For one that is no user's mistake, the traceback is kept in a file."""
    if isinstance(error, AdaptrainError):
        problems: Sequence[str] = getattr(error, "problems", [str(error)])
        return Failure(tuple(" ".join(problem.split()) for problem in problems), error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return Failure(("interrupted; finished runs are kept, the same command goes on after them",), INTERRUPTED)
    if isinstance(error, MemoryError) or _is_torch_memory_error(error):
        cure = "out of memory; lower trainer.micro_batch_size, trainer.eval_batch_size or data.max_length"
        return Failure((cure,), OutOfMemoryError.exit_code)
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return Failure((f"this is a bug in adaptrain, please report it: {what[:300]} ({_keep(error)})",), 1)


def tell(failure: Failure) -> None:
    """Print a failure to stderr."""
    interrupted = failure.exit_code == INTERRUPTED
    label = styled("stopped:" if interrupted else "error:", "1;33" if interrupted else "1;31", sys.stderr)
    for problem in failure.problems:
        print(f"{label} {problem}", file=sys.stderr)


def debugging() -> bool:
    """Whether tracebacks are wanted (`ADAPTRAIN_DEBUG=1`)."""
    return os.environ.get("ADAPTRAIN_DEBUG", "0") not in ("", "0")


def _is_torch_memory_error(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _keep(error: BaseException) -> str:
    """Where the traceback went."""
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="adaptrain-", suffix=".log", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
    except OSError:
        return "its traceback could not be kept; ADAPTRAIN_DEBUG=1 shows it"
    return f"traceback in {file.name}"
