"""Files of benchmark rows, read strictly: .csv, .tsv and .jsonl in UTF-8, every fault told with its file and line.

A benchmark is read whole or not at all, since a row left out changes the score. So reading goes on after a bad row only
to find the others, and ``refuse`` tells them together. Costs: the file in memory. Does not: guess encodings or column
names, unpack archives, or know what a column means.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ncvc.corpus.reading.problems import is_encodable

KINDS = (".csv", ".tsv", ".jsonl")
LONGEST_CELL = 1 << 25
_TOLD = 20


@dataclass(frozen=True, slots=True)
class Record:
    """One row: ``where`` it stands in words ("file, line 3 (row 1)"), its number from 0, and its cells by column."""

    where: str
    number: int
    cells: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Records:
    """The rows of one file, the columns in the order in which they appear, and what is wrong with which row."""

    path: Path
    rows: list[Record]
    columns: list[str]
    problems: list[str]
    sha256: str


def read_records(path: Path, *, header: bool = True) -> Records:
    """The rows of ``path``; without a header the columns are named by number, "1", "2" ...

    ``FileNotFoundError`` or ``ValueError`` where the file as a whole cannot be read; faults of single rows are
    ``problems`` of the result (see ``refuse``).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file (looked in {Path.cwd()} if relative); set the path of a benchmark.")
    if path.suffix.lower() not in KINDS:
        raise ValueError(
            f"{path}: its kind is {path.suffix or 'not named'}; benchmarks are read from {', '.join(KINDS)}."
        )
    data = path.read_bytes()
    text = decoded(data, path)
    read = _json_rows if path.suffix.lower() == ".jsonl" else _csv_rows
    rows: list[Record] = []
    columns: dict[str, None] = {}
    problems: list[str] = []
    for found in read(text, path, header):
        if isinstance(found, str):
            problems.append(found)
        elif isinstance(found, list):
            columns.update(dict.fromkeys(found))
        else:
            rows.append(found)
            columns.update(dict.fromkeys(found.cells))
    if not rows and not problems:
        raise ValueError(f"{path} holds no row; take the file from its source again.")
    return Records(path, rows, list(columns), problems, hashlib.sha256(data).hexdigest())


def refuse(problems: Sequence[str]) -> None:
    """``ValueError`` that tells all ``problems``, the first twenty in words; nothing where there are none."""
    if problems:
        more = [f"... and {len(problems) - _TOLD} more."] if len(problems) > _TOLD else []
        raise ValueError("\n".join([*problems[:_TOLD], *more]))


def parse_json(text: str) -> Any:
    """The value of a JSON text; ``ValueError`` for all that is none, also nested too deep or with NaN."""

    def no_number(name: str) -> None:
        raise ValueError(f"{name} is no JSON number")

    try:
        return json.loads(text, parse_constant=no_number)
    except RecursionError as error:
        raise ValueError("is nested too deep") from error


def decoded(data: bytes, path: Path) -> str:
    """The text of a file, read as UTF-8; ``ValueError`` names file and line of UTF-16, NUL and other bytes."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{path} is UTF-16; convert it to UTF-8.")
    if (place := data.find(b"\0")) >= 0:
        line = data.count(10, 0, place) + 1
        raise ValueError(f"{path}, line {line}: holds a NUL byte; the file is damaged, copy it anew.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(10, 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: is not UTF-8 (byte 0x{data[error.start]:02x}); "
            "convert the file (from Shift-JIS: iconv -f cp932 -t utf-8)."
        ) from error


def _json_rows(text: str, path: Path, header: bool) -> Iterator[Record | str]:
    number = 0
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        where = f"{path}, line {line} (row {number})"
        number += 1
        try:
            value = parse_json(content)
        except ValueError as error:
            yield f"{where}: is no JSON ({error}); mend or remove the line."
            continue
        if not isinstance(value, dict):
            yield f"{where}: is {type(value).__name__}, and has to be an object {{column: value}}."
        elif "\\ud" in content.lower() and not is_encodable(json.dumps(value, ensure_ascii=False)):
            yield f"{where}: holds half of a surrogate pair, which UTF-8 cannot hold; write the character anew."
        else:
            yield Record(where, number - 1, value)


def _csv_rows(text: str, path: Path, header: bool) -> Iterator[Record | str | list[str]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = []
    number = 0
    longest = csv.field_size_limit(LONGEST_CELL)
    try:
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield f"{path}, line {line}: is no csv row ({error}); mend the quotation marks. The rest was not read."
                return
            if cells is None:
                return
            if not any(cell.strip() for cell in cells):
                continue
            if not columns:
                columns = _columns(cells, path) if header else [str(place) for place in range(1, len(cells) + 1)]
                yield columns
                if header:
                    continue
            where = f"{path}, line {line} (row {number})"
            number += 1
            if len(cells) != len(columns):
                wanted = "the header" if header else "the first row"
                yield (
                    f"{where}: has {len(cells)} cells and {wanted} {len(columns)}; "
                    "quote cells that hold separators or line breaks."
                )
                continue
            plain = (cell.replace("\r\n", "\n").replace("\r", "\n") for cell in cells)
            yield Record(where, number - 1, dict(zip(columns, plain, strict=True)))
    finally:
        csv.field_size_limit(longest)


def _columns(header: Sequence[str], path: Path) -> list[str]:
    columns = [cell.strip() for cell in header]
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise ValueError(f"{path}: the first line names the column {', '.join(map(repr, twice))} twice; rename one.")
    return columns
