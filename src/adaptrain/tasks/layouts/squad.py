"""SQuAD's own JSON: articles of paragraphs of questions (Rajpurkar et al. 2016, 2018).

    {"version": "v2.0", "data": [
      {"title": …, "paragraphs": [
        {"context": …, "qas": [
          {"id": …, "question": …, "answers": [{"text": …, "answer_start": …}], "is_impossible": …}]}]}]}

A question is a row, as in the data set on the hub: id, title, context, question, answers, and `is_impossible` where a
question of the file has it. What version 2.0 calls plausible answers are no answers and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adaptrain.errors import DataError, listed


def is_squad(articles: Sequence[Any]) -> bool:
    """Whether rows are articles of SQuAD."""
    return any(isinstance(article, Mapping) and "paragraphs" in article for article in articles)


def squad_rows(articles: Sequence[Any], place: str) -> list[dict[str, Any]]:
    """A row for each question, in the order of the file. What is missing of a question is None: a bad row.

    Raises:
        DataError: an article, a paragraph or a question is missing its list, or is no object.
    """
    rows = [
        {
            "id": question.get("id"),
            "title": article.get("title"),
            "context": paragraph.get("context"),
            "question": question.get("question"),
            "answers": _answers(question, where),
            "is_impossible": question.get("is_impossible"),
        }
        for article, at in _objects(articles, f"{place}, article", "paragraphs")
        for paragraph, there in _objects(article["paragraphs"], f"{at}, paragraph", "qas")
        for question, where in _objects(paragraph["qas"], f"{there}, question", None)
    ]
    if all(row["is_impossible"] is None for row in rows):  # version 1.1
        return [{key: value for key, value in row.items() if key != "is_impossible"} for row in rows]
    return [row | {"is_impossible": bool(row["is_impossible"])} for row in rows]


def _objects(values: Any, place: str, holds: str | None) -> Iterator[tuple[Mapping[str, Any], str]]:
    """The objects of a list, each with its place.

    Args:
        holds: the key of the list that each of them must have.
    """
    for number, value in enumerate(values, start=1):
        where = f"{place} {number}"
        if not isinstance(value, Mapping):
            raise DataError(f"{where}: is {value!r:.40}, and SQuAD has an object there. Correct the file")
        if holds is not None and not isinstance(value.get(holds), list):
            raise DataError(
                f"{where}: has no list '{holds}', which SQuAD has there. Its keys are: {listed(value)}. "
                "Correct the file"
            )
        yield value, where


def _answers(question: Mapping[str, Any], place: str) -> dict[str, list[Any]] | None:
    """Texts and their first characters; None where the file does not say what is right, as in a hidden test split."""
    value = question.get("answers")
    if value is None:
        return {"text": [], "answer_start": []} if question.get("is_impossible") is True else None
    if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
        raise DataError(f"{place}: its answers are {value!r:.60}; SQuAD has a list of objects there. Correct the file")
    return {key: [each.get(key) for each in value] for key in ("text", "answer_start")}
