"""The segmented store: a source cleaned and cut into words once, for fitting tokenizers and packing tokens.

A folder with documents-00000.jsonl, ... (one {"id", "words"} a line; `words` is the cleaned text with one
space between words and a newline between lines) and manifest.json: counts, the rows left out by reason with
samples, the identities of cleaner and analyzer, the fingerprint of the source, and the sha256 of every file.
The bytes are the same for any number of workers.

Cost: morphological analysis decides it, about 2 MB of text per second and core with Sudachi (2.6 measured on
Wikipedia); a worker holds 240 MB, most of it the dictionary they share. The store is 1.2x the text on disk.
Memory is flat: at most two batches of 200,000 characters per worker are under way.
Interrupted or failed runs leave the old store as it was; the next run removes what they left behind.
Does not: deduplicate, filter by quality, or continue a half-finished run.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from ncvc.analyzers.files import analyzer_files, remember_files
from ncvc.corpus.cleaning import Cleaner
from ncvc.corpus.documents import Document
from ncvc.corpus.reading.readers import ReadProblem, find_source_files, read_documents, source_fingerprint
from ncvc.morphology import Analyzer, analyzer_from_identity
from ncvc.processes import exit_with_parent, in_order
from ncvc.storage import (
    atomic_directory,
    check_file,
    file_record,
    hash_json,
    read_manifest,
    require_free_space,
    write_manifest,
)
from ncvc.tokenizer import segment_text

FORMAT, VERSION = "ncvc-segmented", 1
NOTHING_LEFT = "nothing left after cleaning"
NOT_ANALYSED = "cleaning or analysis failed"

_BATCH_CHARACTERS = 200_000  # about 0.5 MB of Japanese UTF-8
_FILE_BYTES = 1 << 29
_SMALL_SOURCE_BYTES = 1 << 20  # below this, starting processes costs more than it saves
_PROBLEM_SAMPLES = 20
_STORE_PER_SOURCE_BYTE = {".txt": 1.3, ".jsonl": 1.3, ".parquet": 3.0}  # the rest is compressed text: 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SegmentedDocument:
    """A cleaned document with one space between words, a newline between lines, and no other space."""

    words: str
    id: str

    @property
    def cleaned(self) -> str:
        """The cleaned text: the words without the spaces between them."""
        return self.words.replace(" ", "")


@dataclass(frozen=True)
class SegmentedCorpus:
    """A finished store; made by `segment_source` and `open_segmented`."""

    directory: Path
    manifest: dict[str, Any]

    @property
    def num_documents(self) -> int:
        """Documents in the store."""
        return self.manifest["documents"]

    @property
    def bytes(self) -> int:
        """Size of the cleaned text in UTF-8."""
        return self.manifest["bytes"]

    @property
    def fingerprint(self) -> str:
        """sha256 over what decides the words: the files' hashes, cleaner and analyzer."""
        keys = ("format", "version", "cleaner", "analyzer", "files")
        return hash_json({key: self.manifest[key] for key in keys})

    def documents(self) -> Iterator[SegmentedDocument]:
        """The documents in source order."""
        for name in self.manifest["files"]:
            with (self.directory / name).open(encoding="utf-8", newline="\n") as handle:
                for line in handle:
                    yield SegmentedDocument(**json.loads(line))

    def texts(self) -> Iterator[str]:
        """The segmented texts alone, as `Tokenizer.train` takes them."""
        return (document.words for document in self.documents())


def open_segmented(directory: Path, *, verify: bool = False) -> SegmentedCorpus:
    """Open a store; refuses foreign, incomplete and altered ones by name (`verify` reads every byte)."""
    directory = Path(directory)
    manifest = read_manifest(directory, manifest_format=FORMAT, version=VERSION)
    for name, record in manifest["files"].items():
        check_file(directory / name, record, verify=verify)
    return SegmentedCorpus(directory, manifest)


def segment_source(
    source: Path,
    *,
    output: Path,
    cleaner: Cleaner,
    analyzer_identity: Mapping[str, str],
    text_field: str = "text",
    workers: int = 1,
    progress: bool = True,
) -> SegmentedCorpus:
    """Read, clean and segment `source` into the store `output` (replaced as a whole if it is there).

    `workers` processes analyse; 1 (or a source below 1 MiB) analyses in this process. Documents that clean to
    nothing are left out and counted. Raises the readers' errors, ValueError for an analyzer that cannot be
    rebuilt here or a source of which nothing is left, FileExistsError if `output` is something else, OSError
    (ENOSPC and the like) when the disk is full.
    """
    source, output = Path(source), Path(output)
    if workers < 1:
        raise ValueError(f"data.workers={workers}: at least one process must do the work; set 1 or more")
    files, _ = find_source_files(source)
    source_bytes = sum(file.num_bytes for file in files)
    needed = sum(int(file.num_bytes * _STORE_PER_SOURCE_BYTE.get(file.kind, 4.0)) for file in files)
    require_free_space(output, needed, what=f"the cleaned and segmented text of data.source={source}")
    analyzer_from_identity(analyzer_identity)  # fails here, with its reason, rather than in a worker
    problems = _ProblemLog()
    position = 0

    def read_so_far(num_bytes: int) -> None:
        nonlocal position
        position = num_bytes

    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "source_fingerprint": source_fingerprint(source, progress=progress and source_bytes > 1 << 28),
        "text_field": text_field,
        "cleaner": dict(cleaner.identity),
        "analyzer": dict(analyzer_identity),
    }
    documents = read_documents(source, text_field=text_field, on_problem=problems.add, on_progress=read_so_far)
    batches = ((batch, position) for batch in _batches(documents))
    if source_bytes < _SMALL_SOURCE_BYTES:
        workers = 1
    bar = tqdm(total=source_bytes, desc="clean and segment", unit="B", unit_scale=True, disable=not progress)
    with (
        atomic_directory(output, manifest_format=FORMAT) as partial,
        contextlib.closing(_analysed(batches, cleaner, dict(analyzer_identity), workers)) as results,
        bar,
    ):
        manifest |= _write_store(partial, results, problems, bar)
        if manifest["documents"] == 0:
            raise ValueError(f"data.source={source}: no document is left after cleaning: {problems}")
        write_manifest(partial, manifest)
    if manifest["problems"]:
        logger.warning("data.source=%s: %d documents kept; left out: %s", source, manifest["documents"], problems)
    return SegmentedCorpus(output, manifest)


def _write_store(
    directory: Path, results: Iterable[tuple[_Analysed, int]], problems: _ProblemLog, bar: tqdm
) -> dict[str, Any]:
    """Write analysed batches into document files; returns their part of the manifest."""
    writer = _RollingWriter(directory)
    documents = characters = num_bytes = 0
    for result, read in results:
        writer.write(result.lines)
        for problem in result.problems:
            problems.add(problem)
        documents += result.documents
        characters += result.characters
        num_bytes += result.num_bytes
        bar.update(read - bar.n)
    bar.update(bar.total - bar.n)
    return {
        "documents": documents,
        "characters": characters,
        "bytes": num_bytes,
        "problems": problems.as_dict(),
        "files": writer.close(),
    }


class _ProblemLog:
    """Counts of what was left out, by reason, with the first few of each."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.samples: dict[str, list[ReadProblem]] = {}

    def add(self, problem: ReadProblem) -> None:
        self.counts[problem.reason] = self.counts.get(problem.reason, 0) + 1
        samples = self.samples.setdefault(problem.reason, [])
        if len(samples) < _PROBLEM_SAMPLES:
            samples.append(problem)

    def as_dict(self) -> dict[str, Any]:
        return {
            reason: {
                "count": self.counts[reason],
                "samples": [{"file": p.file, "row": p.row, "detail": p.detail} for p in self.samples[reason]],
            }
            for reason in sorted(self.counts)
        }

    def __str__(self) -> str:
        return "; ".join(f"{self.counts[r]} x {r}, first {self.samples[r][0]}" for r in sorted(self.counts))


@dataclass(frozen=True, slots=True)
class _Analysed:
    lines: bytes
    documents: int
    characters: int
    num_bytes: int
    problems: list[ReadProblem]


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _analyse(batch: list[Document], cleaner: Cleaner, analyzer: Analyzer) -> _Analysed:
    lines, problems = [], []
    characters = num_bytes = 0
    for document in batch:
        try:
            cleaned = cleaner(document.text)
            words = segment_text(cleaned, analyzer=analyzer)
        except MemoryError:
            raise
        except Exception as error:  # one document must not cost the hours spent on the others
            problems.append(ReadProblem(document.id, None, NOT_ANALYSED, f"{type(error).__name__}: {error}"))
            continue
        if not words:
            problems.append(ReadProblem(document.id, None, NOTHING_LEFT, f"{len(document.text)} raw characters"))
            continue
        if words.replace(" ", "") != cleaned:
            raise RuntimeError(f"analyzer {analyzer.identity} altered the text of document {document.id!r}")
        lines.append(json.dumps({"id": document.id, "words": words}, ensure_ascii=False).encode())
        characters += len(cleaned)
        num_bytes += len(cleaned.encode())
    data = b"".join(line + b"\n" for line in lines)
    return _Analysed(data, len(lines), characters, num_bytes, problems)


_worker: tuple[Cleaner, Analyzer]  # what one worker process analyses with; set once when it starts


def _start_worker(cleaner: Cleaner, identity: dict[str, str], files: list[Path]) -> None:
    global _worker
    remember_files(files)
    exit_with_parent()
    _worker = (cleaner, analyzer_from_identity(identity))


def _analyse_in_worker(batch: tuple[list[Document], int]) -> tuple[_Analysed, int]:
    documents, position = batch
    return _analyse(documents, *_worker), position


def _analysed(
    batches: Iterator[tuple[list[Document], int]], cleaner: Cleaner, identity: dict[str, str], workers: int
) -> Generator[tuple[_Analysed, int], None, None]:
    """Analysed batches in order, each with the source bytes read when it was cut."""
    if workers == 1:
        analyzer = analyzer_from_identity(identity)
        for batch, position in batches:
            yield _analyse(batch, cleaner, analyzer), position
        return
    yield from in_order(
        _analyse_in_worker,
        batches,
        workers=workers,
        start=_start_worker,
        start_with=(cleaner, identity, [path.absolute() for path in analyzer_files(identity).values()]),
        doing="analysing",
    )


class _RollingWriter:
    """Writes lines into documents-00000.jsonl and on, a new file after every 512 MiB."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._paths: list[Path] = []
        self._handle: IO[bytes] | None = None

    def write(self, lines: bytes) -> None:
        if self._handle is None or self._handle.tell() >= _FILE_BYTES:
            self._finish()
            self._paths.append(self._directory / f"documents-{len(self._paths):05d}.jsonl")
            self._handle = self._paths[-1].open("wb")
        self._handle.write(lines)

    def close(self) -> dict[str, dict[str, Any]]:
        self._finish()
        return {path.name: file_record(path) for path in self._paths}

    def _finish(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None
