"""Steps that read: raw files of a unit, or the shard that an earlier stage wrote.

Both write down about once a second how far they are, where the program that shows progress looks. Imports datatrove
when it is imported; import it inside functions only.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from datatrove.data import Document, DocumentsPipeline

from ncvc.corpus.reading import readers
from ncvc.curation.plan import Unit
from ncvc.curation.settings import Source
from ncvc.curation.step import Counted, drop

_PROGRESS_SECONDS = 1.0


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
