"""Prediction heads."""

from adaptrain.heads.base import Head, head_from_dict
from adaptrain.heads.classification import ClassificationHead
from adaptrain.heads.language import MaskedLMHead

__all__ = ["ClassificationHead", "Head", "MaskedLMHead", "head_from_dict"]
