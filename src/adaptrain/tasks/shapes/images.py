"""The class of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from adaptrain.config.schema import DataConfig, HeadConfig, TaskConfig
from adaptrain.evaluation import trivial
from adaptrain.tasks.bad_rows import Column
from adaptrain.tasks.images import Images, image_reader
from adaptrain.tasks.media import need
from adaptrain.tasks.reading import Read, Reader
from adaptrain.tasks.shapes.base import Answered, Trivial, register_shape
from adaptrain.tasks.shapes.classes import Classification

if TYPE_CHECKING:
    from adaptrain.tasks.rows import Split


@register_shape
class ImageClassification(Classification):
    """One of several labels of an image."""

    type = "image_classification"
    reads = "images"
    layers = 1
    in_branch: ClassVar[bool] = False

    def examine(self, split: Split) -> dict[str, Column]:
        need("PIL", "vision", "task.type=image_classification")
        return {"image": Images(split, "image").checked(), "label": self.labels(split)}

    def put_head(self, model: Any, task: TaskConfig, head: HeadConfig) -> str | None:
        model.add_image_classification_head(
            task.name,
            num_labels=len(task.labels),
            layers=head.layers or self.layers,
            dropout=head.dropout,
            id2label=dict(enumerate(task.labels)),
        )
        return None

    def reader(self, processor: Any, model: Any, task: TaskConfig, data: DataConfig) -> Reader:
        return image_reader(processor, model)

    def label_scores(self, said: Answered) -> np.ndarray:
        return said.logits

    def trivial(self, task: TaskConfig, reader: Reader, train: Read, scored: Read) -> Trivial:
        """The commonest class; ranked, all classes by how common they are."""
        found = super().trivial(task, reader, train, scored)
        shares = trivial.label_shares(train.rows.labels, len(task.labels))
        return Trivial(found.name, found.answer, found.predictions, np.tile(shares, (len(scored.rows), 1)))
