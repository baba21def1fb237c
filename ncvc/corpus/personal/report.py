"""How much of marked personal data is found, and how much else is masked with it, beside HojiChar's masker.

What it does: `measure(path, settings=...)` reads JSON lines `{text, phi: [{type, text, start, end}]}` (plain or .gz),
finds personal data in each text and counts, per kind: marks that are overlapped and marks that are covered to the last
letter; masked characters that no mark accounts for. Marks may name only the first of several equal strings, so repeats
of a marked string count as marked. `measure_unmarked(texts, settings=...)` counts masks on text that has no marks.

Costs a few seconds per MB, most of it bookkeeping in Python. Does not judge whether a mark is right, nor what a found
span that is not marked really is.
"""

from __future__ import annotations

import gzip
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ncvc.corpus.personal.masking import KINDS, Masker, PrivacySettings, Span

Finder = Callable[[str], list[Span]]

# The end of a mark's type decides its kind, the first that fits; what fits none is no kind of ours (AGE, EXAM_DATE).
_TYPES = (
    ("HOSPITAL_NAME", ""),
    ("FACILITY_NAME", ""),
    ("ORGANIZATION_NAME", ""),
    ("DATE_OF_BIRTH", "birth_date"),
    ("BIRTH_DATE", "birth_date"),
    ("PHONE", "phone"),
    ("PHONE_NUMBER", "phone"),
    ("FAX", "phone"),
    ("EMAIL", "email"),
    ("MAIL", "email"),
    ("POSTAL_CODE", "post_code"),
    ("ADDRESS", "address"),
    ("PATIENT_ID", "patient_id"),
    ("_ID", "patient_id"),
    ("NAME", "name"),
    ("NAME_KANA", "name"),
    ("NAME_ROMAJI", "name"),
    ("INITIAL", "name"),
)


def kind_of(mark_type: str) -> str:
    """The kind of `KINDS` that a mark's type names (HOSPITAL_PHONE is phone); empty for what is not looked for."""
    if mark_type in KINDS:
        return mark_type
    return next((kind for ending, kind in _TYPES if mark_type.upper().endswith(ending)), "")


@dataclass
class Row:
    """One kind of one masker. Spans are counted in marks, the rest in characters that are not blank."""

    masker: str
    kind: str
    marked: int = 0
    overlapped: int = 0
    covered: int = 0
    masks: int = 0
    masks_of_nothing: int = 0
    masked_characters: int = 0
    unmarked_characters: int = 0

    def figures(self) -> dict[str, Any]:
        """The counts and the shares made of them; a share of nothing is None."""

        def share(part: int, whole: int) -> float | None:
            return round(part / whole, 4) if whole else None

        return {
            **asdict(self),
            "recall_overlapped": share(self.overlapped, self.marked),
            "recall_covered": share(self.covered, self.marked),
            "over_masking": share(self.unmarked_characters, self.masked_characters),
        }


@dataclass
class Report:
    """What `measure` returns: `rows` (one per masker and kind), and the texts' size and the maskers' speed."""

    path: str
    texts: int
    characters: int
    megabytes_per_cpu_second: dict[str, float]
    rows: list[Row] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "path": self.path,
            "texts": self.texts,
            "characters": self.characters,
            "megabytes_per_cpu_second": self.megabytes_per_cpu_second,
            "rows": [row.figures() for row in self.rows],
        }

    def as_table(self) -> str:
        """A table to read."""
        speed = ", ".join(f"{name} {rate:.1f}" for name, rate in self.megabytes_per_cpu_second.items())
        head = f"{'masker':<10}{'kind':<12}{'marked':>7}{'overlapped':>12}{'covered':>9}{'masks':>7}{'of nothing':>12}"
        lines = [
            f"{self.path}: {self.texts} texts, {self.characters:,} characters; MB per CPU second: {speed}",
            head + f"{'over-masking':>14}{'per 1,000':>11}",
        ]
        for row in self.rows:
            figures = row.figures()
            shares = [figures[key] for key in ("recall_overlapped", "recall_covered", "over_masking")]
            overlapped, covered, over = ("-" if share is None else f"{share:.3f}" for share in shares)
            rate = 1000 * row.masks_of_nothing / max(1, self.characters)
            lines.append(
                f"{row.masker:<10}{row.kind:<12}{row.marked:>7}{overlapped:>12}{covered:>9}{row.masks:>7}"
                f"{row.masks_of_nothing:>12}{over:>14}{rate:>11.3f}"
            )
        lines.append(
            "overlapped, covered: share of marks touched, and masked to the last letter; of nothing: masks that touch "
            "no mark;\nover-masking: share of masked characters that no mark accounts for; per 1,000: masks of nothing "
            "per 1,000 characters."
        )
        return "\n".join(lines)


def read_marked(path: str | Path) -> Iterator[tuple[str, list[tuple[str, int, int]]]]:
    """Yield each text and its marks (type, start, end). Raises `ValueError` naming the line of what is no record."""
    path = Path(path)
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                text, marks = record["text"], record["phi"]
                spans = [(mark["type"], mark["start"], mark["end"]) for mark in marks]
                inside = isinstance(text, str) and all(0 <= start < end <= len(text) for _, start, end in spans)
                right = inside and all(
                    "text" not in mark or text[mark["start"] : mark["end"]] == mark["text"] for mark in marks
                )
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}: no record of the form "
                    f'{{"text": ..., "phi": [{{"type", "start", "end"}}]}} ({error!r})'
                ) from error
            if not right:
                raise ValueError(
                    f"{path}, line {number}: its text is no string, or a mark's start and end do not lie on its text; "
                    "correct the line"
                )
            yield text, spans


def hojichar_finder() -> Finder:
    """HojiChar's masker as a finder: it hides the last four digits of a phone number and a mail address's names."""
    try:
        from hojichar.filters.document_filters import MaskPersonalInformation
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "peers=true compares with HojiChar, which is not installed; run: pip install hojichar, or set peers=false"
        ) from error
    peer = MaskPersonalInformation()

    def find(text: str) -> list[Span]:
        phones = [Span(match.end() - 4, match.end(), "phone") for match in peer.phone_pat.finditer(text)]
        masked = peer.phone_pat.sub(r"\1XXXX", text)  # as long as the text
        mails = [Span(match.start(), match.start(1), "email") for match in peer.email_pat.finditer(masked)]
        return sorted(phones + mails)

    return find


def measure(
    path: str | Path,
    *,
    settings: PrivacySettings,
    peers: bool | None = None,
    half: Literal["all", "even", "odd"] = "all",
) -> Report:
    """Measure `settings` on the marked texts of `path`; `half` takes only the texts of even or odd number (from 0).

    With `peers` also HojiChar's masker on the same texts (None: where it is installed). Raises `ValueError` for a file
    without texts, `OSError` for one that cannot be read."""
    texts = list(read_marked(path))
    if half not in ("all", "even", "odd"):
        raise ValueError(f"half={half!r} is not known; set all, even or odd")
    if half != "all":
        texts = texts[half == "odd" :: 2]
    if not texts:
        raise ValueError(f"{path} holds no marked text; give a file of JSON lines with text and phi")
    masker = Masker(settings)
    finders: dict[str, Finder] = {"ncvc": masker.find}
    if peers or (peers is None and find_spec("hojichar") is not None):
        finders["hojichar"] = hojichar_finder()
    speed, rows = {}, []
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text, _ in texts) / 1e6
    for name, find in finders.items():
        find(texts[0][0])  # what opens at first use is not speed
        begun = time.process_time()
        found = [find(text) for text, _ in texts]
        speed[name] = round(size / max(1e-9, time.process_time() - begun), 2)
        rows += _rows(name, texts, found, settings.kinds if name == "ncvc" else ("email", "phone"))
    return Report(str(path), len(texts), sum(len(text) for text, _ in texts), speed, rows)


def _rows(
    name: str, texts: list[tuple[str, list[tuple[str, int, int]]]], found: list[list[Span]], kinds: Iterable[str]
) -> list[Row]:
    rows: dict[str, Row] = {kind: Row(name, kind) for kind in KINDS if kind in set(kinds)}
    for (text, marks), spans in zip(texts, found, strict=True):
        masked = {place for span in spans for place in range(span.start, span.end)}
        for mark_type, start, end in marks:
            row = rows.get(kind_of(mark_type))
            if row is None:
                continue
            letters = [place for place in range(start, end) if text[place].isalnum()]
            row.marked += 1
            row.overlapped += any(place in masked for place in letters)
            row.covered += all(place in masked for place in letters)
        right = _marked_places(text, marks)
        for span in spans:
            row = rows[span.kind]
            letters = [place for place in range(span.start, span.end) if text[place].isalnum()]
            outside = sum(place not in right for place in letters)
            row.masks += 1
            row.masks_of_nothing += outside == len(letters)
            row.masked_characters += len(letters)
            row.unmarked_characters += outside
    return list(rows.values())


def _marked_places(text: str, marks: list[tuple[str, int, int]]) -> set[int]:
    """The places that a mark, or a string equal to a marked one but for blanks, covers."""
    places = {place for _, start, end in marks for place in range(start, end)}
    kept = [place for place, character in enumerate(text) if not character.isspace()]
    dense = "".join(text[place] for place in kept)
    for value in {"".join(text[start:end].split()) for _, start, end in marks}:
        at = dense.find(value)
        while value and at >= 0:
            places.update(kept[at : at + len(value)])
            at = dense.find(value, at + 1)
    return places


def measure_unmarked(texts: Iterable[str], *, settings: PrivacySettings) -> dict[str, Any]:
    """Masks on texts without marks: per kind the number, the number per 1,000 characters, and up to 20 to read."""
    masker = Masker(settings)
    counts: dict[str, int] = defaultdict(int)
    samples: dict[str, list[str]] = defaultdict(list)
    characters = masked = 0
    for text in texts:
        characters += len(text)
        for span in masker.find(text):
            counts[span.kind] += 1
            masked += span.end - span.start
            if len(samples[span.kind]) < 20:
                before, after = text[max(0, span.start - 8) : span.start], text[span.end : span.end + 8]
                shown = f"{before}[{text[span.start : span.end]}]{after}"
                samples[span.kind].append(shown.replace("\n", "⏎"))
    return {
        "characters": characters,
        "masked_share": round(masked / max(1, characters), 6),
        "per_1000_characters": _per_thousand(counts, characters),
        "masks": {kind: counts[kind] for kind in KINDS if counts[kind]},
        "samples": {kind: samples[kind] for kind in KINDS if samples[kind]},
    }


def _per_thousand(counts: Mapping[str, int], characters: int) -> dict[str, float]:
    return {kind: round(1000 * counts[kind] / max(1, characters), 5) for kind in KINDS if counts[kind]}
