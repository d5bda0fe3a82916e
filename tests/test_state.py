"""States: dividing, joining and weighing along rows and positions."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from adaptrain.attention import attend_with_state
from adaptrain.state import AttentionState, ProjectionState, SublayerState, additive

LEAST = torch.finfo(torch.float32).min


def projection(rows: int = 5, positions: int = 4) -> ProjectionState:
    torch.manual_seed(0)
    return ProjectionState(torch.randn(rows, positions, 2), torch.randn(rows, positions, 3))


def attention(rows: int = 4, positions: int = 3, mask: str = "boolean", bias: bool = False) -> AttentionState:
    torch.manual_seed(0)
    seen = torch.rand(rows, 1, 2, positions) > 0.3
    seen[..., 0] = True
    masks = {"boolean": seen, "additive": additive(seen, torch.float32), "shared": seen[:1], "none": None}
    return AttentionState(
        torch.randn(rows, 2, positions, 5),
        torch.randn(rows, 2, positions, 5),
        masks[mask],
        torch.randn(1, 2, 2, positions) if bias else None,
    )


@pytest.mark.parametrize("sizes", [[5], [2, 3], [0, 5], [1, 0, 4], [1] * 5], ids=str)
def test_rows_are_divided_and_joined(sizes):
    state = projection()
    pieces = state.split_rows(sizes)
    assert [len(piece.x) for piece in pieces] == [len(piece.y) for piece in pieces] == sizes
    assert torch.equal(pieces[-1].x, state.x[5 - sizes[-1] :])
    doubled = state.join_rows([dataclasses.replace(piece, y=2 * piece.y) for piece in pieces])
    assert torch.equal(doubled.y, 2 * state.y)
    assert doubled.x is state.x  # carried: never changed, so never copied


@pytest.mark.parametrize("sizes", [[4], [1, 3], [0, 4], [2, 0, 2]], ids=str)
def test_positions_are_divided_and_joined(sizes):
    state = projection()
    pieces = state.split_positions(sizes)
    assert [piece.y.shape[1] for piece in pieces] == sizes
    assert torch.equal(state.join_positions(pieces).y, state.y)


def test_a_single_row_and_a_single_position_are_divided():
    state = projection(1, 1)
    assert [len(piece.y) for piece in state.split_rows([1, 0])] == [1, 0]
    assert [piece.y.shape[1] for piece in state.split_positions([0, 1])] == [0, 1]


@pytest.mark.parametrize("weights", [[1.0, 0.0], [0.5, 0.5], [0.25, 0.75], [2.0, -1.0]], ids=str)
def test_weighing_is_the_weighted_sum_of_what_methods_change(weights):
    state = projection()
    one, other = dataclasses.replace(state, y=state.y + 1), dataclasses.replace(state, y=3 * state.y)
    out = state.weigh([one, other], weights)
    assert torch.allclose(out.y, weights[0] * one.y + weights[1] * other.y)
    assert out.x is state.x


def test_a_sublayer_keeps_its_norm_and_residual():
    h, r, norm = torch.randn(4, 3, 2), torch.randn(4, 3, 2), torch.nn.LayerNorm(2)
    state = SublayerState(h, r, norm)
    first, second = state.split_rows([1, 3])
    assert first.norm is second.norm is norm
    assert torch.equal(second.residual, r[1:])
    assert torch.equal(state.join_rows([first, second]).h, h)
    assert state.join_rows([first, second]).residual is r


@pytest.mark.parametrize("mask", ["boolean", "additive", "shared", "none"])
@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
def test_attention_rows_are_divided_and_joined(mask, bias):
    state = attention(mask=mask, bias=bias)
    pieces = state.split_rows([1, 3])
    assert [piece.keys.shape[0] for piece in pieces] == [1, 3]
    joined = state.join_rows(pieces)
    assert torch.equal(joined.keys, state.keys)
    assert torch.equal(joined.values, state.values)
    if mask == "none":
        assert joined.mask is None
    else:
        assert torch.equal(joined.mask, state.mask.expand(4, 1, 2, 3))
    if bias:
        assert torch.equal(joined.bias, state.bias.expand(4, 2, 2, 3))


@pytest.mark.parametrize("mask", ["boolean", "additive", "shared", "none"])
@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
def test_pieces_with_prefixes_of_different_lengths_attend_as_they_would_alone(mask, bias):
    state = attention(mask=mask, bias=bias)
    pieces = state.split_rows([1, 3])
    new = [torch.randn(len(piece.keys), 2, length, 5) for piece, length in zip(pieces, (4, 1), strict=True)]
    pieces = [
        piece.extend_left(part.shape[2], visible=True, keys=part, values=-part)
        for piece, part in zip(pieces, new, strict=True)
    ]
    joined = state.join_rows(pieces)
    assert joined.keys.shape == (4, 2, 3 + 4, 5)
    query = torch.randn(4, 2, 2, 5)
    together = attend_with_state(query, joined, 0.0, False)
    alone = [attend_with_state(q, piece, 0.0, False) for q, piece in zip(query.split([1, 3]), pieces, strict=True)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)


@pytest.mark.parametrize("mask", ["boolean", "additive", "none"])
@pytest.mark.parametrize("visible", [True, False], ids=["visible", "hidden"])
def test_positions_put_in_front(mask, visible):
    state = attention(mask=mask, bias=True)
    keys, values = torch.randn(4, 2, 6, 5), torch.randn(4, 2, 6, 5)
    grown = state.extend_left(6, visible, keys, values)
    assert torch.equal(grown.keys, torch.cat([keys, state.keys], 2))
    assert torch.equal(grown.values, torch.cat([values, state.values], 2))
    assert torch.equal(grown.bias[..., :6], torch.zeros(1, 2, 2, 6))
    assert torch.equal(grown.bias[..., 6:], state.bias)
    if mask == "none" and visible:
        assert grown.mask is None  # nothing is masked, before and after
        return
    first = {"boolean": visible, "none": visible, "additive": 0.0 if visible else LEAST}[mask]
    assert torch.equal(grown.mask[..., :6], torch.full_like(grown.mask[..., :6], first))
    assert torch.equal(grown.mask[..., 6:], state.explicit_mask())


def test_nothing_put_in_front_is_the_same_state():
    state = attention()
    assert state.extend_left(0, visible=True) is state
    assert torch.equal(state.extend_left(2, visible=False).keys[:, :, :2], torch.zeros(4, 2, 2, 5))


def test_an_additive_mask_is_zero_where_visible():
    seen = torch.tensor([True, False])
    assert additive(seen, torch.float32).tolist() == [0.0, LEAST]
    assert additive(seen, torch.bfloat16).dtype == torch.bfloat16
    already = torch.tensor([0.0, -5.0])
    assert additive(already, torch.float32) is already


def test_the_average_of_equal_attentions_attends_like_one():
    state, query = attention(), torch.randn(4, 2, 2, 5)
    average = state.weigh([state, state], [0.5, 0.5])
    expected = attend_with_state(query, state, 0.0, False)
    assert torch.allclose(attend_with_state(query, average, 0.0, False), expected, atol=1e-6)


@pytest.mark.parametrize("mask", ["boolean", "additive", "none"])
@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
def test_attention_by_hand(mask, bias):
    state, query = attention(mask=mask, bias=bias), torch.randn(4, 2, 2, 5)
    scores = query @ state.keys.transpose(-1, -2) / 5**0.5
    if bias:
        scores = scores + state.bias
    if mask != "none":
        scores = scores + additive(state.mask, torch.float32)
    expected = (scores.softmax(-1) @ state.values).transpose(1, 2).flatten(2)
    found = attend_with_state(query, state, 0.0, False)
    assert found.shape == (4, 2, 10)
    assert torch.allclose(found, expected, atol=1e-6)


def test_attention_drops_only_in_training():
    state, query = attention(), torch.randn(4, 2, 2, 5)
    assert torch.equal(attend_with_state(query, state, 0.9, False), attend_with_state(query, state, 0.0, True))
    torch.manual_seed(0)
    assert not torch.allclose(attend_with_state(query, state, 0.9, True), attend_with_state(query, state, 0.0, True))
