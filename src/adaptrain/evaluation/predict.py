"""Predictions of a model for the rows of a split."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from adaptrain.config.schema import TaskConfig
from adaptrain.errors import OutputError
from adaptrain.evaluation.metrics import compute, signatures
from adaptrain.tasks.reading import Read, Reader
from adaptrain.tasks.shapes import SHAPES, Answered
from adaptrain.training.batching import evaluation_batches
from adaptrain.training.frozen import Begin, from_the_words
from adaptrain.training.precision import Hardware, memory_errors


class Predictions(Answered):
    """What a model says of every row of a split, in the rows' own order."""

    def scores(self, metrics: Sequence[str] | None = None) -> dict[str, float]:
        """The task's metrics, or those named."""
        names = (self.task.metric, *self.task.extra_metrics) if metrics is None else metrics
        shape = SHAPES[self.task.type]
        right = shape.references(self.task, self.read)
        return compute(names, shape.predictions(self), right, shape.label_scores(self))

    def signatures(self) -> dict[str, str]:
        """How those of the task's metrics are computed whose name does not say it all."""
        references = SHAPES[self.task.type].references(self.task, self.read)
        return signatures((self.task.metric, *self.task.extra_metrics), references)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One mapping a row: `index` and what `Shape.written` says."""
        for index, row in enumerate(SHAPES[self.task.type].written(self)):
            yield {"index": index, **row}

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
    reader: Reader,
    read: Read,
    task: TaskConfig,
    batch_size: int,
    hardware: Hardware,
    begin: Begin = from_the_words,
    settings: Mapping[str, float] | None = None,
) -> Predictions:
    """Run the model over all rows.

    The batches are a function of the rows and the batch size, so the numbers are the same during training and in a
    later evaluation. Several processes share the batches.

    Args:
        reader: that made numbers of the rows.
        begin: around the forward of some examples.
        settings: what `Shape.calibrate` found.

    Raises:
        OutOfMemoryError: the device's memory is too small.
    """
    accelerator, examples = hardware.accelerator, read.encoded
    batches = evaluation_batches(examples.lengths, batch_size)
    mine: list[tuple[list[int], Sequence[np.ndarray]]] = []
    shape, training = SHAPES[task.type], model.training
    model.eval()
    # not inference_mode: what a model caches inside it (rotary tables) could not be used in training any more
    cure = f"Try a trainer.eval_batch_size below {batch_size}, or a lower data.max_length"
    with torch.no_grad(), memory_errors(cure):
        for batch in batches[accelerator.process_index :: accelerator.num_processes]:
            inputs = {key: value.to(hardware.device) for key, value in reader.collate(examples, batch).items()}
            with hardware.forward(), begin(batch):
                answers = shape.answers(model, inputs, reader)
            mine.append((batch, list(answers.float().cpu().numpy()) if isinstance(answers, Tensor) else answers))
    model.train(training)
    found = gather_object(mine) if accelerator.num_processes > 1 else mine
    placed = {row: answer for batch, part in found for row, answer in zip(batch, part, strict=True)}
    return Predictions(task, reader, read, [placed[row] for row in range(len(examples))], settings or {})
