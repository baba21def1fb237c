"""JMED-LLM's rows as conversations, and the one train/test split that tuning and evaluation share (R71, R75, R85).

A row becomes one user turn (instruction, question, options in lines ``A. ...``) and one assistant turn: the letter of
the right option, or the spans in the form of ``write_spans``, in the order in which they stand in the passage (the
files keep them in no order). There is no system turn. The text stays raw; the tokenizer cleans it.

Splits:

- ``paper``: all rows of the full sets but the 800 test rows, 22,741; the report's (R71). It leaks: most test rows are
  about a document whose other rows are trained on.
- ``document``: of these, the rows whose document is in no test row of any task, 19,740. Clean, but it leaves CRADE one
  class and the case reports' extraction tasks next to nothing.
- ``grouped``: five folds by document over all rows; fold k is the test, the others are trained on.

What a document is stands in ``jmed_documents``. Costs: 1.2 s for all files, which stay in memory. Does not:
score answers, download, or draw samples.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ncvc.chat import Message
from ncvc.evaluation.jmed_documents import FOLDS, document_ids, folds_of
from ncvc.evaluation.jmed_files import FULL_SETS, LETTERS, TASKS, Row, find_files, passage_of, read_set
from ncvc.evaluation.spans import read_spans, write_spans

__all__ = [
    "FOLDS", "SPLITS", "TASKS", "Example", "Split", "passage_of", "read_spans", "split_summary", "test_examples",
    "training_conversations", "write_spans",
]  # fmt: skip

Split = Literal["paper", "document", "grouped"]
SPLITS: tuple[str, ...] = get_args(Split)
CHOICE_INSTRUCTION = "次の問いに、正しい選択肢の記号を1つだけ書いて答えてください。"
SPANS_INSTRUCTION = "次の問いに、文中の表現をそのまま抜き出し、JSONの文字列のリストで答えてください。"


@dataclass(frozen=True)
class Example:
    """One row as a conversation.

    ``messages`` end with the right answer; ``source`` and ``row`` (from 0) say where it stands; ``answer`` is the gold
    letter or list of spans, raw; ``options`` are the letters of a choice; ``passage`` is what spans are taken from.
    """

    messages: tuple[Message, ...]
    task: str
    source: str
    row: int
    document: str
    answer: str | list[str]
    options: tuple[str, ...] = ()
    passage: str = ""


@dataclass(frozen=True)
class _Benchmark:
    """All rows, full sets and test sets, with what the splits are made of, by place."""

    rows: list[Row]
    documents: list[str]
    is_test: list[bool]
    tests: list[Row]
    test_documents: list[str]
    folds: dict[str, int]


def training_conversations(
    folder: Path, *, split: Split, fold: int | None = None, tasks: Sequence[str] = TASKS
) -> list[Example]:
    """The rows of ``tasks`` that may be trained on, in the order of the full sets.

    ``folder`` holds JMED-LLM's files (see ``jmed_files``); ``fold`` (0 to 4) is the one left out of ``grouped`` and
    None for the other splits. ``ValueError`` or ``FileNotFoundError`` say what is wrong with the split or a file.
    """
    _check(split, fold)
    data = _load(Path(folder), tasks)
    trained = _trained(data, split, fold)
    places = [place for place, row in enumerate(data.rows) if trained[place] and row.task in tasks]
    return [_example(data.rows[place], data.documents[place]) for place in places]


def test_examples(folder: Path, *, split: Split, fold: int | None = None, task: str | None = None) -> list[Example]:
    """The rows to be tested on, of one task or all: the test sets, or of ``grouped`` the rows of ``fold``.

    Errors as in ``training_conversations``.
    """
    _check(split, fold)
    tasks = TASKS if task is None else (task,)
    data = _load(Path(folder), tasks)
    if split == "grouped":
        found = [(row, name) for row, name in zip(data.rows, data.documents, strict=True) if data.folds[name] == fold]
    else:
        found = list(zip(data.tests, data.test_documents, strict=True))
    return [_example(row, document) for row, document in found if row.task in tasks]


def split_summary(folder: Path) -> str:
    """A Markdown table: rows of each task by split, and how many test rows are about a document trained on."""
    data = _load(Path(folder), TASKS)
    trained = {split: _trained(data, split, None) for split in ("paper", "document")}
    seen = {split: {name for name, taken in zip(data.documents, chosen, strict=True) if taken}
            for split, chosen in trained.items()}  # fmt: skip
    head = ["task", "all rows", "paper", "document", "grouped, fold 0-4", "tests", "seen by paper", "by document"]
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for task in (*TASKS, "all"):
        places = [place for place, row in enumerate(data.rows) if task in (row.task, "all")]
        tests = [name for row, name in zip(data.tests, data.test_documents, strict=True) if task in (row.task, "all")]
        by_fold = Counter(data.folds[data.documents[place]] for place in places)
        cells = [f"{len(places):,}", *(f"{sum(chosen[place] for place in places):,}" for chosen in trained.values())]
        cells += [" ".join(f"{by_fold[fold]:,}" for fold in range(FOLDS)), f"{len(tests):,}"]
        cells += [f"{sum(name in names for name in tests):,}" for names in seen.values()]
        lines.append(f"| {' | '.join([task, *cells])} |")
    return "\n".join(
        [*lines, "", "paper, document: rows trained on; grouped: rows of each fold, which share no document."]
    )


def _check(split: str, fold: int | None) -> None:
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is no split of JMED-LLM; set one of {', '.join(SPLITS)}.")
    if split == "grouped" and fold not in range(FOLDS):
        raise ValueError(f"split=grouped with fold={fold!r}: set fold to the one to leave out, 0 to {FOLDS - 1}.")
    if split != "grouped" and fold is not None:
        raise ValueError(
            f"split={split} has no folds, and fold={fold!r} is set; set fold to null, or split to grouped."
        )


def _trained(data: _Benchmark, split: str, fold: int | None) -> list[bool]:
    """Whether each row may be trained on."""
    if split == "grouped":
        return [data.folds[name] != fold for name in data.documents]
    avoided = set(data.test_documents) if split == "document" else set()
    return [not test and name not in avoided for test, name in zip(data.is_test, data.documents, strict=True)]


def _load(folder: Path, tasks: Sequence[str]) -> _Benchmark:
    """The benchmark below ``folder``, read once as long as its files stay as they are."""
    files = find_files(Path(folder), tasks=tasks)
    statuses = {name: path.stat() for name, path in files.items()}
    return _read(
        tuple((name, path, statuses[name].st_size, statuses[name].st_mtime_ns) for name, path in files.items())
    )


@functools.lru_cache(maxsize=1)
def _read(files: tuple[tuple[str, Path, int, int], ...]) -> _Benchmark:
    paths = {name: path for name, path, _, _ in files}
    rows = [row for name in FULL_SETS if name in paths for row in read_set(paths[name], name=name)]
    tests = [row for name in TASKS if name in paths for row in read_set(paths[name], name=name)]
    tested = {_contents(row) for row in tests}
    is_test = [_contents(row) in tested for row in rows]
    known = {_contents(row) for row, test in zip(rows, is_test, strict=True) if test}
    for row in tests:
        whole = all(name in paths for name, held in FULL_SETS.items() if row.task in held)
        if whole and _contents(row) not in known:
            raise ValueError(
                f"{paths[row.source]}, row {row.row}: this test row is in no full set, so nobody knows whether it "
                "would be trained on; take full sets and test sets from one version of JMED-LLM."
            )
    documents = document_ids([*rows, *tests])
    folds = folds_of(documents[: len(rows)], sources=[row.source for row in rows])
    return _Benchmark(rows, documents[: len(rows)], is_test, tests, documents[len(rows) :], folds)


def _contents(row: Row) -> tuple[object, ...]:
    """Every column of a row."""
    return (row.task, row.tag, row.question, row.options, row.gold)


def _example(row: Row, document: str) -> Example:
    letters = tuple(LETTERS[: len(row.options)])
    if isinstance(row.gold, str):
        options = (f"{letter}. {text}" for letter, text in zip(letters, row.options, strict=True))
        asked, answer, passage = "\n".join([CHOICE_INSTRUCTION, row.question, *options]), row.gold, ""
    else:
        asked, passage = f"{SPANS_INSTRUCTION}\n{row.question}", row.texts[0]
        answer = write_spans(_in_order(row.gold, passage))
    gold = row.gold if isinstance(row.gold, str) else list(row.gold)
    messages = (Message("user", asked), Message("assistant", answer))
    return Example(messages, row.task, row.source, row.row, document, gold, letters, passage)


def _in_order(spans: Sequence[str], passage: str) -> list[str]:
    """The distinct spans by where they first stand in the passage; what does not stand there comes last."""
    places = {span: passage.find(span) for span in spans}
    return sorted(places, key=lambda span: places[span] if places[span] >= 0 else len(passage))
