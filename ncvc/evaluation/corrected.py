"""Scores of choices and spans that mean what they are called, beside those as published (R85).

Answers are read by ``answer_reading``; None is a refusal: no answer could be read. It is wrong, and it is counted.

Accuracy: right answers over all items. Kappa: Cohen's, over all letters of the task, whether they occur or not. With
the disagreement w(i, j) between two letters (1 if they differ, or |i - j| / (k - 1), linear), what the letter j costs
by chance, e(j) = mean over items of w(gold, j), and r refusals among n answers a,

    kappa = max(-1, 1 - (sum of w(gold, a) over the read + r) / (sum of e(a) over the read + r min e)):

a refusal disagrees wholly with any gold letter, and chance does no worse by it than by the letter that costs least.
Without refusals this is Cohen's kappa; an answer that becomes unreadable never raises it.

Spans: gold and answer are cleaned alike (NFKC and the corpus's rules), and an item's distinct spans are compared: exact
F1, and overlap F1, for which each gold span is paired with at most one given span that shares with it one run of
characters of at least ``minimum_overlap`` of the longer of both; the largest pairing counts. Macro F1 is the mean over
items, a refusal 0; micro F1 is over all spans, a refusal naming none (so a wrong list lowers micro F1 more than none).

Costs: 1 µs for a choice, some 20 for a list, most of it cleaning, which is remembered. Does not: read outputs, or say
how sure a score is.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ncvc.evaluation.as_published import Kappa
from ncvc.evaluation.spans import clean_span

MINIMUM_OVERLAP = 0.5
"""Share of the longer span that two spans have to have in common."""

_LARGE_KANA = "あいうえおか-ぢつ-もやゆよ-ゎわゐゑをんアイウエオカ-ヂツ-モヤユヨ-ヮワヰヱヲン"
_CLEAN = re.compile(f"(?:[0-9A-Za-z]|([一-鿿{_LARGE_KANA}])(?!\\1))+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemScore:
    """What one item earned, 0 to 1, and whether no answer could be read (which earns 0)."""

    value: float
    refused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanScore:
    """One item's spans: how many are right (``gold``), given, equal (``exact_hits``) and paired (``overlap_hits``)."""

    gold: int
    given: int
    exact_hits: int
    overlap_hits: int
    refused: bool

    @property
    def exact(self) -> float:
        """Exact F1, 0 to 1."""
        return _f1(self.exact_hits, self.gold, self.given)

    @property
    def overlap(self) -> float:
        """Overlap F1, 0 to 1."""
        return _f1(self.overlap_hits, self.gold, self.given)


def choice_scores(golds: Sequence[str], answers: Sequence[str | None]) -> list[ItemScore]:
    """1 for each answer that is the gold letter. ``ValueError`` for no item, or rows that do not match in number."""
    _check(golds, answers)
    return [
        ItemScore(value=float(gold == answer), refused=answer is None)
        for gold, answer in zip(golds, answers, strict=True)
    ]


def choice_summary(
    golds: Sequence[str], answers: Sequence[str | None], *, letters: Sequence[str], kappa: Kappa | None
) -> dict[str, float]:
    """accuracy, refused (a count), and kappa unless it is None.

    ``letters`` are all letters of the task in their order; the linear kappa goes by their places. Kappa is NaN where
    every gold letter and every answer is the same. ``ValueError`` for letters that are not among ``letters``, too.
    """
    scores = choice_scores(golds, answers)
    summary = {
        "accuracy": sum(score.value for score in scores) / len(scores),
        "refused": sum(score.refused for score in scores),
    }
    if kappa is not None:
        table = choice_table(golds, answers, letters=letters)
        summary["kappa"] = float(kappa_of_table(table, kappa=kappa))
    return summary


def choice_table(golds: Sequence[str], answers: Sequence[str | None], *, letters: Sequence[str]) -> NDArray[np.float64]:
    """Counts (gold letter, answered letter), k by k + 1 in the order of ``letters``; the last column are refusals."""
    _check(golds, answers)
    place: dict[str | None, int] = {letter: number for number, letter in enumerate(letters)}
    if unknown := [letter for letter in (*golds, *answers) if letter is not None and letter not in place]:
        raise ValueError(f"{unknown[0]!r} is none of the letters {', '.join(letters)}; give all letters of the task.")
    place[None] = len(letters)
    table = np.zeros((len(letters), len(letters) + 1))
    np.add.at(table, ([place[gold] for gold in golds], [place[answer] for answer in answers]), 1)
    return table


def kappa_of_table(table: NDArray[Any], *, kappa: Kappa) -> NDArray[np.float64]:
    """Kappa by the formula above, of counts as of ``choice_table``: (..., k, k + 1) give (...).

    NaN where nothing can disagree, one letter all over. ``ValueError`` for fewer than 2 letters.
    """
    letters = table.shape[-2]
    if letters < 2:
        raise ValueError(f"kappa over {letters} letter is undefined; give all letters that a task's items offer.")
    steps = np.abs(np.arange(letters)[:, None] - np.arange(letters)[None, :])
    disagreement = steps / (letters - 1) if kappa == "linear" else (steps > 0).astype(float)
    read, refused = table[..., :letters], table[..., letters].sum(axis=-1)
    gold = table.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        by_chance = gold @ disagreement / gold.sum(axis=-1, keepdims=True)  # (..., letter)
        expected = (read.sum(axis=-2) * by_chance).sum(axis=-1) + refused * by_chance.min(axis=-1)
        observed = (read * disagreement).sum(axis=(-2, -1)) + refused
        return np.asarray(np.where(expected + observed == 0, np.nan, np.maximum(-1.0, 1 - observed / expected)))


def normalized_span(text: str) -> str:
    """``text`` as spans are compared: as the tokenizer's cleaning leaves it, or only NFKC where that leaves nothing."""
    if _CLEAN.fullmatch(text):  # what cleaning leaves alone, in a hundredth of the time
        return text
    return _cleaned(text)


@functools.lru_cache(maxsize=1 << 17)
def _cleaned(text: str) -> str:
    return clean_span(text) or " ".join(unicodedata.normalize("NFKC", text).split())


def span_scores(
    golds: Sequence[Sequence[str]],
    answers: Sequence[Sequence[str] | None],
    *,
    minimum_overlap: float = MINIMUM_OVERLAP,
    normalize: Callable[[str], str] = normalized_span,
) -> list[SpanScore]:
    """The counts of each item; ``answers`` are the lists read, None where none could be.

    ``normalize`` is applied to gold and answer; spans it leaves empty are left out. ``ValueError`` for no item, rows
    that do not match in number, an item without a gold span, and ``minimum_overlap`` outside (0, 1].
    """
    _check(golds, answers)
    if not 0 < minimum_overlap <= 1:
        raise ValueError(f"minimum_overlap={minimum_overlap}: set a share above 0 and at most 1 (default 0.5).")
    scores = []
    for number, (gold, answer) in enumerate(zip(golds, answers, strict=True)):
        wanted, given = _distinct(gold, normalize), _distinct(answer or (), normalize)
        if not wanted:
            raise ValueError(f"item {number} has no gold span; F1 is undefined for it, leave it out.")
        scores.append(
            SpanScore(
                gold=len(wanted),
                given=len(given),
                exact_hits=len(wanted.keys() & given.keys()),
                overlap_hits=_largest_pairing(list(wanted), list(given), minimum_overlap),
                refused=answer is None,
            )
        )
    return scores


def span_summary(scores: Sequence[SpanScore]) -> dict[str, float]:
    """exact_f1 and overlap_f1 (macro), exact_f1_micro and overlap_f1_micro, refused (a count)."""
    _check(scores, scores)
    gold, given = sum(score.gold for score in scores), sum(score.given for score in scores)
    return {
        "exact_f1": sum(score.exact for score in scores) / len(scores),
        "overlap_f1": sum(score.overlap for score in scores) / len(scores),
        "exact_f1_micro": _f1(sum(score.exact_hits for score in scores), gold, given),
        "overlap_f1_micro": _f1(sum(score.overlap_hits for score in scores), gold, given),
        "refused": sum(score.refused for score in scores),
    }


def overlaps(first: str, second: str, *, minimum_overlap: float = MINIMUM_OVERLAP) -> bool:
    """Whether the spans share a run of characters of at least ``minimum_overlap`` of the longer one, one at least."""
    shorter, longer = (first, second) if len(first) <= len(second) else (second, first)
    needed = max(1, math.ceil(minimum_overlap * len(longer) - 1e-9))
    if len(shorter) < needed:
        return False
    return shorter in longer or any(
        shorter[start : start + needed] in longer for start in range(len(shorter) - needed + 1)
    )


def _largest_pairing(gold: list[str], given: list[str], minimum_overlap: float) -> int:
    """The most pairs of one gold and one given span that overlap, each span in one pair: by augmenting paths."""
    partners = [
        [place for place, span in enumerate(given) if overlaps(wanted, span, minimum_overlap=minimum_overlap)]
        for wanted in gold
    ]
    owner: dict[int, int] = {}  # given -> gold
    return sum(_augment(root, partners, owner) for root in range(len(gold)))


def _augment(root: int, partners: list[list[int]], owner: dict[int, int]) -> bool:
    """Pair ``root``, moving others to further partners of theirs; False if there is no way."""
    reached_from: dict[int, int] = {}  # given -> the gold span from which it was reached
    partner = {wanted: place for place, wanted in owner.items()}
    waiting = deque([root])
    while waiting:
        wanted = waiting.popleft()
        for place in partners[wanted]:
            if place in reached_from:
                continue
            reached_from[place] = wanted
            if place in owner:
                waiting.append(owner[place])
                continue
            end: int | None = place
            while end is not None:  # back along the path, each gold span takes the next given one
                mover = reached_from[end]
                owner[end] = mover
                end = partner.get(mover)
            return True
    return False


def _distinct(spans: Iterable[str], normalize: Callable[[str], str]) -> dict[str, None]:
    return dict.fromkeys(span for span in map(normalize, spans) if span)


def _f1(hits: int, gold: int, given: int) -> float:
    return 2 * hits / (gold + given) if gold + given else 0.0


def _check(golds: Sequence[Any], answers: Sequence[Any]) -> None:
    if len(golds) != len(answers):
        raise ValueError(f"{len(golds)} right answers do not match {len(answers)} answers; give one for each.")
    if not golds:
        raise ValueError("the score of no answer is undefined; give at least one.")
