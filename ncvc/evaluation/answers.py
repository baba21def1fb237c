"""Saved answers: ``answers.jsonl``, one line an item, appended as answers come, so that a crash loses none.

A line holds ``task``, ``id``, ``prompt_sha256``, ``answer`` (raw text, or null), ``finish_reason``, ``failed`` (why
there is no answer, or null), ``log_likelihoods`` (of the weighed options, or null) and ``seconds``. Of several lines of
one item the last counts. Lines that cannot be read (the half last line of a killed run) are told and left out, so their
items are asked again. Costs: a flush a line, a sync five times a second at most. Does not: ask, or score.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Key = tuple[str, str]
"""Task and id of an item."""

_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}  # line ends to some readers, not to JSON
_SECONDS_BETWEEN_SYNCS = 0.2


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model answered to one item, or why it did not.

    ``answer`` is the text as it came; ``failed`` is None unless there is no answer. ``log_likelihoods`` are those of
    the answers that were weighed, in nats, in the order of ``weighed_answers``; ``answer`` is then the likeliest.
    ``seconds`` is the item's share of its batch.
    """

    task: str
    id: str
    prompt_sha256: str
    answer: str | None
    finish_reason: str | None = None
    failed: str | None = None
    log_likelihoods: tuple[float, ...] | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if (self.answer is None) == (self.failed is None):
            raise ValueError(f"item {self.id} of task {self.task}: an answer is a text, or has failed for a reason.")

    @property
    def key(self) -> Key:
        """Task and id."""
        return self.task, self.id


def read_answers(path: Path, *, tell: Callable[[str], object] | None = None) -> dict[Key, Answer]:
    """The answers of a file, the last of each item.

    ``tell`` hears of lines that cannot be read. ``FileNotFoundError`` without a file; ``ValueError`` for a file of
    which no line is an answer.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file of answers; name a folder that ncvc.evaluate wrote.")
    found: dict[Key, Answer] = {}
    torn: list[int] = []
    with path.open("rb") as handle:
        for number, data in enumerate(handle, 1):
            if not data.strip():
                continue
            answer = _parsed(data)
            if answer is None:
                torn.append(number)
            else:
                found[answer.key] = answer
    if torn and not found and not _is_beginning(path):
        raise ValueError(f"{path} is no file of answers (line {torn[0]} is none); name another.")
    if torn and tell is not None:
        lines = ", ".join(map(str, torn[:5])) + (f" and {len(torn) - 5:,} more" if len(torn) > 5 else "")
        tell(f"{path}: line {lines} cannot be read (the end of a killed run?) and is left out")
    return found


def _is_beginning(path: Path) -> bool:
    """Whether a file without a whole answer is at least the beginning of one, or nothing but zeros after a crash."""
    with path.open("rb") as handle:
        data = handle.read(len(_BEGINNING)).rstrip(b"\0")
    return _BEGINNING.startswith(data)


_BEGINNING = b'{"task": '


def _parsed(data: bytes) -> Answer | None:
    """The answer in a line, or None."""
    try:
        record = json.loads(data)
        return _answer(record) if isinstance(record, dict) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _answer(record: Mapping[str, Any]) -> Answer:
    """The answer of a record; ``ValueError``, ``KeyError`` or ``TypeError`` for what is none."""
    texts = {name: record.get(name) for name in ("answer", "finish_reason", "failed")}
    names = [record["task"], record["id"], record["prompt_sha256"]]
    weights, seconds = record.get("log_likelihoods"), record.get("seconds", 0.0)
    if not all(isinstance(name, str) for name in names) or not all(isinstance(v, str | None) for v in texts.values()):
        raise TypeError("task, id and prompt_sha256 are texts; answer, finish_reason and failed texts or null")
    if weights is not None:
        weights = tuple(-math.inf if weight is None else float(weight) for weight in weights)
    return Answer(
        task=names[0], id=names[1], prompt_sha256=names[2], **texts, log_likelihoods=weights, seconds=float(seconds)
    )


def _line(answer: Answer) -> bytes:
    weights = answer.log_likelihoods
    record = {
        "task": answer.task,
        "id": answer.id,
        "prompt_sha256": answer.prompt_sha256,
        "answer": answer.answer,
        "finish_reason": answer.finish_reason,
        "failed": answer.failed,
        "log_likelihoods": None if weights is None else [w if math.isfinite(w) else None for w in weights],
        "seconds": round(answer.seconds, 4),
    }
    text = json.dumps(record, ensure_ascii=False, allow_nan=False).translate(_LINE_ENDS)
    return text.encode("utf-8", "replace") + b"\n"


def _same_failure(known: Answer, answer: Answer) -> bool:
    return (known.failed, known.prompt_sha256) == (answer.failed, answer.prompt_sha256)


class AnswerWriter:
    """Appends to a file of answers; a context manager that holds the file for itself.

    ``answers`` has what the file holds, and grows. Opening takes the half last line of a killed run off. ``ValueError``
    when another program is writing the file, or it is no file of answers; ``tell`` hears of unreadable lines.
    """

    def __init__(self, path: Path, *, tell: Callable[[str], object] | None = None) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = self.path.open("a+b")
        self._synced = 0.0
        try:
            self._lock()
            self.answers = read_answers(self.path, tell=tell)
            self._mend()
        except BaseException:
            self._handle.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{self.path} is being written by another program; wait for it, or set another output."
            ) from error

    def _mend(self) -> None:
        """Take a half last line off, or end a whole one."""
        size = self._handle.seek(0, os.SEEK_END)
        end, block = size, b""
        while end > 0 and b"\n" not in block:
            start = max(0, end - (1 << 16))
            self._handle.seek(start)
            block = self._handle.read(end - start)
            end = start
        whole = end + block.rfind(b"\n") + 1
        self._handle.seek(whole)
        rest = self._handle.read()
        if rest and _parsed(rest) is None:
            self._handle.truncate(whole)
        elif rest:
            self._handle.write(b"\n")
        self._handle.flush()

    def write(self, answer: Answer) -> None:
        """Append an answer; it outlives this program when this returns, a power cut a fifth of a second later."""
        known = self.answers.get(answer.key)
        if answer.failed is not None and known is not None and _same_failure(known, answer):
            return
        self.answers[answer.key] = answer
        self._handle.write(_line(answer))
        self._handle.flush()
        if time.monotonic() - self._synced >= _SECONDS_BETWEEN_SYNCS:
            self._sync()

    def _sync(self) -> None:
        os.fsync(self._handle.fileno())
        self._synced = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._handle.flush()
            self._sync()
        finally:
            self._handle.close()
