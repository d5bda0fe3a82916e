"""A merged tree against the dataclasses of `schema`."""

from __future__ import annotations

from adaptrain.config.adapter import check_adapter
from adaptrain.config.composition import check_composition
from adaptrain.config.documents import Leaf, Origin, Tree, leaves
from adaptrain.config.report import Report
from adaptrain.config.schema import RunConfig
from adaptrain.config.sections import metrics, section


def build(tree: Tree, recipe: str, report: Report) -> RunConfig | None:
    """The run that a tree describes, None where it has problems.

    What the adapters of its composition take from the run is put into the tree, with its origins.
    """
    adapter = check_adapter(tree.get("adapter"), "adapter", report)
    own = {key: node for key, node in tree.items() if key not in ("composition", "adapters", "fusion")}
    values = section({**own, "recipe": Leaf(recipe, Origin("recipe"))}, RunConfig, "", report)
    metrics(values.get("task"), tree.get("task"), "task", report)
    values |= {"adapter": adapter}
    values |= check_composition(tree, values, report)
    if report.problems or adapter is None:
        return None
    return RunConfig(**values)


def origins_of(tree: Tree) -> dict[str, Origin]:
    """Dotted key → where it was set."""
    return {key: leaf.origin for key, leaf in leaves(tree)}
