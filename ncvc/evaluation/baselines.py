"""What a score has to be held against: guessing, constant answers, and baselines trained on the same split.

- guessing: a letter, or the right number of letters, uniformly. Exact up to 10,000 points, with the range that 95% of
  guessers fall into. Numbers are not guessed (0). Cohen's kappa of guessing is 0. For spans there is no uniform answer:
  the guesser is told how many spans of which lengths are right, and places them at random, a generous chance.
- majority: the most frequent answer of the training rows, given to every item. Where there are no training rows
  (IgakuQA, JMMLU, own tasks): the best constant answer of the test itself, which is called so, in hindsight.
- longest option: where nothing can be trained; writers of examinations tend to give the right one more words.
- character n-grams, sentence overlap, dictionary: see `ncvc.evaluation.trained_baselines`.

Trained answers are kept in ``<home>/baselines/<task>-<hash>.json``, by a hash of rows, items and rules. Costs: guessing
5 ms a task; training as told there, once. Does not: score; answers are text like a model's.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ncvc.evaluation.igakuqa import ALWAYS_RIGHT
from ncvc.evaluation.item import Item, Task
from ncvc.evaluation.jmed_llm import Example
from ncvc.evaluation.spans import write_spans
from ncvc.evaluation.trained_baselines import (
    DICTIONARY,
    N_GRAMS,
    OVERLAP,
    VERSION,
    dictionary_baseline,
    is_pair,
    ngram_baseline,
    overlap_baseline,
)
from ncvc.storage import hash_json, write_json

MAJORITY = "majority"
CONSTANT = "best constant, in hindsight"
LONGEST_OPTION = "longest option"
SPAN_GUESSES = 2000
"""Random placements of spans that guessing averages over, of all items together: 20 times each of 100 items."""

Outputs = tuple[str, ...]
_MOST_EXACT = 10_000  # points up to which the distribution of guessers is exact; beyond, normal


# --- guessing
@dataclass(frozen=True, kw_only=True)
class Guessing:
    """What uniform guessing scores: the expected share right, accuracy, and points out of ``total``.

    ``accuracy_range`` and ``points_range`` hold 95% of guessers. Zero-point items count in accuracy alone.
    """

    accuracy: float
    accuracy_range: tuple[float, float]
    points: float
    points_range: tuple[float, float]
    total: int


def guessing(task: Task, items: Sequence[Item]) -> Guessing:
    """What guessing scores on ``items`` of ``task`` (choices, letters, numbers). ``ValueError`` for spans."""
    chances = [guessing_probability(item, family=task.family) for item in items]
    points = [item.points for item in items]
    count, low, high = _spread(chances, [1] * len(items))
    earned, fewest, most = _spread(chances, points)
    number = len(items)
    return Guessing(
        accuracy=count / number,
        accuracy_range=(low / number, high / number),
        points=earned,
        points_range=(fewest, most),
        total=sum(points),
    )


def guessing_probability(item: Item, *, family: str) -> float:
    """The probability that as many letters as ``item`` asks for, drawn uniformly, are right; 0 for a number."""
    if item.kind == "spans":
        raise ValueError(f"item {item.id} of task {item.task} asks for spans, which no uniform guess answers.")
    if family == "igakuqa" and item.id in ALWAYS_RIGHT:
        return 1.0
    if item.kind == "number" or not 1 <= item.wanted <= len(item.letters):
        return 0.0
    accepted = {frozenset(gold) for gold in (item.gold, *item.alternatives)}
    return sum(len(gold) == item.wanted for gold in accepted) / math.comb(len(item.letters), item.wanted)


def _spread(chances: Sequence[float], points: Sequence[int]) -> tuple[float, float, float]:
    """Mean, and 2.5% and 97.5% quantile, of the sum of points that come with these chances independently."""
    mean = math.fsum(chance * worth for chance, worth in zip(chances, points, strict=True))
    if sum(points) > _MOST_EXACT:
        variance = math.fsum(chance * (1 - chance) * worth**2 for chance, worth in zip(chances, points, strict=True))
        reach = 1.96 * math.sqrt(variance)
        return mean, max(0.0, float(round(mean - reach))), min(float(sum(points)), float(round(mean + reach)))
    distribution = np.ones(1)
    for chance, worth in zip(chances, points, strict=True):
        grown = np.zeros(len(distribution) + worth)
        grown[: len(distribution)] = distribution * (1 - chance)
        grown[worth:] += distribution * chance
        distribution = grown
    below = np.cumsum(distribution)
    return mean, float(np.searchsorted(below, 0.025)), float(np.searchsorted(below, 0.975))


def guessed_spans(items: Sequence[Item], *, seed: int) -> Outputs:
    """For each item as many spans as are right, of the lengths of the right ones, at random places of the passage."""
    answers = []
    for item in items:
        draw = random.Random(f"{seed} {item.task} {item.id}")
        spans = []
        for span in item.gold:
            start = draw.randint(0, max(0, len(item.passage) - len(span)))
            spans.append(item.passage[start : start + len(span)])
        answers.append(json.dumps(list(dict.fromkeys(spans)), ensure_ascii=False))
    return tuple(answers)


# --- constant answers
def constant_answer(items: Sequence[Item], training: Sequence[Example]) -> tuple[str, Outputs]:
    """(name, outputs) of the answer given to every item.

    Of spans it is the span that is right most often. With several letters to pick, each number of them has its own.
    """
    golds: Counter[tuple[str, ...]] = Counter()
    if training:
        for example in training:
            answer = example.answer
            golds.update([(answer,)] if isinstance(answer, str) else {(span,) for span in answer if span.strip()})
    else:
        for item in items:
            accepted = {(span,) for span in item.gold} if item.kind == "spans" else {item.gold, *item.alternatives}
            for gold in accepted:
                golds[gold] += item.points
    name = MAJORITY if training else CONSTANT
    ranked = sorted(golds, key=lambda gold: (-golds[gold], gold))
    if items and items[0].kind == "spans":
        return name, (write_spans(ranked[0] if ranked else ()),) * len(items)
    best: dict[int, str] = {}
    for gold in ranked:
        best.setdefault(len(gold), ",".join(gold))
    return name, tuple(best.get(item.wanted, "") for item in items)


def longest_options(items: Sequence[Item]) -> Outputs | None:
    """The letters of the longest options, as many as are asked for; "" for an item without options. None for spans."""
    if any(item.kind == "spans" for item in items) or not any(item.options for item in items):
        return None
    answers = []
    for item in items:
        ranked = sorted(zip(item.letters, item.options, strict=True), key=lambda pair: (-len(pair[1]), pair[0]))
        answers.append(",".join(sorted(letter for letter, _ in ranked[: item.wanted])))
    return tuple(answers)


# --- trained on the split's training rows
def trained_baselines(
    task: Task, training: Sequence[Example], *, home: Path | None, tell: Callable[[str], object] = lambda text: None
) -> dict[str, Outputs]:
    """Answers of every trained baseline that fits the task, by name; taken from ``home`` if they are there.

    ``training`` are the split's training rows: of this task, for spans of all extraction tasks. None that fits, or no
    training row, is {}. ``ModuleNotFoundError`` without scikit-learn.
    """
    if not training:
        return {}
    turns = [item.messages[-1].content for item in task.items]
    names = [DICTIONARY] if task.items[0].kind == "spans" else [N_GRAMS, *([OVERLAP] if is_pair(turns[0]) else [])]
    taught = [(example.messages[0].content, example.answer) for example in training]
    version = "" if names == [DICTIONARY] else _scikit_learn_version()
    path = None
    if home is not None:
        key = hash_json([VERSION, version, names, taught, turns])[:16]
        path = Path(home) / "baselines" / f"{task.name}-{key}.json"
        if (kept := _read(path, names=names, number=len(turns))) is not None:
            return kept
    tell(f"{task.name}: baselines learn from {len(training):,} rows, once")
    found = {name: tuple(_train(name, taught, turns)) for name in names}
    if path is not None:
        write_json(path, {"task": task.name, "answers": found})
    return found


def _train(name: str, taught: Sequence[tuple[str, str | list[str]]], turns: Sequence[str]) -> list[str]:
    if name == DICTIONARY:
        return dictionary_baseline([(turn, spans) for turn, spans in taught if not isinstance(spans, str)], turns)
    rows = [(turn, letter) for turn, letter in taught if isinstance(letter, str)]
    return ngram_baseline(rows, turns) if name == N_GRAMS else overlap_baseline(rows, turns)


def _scikit_learn_version() -> str:
    try:
        return importlib.metadata.version("scikit-learn")
    except importlib.metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(
            "trained baselines need scikit-learn: pip install 'ncvc[quality]', or set scoring.baselines=false."
        ) from error


def _read(path: Path, *, names: Sequence[str], number: int) -> dict[str, Outputs] | None:
    """Kept answers, or None where there are none or the file is damaged."""
    try:
        answers = json.loads(path.read_text(encoding="utf-8"))["answers"]
        found = {name: tuple(answers[name]) for name in names}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = all(len(each) == number and all(isinstance(text, str) for text in each) for each in found.values())
    return found if whole else None
