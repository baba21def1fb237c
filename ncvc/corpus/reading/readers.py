"""Documents out of files: text, JSON lines, csv, parquet, Hugging Face datasets, web pages and archives.

What a document is: a .txt file is one document, or, from 150 kB on (about 50,000 characters), several: it is cut at
line ends into parts of that size (a line above 1 MiB inside the line, after 。 if there is one), so that a corpus in
one file can be held out in part and memory stays flat. A line of a .jsonl file is one JSON object, a row of a .csv,
.tsv, .parquet or .arrow file likewise; the layout says what its fields mean (see `layouts`). An .html file is one
page, a .warc file one per HTML response. Everything but pages is UTF-8; .gz and .zst are unpacked, twice if need be.

Names: the id is the row's `id` field if it is a string or a whole number (a WARC record's address), else
"relative/path:row" (rows count from 1); a file's id is its relative path, a part's "relative/path#part". Ids that
occur twice stay as they are; `metadata` has "file" and "row" (of a part: its first line).
Order: files by relative path in code-point order, rows in file order; the same bytes always give the same documents.

Bad input: a row that cannot be used (see `REASONS`) is handed to `on_problem` with its file and row, and the
rest goes on. A truncated or damaged compressed file keeps every whole row before the damage. A source with
nothing to read is an error.

Cost: one block, its unpacked rows and one document in memory; a row above 32 MiB is left out, so that memory stays
below 1 GiB. Optional packages (extra `corpus`) are imported only when the source holds such a file, and then before
any work is done.
Does not: guess the encoding of text files, clean, repair, deduplicate, or read json arrays and archives.
"""

from __future__ import annotations

import importlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ncvc.corpus.documents import Document
from ncvc.corpus.reading.compressed import LongLine, lines, stored_blocks, unpacked_blocks
from ncvc.corpus.reading.layouts import LAYOUTS, HtmlLayout, Layout, build_layout, usable_id
from ncvc.corpus.reading.problems import (
    BROKEN_JSON,
    DAMAGED_FILE,
    LONGEST_ROW_BYTES,
    NUL_CHARACTERS,
    REASONS,
    ROW_TOO_LONG,
    UNKNOWN_KIND,
    UNREADABLE_FILE,
    WRONG_LAYOUT,
    BadFileError,
    BadRowError,
    ReadProblem,
    check_text,
    decode_utf8,
)
from ncvc.corpus.reading.sources import (
    ARCHIVE_KINDS,
    KINDS,
    PAGE_KINDS,
    TABLE_KINDS,
    SourceFile,
    find_source_files,
    kind_of,
    source_fingerprint,
)
from ncvc.corpus.reading.tables import Row, arrow_rows, csv_rows, parquet_rows
from ncvc.corpus.reading.web_archives import read_responses
from ncvc.corpus.reading.web_pages import LONGEST_PAGE_BYTES

__all__ = [
    "KINDS",
    "LAYOUTS",
    "REASONS",
    "UNKNOWN_KIND",
    "ReadProblem",
    "SourceFile",
    "find_source_files",
    "problem_of_ignored",
    "read_documents",
    "read_file",
    "source_fingerprint",
]

TXT_PART_BYTES = 150_000
"""From this size on a .txt file is cut at line ends into several documents."""

LONGEST_TXT_LINE_BYTES = 1 << 20
"""A longer line of a .txt file is cut inside."""

OnProblem = Callable[[ReadProblem], None]
Advance = Callable[[int], None]


def read_documents(
    source: Path,
    *,
    text_field: str = "text",
    layout: str = "plain",
    options: Mapping[str, Any] | None = None,
    on_problem: OnProblem,
    on_progress: Advance | None = None,
    setting: str = "data.source",
) -> Iterator[Document]:
    """Yield the documents of `source`, a file or a folder.

    `layout` with its `options` says what rows mean. `on_problem` is called for every row or file left out;
    `on_progress` with the number of stored (compressed) bytes read so far. Raises at the call, before any document:
    FileNotFoundError, PermissionError, ValueError (nothing to read, an unknown layout or option) and
    ModuleNotFoundError (the source needs the extra `corpus`). Raises ValueError at the end if not one document came
    out. `setting` names the source in errors.
    """
    files, ignored = find_source_files(source, setting=setting)
    chosen = build_layout(layout, text_field=text_field, options=options)
    for file in files:
        require_packages(file, chosen, setting=setting)
    return _read_files(Path(source), files, ignored, chosen, on_problem, on_progress, setting)


def read_file(
    file: SourceFile,
    *,
    text_field: str = "text",
    layout: str = "plain",
    options: Mapping[str, Any] | None = None,
    on_problem: OnProblem,
    on_progress: Advance | None = None,
) -> Iterator[Document]:
    """Yield the documents of one file of `find_source_files`, lazily; the rest as `read_documents`.

    `on_progress` gets the stored bytes read of this file. No document at all is no error here.
    """
    chosen = build_layout(layout, text_field=text_field, options=options)
    require_packages(file, chosen)
    return _read_file(file, chosen, on_problem, on_progress or (lambda num_bytes: None))


def problem_of_ignored(name: str) -> ReadProblem:
    """Why a file that `find_source_files` ignores is not read."""
    if kind_of(name) is None and not name.endswith("/"):
        return ReadProblem(name, None, UNKNOWN_KIND, f"known are {', '.join(KINDS)}")
    return ReadProblem(name, None, UNREADABLE_FILE, "it may not be read by this user, or is no file")


def require_packages(file: SourceFile, layout: Layout, *, setting: str = "data.source") -> None:
    """Import what reads this kind of file; ModuleNotFoundError with the cure if it is not installed."""
    packages = []
    if file.kind.endswith(".zst"):
        packages.append("zstandard")
    if file.kind in TABLE_KINDS:
        packages += ["pyarrow", *(["pyarrow.parquet"] if file.kind == ".parquet" else [])]
    if layout.pages is not None and (file.kind in PAGE_KINDS + ARCHIVE_KINDS or isinstance(layout, HtmlLayout)):
        packages += ["trafilatura", *(["warcio"] if file.kind in ARCHIVE_KINDS else [])]
    for package in packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{setting}: {file.name} is a {file.kind} file, and reading it needs the package "
                f"{package.partition('.')[0]}, which is not installed; run pip install 'ncvc[corpus]'",
                name=error.name,
            ) from error


def _read_files(
    source: Path,
    files: list[SourceFile],
    ignored: list[str],
    layout: Layout,
    on_problem: OnProblem,
    on_progress: Advance | None,
    setting: str,
) -> Iterator[Document]:
    counts: Counter[str] = Counter()
    first: dict[str, ReadProblem] = {}

    def report(problem: ReadProblem) -> None:
        counts[problem.reason] += 1
        first.setdefault(problem.reason, problem)
        on_problem(problem)

    for name in ignored:
        report(problem_of_ignored(name))
    num_documents = finished = 0
    for file in files:

        def advance(num_bytes: int, before: int = finished) -> None:
            if on_progress is not None:
                on_progress(before + num_bytes)

        for document in _read_file(file, layout, report, advance):
            num_documents += 1
            yield document
        finished += file.num_bytes
        advance(0, finished)
    if num_documents == 0:
        reasons = "; ".join(f"{count} x {reason}, first {first[reason]}" for reason, count in counts.items())
        seen = reasons or "all files are empty, or hold nothing that is read"
        option = setting.rpartition(".")[0]
        raise ValueError(
            f"{setting}={source}: not one document in {len(files)} file(s): "
            f"{seen}. Set {setting} to text, and {option}.text_field (now "
            f"{layout.text_field!r}) to the field that holds it"
        )


def _read_file(file: SourceFile, layout: Layout, report: OnProblem, advance: Advance) -> Iterator[Document]:
    if file.kind.startswith(".txt"):
        reader = _read_txt if layout.reads_txt else _refuse
    elif file.kind in PAGE_KINDS:
        reader = _read_page if layout.pages is not None else _refuse
    elif file.kind in ARCHIVE_KINDS:
        reader = _read_archive if layout.pages is not None else _refuse
    else:
        reader = _read_json if file.kind.startswith(".jsonl") else _read_table
    return reader(file, layout, report, advance)


def _refuse(file: SourceFile, layout: Layout, report: OnProblem, advance: Advance) -> Iterator[Document]:
    report(ReadProblem(file.name, None, WRONG_LAYOUT, f"a {file.kind} file has no rows of this layout"))
    return iter(())


# ---- Rows ----


def _read_json(file: SourceFile, layout: Layout, report: OnProblem, advance: Advance) -> Iterator[Document]:
    row, parse, has_escapes = 0, json.JSONDecoder().decode, re.compile(r"\\u").search
    try:
        for row, line in enumerate(_lines(file, advance), start=1):
            try:
                if isinstance(line, LongLine):
                    raise BadRowError(ROW_TOO_LONG, f"a line of {int(line)} bytes, more than {LONGEST_ROW_BYTES}")
                text = decode_utf8(line)
                # Lone surrogates and NUL stand in JSON as \u escapes only, and looking for those is quicker.
                stored = None if has_escapes(text) else line
                try:
                    fields = parse(text)
                except (ValueError, RecursionError) as error:
                    if not line.strip():
                        continue
                    raise BadRowError(NUL_CHARACTERS if 0 in line else BROKEN_JSON, str(error)) from None
                text = ""  # its memory is warm, and is used again
                yield layout.document(fields, file=file.name, row=row, stored=stored)
            except BadRowError as bad:
                report(ReadProblem(file.name, row, bad.reason, bad.detail))
    except BadFileError as bad:
        report(_damage(file, row, bad))


def _damage(file: SourceFile, row: int, bad: BadFileError) -> ReadProblem:
    """The report of a file that broke off after `row` rows."""
    if bad.reason == DAMAGED_FILE:
        return ReadProblem(file.name, row + 1, bad.reason, f"{bad.detail}; the {row} rows before are kept")
    return ReadProblem(file.name, None, bad.reason, bad.detail)


def _read_table(file: SourceFile, layout: Layout, report: OnProblem, advance: Advance) -> Iterator[Document]:
    row = 0
    try:
        for row, fields in _table_rows(file, layout, advance):
            try:
                if isinstance(fields, BadRowError):
                    raise fields
                yield layout.document(fields, file=file.name, row=row)
            except BadRowError as bad:
                report(ReadProblem(file.name, row, bad.reason, bad.detail))
    except BadFileError as bad:
        report(_damage(file, row, bad))


def _table_rows(file: SourceFile, layout: Layout, advance: Advance) -> Iterator[Row]:
    if file.kind == ".parquet":
        return parquet_rows(file, advance, columns=layout.columns)
    if file.kind == ".arrow":
        return arrow_rows(file, advance, columns=layout.columns)
    delimiter = "," if file.kind.startswith(".csv") else "\t"
    return csv_rows(_lines(file, advance), delimiter=delimiter, columns=layout.columns)


def _lines(file: SourceFile, advance: Advance) -> Iterator[bytes | LongLine]:
    return lines(unpacked_blocks(file.path, advance, kind=file.kind), longest=LONGEST_ROW_BYTES)


# ---- Text files ----


def _read_txt(file: SourceFile, layout: Layout, report: OnProblem, advance: Advance) -> Iterator[Document]:
    parts = _TxtParts()
    try:
        for block in unpacked_blocks(file.path, advance, kind=file.kind):
            for row, data in parts.add(block):
                yield from _txt_part(data, f"{file.name}#{parts.number}", file, row, report)
    except BadFileError as bad:
        row = parts.row + parts.rest.count(b"\n")
        report(ReadProblem(file.name, row if parts.number else None, bad.reason, bad.detail))
        if not parts.number:
            return
        parts.rest = parts.rest[: parts.rest.rfind(b"\n") + 1]
    if parts.rest or not parts.number:
        whole = not parts.number
        name = file.name if whole else f"{file.name}#{parts.number + 1}"
        yield from _txt_part(parts.rest.removesuffix(b"\n"), name, file, None if whole else parts.row, report)


class _TxtParts:
    """Cuts blocks into parts: `number` parts so far, `rest` is not cut yet and begins on line `row`."""

    def __init__(self) -> None:
        self.rest, self.number, self.row = b"", 0, 1
        self._within_long_line = False

    def add(self, block: bytes) -> Iterator[tuple[int, bytes]]:
        """(first line, bytes) of every part that is complete now."""
        data, start = self.rest + block, 0
        while True:
            end = data.find(b"\n", start + TXT_PART_BYTES - 1)
            longest = 2 * TXT_PART_BYTES if self._within_long_line else LONGEST_TXT_LINE_BYTES
            cuts_line = len(data) - start > longest and not 0 <= end < start + longest
            if cuts_line:
                end = _place_to_cut(data, start)
            elif end < 0:
                self.rest = data[start:]
                return
            part, first = data[start:end], self.row
            start = end if cuts_line else end + 1
            self.row += part.count(b"\n") + (not cuts_line)
            self._within_long_line = cuts_line
            self.number += 1
            yield first, part


def _place_to_cut(data: bytes, start: int) -> int:
    """Where to cut a long line: after its last 。 within a part's size, else before a character."""
    sentence = data.rfind("。".encode(), start + TXT_PART_BYTES // 2, start + TXT_PART_BYTES)
    if sentence >= 0:
        return sentence + 3
    end = start + TXT_PART_BYTES
    while end > start + TXT_PART_BYTES - 4 and data[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _txt_part(data: bytes, name: str, file: SourceFile, row: int | None, report: OnProblem) -> Iterator[Document]:
    try:
        text = decode_utf8(data)
        check_text(text)
    except BadRowError as bad:
        report(ReadProblem(file.name, row, bad.reason, bad.detail))
    else:
        yield Document(text, name, {"file": file.name, "row": row})


# ---- Web pages ----


def _read_page(file: SourceFile, layout: Layout, report: OnProblem, advance: Advance) -> Iterator[Document]:
    assert layout.pages is not None
    try:
        data = bytearray()
        for block in unpacked_blocks(file.path, advance, kind=file.kind):
            data += block
            if len(data) > LONGEST_PAGE_BYTES:
                raise BadFileError(ROW_TOO_LONG, f"a page of more than {LONGEST_PAGE_BYTES} bytes")
        page = layout.pages.read(bytes(data))
        check_text(page.text)
    except (BadFileError, BadRowError) as bad:
        report(ReadProblem(file.name, None, bad.reason, bad.detail))
    else:
        yield Document(page.text, file.name, {"file": file.name, "row": None, **page.metadata})


def _read_archive(file: SourceFile, layout: Layout, report: OnProblem, advance: Advance) -> Iterator[Document]:
    assert layout.pages is not None
    row = 0
    try:
        for row, response in read_responses(stored_blocks(file.path, advance), is_gzip=file.kind.endswith(".gz")):
            try:
                if isinstance(response, BadRowError):
                    raise response
                page = layout.pages.read(response.body, url=response.url, content_type=response.content_type)
                check_text(page.text)
            except BadRowError as bad:
                report(ReadProblem(file.name, row, bad.reason, bad.detail))
            else:
                said = {"file": file.name, "row": row, **page.metadata, **response.metadata}
                yield Document(page.text, usable_id(response.url) or f"{file.name}:{row}", said)
    except BadFileError as bad:
        report(ReadProblem(file.name, None, bad.reason, bad.detail))
