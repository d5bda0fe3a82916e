"""Printing: colours and fitting lines on a terminal, plain and whole text elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 1000
"""Columns where there is no terminal: nothing is cut, so that `grep` finds it."""


def console() -> Console:
    """A rich console on stdout."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    return Console(file=sys.stdout, width=None if terminal else WIDE, highlight=False, soft_wrap=not terminal)


def print_rows(
    heads: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", cut: bool = False, right: Sequence[int] = ()
) -> None:
    """Print a small table.

    Args:
        right: columns of numbers, which stand on the right.
        cut: end the last column at the edge of a terminal; elsewhere it is whole.
    """
    out = sys.stdout
    if title:
        print(styled(title, "1", out))
    widths = [max(len(row[index]) for row in (heads, *rows)) for index in range(len(heads))]
    edge = shutil.get_terminal_size().columns if cut and out.isatty() else None
    for number, row in enumerate((heads, *rows)):
        cells = [f"{cell:{'>' if column in right else '<'}{widths[column]}}" for column, cell in enumerate(row)]
        line = _cut("  ".join(cells).rstrip(), edge)
        if number == 0:
            line = styled(line, "2", out)
        elif line.startswith(cells[0]):
            line = styled(cells[0], "36", out) + line[len(cells[0]) :]
        print(line)


def _cut(line: str, edge: int | None) -> str:
    return line if edge is None or len(line) <= edge else f"{line[: edge - 1]}…"


def styled(text: str, style: str, stream: IO[str]) -> str:
    """Text in an ANSI style (`1;31` is bold red) where the stream is a terminal that wants colours."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{style}m{text}\x1b[0m"
