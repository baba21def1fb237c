"""Steps that change and judge documents: clean, mask, quality rules, duplicates, segment, decontaminate, certify.

Rules are opened in the worker, once per process. Imports datatrove when it is imported; import it inside functions
only.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from ncvc.analyzers.files import analyzer_files, remember_files
from ncvc.corpus.cleaning import Cleaner
from ncvc.corpus.contamination.index import WindowIndex
from ncvc.corpus.contamination.winnowing import FingerprintWriter
from ncvc.curation.plan import Shard
from ncvc.curation.step import Counted, EachBatch, EachDocument, drop
from ncvc.morphology import Analyzer, analyzer_from_identity
from ncvc.tokenizer import segment_text


@functools.lru_cache(maxsize=1)
def _windows(index: Path) -> WindowIndex:
    return WindowIndex.open(index)


@functools.lru_cache(maxsize=2)
def _analyzer(identity: str) -> Analyzer:
    return analyzer_from_identity(json.loads(identity))


class Clean(EachDocument):
    """R18-R28; a document of which nothing is left is dropped."""

    name = "clean"

    def __init__(self, rules: str) -> None:
        super().__init__()
        self.cleaner = Cleaner(rules)

    def change(self, document: Document) -> None:
        """Clean the text."""
        cleaned = self.cleaner(document.text)
        if not cleaned:
            words = f"{len(document.text)} characters"
            drop(document, stage="clean", reason="nothing left after cleaning", detail=words)
        else:
            document.text = cleaned


class BySource(EachDocument):
    """A step whose rules are those of the shard's source; documents of sources without any pass as they are."""

    def __init__(self, rules: Mapping[int, Callable[[str], Any]], shards: Sequence[Shard]) -> None:
        super().__init__()
        self.of_source, self.sources = dict(rules), [shard.source for shard in shards]
        self.rules: Callable[[str], Any] = str

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Yield every document."""
        source = self.sources[rank]
        if source not in self.of_source:
            return data
        self.rules = self.of_source[source]
        return super().run(data, rank, world_size)


class Mask(BySource):
    """Personal data masked or removed by a `Masker`; what was found is counted in `metadata["masked"]`."""

    name = "mask"

    def change(self, document: Document) -> None:
        """Mask the text."""
        masked = self.rules(document.text)
        if masked.counts:
            found = document.metadata.setdefault("masked", {})
            for kind, count in sorted(masked.counts.items()):
                found[kind] = found.get(kind, 0) + count
            document.text = masked.text


class JudgeQuality(BySource):
    """Held against `QualityRules`; the first rule that a document breaks is its reason."""

    name = "quality"

    def change(self, document: Document) -> None:
        """Drop the document if a rule says so."""
        verdict = self.rules(document.text)
        if verdict.reason is not None:
            drop(document, stage="quality", reason=verdict.reason, detail=verdict.detail)


class DropRows(Counted):
    """Leave out the rows of a shard that a global decision named; rows are counted over the kept rows before.

    ``rows`` holds for each shard the rows with what is told about them.
    """

    def __init__(self, rows: Sequence[Mapping[int, str]], *, name: str, reason: str) -> None:
        self.name = name
        super().__init__()
        self.rows, self.reason = list(rows), reason

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Yield every document, the named rows marked."""
        rows = self.rows[rank]
        row = num_bytes = 0
        for document in data:
            if "drop" not in document.metadata:
                num_bytes += len(document.text.encode())
                if row in rows:
                    drop(document, stage="deduplicate", reason=self.reason, detail=rows[row])
                row += 1
            yield document
        self.tell(documents=row, kept=row - len(rows), num_bytes=num_bytes, seconds=0.0)


class Kept(PipelineStep):
    """Only what is not marked as dropped, for steps of datatrove that know nothing of marks.

    ``taking_part`` tells for each shard whether it gives any document at all.
    """

    type, name = "ncvc", "kept"

    def __init__(self, taking_part: Sequence[bool]) -> None:
        super().__init__()
        self.taking_part = list(taking_part)

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Yield them."""
        if self.taking_part[rank]:
            yield from (document for document in data if "drop" not in document.metadata)


class Segment(EachDocument):
    """Cleaned text to words: one space between words, lines kept; `metadata["characters"]` counts the cleaned text."""

    name = "segment"

    def __init__(self, identity: Mapping[str, Any]) -> None:
        super().__init__()
        self.identity = json.dumps(dict(identity), sort_keys=True)
        self.files = [path.absolute() for path in analyzer_files(identity).values()]

    def open(self) -> None:
        """Tell this worker where the dictionaries lie that the identity names by hash."""
        remember_files(self.files)

    def change(self, document: Document) -> None:
        """Segment the text."""
        words = segment_text(document.text, analyzer=_analyzer(self.identity))
        if words.replace(" ", "") != document.text:
            raise RuntimeError(f"the analyzer {self.identity} altered the text")
        document.text = words


class Decontaminate(EachBatch):
    """Documents that share a window with a benchmark are dropped or cut; the shares stay in `metadata["matches"]`."""

    name = "decontaminate"

    def __init__(self, index: Path) -> None:
        super().__init__()
        self.index = index

    def change_all(self, documents: list[Document]) -> None:
        """Judge segmented texts."""
        verdicts = _windows(self.index).judge_many([document.text for document in documents])
        for document, verdict in zip(documents, verdicts, strict=True):
            if not verdict.matches:
                continue
            document.metadata["matches"] = [dataclasses.asdict(match) for match in verdict.matches]
            if verdict.kept is None:
                first, more = verdict.matches[0], len(verdict.matches) - 1
                words = f"{first}" + (f", and {more} more" if more else "")
                drop(document, stage="decontaminate", reason=f"shares text with {first.benchmark}", detail=words)
            else:
                document.text = verdict.kept


class Certify(Counted):
    """The hashed fingerprints of the kept documents of shard ``rank``, for the certificate."""

    name = "certify"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Yield every document, its fingerprints taken."""
        writer = FingerprintWriter(fingerprint_file(self.folder, rank))
        documents = num_bytes = 0
        seconds = 0.0
        for document in data:
            if "drop" not in document.metadata:
                started = time.perf_counter()
                writer.add(document.text)
                seconds += time.perf_counter() - started
                documents += 1
                num_bytes += len(document.text.encode())
            yield document
        started = time.perf_counter()
        writer.close()
        seconds += time.perf_counter() - started
        self.tell(documents=documents, kept=documents, num_bytes=num_bytes, seconds=seconds)


def fingerprint_file(folder: Path, rank: int) -> Path:
    """Where the fingerprints of shard ``rank`` lie."""
    return folder / f"{rank:05d}.fingerprints"
