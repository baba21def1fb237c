"""The files of JMED-LLM (R71): eight full sets and eight test sets of 100 rows, found by name and read strictly.

Files: ``CRADE``, ``CRNER``, ``JCSTS``, ``JMMLU-Med``, ``NRNER``, ``RRNER``, ``RRTNM`` and ``SMDIS`` are the full sets,
``crade`` ... ``smdis`` the test sets, which are part of them. They are looked for anywhere below a folder, in any case;
where a name serves both, the full set is the one below a folder ``all``, or the one written in capitals. Of several
the one with the shortest path is taken, as in the original repository, which keeps its first version in ``v1``.

A benchmark is read whole or not at all: a missing file, bytes that are not UTF-8, NUL, wrong columns, a letter that is
no option or a list that cannot be read are a ``ValueError`` with file and line. Lists are never evaluated as code.
Costs: 0.4 s for all files. Does not: score, or download.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ncvc.evaluation.benchmark_rows import decoded
from ncvc.evaluation.spans import parse_python_strings

CHOICE_TASKS = ("jmmlu_med", "crade", "rrtnm", "smdis", "jcsts")
SPAN_TASKS = ("mrner_disease", "mrner_medicine", "nrner")
TASKS = CHOICE_TASKS + SPAN_TASKS
FULL_SETS = {
    "JMMLU-Med": ("jmmlu_med",),
    "CRADE": ("crade",),
    "RRTNM": ("rrtnm",),
    "SMDIS": ("smdis",),
    "JCSTS": ("jcsts",),
    "CRNER": ("mrner_disease", "mrner_medicine"),
    "RRNER": ("mrner_disease",),
    "NRNER": ("nrner",),
}
"""The full sets, and the tasks their rows belong to."""
LETTERS = "ABCDEF"

_MRNER = {"d": "mrner_disease", "m-key": "mrner_medicine", "m-val": "mrner_medicine"}  # by the rows' tag
_COLUMNS = {"tag", "question", "answer", *(f"option{letter}" for letter in LETTERS)}
_PASSAGE = re.compile(r"\n「(.*)」\s*\Z", re.DOTALL)
_SENTENCES = re.compile(r"\nS1: (.*?)\nS2: (.*)\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Row:
    """One row: where it stands (``row`` counts from 0), its raw texts, and what it is about.

    ``options`` are the texts of the options A, B, ...; ``gold`` is a letter or the spans; ``texts`` are the passage
    in 「…」, the two sentences (jcsts) or the question itself (jmmlu_med).
    """

    task: str
    source: str
    row: int
    tag: str
    question: str
    options: tuple[str, ...]
    gold: str | tuple[str, ...]
    texts: tuple[str, ...]


def passage_of(question: str) -> str | None:
    """The passage that stands in 「…」 on lines of its own at a question's end, or None."""
    found = _PASSAGE.search(question)
    return found[1] if found else None


def find_files(folder: Path, *, tasks: Sequence[str] = TASKS) -> dict[str, Path]:
    """Paths by name (``FULL_SETS`` and the tasks, for the test sets); all that ``tasks`` need are among them.

    ``FileNotFoundError`` names every file that is missing, ``ValueError`` an unknown task and two files of equal right.
    """
    if unknown := [task for task in tasks if task not in TASKS]:
        raise ValueError(f"JMED-LLM has no task {', '.join(map(repr, unknown))}; its tasks are {', '.join(TASKS)}.")
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is no folder (looked in {Path.cwd()} if relative); "
            "set it to the folder with the csv files of JMED-LLM."
        )
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if inside.suffix.lower() == ".csv" and not hidden and path.is_file() and (name := _name_of(inside)):
            found.setdefault(name, []).append(path)
    needed = [name for name, held in FULL_SETS.items() if set(held) & set(tasks)] + [t for t in TASKS if t in tasks]
    if missing := [name for name in needed if name not in found]:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(f'{name}.csv' for name in missing)} of JMED-LLM (the names in capitals are the "
            "full sets, the others the test sets); add them, or leave out the tasks that need them."
        )
    return {name: _nearest(paths, folder) for name, paths in found.items()}


def read_set(path: Path, *, name: str) -> list[Row]:
    """The rows of one file, ``name`` being a key of ``find_files``; ``ValueError`` names file and line of a fault."""
    rows = []
    for number, (line, cells) in enumerate(_records(path)):
        try:
            rows.append(_row(cells, name=name, number=number))
        except ValueError as error:
            raise ValueError(f"{path}, line {line} (row {number}): {error}") from error
    if not rows:
        raise ValueError(f"{path} has no row below its header; take the file from JMED-LLM again.")
    return rows


def _name_of(inside: Path) -> str | None:
    """The set a file is by its relative path, or None."""
    stem = re.sub(r"[^a-z0-9]", "", inside.stem.lower())
    full = next((name for name in FULL_SETS if re.sub(r"[^a-z0-9]", "", name.lower()) == stem), None)
    test = next((task for task in TASKS if task.replace("_", "") == stem), None)
    folders = {part.lower() for part in inside.parts[:-1]}
    is_full = "all" in folders or ("test" not in folders and inside.stem != inside.stem.lower())
    return full if full and (is_full or not test) else test


def _nearest(paths: Sequence[Path], folder: Path) -> Path:
    """The one path with the fewest folders."""
    by_depth = sorted(paths, key=lambda path: len(path.parts))
    rivals = [path for path in by_depth if len(path.parts) == len(by_depth[0].parts)]
    if len(rivals) > 1:
        names = " and ".join(str(path.relative_to(folder)) for path in rivals)
        raise ValueError(f"{folder} holds {names}, which may be the same set of JMED-LLM; leave one of them there.")
    return rivals[0]


def _records(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line on which it begins, cells by column) of every row."""
    reader = csv.reader(io.StringIO(decoded(path.read_bytes(), path), newline=""), strict=True)
    header: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{path}, line {line}: is no csv row ({error}); mend the quotation marks.") from error
        if cells is None:
            break
        if not header:
            header = _checked_header([cell.strip() for cell in cells], path)
        elif cells:
            if len(cells) != len(header):
                raise ValueError(
                    f"{path}, line {line}: the row has {len(cells)} cells and the header {len(header)}; "
                    "quote cells that hold commas or line breaks."
                )
            plain = (cell.replace("\r\n", "\n").replace("\r", "\n") for cell in cells)
            yield line, dict(zip(header, plain, strict=True))
    if not header:
        raise ValueError(f"{path} is empty; take the file from JMED-LLM again.")


def _checked_header(header: list[str], path: Path) -> list[str]:
    wrong = [f"lacks {name}" for name in ("question", "answer") if name not in header]
    wrong += [f"has the unknown column {name!r}" for name in header if name not in _COLUMNS]
    wrong += [f"has {name} twice" for name in sorted(set(header)) if header.count(name) > 1]
    if wrong:
        raise ValueError(
            f"{path}: the first line {', '.join(wrong)}; "
            "it has to name the columns tag, question, optionA ... and answer."
        )
    return header


def _row(cells: dict[str, str], *, name: str, number: int) -> Row:
    tag, question, answer = cells.get("tag", ""), cells["question"], cells["answer"]
    task = name if name in TASKS else FULL_SETS[name][0]
    if name in ("CRNER", "RRNER"):
        if tag not in _MRNER or _MRNER[tag] not in FULL_SETS[name]:
            raise ValueError(f"the tag is {tag!r}; {name} knows {', '.join(_MRNER) if name == 'CRNER' else 'd'}.")
        task = _MRNER[tag]
    if not question.strip():
        raise ValueError("the question is empty; take the file from JMED-LLM again.")
    options = _options(cells) if task in CHOICE_TASKS else ()
    gold: str | tuple[str, ...] = _spans(answer) if task in SPAN_TASKS else _letter(answer, len(options))
    return Row(task, name, number, tag, question, options, gold, _texts(question, task))


def _options(cells: dict[str, str]) -> tuple[str, ...]:
    texts = [cells.get(f"option{letter}", "") for letter in LETTERS]
    options = tuple(itertools.takewhile(str.strip, texts))
    if len(options) < 2 or any(text.strip() for text in texts[len(options) :]):
        given = [letter for letter, text in zip(LETTERS, texts, strict=True) if text.strip()]
        raise ValueError(
            f"the options with a text are {', '.join(given) or 'none'}; at least A and B need one, and none may be "
            "left out in between."
        )
    return options


def _letter(answer: str, options: int) -> str:
    letter = answer.strip()
    if len(letter) != 1 or letter not in LETTERS[:options]:
        raise ValueError(
            f"the answer is {answer[:40]!r}; it has to be one of the letters {', '.join(LETTERS[:options])}."
        )
    return letter


def _spans(answer: str) -> tuple[str, ...]:
    spans = parse_python_strings(answer)
    if spans is None or not all(span.strip() for span in spans):
        raise ValueError(f"the answer {answer[:40]!r} is no list of texts; write it like ['a', 'b'].")
    return tuple(spans)


def _texts(question: str, task: str) -> tuple[str, ...]:
    if task == "jmmlu_med":
        return (question,)
    if task == "jcsts":
        if not (pair := _SENTENCES.search(question)):
            raise ValueError("the question holds no two sentences in lines that begin with S1: and S2:.")
        return (pair[1], pair[2])
    passage = passage_of(question)
    if passage is None or not passage.strip():
        raise ValueError("the question ends in no passage in 「…」 on lines of its own.")
    return (passage,)
