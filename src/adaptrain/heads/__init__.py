"""Prediction heads."""

from adaptrain.heads.base import Head, head_from_dict, model_dropout
from adaptrain.heads.classification import (
    ClassificationHead,
    ImageClassificationHead,
    MultiLabelClassificationHead,
    MultipleChoiceHead,
)
from adaptrain.heads.language import CausalLMHead, LMHead, MaskedLMHead, Seq2SeqLMHead
from adaptrain.heads.parsing import DependencyParsingHead, DependencyParsingOutput
from adaptrain.heads.pooling import Pooling
from adaptrain.heads.tokens import QuestionAnsweringHead, SpanOutput, TaggingHead

__all__ = [
    "CausalLMHead",
    "ClassificationHead",
    "DependencyParsingHead",
    "DependencyParsingOutput",
    "Head",
    "ImageClassificationHead",
    "LMHead",
    "MaskedLMHead",
    "MultiLabelClassificationHead",
    "MultipleChoiceHead",
    "Pooling",
    "QuestionAnsweringHead",
    "Seq2SeqLMHead",
    "SpanOutput",
    "TaggingHead",
    "head_from_dict",
    "model_dropout",
]
