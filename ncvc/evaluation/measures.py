"""Raw outputs as measures: what each answer adds to each score, as published and corrected, ready to be resampled.

The rules are those of `ncvc.evaluation.as_published`, `corrected` and `igakuqa`; here their scores are written as sums
over items, which intervals and paired tests need. A kappa's sums are a table of right letters by answers. Costs: the
reading of the outputs. Does not: draw, test, or judge.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ncvc.evaluation import as_published, corrected
from ncvc.evaluation.answer_reading import read_choice, read_spans_answer
from ncvc.evaluation.igakuqa import folded, igakuqa_scores, is_right_as_published, question_score
from ncvc.evaluation.item import Item, Kappa, Task
from ncvc.evaluation.jmed_files import LETTERS
from ncvc.evaluation.statistics import Array, Measure, mean_measure, plain, ratio

Scorers = dict[str, dict[str, Measure]]
_PUBLISHED_LABELS = (*LETTERS, as_published.UNREADABLE)


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The measures of one answerer's outputs: ``by_scorer`` is {"as_published": {name: measure}, "corrected": ...}.

    ``metric`` names the corrected measure that verdicts rest on; ``refused`` tells of each output whether no answer
    could be read in it; ``more`` are scores that are told without an interval, by scorer.
    """

    metric: str
    by_scorer: Scorers
    refused: tuple[bool, ...]
    more: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def headline(self) -> Measure:
        """The measure that verdicts rest on."""
        return self.by_scorer["corrected"][self.metric]

    def scores(self, scorer: str) -> dict[str, Any]:
        """All scores of ``scorer``, plain data; None where one is undefined."""
        found = {name: plain(measure.value) for name, measure in self.by_scorer[scorer].items()}
        return {**found, **self.more.get(scorer, {})}


def headline(task: Task) -> str:
    """The corrected measure that verdicts on ``task`` rest on."""
    if task.family == "igakuqa":
        return "percent"
    if task.items[0].kind == "spans":
        return "overlap_f1"
    return "kappa" if task.kappa and task.items[0].kind == "choice" and len(_letters(task)) > 1 else "accuracy"


def _letters(task: Task) -> tuple[str, ...]:
    """All letters that the items of ``task`` offer, in order."""
    return tuple(sorted({letter for item in task.items for letter in item.letters}))


def measures_of(task: Task, items: Sequence[Item], outputs: Sequence[str]) -> Measures:
    """The measures of raw ``outputs`` to ``items``, which are of ``task``."""
    if task.family == "igakuqa":
        return _examination(items, outputs)
    if task.items[0].kind == "spans":
        return _spans(task, items, outputs)
    if task.items[0].kind == "choice":
        return _choices(task, items, outputs)
    found = [question_score(item, output) for item, output in zip(items, outputs, strict=True)]
    return Measures(
        metric=headline(task),
        by_scorer={"as_published": {}, "corrected": {"accuracy": mean_measure([score.right for score in found])}},
        refused=tuple(score.refused for score in found),
    )


def _examination(items: Sequence[Item], outputs: Sequence[str]) -> Measures:
    points = np.array([item.points for item in items], dtype=np.float64)
    found = [question_score(item, output) for item, output in zip(items, outputs, strict=True)]
    right = {
        "as_published": [is_right_as_published(i, folded(o)) for i, o in zip(items, outputs, strict=True)],
        "corrected": [score.right for score in found],
    }
    by_scorer = {}
    for scorer, hits in right.items():
        earned = points * np.array(hits, dtype=np.float64)
        by_scorer[scorer] = {
            "points": Measure(additions=earned[:, None], statistic=_total, highest=float(points.sum())),
            "percent": Measure(additions=np.stack([100 * earned, points], axis=1), statistic=ratio, highest=100.0),
        }
    given = {item.id: output for item, output in zip(items, outputs, strict=True)}
    return Measures(
        metric="percent",
        by_scorer=by_scorer,
        refused=tuple(score.refused for score in found),
        more=igakuqa_scores(items, given),
    )


def _choices(task: Task, items: Sequence[Item], outputs: Sequence[str]) -> Measures:
    letters = _letters(task)
    golds = [item.gold[0] for item in items]
    read = [read_choice(output, item.letters) for item, output in zip(items, outputs, strict=True)]
    answers: dict[str, Sequence[str | None]] = {"corrected": read}
    if {*letters} <= {*LETTERS}:  # the published rule knows no other letters
        answers["as_published"] = [as_published.letter_of(output) for output in outputs]
    by_scorer: Scorers = {"as_published": {}, "corrected": {}}
    for scorer, given in answers.items():
        hits = [answer == gold for answer, gold in zip(given, golds, strict=True)]
        by_scorer[scorer]["accuracy"] = mean_measure(hits)
    if task.kappa and len(letters) > 1:
        kappas = {
            "corrected": (letters, functools.partial(_corrected_kappa, letters=len(letters), kappa=task.kappa)),
            "as_published": (LETTERS, functools.partial(_published_kappa, kappa=task.kappa)),
        }
        for scorer, given in answers.items():
            known, statistic = kappas[scorer]
            rows = len(known) + (scorer == "as_published")
            cells = _cells(golds, given, letters=known, rows=rows)
            by_scorer[scorer]["kappa"] = Measure(additions=cells, statistic=statistic, lowest=-1.0)
    return Measures(metric=headline(task), by_scorer=by_scorer, refused=tuple(letter is None for letter in read))


def _cells(golds: Sequence[str], given: Sequence[str | None], *, letters: Sequence[str], rows: int) -> Array:
    """Each item's cell in a table [rows, letters + 1] of right letters by answers, flat and one-hot.

    float [items, rows * (letters + 1)]; the last column are answers that are none of the letters.
    """
    place = {letter: number for number, letter in enumerate(letters)}
    columns = len(letters) + 1
    gold = np.array([place[letter] for letter in golds])
    answers = np.array([place.get(answer or "", len(letters)) for answer in given])
    additions = np.zeros((len(golds), rows * columns))
    additions[np.arange(len(golds)), gold * columns + answers] = 1.0
    return additions


def _published_kappa(sums: Array, *, kappa: Kappa) -> Array:
    """Of flat tables [..., labels * labels]."""
    size = len(_PUBLISHED_LABELS)
    return as_published.kappa_of_table(sums.reshape(*sums.shape[:-1], size, size), kappa=kappa)


def _corrected_kappa(sums: Array, *, letters: int, kappa: Kappa) -> Array:
    """Of flat tables [..., letters * (letters + 1)]; the last column are refusals."""
    return corrected.kappa_of_table(sums.reshape(*sums.shape[:-1], letters, letters + 1), kappa=kappa)


def _spans(task: Task, items: Sequence[Item], outputs: Sequence[str]) -> Measures:
    golds = [item.gold for item in items]
    published = np.array(as_published.span_row_scores(golds, outputs), dtype=np.float64)
    read = [read_spans_answer(output) for output in outputs]
    found = corrected.span_scores(golds, read)
    counts = np.array([[s.exact_hits, s.overlap_hits, s.gold, s.given] for s in found], dtype=np.float64)
    most = max(1.0, float(published[:, 1].max()))
    return Measures(
        metric="overlap_f1",
        by_scorer={
            "as_published": {
                "exact_f1": mean_measure(published[:, 0]),
                "partial_f1": mean_measure(published[:, 1], highest=most),
            },
            "corrected": {
                "exact_f1": mean_measure([score.exact for score in found]),
                "overlap_f1": mean_measure([score.overlap for score in found]),
                "exact_f1_micro": Measure(additions=counts[:, [0, 2, 3]], statistic=_micro_f1),
                "overlap_f1_micro": Measure(additions=counts[:, [1, 2, 3]], statistic=_micro_f1),
            },
        },
        refused=tuple(score.refused for score in found),
    )


def _micro_f1(sums: Array) -> Array:
    """F1 from hits, right and given spans."""
    return 2 * sums[..., 0] / (sums[..., 1] + sums[..., 2])


def _total(sums: Array) -> Array:
    return sums[..., 0]
