"""Documents out of files: .txt, .txt.gz, .jsonl, .jsonl.gz, .jsonl.zst, .parquet; one file or a folder.

What a document is: a .txt file is one document, or, from 150 kB on (about 50,000 characters), several: it is cut at
line ends into parts of that size, so that a corpus in one file can be held out in part and memory stays flat. A line
of a .jsonl file is one JSON object with the text in `text_field`; a row of a .parquet file likewise. Everything is
UTF-8. The id is the row's `id` field if it is a string or a whole number, else "relative/path:row" (rows count from 1);
a .txt file's id is its relative path, a part's "relative/path#part".

Order: files by relative path in code-point order, rows in file order; the same bytes always give the same
documents. Hidden files and folders (a name that begins with a dot) are skipped; a folder reached twice
through links is read once.

Bad input: a row that cannot be used (see `REASONS`) is handed to `on_problem` with its file and row, and the
rest goes on. A truncated or damaged compressed file keeps every whole row before the damage. A source with
nothing to read is an error.

Cost: one block of 256 KiB, its decompressed rows and one document in memory (a row, or a line, is held whole).
zstandard and pyarrow (extra `corpus`) are imported only when the source holds such a file, and then before any work is
done.
Does not: guess encodings, clean, deduplicate, or read csv, json arrays and archives.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from ncvc.corpus.documents import Document

KINDS = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
"""The kinds of file that are read, by the end of their name (upper and lower case alike)."""

TXT_PART_BYTES = 150_000
"""From this size on a .txt file is cut at line ends into several documents."""

UNKNOWN_KIND = "unknown kind of file"
UNDECODABLE = "undecodable bytes"
BROKEN_JSON = "broken JSON"
NO_TEXT_FIELD = "no text field"
NOT_A_STRING = "text is not a string"
EMPTY_TEXT = "empty text"
LONE_SURROGATE = "lone surrogate"
DAMAGED_FILE = "truncated or damaged file"
REASONS = (
    UNKNOWN_KIND,
    UNDECODABLE,
    BROKEN_JSON,
    NO_TEXT_FIELD,
    NOT_A_STRING,
    EMPTY_TEXT,
    LONE_SURROGATE,
    DAMAGED_FILE,
)
"""Every reason a reader gives for leaving a row or a file out."""

_BLOCK_BYTES = 1 << 18
_PARQUET_ROWS = 256
_EXTRA_PACKAGES = {".jsonl.zst": "zstandard", ".parquet": "pyarrow.parquet"}


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


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a known kind; `name` is its path below the source with "/", `num_bytes` its size on disk."""

    path: Path
    name: str
    kind: str
    num_bytes: int


class _BadRowError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def find_source_files(source: Path) -> tuple[list[SourceFile], list[str]]:
    """The files of known kinds in `source` (a file or a folder) in reading order; the names of the others.

    Raises FileNotFoundError, PermissionError or ValueError when there is nothing to read.
    """
    source = Path(source)
    wanted = f"set data.source to a file or a folder with {', '.join(KINDS)}"
    if not source.exists():
        raise FileNotFoundError(f"data.source={source} does not exist (looked in {Path.cwd()} if relative); {wanted}")
    paths = {source.name: source} if not source.is_dir() else _walk(source)
    files, ignored = [], []
    for name in sorted(paths):
        kind = next((kind for kind in reversed(KINDS) if name.lower().endswith(kind)), None)
        if kind is None or not paths[name].is_file():
            ignored.append(name)
        elif not os.access(paths[name], os.R_OK):
            raise PermissionError(
                f"data.source={source}: {name} may not be read by this user; change its permissions or remove it"
            )
        else:
            files.append(SourceFile(paths[name], name, kind, paths[name].stat().st_size))
    if not files:
        seen = f"only {', '.join(ignored[:5])}{' ...' if len(ignored) > 5 else ''}" if ignored else "no files"
        raise ValueError(f"data.source={source} has no file of a known kind ({seen}); {wanted}")
    return files, ignored


def _walk(folder: Path) -> dict[str, Path]:
    """Visible files below `folder`: relative name -> path. Follows links, each real folder once."""
    found, seen = {}, set()
    for root, folders, names in os.walk(folder, followlinks=True):
        status = Path(root).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith("."):
                path = Path(root, name)
                relative = path.relative_to(folder).as_posix()
                found[os.fsencode(relative).decode("utf-8", "backslashreplace")] = path
    return found


def source_fingerprint(source: Path, *, progress: bool = False) -> str:
    """sha256 over relative name, size and contents of every file that would be read.

    About 1 GB/s; nothing is cached.
    """
    files, _ = find_source_files(source)
    total = hashlib.sha256()
    bar = tqdm(
        total=sum(file.num_bytes for file in files),
        desc="fingerprint of the source",
        unit="B",
        unit_scale=True,
        disable=not progress,
    )
    with bar:
        for file in files:
            contents = hashlib.sha256()
            with file.path.open("rb") as handle:
                while block := handle.read(1 << 20):
                    contents.update(block)
                    bar.update(len(block))
            total.update(json.dumps([file.name, file.num_bytes, contents.hexdigest()]).encode())
    return total.hexdigest()


def read_documents(
    source: Path,
    *,
    text_field: str = "text",
    on_problem: Callable[[ReadProblem], None],
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[Document]:
    """Yield the documents of `source`, a file or a folder.

    `on_problem` is called for every row or file left out; `on_progress` with the number of stored
    (compressed) bytes read so far. Raises at the call, before any document: FileNotFoundError,
    PermissionError, ValueError (nothing to read) and ModuleNotFoundError (the source needs the extra
    `corpus`). Raises ValueError at the end if not one document came out.
    """
    files, ignored = find_source_files(source)
    for file in files:
        _extra_package(file)
    return _read_files(Path(source), files, ignored, text_field, on_problem, on_progress)


def _extra_package(file: SourceFile) -> ModuleType | None:
    """The optional package that reads this kind of file; None for kinds that need none."""
    package = _EXTRA_PACKAGES.get(file.kind)
    if package is None:
        return None
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"data.source: {file.name} is a {file.kind} file, and reading it needs the package "
            f"{package.partition('.')[0]}, which is not installed; run pip install 'ncvc[corpus]'",
            name=error.name,
        ) from error


def _read_files(
    source: Path,
    files: list[SourceFile],
    ignored: list[str],
    text_field: str,
    on_problem: Callable[[ReadProblem], None],
    on_progress: Callable[[int], None] | None,
) -> Iterator[Document]:
    counts: Counter[str] = Counter()
    first: dict[str, ReadProblem] = {}

    def report(problem: ReadProblem) -> None:
        counts[problem.reason] += 1
        first.setdefault(problem.reason, problem)
        on_problem(problem)

    for name in ignored:
        report(ReadProblem(name, None, UNKNOWN_KIND, f"known are {', '.join(KINDS)}"))
    num_documents = finished = 0
    for file in files:

        def advance(num_bytes: int, before: int = finished) -> None:
            if on_progress is not None:
                on_progress(before + num_bytes)

        for document in _READERS[file.kind](file, text_field, report, advance):
            num_documents += 1
            yield document
        finished += file.num_bytes
        advance(file.num_bytes)
    if num_documents == 0:
        reasons = "; ".join(f"{count} x {reason}, first {first[reason]}" for reason, count in counts.items())
        raise ValueError(
            f"data.source={source}: not one document in {len(files)} file(s): "
            f"{reasons or 'all files are empty'}. Set data.source to text, and data.text_field (now "
            f"{text_field!r}) to the field that holds it"
        )


def _make_document(fields: object, *, text_field: str, file: SourceFile, row: int) -> Document:
    """The document of one row; raises _BadRowError."""
    if not isinstance(fields, Mapping):
        raise _BadRowError(BROKEN_JSON, f"the row is a {type(fields).__name__}, not an object with fields")
    text = fields.get(text_field)
    if text is None:
        what = "is null" if text_field in fields else "is missing"
        raise _BadRowError(NO_TEXT_FIELD, f"{text_field!r} {what}; fields: {', '.join(map(repr, list(fields)[:10]))}")
    if not isinstance(text, str):
        raise _BadRowError(NOT_A_STRING, f"{text_field!r} holds a {type(text).__name__}")
    _check_text(text)
    name = fields.get("id")
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    if not isinstance(name, str) or not name or not _is_encodable(name):
        name = f"{file.name}:{row}"
    return Document(text=text, id=name)


def _check_text(text: str) -> None:
    if not text or text.isspace():
        raise _BadRowError(EMPTY_TEXT, "no character but white space")
    if not _is_encodable(text):
        raise _BadRowError(LONE_SURROGATE, "half of a surrogate pair, which UTF-8 cannot hold")


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _BadRowError(
            UNDECODABLE, f"not UTF-8: {error.reason} at byte {error.start}; convert the file to UTF-8"
        ) from None


def _read_txt(
    file: SourceFile, text_field: str, report: Callable[[ReadProblem], None], advance: Callable[[int], None]
) -> Iterator[Document]:
    part: list[bytes] = []
    size, first_row, row, number = 0, 1, 0, 0
    try:
        for line in _lines(_decompressed(file, advance)):
            row += 1
            part.append(line)
            size += len(line) + 1
            if size >= TXT_PART_BYTES:
                number += 1
                yield from _txt_part(part, name=f"{file.name}#{number}", file=file, row=first_row, report=report)
                part, size, first_row = [], 0, row + 1
    except (EOFError, zlib.error) as error:
        report(ReadProblem(file.name, row + 1 if number else None, DAMAGED_FILE, str(error)))
        if not number:
            return
    if part or not number:
        name = f"{file.name}#{number + 1}" if number else file.name
        yield from _txt_part(part, name=name, file=file, row=first_row if number else None, report=report)


def _txt_part(
    lines: list[bytes], *, name: str, file: SourceFile, row: int | None, report: Callable[[ReadProblem], None]
) -> Iterator[Document]:
    try:
        text = _decode(b"\n".join(lines))
        _check_text(text)
    except _BadRowError as bad:
        report(ReadProblem(file.name, row, bad.reason, bad.detail))
    else:
        yield Document(text=text, id=name)


def _read_jsonl(
    file: SourceFile, text_field: str, report: Callable[[ReadProblem], None], advance: Callable[[int], None]
) -> Iterator[Document]:
    damage: type[Exception] = zlib.error
    if (zstandard := _extra_package(file)) is not None:
        damage = zstandard.ZstdError
    row = 0
    try:
        for row, line in enumerate(_lines(_decompressed(file, advance)), start=1):
            if not line.strip():
                continue
            try:
                try:
                    fields = json.loads(_decode(line))
                except (ValueError, RecursionError) as error:
                    raise _BadRowError(BROKEN_JSON, str(error)) from None
                yield _make_document(fields, text_field=text_field, file=file, row=row)
            except _BadRowError as bad:
                report(ReadProblem(file.name, row, bad.reason, bad.detail))
    except (EOFError, damage) as error:
        report(ReadProblem(file.name, row + 1, DAMAGED_FILE, f"{error}; the {row} rows before are kept"))


def _decompressed(file: SourceFile, advance: Callable[[int], None]) -> Iterator[bytes]:
    """Blocks of the contents; EOFError if a stream stops early, zlib.error or ZstdError if it is damaged."""
    package = _extra_package(file)
    if package is not None:
        decompressor = package.ZstdDecompressor(max_window_size=1 << 31)
    with file.path.open("rb", buffering=0) as handle:
        stream = None
        while block := handle.read(_BLOCK_BYTES):
            advance(handle.tell())
            if file.kind in (".txt", ".jsonl"):
                yield block
                continue
            while block:
                if stream is None:
                    stream = decompressor.decompressobj() if package else zlib.decompressobj(wbits=31)
                yield stream.decompress(block)
                # A file may hold several streams one after the other; gzip may pad the end with zero bytes.
                block = stream.unused_data if stream.eof else b""
                if stream.eof:
                    stream = None
                    block = block if package else block.lstrip(b"\0")
        if stream is not None:
            raise EOFError("the compressed stream ends before its end mark")


def _lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines without newlines; a last line without one counts, half a line before an exception does not."""
    pieces: list[bytes] = []
    for block in blocks:
        first, *others = block.split(b"\n")
        pieces.append(first)
        if others:
            yield b"".join(pieces)
            yield from others[:-1]
            pieces = [others[-1]]
    if last := b"".join(pieces):
        yield last


def _read_parquet(
    file: SourceFile, text_field: str, report: Callable[[ReadProblem], None], advance: Callable[[int], None]
) -> Iterator[Document]:
    parquet: Any = _extra_package(file)
    damage = (importlib.import_module("pyarrow").ArrowException, OSError)
    row = 0
    try:
        with parquet.ParquetFile(file.path) as table:
            names = table.schema_arrow.names
            if text_field not in names:
                detail = f"{text_field!r} is missing; columns: {', '.join(map(repr, names[:10]))}"
                report(ReadProblem(file.name, None, NO_TEXT_FIELD, detail))
                return
            columns = [name for name in ("id", text_field) if name in names]
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=columns):
                for index in range(batch.num_rows):
                    row += 1
                    try:
                        yield _make_document(_parquet_row(batch, index), text_field=text_field, file=file, row=row)
                    except _BadRowError as bad:
                        report(ReadProblem(file.name, row, bad.reason, bad.detail))
                advance(file.num_bytes * row // max(1, table.metadata.num_rows))
    except damage as error:
        report(ReadProblem(file.name, row + 1, DAMAGED_FILE, f"{error}; the {row} rows before are kept"))


def _parquet_row(batch, index: int) -> dict[str, object]:  # noqa: ANN001 (pyarrow is an optional import)
    try:
        return {name: batch.column(name)[index].as_py() for name in batch.schema.names}
    except UnicodeDecodeError as error:
        raise _BadRowError(UNDECODABLE, f"not UTF-8: {error.reason} at byte {error.start}") from None


_READERS = {
    ".txt": _read_txt,
    ".txt.gz": _read_txt,
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".jsonl.zst": _read_jsonl,
    ".parquet": _read_parquet,
}
