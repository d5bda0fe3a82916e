"""The answer to a command whose run is finished, without importing torch, transformers or datasets.

    asked.json    in a run's folder: sums over the layers of configs, as commands composed them, that led to it

A config's layers lie over each other in a tenth of a second, but only a method's own code can complete them to the
config that names the run's folder. So each folder keeps what it was asked by. The sum has our own code in it: whatever
changes there, the answer is found the long way again.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import adaptrain
from adaptrain.config.compose import Draft
from adaptrain.config.documents import Leaf, Tree, plain
from adaptrain.config.library import is_yaml
from adaptrain.reporting.folder import RESULT, canonical, is_finished
from adaptrain.training.ingredients import compare, read_stock

ASKED = "asked.json"
_MOST = 100
"""Sums that a folder keeps."""

_NOT_ASKED = ("outputs", "force")


def finished_run(draft: Draft) -> tuple[dict[str, Any], Path] | None:
    """The results row and folder of the finished run that a command asks for.

    Returns:
        None where there is none, or where what it was made of may have changed: the long way tells.
    """
    tree = draft.tree
    if not draft.in_order or _value(tree, "force") not in (None, False):
        return None
    home, asked = Path(str(_value(tree, "outputs"))).expanduser() / draft.name, None
    for file in home.glob(f"*/{ASKED}") if home.is_dir() else ():
        asked = asked or asked_by(draft)
        folder = file.parent
        if folder.name[:1] == "." or asked not in _sums(folder) or not is_finished(folder):
            continue
        stock = read_stock(folder)
        row = _read(folder / RESULT)
        return None if stock is None or row is None or compare(stock) else (row, folder)
    return None


def asked_by(draft: Draft) -> str:
    """The sum over all that decides which run a command means. Take it before the draft is finished, which changes
    it."""
    values = {key: node for key, node in draft.tree.items() if key not in _NOT_ASKED}
    asked = {"config": plain(values), "code": _code()}
    written = _value(draft.tree, "architecture")
    if isinstance(written, str) and is_yaml(written):
        with suppress(OSError):
            asked["architecture"] = hashlib.sha256(Path(written).expanduser().read_bytes()).hexdigest()
    return hashlib.sha256(canonical(asked).encode()).hexdigest()


def remember(folder: Path, asked: str) -> None:
    """Note in a finished run's folder what it was asked by. A folder that cannot be written is left as it is."""
    known = _sums(folder)
    if asked in known:
        return
    part = folder / f".{ASKED}.{os.getpid()}"
    with suppress(OSError):
        values = {"run": folder.name, "asked": [*known, asked][-_MOST:]}
        part.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        part.replace(folder / ASKED)


def _sums(folder: Path) -> list[str]:
    """What a folder was asked by; nothing for a copy of another folder, which is not the run."""
    found = _read(folder / ASKED) or {}
    return found["asked"] if found.get("run") == folder.name and isinstance(found.get("asked"), list) else []


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _value(tree: Tree, key: str) -> Any:
    node = tree.get(key)
    return node.value if isinstance(node, Leaf) else None


@lru_cache(maxsize=1)
def _code() -> str:
    """Which code this is: names, sizes and times of our own files."""
    root = Path(adaptrain.__file__).parent
    digest = hashlib.sha256(adaptrain.__version__.encode())
    for file in sorted(root.rglob("*.py")):
        found = file.stat()
        digest.update(f"{file.relative_to(root)} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()
