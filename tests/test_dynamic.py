"""One graph for any number of rows and positions, compiled or exported: nothing counts rows that no block divides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from adaptrain.composition import Average, BatchSplit, Fuse, Parallel, Split, Stack
from matrix import UNITS, adapted, add, batch, gap, long, randomise, run, said

# One method of each kind of point in one graph each: the model itself takes longer to trace than their units.
STACKED = ("lora-gated", "ia3", "bn-norms", "seq_bn_inv", "prefix_tuning", "prompt-after-bos", "noreft")
REST = [method for method in UNITS if method not in STACKED and method != "lora-gate"]  # which BERT has no place for
ROWS = [
    ("bert", ("lora-gated", "prompt_tuning")),
    long("bert", ()),
    long("llama", STACKED),
    *(long(arch, tuple(REST[at::4])) for arch in ("bert", "llama") for at in range(4)),
    long("bert", STACKED),
]
BATCHES = ((7, 4, 5), (6, 3), (5, 5, 2, 4, 3))


def stacked(arch: str, methods: tuple[str, ...]):
    model = adapted(arch)
    for seed, method in enumerate(methods):
        add(model, method, UNITS[method], seed=2 + seed)
    if methods:
        model.set_active_adapters(Stack(*methods))
    return model


class Said(nn.Module):
    """What a model says, without the cache, which cannot be exported."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        more = {} if position_ids is None else {"position_ids": position_ids}
        return said(self.model(input_ids=input_ids, attention_mask=attention_mask, **more))


def graphs(model: Any, arch: str) -> int:
    """How many graphs serve batches of several sizes, each with the outputs of the model itself."""
    made = []

    def backend(graph: Any, example: Any) -> Any:
        made.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for lengths in BATCHES:
        inputs = batch(arch, lengths)
        expected = run(model, inputs)
        assert gap(run(compiled, inputs), expected) < 1e-5 * (1 + expected.abs().max()), lengths
    return len(made)


@pytest.mark.parametrize(("arch", "methods"), ROWS)
def test_one_compiled_graph_serves_batches_of_any_size(arch, methods):
    assert graphs(stacked(arch, methods), arch) == 1


@pytest.mark.parametrize(("arch", "methods"), ROWS)
def test_an_exported_model_takes_batches_of_any_size(arch, methods):
    model, inputs = stacked(arch, methods), batch(arch)
    shapes = {key: {0: Dim("rows", max=1024), 1: Dim.DYNAMIC} for key in inputs}
    with torch.no_grad():
        exported = torch.export.export(Said(model), (), inputs, dynamic_shapes=shapes, strict=False).module()
        for lengths in BATCHES:
            other = batch(arch, lengths)
            expected = run(model, other)
            assert gap(exported(**other), expected) < 1e-5 * (1 + expected.abs().max()), lengths


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        long(Parallel("a", "b"), 1),
        long(Split("a", Average("a", "b"), sizes=[2, None]), 1),
        long(Fuse("a", "b"), 1),
        long(BatchSplit("a", "b", sizes=[2, None]), 3),  # whose shares of rows are one, several or none
    ],
    ids=str,
)
def test_blocks_that_count_no_rows_have_one_graph_too(tree, expected):
    model = adapted("bert")
    for seed, name in enumerate("ab"):
        add(model, name, UNITS["seq_bn"], seed=2 + seed)
    model.add_adapter_fusion(["a", "b"])
    for fusion in model.fusions.values():
        randomise(fusion, 0.3, seed=5)
    model.set_active_adapters(tree)
    assert graphs(model, "bert") <= expected
