"""The log of a labelling run: what a teacher answered about each text, on disk as it comes, resumable at any moment.

Append-only JSONL: a first row with the recipe (what was asked, of whom), then one row per answer, valid or rejected,
synced batch by batch. kill -9 loses the batch in flight; a torn last line is healed; the finished file is ordered by
(document, attempt), so that its bytes do not depend on interruptions. Labels of two recipes are never mixed; a larger
sample goes on with what is there. Costs the teacher's time and the rows in memory (about 1 kB per document).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from ncvc.corpus.quality.labels import (
    CUT_OFF,
    LabelSettings,
    SampledDocument,
    Verdict,
    parse_answer,
    request_for,
    shown_text,
)
from ncvc.storage import sync
from ncvc.teachers.teacher import Answer, Failure, Request, Teacher

FORMAT, VERSION = "ncvc-quality-labels", 1
_ROW_KEYS = {"key", "id", "text_sha256", "attempt", "label", "rejected", "answer"}
_KEPT_OF_AN_ANSWER = 2_000


@dataclass(frozen=True)
class LabelFile:
    """A file of labels: the recipe that made it and one row per answer, in the order of the file."""

    recipe: dict[str, Any]
    rows: tuple[dict[str, Any], ...]

    def labels(self) -> dict[str, str]:
        """``high`` or ``low`` by the key of the document, for those with a valid answer."""
        return {row["key"]: row["label"] for row in self.rows if row["label"] is not None}

    def rejections(self) -> dict[str, int]:
        """Rejected answers by reason, the most frequent first."""
        counted = Counter(row["rejected"] for row in self.rows if row["rejected"] is not None)
        return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """What a labelling run leaves: the labels, and how many requests the teacher did not answer at all, by reason."""

    file: LabelFile
    documents: int
    failures: dict[str, int]

    @property
    def unlabelled(self) -> int:
        """Documents without a valid answer."""
        return self.documents - len(self.file.labels())


def recipe_of(teacher: Teacher, *, settings: LabelSettings, repetition: int) -> dict[str, Any]:
    """All that decides a label, as plain JSON values. The size of the sample is no part of it and may grow."""
    asked = ("seed", "prompt", "max_characters", "max_tokens", "temperature")
    chosen = {name: value for name, value in asdict(settings).items() if name in asked}
    recipe = {**chosen, "repetition": repetition, "teacher": teacher.name, "identity": dict(teacher.identity)}
    return json.loads(json.dumps(recipe, default=str))


def read_labels(path: Path) -> LabelFile:
    """Read a file of labels; a torn last line is left out. Raises with the line's number for any other damage."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; python -m ncvc.judge writes it.")
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):  # behind the last line end: torn, or nothing
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or (number > 1 and not row.keys() >= _ROW_KEYS):
                raise ValueError("no row of labels")
        except ValueError as error:
            raise ValueError(f"{path}, line {number} cannot be read ({error}); remove that line.") from error
        rows.append(row)
    head: dict[str, Any] = rows[0] if rows else {"format": FORMAT, "version": VERSION, "recipe": {}}
    if (head.get("format"), head.get("version")) != (FORMAT, VERSION) or not isinstance(head.get("recipe"), dict):
        raise ValueError(f"{path} is no file of labels of this version of ncvc; move it, or set another output.")
    return LabelFile(head["recipe"], tuple(rows[1:]))


class _Log:
    """The file opened for one writer: healed at its end, held against the recipe, synced after every batch."""

    def __init__(self, path: Path, *, recipe: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.head = {"format": FORMAT, "version": VERSION, "recipe": recipe}
        self.handle: IO[bytes] = path.open("a+b")
        try:
            self._lock()
            self._heal()
            found = read_labels(path)
            if not found.recipe:
                self.append([self.head])
            elif changed := sorted(
                key for key in recipe.keys() | found.recipe.keys() if recipe.get(key) != found.recipe.get(key)
            ):
                raise ValueError(
                    f"{path} holds labels of another recipe (differing: {', '.join(changed)}); labels of two recipes "
                    "are not mixed. Set another output, or move that file."
                )
            self.rows = list(found.rows)
        except BaseException:
            self.handle.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(
                f"{self.path} is being written by another process; wait for it, or set another output."
            ) from error

    def _heal(self) -> None:
        self.handle.seek(0)
        whole = self.handle.read()
        if not whole.endswith(b"\n"):
            self.handle.truncate(whole.rfind(b"\n") + 1)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows behind the others and make them outlive a power cut."""
        self.handle.write(b"".join(map(_line, rows)))
        self.handle.flush()
        os.fsync(self.handle.fileno())

    def finish(self) -> None:
        """Put the rows in the order of (document, attempt), whatever interruptions did to it."""
        ordered = sorted(self.rows, key=lambda row: (row["key"], row["attempt"]))
        if ordered != self.rows:
            partial = self.path.with_name(f".{self.path.name}.partial")
            partial.write_bytes(b"".join(map(_line, [self.head, *ordered])))
            sync(partial)
            partial.replace(self.path)
            sync(self.path.parent)
            self.rows = ordered


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace")


class _Labeller:
    """One labelling run: its teacher, its log, and what is known so far."""

    def __init__(self, log: _Log, *, teacher: Teacher, settings: LabelSettings, repetition: int) -> None:
        self.log, self.teacher, self.settings, self.repetition = log, teacher, settings, repetition
        self.labelled = {row["key"] for row in log.rows if row["label"] is not None}
        self.attempts = {(row["key"], row["attempt"]) for row in log.rows}
        self.failures: Counter[str] = Counter()
        self.unanswered = 0  # requests in a row

    def label(self, batch: Sequence[SampledDocument]) -> None:
        """Ask about the documents of a batch until each has a label, no attempt left, or got no answer at all."""
        failed: set[str] = set()
        for attempt in range(self.settings.attempts):
            settled = self.labelled | failed
            asked = [
                document
                for document in batch
                if document.key not in settled and (document.key, attempt) not in self.attempts
            ]
            if asked:
                self._ask(asked, attempt=attempt, failed=failed)

    def _ask(self, documents: list[SampledDocument], *, attempt: int, failed: set[str]) -> None:
        requests = [
            request_for(document, settings=self.settings, repetition=self.repetition, attempt=attempt)
            for document in documents
        ]
        rows = []
        for document, request, result in zip(documents, requests, self.teacher.answer(requests), strict=True):
            if isinstance(result, Failure):
                self.failures[result.reason] += 1
                self.unanswered += 1
                failed.add(document.key)
            else:
                self.unanswered = 0
                rows.append(_row(document, request, result, attempt=attempt, settings=self.settings))
        self.log.append(rows)
        self.log.rows += rows
        self.attempts |= {(row["key"], attempt) for row in rows}
        self.labelled |= {row["key"] for row in rows if row["label"] is not None}
        if self.unanswered >= self.settings.batch_size:
            raise OSError(
                f"the teacher {self.teacher.name} gave no answer to {self.unanswered} requests in a row "
                f"({_counts(self.failures)}); the labels so far are kept in {self.log.path}. Mend the teacher, then "
                "repeat the command."
            )

    def give_up(self) -> None:
        """Raise for a teacher that never answered validly, with the counts and an answer to read."""
        rejections = LabelFile({}, tuple(self.log.rows)).rejections()
        example = next((row["answer"][:200] for row in self.log.rows), "")
        raise ValueError(
            f"the teacher {self.teacher.name} never gave a valid label: {len(self.log.rows)} answers rejected "
            f"({_counts(rejections)}), {sum(self.failures.values())} requests failed ({_counts(self.failures)}). "
            f"An answer: {example!r}. Set another teacher, labels.prompt or labels.max_tokens, and another output; "
            f"all answers are in {self.log.path}."
        )


def label_sample(
    documents: Sequence[SampledDocument],
    *,
    teacher: Teacher,
    settings: LabelSettings,
    path: Path,
    repetition: int = 0,
    progress: bool = False,
) -> Labelling:
    """Ask ``teacher`` about every document until it answers validly, at most ``settings.attempts`` times.

    The answers go to the file ``path``. Documents that have a label or no attempt left there are not asked again. A
    request without any answer is no attempt: the next run makes it. Raises ``ValueError`` when no answer is ever valid
    and ``OSError`` when as many requests in a row as a batch has get none, both with the counts; the rows so far stay.
    """
    from tqdm import tqdm

    size = settings.batch_size
    recipe = recipe_of(teacher, settings=settings, repetition=repetition)
    log = _Log(Path(path), recipe=recipe)
    try:
        labeller = _Labeller(log, teacher=teacher, settings=settings, repetition=repetition)
        with tqdm(total=len(documents), desc="labels", unit="text", disable=not progress) as bar:
            for start in range(0, len(documents), size):
                labeller.label(documents[start : start + size])
                bar.update(min(size, len(documents) - start))
                bar.set_postfix_str(f"{len(labeller.labelled)} valid")
                if not labeller.labelled and start + size >= min(settings.give_up_after, len(documents)):
                    labeller.give_up()
        log.finish()
    finally:
        log.handle.close()
    keys = {document.key for document in documents}
    rows = tuple(row for row in log.rows if row["key"] in keys)
    return Labelling(file=LabelFile(recipe, rows), documents=len(documents), failures=dict(labeller.failures))


def _row(
    document: SampledDocument, request: Request, answer: Answer, *, attempt: int, settings: LabelSettings
) -> dict[str, Any]:
    found: Verdict | str = CUT_OFF
    if answer.finish_reason != "length":
        found = parse_answer(answer.text, shown=shown_text(document.text, settings=settings))
    verdict = found if isinstance(found, Verdict) else None
    return {
        "key": document.key,
        "id": document.id,
        "text_sha256": document.text_sha256,
        "attempt": attempt,
        "seed": request.seed,
        "label": verdict.label if verdict else None,
        "rejected": None if isinstance(found, Verdict) else found,
        "quotation": verdict.quotation if verdict else None,
        "reason": verdict.reason if verdict else None,
        "answer": answer.text[:_KEPT_OF_AN_ANSWER],
    }


def _counts(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in counted.items()) or "none"
