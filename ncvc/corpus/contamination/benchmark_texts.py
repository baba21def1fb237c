"""The texts of benchmarks, as items to look for in a corpus: IgakuQA, JMED-LLM, JMMLU, or any file given.

Files: .jsonl, .json (an array of objects), .csv, .tsv, .txt, each also as .gz, and .parquet; one, or a folder with
any of them. What an item is: one row; its text is the question and, on lines of their own, its options (never the
answer). Which fields these are is known for the usual names (`QUESTION_FIELDS`, `OPTION_FIELDS`) and for a .csv
without a header whose rows end in the letter of the answer (JMMLU); for all else the caller names the fields, by
number from 1 when there is no header. A .txt file is cut at empty lines into items.

A field that says the same in every row of a file is boilerplate (the worked examples in JMED-LLM's jcsts) and left
out. `Item.wholes` are the parts that make sense alone: the question without its options, the document that JMED-LLM
puts in 「…」 after its instruction, each sentence of a pair, each line of a .txt file.

Costs: every file is held in memory. IgakuQA's answers and metadata hold no text and are passed over.
Does not: clean the texts, or guess encodings (UTF-8 alone is read).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ncvc.corpus.reading.problems import BROKEN_CSV, BROKEN_JSON, DAMAGED_FILE, EMPTY_TEXT, NO_TEXT_FIELD, ReadProblem

KINDS = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet")
QUESTION_FIELDS = (
    *("context", "passage", "instruction", "input", "problem_text", "problem", "question", "query", "prompt", "text"),
    *("sentence", "sentence1", "sentence2"),
)
"""Fields that hold a question or the text it is about; all that a row has are taken, in this order."""
OPTION_FIELDS = ("choices", "options", "candidates")
"""Fields that hold the options; so do those that begin with "option" or "choice"."""
ID_FIELDS = ("problem_id", "id")

_METADATA = "_metadata.jsonl"  # IgakuQA's statistics of each question
_SAME_IN_ALL = 3  # rows from which on a field that never changes is boilerplate
_QUOTED = re.compile(r"\n\s*「(.+)」\s*\Z", re.DOTALL)
_PAIR = re.compile(r"^S[0-9]\s*[:：]\s*(.+)$", re.MULTILINE)
_EMPTY_LINES = re.compile(r"\n(?:[ \t\u3000]*\n)+")
_LONGEST_CELL = 1 << 25

logger = logging.getLogger(__name__)
Problems = Callable[[ReadProblem], None]


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a benchmark, raw: its text, and the parts to look for whole when they are shorter than a window."""

    benchmark: str
    id: str
    text: str
    wholes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark to read: a file or folder, and the fields that hold its text (None: the usual names)."""

    name: str
    path: Path
    fields: tuple[str | int, ...] | None = None


@dataclass(slots=True)
class _Row:
    """One row: where it stands, its question fields and its options."""

    number: int
    id: str | None
    questions: list[str]
    options: list[str]


class _BadFileError(Exception):
    pass


def report_problem(problem: ReadProblem) -> None:
    """The usual `on_problem`: a warning in the log."""
    logger.warning("benchmark text left out: %s", problem)


def read_benchmark(benchmark: Benchmark, *, on_problem: Problems = report_problem) -> list[Item]:
    """The items of `benchmark`, files by name and rows in order.

    `on_problem` is called for every file or row left out. Raises FileNotFoundError if the path is not there and
    ValueError if not one item comes out.
    """
    setting = f"contamination.sources.{benchmark.name}"
    path = benchmark.path.expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"{setting}.path={benchmark.path} does not exist (looked in {Path.cwd()} if relative); set it to the "
            f"benchmark's file or folder, or {setting}=null to do without"
        )
    found: list[ReadProblem] = []

    def note(problem: ReadProblem) -> None:
        found.append(problem)
        on_problem(problem)

    items = []
    for name, file in _files(path):
        try:
            rows = _rows(file, name=name, fields=benchmark.fields, on_problem=note)
        except _BadFileError as error:
            note(ReadProblem(name, None, DAMAGED_FILE, str(error)))
            continue
        if not rows:
            note(ReadProblem(name, None, NO_TEXT_FIELD, _fields_wanted(benchmark)))
        for row in _without_boilerplate(rows):
            item = _item(row, benchmark=benchmark.name, name=name)
            if item is None:
                note(ReadProblem(name, row.number, EMPTY_TEXT, "no character but white space"))
            else:
                items.append(item)
    if not items:
        told = f"; first: {found[0]}" if found else f": no file of a known kind ({', '.join(KINDS)})"
        raise ValueError(
            f"{setting}.path={benchmark.path} yields no item{told}. Set {setting}.fields to the names of the fields "
            "that hold the text (numbers from 1 for a .csv without a header)"
        )
    return items


def _fields_wanted(benchmark: Benchmark) -> str:
    wanted = QUESTION_FIELDS if benchmark.fields is None else benchmark.fields
    return f"no row has one of the fields {', '.join(map(str, wanted))}"


def _kind(path: Path) -> str | None:
    name = path.name.lower().removesuffix(".gz")
    return next((kind for kind in KINDS if name.endswith(kind)), None)


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """Visible files of known kinds, by relative name; IgakuQA's metadata are passed over."""
    if path.is_file():
        yield path.name, path
        return
    for file in sorted(path.rglob("*"), key=lambda file: file.relative_to(path).as_posix()):
        relative = file.relative_to(path)
        hidden = any(part.startswith(".") for part in relative.parts)
        if file.is_file() and not hidden and _kind(file) and not file.name.endswith(_METADATA):
            yield relative.as_posix(), file


def _rows(file: Path, *, name: str, fields: Sequence[str | int] | None, on_problem: Problems) -> list[_Row]:
    """The rows of one file that have a question; raises _BadFileError when it cannot be read."""
    kind = _kind(file)
    try:
        if kind == ".parquet":
            records: Iterable[tuple[int, Any]] = enumerate(_parquet(file), start=1)
        else:
            data = file.read_bytes()
            text = (gzip.decompress(data) if file.name.lower().endswith(".gz") else data).decode("utf-8-sig")
            if kind == ".txt":
                return _paragraphs(text)
            if kind in (".csv", ".tsv"):
                records = _table(text, delimiter="\t" if kind == ".tsv" else ",", fields=fields)
            else:
                records = _objects(text, kind=kind, name=name, on_problem=on_problem)
        rows = [_row(number, record, fields=fields) for number, record in records]
    except UnicodeDecodeError as error:
        raise _BadFileError(f"not UTF-8: {error.reason} at byte {error.start}; convert the file to UTF-8") from error
    except (OSError, EOFError, zlib.error, csv.Error, ValueError) as error:
        raise _BadFileError(
            f"{BROKEN_CSV if isinstance(error, csv.Error) else type(error).__name__}: {error}"
        ) from error
    return [row for row in rows if row is not None]


def _parquet(file: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"reading {file} needs the package pyarrow, which is not installed; run pip install 'ncvc[corpus]'"
        ) from error
    return pyarrow.parquet.read_table(file).to_pylist()


def _objects(text: str, *, kind: str | None, name: str, on_problem: Problems) -> Iterator[tuple[int, Any]]:
    if kind == ".json":
        try:
            records = json.loads(text)
        except RecursionError as error:
            raise _BadFileError("nested too deeply") from error
        if not isinstance(records, list):
            raise _BadFileError(f"an array of objects is read, not {type(records).__name__}")
        yield from enumerate(records, start=1)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                on_problem(ReadProblem(name, number, BROKEN_JSON, str(error)))


def _table(text: str, *, delimiter: str, fields: Sequence[str | int] | None) -> Iterator[tuple[int, dict[Any, str]]]:
    """Rows as {column: cell}; columns of a file without a header are numbered from 1."""
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    cells = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if any(row)]
    if not cells:
        return
    header = [cell.strip() for cell in cells[0]]
    wanted = set(QUESTION_FIELDS if fields is None else fields)
    if wanted & set(header):
        for number, row in enumerate(cells[1:], start=2):
            yield number, dict(zip(header, row, strict=False))
        return
    if fields is None:
        answers = {row[-1].strip() for row in cells}
        if len(header) < 3 or not all(re.fullmatch("[A-J]", answer) for answer in answers):
            return
    for number, row in enumerate(cells, start=1):
        named: dict[Any, str] = dict(enumerate(row, start=1))
        if fields is None:
            named = {"question": row[0], **{f"option{place}": cell for place, cell in enumerate(row[1:-1])}}
        yield number, named


def _row(number: int, record: Any, *, fields: Sequence[str | int] | None) -> _Row | None:
    if not isinstance(record, Mapping):
        return None
    if fields is None:
        names: list[Any] = [name for name in QUESTION_FIELDS if _strings(record.get(name))]
        others = [name for name in record if _is_option(name)]
    else:
        names, others = [name for name in fields if name in record], []
    if not names:
        return None
    chosen = next((record[name] for name in ID_FIELDS if isinstance(record.get(name), str | int)), None)
    return _Row(
        number,
        None if chosen is None or chosen == "" else str(chosen),
        ["\n".join(_strings(record[name])) for name in names],
        ["\n".join(_strings(record[name])) for name in others],
    )


def _is_option(name: Any) -> bool:
    return isinstance(name, str) and (name in OPTION_FIELDS or name.lower().startswith(("option", "choice")))


def _strings(value: Any) -> list[str]:
    """The texts in a cell: a string, or those in a list or an object, however nested."""
    if isinstance(value, str):
        return [value] if value.strip() else []
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [str(value)]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [text for part in value for text in _strings(part)]
    return []


def _paragraphs(text: str) -> list[_Row]:
    """Items of a .txt file: parts between empty lines; each line may be looked for whole."""
    rows, start, line = [], 0, 1
    text = text.replace("\r\n", "\n")
    for mark in [*_EMPTY_LINES.finditer(text), None]:
        end = mark.end() if mark else len(text)
        part = text[start : mark.start() if mark else len(text)]
        if part.strip():
            rows.append(_Row(line, None, [part], []))
        line += text.count("\n", start, end)
        start = end
    return rows


def _without_boilerplate(rows: list[_Row]) -> list[_Row]:
    """The rows without the fields that say the same in all of them; one question field is always left."""
    if len(rows) < _SAME_IN_ALL:
        return rows
    for of in (lambda row: row.options, lambda row: row.questions):
        columns = len(of(rows[0]))
        if any(len(of(row)) != columns for row in rows):
            continue
        same = [place for place in range(columns) if len({of(row)[place] for row in rows}) == 1]
        if len(same) == columns and of(rows[0]) is rows[0].questions:
            continue
        for row in rows:
            of(row)[:] = [text for place, text in enumerate(of(row)) if place not in same]
    return rows


def _item(row: _Row, *, benchmark: str, name: str) -> Item | None:
    wholes = []
    for question in row.questions:
        quoted = _QUOTED.search(question)
        parts = [question, *([quoted[1]] if quoted else []), *_PAIR.findall(question)]
        if _kind(Path(name)) == ".txt":
            parts += question.split("\n")
        wholes += [part.strip() for part in parts if part.strip()]
    text = "\n".join(part for part in (*row.questions, *row.options) if part.strip())
    if not wholes or not text:
        return None
    return Item(benchmark, row.id or f"{name}:{row.number}", text, tuple(dict.fromkeys(wholes)))
