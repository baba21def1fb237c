"""A finished curated corpus: its sources as training reads them, its certificate, its card.

Knows nothing of datatrove: a machine that only trains needs the folder and not what made it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ncvc.analyzers.files import DICTIONARY, USER_DICTIONARY
from ncvc.preparation import Source
from ncvc.storage import read_manifest

FORMAT, VERSION = "ncvc-curated", 1


@dataclass(frozen=True)
class CuratedCorpus:
    """A folder that ``python -m ncvc.curate`` finished."""

    directory: Path
    manifest: dict[str, Any]

    def sources(self) -> list[Source]:
        """Its stores as sources, in order, for `ncvc.preparation.prepare`; stores without a document are left out."""
        return [
            Source(
                name=name,
                path=str(self.directory / "stores" / name),
                weight=record["weight"],
                for_tokenizer=record["for_tokenizer"],
                kind=record["kind"],
            )
            for name, record in self.manifest["sources"].items()
            if record["documents"]
        ]

    @property
    def settings(self) -> dict[str, Any]:
        """`cleaning` and `analyzer` as they were set, for what reads the corpus; dictionaries out of this folder."""
        settings = dict(self.manifest["settings"])
        held = self.directory / "analyzer"
        found = {
            kind: [str(path.absolute()) for path in sorted(held.glob(f"{kind}-*"))]
            for kind in (USER_DICTIONARY, DICTIONARY)
        }
        analyzer = dict(settings["analyzer"])
        if found[DICTIONARY]:
            analyzer["dictionary"] = found[DICTIONARY][0]
        if found[USER_DICTIONARY]:
            analyzer["user_dictionary"] = found[USER_DICTIONARY]
        return settings | {"analyzer": analyzer}


def open_curated(named: str | Path, *, home: Path) -> CuratedCorpus:
    """Open the folder ``named``, or with ``last`` the newest of ``home``; raises `FileNotFoundError` with the cure."""
    folder = Path(named).expanduser()
    if str(named) == "last":
        finished = [path.parent for path in (home / "curated").glob("*/manifest.json")]
        if not finished:
            raise FileNotFoundError(
                f"data.corpus=last: {home / 'curated'} holds no finished corpus; run python -m ncvc.curate corpus=..., "
                "or name a corpus' folder."
            )
        folder = max(finished, key=lambda path: (path / "manifest.json").stat().st_mtime_ns)
    return CuratedCorpus(folder, read_manifest(folder, manifest_format=FORMAT, version=VERSION))
