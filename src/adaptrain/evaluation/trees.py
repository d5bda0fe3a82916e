"""Metrics of dependency trees, over words:

    UAS = words with the right head / words          LAS = words with the right head and relation / words

A tree is `{"heads": …, "relations": …}`, one of each a word; a head is the index of a word from 1 on, 0 the root.
Relations are compared without their subtype (`acl:relcl` is `acl`) and punctuation counts, as in the script of the
CoNLL 2018 shared task on words that are given. Older tables leave punctuation out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adaptrain.errors import DataError
from adaptrain.evaluation.registry import Metric, register_metric

Tree = Mapping[str, Sequence[Any]]


def attachment(
    predictions: Sequence[Tree], references: Sequence[Tree], punctuation: bool = True, subtypes: bool = False
) -> dict[str, float]:
    """`uas` and `las`.

    Args:
        punctuation: count words whose right relation is `punct`.
        subtypes: compare relations with their subtype.

    Raises:
        DataError: trees of different sizes, or no word that counts.
    """
    words = heads = both = 0
    for row, (said, right) in enumerate(zip(predictions, references, strict=True), start=1):
        sizes = [len(tree[part]) for tree in (right, said) for part in ("heads", "relations")]
        if len(set(sizes)) > 1:
            raise DataError(
                f"Row {row}: there are {sizes[0]} right heads and {sizes[1]} right relations, {sizes[2]} predicted "
                f"heads and {sizes[3]} predicted relations; give one of each a word"
            )
        pairs = zip(said["heads"], said["relations"], right["heads"], right["relations"], strict=True)
        for head, relation, right_head, right_relation in pairs:
            if not punctuation and _kind(right_relation) == "punct":
                continue
            words += 1
            found = int(head) == int(right_head)
            heads += found
            both += found and (relation == right_relation if subtypes else _kind(relation) == _kind(right_relation))
    if not words:
        raise DataError("There is no word to score; give a split whose sentences have words")
    return {"uas": heads / words, "las": both / words}


def _kind(relation: str) -> str:
    return relation.partition(":")[0]


def _formula(key: str, **options: bool) -> Any:
    return lambda predictions, references: attachment(predictions, references, **options)[key]


_TYPES = ("dependency_parsing",)
for _key in ("uas", "las"):
    _label = _key.upper()
    register_metric(Metric(_key, _label, _TYPES, _formula(_key), decimals=2, note="punctuation counts", rows="tree"))
    register_metric(
        Metric(
            f"{_key}_without_punctuation",
            f"{_label} (no punct.)",
            _TYPES,
            _formula(_key, punctuation=False),
            decimals=2,
            note="words whose right relation is punct do not count",
            rows="tree",
        )
    )
register_metric(
    Metric(
        "las_subtypes",
        "LAS (subtypes)",
        _TYPES,
        _formula("las", subtypes=True),
        decimals=2,
        note="punctuation counts; relations with their subtype",
        rows="tree",
    )
)
