"""Files of prompts and of their answers: read row by row, written so that finished work is never lost.

A bad row is a problem with its line, never the end of a run. Answers are appended as they come, each under a key of
its prompt, the model and the settings, so a repeated command goes on where it stopped and answers of something else are
refused; when all are there the file is put in the order of the prompts. Costs both files in memory. Does not answer.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ncvc.chat import Message, parse_messages
from ncvc.storage import hash_json, whole_file

_LINE_ENDS = {
    ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"
}  # to some readers; JSON leaves them as they are
_BEGINNING = b'{"line": '  # of every answer


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """A row: a conversation or, for continuing it, a text. ``line`` counts from 1; ``passage`` is what spans are of."""

    line: int
    messages: tuple[Message, ...] = ()
    text: str = ""
    id: str | int | None = None
    passage: str | None = None

    @property
    def identity(self) -> list[Any]:
        """What its answer depends on."""
        return [self.line, [[turn.role, turn.content] for turn in self.messages], self.text, self.passage]


def read_prompts(path: Path, *, raw: bool, system: str | None) -> tuple[list[PromptRow], dict[int, str]]:
    """The rows of a .txt or .jsonl file, and what is wrong with the others, by line. Blank lines are left out.

    With ``raw`` the prompts are texts to continue. ``system`` goes before conversations that have no system turn.
    ``ValueError`` for another kind of file and for one without any row, ``FileNotFoundError`` without a file.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"file={path}: prompts are read from .txt (one a line) and .jsonl; rename or convert it.")
    if not path.is_file():
        raise FileNotFoundError(f"file={path}: there is no such file.")
    rows, problems = [], {}
    for line, data in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not data.strip():
            continue
        try:
            text = data.decode("utf-8").removesuffix("\r")
            value = _parsed(text) if path.suffix == ".jsonl" else {"prompt": text}
            rows.append(_row(value, line=line, raw=raw, system=system))
        except UnicodeDecodeError as error:
            problems[line] = f"is not UTF-8 text ({error.reason} at byte {error.start})"
        except ValueError as error:
            problems[line] = str(error)
    if not rows and not problems:
        raise ValueError(f"file={path}: there is no prompt in it; write one a line.")
    return rows, problems


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"is not valid JSON ({error})") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply to be a prompt") from error


def _row(value: Any, *, line: int, raw: bool, system: str | None) -> PromptRow:
    if not isinstance(value, Mapping) or ("prompt" in value) == ("messages" in value):
        raise ValueError('must be an object with either "prompt" or "messages"')
    name, passage, prompt = value.get("id"), value.get("passage"), value.get("prompt")
    if isinstance(name, bool) or not isinstance(name, str | int | None):
        raise ValueError("its id must be a text or a whole number")
    if not isinstance(passage, str | None):
        raise ValueError("its passage must be text")
    if "prompt" in value and not isinstance(prompt, str):
        raise ValueError("its prompt must be text")
    if raw:
        if prompt is None:
            raise ValueError("raw=true continues texts; give it a prompt instead of messages")
        return PromptRow(line=line, text=prompt, id=name, passage=passage)
    turns = value.get("messages", [{"role": "user", "content": prompt}])
    first = turns[0] if isinstance(turns, list) and turns else None
    if system is not None and isinstance(first, Mapping) and first.get("role") != "system":
        turns = [{"role": "system", "content": system}, *turns]
    return PromptRow(line=line, messages=tuple(parse_messages(turns)), id=name, passage=passage)


def answers_path(prompts: Path) -> Path:
    """Where the answers to a file go by default: beside it, ``questions.answers.jsonl``."""
    return prompts.with_name(f"{prompts.stem}.answers.jsonl")


class AnswerFile:
    """The answers to the rows of a file; a context manager that holds the file for itself.

    ``identity`` is what decides the answers besides the rows. ``done`` has the lines that are answered.
    """

    def __init__(self, path: Path, *, rows: list[PromptRow], identity: Mapping[str, Any]) -> None:
        self.path, self._keys = path, {row.line: hash_json([dict(identity), row.identity])[:16] for row in rows}
        self._rows = {row.line: row for row in rows}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = path.open("a+b")
        try:
            self.done = self._take_up()
        except BaseException:
            self._handle.close()
            raise

    def _take_up(self) -> set[int]:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"output={self.path} is being written by another program; wait for it, or set another."
            ) from error
        self._handle.seek(0)
        whole, _, torn = self._handle.read().rpartition(b"\n")
        records = [self._record(data) for data in whole.split(b"\n") if data]
        if torn and not (torn.startswith(_BEGINNING) or _BEGINNING.startswith(torn)):
            raise ValueError(f"output={self.path} is no file of answers; set another output.")
        if torn:  # the end of a killed run
            self._handle.truncate(len(whole) + 1 if whole else 0)
        return {record["line"] for record in records}

    def _record(self, data: bytes) -> dict[str, Any]:
        try:
            record = json.loads(data)
            line, key = int(record["line"]), record["key"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"output={self.path} is no file of answers; set another output.") from error
        if self._keys.get(line) != key:
            raise ValueError(
                f"output={self.path} has the answer to line {line} of another file, model or settings; set another "
                "output, or remove it to answer anew."
            )
        return record

    def write(self, line: int, answer: Mapping[str, Any]) -> None:
        """Append the answer to the row of this line; it is on disk when this returns."""
        name = self._rows[line].id
        record = {"line": line, "key": self._keys[line], **({} if name is None else {"id": name}), **answer}
        text = json.dumps(record, ensure_ascii=False).translate(_LINE_ENDS)
        self._handle.write(text.encode("utf-8", errors="replace") + b"\n")
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self.done.add(line)

    def sort(self) -> None:
        """Put the answers in the order of their prompts."""
        self._handle.seek(0)
        lines = self._handle.read().splitlines(keepends=True)
        ordered = sorted(lines, key=lambda data: json.loads(data)["line"])
        if ordered != lines:
            with whole_file(self.path) as handle:
                handle.writelines(ordered)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.close()
