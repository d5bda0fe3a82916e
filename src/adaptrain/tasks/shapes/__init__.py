"""The shapes that a task can have. Each registers itself under the word that `task.type` says."""

# imported for what they register
from adaptrain.tasks.shapes import answers, choices, classes, images, language, masked, speech, tags, trees, writing
from adaptrain.tasks.shapes.base import SHAPES, Answered, Shape, Trivial, register_shape

__all__ = ["SHAPES", "Answered", "Shape", "Trivial", "register_shape"]

MODULES = (answers, choices, classes, images, language, masked, speech, tags, trees, writing)
"""Where the shapes are."""
