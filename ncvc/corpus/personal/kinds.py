"""What the finders of personal data share: the kinds, the span, and one form for each width of a character.

`fold` maps full-width letters, digits and signs, every blank and every hyphen to their ASCII form, one character for
one, so that an offset into the folded text is an offset into the text. It costs one scan (about 900 MB of UTF-8 per
second where little is folded) and does nothing to half-width kana, circled digits or invisible characters: the cleaner
removes or unifies those, which is why masking runs after cleaning as well as before it.

A finder reads one line's worth of context: no pattern crosses "\\n".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

KINDS = ("email", "phone", "post_code", "address", "birth_date", "patient_id", "name")
LABELS = {
    "email": "メールアドレス",
    "phone": "電話番号",
    "post_code": "郵便番号",
    "address": "住所",
    "birth_date": "生年月日",
    "patient_id": "患者番号",
    "name": "氏名",
}
# 〈 〉 because the cleaner keeps them (〔 〕 would become [ ]) and headings of reports use 【 】.
MASKS = {kind: f"〈{label}〉" for kind, label in LABELS.items()}


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """`text[start:end]` is personal data of `kind`, one of `KINDS`."""

    start: int
    end: int
    kind: str


IDEOGRAPH = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff々〆\U00020000-\U0002ffff"  # inside a class of `re`
HIRAGANA, KATAKANA = "ぁ-ゖ", "ァ-ヺーｦ-ﾟ"
BAR = "[-ー]"  # a hyphen after folding; people also type the choonpu of the kana keyboard
SEPARATOR = "(?: ?[-ー.・] ?)"

_BLANKS = "\t\x0b\x0c\xa0\u1680\u2000-\u200a\u202f\u205f\u3000\u2581"
_HYPHENS = "\u2010-\u2015\u2043\u2212\u2500\ufe58\ufe63\uff70\uff0d"
_FOLDED = re.compile(f"[{_BLANKS}{_HYPHENS}\uff01-\uff5e\ufe6b∶꞉．｡､]")
_IS_HYPHEN, _IS_BLANK = re.compile(f"[{_HYPHENS}]"), re.compile(f"[{_BLANKS}]")
_SINGLE = {"\ufe6b": "@", "∶": ":", "꞉": ":", "｡": "。", "､": "、"}


def _fold_one(match: re.Match[str]) -> str:
    character = match[0]
    if character in _SINGLE:
        return _SINGLE[character]
    if _IS_BLANK.match(character):
        return " "
    if _IS_HYPHEN.match(character):
        return "-"
    return chr(ord(character) - 0xFEE0)


_FORMS = {chr(code): _fold_one(match) for code in range(0x10000) if (match := _FOLDED.match(chr(code)))}


def fold(text: str) -> str:
    """Return `text` with one form for every width, of the same length, character for character."""
    return _FOLDED.sub(lambda match: _FORMS[match[0]], text)


def at_most_before(text: str, end: int, characters: int) -> int:
    """Where to begin to look back from `end`: `characters` before it, or where its line begins, whichever is nearer.

    Bounded, so that a line of any length costs a hit no more than a short one."""
    earliest = max(0, end - characters)
    return max(earliest, text.rfind("\n", earliest, end) + 1)


def law() -> list[str]:
    """All that `fold` and the masks depend on, for the identity of a masker."""
    return [_FOLDED.pattern, "".join(_FORMS.values()), *MASKS.values()]


def any_of(words: list[str] | tuple[str, ...] | frozenset[str]) -> str:
    """Write literal words as an alternation for `re`, the longest first."""
    return "|".join(map(re.escape, sorted(words, key=lambda word: (-len(word), word))))
