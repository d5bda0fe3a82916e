"""The library's prediction heads."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from adaptrain.architectures import architecture_of
from adaptrain.errors import CheckpointError
from adaptrain.files import read_json
from adaptrain.heads import ClassificationHead, Head
from adaptrain.interop.adapterhub.weights import read_weights


def read_head(folder: Path, model: PreTrainedModel) -> Head | None:
    """The folder's named classification head. A head that is part of the library's model class has no config and is
    not ours to place.

    Raises:
        CheckpointError: of another type, or its tensors do not fit its config.
    """
    path = folder / "head_config.json"
    if not path.exists():
        return None
    values = read_json(path)
    config = values.get("config")
    if not config:
        return None
    if config.get("head_type") != "classification" or config.get("use_pooler"):
        kind = (
            "a head over the pooler (use_pooler)"
            if config.get("use_pooler")
            else f"a head of type '{config.get('head_type')}'"
        )
        raise CheckpointError(f"{folder} has {kind}, which this version cannot read; load with with_head=False")
    labels = config.get("label2id")
    head = ClassificationHead(
        int(model.config.hidden_size),  # type: ignore[attr-defined]
        num_labels=config["num_labels"],
        layers=config["layers"],
        activation=config["activation_function"],
        dropout=config.get("dropout_prob") or 0.0,
        pooling=architecture_of(model.config).pooling,
        id2label=None if not labels else sorted(labels, key=lambda label: labels[label]),
    )
    tensors = read_weights(folder, ("model_head.safetensors", "pytorch_model_head.bin"))
    # nn.Sequential of (dropout, linear, activation) for each hidden layer, then (dropout, linear)
    for index, layer in enumerate((*head.hidden, head.out)):
        for parameter in ("weight", "bias"):
            key = f"heads.{values.get('name')}.{3 * index + 1}.{parameter}"
            if key not in tensors or tensors[key].shape != getattr(layer, parameter).shape:
                raise CheckpointError(f"{folder}: the head's tensor '{key}' is missing or of another shape")
            getattr(layer, parameter).data.copy_(tensors[key])
    return head
