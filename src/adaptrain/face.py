"""How an adapted model looks to programs that are written for transformers' own models.

They decide by what they can see from outside: transformers' Trainer keeps the columns of a data set that the signature
of `forward` names, finds labels by the name of the class, and its pipelines read the labels in `config`. So the class
of an adapted model is one of its own, with the signature of the model inside and the name of the transformers class
that does the same job; and `config` shows the labels of the active head. Both are views: nothing of the base changes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from types import FunctionType
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto as auto

from adaptrain.errors import ConfigError, UnsupportedError
from adaptrain.heads import Head

_JOBS: dict[str, tuple[str, ...]] = {
    "classification": ("SEQUENCE_CLASSIFICATION", "AUDIO_CLASSIFICATION"),
    "multilabel_classification": ("SEQUENCE_CLASSIFICATION", "AUDIO_CLASSIFICATION"),
    "image_classification": ("IMAGE_CLASSIFICATION",),
    "multiple_choice": ("MULTIPLE_CHOICE",),
    "tagging": ("TOKEN_CLASSIFICATION",),
    "question_answering": ("QUESTION_ANSWERING",),
    "masked_lm": ("MASKED_LM",),
    "causal_lm": ("CAUSAL_LM",),
    "seq2seq_lm": ("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ"),
}
"""Kind of head → transformers' tables of the classes that do its job."""

_FACES: dict[Any, type] = {}


def face(owner: type, base: PreTrainedModel, bare: bool, heads: Sequence[Head]) -> type:
    """The class of an adapted model: `owner` with another name and another signature of `forward`.

    Args:
        owner: whose methods it has.
        bare: whether the base model has no head of its own.
        heads: the active ones.
    """
    name = _job(base, heads[0].kind) if len(heads) == 1 else type(base).__name__
    signature = _signature(owner, base, bare, heads)
    parameters = tuple((each.name, each.kind, repr(each.default)) for each in signature.parameters.values())
    key = owner, name, parameters
    if key not in _FACES:
        members: dict[str, Any] = {
            "__module__": owner.__module__,
            "__qualname__": f"{owner.__name__}[{name}]",
            "__doc__": owner.__doc__,
            "forward": _signed(owner.forward, signature),  # type: ignore[attr-defined]
            "_owner": owner,
        }
        _FACES[key] = type(name, (owner,), members)
    return _FACES[key]


def is_face(kind: type) -> bool:
    """Whether a class is one that `face` has made."""
    return kind in _FACES.values()


def _job(base: PreTrainedModel, kind: str) -> str:
    """The name of the transformers class that does the job of a head on this base model."""
    own = type(base).__name__
    tables = [getattr(auto, f"MODEL_FOR_{job}_MAPPING_NAMES", {}) for job in _JOBS.get(kind, ())]
    names = next((table[base.config.model_type] for table in tables if base.config.model_type in table), None)
    if names is None:
        return f"{own.removesuffix('Model')}For{kind.title().replace('_', '')}"
    return names if isinstance(names, str) else names[0]


def _signature(owner: type, base: PreTrainedModel, bare: bool, heads: Sequence[Head]) -> inspect.Signature:
    """The parameters of the base model's `forward`, and those that are read before it is called."""
    theirs = dict(inspect.signature(base.forward).parameters)
    rest = [theirs.pop(key) for key, each in [*theirs.items()] if each.kind is Parameter.VAR_KEYWORD]
    own = inspect.signature(owner.forward).parameters  # type: ignore[attr-defined]
    added = [argument for head in heads for argument in head.arguments]
    if bare and not (heads and all(head.label_arguments for head in heads)):
        added.append("labels")
    added += [key for key, each in own.items() if each.kind is Parameter.KEYWORD_ONLY and key != "labels"]
    more = [
        own[key] if key in own else Parameter(key, Parameter.KEYWORD_ONLY, default=None)
        for key in dict.fromkeys(added)
        if key not in theirs
    ]
    return inspect.Signature([own["self"], *theirs.values(), *more, *rest])


def _signed(function: Callable[..., Any], signature: inspect.Signature) -> Callable[..., Any]:
    """The same function with another signature. It is a copy, so that nothing is called in between."""
    assert isinstance(function, FunctionType)
    copy: Any = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__, copy.__doc__ = function.__kwdefaults__, function.__doc__
    copy.__qualname__, copy.__module__ = function.__qualname__, function.__module__
    copy.__signature__ = signature
    return copy


# ---- the labels in the config

_VIEWS: dict[type, type] = {}


def labelled(config: PreTrainedConfig, head: Head) -> PreTrainedConfig:
    """A base model's config with a head's labels: everything else is read from it, and written to it."""
    view = object.__new__(_view_of(type(config)))
    object.__setattr__(view, "_head", head)
    object.__setattr__(view, "__dict__", config.__dict__)
    return view


def _view_of(kind: type) -> Any:
    """The class of a config whose labels are a head's. It has no number of its own but the head."""
    if kind not in _VIEWS:
        members = {
            "__module__": kind.__module__,
            "__slots__": ("_head",),
            "id2label": property(_id2label, _rename),
            "label2id": property(_label2id, lambda view, names: _rename(view, {v: k for k, v in names.items()})),
            "num_labels": property(lambda view: view._head.num_labels, _refuse_number),
            "problem_type": property(_problem_type, _refuse_type),
            "to_dict": _to_dict,
            "__reduce_ex__": _as_plain,
        }
        _VIEWS[kind] = type(kind.__name__, (kind,), members)
        _VIEWS[kind]._plain = kind  # type: ignore[attr-defined]
    return _VIEWS[kind]


def _id2label(view: Any) -> dict[int, str]:
    return view._head.label_map()


def _label2id(view: Any) -> dict[str, int]:
    return {name: number for number, name in view._head.label_map().items()}


def _problem_type(view: Any) -> str | None:
    return view._head.problem_type or view.__dict__.get("problem_type")


def _rename(view: Any, names: Mapping[int, str]) -> None:
    """Give the head other names for its labels."""
    head: Head = view._head
    numbers = {int(number): str(name) for number, name in names.items()}
    if sorted(numbers) != list(range(head.num_labels)):
        raise ConfigError(
            f"id2label: the active head '{head.name}' has the labels 0 … {head.num_labels - 1}, and the names "
            f"are for {sorted(numbers)}; name each of them, or add a head with that many labels"
        )
    head.options["id2label"] = [numbers[number] for number in sorted(numbers)]


def _refuse_number(view: Any, number: int) -> None:
    head: Head = view._head
    if number != head.num_labels:
        raise ConfigError(
            f"num_labels: the active head '{head.name}' has {head.num_labels} labels, and cannot have {number}; add a "
            "head with that many labels"
        )


def _refuse_type(view: Any, value: str | None) -> None:
    head: Head = view._head
    if value not in (None, _problem_type(view)):
        raise UnsupportedError(
            f"problem_type: the active head '{head.name}' is for {_problem_type(view)}, and cannot be for {value}; add "
            "a head for it (multilabel=True, or num_labels=1 for regression)"
        )


def _labels_of(view: Any) -> dict[str, Any]:
    return {"id2label": _id2label(view), "label2id": _label2id(view), "problem_type": _problem_type(view)}


def _to_dict(view: Any) -> dict[str, Any]:
    return view._plain.to_dict(view) | _labels_of(view)


def _as_plain(view: Any, protocol: int) -> Any:
    """A copy is a config as any other, with these labels."""
    return _restored, (view._plain, view.__dict__ | _labels_of(view))


def _restored(kind: type, values: dict[str, Any]) -> Any:
    config = object.__new__(kind)
    config.__dict__.update(values)
    return config
