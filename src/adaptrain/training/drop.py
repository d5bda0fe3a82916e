"""AdapterDrop in training: in each step the adapters of the first n layers do nothing, and n is drawn anew.

Source: Rücklé et al. 2021, *AdapterDrop: On the Efficiency of Adapters in Transformers*.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from adaptrain.errors import ConfigError

_STREAM = 0xADD2  # apart from the order of the rows, which is drawn from (seed, epoch)


def drawn_layers(seed: int, step: int, most: int) -> tuple[int, ...]:
    """The layers 0 … n − 1 whose adapters are skipped in a step, n ~ U{0, …, most}.

    A function of its arguments alone: whatever else is drawn, in every process, and in a run that is continued.
    """
    return tuple(range(int(np.random.default_rng((seed, step, _STREAM)).integers(most + 1))))


@contextmanager
def dropping(model: Any, layers: Sequence[int]) -> Iterator[None]:
    """Skip layers of an adapted model in one optimiser step, all its micro-batches alike.

    A parameter of a skipped layer has no gradient then (None, not zero), so that AdamW leaves it, its moments and its
    count of steps as they are: nothing decays in it.
    """
    if not layers:
        yield
        return
    before = model.skip_layers
    model.skip_layers = layers
    try:
        yield
    finally:
        model.skip_layers = before


def check_drop(model: Any, most: int) -> None:
    """Refuse drops that mean nothing to a model with the adapters that train active.

    Raises:
        ConfigError: there are too few layers, or nothing of the adapters is in those that may be dropped.
    """
    sites = model.sites
    layers = 1 + max(point.layer for point in sites.points)
    if most >= layers:
        raise ConfigError(
            f"trainer.adapter_drop is {most}, and this model has {layers} layers; at most {layers - 1} can be dropped, "
            "so that one keeps its adapter"
        )
    if not any(0 <= site.point.layer < most for site in sites.plan(sites.active)):
        raise ConfigError(
            f"trainer.adapter_drop is {most}, and '{sites.active}' has nothing in the layers 0 to {most - 1}; set it "
            "to 0, or choose an adapter with units there"
        )
