"""Personal data found and masked or removed (beyond the report, which only removes phone numbers and mail addresses).

What it does: `find_personal_data` lists the phone numbers, mail addresses, post codes, addresses, person names, patient
numbers and dates of birth of a text, as offsets into it, full-width or half-width, raw or cleaned (U+2581 for a space).
`Masker(settings)(text)` replaces each by a label (〈電話番号〉) or removes it, and counts. What a document once shows
with its label is masked wherever it stands again: a patient number, a full name, a date of birth in another notation.
Masking is idempotent, and the labels pass the cleaner unchanged.

What it costs: on one core about 15 MB of UTF-8 per second of ordinary text for every kind, 30 for contacts alone, 4 on
short reports full of personal data; 100 MB of mapped dictionary with `analyzer_names`. What it does not do: measure the
risk of re-identification, find names without label, title or reading (or values on the line below their label), or
touch ages, visit dates and hospital names.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from ncvc.corpus.personal import addresses as personal_addresses
from ncvc.corpus.personal import contacts as personal_contacts
from ncvc.corpus.personal import kinds as personal_data
from ncvc.corpus.personal import name_lists
from ncvc.corpus.personal import names as personal_names
from ncvc.corpus.personal.kinds import KINDS, MASKS, Span, fold
from ncvc.corpus.personal.names import SurnameDictionary

VERSION = "1"
ROUNDS = 8
__all__ = ["KINDS", "MASKS", "Masked", "Masker", "PrivacySettings", "Span", "find_personal_data"]


@dataclass(frozen=True, kw_only=True)
class PrivacySettings:
    """Which kinds are looked for and what becomes of them; see `conf/privacy`.

    `partial_addresses`: a prefecture with its city, or a city, counts without a block number. `analyzer_names`:
    surnames that are not in the list are looked up in Sudachi's dictionary `analyzer_dictionary`."""

    kinds: tuple[str, ...]
    action: Literal["mask", "remove"] = "mask"
    partial_addresses: bool = True
    analyzer_names: bool = False
    analyzer_dictionary: str = "core"

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple(self.kinds))
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown:
            raise ValueError(
                f"privacy.kinds={list(self.kinds)} names no kind {unknown[0]!r}; choose from {', '.join(KINDS)}"
            )
        if len(set(self.kinds)) != len(self.kinds):
            raise ValueError(f"privacy.kinds={list(self.kinds)} names a kind twice; name each once")
        if self.action not in ("mask", "remove"):
            raise ValueError(f"privacy.action={self.action!r} is not known; set mask (a label stays) or remove")
        if self.analyzer_dictionary not in ("core", "small", "full"):
            raise ValueError(
                f"privacy.analyzer_dictionary={self.analyzer_dictionary!r} is not a Sudachi dictionary; "
                "set core, small or full"
            )


@dataclass(frozen=True, slots=True)
class Masked:
    """A text without its personal data, and how many pieces of each kind were taken out."""

    text: str
    counts: dict[str, int] = field(default_factory=dict)


def find_personal_data(
    text: str,
    *,
    kinds: Iterable[str] = KINDS,
    partial_addresses: bool = True,
    known: SurnameDictionary | None = None,
) -> list[Span]:
    """Return the personal data of `kinds` in `text`: spans with offsets into `text`, sorted, disjoint, not empty.

    `known` judges surnames beyond the list. What stands in a label of `MASKS` is never found."""
    wanted = [kind for kind in KINDS if kind in set(kinds)]
    if not wanted:
        return []
    folded = fold(text)
    found = [
        Span(start, end, kind) for kind in wanted for start, end in _finder(kind, partial_addresses, known)(folded)
    ]
    if not found:
        return []
    spans = _disjoint(folded, found)
    again = list(_repeated(folded, spans, known))
    return _disjoint(folded, spans + again) if again else spans


def _finder(kind: str, partial: bool, known: SurnameDictionary | None) -> Callable[[str], Iterator[tuple[int, int]]]:
    if kind == "address":
        return lambda text: personal_addresses.addresses(text, partial=partial)
    if kind == "name":
        return lambda text: personal_names.names(text, known=known)
    return _CONTACTS[kind]


_CONTACTS = {
    "email": personal_contacts.mails,
    "phone": personal_contacts.phones,
    "post_code": personal_contacts.post_codes,
    "patient_id": personal_contacts.patient_ids,
    "birth_date": personal_contacts.birth_dates,
}
_ANY_MASK = re.compile(personal_data.any_of(tuple(MASKS.values())))
_PRIORITY = {kind: place for place, kind in enumerate(KINDS)}


def _disjoint(folded: str, found: list[Span]) -> list[Span]:
    """Sort spans; of two that overlap the earlier keeps its place and the later what is left of it."""
    masks = [match.span() for match in _ANY_MASK.finditer(folded)] if "〈" in folded else []
    blocked = iter(masks)
    mask = next(blocked, None)
    kept: list[Span] = []
    reached = 0
    for span in sorted(found, key=lambda span: (span.start, -span.end, _PRIORITY[span.kind])):
        start, end = max(span.start, reached), span.end
        dropped = " -,、。・()\n" if start > span.start else " \n"
        while start < end and folded[start] in dropped:
            start += 1
        while end > start and folded[end - 1] in " \n":
            end -= 1
        while mask is not None and mask[1] <= start:
            mask = next(blocked, None)
        if mask is not None and mask[0] < end:
            end = mask[0]
        if start < end and (start == span.start or any(map(str.isalnum, folded[start:end]))):
            kept.append(Span(start, end, span.kind))
            reached = end
    return kept


# --- what stands again elsewhere ---
MOST_VALUES = 256  # distinct values of one document that are followed: bounds the time of a hostile one
_CORE = re.compile(
    r"(?:(?:Dr|DR|Mr|Mrs|Ms|Prof)\.? ?)?([^(]+?)(?:様|さま|さん|ちゃん|くん|君|氏|殿|先生)?(?: ?\(.*)?\Z"
)
_ID_LABEL = re.compile("ID[^A-Za-z0-9]*")


def _repeated(folded: str, spans: list[Span], known: SurnameDictionary | None) -> Iterator[Span]:
    values: dict[str, str] = {}
    for span in spans:
        for value in _values(folded[span.start : span.end], span.kind, known):
            values.setdefault(value, span.kind)
        if len(values) >= MOST_VALUES:
            break
    taken = {(span.start, span.end) for span in spans}
    for value, kind in values.items():
        at = folded.find(value)
        while at >= 0:
            end = at + len(value)
            if (at, end) not in taken and _stands_alone(folded, at, end):
                yield Span(at, end, kind)
            at = folded.find(value, end)


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether no letter or digit of the same word goes on at either side of `text[start:end]`."""

    def joined(one: str, other: str) -> bool:
        digits = one.isdigit() and other.isdigit()
        return digits or (one.isascii() and other.isascii() and one.isalpha() and other.isalnum())

    before, after = text[start - 1 : start], text[end : end + 1]
    return not (before and joined(text[start], before)) and not (after and joined(text[end - 1], after))


def _values(value: str, kind: str, known: SurnameDictionary | None) -> Iterator[str]:
    """The strings that say the same as `value` of `kind` elsewhere in its document."""
    if kind == "patient_id":
        number = _ID_LABEL.sub("", value, count=1) if value.startswith("ID") else value
        if len(number) >= 5:
            yield number
    elif kind == "phone":
        digits = re.sub("[^0-9]", "", value)
        if len(digits) >= 9:
            yield from (value, digits)
    elif kind == "birth_date":
        yield from personal_contacts.notations(value)
    elif kind == "name":
        match = _CORE.match(value)
        core = match[1].strip() if match else ""
        whole = core.replace(" ", "").replace("・", "")
        length = personal_names.surname_length(whole, known)
        if 0 < length < len(whole) and len(whole) >= 3:
            yield from (whole, f"{whole[:length]} {whole[length:]}", core)
        elif len(whole) >= 4 and "・" in core:
            yield from (whole, core)
    elif (kind == "address" and len(value) >= 6) or kind == "email":
        yield value


# --- the masker ---
class Masker:
    """Takes personal data out of texts by `settings`: `Masker(settings)(text) -> Masked`.

    `identity` names the settings and hashes all rules, lists and labels. Picklable; Sudachi's dictionary, if asked for,
    opens in the process that uses it. Raises `ModuleNotFoundError` with the remedy when that is not installed."""

    def __init__(self, settings: PrivacySettings) -> None:
        self.settings = settings
        self._known = SurnameDictionary(dictionary=settings.analyzer_dictionary) if settings.analyzer_names else None
        self.identity: dict[str, str] = {
            "kinds": ",".join(kind for kind in KINDS if kind in settings.kinds),
            "action": settings.action,
            "partial_addresses": str(settings.partial_addresses).lower(),
            "analyzer_names": json.dumps(self._known.identity, sort_keys=True) if self._known else "none",
            "version": VERSION,
        }
        law = [self.identity, _law()]
        self.identity["sha256"] = hashlib.sha256(json.dumps(law, sort_keys=True).encode("utf-8")).hexdigest()

    def __call__(self, text: str) -> Masked:
        """Return `text` masked and the number of pieces of each kind, kinds that were not found left out."""
        spans = self.find(text)
        counts: Counter[str] = Counter()
        rounds = 0
        while spans:
            counts.update(span.kind for span in spans)
            rounds += 1
            if rounds > ROUNDS:  # a hostile text whose masks go on making new ones: its lines go whole
                return Masked(self._whole_lines(text, spans), _in_order(counts))
            text, changed = self._replaced(text, spans)
            spans = self.find(text) if self.find(changed) else []
        return Masked(text, _in_order(counts))

    def find(self, text: str) -> list[Span]:
        settings = self.settings
        return find_personal_data(
            text, kinds=settings.kinds, partial_addresses=settings.partial_addresses, known=self._known
        )

    def _replaced(self, text: str, spans: list[Span]) -> tuple[str, str]:
        """The text with `spans` taken out, and of it the lines that changed."""
        parts, at = [], 0
        for span in spans:
            parts += [text[at : span.start], self._instead(text, span)]
            at = span.end
        parts.append(text[at:])
        changed, line = [], ""
        for number, part in enumerate(parts):
            if number % 2:
                line += part
                continue
            head, cut, _ = part.partition("\n")
            if not cut:
                line += part
                continue
            changed.append(line + head if number else "")
            line = part[part.rfind("\n") + 1 :]
        changed.append(line)
        return "".join(parts), "\n".join(changed)

    def _instead(self, text: str, span: Span) -> str:
        if self.settings.action == "mask":
            return MASKS[span.kind]
        before, after = text[span.start - 1 : span.start], text[span.end : span.end + 1]
        return " " if before.isalnum() and after.isalnum() and before.isascii() and after.isascii() else ""

    def _whole_lines(self, text: str, spans: list[Span]) -> str:
        lines = text.split("\n")
        starts, at = [], 0
        for line in lines:
            starts.append(at)
            at += len(line) + 1
        number = 0
        for span in spans:
            while number + 1 < len(starts) and starts[number + 1] <= span.start:
                number += 1
            lines[number] = MASKS[span.kind] if self.settings.action == "mask" else ""
        return "\n".join(lines)


def _in_order(counts: Counter[str]) -> dict[str, int]:
    return {kind: counts[kind] for kind in KINDS if counts[kind]}


def _law() -> list[str]:
    """All patterns, lists and labels that the rules depend on."""
    modules = (personal_contacts, personal_names, personal_addresses)
    patterns = [
        value.pattern
        for module in modules
        for name, value in sorted(vars(module).items())
        if isinstance(value, re.Pattern)
    ]
    words = [
        sorted(value) if isinstance(value, frozenset) else value
        for name, value in sorted(vars(name_lists).items())
        if name.isupper() and isinstance(value, frozenset | list | tuple | dict)
    ]
    return [*personal_data.law(), *patterns, json.dumps(words, sort_keys=True, ensure_ascii=False)]
