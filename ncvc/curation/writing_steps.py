"""Steps that write: shards of raw documents, refined shards with their keys, files of the segmented stores.

Files appear whole: written beside, synced, renamed, and only then marked by datatrove. Dropped documents go into a file
beside those that stay. Costs a JSON line per document, about 100 MB/s. Imports datatrove when it is imported; import it
inside functions only.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from ncvc.corpus.duplicates.deduplication import exact_key
from ncvc.curation.plan import Shard, Unit
from ncvc.curation.step import FAILED
from ncvc.storage import file_record, whole_file, write_json

EXCERPT_CHARACTERS = 160


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _where(document: Document, *, source: str) -> dict[str, Any]:
    metadata = document.metadata
    return {"source": source, "id": document.id, "file": metadata.get("file"), "row": metadata.get("row")}


def _drop_record(document: Document, *, source: str) -> dict[str, Any]:
    metadata = document.metadata
    return {
        **_where(document, source=source),
        **metadata["drop"],
        "bytes": len(document.text.encode("utf-8", "surrogatepass")),
        # where a step failed, personal data may not be masked yet
        "excerpt": "" if metadata["drop"]["reason"] == FAILED else document.text[:EXCERPT_CHARACTERS],
    }


def _share_record(document: Document, *, source: str) -> dict[str, Any]:
    metadata = document.metadata
    return {
        **_where(document, source=source),
        "action": "dropped" if "drop" in metadata else "cut",
        "matches": metadata["matches"],
    }


class _WholeFile:
    """A file that appears under its name when it is complete; no file if nothing was written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened = contextlib.ExitStack()
        self._handle: IO[bytes] | None = None
        self.documents = self.bytes = 0

    def write(self, line: bytes) -> None:
        if self._handle is None:
            self._handle = self._opened.enter_context(whole_file(self.path))
        self._handle.write(line)
        self.documents += 1
        self.bytes += len(line)

    def close(self) -> bool:
        if self._handle is None:
            self.path.unlink(missing_ok=True)
            return False
        self._opened.close()
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
        with whole_file(self.folder / f"{rank:05d}.keys") as handle:
            handle.write(b"".join(keys))
        write_json(
            self.folder / f"{rank:05d}.json",
            {"source": source, "documents": len(keys), "bytes": text_bytes, "masked": dict(sorted(masked.items()))},
        )
        return iter(())


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
