"""The shapes that a task can have. Each registers itself under the word that `task.type` says."""

# imported for what they register
from adaptrain.tasks.shapes import classes, images, language, masked, speech, writing
from adaptrain.tasks.shapes.base import SHAPES, Answered, Shape, Trivial, register_shape

__all__ = ["SHAPES", "Answered", "Shape", "Trivial", "register_shape"]

MODULES = (classes, images, language, masked, speech, writing)
"""Where the shapes are."""
