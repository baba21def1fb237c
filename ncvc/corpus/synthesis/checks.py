"""What a synthesized text must be before it becomes a document, and the examination question inside an answer.

What it does: `check` gives the first reason (one of `REASONS`) against an answer, with a detail to read;
`parse_exercise` reads question, five options, answer letters and explanation out of free text and refuses what is not
complete; `Duplicates` finds texts that are the same, or nearly (character 5-grams), as ones seen before.

What it costs: 5-10 MB of UTF-8 per second (measured). What it does not do: judge whether the text is true.
Checking for hallucinations needs a reader (R116).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

NO_ANSWER = "no answer"
EMPTY = "empty"
BROKEN_CHARACTERS = "broken characters"
CUT_OFF = "cut off"
REFUSAL = "refusal"
CHAT_MARKS = "chat marks"
IN_ENGLISH = "answered in English"
NOT_JAPANESE = "not Japanese"
TOO_SHORT = "too short"
TOO_LONG = "too long"
REPETITION = "repetition"
NO_TOPIC = "topic not mentioned"
FORMAT = "format"
DUPLICATE = "duplicate"
NEAR_DUPLICATE = "near duplicate"
REASONS = (
    NO_ANSWER, EMPTY, BROKEN_CHARACTERS, CUT_OFF, REFUSAL, CHAT_MARKS, IN_ENGLISH, NOT_JAPANESE, TOO_SHORT, TOO_LONG,
    REPETITION, NO_TOPIC, FORMAT, DUPLICATE, NEAR_DUPLICATE,
)  # fmt: skip
"""Every reason for rejecting an answer, in the order in which they are looked for."""

LETTERS = "abcde"
_WIDE = str.maketrans({0xFF21 + n: chr(97 + n) for n in range(26)} | {0xFF41 + n: chr(97 + n) for n in range(26)})

_SPACE = re.compile(r"\s+")
_JAPANESE = re.compile(
    r"[\u3001-\u3003\u3005-\u3007\u300c-\u300f\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uff66-\uff9f]+"
)
_KANA = re.compile(r"[\u3041-\u3096\u30a1-\u30fa\u30fc\uff66-\uff9d]+")
_LATIN = re.compile(r"[A-Za-zＡ-Ｚａ-ｚ]+")
_BROKEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd\ufffe\uffff\ue000-\uf8ff]")
_CHAT = re.compile(
    r"<\|[^|\n]{1,40}\|>|\[/?INST\]|<</?SYS>>|</?(?:s|think)>|^#{2,3} ?(?:指示|応答|入力|Instruction|Response)", re.M
)
_BRACKETED = re.compile(r"[「『（(〔\[【][^「『（(〔\[【」』）)〕\]】]*[」』）)〕\]】]")
_NGRAM, _LOOP_NGRAM = 5, 12


class BadExercise(ValueError):
    """An answer that holds no complete examination question; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Exercise:
    """One examination question: `options` a to e, `answer` the right letters in order."""

    question: str
    options: tuple[str, ...]
    answer: tuple[str, ...]
    explanation: str

    @property
    def text(self) -> str:
        """The document: the layout in which the examinations' questions are asked of models, then the explanation."""
        options = "\n".join(f"{letter}: {option}" for letter, option in zip(LETTERS, self.options, strict=True))
        return f"問題: {self.question}\n{options}\n答え: {','.join(self.answer)}\n解説: {self.explanation}"

    @property
    def record(self) -> dict[str, object]:
        """The parts as plain JSON values."""
        return {
            "question": self.question,
            "options": dict(zip(LETTERS, self.options, strict=True)),
            "answer": list(self.answer),
            "explanation": self.explanation,
        }


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """`synthesis.checks` of the configuration; shares are of the characters that are not white space."""

    minimum_characters: int
    maximum_characters: int
    minimum_japanese: float
    minimum_kana: float
    maximum_latin: float
    maximum_repetition: float
    near_duplicate: float
    mention_topic: bool
    refusals: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("minimum_japanese", "minimum_kana", "maximum_latin", "maximum_repetition", "near_duplicate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"synthesis.checks.{name}={getattr(self, name)}: is a share; set it from 0 to 1.")
        if not 0 <= self.minimum_characters <= self.maximum_characters:
            raise ValueError(
                f"synthesis.checks.minimum_characters={self.minimum_characters} and maximum_characters="
                f"{self.maximum_characters}: no text has both; set 0 <= minimum <= maximum."
            )
        object.__setattr__(self, "refusals", tuple(self.refusals))
        for pattern in self.refusals:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"synthesis.checks.refusals: {pattern!r} is no regular expression ({error}); mend it."
                ) from error


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why an answer is no document: one of `REASONS`, and what was seen."""

    reason: str
    detail: str = ""


def tidy(text: str) -> str:
    """The answer without what wraps it: code fences, white space at line ends and around, runs of empty lines."""
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    text = "\n".join(line for line in lines if not re.fullmatch(r"\s*```\w*", line))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def check(
    text: str, *, finish_reason: str | None, topic: str, exercise: bool, settings: CheckSettings
) -> Rejection | Exercise | str:
    """The document in `text` (an `Exercise`, or a tidy text), or the first reason against it. Duplicates come later."""
    text = tidy(text)
    if not text:
        return Rejection(EMPTY)
    if broken := _BROKEN.search(text):
        return Rejection(BROKEN_CHARACTERS, f"U+{ord(broken[0]):04X} at {broken.start()}")
    if finish_reason not in (None, "stop"):
        return Rejection(CUT_OFF, f"finish_reason {finish_reason}: ...{text[-30:]}")
    if refusal := _refusal(text, settings):
        return Rejection(REFUSAL, refusal)
    if mark := _CHAT.search(text):
        return Rejection(CHAT_MARKS, mark[0])
    if rejection := _language(text, settings) or _size(text, settings):
        return rejection
    if settings.mention_topic and not mentions(text, topic=topic):
        return Rejection(NO_TOPIC, topic)
    if not exercise:
        return text
    try:
        return parse_exercise(text)
    except BadExercise as error:
        return Rejection(FORMAT, str(error))


def _refusal(text: str, settings: CheckSettings) -> str | None:
    """A refusal in the first or last 200 characters: in between the words may belong to the matter."""
    ends = text if len(text) <= 400 else text[:200] + "\n" + text[-200:]
    return next((match[0] for pattern in settings.refusals if (match := re.search(pattern, ends))), None)


def _count(pattern: re.Pattern[str], text: str) -> int:
    return sum(map(len, pattern.findall(text)))


def _language(text: str, settings: CheckSettings) -> Rejection | None:
    characters = max(1, len(_SPACE.sub("", text)))
    japanese, kana, latin = (_count(pattern, text) / characters for pattern in (_JAPANESE, _KANA, _LATIN))
    shares = f"{japanese:.2f} Japanese, {kana:.2f} kana, {latin:.2f} Latin letters"
    if latin > settings.maximum_latin and latin > japanese:
        return Rejection(IN_ENGLISH, shares)
    if japanese < settings.minimum_japanese or kana < settings.minimum_kana or latin > settings.maximum_latin:
        return Rejection(NOT_JAPANESE, shares)
    return None


def _size(text: str, settings: CheckSettings) -> Rejection | None:
    if len(text) < settings.minimum_characters:
        return Rejection(TOO_SHORT, f"{len(text)} characters")
    if len(text) > settings.maximum_characters:
        return Rejection(TOO_LONG, f"{len(text)} characters")
    if (share := repetition(text)) > settings.maximum_repetition:
        return Rejection(REPETITION, f"{share:.2f} of the text was there before")
    return None


def repetition(text: str) -> float:
    """Share of the 12-character windows of `text` that stood in it before: near 1 for a model that loops."""
    plain = _SPACE.sub("", text)
    windows = len(plain) - _LOOP_NGRAM + 1
    return 1 - len({plain[n : n + _LOOP_NGRAM] for n in range(windows)}) / windows if windows > 0 else 0.0


def fold(text: str) -> str:
    """The form in which names are compared: NFKC, lower case, no white space."""
    return _SPACE.sub("", unicodedata.normalize("NFKC", text).casefold())


def mentions(text: str, *, topic: str) -> bool:
    """Whether `text` speaks of `topic`: the whole name, or its core without brackets and strength (a drug's 5mg)."""
    folded = fold(text)
    name = fold(topic)
    if name in folded:
        return True
    core = _BRACKETED.sub("", unicodedata.normalize("NFKC", topic))
    strength = re.search(r"\d", core)
    core = fold(core[: strength.start()] if strength else core)
    return len(core) >= 3 and core in folded


_MARKS = r"[\s#*_\[\]【】「」<>＜＞■●◆・]*"
_QUESTION = re.compile(
    rf"^{_MARKS}(?:問題文?|設問|問)(?=[\s\d０-９:：.．、】\]」>＞*]|$){_MARKS}[\d０-９]*{_MARKS}[:：.．、]?{_MARKS}"
)
_OPTION = re.compile(
    r"^[\s*・\-]*[(（\[]?([A-Ea-eＡ-Ｅａ-ｅ])\s*(?:[)）\]]|[.．:：、,，]|(?=\s)|\*\*)[\s.．:：、*]*(.*)$"
)
_KEY = re.compile(rf"^{_MARKS}(?:正解|正答|解答|答え|回答|答)(?:は|の選択肢|選択肢|番号)*{_MARKS}[:：.．、]?{_MARKS}")
_REASON = re.compile(rf"^{_MARKS}(?:解説|説明|理由)(?=[\s:：.．】\]」>＞*]|$){_MARKS}[:：.．、]?{_MARKS}")
_BETWEEN = r"(?:[\s,，、・.と/&)）(（]|および|及び|and)*"
_LETTER_ENDS = r"(?=$|[\s,，、・.．)）」』と/&のがで]|および|及び|[a-e](?![a-z]))"  # b型肝炎 is no further answer
_CHOSEN = re.compile(rf"^[\s(（「『*]*([a-e](?:{_BETWEEN}[a-e]{_LETTER_ENDS})*)(?![a-z])")


def parse_exercise(text: str) -> Exercise:
    """The one examination question in `text`: 問題, options a to e, 答え, 解説, each from its own line on.

    Labels may be written as models like to (全角, brackets, bold). Raises BadExercise when a part is missing, options
    are not five or not distinct, the answer names no option, or there is more than one question.
    """
    parts: dict[str, list[str]] = {"question": [], "key": [], "reason": []}
    options: list[list[str]] = []
    section, headed = "question", False
    for line in text.split("\n"):
        if section == "question" and not options and (match := _QUESTION.match(line)):
            parts["question"] = [*(parts["question"] if headed else ()), line[match.end() :]]
            headed = True
        elif section in ("key", "reason") and _QUESTION.match(line):
            raise BadExercise("more than one question")
        elif section == "question" and len(options) < 5 and (letter := _next_option(line, len(options))) is not None:
            options.append([letter])
        elif len(options) == 5 and section == "question" and (match := _KEY.match(line)):
            section = "key"
            parts["key"].append(line[match.end() :])
        elif section == "key" and (match := _REASON.match(line)):
            section = "reason"
            parts["reason"].append(line[match.end() :])
        elif section == "question" and options:
            options[-1].append(line)
        else:
            parts[section].append(line)
    return _exercise(parts, options)


def _next_option(line: str, number: int) -> str | None:
    """The text of option `number` if `line` opens it; other letters in that place belong to the text (E. coli)."""
    match = _OPTION.match(line)
    return match[2] if match and match[1].translate(_WIDE).lower() == LETTERS[number] else None


def _exercise(parts: dict[str, list[str]], options: list[list[str]]) -> Exercise:
    question, explanation = _joined(parts["question"]), _joined(parts["reason"])
    chosen = [_joined(lines) for lines in options]
    if len(options) != 5:
        raise BadExercise(f"{len(options)} options a to e in lines of their own instead of 5")
    if len(fold(question)) < 8:
        raise BadExercise(f"no question before option a: {question[:40]!r}")
    if not all(chosen):
        raise BadExercise(f"option {LETTERS[chosen.index('')]} is empty")
    if len({fold(option) for option in chosen}) != 5:
        raise BadExercise("two options are the same")
    key = _joined(parts["key"]).translate(_WIDE).lower()
    letters = sorted(set(match[1].replace("and", "")) & set(LETTERS)) if (match := _CHOSEN.match(key)) else []
    if not letters:
        raise BadExercise(f"the answer names no option: {key[:40]!r}")
    if len(letters) == 5:
        raise BadExercise("the answer names every option")
    if len(fold(explanation)) < 10:
        raise BadExercise("no explanation after the answer")
    return Exercise(question, tuple(chosen), tuple(letters), explanation)


def _joined(lines: Iterable[str]) -> str:
    return "\n".join(plain for line in lines if (plain := line.strip().removeprefix("**").removesuffix("**").strip()))


class Duplicates:
    """Texts seen so far. `near` is the share of common character 5-grams (Jaccard) from which texts are the same."""

    def __init__(self, *, near: float) -> None:
        self._near = near
        self._seen: list[tuple[str, bytes, frozenset[str]]] = []

    def find(self, text: str) -> Rejection | None:
        """Why `text` is a duplicate, naming the earlier one, or None."""
        digest, grams = text_digest(text), _grams(text)
        for name, other, other_grams in self._seen:
            if digest == other:
                return Rejection(DUPLICATE, f"of {name}")
            common = len(grams & other_grams)
            if (share := common / max(1, len(grams) + len(other_grams) - common)) >= self._near:
                return Rejection(NEAR_DUPLICATE, f"{share:.2f} of {name}")
        return None

    def add(self, text: str, *, name: str) -> None:
        """Remember `text` as `name`."""
        self._seen.append((name, text_digest(text), _grams(text)))


def text_digest(text: str) -> bytes:
    """16 bytes that are the same for texts that differ only in width, case and white space."""
    return hashlib.blake2b(fold(text).encode("utf-8", "replace"), digest_size=16).digest()


def _grams(text: str) -> frozenset[str]:
    plain = fold(text)
    return frozenset(plain[n : n + _NGRAM] for n in range(max(1, len(plain) - _NGRAM + 1)))
