"""Several tasks for one optimiser: batches mixed of their rows, and the loss over them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from adaptrain.branches import put
from adaptrain.composition import BatchSplit, Block, Composition, MultiTask
from adaptrain.context import AdapterSetup
from adaptrain.errors import ConfigError, listed
from adaptrain.evaluation.metrics import Metric, get_metric
from adaptrain.tasks.encoded import Collator, Encoded, Key
from adaptrain.training.batching import epoch_batches
from adaptrain.training.loop import Batches


class Mixed:
    """A model that takes batches of several tasks' rows.

        L = 1/N Σ_rows loss = Σ_k n_k/N · L_k

    with L_k the mean of task k's head over its n_k rows of the N.

    Args:
        model: an adapted model.
        tree: the composition.
        block: the one in it whose children are the branches, MultiTask or BatchSplit.
        heads: of the branches.
        label_dtypes: of their labels.
    """

    def __init__(
        self, model: Any, tree: Composition, block: Block, heads: Sequence[str], label_dtypes: Sequence[torch.dtype]
    ) -> None:
        self.model, self.tree, self.block = model, tree, block
        self.heads, self.label_dtypes = tuple(heads), tuple(label_dtypes)

    def __call__(self, labels: Tensor, **inputs: Tensor) -> Any:
        """The outputs, with the mean loss over the rows.

        Args:
            labels: task and label of each row, (rows, 2), as `mixed` makes them; sorted by task for BatchSplit.
        """
        tasks = labels[:, 0].long()
        own = [labels[tasks == number, 1].to(dtype) for number, dtype in enumerate(self.label_dtypes)]
        tree, more = self.tree, {}
        if isinstance(self.block, MultiTask):
            more = {"task_ids": tasks}
        else:
            tree = put(BatchSplit(*self.block.children, sizes=[len(each) for each in own]), self.block, self.tree)
        with AdapterSetup(tree, head_setup=self.heads):
            outputs = self.model(**inputs, labels=own, **more)
        shares = [len(each) / len(labels) for each in own]
        losses = [
            output.loss * share
            for output, share in zip(outputs.head_outputs, shares, strict=True)
            if output.loss is not None
        ]
        held = self.model.get_fusion_regularization_loss(self.tree)
        outputs.loss = sum(losses[1:], losses[0])
        if held is not None and held.requires_grad:
            outputs.loss = outputs.loss + held
        return outputs


def mixed(parts: Sequence[Encoded], collate: Collator) -> tuple[Encoded, Collator]:
    """The rows of all tasks as those of one, a label being the task's number and its own label.

    Args:
        collate: of any of the tasks; they have one base model.
    """
    names = [name for name in collate.keys if name != "labels"]
    rows = Encoded(
        features={name: list(chain.from_iterable(part.features[name] for part in parts)) for name in names}
        | {"labels": [(number, label) for number, part in enumerate(parts) for label in part.labels]},
        lengths=[length for part in parts for length in part.lengths],
        truncated=sum(part.truncated for part in parts),
    )
    keys = {**collate.keys, "labels": Key(None, torch.float32, of_text=False)}
    return rows, replace(collate, keys=keys)


def split_batches(
    parts: Sequence[Encoded], sizes: Sequence[int], seed: int, group_by_length: bool
) -> tuple[Batches, int]:
    """Batches of so many rows of each task, and how many an epoch has.

    An epoch is one pass over the task that lasts longest; the rows of the others begin again, in a new order, as often
    as they are used up. Rows are numbered as in `mixed`, those of one task together.
    """
    lengths = [part.lengths for part in parts]
    count = max(math.ceil(len(own) / size) for own, size in zip(lengths, sizes, strict=True))
    first = [sum(map(len, lengths[:number])) for number in range(len(lengths))]

    def batches(epoch: int) -> list[list[int]]:
        whole: list[list[int]] = [[] for _ in range(count)]
        for start, own, size in zip(first, lengths, sizes, strict=True):
            done = epoch * count * size
            coming = islice(_stream(own, size, seed, group_by_length), done, done + count * size)
            for number, row in enumerate(coming):
                whole[number // size].append(start + row)
        return whole

    return batches, count


def _stream(lengths: Sequence[int], size: int, seed: int, group_by_length: bool) -> Iterator[int]:
    """The rows of one task, pass after pass; a batch that is short comes last in its pass."""
    number = 0
    while True:
        batches = epoch_batches(lengths, size, seed, number, group_by_length)
        for batch in sorted(batches, key=lambda batch: len(batch) < size):
            yield from batch
        number += 1


def choosing(metrics: Mapping[str, str]) -> Metric:
    """The mean over branches of each one's metric, which chooses the best weights of all.

    Args:
        metrics: branch → name of its metric.

    Raises:
        ConfigError: of some a higher value is better, of others a lower one.
    """
    found = {name: get_metric(metric) for name, metric in metrics.items()}
    if len({metric.higher_is_better for metric in found.values()}) > 1:
        lower = [f"{name} ({metric.name})" for name, metric in found.items() if not metric.higher_is_better]
        raise ConfigError(
            f"task.metric: the best weights are chosen by the mean over branches, and a lower score is better for "
            f"{listed(lower)} alone; set adapters.NAME.task.metric so that all go one way"
        )
    alike = next(iter(found.values()))
    same = len({(metric.scale, metric.decimals) for metric in found.values()}) == 1
    scale, decimals = (alike.scale, alike.decimals) if same else (1.0, 3)
    return Metric(
        "mean", "mean", (), alike.formula, alike.higher_is_better, (None, None), scale=scale, decimals=decimals
    )


def averaged(scores: Mapping[str, Mapping[str, float]], metrics: Mapping[str, str]) -> dict[str, float]:
    """`mean`, and every metric of every branch as `branch.metric`."""
    mean = sum(scores[name][metric] for name, metric in metrics.items()) / len(metrics)
    return {"mean": mean} | {f"{name}.{key}": value for name, own in scores.items() for key, value in own.items()}
