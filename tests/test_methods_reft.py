"""ReFT: its formula at the chosen positions, which they are, and rows that stay orthonormal."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from adaptrain.context import Tokens
from adaptrain.errors import ConfigError
from adaptrain.methods import DiReftConfig, LoReftConfig, NoReftConfig, ReftConfig, config_from_dict
from adaptrain.methods.reft import Reft, orthonormal
from adaptrain.state import LayerState
from matrix import adapted, batch, gap, randomise, run

D = 10
LEFT = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
RIGHT = LEFT.flip(1)
HOLES = torch.tensor([[1, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1], [0, 1, 0, 0, 1, 0]])


def point(layer: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        kind="layer", name=f"encoder.{layer}.hidden", layer=layer, hidden_size=D, stack="encoder", sublayer=""
    )


def unit_of(config: ReftConfig, seed: int = 1) -> Reft:
    (unit,) = config.build([point()]).units.values()
    assert isinstance(unit, Reft)
    randomise(unit, 0.5, seed)
    return unit.eval()


def state_of(mask: Tensor, seed: int = 2) -> LayerState:
    torch.manual_seed(seed)
    h = torch.randn(*mask.shape, D)
    tokens = Tokens(mask.bool())
    return LayerState(h, tokens.from_start(h), tokens.from_end(h))


def by_hand(config: ReftConfig, unit: Reft, state: LayerState, mask: Tensor) -> Tensor:
    """Row by row and token by token, in float64."""
    out = state.h.double().clone()
    for row in range(len(mask)):
        seen = mask[row].nonzero()[:, 0].tolist()
        first, last = seen[: config.prefix_positions], seen[len(seen) - min(config.suffix_positions, len(seen)) :]
        for position in seen:
            if position not in first and position not in last:
                continue
            edit = unit.prefix if position in first or unit.suffix is None else unit.suffix
            t = {key: value.double() for key, value in edit.state_dict().items()}
            r = t["projection"]
            if config.orthogonality:  # Gram-Schmidt
                rows: list[Tensor] = []
                for vector in r:
                    for done in rows:
                        vector = vector - (vector @ done) * done
                    rows.append(vector / vector.norm())
                r = torch.stack(rows)
            h = state.h[row, position].double()
            low = t["source.weight"] @ h + t["source.bias"]
            low = torch.relu(low) if config.non_linearity else low
            out[row, position] = h + r.T @ (low - r @ h if config.subtract_projection else low)
    return out


CONFIGS = [
    LoReftConfig(r=3, suffix_positions=2),
    LoReftConfig(r=1, prefix_positions=0, suffix_positions=1),
    NoReftConfig(r=2, prefix_positions=2, suffix_positions=3, tied_weights=True),
    DiReftConfig(r=2, suffix_positions=1, non_linearity="relu"),
    LoReftConfig(r=4, prefix_positions=9, suffix_positions=9),  # more than any row has
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("mask", [LEFT, RIGHT, HOLES], ids=["left", "right", "holes"])
@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_the_formula_at_the_chosen_tokens_and_nothing_elsewhere(config, mask):
    unit, state = unit_of(config), state_of(mask)
    found, expected = unit(state).h, by_hand(config, unit, state, mask)
    assert gap(found, expected) < 1e-10
    changed = (expected - state.h.double()).abs().amax(-1) > 0
    assert torch.equal((found != state.h).any(-1), changed)  # the others keep every bit
    assert changed.any()


def test_without_a_mask_every_position_is_a_token():
    unit, h = unit_of(CONFIGS[0]), torch.randn(2, 6, D)
    tokens, full = Tokens(), Tokens(torch.ones(2, 6, dtype=torch.bool))
    found = unit(LayerState(h, tokens.from_start(h), tokens.from_end(h))).h
    assert torch.equal(found, unit(LayerState(h, full.from_start(h), full.from_end(h))).h)


def test_what_is_decoded_is_past_the_prompt():
    h = torch.randn(2, 1, D)
    seen = Tokens(torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]).bool(), past=3)
    assert seen.from_start(h).tolist() == [[2], [3]]
    assert seen.from_end(h).tolist() == [[-1], [-1]]
    whole = Tokens(torch.tensor([[0, 1, 1, 1, 1]]).bool(), prompt=3)
    assert whole.from_end(torch.randn(1, 5, D)).tolist() == [[-1, 1, 0, -1, -1]]


def test_both_ends_have_weights_and_gradients_even_where_no_token_is_chosen():
    """Closed form 2 L (2 r d + r): the second end exists without positions, and no parameter is unused."""
    unit, state = unit_of(LoReftConfig(r=2)).train(), state_of(RIGHT)
    assert sum(parameter.numel() for parameter in unit.parameters()) == 2 * (2 * 2 * D + 2)
    unit(state).h.sum().backward()
    assert all(parameter.grad is not None for parameter in unit.parameters())
    assert unit.suffix is not None
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in unit.suffix.parameters())
    tied = unit_of(LoReftConfig(r=2, tied_weights=True))
    assert sum(parameter.numel() for parameter in tied.parameters()) == 2 * 2 * D + 2


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 36_888), ({"tied_weights": True}, 18_444), ({"r": 8}, 295_104), ({"layers": [0]}, 3_074)],
)
def test_the_count_on_roberta_base(options, count):
    config = LoReftConfig(**options)
    points = [point(layer) for layer in range(12)]
    for layer in points:
        layer.hidden_size = 768
    units = config.build(config.choose(points)).units.values()
    assert sum(parameter.numel() for unit in units for parameter in unit.parameters()) == count


def test_dropout_falls_on_the_edited_state_as_a_whole():
    config = NoReftConfig(dropout=0.5)
    unit, state = unit_of(config).train(), state_of(RIGHT)
    torch.manual_seed(0)
    found = unit(state).h
    chosen = (state.from_start >= 0) & (state.from_start < 3)
    assert 0.3 < (found[chosen] == 0).float().mean() < 0.7
    assert torch.equal(found[~chosen], state.h[~chosen])


# ---- orthonormal rows


@pytest.mark.parametrize("r", [1, 2, 5, D])
def test_rows_are_orthonormal_and_stay_what_they_are(r):
    torch.manual_seed(0)
    rows = orthonormal(torch.randn(r, D, dtype=torch.float64))
    assert gap(rows @ rows.T, torch.eye(r)) < 1e-10
    assert gap(orthonormal(rows), rows) < 1e-10
    half = orthonormal(torch.randn(r, D).bfloat16())
    assert half.dtype == torch.float32
    assert gap(half @ half.T, torch.eye(r)) < 1e-5


def test_rows_follow_the_parameter_smoothly():
    """No sign jumps: a small step of the parameter is a small step of the rows, and its gradient says which."""
    torch.manual_seed(1)
    raw = torch.randn(3, D, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(orthonormal, raw)
    path = [orthonormal(raw.detach() + step * 1e-3 * torch.ones(3, D)) for step in range(200)]
    assert max(gap(one, other) for one, other in itertools.pairwise(path)) < 1e-2


def test_a_trained_loreft_keeps_orthonormal_rows():
    model, inputs = adapted("bert", LoReftConfig(r=3), trained=False), batch("bert")
    model.train_adapter("a")
    optimiser = torch.optim.SGD(model.get_adapter("a").parameters(), lr=0.5)
    for _ in range(3):
        model(**inputs).last_hidden_state.pow(2).mean().backward()
        optimiser.step()
    for (unit,) in model.get_adapter("a").units.values():
        assert isinstance(unit, Reft)
        rows = unit.prefix.rows()
        assert gap(rows @ rows.T, torch.eye(3)) < 1e-10


# ---- configs


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"r": 0}, "r is 0; a rank is at least 1"),
        ({"prefix_positions": -1}, "prefix_positions is -1"),
        ({"prefix_positions": 0}, "prefix_positions and suffix_positions are both 0"),
        ({"layers": []}, "layers is empty"),
        ({"layers": [-1]}, "layers are counted from 0"),
        ({"layers": "some"}, "layers is 'some'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"non_linearity": "rlu"}, "did you mean 'relu'"),
        ({"output_reft": False}, "output_reft is False"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
    ],
)
def test_impossible_values_are_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        LoReftConfig(**values)


def test_what_the_model_does_not_have_is_refused():
    model = adapted("bert")
    with pytest.raises(ConfigError, match="layers names 2, 7; this model has the layers 0 to 1"):
        model.add_adapter("a", LoReftConfig(layers=[0, 7, 2]))
    with pytest.raises(ConfigError, match="r is 40, more than the hidden size 32"):
        model.add_adapter("a", LoReftConfig(r=40))


def test_direft_is_saved_as_what_it_is():
    assert DiReftConfig().to_dict()["subtract_projection"] is False
    read = config_from_dict(DiReftConfig().to_dict())
    assert isinstance(read, ReftConfig)
    assert not read.subtract_projection
    inputs = batch("bert")
    assert gap(run(adapted("bert", DiReftConfig(r=2)), inputs), run(adapted("bert", NoReftConfig(r=2)), inputs)) > 0.01


def test_dtype_is_what_the_parameters_are_kept_in():
    unit = next(iter(LoReftConfig(r=2, dtype="bfloat16").build([point()]).units.values()))
    assert {parameter.dtype for parameter in unit.parameters()} == {torch.bfloat16}
    state = state_of(RIGHT)
    assert unit(state).h.dtype == torch.float32
