"""The shapes that a task can have. Each registers itself under the word that `task.type` says."""

# imported for what they register
from adaptrain.tasks.shapes import classes, images, masked, speech
from adaptrain.tasks.shapes.base import SHAPES, Answered, Shape, Trivial, register_shape

__all__ = ["SHAPES", "Answered", "Shape", "Trivial", "register_shape"]

MODULES = (classes, images, masked, speech)
"""Where the shapes are."""
