"""Recipes with a composition, for tests of what they become and of what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

RECIPE = """\
# adaptrain train recipe=mine
defaults:
  - override /task: cola
composition: stack(lang, parallel(cola, mrpc))
adapters:
  lang:
    path: outputs/lang/1234
    leave_out: [0]
  mrpc:
    adapter: seq_bn
    task: mrpc
    seed: 3
    trainer:
      learning_rate: 1e-3
"""
"""A saved adapter under two branches: the task's own, and one that has its own task, method and seed."""
FUSE = "composition: fuse(a, b)\nadapters:\n  a: {path: x}\n  b: {path: y}\n"
"""Two saved adapters, fused."""


def recipe_writer(folder: Path) -> Callable[..., str]:
    """text, name → the argument that chooses the recipe, which is written into the folder."""
    (folder / "recipes").mkdir()

    def write(text: str = RECIPE, name: str = "mine") -> str:
        (folder / "recipes" / f"{name}.yaml").write_text(text)
        return f"recipe={name}"

    return write
