"""IgakuQA's scores: points as the published scorer counts them, and beside it a corrected count (R84, R86, R128, R129).

As published: the answer is cut at commas and, sorted, has to equal the sorted right answer as a list; nothing is
stripped, so "a, b" is wrong where "a,b" is right. A hit earns the question's points (0, 1 or 3), there is no part
credit, 116A71 is right whatever is answered, and 112B30 accepts exactly a or exactly d. This reproduces the published
points of GPT-4, ChatGPT, GPT-3 and the students' majority.

Corrected: letters and numbers are read from free text (``answer_reading``: NFKC, any order, blanks, "答え: b"). What
names no answer is a refusal, counted apart. Numbers are compared as numbers; the boxes 解答：①.② say where the decimal
point of a stored "04" belongs. Both exceptions stay, since they are the examination's. Questions of zero points count
neither way. The share that needs no picture, and options chosen that fail a candidate (禁忌肢), are told too.

Costs: 0.3 s for 2,000 answers. Does not: read files, ask, or say whether a score is above chance.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from ncvc.evaluation.answer_reading import read_choice, read_letters, read_number
from ncvc.evaluation.item import Item

ALWAYS_RIGHT = ("116A71",)
"""Right whatever is answered; all its letters are ``alternatives`` of its item."""
EITHER_RIGHT = {"112B30": ("a", "d")}

_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}

Points = dict[str, Any]


def folded(output: str) -> str:
    """Raw output as the published generation scripts hand it to their scorer: full-width ASCII halved, lower case."""
    return output.translate(_HALF_WIDTH).lower()


def is_right_as_published(item: Item, prediction: str) -> bool:
    """The published rule for one question; ``prediction`` is taken as it is (see ``folded``)."""
    answer = sorted(prediction.split(","))
    if item.id in ALWAYS_RIGHT:
        return True
    if item.id in EITHER_RIGHT and answer in [[letter] for letter in EITHER_RIGHT[item.id]]:
        return True
    return answer == sorted(item.metadata.get("published_answer", item.gold))


def igakuqa_points(items: Iterable[Item], predictions: Mapping[str, str | None]) -> Points:
    """The published score of ``predictions`` by question id, each scored as it is.

    Returns points, total (the points there are, which the report calls number of problems), percent (of the points),
    correct, questions and accuracy (of the questions, zero-point ones too), missing (no prediction, or None: earns
    nothing, 116A71 included).
    """
    chosen = list(items)
    _check(chosen)
    given = [predictions.get(item.id) for item in chosen]
    right = [
        prediction is not None and is_right_as_published(item, prediction)
        for item, prediction in zip(chosen, given, strict=True)
    ]
    return {
        **_sums([(item, item.points * hit, hit) for item, hit in zip(chosen, right, strict=True)]),
        "missing": sum(prediction is None for prediction in given),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionScore:
    """The corrected score of one question.

    ``value`` are the points it earned; ``answer`` what was read, letters or one number; ``refused``: there is an
    output but no answer in it; ``missing``: there is no output; ``kinki``: chosen options that fail a candidate.
    """

    id: str
    value: float
    right: bool
    refused: bool
    missing: bool
    answer: tuple[str, ...] = ()
    kinki: tuple[str, ...] = ()


def question_score(item: Item, output: str | None) -> QuestionScore:
    """The corrected score of the raw ``output`` (None: the model was not reached, or failed)."""
    if output is None:
        return QuestionScore(id=item.id, value=0.0, right=False, refused=False, missing=True)
    answer = _read(item, output)
    accepted = (item.gold, *item.alternatives)
    if item.id in ALWAYS_RIGHT:
        right = True
    elif answer is None:
        right = False
    elif item.kind == "number":
        right = _same_number(answer[0], item)
    else:
        right = any(sorted(answer) == sorted(gold) for gold in accepted)
    fatal = item.metadata.get("kinki", ())
    return QuestionScore(
        id=item.id,
        value=float(item.points * right),
        right=right,
        refused=answer is None,
        missing=False,
        answer=answer or (),
        kinki=tuple(letter for letter in answer or () if item.kind != "number" and letter in fatal),
    )


def corrected_points(items: Iterable[Item], outputs: Mapping[str, str | None]) -> Points:
    """The corrected score of raw ``outputs`` by question id.

    Returns points, total, percent; correct, questions and accuracy over questions that have points; refused and
    refusal_rate (of the answered), answered, missing; kinki_options chosen, kinki_questions with one; text_only: the
    same sums over the questions that need no picture.
    """
    chosen = list(items)
    _check(chosen)
    scores = [question_score(item, outputs.get(item.id)) for item in chosen]
    earned = [(item, score.value, score.right) for item, score in zip(chosen, scores, strict=True) if item.points]
    answered = sum(not score.missing for score in scores)
    refused = sum(score.refused for score in scores)
    return {
        **_sums(earned),
        "answered": answered,
        "missing": len(scores) - answered,
        "refused": refused,
        "refusal_rate": refused / answered if answered else None,
        "kinki_options": sum(len(score.kinki) for score in scores),
        "kinki_questions": sum(bool(score.kinki) for score in scores),
        "text_only": _sums([entry for entry in earned if entry[0].text_only]),
    }


def igakuqa_scores(items: Sequence[Item], outputs: Mapping[str, str | None]) -> dict[str, Points]:
    """Both scores of raw outputs, {"as_published": ..., "corrected": ...}; as published after the published folding."""
    predictions = {name: None if output is None else folded(output) for name, output in outputs.items()}
    return {"as_published": igakuqa_points(items, predictions), "corrected": corrected_points(items, outputs)}


def by_block(items: Iterable[Item]) -> dict[str, list[Item]]:
    """The items of each exam block, "112A" ..., in order."""
    blocks: dict[str, list[Item]] = {}
    for item in items:
        blocks.setdefault(item.group, []).append(item)
    return dict(sorted(blocks.items()))


def _check(items: Sequence[Item]) -> None:
    if not items:
        raise ValueError("IgakuQA's score of no question is undefined; give at least one.")
    if wrong := next((item for item in items if item.kind == "spans"), None):
        raise ValueError(
            f"item {wrong.id} of task {wrong.task} asks for spans, and IgakuQA scores letters and numbers."
        )


def _sums(earned: Sequence[tuple[Item, float, bool]]) -> Points:
    """Sums over (item, points earned, right); shares of nothing are None."""
    points, total = sum(value for _, value, _ in earned), sum(item.points for item, _, _ in earned)
    correct = sum(right for _, _, right in earned)
    return {
        "points": int(points),
        "total": total,
        "percent": 100 * points / total if total else None,
        "correct": correct,
        "questions": len(earned),
        "accuracy": correct / len(earned) if earned else None,
    }


def _read(item: Item, output: str) -> tuple[str, ...] | None:
    """What the output answers, or None."""
    if item.kind == "number":
        number = read_number(output)
        return None if number is None else (number,)
    if item.kind == "choice":
        letter = read_choice(output, item.letters, options=item.options)
        return None if letter is None else (letter,)
    letters = read_letters(output, item.letters, item.wanted)
    return None if letters is None else tuple(sorted(letters))


def _same_number(answer: str, item: Item) -> bool:
    """Whether the number read is one of the item's; stored digits that stand for another number count as written."""
    if answer == item.gold[0]:
        return True
    wanted = [gold[0] for gold in item.alternatives] or [item.gold[0]]
    found = _decimal(answer)
    return found is not None and any(found == _decimal(text) for text in wanted)


def _decimal(text: str) -> Decimal | None:
    try:
        number = Decimal(unicodedata.normalize("NFKC", text).replace(",", "").strip())
    except InvalidOperation:
        return None
    return number if number.is_finite() else None
