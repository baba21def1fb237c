"""What readers say of a row or a file they leave out, and the tests that every text must pass.

A text is left out when UTF-8 cannot hold it (half of a surrogate pair), when it is empty, when it holds NUL
characters (holes of a crash, UTF-16 taken for UTF-8), and when at least `MOJIBAKE_SHARE` of its characters
are signs of a wrong decoding: replacement characters, UTF-8 read as Latin-1, Windows-1252 or Shift_JIS (縺ゅ＞), and
Shift_JIS or EUC-JP read as Latin-1 or Windows-1252. Cost: 2 GB/s on sound Japanese.
Does not: repair anything, or judge right-to-left and zero-width characters (the cleaner deletes those).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

UNKNOWN_KIND = "unknown kind of file"
UNREADABLE_FILE = "unreadable file"
UNDECODABLE = "undecodable bytes"
BROKEN_JSON = "broken JSON"
BROKEN_CSV = "broken CSV"
WRONG_COLUMNS = "wrong number of columns"
NO_TEXT_FIELD = "no text field"
NOT_A_STRING = "text is not a string"
EMPTY_TEXT = "empty text"
LONE_SURROGATE = "lone surrogate"
NUL_CHARACTERS = "NUL characters"
MOJIBAKE = "mojibake"
ROW_TOO_LONG = "row too long"
DAMAGED_FILE = "truncated or damaged file"
WRONG_LAYOUT = "not of the layout"
NO_MAIN_TEXT = "no main text"
ERROR_PAGE = "error page"
DAMAGED_RECORD = "damaged record"
OTHER_LANGUAGE = "other language"
LOW_LANGUAGE_PROBABILITY = "low language probability"
QUALITY_WARNING = "quality warning"
UNWANTED_CATEGORY = "unwanted category"
HARMFUL_PERPLEXITY = "harmful perplexity out of range"
REASONS = (
    UNKNOWN_KIND,
    UNREADABLE_FILE,
    UNDECODABLE,
    BROKEN_JSON,
    BROKEN_CSV,
    WRONG_COLUMNS,
    NO_TEXT_FIELD,
    NOT_A_STRING,
    EMPTY_TEXT,
    LONE_SURROGATE,
    NUL_CHARACTERS,
    MOJIBAKE,
    ROW_TOO_LONG,
    DAMAGED_FILE,
    WRONG_LAYOUT,
    NO_MAIN_TEXT,
    ERROR_PAGE,
    DAMAGED_RECORD,
    OTHER_LANGUAGE,
    LOW_LANGUAGE_PROBABILITY,
    QUALITY_WARNING,
    UNWANTED_CATEGORY,
    HARMFUL_PERPLEXITY,
)
"""Every reason a reader gives for leaving a row or a file out."""

MOJIBAKE_SHARE = 0.05
"""From this share of a text's characters on, signs of a wrong decoding make it mojibake."""

LONGEST_ROW_BYTES = 1 << 25
"""A row (line, cell, page, record) with more bytes than these 32 MiB is left out: memory stays below 1 GiB."""

LONGEST_METADATA = 1_000
"""Metadata values with more characters are left out."""


@dataclass(frozen=True, slots=True)
class ReadProblem:
    """One row (or, with `row` None, a whole file) left out; `reason` is one of a few fixed phrases."""

    file: str
    row: int | None
    reason: str
    detail: str

    def __str__(self) -> str:
        where = self.file if self.row is None else f"{self.file}:{self.row}"
        return f"{where}: {self.reason} ({self.detail})"


class BadRowError(Exception):
    """A row that cannot be used: one of `REASONS` and a detail. Readers turn it into a `ReadProblem`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, shortened(detail)


class BadFileError(Exception):
    """A file of which nothing more can be read: one of `REASONS` and a detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, shortened(detail)


def shortened(text: str, *, longest: int = 300) -> str:
    """`text`, or its beginning and an ellipsis."""
    return text if len(text) <= longest else f"{text[:longest]}..."


def check_text(text: str, *, stored: bytes | None = None) -> None:
    """Raise BadRowError for a text that cannot be a document.

    `stored`, if given, are UTF-8 bytes in which the text stands as it is: they are looked at instead of encoding it.
    """
    if not text or text.isspace():
        raise BadRowError(EMPTY_TEXT, "no character but white space")
    if stored is None:
        try:
            stored = text.encode("utf-8")
        except UnicodeEncodeError:
            raise BadRowError(LONE_SURROGATE, "half of a surrogate pair, which UTF-8 cannot hold") from None
    if 0 in stored and "\0" in text:
        raise BadRowError(NUL_CHARACTERS, f"{text.count(chr(0))} of {len(text)} characters are NUL")
    if _may_be_mojibake(text, stored) and (share := mojibake_share(text)) >= MOJIBAKE_SHARE:
        raise BadRowError(
            MOJIBAKE, f"{share:.0%} of the characters are signs of a wrong decoding: {text[:20]!r}; convert the source"
        )


def _may_be_mojibake(text: str, stored: bytes) -> bool:
    """Whether there are enough signs for a closer look, which costs as much as parsing the row."""
    # 0xC2, 0xC3 and 0xC6 begin U+0080 to U+00FF and ƒ and occur nowhere else in UTF-8; every sign has one of these
    # characters and at most four characters, except the four that are searched for by themselves.
    signs = 0
    for lead in (0xC2, 0xC3, 0xC6):
        if lead in stored:
            signs += 4 * _occurrences(stored, lead)
    for sign in ("縺", "繝", "\ufffd"):
        if sign in text:
            signs += text.count(sign) + text.count("繧")
    return signs >= MOJIBAKE_SHARE * len(text)


def _occurrences(stored: bytes, byte: int) -> int:
    """How often a byte occurs; finding it, while it is rare, takes a tenth of the time of counting it."""
    place, found = stored.find(byte), 0
    while place >= 0:
        found += 1
        if found == 16:
            return found + stored.count(byte, place + 1)
        place = stored.find(byte, place + 1)
    return found


_CONTINUATION = "\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"  # UTF-8's second to fourth bytes, as Latin-1 and Windows-1252
_WRONGLY_DECODED = re.compile(
    # UTF-8 of two bytes (a single pair may be right: Spaß“), of three and of four
    f"[\xc2\xc3][{_CONTINUATION}]|(?:[\xc4-\xdf][{_CONTINUATION}]){{2,}}"
    f"|[\xe0-\xef][{_CONTINUATION}]{{2}}|[\xf0-\xf4][{_CONTINUATION}]{{3}}"
    # Shift_JIS: kana, also as Windows-1252; the other characters as Latin-1
    f"|[\x82\x83ƒ][@-~\x80-\xfc{_CONTINUATION}]|‚[\xa0-\xfc]|[\x81\x84\x87-\x9f][@-~\x80-\xfc]"
    "|¤[\xa1-\xf3]|¥[\xa1-\xf6]"  # EUC-JP: kana
    "|[\ufffd縺繧繝]"
)


def mojibake_share(text: str) -> float:
    """Share of the characters that are signs of a wrong decoding, between 0 and 1."""
    return sum(map(len, _WRONGLY_DECODED.findall(text))) / max(1, len(text))


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can hold `text`."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def decode_utf8(data: bytes) -> str:
    """`data` as text without a byte order mark; raises BadRowError."""
    try:
        return (data[3:] if data.startswith(b"\xef\xbb\xbf") else data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRowError(
            UNDECODABLE, f"not UTF-8: {error.reason} at byte {error.start}; convert the file to UTF-8"
        ) from None


def is_small(value: object) -> bool:
    """Whether `value` may be metadata: a short string that UTF-8 can hold, a finite number, true or false."""
    if isinstance(value, str):
        return 0 < len(value) <= LONGEST_METADATA and is_encodable(value)
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and abs(value) < 1 << 63
