"""Checksums of files, computed once as long as a file is not touched; and whether files are still those of a record."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

_BLOCK = 1 << 22
_SETTLED = 10**8
"""Nanoseconds after which a file's times tell a later change from an earlier one: clocks of file systems are coarse."""

Touched = tuple[int, int, int, int]
"""Size, times of the last change of content and of metadata in nanoseconds, and inode of a file."""


def touched(file: Path) -> Touched:
    """What differs after any change of a file, and after some that change nothing in it.

    Raises:
        OSError: the file is not there.
    """
    found = file.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def sum_of(file: Path) -> str:
    """sha256 of a file.

    Raises:
        OSError: the file cannot be read.
    """
    now = touched(file)
    return _remembered(str(file.absolute()), now) if _settled(now) else _computed(file)


def sum_of_files(files: Sequence[Path]) -> str:
    """sha256 of one file; of several, that of the list of their sums.

    Raises:
        OSError: a file cannot be read.
    """
    sums = [sum_of(file) for file in files]
    return sums[0] if len(sums) == 1 else hashlib.sha256("\n".join(sums).encode()).hexdigest()


def record(files: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Each file as JSON has it, to be compared later.

    Args:
        files: under the names that they have wherever they lie.

    Raises:
        OSError: a file cannot be read.
    """
    found = {}
    for name, file in files.items():
        now = touched(file)
        found[name] = {"sha256": sum_of(file), "touched": list(now) if _settled(now) else None}
    return found


def changes(recorded: Mapping[str, Mapping[str, Any]], files: Mapping[str, Path]) -> list[str]:
    """What is no longer as it was recorded, a sentence for each file. A file that was touched and has the same content
    is the same."""
    told = [f"{name} is no longer there" for name in recorded if name not in files]
    for name, file in files.items():
        if name not in recorded:
            told.append(f"{file} is new")
            continue
        was = recorded[name]
        try:
            if was["touched"] is not None and list(touched(file)) == was["touched"]:
                continue
            now = sum_of(file)
        except OSError as error:
            told.append(f"{file} cannot be read ({error.strerror})")
            continue
        if now != was["sha256"]:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(file.stat().st_mtime))
            told.append(f"{file} was changed on {when}: its sha256 is {now[:12]}…, not {was['sha256'][:12]}…")
    return told


def touches(files: Iterable[Path]) -> str:
    """One sum over the sizes and times of many files; a file that is not there has none."""
    digest = hashlib.sha256()
    for file in files:
        try:
            found: tuple[int, ...] = touched(file)[:2]
        except OSError:
            found = ()
        digest.update(f"{file.name} {found}\n".encode())
    return digest.hexdigest()


def _settled(now: Touched) -> bool:
    return time.time_ns() - max(now[1], now[2]) > _SETTLED


@lru_cache(maxsize=4096)  # the cells of a sweep are made of the same files
def _remembered(file: str, now: Touched) -> str:
    return _computed(Path(file))


def _computed(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
