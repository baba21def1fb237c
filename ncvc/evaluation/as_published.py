"""JMED-LLM's scores as its published evaluator counts them, faults included, for comparison with the tables (R85).

The rules, from the evaluator of sociocom/JMED-LLM (commit 3774a34e4a26):

- choice: the answer is the first character of the output that is one of A to F, wherever it stands ("ADEの可能性は低い"
  is A); an output without one gets the label "None", which sorts after every letter. Accuracy, and Cohen's kappa over
  the labels that occur in gold and answers, unweighted or (CRADE, JCSTS) linear in the labels' places, so that what an
  unreadable answer costs depends on the right letter.
- spans: the output is a Python list, anything else an empty one. Lists become sets. Exact F1 is a set F1 of each row,
  averaged. "Partial" F1 counts every right span as soon as one span is exactly right: it exceeds 1 where few are given.

One thing differs. The evaluator runs outputs through ``eval``; here ``ast.literal_eval`` reads up to ``LONGEST_LIST``
characters. A list that only running code yields (names, calls, ``['a'] * 2``, f-strings) and a longer one count as the
empty list. On a list that holds lists or dicts the evaluator stops without any score; here such an answer counts as
the empty list, and ``stops_the_evaluator`` tells.

Costs: 1 µs for a choice, 20 for a list. Does not: say what a model knows (see ``corrected``).
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ncvc.evaluation.spans import LONGEST_LIST

UNREADABLE = "None"
"""The label of an output without a letter."""

Kappa = Literal["unweighted", "linear"]
_LETTER = re.compile("[A-F]")
_T = TypeVar("_T")


def letter_of(output: str) -> str:
    """The first of A to F anywhere in ``output``, or ``UNREADABLE``."""
    found = _LETTER.search(output)
    return found[0] if found else UNREADABLE


def list_of(output: str) -> list[Any]:
    """The Python list that ``output`` is, as a literal; ``[]`` for anything else. Nothing is run, nothing raises."""
    if "[" not in output or len(output) > LONGEST_LIST:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in the output
            value = ast.literal_eval(output)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return []
    return value if isinstance(value, list) else []


def stops_the_evaluator(output: str) -> bool:
    """Whether the published evaluator stops at this list: it holds lists, dicts or sets, which no set can hold."""
    return _set_of(list_of(output)) is None


def score_choices(golds: Sequence[str], outputs: Sequence[str], *, kappa: Kappa | None) -> dict[str, float]:
    """Accuracy and, unless ``kappa`` is None, Cohen's kappa of raw outputs.

    ``golds`` are the right letters, in the order of ``outputs``. Kappa is NaN where gold and answers are all one label.
    ``ValueError`` for no row, and for rows that do not match in number.
    """
    _check(golds, outputs)
    predicted = [letter_of(output) for output in outputs]
    scores = {"accuracy": sum(a == b for a, b in zip(golds, predicted, strict=True)) / len(golds)}
    if kappa is not None:
        labels = sorted({*golds, *predicted})
        place = {label: number for number, label in enumerate(labels)}
        table = np.zeros((len(labels), len(labels)))
        np.add.at(table, ([place[label] for label in golds], [place[label] for label in predicted]), 1)
        scores["kappa"] = float(kappa_of_table(table, kappa=kappa))
    return scores


def kappa_of_table(table: NDArray[Any], *, kappa: Kappa) -> NDArray[np.float64]:
    """Cohen's kappa of counts (..., gold label, answered label), labels sorted: (...), NaN where it is undefined.

    Labels that occur in neither gold nor answers of a table are left out of its scale, as the published evaluator
    (scikit-learn) does.
    """
    gold, answered = table.sum(axis=-1), table.sum(axis=-2)
    place = np.cumsum(gold + answered > 0, axis=-1)
    apart = np.abs(place[..., :, None] - place[..., None, :])
    weights = apart if kappa == "linear" else ~np.eye(table.shape[-1], dtype=bool)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = gold[..., :, None] * answered[..., None, :] / gold.sum(axis=-1)[..., None, None]
        return np.asarray(1 - (weights * table).sum(axis=(-2, -1)) / (weights * expected).sum(axis=(-2, -1)))


def score_spans(golds: Sequence[Sequence[str]], outputs: Sequence[str]) -> dict[str, float]:
    """Exact and "partial" F1 of raw outputs, means over rows; the second may exceed 1.

    ``golds`` are the right spans of each row, raw, in the order of ``outputs``. ``ValueError`` for no row, rows that do
    not match in number, and an empty gold list, by which the published evaluator divides.
    """
    _check(golds, outputs)
    rows = span_row_scores(golds, outputs)
    return {
        "exact_f1": sum(exact for exact, _ in rows) / len(rows),
        "partial_f1": sum(partial for _, partial in rows) / len(rows),
    }


def span_row_scores(golds: Sequence[Sequence[str]], outputs: Sequence[str]) -> list[tuple[float, float]]:
    """(exact, "partial") F1 of each row, of which ``score_spans`` takes the means; the same errors."""
    _check(golds, outputs)
    return [_row(gold, output, number) for number, (gold, output) in enumerate(zip(golds, outputs, strict=True))]


def _row(gold: Sequence[str], output: str, number: int) -> tuple[float, float]:
    wanted, given = set(gold), _set_of(list_of(output)) or set()
    if not wanted:
        raise ValueError(f"row {number} has no gold span; F1 is undefined for it, leave the row out.")
    hits = len(wanted & given)
    return _f1(hits, len(wanted), len(given)), _f1(len(wanted) if hits else 0, len(wanted), len(given))


def _f1(hits: int, wanted: int, given: int) -> float:
    recall = hits / wanted
    precision = hits / given if given else 0
    return 2 * recall * precision / (recall + precision) if recall + precision else 0.0


def _set_of(values: list[Any]) -> set[Any] | None:
    try:
        return set(values)
    except TypeError:
        return None


def _check(golds: Sequence[_T], outputs: Sequence[str]) -> None:
    if len(golds) != len(outputs):
        raise ValueError(f"{len(golds)} right answers do not match {len(outputs)} outputs; give one output for each.")
    if not golds:
        raise ValueError("the score of no answer is undefined; give at least one.")
