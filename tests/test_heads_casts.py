"""Every type of head on a model that is cast, as a whole or in part, and under autocast."""

from __future__ import annotations

import pytest
import torch

from every_head import EVERY, headed
from matrix import METHODS, UNITS, adapted, batch, gap, said

heads = pytest.mark.parametrize("kind", EVERY)
DTYPES = {"half": torch.float16, "bfloat16": torch.bfloat16, "double": torch.float64, "float": torch.float32}
NEAR = {torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float64: 1e-4, torch.float32: 1e-6}


def scores(output) -> torch.Tensor:
    """Of one head; of a parser those of arcs."""
    logits = output.logits
    found = (logits[0] if isinstance(logits, tuple) else logits).double()
    return found.masked_fill(found < -1e4, 0.0)  # what cannot be, at the lowest number of a dtype


@pytest.mark.parametrize("cast", DTYPES)
@heads
def test_a_model_that_is_cast_predicts_what_it_did(kind, cast):
    """As transformers' models do: logits in that dtype, and a loss that is not rounded to it. The same head in float32
    is what it is compared with: what the base model makes of the dtype is its own affair."""
    dtype = DTYPES[cast]
    model, inputs = headed(kind)
    inputs = {k: v.to(dtype) if v.is_floating_point() and k != "labels" else v for k, v in inputs.items()}
    exact = getattr(model, cast)()
    exact.heads.float()
    with torch.no_grad():
        wanted = scores(exact(**inputs))
    model = getattr(headed(kind)[0], cast)()
    output = model(**inputs)
    weights = list(model.heads.parameters())
    assert all(each.dtype == dtype for each in weights)
    logits = output.logits[0] if isinstance(output.logits, tuple) else output.logits
    assert logits.dtype == (dtype if weights else torch.promote_types(dtype, torch.float32))
    assert output.loss.dtype == torch.promote_types(dtype, torch.float32)
    assert gap(scores(output), wanted) < NEAR[dtype] * max(wanted.abs().max().item(), 1.0)
    output.loss.backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@heads
def test_a_head_keeps_its_own_dtype_on_a_base_of_another(kind, dtype):
    model, inputs = headed(kind)
    model.base_model.to(dtype)
    inputs = {k: v.to(dtype) if v.is_floating_point() and k != "labels" else v for k, v in inputs.items()}
    output = model(**inputs)
    assert all(each.dtype == torch.float32 for each in [*model.heads.parameters(), *model.adapters.parameters()])
    assert bool(output.loss.isfinite())
    output.loss.backward()


@heads
def test_autocast_leaves_heads_in_their_own_dtype(kind):
    model, inputs = headed(kind)
    with torch.autocast("cpu", dtype=torch.float16):
        output = model(**inputs)
    logits = output.logits[0] if isinstance(output.logits, tuple) else output.logits
    assert logits.dtype == output.loss.dtype == torch.float32
    assert bool(output.loss.isfinite())


@pytest.mark.parametrize("method", UNITS)
def test_every_method_runs_on_a_model_that_is_cast(method):
    model, inputs = adapted("llama", METHODS[method]).half(), batch("llama")
    with torch.no_grad():
        found = said(model(**inputs))
    assert found.dtype == torch.float16
    assert bool(found.isfinite().all())


def test_a_head_that_writes_writes_on_a_model_that_is_cast():
    for cast in DTYPES:
        model, inputs = headed("next")
        made = getattr(model, cast)().generate(inputs["input_ids"][:1], max_new_tokens=3, do_sample=False)
        assert made.shape[1] == inputs["input_ids"].shape[1] + 3
