"""The steps of a curation as datatrove pipeline steps: read, clean, mask, judge, drop duplicates, segment, write.

A document that a step leaves out goes on with `metadata["drop"]` (stage, reason, detail) and no step after it looks
at it again; the writer at the end puts it among the dropped. So every reason is kept, in order, with no state shared
between steps. Files appear whole: written beside, renamed, and only then marked by datatrove.

Costs: a JSON line read and written per document and stage, about 100 MB/s. Imports datatrove when it is imported;
import it inside functions only.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from ncvc.analyzers.files import analyzer_files, remember_files
from ncvc.corpus.cleaning import Cleaner
from ncvc.corpus.contamination.index import WindowIndex
from ncvc.corpus.contamination.winnowing import FingerprintWriter
from ncvc.corpus.duplicates.deduplication import exact_key
from ncvc.corpus.personal.masking import Masker, PrivacySettings
from ncvc.corpus.quality.rules import QualityRules, QualitySettings
from ncvc.corpus.reading import readers
from ncvc.curation.plan import Shard, Unit
from ncvc.curation.settings import Source
from ncvc.morphology import Analyzer, analyzer_from_identity
from ncvc.storage import file_record, write_json
from ncvc.tokenizer import segment_text

EXCERPT_CHARACTERS = 160
FAILED = "failed"
_PROGRESS_SECONDS = 1.0
_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 256, 2_000_000


@functools.lru_cache(maxsize=1)
def _windows(index: Path) -> WindowIndex:
    return WindowIndex.open(index)


@functools.lru_cache(maxsize=2)
def _analyzer(identity: str) -> Analyzer:
    return analyzer_from_identity(json.loads(identity))


def drop(document: Document, *, stage: str, reason: str, detail: str) -> None:
    """Mark ``document`` as left out."""
    document.metadata["drop"] = {"stage": stage, "reason": reason, "detail": detail}


class Counted(PipelineStep):
    """Counts documents, bytes and seconds of its own work, and tells them to datatrove once per task."""

    type = "ncvc"

    def tell(self, *, documents: int, kept: int, num_bytes: int, seconds: float) -> None:
        """Hand the counts of this task to datatrove's statistics."""
        self.stats["documents"].update(documents)
        self.stats["kept"].update(kept)
        self.stats["bytes"].update(num_bytes)
        self.stats.time_stats.update(seconds)


class EachDocument(Counted):
    """A step that looks at one document at a time: subclasses change it, or mark it with `drop`."""

    def change(self, document: Document) -> None:
        """Change ``document`` in place."""
        raise NotImplementedError

    def open(self) -> None:
        """Open what the worker needs; called once per task, before the first document."""

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Yield every document, changed or marked."""
        documents = kept = num_bytes = 0
        seconds = 0.0
        self.open()
        for document in data:
            if "drop" not in document.metadata:
                documents += 1
                num_bytes += len(document.text.encode("utf-8", "surrogatepass"))
                started = time.perf_counter()
                try:
                    self.change(document)
                except MemoryError:
                    raise
                except Exception as error:  # one document must not cost the hours spent on the others
                    drop(document, stage=self.name, reason=FAILED, detail=f"{type(error).__name__}: {error}")
                seconds += time.perf_counter() - started
                kept += "drop" not in document.metadata
            yield document
        self.tell(documents=documents, kept=kept, num_bytes=num_bytes, seconds=seconds)


class EachBatch(Counted):
    """A step that looks at many documents at once: subclasses change them, or mark them with `drop`."""

    def change_all(self, documents: list[Document]) -> None:
        """Change the documents of a batch, none of them dropped, in place."""
        raise NotImplementedError

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Yield every document in order, changed or marked."""
        totals: dict[str, Any] = {"documents": 0, "kept": 0, "num_bytes": 0, "seconds": 0.0}
        held: list[Document] = []
        size = 0
        for document in data:
            held.append(document)
            size += len(document.text)
            if len(held) == _BATCH_DOCUMENTS or size >= _BATCH_CHARACTERS:
                yield from self._changed(held, totals)
                held, size = [], 0
        yield from self._changed(held, totals)
        self.tell(**totals)

    def _changed(self, held: list[Document], totals: dict[str, Any]) -> list[Document]:
        documents = [document for document in held if "drop" not in document.metadata]
        totals["documents"] += len(documents)
        totals["num_bytes"] += sum(len(document.text.encode("utf-8", "surrogatepass")) for document in documents)
        started = time.perf_counter()
        if documents:
            self.change_all(documents)
        totals["seconds"] += time.perf_counter() - started
        totals["kept"] += sum("drop" not in document.metadata for document in documents)
        return held


class _Progress:
    """Writes "documents bytes" of a running task about once a second, where the program that shows it looks."""

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / str(rank)
        self._next = 0.0
        self.documents = 0

    def advance(self, num_bytes: int, *, last: bool = False) -> None:
        if last or time.monotonic() >= self._next:
            self._path.write_text(f"{self.documents} {num_bytes}")
            self._next = time.monotonic() + _PROGRESS_SECONDS


# --- reading raw sources
class ReadUnit(Counted):
    """Documents of the files of one unit; what the reader leaves out comes as documents that are dropped already."""

    name = "read"

    def __init__(self, units: Sequence[Unit], sources: Sequence[Source], *, progress_folder: Path) -> None:
        super().__init__()
        self.units, self.sources, self.progress_folder = list(units), list(sources), progress_folder

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Yield the documents of unit ``rank``."""
        unit = self.units[rank]
        source = self.sources[unit.source]
        progress = _Progress(self.progress_folder, rank)
        problems = [readers.problem_of_ignored(name) for name in unit.ignored]
        documents = num_bytes = finished = 0
        seconds, started = 0.0, time.perf_counter()
        for file in unit.files:
            found = readers.read_file(
                file,
                text_field=source.settings.text_field,
                layout=source.settings.layout,
                options=source.settings.options,
                on_problem=problems.append,
                on_progress=functools.partial(_advance, progress, finished),
            )
            for document in found:
                yield from _dropped(problems)
                documents += 1
                progress.documents = documents
                num_bytes += len(document.text.encode("utf-8", "surrogatepass"))
                seconds += time.perf_counter() - started
                yield Document(text=document.text, id=document.id, metadata=dict(document.metadata))
                started = time.perf_counter()
            finished += file.num_bytes
        yield from _dropped(problems)
        progress.advance(finished, last=True)
        self.tell(documents=documents, kept=documents, num_bytes=num_bytes, seconds=seconds)


def _advance(progress: _Progress, before: int, num_bytes: int) -> None:
    progress.advance(before + num_bytes)


def _dropped(problems: list[readers.ReadProblem]) -> Iterator[Document]:
    for problem in problems:
        where = {"file": problem.file, "row": problem.row}
        name = problem.file if problem.row is None else f"{problem.file}:{problem.row}"
        document = Document(text="", id=name, metadata=where)
        drop(document, stage="read", reason=problem.reason, detail=problem.detail)
        yield document
    problems.clear()


class ReadShard(Counted):
    """The documents that an earlier stage wrote into shard ``rank``."""

    name = "read shard"

    def __init__(self, paths: Sequence[Path], *, progress_folder: Path) -> None:
        super().__init__()
        self.paths, self.progress_folder = list(paths), progress_folder

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Yield them in order."""
        progress = _Progress(self.progress_folder, rank)
        documents = num_bytes = 0
        seconds, started = 0.0, time.perf_counter()
        with self.paths[rank].open("rb") as handle:
            for line in handle:
                documents += 1
                num_bytes += len(line)
                progress.documents = documents
                progress.advance(num_bytes)
                document = Document(**json.loads(line))
                seconds += time.perf_counter() - started
                yield document
                started = time.perf_counter()
        progress.advance(num_bytes, last=True)
        self.tell(documents=documents, kept=documents, num_bytes=num_bytes, seconds=seconds)


# --- changing and judging documents
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
            drop(
                document, stage="clean", reason="nothing left after cleaning", detail=f"{len(document.text)} characters"
            )
        else:
            document.text = cleaned


class Mask(EachDocument):
    """Personal data masked or removed; what was found is counted in `metadata["masked"]`."""

    name = "mask"

    def __init__(self, settings: Mapping[int, PrivacySettings], shards: Sequence[Shard]) -> None:
        super().__init__()
        self.settings, self.sources = dict(settings), [shard.source for shard in shards]
        self.masker: Masker | None = None

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Mask with the rules of the shard's source, if it has any."""
        settings = self.settings.get(self.sources[rank])
        self.masker = None if settings is None else Masker(settings)
        yield from super().run(data, rank, world_size)

    def change(self, document: Document) -> None:
        """Mask the text."""
        if self.masker is None:
            return
        masked = self.masker(document.text)
        if masked.counts:
            found = document.metadata.setdefault("masked", {})
            for kind, count in sorted(masked.counts.items()):
                found[kind] = found.get(kind, 0) + count
            document.text = masked.text


class JudgeQuality(EachDocument):
    """The quality rules of the shard's source; the first rule that a document breaks is its reason."""

    name = "quality"

    def __init__(self, settings: Mapping[int, QualitySettings], shards: Sequence[Shard]) -> None:
        super().__init__()
        self.settings, self.sources = dict(settings), [shard.source for shard in shards]
        self.rules: QualityRules | None = None

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Judge with the rules of the shard's source, if it has any."""
        settings = self.settings.get(self.sources[rank])
        self.rules = None if settings is None else QualityRules(settings)
        yield from super().run(data, rank, world_size)

    def change(self, document: Document) -> None:
        """Drop the document if a rule says so."""
        if self.rules is None:
            return
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


# --- writing
def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _drop_record(document: Document, *, source: str) -> dict[str, Any]:
    metadata = document.metadata
    return {
        "source": source,
        "id": document.id,
        "file": metadata.get("file"),
        "row": metadata.get("row"),
        **metadata["drop"],
        "bytes": len(document.text.encode("utf-8", "surrogatepass")),
        # where a step failed, personal data may not be masked yet
        "excerpt": "" if metadata["drop"]["reason"] == FAILED else document.text[:EXCERPT_CHARACTERS],
    }


def _share_record(document: Document, *, source: str) -> dict[str, Any]:
    metadata = document.metadata
    return {
        "source": source,
        "id": document.id,
        "file": metadata.get("file"),
        "row": metadata.get("row"),
        "action": "dropped" if "drop" in metadata else "cut",
        "matches": metadata["matches"],
    }


class _WholeFile:
    """A file that appears under its name when it is complete; no file if nothing was written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        self._handle: Any = None
        self.documents = self.bytes = 0

    def write(self, line: bytes) -> None:
        if self._handle is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = self._partial.open("wb")
        self._handle.write(line)
        self.documents += 1
        self.bytes += len(line)

    def close(self) -> bool:
        if self._handle is None:
            self.path.unlink(missing_ok=True)
            return False
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._handle.close()
        self._partial.replace(self.path)
        return True


class WriteShards(PipelineStep):
    """What a unit gave, into shards of about ``shard_bytes`` of text; a record beside them names them."""

    type, name = "ncvc", "write shards"

    def __init__(self, folder: Path, units: Sequence[Unit], names: Sequence[str], *, shard_bytes: int) -> None:
        super().__init__()
        self.folder, self.units, self.names, self.shard_bytes = folder, list(units), list(names), shard_bytes

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Write; yields nothing."""
        unit = self.units[rank]
        drops = _WholeFile(self.folder / f"{rank:05d}.dropped.jsonl")
        shards: list[dict[str, Any]] = []
        shard: _WholeFile | None = None
        for document in data:
            if "drop" in document.metadata:
                drops.write(_line(_drop_record(document, source=self.names[unit.source])))
                continue
            if shard is None:
                shard = _WholeFile(self.folder / f"{rank:05d}-{len(shards):05d}.jsonl")
            shard.write(_row(document))
            if shard.bytes >= self.shard_bytes:
                shards.append(_closed(shard))
                shard = None
        if shard is not None:
            shards.append(_closed(shard))
        drops.close()
        write_json(self.folder / f"{rank:05d}.json", {"shards": [{"source": unit.source, **entry} for entry in shards]})
        return iter(())


def _row(document: Document) -> bytes:
    return _line({"id": document.id, "text": document.text, "metadata": document.metadata})


def _closed(shard: _WholeFile) -> dict[str, Any]:
    shard.close()
    return {"name": shard.path.name, "documents": shard.documents, "bytes": shard.bytes}


class WriteRefined(PipelineStep):
    """Kept documents, dropped ones, and the exact keys of the kept, of shard ``rank``."""

    type, name = "ncvc", "write"

    def __init__(self, folder: Path, shards: Sequence[Shard], names: Sequence[str]) -> None:
        super().__init__()
        self.folder, self.names = folder, list(names)
        self.sources = [shard.source for shard in shards]

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Write; yields nothing."""
        source = self.sources[rank]
        kept = _WholeFile(self.folder / f"{rank:05d}.jsonl")
        drops = _WholeFile(self.folder / f"{rank:05d}.dropped.jsonl")
        keys: list[bytes] = []
        masked: dict[str, int] = {}
        text_bytes = 0
        for document in data:
            if "drop" in document.metadata:
                drops.write(_line(_drop_record(document, source=self.names[source])))
                continue
            for kind, count in document.metadata.get("masked", {}).items():
                masked[kind] = masked.get(kind, 0) + count
            kept.write(_row(document))
            text_bytes += len(document.text.encode())
            keys.append(exact_key(document.text))
        if not kept.close():
            kept.path.write_bytes(b"")  # an empty shard keeps its number
        drops.close()
        _write_whole(self.folder / f"{rank:05d}.keys", b"".join(keys))
        write_json(
            self.folder / f"{rank:05d}.json",
            {"source": source, "documents": len(keys), "bytes": text_bytes, "masked": dict(sorted(masked.items()))},
        )
        return iter(())


def _write_whole(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with partial.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(path)


class WriteStore(PipelineStep):
    """One file of the segmented store of shard ``rank``'s source, its dropped documents, and its record."""

    type, name = "ncvc", "write store"

    def __init__(self, folder: Path, files: Sequence[Path], names: Sequence[str]) -> None:
        super().__init__()
        self.folder, self.files, self.names = folder, list(files), list(names)

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Write; yields nothing."""
        path = self.files[rank]
        kept = _WholeFile(path)
        drops = _WholeFile(self.folder / f"{rank:05d}.dropped.jsonl")
        shares = _WholeFile(self.folder / f"{rank:05d}.shared.jsonl")
        documents = characters = num_bytes = 0
        for document in data:
            if "matches" in document.metadata:
                shares.write(_line(_share_record(document, source=self.names[rank])))
            if "drop" in document.metadata:
                drops.write(_line(_drop_record(document, source=self.names[rank])))
                continue
            kept.write(_line({"id": document.id, "words": document.text}))
            cleaned = document.text.replace(" ", "")
            documents += 1
            characters += len(cleaned)
            num_bytes += len(cleaned.encode())
        written = kept.close()
        drops.close()
        shares.close()
        record: dict[str, Any] = {"documents": documents, "characters": characters, "bytes": num_bytes}
        write_json(self.folder / f"{rank:05d}.json", record | {"file": file_record(path) if written else None})
        return iter(())


def concatenate(parts: Iterable[Path], output: Path) -> int:
    """Join the files that exist of ``parts`` into ``output``; the number of lines."""
    lines = 0
    with output.open("wb") as target:
        for part in parts:
            if part.is_file():
                for line in part.open("rb"):
                    target.write(line)
                    lines += 1
    return lines
