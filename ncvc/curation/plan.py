"""The work of a curation, cut into tasks that depend on its input alone.

A unit is a run of consecutive files of one source, so that neither a million small pages nor one large file decides
how the work is shared out; reading a unit gives shards of `shard_megabytes`, and every later task is one shard. Number
and order of workers change nothing about either, so they cannot change the output.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ncvc.corpus.reading.layouts import build_layout
from ncvc.corpus.reading.readers import require_packages
from ncvc.corpus.reading.sources import SourceFile, find_source_files
from ncvc.curation.settings import Source

UNIT_BYTES = 64_000_000
UNIT_FILES = 2_000


@dataclass(frozen=True, slots=True)
class Unit:
    """Files of one source that one task reads; ``ignored`` are the names of files of no known kind."""

    source: int
    files: tuple[SourceFile, ...]
    ignored: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Stored size of the files."""
        return sum(file.num_bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of read documents: every later task works on one."""

    source: int
    path: Path
    documents: int
    num_bytes: int


def units_of(sources: tuple[Source, ...]) -> list[Unit]:
    """The units of all sources in order. Raises as `find_source_files` does, in the name of the setting."""
    units: list[Unit] = []
    for number, source in enumerate(sources):
        files, ignored = find_source_files(source.path, setting=f"corpus.sources.{source.name}.path")
        settings = source.settings
        layout = build_layout(settings.layout, text_field=settings.text_field, options=settings.options)
        for file in files:
            require_packages(file, layout, setting=f"corpus.sources.{source.name}.path")
        held: list[SourceFile] = []
        size = 0
        first = True
        for file in files:
            if held and (size + file.num_bytes > UNIT_BYTES or len(held) >= UNIT_FILES):
                units.append(Unit(number, tuple(held), tuple(ignored) if first else ()))
                held, size, first = [], 0, False
            held.append(file)
            size += file.num_bytes
        units.append(Unit(number, tuple(held), tuple(ignored) if first else ()))
    return units


def read_shards(folder: Path, *, num_units: int) -> list[Shard]:
    """The shards that the finished reading tasks of ``folder`` recorded, in order."""
    shards = []
    for number in range(num_units):
        record = json.loads((folder / f"{number:05d}.json").read_text(encoding="utf-8"))
        for shard in record["shards"]:
            shards.append(Shard(shard["source"], folder / shard["name"], shard["documents"], shard["bytes"]))
    return shards


def key_of(value: Any) -> str:
    """16 hexadecimal digits that stand for ``value``."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
