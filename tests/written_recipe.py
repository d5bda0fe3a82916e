"""A user's folder with a model, a task and a recipe of his own, and the run folders that come of it."""

from __future__ import annotations

from pathlib import Path

MODEL = "name: {base}\n"
TASK = """\
name: mood
type: classification
path: somebody/mood
columns: {text: sentence}
labels: [bad, good]
metric: mcc
extra_metrics: [accuracy]
"""
RECIPE = """\
# adaptrain train recipe=tiny
defaults:
  - override /model: ./model.yaml
  - override /task: ./task.yaml
data:
  mirror: {mirror}
trainer:
  epochs: 2
  batch_size: 16
  learning_rate: 5e-3
  precision: fp32
  device: cpu
"""


def write_recipe(folder: Path, base: Path, mirror: Path) -> Path:
    """Write `recipes/tiny.yaml`, which trains the mood of sentences on a base, with rows of a mirror."""
    (folder / "recipes").mkdir()
    (folder / "model.yaml").write_text(MODEL.format(base=base))
    (folder / "task.yaml").write_text(TASK)
    (folder / "recipes" / "tiny.yaml").write_text(RECIPE.format(mirror=mirror))
    return folder


def folders() -> list[Path]:
    """The runs of that recipe, in the folder where the program runs."""
    return sorted(Path("outputs", "tiny").iterdir())
