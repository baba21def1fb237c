"""The product of a synthesis: documents, rejects, summary and manifest, written whole from complete journals.

What it does: goes through the plan topic by topic, decides again from the answers on disk, and leaves out what another
teacher, or another topic, has in the same words. The bytes are a function of the answers. What it costs: about 1 ms per
answer, and 16 bytes of memory per document for the exact duplicates.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ncvc.corpus.synthesis.checks import DUPLICATE, REASONS, Duplicates, Rejection, text_digest
from ncvc.corpus.synthesis.journal import Journal
from ncvc.corpus.synthesis.plan import Item, Outcome, SynthesisPlan, compared, row_of
from ncvc.corpus.synthesis.progress import summary_table
from ncvc.storage import atomic_directory, file_record, write_manifest
from ncvc.teachers.teacher import Answer

FORMAT = "ncvc-synthesis"
VERSION = 1
FILE_BYTES = 64 << 20


def write_output(plan: SynthesisPlan, journals: Mapping[str, Journal], *, output: Path) -> dict[str, Any]:
    """Write the output folder from complete journals, in the order of the plan; returns its manifest."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in plan.teachers}
    seen: set[bytes] = set()
    with atomic_directory(output, manifest_format=FORMAT) as partial:
        (partial / "documents").mkdir()
        files = _RollingFiles(partial / "documents", stem=plan.settings.kind)
        with (partial / "rejects.jsonl").open("wb") as rejects:
            for topic in range(len(plan.topics)):
                for outcome, final in _outcomes_of_topic(plan, topic, journals, seen):
                    count = counts[outcome.item.teacher]
                    count["answers"] += 1
                    count["wanted"] += final
                    if isinstance(outcome.found, Rejection):
                        count[outcome.found.reason] += 1
                        count["lost"] += final
                        rejects.write(_line(_reject_row(plan, outcome, final, journals)))
                    else:
                        row = row_of(plan, outcome, model=_model(journals, outcome), version=_created_by())
                        count["accepted"] += 1
                        count["characters"] += len(row["text"])
                        files.write(_line(row))
        files.close()
        manifest = _manifest(plan, journals, counts, partial)
        (partial / "summary.md").write_text(summary_table(manifest) + "\n", encoding="utf-8")
        write_manifest(partial, manifest)
    return manifest


def _outcomes_of_topic(
    plan: SynthesisPlan, topic: int, journals: Mapping[str, Journal], seen: set[bytes]
) -> Iterator[tuple[Outcome, bool]]:
    """Every outcome about one topic in order, and whether it is its item's last; other teachers' copies rejected."""
    outcomes: list[Outcome] = []
    for teacher in plan.teachers:
        items = plan.unit(topic, teacher=teacher)

        def judged(item: Item, attempt: int, journal: Journal = journals[teacher]) -> Any:
            result = journal.find(item.number, attempt)
            return None if result is None else plan.judge(item, result)

        decided, needed = plan.decide(items, judged=judged)
        if needed:
            raise RuntimeError(f"{journals[teacher].path} is marked complete and lacks item {needed[0][0].number}")
        outcomes += decided
    outcomes.sort(key=lambda outcome: (outcome.item.number, outcome.attempt))
    last = {outcome.item.number: outcome.attempt for outcome in outcomes}
    earlier = Duplicates(near=plan.checks.near_duplicate)
    for outcome in outcomes:
        found = outcome.found
        if not isinstance(found, Rejection):
            text = compared(found)
            copy = Rejection(DUPLICATE, "of a document on another topic") if text_digest(text) in seen else None
            if len(plan.teachers) > 1:
                copy = earlier.find(text) or copy
                earlier.add(text, name=plan.id(outcome.item))
            seen.add(text_digest(text))
            found = copy or found
        yield Outcome(outcome.item, outcome.attempt, found), outcome.attempt == last[outcome.item.number]


def _reject_row(plan: SynthesisPlan, outcome: Outcome, final: bool, journals: Mapping[str, Journal]) -> dict[str, Any]:
    assert isinstance(outcome.found, Rejection)
    result = journals[outcome.item.teacher].find(outcome.item.number, outcome.attempt)
    row: dict[str, Any] = {"id": plan.id(outcome.item), "reason": outcome.found.reason, "detail": outcome.found.detail}
    row |= {**plan.provenance(outcome.item, attempt=outcome.attempt), "last_attempt": final}
    row |= {"model": _model(journals, outcome)}
    return row | {"answer": result.text if isinstance(result, Answer) else None}


def _manifest(
    plan: SynthesisPlan, journals: Mapping[str, Journal], counts: Mapping[str, Counter[str]], partial: Path
) -> dict[str, Any]:
    files = sorted(path for path in partial.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {
        "format": FORMAT,
        "version": VERSION,
        "key": plan.key,
        "created_by": _created_by(),
        "kind": plan.settings.kind,
        "plan": plan.record,
        "prompts": {prompt.id: prompt.sha256 for prompt in plan.prompts},
        "teachers": {
            name: {
                "identity": journals[name].identity,
                **{key: counts[name][key] for key in ("wanted", "answers", "accepted", "lost", "characters")},
                "rejected": {reason: counts[name][reason] for reason in REASONS if counts[name][reason]},
            }
            for name in plan.teachers
        },
        "files": {path.relative_to(partial).as_posix(): file_record(path) for path in files},
    }


class _RollingFiles:
    """Lines into <stem>-00000.jsonl and on, a new file after every 64 MiB; at least one file."""

    def __init__(self, folder: Path, *, stem: str) -> None:
        self._folder, self._stem, self._number = folder, stem, 0
        self._handle = self._open()

    def _open(self) -> Any:
        return (self._folder / f"{self._stem}-{self._number:05d}.jsonl").open("wb")

    def write(self, line: bytes) -> None:
        if self._handle.tell() >= FILE_BYTES:
            self._handle.close()
            self._number += 1
            self._handle = self._open()
        self._handle.write(line)

    def close(self) -> None:
        self._handle.close()


def _model(journals: Mapping[str, Journal], outcome: Outcome) -> Any:
    return journals[outcome.item.teacher].identity.get("model")


@functools.cache
def _created_by() -> str:
    return f"ncvc {version('ncvc')}"


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
