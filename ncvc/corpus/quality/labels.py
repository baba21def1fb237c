"""Quality labels by a teacher model: which texts are asked about, the question, the answer held to its form.

A reconstruction: the report tells only that a large language model labelled 100,000 random texts, 94% of them high
(R8), that its prompt and criteria are unclear (R102), and that annotators answered in English or off the point (R103).
Here the sample is the smallest hashes of (seed, id, text): the same for any order of reading, and the beginning of any
larger sample. An answer counts only with one verdict, a quotation that stands in the text, and a reason in Japanese.

Costs a sha256 of every document and the sample's text in memory. Does not ask (see ``label_log``), and does not know
whether a verdict is right: label twice and read the agreement.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ncvc.corpus.characters import SPACE
from ncvc.corpus.documents import Document
from ncvc.randomness import mix
from ncvc.storage import sync
from ncvc.teachers.teacher import Request

SAMPLE_FORMAT = "ncvc-quality-sample-1"
HIGH, LOW = "high", "low"
TEXT_MARK = "{text}"  # where the prompt shows the document

EMPTY, CUT_OFF, TOO_LONG, REFUSED = "empty answer", "cut off", "too long", "refused"
NO_VERDICT, TWO_VERDICTS, NO_QUOTATION, UNRELATED = "no verdict", "two verdicts", "no quotation", "unrelated text"
NO_REASON, NOT_JAPANESE = "no reason", "not Japanese"
REASONS = (
    EMPTY, CUT_OFF, TOO_LONG, REFUSED, NO_VERDICT, TWO_VERDICTS, NO_QUOTATION, UNRELATED, NO_REASON, NOT_JAPANESE,
)  # fmt: skip
"""Every reason for which an answer is rejected."""

QUOTED_CHARACTERS = 6  # so many in a row of a quotation must stand in the text
MOST_CHARACTERS = 2_000  # of an answer; three short lines were asked for

_MARKS = r"(?:(?!\n)[\W_]){0,8}"  # bounded: a hostile answer must not cost minutes
_VERDICT = re.compile(rf"^{_MARKS}判定{_MARKS}?:{_MARKS}(高|低)(?:品質|い|質)?{_MARKS}$", re.MULTILINE)
_QUOTATION = re.compile(rf"^{_MARKS}引用{_MARKS}?:(.*)$", re.MULTILINE)
_REASON = re.compile(rf"^{_MARKS}理由{_MARKS}?:(.*)", re.MULTILINE | re.DOTALL)
_UNFINISHED_THOUGHT = re.compile(r"<think>.*", re.DOTALL)
_REFUSAL = re.compile(r"申し訳(?:ありません|ございません)|お答え(?:でき|いたし)|AI(?:アシスタント)?として")
_NOT_COMPARED = re.compile(r"[\s「」『』\"'“”‘’…*▁]|\.{2,}")
_KANA = re.compile(r"[\u3041-\u3096\u30a1-\u30fa]")
_JAPANESE = re.compile(r"[\u3041-\u3096\u30a1-\u30fa\u3005\u30fc\u3400-\u4dbf\u4e00-\u9fff]")


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """How a sample is chosen and asked about; ``conf/judge.yaml`` has the values.

    ``documents`` are labelled, ``repeated_documents`` of them a second time. ``prompt`` shows the first
    ``max_characters`` of a text where ``{text}`` stands. A rejected answer is asked again up to ``attempts`` times in
    all. ``give_up_after`` documents without one valid answer end the run. ``batch_size`` requests are synced at once.
    """

    documents: int
    repeated_documents: int
    seed: int
    prompt: str
    max_characters: int
    attempts: int
    max_tokens: int
    temperature: float
    batch_size: int
    give_up_after: int

    def __post_init__(self) -> None:
        found = []
        for name in ("documents", "max_characters", "attempts", "max_tokens", "batch_size", "give_up_after"):
            if getattr(self, name) < 1:
                found.append(f"labels.{name}={getattr(self, name)}: must be at least 1; conf/judge.yaml has a value.")
        if not 0 <= self.repeated_documents <= self.documents:
            found.append(
                f"labels.repeated_documents={self.repeated_documents}: only documents of the sample are labelled "
                f"again; set 0 to labels.documents={self.documents}."
            )
        if self.prompt.count(TEXT_MARK) != 1:
            found.append(
                f"labels.prompt holds {TEXT_MARK} {self.prompt.count(TEXT_MARK)} times, but the text is shown once; "
                f"write {TEXT_MARK} where it belongs."
            )
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            found.append(f"labels.temperature={self.temperature}: must be 0 or more; set 0 for the likeliest answer.")
        if found:
            raise ValueError("\n".join(found))


@dataclass(frozen=True, slots=True)
class SampledDocument:
    """A document of the sample: its id, the beginning of its text, how long it is, the whole text's hash.

    ``key`` is a hash of seed, id and whole text.
    """

    key: str
    id: str
    text: str
    text_sha256: str
    characters: int


@dataclass(frozen=True, slots=True)
class Sample:
    """The chosen documents in the order of their keys, and how many there were to choose from."""

    documents: tuple[SampledDocument, ...]
    seen: int


def choose_sample(documents: Iterable[Document], *, size: int, seed: int, keep_characters: int) -> Sample:
    """The ``size`` documents with the smallest hash of (seed, id, text), whatever their order; copies count once.

    Keeps the first ``keep_characters`` of each text. Raises ``ValueError`` when there is no document.
    """
    chosen: list[tuple[int, SampledDocument]] = []  # a heap whose top has the largest hash
    held: set[str] = set()
    seen = 0
    for document in documents:
        seen += 1
        of_text = hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).hexdigest()
        key = hashlib.sha256(f"{seed}\0{document.id}\0{of_text}".encode("utf-8", "surrogatepass")).hexdigest()
        rank = -int(key, 16)
        if key in held or (len(chosen) == size and rank < chosen[0][0]):
            continue
        name, beginning = document.id.encode("utf-8", "replace").decode(), document.text[:keep_characters]
        item = (rank, SampledDocument(key, name, beginning, of_text, len(document.text)))
        held.add(key)
        if len(chosen) < size:
            heapq.heappush(chosen, item)
        else:
            held.discard(heapq.heapreplace(chosen, item)[1].key)
    if not chosen:
        raise ValueError("the sample to label is empty: the source gave no document; name another source.")
    return Sample(tuple(sorted((document for _, document in chosen), key=lambda found: found.key)), seen)


def cleaned_sample(sample: Sample, *, cleaner: Callable[[str], str], keep_characters: int) -> Sample:
    """The sample with its texts cleaned and cut; documents of which nothing is left are left out.

    Raises ``ValueError`` when nothing is left of any.
    """
    texts = ((document, cleaner(document.text)[:keep_characters]) for document in sample.documents)
    documents = tuple(replace(document, text=text) for document, text in texts if text.strip(SPACE + "\n "))
    if not documents:
        raise ValueError(
            f"cleaning left nothing of the {len(sample.documents)} documents of the sample; name another source."
        )
    return Sample(documents, sample.seen)


def write_sample(path: Path, sample: Sample, *, recipe: Mapping[str, Any]) -> None:
    """Keep a sample as JSONL, whole or not at all; the first row says how it was chosen."""
    head = {"format": SAMPLE_FORMAT, "recipe": dict(recipe), "seen": sample.seen, "documents": len(sample.documents)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8", errors="replace") as handle:
        for row in (head, *map(asdict, sample.documents)):
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")
    sync(partial)
    partial.replace(path)


def read_sample(path: Path, *, recipe: Mapping[str, Any]) -> Sample | None:
    """The sample in ``path``; None if there is none that was chosen like this, or it cannot be read."""
    try:
        head, *rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
        if head["format"] == SAMPLE_FORMAT and head["recipe"] == dict(recipe) and head["documents"] == len(rows):
            return Sample(tuple(SampledDocument(**row) for row in rows), head["seen"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # chosen again: it costs one reading of the source
    return None


# --- the question and its answer


@dataclass(frozen=True, slots=True)
class Verdict:
    """A valid answer."""

    label: str
    quotation: str
    reason: str


def shown_text(text: str, *, settings: LabelSettings) -> str:
    """What the teacher sees of a text: its beginning, without the lines ``===...`` that frame a text in the prompt."""
    shown = text.replace(SPACE, " ")[: settings.max_characters]
    for line in map(str.strip, settings.prompt.splitlines()):
        while line.startswith("===") and line in shown:
            shown = shown.replace(line, "")
    return shown


def request_for(document: SampledDocument, *, settings: LabelSettings, repetition: int, attempt: int) -> Request:
    """The question about one document; its seed is a function of the document, the repetition and the attempt."""
    content = settings.prompt.replace(TEXT_MARK, shown_text(document.text, settings=settings))
    return Request(
        messages=[{"role": "user", "content": content}],
        seed=mix(settings.seed, int(document.key[:16], 16), repetition, attempt) & 0x7FFFFFFF,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
    )


def parse_answer(text: str, *, shown: str) -> Verdict | str:
    """The verdict of an answer about the text ``shown``, or the reason (one of ``REASONS``) why it has none."""
    if not text.strip():
        return EMPTY
    spoken = _UNFINISHED_THOUGHT.sub("", text.rpartition("</think>")[2]).strip()
    if not spoken:
        return CUT_OFF  # it never stopped thinking
    if len(spoken) > MOST_CHARACTERS:
        return TOO_LONG
    folded = unicodedata.normalize("NFKC", spoken)
    verdicts = set(_VERDICT.findall(folded))
    if not verdicts:
        return REFUSED if _REFUSAL.search(folded) else NO_VERDICT if _is_japanese(folded) else NOT_JAPANESE
    if len(verdicts) > 1:
        return TWO_VERDICTS
    quotation = _first(_QUOTATION, folded)
    reason = _first(_REASON, folded)
    if not quotation:
        return NO_QUOTATION
    if not _is_quoted(quotation, shown):
        return UNRELATED
    if not reason:
        return NO_REASON
    if not _is_japanese(reason):
        return NOT_JAPANESE
    return Verdict(HIGH if verdicts == {"高"} else LOW, quotation, reason)


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[1].strip().strip("*").strip() if found else ""


def _is_japanese(text: str) -> bool:
    """At least half of the letters are kana or kanji, and there is kana: a Chinese sentence has none."""
    letters = sum(map(str.isalpha, text))
    return bool(_KANA.search(text)) and 2 * len(_JAPANESE.findall(text)) >= letters


def _is_quoted(quotation: str, shown: str) -> bool:
    quoted, text = (_NOT_COMPARED.sub("", unicodedata.normalize("NFKC", part)) for part in (quotation, shown))
    size = min(QUOTED_CHARACTERS, len(text))
    return any(quoted[start : start + size] in text for start in range(len(quoted) - size + 1))
