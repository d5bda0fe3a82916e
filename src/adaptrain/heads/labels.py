"""What labels must be: refused with the row that is wrong, where looking at them does not make a device wait."""

from __future__ import annotations

import torch
from torch import Tensor

from adaptrain.errors import DataError

IGNORED = -100
"""The label of what is not predicted."""


def class_labels(labels: Tensor, classes: int, ignored: bool = False, what: str = "label") -> Tensor:
    """Labels of classes as long integers, shape kept.

    Args:
        ignored: whether −100 stands for what is not predicted.

    Raises:
        DataError: one is no whole number, or outside 0 … classes − 1; names its row.
    """
    if labels.is_floating_point() or labels.is_complex():
        raise DataError(f"Labels of {classes} classes are whole numbers, not {labels.dtype}")
    labels = labels.long()
    if labels.device.type == "cpu":  # elsewhere the check would wait for the device at every step
        wrong = (labels < 0) | (labels >= classes)
        if ignored:
            wrong &= labels != IGNORED
        if bool(wrong.any()):
            said = f"; {IGNORED} marks what is not predicted" if ignored else ""
            raise DataError(
                f"Row {first_row(wrong)}: the {what} {int(labels[wrong][0])} is outside 0 … {classes - 1}{said}"
            )
    return labels


def number_labels(labels: Tensor, like: Tensor) -> Tensor:
    """Labels of a regression in the dtype of the predictions, one a row.

    Raises:
        DataError: one is not a finite number; names its row.
    """
    if labels.numel() != like.numel():
        raise DataError(f"There are {labels.numel()} labels for {like.numel()} rows")
    labels = labels.to(like.dtype).view(-1)
    if labels.device.type == "cpu" and not bool(labels.isfinite().all()):
        raise DataError(f"Row {first_row(~labels.isfinite())}: the label is no finite number")
    return labels


def many_labels(labels: Tensor, like: Tensor) -> Tensor:
    """Labels of several classes a row, (rows, num_labels), in the dtype of the logits: 0, 1, or a share between.

    Raises:
        DataError: of another shape, or one lies outside 0 … 1; names its row.
    """
    if labels.shape != like.shape:
        raise DataError(
            f"Labels of several classes are {tuple(like.shape)}, a 0 or 1 for each row and class, not "
            f"{tuple(labels.shape)}"
        )
    labels = labels.to(like.dtype)
    if labels.device.type == "cpu":
        wrong = ~((labels >= 0) & (labels <= 1))
        if bool(wrong.any()):
            raise DataError(f"Row {first_row(wrong)}: the label {labels[wrong][0].item():g} is outside 0 … 1")
    return labels


def check_shape(labels: Tensor, shape: tuple[int, ...], what: str) -> None:
    """Refuse labels that are not one for each of what is predicted.

    Raises:
        DataError: names both shapes.
    """
    if tuple(labels.shape) != shape:
        raise DataError(f"Labels are {shape}, one for each {what}, not {tuple(labels.shape)}")


def first_row(wrong: Tensor) -> int:
    """The first row that has something wrong; `wrong` is (rows, …) of booleans."""
    return int(torch.nonzero(wrong)[0, 0])
