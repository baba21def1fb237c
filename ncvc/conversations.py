"""Sources of conversations for instruction tuning, read row by row: nothing is dropped without being told (R71, R72).

Kinds of source: ``jmed_llm`` (the JMED-LLM folder, its training rows by split), ``exercises`` (what ``python -m
ncvc.synthesize synthesis=exercise`` wrote) and ``messages`` (any .jsonl, also .gz and .zst, file or folder, with
``{"messages": [{"role": ..., "content": ...}, ...]}`` a line). Every row comes out as a `RawConversation` or as a
`Refusal` with source, row and reason: not JSON, an unknown role, an empty turn, turns out of order, no answer at the
end, half of a surrogate pair, a damaged file.

Costs the reading of the files. What it does not do: tokenize (see `ncvc.conversation_store`), clean, deduplicate.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ncvc.chat import Message, parse_messages
from ncvc.corpus.reading.json_rows import json_rows
from ncvc.corpus.reading.problems import (
    LONE_SURROGATE,
    WRONG_LAYOUT,
    ReadProblem,
    is_encodable,
    shortened,
)
from ncvc.corpus.reading.readers import problem_of_ignored
from ncvc.corpus.reading.sources import SourceFile, find_source_files
from ncvc.settings import settings_from

Kind = Literal["jmed_llm", "exercises", "messages"]
Split = Literal["paper", "document", "grouped"]

NO_CONVERSATION = "no conversation"
NO_ANSWER = "no answer at the end"
TOO_LONG = "too long"
NOTHING_LEFT = "nothing left after cleaning"
NO_TARGET = "no target token"


@dataclass(frozen=True, kw_only=True)
class ConversationSource:
    """One source: where it lies, its kind, and its share of the training samples (null: its natural share).

    ``split`` is for ``jmed_llm`` alone: ``paper`` (all rows that are no test rows, the report's 22,741), ``document``
    (no document of any test row) or ``grouped`` (all folds of documents but ``fold``).
    """

    name: str
    path: str
    kind: Kind
    weight: float | None = None
    split: Split | None = None
    fold: int | None = None

    def __post_init__(self) -> None:
        where = f"data.sources.{self.name}"
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(f"{where}: the name of a source names a folder; use letters, digits, _, - and dots.")
        if self.kind not in get_args(Kind):
            raise ValueError(f"{where}.kind={self.kind!r} is none of {', '.join(get_args(Kind))}; set one of these.")
        if self.kind != "jmed_llm" and (self.split is not None or self.fold is not None):
            raise ValueError(
                f"{where}: split and fold are for kind jmed_llm, and this is {self.kind}; set both to null."
            )
        if self.kind == "jmed_llm" and self.split not in get_args(Split):
            raise ValueError(f"{where}.split={self.split!r} is none of {', '.join(get_args(Split))}; set one of these.")
        if (self.split == "grouped") != (self.fold is not None):
            wanted = "needs a fold" if self.split == "grouped" else f"has no folds, and fold={self.fold} is set"
            raise ValueError(
                f"{where}.split={self.split} {wanted}: set fold to the number of the fold to leave out with "
                "split=grouped, and to null with any other."
            )


@dataclass(frozen=True, slots=True)
class RawConversation:
    """One finished conversation: ``row`` says where it stands, ``group`` which document it is about (or nothing)."""

    row: str
    messages: tuple[Message, ...]
    group: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One row, or one file, that is no conversation: ``reason`` is one of a few fixed phrases."""

    row: str
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.row}: {self.reason} ({self.detail})"


def sources_from(sources: Mapping[str, Any]) -> list[ConversationSource]:
    """The group ``data.sources``, {name: {path, kind, weight, split, fold}}; one ``ValueError`` for what is wrong."""
    if not isinstance(sources, Mapping) or not sources:
        raise ValueError("data.sources is empty: name at least one source of conversations, {name: {path, kind}}.")
    found = []
    for name, values in sources.items():
        if not isinstance(values, Mapping):
            raise ValueError(f"data.sources.{name}={values!r}: must be a group of settings: path, kind, weight.")
        settings = {**values, "name": str(name)}
        found.append(settings_from(ConversationSource, settings, path=f"data.sources.{name}"))
    return found


def read_conversations(source: ConversationSource) -> Iterator[RawConversation | Refusal]:
    """Every row of ``source`` in the order of its files.

    Raises, naming the setting, where the path leads to nothing that can be read.
    """
    path = Path(source.path).expanduser()
    if source.kind == "jmed_llm":
        return _jmed_llm(source, path)
    if source.kind == "exercises":
        return _exercises(path)
    return _messages(source, path)


def _jmed_llm(source: ConversationSource, path: Path) -> Iterator[RawConversation | Refusal]:
    from ncvc.evaluation.jmed_llm import training_conversations

    assert source.split is not None
    for example in training_conversations(path, split=source.split, fold=source.fold):
        yield _checked(f"{example.source}:{example.row}", example.messages, group=example.document)


def _exercises(path: Path) -> Iterator[RawConversation | Refusal]:
    from ncvc.exercises import read_exercises

    problems: deque[ReadProblem] = deque()
    for name, messages in read_exercises(path, on_problem=problems.append):
        yield from _told(problems)
        yield _checked(str(name), tuple(messages))
    yield from _told(problems)


def _told(problems: deque[ReadProblem]) -> Iterator[Refusal]:
    while problems:
        yield _refusal(problems.popleft())


def _refusal(problem: ReadProblem) -> Refusal:
    row = problem.file if problem.row is None else f"{problem.file}:{problem.row}"
    return Refusal(row, problem.reason, problem.detail)


def _messages(source: ConversationSource, path: Path) -> Iterator[RawConversation | Refusal]:
    files, ignored = find_source_files(path, setting=f"data.sources.{source.name}.path")
    for name in ignored:
        problem = problem_of_ignored(name)
        yield Refusal(name, problem.reason, problem.detail)
    for file in files:
        if file.kind.startswith(".jsonl"):
            yield from _messages_of(file)
        else:
            yield Refusal(
                file.name, WRONG_LAYOUT, f"messages are read from .jsonl, .jsonl.gz, .jsonl.zst, not {file.kind}"
            )


def _messages_of(file: SourceFile) -> Iterator[RawConversation | Refusal]:
    for found in json_rows(file):
        yield _refusal(found) if isinstance(found, ReadProblem) else _from_row(found[1], f"{file.name}:{found[0]}")


def _from_row(fields: Any, row: str) -> RawConversation | Refusal:
    if not isinstance(fields, dict) or "messages" not in fields:
        named = isinstance(fields, dict)
        found = f"an object with {', '.join(map(str, fields)) or 'nothing'}" if named else "no object"
        return Refusal(row, NO_CONVERSATION, shortened(f'a line is {{"messages": [...]}}, and this is {found}'))
    try:
        messages = tuple(parse_messages(fields["messages"]))
    except ValueError as error:
        return Refusal(row, NO_CONVERSATION, shortened(str(error)))
    return _checked(row, messages)


def _checked(row: str, messages: tuple[Message, ...], *, group: str = "") -> RawConversation | Refusal:
    """The conversation, or why it cannot be trained on; order and emptiness of turns are told when it is encoded."""
    for number, message in enumerate(messages, 1):
        if not is_encodable(message.content):
            detail = f"message {number} ({message.role}) holds half of a surrogate pair, which UTF-8 cannot hold"
            return Refusal(row, LONE_SURROGATE, detail)
    if not messages or messages[-1].role != "assistant":
        last = messages[-1].role if messages else "nothing"
        return Refusal(row, NO_ANSWER, f"the last message is {last}; a finished conversation ends in an answer")
    return RawConversation(row, messages, group)


def refused(row: str, reason: str, error: ValueError) -> Refusal:
    """A `Refusal` from what the chat template says of a conversation, without the row it repeats."""
    return Refusal(row, reason, shortened(str(error).removeprefix("messages: ")))
