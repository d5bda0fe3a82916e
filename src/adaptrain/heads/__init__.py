"""Prediction heads."""

from adaptrain.heads.base import Head, head_from_dict
from adaptrain.heads.classification import ClassificationHead

__all__ = ["ClassificationHead", "Head", "head_from_dict"]
