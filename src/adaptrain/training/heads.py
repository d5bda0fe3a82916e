"""The prediction head of a run: a fresh one of ours, or the one that the base model was pre-trained with."""

from __future__ import annotations

from typing import Any

from adaptrain.config.schema import HeadConfig, RunConfig
from adaptrain.errors import ConfigError
from adaptrain.tasks.shapes import labelled


def put_head(model: Any, config: RunConfig) -> str | None:
    """Give the model the head of its task, under the task's name.

    Returns:
        What a person should know of the choice, or None where there was none.

    Raises:
        ConfigError: keys of the head that the one it gets does not have.
    """
    task, head = config.task, config.head
    if task.type == "masked_lm":
        return _masked_lm(model, task.name, head)
    model.add_classification_head(
        task.name,
        num_labels=labelled(task).outputs(task),
        layers=head.layers,
        dropout=head.dropout,
        id2label=dict(enumerate(task.labels)) or None,
    )
    return None


def _masked_lm(model: Any, name: str, head: HeadConfig) -> str:
    kind = type(model.base_model).__name__
    if model.base_model.base_model is model.base_model:
        model.add_masked_lm_head(name, layers=head.layers, sparse_prediction=True)
        return "the checkpoint has no masked-LM head; a new one is trained, over the model's own words"
    if head.layers != HeadConfig.layers:
        raise ConfigError(
            f"head.layers={head.layers}: this checkpoint has a masked-LM head of its own ({kind}), which is used as it "
            "is; leave head.layers out"
        )
    return f"the masked-LM head is the checkpoint's own ({kind})"
