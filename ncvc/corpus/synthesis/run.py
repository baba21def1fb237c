"""Asking teachers what a plan wants, from wherever an earlier run stopped, and writing what they wrote as a product.

What it does: `synthesize` keeps a journal of answers per teacher beside the output (`<output>.answers/`), asks what is
missing - several teachers at the same time -, and when nothing is, writes the output folder whole: `documents/` (JSON
lines that every reader takes as a source), `rejects.jsonl` (every rejected answer with its reason), `summary.md`, and
`manifest.json` with counts, the teachers' identities and sha256s. The output is a function of the answers: killed and
continued runs give the same bytes.

What it costs: beside the teachers nothing to speak of; judging takes about 1 ms per answer. What it does not do: go on
when a teacher is gone: after `give_up_after` failures in a row it stops that teacher, and the next start goes on.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ncvc.corpus.synthesis.checks import Exercise, Rejection
from ncvc.corpus.synthesis.journal import Journal
from ncvc.corpus.synthesis.output import FORMAT, VERSION, write_output
from ncvc.corpus.synthesis.plan import Item, SynthesisPlan
from ncvc.corpus.synthesis.progress import Progress, summary_table
from ncvc.storage import hash_json, read_manifest, write_json
from ncvc.teachers.teacher import Failure, Request, Result, Teacher


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a run goes on and stops; none of it changes what is written."""

    sync_every: int = 16
    give_up_after: int = 50
    progress_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.sync_every < 1 or self.give_up_after < 1 or self.progress_seconds <= 0:
            raise ValueError(
                f"run={self}: sync_every and give_up_after must be at least 1, progress_seconds more than 0."
            )


class TeacherGone(OSError):
    """A teacher failed so often in a row that the run does not go on with it."""


@dataclass
class _Unit:
    """One topic's items of one teacher while they are asked about."""

    items: list[Item]
    found: dict[tuple[int, int], Rejection | Exercise | str]
    asked: set[tuple[int, int]]


class _Writer:
    """One teacher at work on its part of the plan."""

    def __init__(
        self, plan: SynthesisPlan, teacher: Teacher, journal: Journal, *, settings: RunSettings, progress: Progress
    ) -> None:
        self.plan, self.teacher, self.journal = plan, teacher, journal
        self.settings, self.progress = settings, progress
        self.stop = threading.Event()
        self._waiting: deque[tuple[_Unit, Item, int]] = deque()
        self._topics = iter(range(len(plan.topics)))

    def run(self) -> None:
        """Ask until nothing is missing. Raises TeacherGone, or what the teacher or the disk raises."""
        if self.journal.complete:
            return
        failures = 0
        while not self.stop.is_set():
            jobs: dict[int, tuple[_Unit, Item, int]] = {}
            for number, result in self.teacher.answer_as_completed(self._requests(jobs)):
                unit, item, attempt = jobs.pop(number)
                self.journal.append(item.number, attempt, result)
                self._take(unit, item, attempt, result)
                failures = failures + 1 if isinstance(result, Failure) else 0
                if failures >= self.settings.give_up_after:
                    assert isinstance(result, Failure)
                    raise TeacherGone(
                        f"teacher {self.teacher.name}: the last {failures} requests got no answer, the last one: "
                        f"{result.reason}. What was answered is kept; mend the teacher and start again to go on"
                    )
            if jobs and not self.stop.is_set():
                raise RuntimeError(f"teacher {self.teacher.name} left {len(jobs)} requests without a result")
            if not self._waiting:
                break
        if not self.stop.is_set():
            self.journal.finish()

    def _requests(self, jobs: dict[int, tuple[_Unit, Item, int]]) -> Iterator[Request]:
        """What to ask next: attempts that became necessary, else the next topic; ends when there is neither."""
        number = 0
        while not self.stop.is_set() and (self._waiting or self._open_next()):
            unit, item, attempt = self._waiting.popleft()
            jobs[number] = (unit, item, attempt)
            number += 1
            yield self.plan.request(item, attempt=attempt)

    def _open_next(self) -> bool:
        """Queue what the next topics lack, up to one that lacks something; False after the last."""
        for topic in self._topics:
            unit = _Unit(self.plan.unit(topic, teacher=self.teacher.name), {}, set())
            for item in unit.items:
                for attempt in range(self.plan.settings.attempts):
                    if (result := self.journal.find(item.number, attempt)) is not None:
                        unit.found[item.number, attempt] = self.plan.judge(item, result)
            self._queue_missing(unit)
            if self._waiting:
                return True
        return False

    def _take(self, unit: _Unit, item: Item, attempt: int, result: Result) -> None:
        found = self.plan.judge(item, result)
        unit.found[item.number, attempt] = found
        self.progress.count(self.teacher.name, accepted=not isinstance(found, Rejection))
        self._queue_missing(unit)

    def _queue_missing(self, unit: _Unit) -> None:
        for item, attempt in _needed(self.plan, unit.items, unit.found):
            if (item.number, attempt) not in unit.asked:
                unit.asked.add((item.number, attempt))
                self._waiting.append((unit, item, attempt))


def _needed(
    plan: SynthesisPlan, items: list[Item], found: Mapping[tuple[int, int], Rejection | Exercise | str]
) -> list[tuple[Item, int]]:
    return plan.decide(items, judged=lambda item, attempt: found.get((item.number, attempt)))[1]


def synthesize(
    plan: SynthesisPlan,
    *,
    teachers: Mapping[str, Callable[[], Teacher]],
    output: Path,
    settings: RunSettings | None = None,
    tell: Callable[[str], None] = print,
) -> dict[str, Any] | None:
    """Ask `teachers` (some or all of the plan's, opened by the call) what is missing; write `output` when nothing is.

    Returns the manifest, or None while other teachers of the plan have not answered. Raises ValueError if the output
    or the journals belong to another plan or teacher, OSError if a teacher or the disk fails; what was answered stays.
    """
    output, settings = Path(output), settings or RunSettings()
    journals_folder = output.with_name(output.name + ".answers")
    if (manifest := _finished(plan, output)) is not None:
        tell(f"{output} is complete already\n{summary_table(manifest)}")
        return manifest
    if unknown := set(teachers) - set(plan.teachers):
        raise ValueError(f"teachers {sorted(unknown)} are not of this plan ({', '.join(plan.teachers)}).")
    _check_plan(plan, journals_folder)
    journals: dict[str, Journal] = {}
    try:
        opened = {name: opening() for name, opening in teachers.items()}
        for name, teacher in opened.items():
            if teacher.name != name:
                raise ValueError(f"teacher {name} calls itself {teacher.name}; give it the name it has in the plan.")
            path = journals_folder / f"{name}.jsonl"
            journals[name] = Journal(
                path, plan=plan.key, identity=teacher.identity, writable=True, sync_every=settings.sync_every
            )
            if journals[name].damaged:
                tell(
                    f"note: {path}: {journals[name].damaged} damaged lines are passed over; "
                    "what they held is asked again"
                )
        _ask_all(plan, opened, journals, settings=settings, tell=tell)
        missing = _open_others(plan, journals, journals_folder)
        if missing:
            tell(f"still to be asked: {', '.join(missing)}; the output is written when they have answered")
            return None
        manifest = write_output(plan, journals, output=output)
        tell(summary_table(manifest))
        return manifest
    finally:
        for journal in journals.values():
            journal.close()


def _ask_all(
    plan: SynthesisPlan,
    teachers: Mapping[str, Teacher],
    journals: Mapping[str, Journal],
    *,
    settings: RunSettings,
    tell: Callable[[str], None],
) -> None:
    """Run every teacher in a thread of its own; when one fails the others go on, then its error is raised."""
    progress = Progress(every=settings.progress_seconds, tell=tell)
    writers, errors = [], []

    def work(writer: _Writer) -> None:
        try:
            writer.run()
        except BaseException as error:  # raised by the thread that waits
            errors.append(error)

    for name, teacher in teachers.items():
        attempts = plan.settings.attempts
        progress.begin(name, wanted=plan.size(name), attempts=attempts, answered=len(journals[name]))
        writers.append(_Writer(plan, teacher, journals[name], settings=settings, progress=progress))
    threads = [threading.Thread(target=work, args=(writer,), daemon=True) for writer in writers]
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(0.05)
    finally:
        for writer in writers:
            writer.stop.set()
    progress.end()
    if errors:
        raise errors[0]


def _open_others(plan: SynthesisPlan, journals: dict[str, Journal], folder: Path) -> list[str]:
    """Open the journals of teachers that were not asked this time; returns those that are not complete."""
    missing = []
    for name in plan.teachers:
        if name not in journals:
            try:
                journals[name] = Journal(folder / f"{name}.jsonl", plan=plan.key, identity=None, writable=False)
            except FileNotFoundError:
                missing.append(name)
                continue
        if not journals[name].complete:
            missing.append(name)
    return missing


def _finished(plan: SynthesisPlan, output: Path) -> dict[str, Any] | None:
    if not (output / "manifest.json").is_file():
        return None
    manifest = read_manifest(output, manifest_format=FORMAT, version=VERSION)
    if manifest["key"] != plan.key:
        raise ValueError(_other_plan(output, manifest["plan"], plan.record))
    return manifest


def _check_plan(plan: SynthesisPlan, folder: Path) -> None:
    path = folder / "plan.json"
    if path.is_file():
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no plan ({error}); set another output, or remove {folder}.") from error
        if hash_json(record) != plan.key:
            raise ValueError(_other_plan(folder, record, plan.record))
    else:
        write_json(path, plan.record)


def _other_plan(folder: Path, there: Any, now: Mapping[str, Any]) -> str:
    def flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield from flat(inner, f"{path}.{key}" if path else str(key))
        else:
            yield path, value

    old, new = dict(flat(there, "")), dict(flat(now, ""))
    differ = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return (
        f"{folder} belongs to another plan (it differs in {', '.join(differ[:8])}"
        f"{', ...' if len(differ) > 8 else ''}); set another output, or the settings of then."
    )
