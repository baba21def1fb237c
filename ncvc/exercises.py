"""Synthetic examination questions as conversations (R72, R77), from what ``python -m ncvc.synthesize`` kept.

A kept exercise (question, five options, right letters, explanation; `ncvc.corpus.synthesis`) becomes a user turn that
says how many options are right, and an assistant turn: the letters joined by ",", then the explanation. Letters come
first, so that an answer can be read, scored and constrained without its explanation.

Costs: 60,000 exercises per second, a line in memory. Does not: judge whether an exercise is right, or find duplicates
(the synthesis did).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ncvc.chat import Message
from ncvc.corpus.reading.json_rows import json_rows
from ncvc.corpus.reading.problems import (
    LONE_SURROGATE,
    NO_TEXT_FIELD,
    UNKNOWN_KIND,
    WRONG_LAYOUT,
    BadRowError,
    ReadProblem,
    is_encodable,
)
from ncvc.corpus.reading.sources import SourceFile, find_source_files
from ncvc.corpus.synthesis.checks import LETTERS

INSTRUCTION = "次の問題の正しい選択肢を{number}つ選んで記号で答え、理由を説明してください。"
KINDS = (".jsonl", ".jsonl.gz", ".jsonl.zst")
REJECTS = "rejects.jsonl"  # what the synthesis did not keep, beside what it kept

logger = logging.getLogger(__name__)
Problems = Callable[[ReadProblem], None]


def report_problem(problem: ReadProblem) -> None:
    """The usual `on_problem`: a warning in the log."""
    logger.warning("exercise left out: %s", problem)


def read_exercises(path: Path, *, on_problem: Problems = report_problem) -> Iterator[tuple[str, list[Message]]]:
    """(id, conversation) of every exercise in a folder of the synthesis, its `documents`, or one .jsonl (.gz, .zst).

    Files come by name, rows in order; a row without an id is called file:line. `on_problem` is called for every row or
    file left out. Raises FileNotFoundError or ValueError at once when there is no file of exercises at all.
    """
    path = Path(path).expanduser()
    files, _ = find_source_files(path, setting="the source of exercises")
    chosen = [file for file in files if file.kind in KINDS and Path(file.name).name != REJECTS]
    if not chosen:
        raise ValueError(
            f"{path} holds no file of exercises ({', '.join(KINDS)}); name the folder that python -m ncvc.synthesize "
            "synthesis=exercise wrote."
        )
    for file in files:
        if file.kind not in KINDS:
            on_problem(ReadProblem(file.name, None, UNKNOWN_KIND, f"exercises are read from {', '.join(KINDS)}"))
    return (found for file in chosen for found in _read_file(file, on_problem))


def conversation_of(exercise: Mapping[str, Any]) -> list[Message]:
    """The two turns of an exercise as plain data: question, options by letter, answer (letters), explanation.

    Raises ValueError saying which part is missing or no such thing.
    """
    question, options = exercise.get("question"), exercise.get("options")
    answer, explanation = exercise.get("answer"), exercise.get("explanation")
    for name, value in (("question", question), ("explanation", explanation)):
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"its {name} is {'empty' if isinstance(value, str) else 'no text'}")
    if not isinstance(options, Mapping) or list(options) != list(LETTERS):
        raise ValueError(f"its options are not {', '.join(LETTERS)} in order")
    if not all(isinstance(text, str) and text.strip() for text in options.values()):
        raise ValueError("an option is empty or no text")
    if not isinstance(answer, list) or not answer or any(letter not in list(LETTERS) for letter in answer):
        raise ValueError(f"its answer is not a list of letters out of {', '.join(LETTERS)}")
    if answer != sorted(set(answer)):
        raise ValueError(f"its answer {','.join(answer)} is out of order or names a letter twice")
    asked = [INSTRUCTION.format(number=len(answer)), f"問題: {question}"]
    asked += [f"{letter}: {text}" for letter, text in options.items()]
    return [Message("user", "\n".join(asked)), Message("assistant", f"{','.join(answer)}\n解説: {explanation}")]


def _read_file(file: SourceFile, on_problem: Problems) -> Iterator[tuple[str, list[Message]]]:
    for found in json_rows(file):
        if isinstance(found, ReadProblem):
            on_problem(found)
            continue
        number, row = found
        try:
            yield _read_row(row, name=f"{file.name}:{number}")
        except BadRowError as bad:
            on_problem(ReadProblem(file.name, number, bad.reason, bad.detail))


def _read_row(row: Any, *, name: str) -> tuple[str, list[Message]]:
    if not isinstance(row, dict) or not isinstance(row.get("exercise"), dict):
        kind = row.get("kind") if isinstance(row, dict) else None
        raise BadRowError(NO_TEXT_FIELD, f"no exercise in it{f', it is a {kind}' if isinstance(kind, str) else ''}")
    try:
        messages = conversation_of(row["exercise"])
    except ValueError as error:
        raise BadRowError(WRONG_LAYOUT, str(error)) from None
    if not all(is_encodable(message.content) for message in messages):
        raise BadRowError(LONE_SURROGATE, "half of a surrogate pair, which UTF-8 cannot hold")
    given = row.get("id")
    return given if isinstance(given, str) and given.strip() and is_encodable(given) else name, messages
