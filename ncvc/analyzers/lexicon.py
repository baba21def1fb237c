"""Names of diseases and drugs out of the public lists (J-MeDic/MANBYO, ICD master, NHI price list) or any table.

What it does: `read_lexicon` gives `Entry`s in the order of the files and rows, each name in the form the cleaner
leaves (the cleaner runs before the analyser, so a name must look like cleaned text), each once; later lists fill in
what earlier ones lack (reading, code, frequency). A row that cannot be used is counted by reason and handed to
`on_problem` with its file and row; the rest goes on. A file that yields nothing is an error.

What it costs: 148,000 rows in 4 s, 100 MB. What it does not do: repair rows, guess encodings, judge which names are
worth a word of their own (`user_dictionary` does).
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ncvc.corpus.cleaning import Cleaner
from ncvc.corpus.reading.compressed import LongLine, lines, unpacked_blocks
from ncvc.corpus.reading.problems import BROKEN_CSV, ROW_TOO_LONG, UNDECODABLE, WRONG_COLUMNS, BadFileError, ReadProblem
from ncvc.settings import settings_from

Kind = Literal["disease", "drug", "ingredient", "anatomy", "other"]
FormatName = Literal["manbyo", "manbyo_mini", "ssk_disease", "icd10_dpc", "mhlw_price", "ssk_drug", "columns"]

COMMA_OR_QUOTE = "a comma or a quote in the name"
CONTROL_CHARACTERS = "control characters"
EMPTY_NAME = "empty name"
NO_CODE = "no code: not a disease"
NAME_TOO_LONG = "name too long"
EMPTIED = "nothing left after cleaning"
SEVERAL_LINES = "several lines or sentences"
UNSTABLE = "cleaning changes it once more"
DUPLICATE = "name already known"

_LONGEST_ROW = 1 << 16  # bytes
_NO_CODES = {"", "-1", "*"}
_BREAKS = re.compile("[\n。！？!?]")  # where a line ends, or the analyser ends a sentence
_BRAND = re.compile("[ァ-ヺー・]{4,}(?=.)")  # アーチスト錠2.5mg: notes write it without form and dose


@dataclass(frozen=True, slots=True)
class Entry:
    """One name, cleaned; `code` as in its list (ICD-10, price list), `frequency` a count where the list has one."""

    surface: str
    reading: str | None
    kind: Kind
    code: str | None
    source: str
    frequency: int | None


@dataclass(frozen=True)
class _Format:
    """Columns of a list by their names in its first row; `header` is what they are when that row is missing."""

    names: tuple[tuple[str, Kind], ...]
    reading: str | None = None
    code: str | None = None
    frequency: str | None = None
    delimiter: str = ","
    header: tuple[str, ...] | None = None


FORMATS: dict[str, _Format] = {
    "manbyo": _Format((("surface", "disease"),), code="icd10", header=("surface", "icd10", "standard_name")),
    "manbyo_mini": _Format(
        (("出現形", "disease"),),
        reading="しゅつげんけい",
        code="ICDコード",
        frequency="東大診療録頻度",
        delimiter="\t",
    ),
    "ssk_disease": _Format((("name", "disease"),), reading="kana", code="icd10"),
    "icd10_dpc": _Format((("ICD名称", "disease"),), code="ICDコード"),
    "mhlw_price": _Format((("品名", "drug"), ("成分名", "ingredient")), code="薬価基準収載医薬品コード"),
    "ssk_drug": _Format((("name", "drug"),), reading="halfwidth_kana", code="yj_or_price_code"),
}
"""The lists that are known by name."""


@dataclass(frozen=True, kw_only=True)
class LexiconFile:
    """One file. For `format="columns"` name the columns: by their title, or by number from 1 with `header=False`."""

    path: str
    format: FormatName = "columns"
    kind: Kind = "other"
    surface: str = "surface"
    reading: str | None = None
    code: str | None = None
    frequency: str | None = None
    delimiter: str = ","
    header: bool = True
    encoding: str = "utf-8-sig"
    require_code: bool = False

    def __post_init__(self) -> None:
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            raise ValueError(f"lexicon.files: delimiter={self.delimiter!r}: set one character, ',' or a tab.")
        try:
            "".encode(self.encoding)
        except LookupError:
            raise ValueError(f"lexicon.files: encoding={self.encoding!r} is not known; set utf-8 or cp932.") from None
        numbers = [name for name in (self.surface, self.reading, self.code, self.frequency) if name is not None]
        if not self.header and not all(name.isdecimal() and int(name) >= 1 for name in numbers):
            raise ValueError(
                f"lexicon.files: header=false, and columns are named {', '.join(numbers)}: without titles set their "
                "numbers, counted from 1."
            )

    @property
    def layout(self) -> _Format:
        """Where the columns are."""
        if self.format != "columns":
            return FORMATS[self.format]
        return _Format(((self.surface, self.kind),), self.reading, self.code, self.frequency, self.delimiter)


@dataclass(frozen=True, kw_only=True)
class LexiconSettings:
    """`files` maps a name to the settings of a `LexiconFile`; files listed first keep a name that several have.

    `brands` adds to a drug's name the katakana it begins with. `minimum_characters`, `minimum_hiragana` and `cost` are
    those of `user_dictionary.build_user_dictionary`."""

    files: Mapping[str, dict]
    rules: Literal["guarded", "literal"] = "guarded"
    maximum_characters: int = 64
    minimum_characters: int = 3
    minimum_hiragana: int = 5
    brands: bool = True
    cost: int | None = None

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("lexicon.files is empty: name at least one, {NAME: {path: FILE, format: manbyo}}.")
        if self.maximum_characters < 1:
            raise ValueError(f"lexicon.maximum_characters={self.maximum_characters}: set 1 or more.")
        for name in ("minimum_characters", "minimum_hiragana"):
            if getattr(self, name) < 1:
                raise ValueError(f"lexicon.{name}={getattr(self, name)}: set 1 or more.")

    def opened(self) -> dict[str, LexiconFile]:
        """The files with their settings checked; raises `ValueError`."""
        return {
            name: settings_from(LexiconFile, values, path=f"lexicon.files.{name}")
            for name, values in self.files.items()
        }


@dataclass(frozen=True)
class Lexicon:
    """What was read: `entries`, and per file what became of its rows (`rows`, `names`, and a count per reason)."""

    entries: tuple[Entry, ...]
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def read_lexicon(settings: LexiconSettings, *, on_problem: Callable[[ReadProblem], None] | None = None) -> Lexicon:
    """Read all files. Raises `FileNotFoundError`, and `ValueError` for a file without the columns or without names."""
    cleaner, known, counts = Cleaner(settings.rules), dict[str, Entry](), dict[str, Counter[str]]()
    for name, file in settings.opened().items():
        counts[name] = Counter(rows=0, names=0)
        before = len(known)
        for number, row in _rows(file, counts[name], on_problem):
            for surface, kind in row.names:
                entry = _entry(surface, kind, row, name, file, settings, cleaner)
                if isinstance(entry, str):
                    _leave_out(ReadProblem(file.path, number, entry, repr(surface[:80])), counts[name], on_problem)
                    continue
                brand = _BRAND.match(entry.surface) if settings.brands and kind == "drug" else None
                for one in [entry, *([replace(entry, surface=brand[0], reading=None)] if brand else [])]:
                    if one.surface in known:
                        known[one.surface] = _filled(known[one.surface], one)
                        counts[name][DUPLICATE] += one is entry
                    else:
                        known[one.surface] = one
        counts[name]["names"] = len(known) - before
        if not counts[name]["names"] and not counts[name][DUPLICATE]:
            why = ", ".join(f"{reason}: {n:,}" for reason, n in counts[name].items() if reason != "names")
            raise ValueError(
                f"lexicon.files.{name}.path={file.path} yields no name ({why}); set its format, columns or encoding"
            )
    return Lexicon(tuple(known.values()), {name: dict(count) for name, count in counts.items()})


def _filled(known: Entry, other: Entry) -> Entry:
    """`known` with what it lacks from another list's entry of that name."""
    if None not in (known.reading, known.code, known.frequency):
        return known
    return replace(
        known,
        reading=known.reading or other.reading,
        code=known.code or other.code,
        frequency=other.frequency if known.frequency is None else known.frequency,
    )


@dataclass(frozen=True)
class _Row:
    names: list[tuple[str, Kind]]
    reading: str | None
    code: str | None
    frequency: str | None


def _leave_out(problem: ReadProblem, counts: Counter[str], on_problem: Callable[[ReadProblem], None] | None) -> None:
    counts[problem.reason] += 1
    if on_problem is not None:
        on_problem(problem)


def _entry(
    raw: str, kind: Kind, row: _Row, source: str, file: LexiconFile, settings: LexiconSettings, cleaner: Cleaner
) -> Entry | str:
    """The entry of a cell, or the reason why there is none."""
    raw = raw.strip(" \t　")
    if not raw:
        return EMPTY_NAME
    if "," in raw or '"' in raw:  # a damaged row, mostly: several codes ran into the name
        return COMMA_OR_QUOTE
    if any(unicodedata.category(character) in ("Cc", "Cs", "Co", "Cn") for character in raw) or "\ufffd" in raw:
        return CONTROL_CHARACTERS
    if len(raw) > settings.maximum_characters:
        return NAME_TOO_LONG
    code = (row.code or "").strip()
    if (file.require_code or file.format == "manbyo") and code in _NO_CODES and kind == "disease":
        return NO_CODE
    surface = cleaner(raw).strip("▁")
    if not any(character.isalnum() for character in surface):
        return EMPTIED
    if _BREAKS.search(surface):
        return SEVERAL_LINES
    if len(surface) > settings.maximum_characters:
        return NAME_TOO_LONG
    if cleaner(surface) != surface:
        return UNSTABLE
    reading = unicodedata.normalize("NFKC", row.reading or "").strip() or None
    frequency = (row.frequency or "").strip()
    return Entry(
        surface,
        reading,
        kind,
        None if code in _NO_CODES else code,
        source,
        int(frequency) if frequency.isascii() and frequency.isdigit() else None,
    )


def _rows(
    file: LexiconFile, counts: Counter[str], on_problem: Callable[[ReadProblem], None] | None
) -> Iterator[tuple[int, _Row]]:
    """Rows with their number (the first line is 1). A line is a row: a quote left open costs only its own line."""
    layout = file.layout
    columns: list[str] | None = None
    for number, line in _lines(Path(file.path), counts, on_problem):
        cells = _cells(line, file.encoding, layout.delimiter)
        if isinstance(cells, list) and not any(cells):
            continue  # an empty line
        if columns is None and isinstance(cells, list):
            if file.format == "columns" and not file.header:
                columns = [str(place) for place in range(1, len(cells) + 1)]
            elif layout.header is None or cells == list(layout.header):
                columns = cells
                _check_columns(file, columns)
                continue
            else:
                columns = list(layout.header)
            _check_columns(file, columns)
        counts["rows"] += 1
        if isinstance(cells, list) and columns is not None and len(cells) != len(columns):
            cells = (WRONG_COLUMNS, f"{len(cells)} cells, {len(columns)} expected")
        if isinstance(cells, tuple):
            _leave_out(ReadProblem(file.path, number, *cells), counts, on_problem)
            continue
        found = dict(zip(columns or (), cells, strict=True))
        yield (
            number,
            _Row(
                [(found[column], kind) for column, kind in layout.names],
                *(found[column] if column else None for column in (layout.reading, layout.code, layout.frequency)),
            ),
        )


def _check_columns(file: LexiconFile, columns: list[str]) -> None:
    layout = file.layout
    wanted = [*(name for name, _ in layout.names), layout.reading, layout.code, layout.frequency]
    missing = [name for name in wanted if name is not None and name not in columns]
    if missing:
        raise ValueError(
            f"lexicon.files: {file.path} (format {file.format}) has no column {', '.join(missing)}; it has "
            f"{', '.join(columns)[:300]}: set its format, or format=columns with the names of its columns"
        )


def _cells(line: bytes | None, encoding: str, delimiter: str) -> list[str] | tuple[str, str]:
    """Cells of a line, or the reason and detail why there are none."""
    if line is None:
        return ROW_TOO_LONG, f"more than {_LONGEST_ROW:,} bytes"
    try:
        text = line.decode(encoding).rstrip("\r\n")
    except UnicodeDecodeError as error:
        return UNDECODABLE, f"not {encoding}: {error.reason} at byte {error.start}; set encoding"
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        return BROKEN_CSV, str(error)


def _lines(
    path: Path, counts: Counter[str], on_problem: Callable[[ReadProblem], None] | None
) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines of a plain, gzip or zstd file, None for one that is too long; damage ends the file, counted."""
    if not path.is_file():
        raise FileNotFoundError(f"lexicon.files: {path} is not a file; set its path")
    number = 0
    try:
        blocks = unpacked_blocks(path, lambda _: None, kind=path.name)
        for number, line in enumerate(lines(blocks, longest=_LONGEST_ROW), 1):
            yield number, None if isinstance(line, LongLine) else line
    except BadFileError as error:
        _leave_out(ReadProblem(str(path), number + 1, error.reason, error.detail), counts, on_problem)
