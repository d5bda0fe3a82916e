from __future__ import annotations

import random

import pytest

from adaptrain.training.batching import MEGABATCH, epoch_batches, evaluation_batches, micro_batches

CHANCE = random.Random(0)
LENGTHS = [CHANCE.randint(3, 90) for _ in range(1003)]


@pytest.mark.parametrize("grouped", [True, False])
def test_an_epoch_has_every_row_once(grouped: bool) -> None:
    batches = epoch_batches(LENGTHS, 16, seed=1, epoch=0, group_by_length=grouped)
    assert sorted(row for batch in batches for row in batch) == list(range(1003))
    assert len(batches) == 63 and sorted(map(len, batches))[:2] == [11, 16]


def test_order_is_a_function_of_seed_and_epoch() -> None:
    first = epoch_batches(LENGTHS, 16, seed=1, epoch=0)
    assert first == epoch_batches(LENGTHS, 16, seed=1, epoch=0)
    assert first != epoch_batches(LENGTHS, 16, seed=1, epoch=1)
    assert first != epoch_batches(LENGTHS, 16, seed=2, epoch=0)


def padding(batches: list[list[int]]) -> float:
    padded = sum(len(batch) * max(LENGTHS[row] for row in batch) for batch in batches)
    return padded / sum(LENGTHS) - 1


def test_rows_of_similar_length_go_together() -> None:
    grouped = padding(epoch_batches(LENGTHS, 16, seed=1, epoch=0))
    plain = padding(epoch_batches(LENGTHS, 16, seed=1, epoch=0, group_by_length=False))
    assert grouped < 0.1 < 0.5 < plain


def test_short_rows_are_not_always_together() -> None:
    lengths = [10] * (MEGABATCH * 16 * 4)
    partners = [next(set(batch) for batch in epoch_batches(lengths, 16, 1, epoch) if 0 in batch) for epoch in (0, 1)]
    assert len(partners[0] & partners[1]) < 8


def test_the_longest_row_comes_first() -> None:
    for epoch in range(3):
        first = epoch_batches(LENGTHS, 16, seed=1, epoch=epoch)[0]
        assert max(LENGTHS[row] for row in first) == max(LENGTHS)


def test_evaluation_order_is_longest_first_and_stable() -> None:
    batches = evaluation_batches([2, 5, 5, 1, 5], 2)
    assert batches == [[1, 2], [4, 0], [3]]


@pytest.mark.parametrize("size", [None, 1, 3, 16])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [1, 2, 7, 16])
def test_every_row_is_in_one_micro_batch_of_one_process(size: int | None, processes: int, rows: int) -> None:
    shares = [micro_batches(range(rows), size, rank, processes) for rank in range(processes)]
    assert sorted(row for share in shares for piece in share for row in piece) == list(range(rows))
    assert len({len(share) for share in shares}) == 1  # equally many backward passes
    assert all(len(piece) <= (size or rows) for share in shares for piece in share)
    if rows >= processes:  # nobody idles through a whole batch
        assert all(any(share) for share in shares)
