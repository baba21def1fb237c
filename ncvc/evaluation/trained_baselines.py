"""Baselines without a language model, trained on the rows that a model may be tuned on: what surface alone is worth.

- ``character n-grams``: TF-IDF of character 1- to 4-grams and class-balanced logistic regression (scikit-learn).
  Questions with a fixed wording (smdis asks about 8 symptoms, rrtnm about T, N and M) get a model each, for in a linear
  model the wording could only shift all answers alike; questions that name something of their own (crade) share one.
- ``sentence overlap``: ten measures of how alike the two sentences of a pair are, and the same regression (jcsts).
- ``dictionary``: spans that were right in training rows which asked the same, found in the passage, longest first. Only
  spans that are right in at least a fifth of the training passages that hold them: F1 is highest where the worst span
  kept is right half as often as the F1 reached (Lipton et al. 2014), and that is about 0.4.

Answers come as text in the form a model gives, so they are scored like a model's. Deterministic; where the training
rows have one class only, it is the answer. Costs on one core: 3 s for smdis (15,260 rows), 10 s for crade and jcsts,
under 5 s for the others; `ncvc.evaluation.baselines` keeps the answers. Needs scikit-learn. Does not: tune anything,
least of all on test rows.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ncvc.evaluation.jmed_llm import passage_of
from ncvc.evaluation.spans import write_spans

VERSION = 1
"""Of the rules below: kept answers of another version are not used."""

N_GRAMS = "character n-grams"
OVERLAP = "sentence overlap"
DICTIONARY = "dictionary"

_OWN_MODEL = 30  # training rows of one wording from which on it gets a model of its own
_PRECISION = 0.2
_FIRST_OPTION = "\nA. "
_PAIR = re.compile(r"\nS1: (.*?)\nS2: (.*)\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Question:
    """A user turn taken apart: ``text`` without instruction and options, its ``wording`` and its ``passage``.

    ``wording`` is what stands before the passage in 「…」, or nothing where there is no passage.
    """

    text: str
    wording: str
    passage: str

    @property
    def asked(self) -> str:
        """The wording without the kind of document it names first, so that the same question to another is equal."""
        return self.wording.rpartition("、")[2]


def question_of(turn: str) -> Question:
    """The question in a user turn of `ncvc.evaluation.jmed_llm`: instruction line, question, lines of options."""
    text = turn.partition("\n")[2] or turn
    if (end := text.rfind(_FIRST_OPTION)) > 0:
        text = text[:end]
    passage = passage_of(text)
    if passage is None:
        return Question(text, "", "")
    return Question(text, text[: text.rindex(f"\n「{passage}」")], passage)


def ngram_baseline(train: Sequence[tuple[str, str]], test: Sequence[str]) -> list[str]:
    """A letter for each of the user turns ``test``, learned from (user turn, letter).

    ``ValueError`` without training rows, ``ModuleNotFoundError`` without scikit-learn.
    """
    _require(train)
    taught = [(question_of(turn), letter) for turn, letter in train]
    asked = [question_of(turn) for turn in test]
    rows: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for question, letter in taught:
        rows[question.wording].append((question.passage, letter))
    own = {wording for wording, found in rows.items() if wording and len(found) >= _OWN_MODEL}
    answers = [""] * len(asked)
    places: dict[str | None, list[int]] = defaultdict(list)
    for place, question in enumerate(asked):
        places[question.wording if question.wording in own else None].append(place)
    for wording, chosen in places.items():
        if wording is None:
            found = _classified(
                [(question.text, letter) for question, letter in taught], [asked[p].text for p in chosen]
            )
        else:
            found = _classified(rows[wording], [asked[p].passage for p in chosen])
        for place, letter in zip(chosen, found, strict=True):
            answers[place] = letter
    return answers


def overlap_baseline(train: Sequence[tuple[str, str]], test: Sequence[str]) -> list[str]:
    """A letter for each pair of sentences; as `ngram_baseline`. ``ValueError`` for a turn that holds no S1 and S2."""
    _require(train)
    if len(only := {letter for _, letter in train}) == 1:
        return [*only] * len(test)
    with _scikit_learn():
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

    features = np.array([_overlap(turn) for turn, _ in train])
    # Right only with scaled features; 1,000 iterations are a bound that 10 features never meet.
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    model.fit(features, [letter for _, letter in train])
    return [str(letter) for letter in model.predict(np.array([_overlap(turn) for turn in test]))] if test else []


def is_pair(turn: str) -> bool:
    """Whether a user turn asks about two sentences S1 and S2."""
    return _PAIR.search(question_of(turn).text) is not None


def dictionary_baseline(train: Sequence[tuple[str, Sequence[str]]], test: Sequence[str]) -> list[str]:
    """A list of spans, written, for each of the user turns ``test``, learned from (user turn, right spans)."""
    _require(train)
    golds: dict[str, Counter[str]] = defaultdict(Counter)
    passages: dict[str, list[str]] = defaultdict(list)
    for turn, spans in train:
        question = question_of(turn)
        passages[question.asked].append(question.passage)
        golds[question.asked].update({span for span in spans if span.strip()})
    chosen = {asked: _trusted(golds[asked], passages[asked]) for asked in golds}
    answers = []
    for turn in test:
        question = question_of(turn)
        answers.append(write_spans(_found(question.passage, chosen.get(question.asked, []))))
    return answers


def _trusted(counts: Counter[str], passages: Iterable[str]) -> list[str]:
    """The spans that are right in enough of the passages that hold them, longest first."""
    text = "\0".join(passages)
    whole = sorted(counts, key=lambda span: (-len(span), span))
    held = {span: sum(span in passage for passage in text.split("\0")) for span in whole}
    return [span for span in whole if counts[span] >= _PRECISION * held[span]]


def _found(passage: str, spans: Sequence[str]) -> list[str]:
    """Those of ``spans``, longest first, that stand in the passage outside of longer ones, in the passage's order."""
    if not spans:
        return []
    pattern = re.compile("|".join(map(re.escape, spans)))  # the first alternative that fits is the longest
    return list(dict.fromkeys(match[0] for match in pattern.finditer(passage)))


def _classified(train: Sequence[tuple[str, str]], test: Sequence[str]) -> list[str]:
    if len(only := {letter for _, letter in train}) == 1:
        return [*only] * len(test)
    with _scikit_learn():
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

    # min_df 2: a gram of one row alone is most of the memory and says nothing of others
    texts = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), min_df=2 if len(train) > 2 else 1, dtype=np.float32)
    try:
        features = texts.fit_transform([text for text, _ in train])
    except ValueError:  # no gram stands in two rows
        features = texts.set_params(min_df=1).fit_transform([f"{text}\n" for text, _ in train])
    model = LogisticRegression(class_weight="balanced", max_iter=300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # stopping at 300 iterations is as good a baseline
        model.fit(features, [letter for _, letter in train])
    return [str(letter) for letter in model.predict(texts.transform(test))]


def _overlap(turn: str) -> list[float]:
    """Ten measures of how alike the two sentences of a turn are."""
    found = _PAIR.search(question_of(turn).text)
    if found is None:
        raise ValueError(f"this turn asks about no two sentences S1 and S2: {turn[:80]!r}")
    first, second = found[1].strip(), found[2].strip()
    grams = [
        ({first[p : p + size] for p in range(len(first) - size + 1)},
         {second[p : p + size] for p in range(len(second) - size + 1)})
        for size in (1, 2, 3, 4)
    ]  # fmt: skip
    matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
    longest = matcher.find_longest_match().size
    shorter, longer = sorted((len(first), len(second)))
    figures = [set(re.findall(r"\d+", text)) for text in (first, second)]
    return [
        *(len(one & two) / max(1, len(one | two)) for one, two in grams),
        len(grams[0][0] & grams[0][1]) / max(1, min(len(grams[0][0]), len(grams[0][1]))),
        matcher.ratio(),
        longest / max(1, shorter),
        shorter / max(1, longer),
        float(figures[0] == figures[1]),
        float(first[-2:] == second[-2:]),
    ]


def _require(train: Sequence[Any]) -> None:
    if not train:
        raise ValueError("a trained baseline needs training rows, and there are none; set another split.")


@contextlib.contextmanager
def _scikit_learn() -> Iterator[None]:
    """What is imported inside is scikit-learn; its absence is told with the cure."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"trained baselines need scikit-learn ({error.name} is missing): pip install 'ncvc[quality]', or set "
            "scoring.baselines=false."
        ) from error
