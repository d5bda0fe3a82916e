"""Predictions of a model for the rows of a split."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from adaptrain.config.schema import TaskConfig
from adaptrain.errors import OutputError
from adaptrain.evaluation.metrics import compute
from adaptrain.tasks.shapes import SHAPES
from adaptrain.tasks.text import Collator, Encoded
from adaptrain.training.batching import evaluation_batches
from adaptrain.training.frozen import Begin, from_the_words
from adaptrain.training.precision import Hardware, memory_errors


@dataclass(frozen=True)
class Predictions:
    """What a model says of every row of a split, in the rows' own order.

    Attributes:
        logits: float32, (rows, numbers): what `Shape.answers` keeps.
        labels: what is right.
        task: that they belong to.
    """

    logits: np.ndarray
    labels: np.ndarray
    task: TaskConfig

    def scores(self, metrics: Sequence[str] | None = None) -> dict[str, float]:
        """The task's metrics, or those named."""
        names = (self.task.metric, *self.task.extra_metrics) if metrics is None else metrics
        return compute(names, SHAPES[self.task.type].predictions(self.logits), self.labels)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One mapping a row: `index` and what `Shape.written` says."""
        shape = SHAPES[self.task.type]
        said = shape.predictions(self.logits)
        for index, (label, prediction, logits) in enumerate(zip(self.labels, said, self.logits, strict=True)):
            yield {"index": index, **shape.written(label, prediction, logits, self.task)}

    def write(self, file: Path) -> None:
        """Write the rows as JSON lines.

        Raises:
            OutputError: the file cannot be written.
        """
        try:
            with file.open("w", encoding="utf-8") as stream:
                stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows())
        except OSError as error:
            raise OutputError(f"Cannot write {file}: {error}") from None


def predict(
    model: Any,
    rows: Encoded,
    collate: Collator,
    task: TaskConfig,
    batch_size: int,
    hardware: Hardware,
    begin: Begin = from_the_words,
) -> Predictions:
    """Run the model over all rows.

    The batches are a function of the rows and the batch size, so the numbers are the same during training and in a
    later evaluation. Several processes share the batches.

    Args:
        begin: around the forward of some rows.

    Raises:
        OutOfMemoryError: the device's memory is too small.
    """
    accelerator = hardware.accelerator
    batches = evaluation_batches(rows.lengths, batch_size)
    mine: list[tuple[list[int], np.ndarray]] = []
    shape, training = SHAPES[task.type], model.training
    model.eval()
    # not inference_mode: what a model caches inside it (rotary tables) could not be used in training any more
    cure = f"Try a trainer.eval_batch_size below {batch_size}, or a lower data.max_length"
    with torch.no_grad(), memory_errors(cure):
        for batch in batches[accelerator.process_index :: accelerator.num_processes]:
            inputs = {key: value.to(hardware.device) for key, value in collate(rows, batch).items()}
            with hardware.forward(), begin(batch):
                logits = shape.answers(model, inputs)
            mine.append((batch, logits.float().cpu().numpy()))
    model.train(training)
    found = gather_object(mine) if accelerator.num_processes > 1 else mine
    first = found[0][1]
    logits = np.empty((len(rows), first.shape[-1]), dtype=np.float32)
    for batch, part in found:
        logits[batch] = part
    return Predictions(logits, np.asarray(rows.labels), task)
