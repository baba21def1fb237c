"""The answers of one teacher on disk, appended as they come: what a killed synthesis goes on from.

What it does: one JSON line per answer in a file that only grows. A line is written in one call when the answer arrives,
so that a killed process loses only requests under way; it is synced to disk every `sync_every` answers, so that a power
cut loses no more than those. A torn last line is cut off on opening; a line that cannot be read is passed over, told
and asked again. What it costs: one reading of the file on opening and about 200 bytes of memory per answer.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from pathlib import Path
from typing import Any

from ncvc.storage import sync
from ncvc.teachers.teacher import Answer, Failure, Result


class Journal:
    """The answers of one teacher by (item, attempt); open for reading, or `writable` by one process at a time.

    `plan` and `identity` stand in the first line; a file with others is refused. When writable, failures after an
    item's last answer are forgotten, so that a teacher that was gone for a while is asked again.
    """

    def __init__(
        self, path: Path, *, plan: str, identity: dict[str, Any] | None, writable: bool, sync_every: int = 16
    ) -> None:
        self.path, self.identity = path, identity or {}
        self._lock = threading.Lock()  # of the file against its closing
        self.damaged = 0
        self.complete = False
        self._places: dict[tuple[int, int], int] = {}
        self._unsynced, self._sync_every = 0, sync_every
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND if writable else os.O_RDONLY
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, flags, 0o644)
        try:
            if writable:
                self._be_alone()
            self._read(plan, identity, writable)
        except BaseException:
            os.close(self._file)
            raise

    def _be_alone(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(
                f"{self.path} is being written by another run; wait for it, or set another output."
            ) from error

    def _read(self, plan: str, identity: dict[str, Any] | None, writable: bool) -> None:
        failed: dict[int, list[int]] = {}
        answered: dict[int, int] = {}
        place = whole = 0
        header: dict[str, Any] | None = None
        with open(self._file, "rb", closefd=False) as handle:
            for line in handle:
                if not line.endswith(b"\n"):
                    break
                record = _record(line)
                if place == 0:
                    header = record
                elif record is None or "plan" in record:
                    self.damaged += 1
                elif record.get("complete"):
                    self.complete = True
                else:
                    item, attempt = record["item"], record["attempt"]
                    self._places[item, attempt] = place
                    if "failure" in record:
                        failed.setdefault(item, []).append(attempt)
                    else:
                        answered[item] = max(attempt, answered.get(item, -1))
                place += len(line)
            whole = place
        if writable and whole < os.fstat(self._file).st_size:
            os.ftruncate(self._file, whole)
        if whole == 0:
            self._begin(plan, identity, writable)
        else:
            self._check_header(header, plan, identity)
        if writable:
            for item, attempts in failed.items():
                for attempt in attempts:
                    if attempt > answered.get(item, -1):
                        self.complete = False
                        self._places.pop((item, attempt), None)
            self.complete = self.complete and not self.damaged

    def _begin(self, plan: str, identity: dict[str, Any] | None, writable: bool) -> None:
        if not writable:
            raise FileNotFoundError(f"{self.path} holds no answers yet")
        self._write({"plan": plan, "teacher": identity})
        os.fsync(self._file)
        sync(self.path.parent)

    def _check_header(self, header: dict[str, Any] | None, plan: str, identity: dict[str, Any] | None) -> None:
        cure = "set another output, or remove that file to ask this teacher anew"
        if header is None or "teacher" not in header:
            raise ValueError(f"{self.path} does not begin as a journal of answers does; {cure}.")
        if header["plan"] != plan:
            raise ValueError(f"{self.path} holds the answers to another plan; {cure}.")
        if identity is not None and header["teacher"] != json.loads(json.dumps(identity)):
            differ = [name for name, value in identity.items() if header["teacher"].get(name) != value]
            raise ValueError(
                f"{self.path} was answered by another teacher ({', '.join(differ) or 'its identity'} differs): was "
                f"{ {name: header['teacher'].get(name) for name in differ} }, now "
                f"{ {name: identity[name] for name in differ} }; {cure}."
            )
        self.identity = header["teacher"]

    def __len__(self) -> int:
        return len(self._places)

    def find(self, item: int, attempt: int) -> Result | None:
        """The answer on disk, or None. Raises OSError if the file changed beneath."""
        place = self._places.get((item, attempt))
        if place is None:
            return None
        line, size = b"", 1 << 14
        while not line.endswith(b"\n"):
            block = os.pread(self._file, size, place + len(line))
            if not block:
                raise OSError(f"{self.path} ends where answer {item} should be; it was changed during the run.")
            end = block.find(b"\n")
            line += block if end < 0 else block[: end + 1]
            size *= 4
        record = _record(line)
        if record is None or record.get("item") != item:
            raise OSError(f"{self.path}: answer {item} is not where it was written; it was changed during the run.")
        if "failure" in record:
            return Failure(record["failure"])
        return Answer(record["text"], record["finish_reason"], record["tokens"], record["seconds"])

    def append(self, item: int, attempt: int, result: Result) -> None:
        """Write one answer. Raises OSError when the disk takes no more; nothing half-written is then left."""
        record: dict[str, Any] = {"item": item, "attempt": attempt}
        if isinstance(result, Answer):
            record |= {"text": result.text, "finish_reason": result.finish_reason}
            record |= {"tokens": result.tokens, "seconds": round(result.seconds, 3)}
        else:
            record["failure"] = result.reason
        with self._lock:
            self._places[item, attempt] = self._write(record)
            self._unsynced += 1
            if self._unsynced >= self._sync_every:
                os.fsync(self._file)
                self._unsynced = 0

    def finish(self) -> None:
        """Note that nothing is left to ask."""
        if not self.complete:
            self._write({"complete": True})
            self.complete = True
        os.fsync(self._file)

    def _write(self, record: dict[str, Any]) -> int:
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        place = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
            if written < len(line):
                written += os.write(self._file, line[written:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, place)
            raise
        return place

    def close(self) -> None:
        """Sync and close."""
        with self._lock:
            if self._file >= 0:
                with contextlib.suppress(OSError):
                    os.fsync(self._file)
                os.close(self._file)
                self._file = -1


def _record(line: bytes) -> dict[str, Any] | None:
    """The object of a line of the journal, or None if the line is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    if "plan" in record or record.get("complete") is True:
        return record
    numbers = type(record.get("item")) is int and type(record.get("attempt")) is int
    answer = isinstance(record.get("text"), str) and {"finish_reason", "tokens", "seconds"} <= set(record)
    return record if numbers and (answer or isinstance(record.get("failure"), str)) else None
