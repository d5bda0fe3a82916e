"""The folder of a run: where it is, when it is finished, and how it comes to be, all at once or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from adaptrain.composition import names, parse
from adaptrain.config.schema import RunConfig
from adaptrain.errors import OutputError

MANIFEST = "run.json"
"""Written last: a folder that has it holds a finished run."""

RESULT = "result.json"

AVERAGE = "average.json"
"""What an average of adapters was made of: a folder that has it is no run."""

BRANCHES = "branches"
"""Folder of the branches of a run, a folder each like that of a run of its own."""

_NOT_IN_HASH = ("recipe", "outputs", "force")
_OWNER = ".owner.json"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


def run_hash(config: RunConfig) -> str:
    """Eight hex digits that name a resolved config, its place on the disk and the recipe's name left out."""
    values = config.resolved()
    for key in _NOT_IN_HASH:
        del values[key]
    if not config.plain:
        values["composition"] = str(parse(config.expression))  # a mapping and its expression are one run
        if config.task.name not in names(parse(config.expression)) or config.task.name in config.adapters:
            del values["adapter"]  # no adapter has it
    return hashlib.sha256(canonical(values).encode()).hexdigest()[:8]


def run_folder(config: RunConfig) -> Path:
    """Where a run's results go: `outputs/<recipe>/<hash8>`."""
    return Path(config.outputs).expanduser() / config.recipe / run_hash(config)


def branch_folder(name: str) -> str:
    """Where a branch's results go inside the folder of its run."""
    return f"{BRANCHES}/{quote(name, safe=' ,+=@').replace('.', '%2E')}"


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a finished run."""
    return (folder / MANIFEST).is_file()


def canonical(values: Any) -> str:
    """The one JSON text of a value: keys sorted, no blanks."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def check_free(folder: Path, force: bool) -> None:
    """Refuse a place that holds something other than a run, unless it may be replaced.

    Raises:
        OutputError: names the folder.
    """
    if folder.exists() and not is_finished(folder) and not force:
        raise OutputError(f"{folder} is there but holds no finished run; remove it, or give force=true to replace it")


@contextmanager
def made_whole(folder: Path, key: str = "outputs=") -> Iterator[Path]:
    """A folder beside the final one to work in; it takes the final name when the block ends, and is removed on error.

    Args:
        key: that names another place on the command line, for messages.

    Raises:
        OutputError: the place cannot be written, or another process is at work there.
    """
    work = folder.with_name(f".{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _claim(work)
    except OSError as error:
        raise OutputError(f"Cannot write {work}: {error}; choose another folder by {key}") from None
    try:
        yield work
        (work / _OWNER).unlink()
        swap(work, folder)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise OutputError(f"Cannot write {folder}: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def swap(new: Path, folder: Path) -> None:
    """Put a finished folder in the place of another, or of nothing. Both lie on one file system."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _claim(work: Path) -> None:
    """Make the working folder ours. One that a killed process left is taken over; one in use is not."""
    try:
        work.mkdir()
    except FileExistsError:
        owner = _owner(work)
        if owner.get("host") != socket.gethostname() or _alive(owner.get("pid")):
            raise OutputError(
                f"Process {owner.get('pid', '?')} on {owner.get('host', 'an unknown host')} is at work on this run "
                f"({work}); wait for it, or remove that folder if it is gone"
            ) from None
        shutil.rmtree(work)
        work.mkdir()
    (work / _OWNER).write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))


def _owner(work: Path) -> dict[str, Any]:
    try:
        owner = json.loads((work / _OWNER).read_text())
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _alive(pid: Any) -> bool:
    if not isinstance(pid, int) or pid == os.getpid():  # our own id: an earlier run in this process left it
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
