"""What every step of a curation shares: counts for datatrove's statistics, marks of dropped documents, batches.

A document that a step leaves out goes on with `metadata["drop"]` (stage, reason, detail) and no step after it looks
at it again; the writer at the end puts it among the dropped. So every reason is kept, in order, with no state shared
between steps. Imports datatrove when it is imported; import it inside functions only.
"""

from __future__ import annotations

import time
from typing import Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

FAILED = "failed"
_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 256, 2_000_000


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
