"""Rows of tables: csv and tsv with a header, parquet, and the arrow files of Hugging Face datasets saved on disk.

csv: quoted fields may hold the delimiter, quotes ("") and line ends; a row is named by the line it begins on, the
header being line 1. A row that cannot be parsed (a stray quote, wrong number of columns) is reported alone, reading
goes on at the next line. parquet and arrow: rows count from 1 in each file; text may be string, large_string,
dictionary or binary (read as UTF-8). No network, no code of a dataset is run.
Cost: a csv row; of parquet and arrow one batch of rows (arrow: as written, `datasets` writes 1,000 rows).
"""

from __future__ import annotations

import csv
import importlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ncvc.corpus.reading.compressed import LongLine
from ncvc.corpus.reading.problems import (
    BROKEN_CSV,
    DAMAGED_FILE,
    LONGEST_ROW_BYTES,
    ROW_TOO_LONG,
    UNDECODABLE,
    UNREADABLE_FILE,
    WRONG_COLUMNS,
    BadFileError,
    BadRowError,
    decode_utf8,
)
from ncvc.corpus.reading.sources import SourceFile

Row = tuple[int, Mapping[str, object] | BadRowError]
Columns = Callable[[list[str]], list[str]]  # of a table's columns those wanted; raises BadRowError

_BATCH_ROWS = 256
_BATCH_BYTES = 1 << 25
_MOST_LINES_OF_A_ROW = 1_000
_PAGE_BYTES = 1 << 20


# ---- csv ----


def csv_rows(lines: Iterator[bytes | LongLine], *, delimiter: str, columns: Columns) -> Iterator[Row]:
    """Rows of a csv file as dicts with the wanted columns; BadFileError if the header cannot serve."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_ROW_BYTES))  # of the whole process; only ever raised
    records = _CsvRecords(lines, delimiter).records()
    header = next(((row, record) for row, record in records), None)
    if header is None:
        return
    names = header[1]
    if isinstance(names, BadRowError):
        raise BadFileError(names.reason, f"the header: {names.detail}")
    try:
        wanted = columns(names)
    except BadRowError as bad:
        raise BadFileError(bad.reason, bad.detail) from None
    if twice := [name for name in wanted if names.count(name) > 1]:
        raise BadFileError(WRONG_COLUMNS, f"the header names {twice[0]!r} more than once")
    places = [(name, names.index(name)) for name in wanted]
    for row, record in records:
        if isinstance(record, BadRowError):
            yield row, record
        elif len(record) != len(names):
            detail = f"{len(record)} fields, the header has {len(names)}; a field with {delimiter!r} must be quoted"
            yield row, BadRowError(WRONG_COLUMNS, detail)
        else:
            yield row, {name: record[place] for name, place in places}


class _CsvRecords:
    """Splits lines into records; after a record that cannot be parsed goes on at the line after its first."""

    def __init__(self, lines: Iterator[bytes | LongLine], delimiter: str) -> None:
        self._numbered = enumerate(lines, start=1)
        self._returned: deque[tuple[int, bytes | LongLine]] = deque()
        self._delimiter = delimiter
        self._num_fields: int | None = None

    def records(self) -> Iterator[tuple[int, list[str] | BadRowError]]:
        """(line number, fields or why there are none) of every record that is not a blank line."""
        while (numbered := self._next()) is not None:
            row, line = numbered
            if not isinstance(line, LongLine) and not line.strip():
                continue
            try:
                record = self._record(line)
            except BadRowError as bad:
                yield row, bad
            else:
                self._num_fields = self._num_fields or len(record)
                yield row, record

    def _next(self) -> tuple[int, bytes | LongLine] | None:
        return self._returned.popleft() if self._returned else next(self._numbered, None)

    def _record(self, line: bytes | LongLine) -> list[str]:
        text = _line(line).rstrip("\r")
        if '"' not in text:
            return text.split(self._delimiter)
        used: list[tuple[int, bytes | LongLine]] = []
        try:
            record = next(csv.reader(self._lines_of_a_record(text, used), delimiter=self._delimiter, strict=True))
        except (csv.Error, StopIteration, BadRowError) as error:
            self._returned.extendleft(reversed(used))
            raise BadRowError(BROKEN_CSV, f"{error or 'no end'}; is a quote missing?") from None
        if used and self._num_fields is not None and len(record) != self._num_fields:
            self._returned.extendleft(reversed(used))  # a stray quote has joined lines
            raise BadRowError(BROKEN_CSV, f"{len(used) + 1} lines joined by a quote do not make a row")
        return record

    def _lines_of_a_record(self, text: str, used: list[tuple[int, bytes | LongLine]]) -> Iterator[str]:
        yield text + "\n"
        size = len(text)
        while len(used) < _MOST_LINES_OF_A_ROW and size < LONGEST_ROW_BYTES and (numbered := self._next()) is not None:
            used.append(numbered)
            text = _line(numbered[1])
            size += len(text)
            yield text + "\n"


def _line(line: bytes | LongLine) -> str:
    if isinstance(line, LongLine):
        raise BadRowError(ROW_TOO_LONG, f"a line of {int(line)} bytes, more than {LONGEST_ROW_BYTES}")
    return decode_utf8(line)


# ---- parquet and arrow ----


def parquet_rows(file: SourceFile, advance: Callable[[int], None], *, columns: Columns) -> Iterator[Row]:
    """Rows of a parquet file with the wanted columns."""
    parquet = importlib.import_module("pyarrow.parquet")
    with _Reading():
        # Pages are read as they are needed; by default a whole column of a row group would be held.
        table = parquet.ParquetFile(file.path, buffer_size=_PAGE_BYTES)
    with table:
        wanted = _wanted(list(table.schema_arrow.names), columns)
        num_rows, seen = table.metadata.num_rows, 0
        num_bytes = sum(table.metadata.row_group(g).total_byte_size for g in range(table.metadata.num_row_groups))
        batch_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * max(1, num_rows) // max(1, num_bytes)))
        batches = table.iter_batches(batch_size=batch_rows, columns=wanted)
        while True:
            with _Reading():
                batch = next(batches, None)
            if batch is None:
                return
            yield from _rows_of(batch, first_row=seen + 1)
            seen += batch.num_rows
            advance(file.num_bytes * seen // max(1, num_rows))


def arrow_rows(file: SourceFile, advance: Callable[[int], None], *, columns: Columns) -> Iterator[Row]:
    """Rows of an arrow file (stream or random-access form) with the wanted columns."""
    pyarrow = importlib.import_module("pyarrow")
    seen = 0
    with _Reading():
        stored = pyarrow.OSFile(str(file.path))
    with stored:
        with _Reading():
            is_file_form = stored.read(6) == b"ARROW1"
            stored.seek(0)
            opened = (pyarrow.ipc.open_file if is_file_form else pyarrow.ipc.open_stream)(stored)
        wanted = _wanted(opened.schema.names, columns)
        batches = _file_batches(opened) if is_file_form else iter(opened)
        while True:
            with _Reading():
                batch = next(batches, None)
            if batch is None:
                return
            yield from _rows_of(batch.select(wanted), first_row=seen + 1)
            seen += batch.num_rows
            advance(stored.tell())


def _file_batches(opened: Any) -> Iterator[Any]:
    return (opened.get_batch(number) for number in range(opened.num_record_batches))


class _Reading:
    """Turns what pyarrow raises within the block into a BadFileError."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise BadFileError(UNREADABLE_FILE, str(error.strerror or error)) from None
        pyarrow = importlib.import_module("pyarrow")
        if isinstance(error, pyarrow.ArrowException | OSError | UnicodeDecodeError):
            raise BadFileError(DAMAGED_FILE, str(error)) from None


def _wanted(names: list[str], columns: Columns) -> list[str]:
    try:
        wanted = columns(names)
    except BadRowError as bad:
        raise BadFileError(bad.reason, bad.detail) from None
    if twice := [name for name in wanted if names.count(name) > 1]:
        raise BadFileError(WRONG_COLUMNS, f"there are several columns {twice[0]!r}")
    return wanted


def _rows_of(batch: Any, *, first_row: int) -> Iterator[Row]:
    names = batch.schema.names
    if batch.nbytes <= LONGEST_ROW_BYTES:  # otherwise a single cell may be too long
        try:
            columns = [column.to_pylist() for column in batch.columns]
        except (UnicodeDecodeError, ValueError, OverflowError):
            pass  # then row by row, to find which
        else:
            for row, values in enumerate(zip(*columns, strict=True), start=first_row):
                yield row, dict(zip(names, values, strict=True))
            return
    for index in range(batch.num_rows):
        try:
            yield first_row + index, _row_of(batch, names, index)
        except BadRowError as bad:
            yield first_row + index, bad


def _row_of(batch: Any, names: list[str], index: int) -> dict[str, object]:
    size = batch.slice(index, 1).nbytes
    if size > LONGEST_ROW_BYTES:
        raise BadRowError(ROW_TOO_LONG, f"a row of {size} bytes, more than {LONGEST_ROW_BYTES}")
    row: dict[str, object] = {}
    for name, column in zip(names, batch.columns, strict=True):
        try:
            row[name] = column[index].as_py()
        except UnicodeDecodeError as error:
            raise BadRowError(UNDECODABLE, f"{name!r} is not UTF-8: {error.reason} at byte {error.start}") from None
        except (ValueError, OverflowError) as error:
            raise BadRowError(UNDECODABLE, f"{name!r}: {error}") from None
    return row
