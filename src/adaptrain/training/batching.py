"""Which rows go together, and in which order: a function of the seed and the epoch alone, so a run can be continued."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MEGABATCH = 50
"""Batches that are sorted by length together: enough to save padding, few enough that chance decides who meets."""


def epoch_batches(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int, group_by_length: bool = True
) -> list[list[int]]:
    """The batches of one epoch: every row once.

    With `group_by_length` rows are shuffled, sorted by length inside megabatches, cut, and the batches shuffled. The
    batch with the longest row of all comes first, so that a lack of memory shows at once and not after an hour.
    """
    chance = np.random.default_rng((seed, epoch))
    order = chance.permutation(len(lengths))
    if not group_by_length:
        return _cut(order, batch_size)
    sizes = np.asarray(lengths)
    wide = MEGABATCH * batch_size
    chunks = [order[start : start + wide] for start in range(0, len(order), wide)]
    batches = [batch for chunk in chunks for batch in _cut(chunk[np.argsort(-sizes[chunk], kind="stable")], batch_size)]
    batches = [batches[index] for index in chance.permutation(len(batches))]
    longest = max(range(len(batches)), key=lambda index: max(lengths[row] for row in batches[index]))
    batches[0], batches[longest] = batches[longest], batches[0]
    return batches


def evaluation_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Every row once, longest first, ties in their own order: one function of the rows, so that an evaluation pads
    the same rows together, and computes the same numbers, whenever it is repeated."""
    return _cut(np.argsort(-np.asarray(lengths), kind="stable"), batch_size)


def micro_batches(batch: Sequence[int], size: int | None, rank: int = 0, processes: int = 1) -> list[list[int]]:
    """This process's share of a batch, in pieces of at most `size` rows.

    Every process gets equally many pieces, some of them perhaps empty: a backward pass that one process leaves out
    would leave the others waiting.
    """
    largest = -(-len(batch) // processes)
    size = min(size or largest, largest)
    pieces = _cut(np.asarray(batch)[rank::processes], size)
    return pieces + [[] for _ in range(-(-largest // size) - len(pieces))]


def _cut(order: np.ndarray, size: int) -> list[list[int]]:
    return [order[start : start + size].tolist() for start in range(0, len(order), size)]
