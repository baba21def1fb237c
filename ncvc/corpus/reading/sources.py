"""Which files a source consists of, in which order, and their fingerprint.

A source is one file or a folder. Files come by relative path in code-point order. Hidden files and folders (a name
that begins with a dot) are skipped; a folder reached twice through links is read once. In a folder that `datasets`
saved (state.json beside *.arrow) exactly the files named in state.json are data: caches are not read twice.
Cost: one look at every file; the fingerprint reads them all, about 1 GB/s, and nothing is cached.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

TEXT_KINDS = tuple(
    base + compression for base in (".txt", ".jsonl", ".csv", ".tsv") for compression in ("", ".gz", ".zst")
)
PAGE_KINDS = (".html", ".htm", ".xhtml")
ARCHIVE_KINDS = (".warc", ".warc.gz")
TABLE_KINDS = (".parquet", ".arrow")
KINDS = TEXT_KINDS + TABLE_KINDS + PAGE_KINDS + ARCHIVE_KINDS
"""The kinds of file that are read, by the end of their name (upper and lower case alike)."""

_DATASET_NOTES = ("state.json", "dataset_info.json", "dataset_dict.json")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a known kind; `name` is its path below the source with "/", `num_bytes` its size on disk."""

    path: Path
    name: str
    kind: str
    num_bytes: int


def kind_of(name: str) -> str | None:
    """The kind of a file by its name; None if it is not read."""
    return next((kind for kind in KINDS if name.lower().endswith(kind)), None)


def find_source_files(source: Path, *, setting: str = "data.source") -> tuple[list[SourceFile], list[str]]:
    """The files of known kinds in `source` (a file or a folder) in reading order; the names of the others.

    Files of a known kind that this user may not read, and links to nothing, are among the others. Raises
    FileNotFoundError, PermissionError or ValueError, in the name of `setting`, when there is nothing to read.
    """
    source = Path(source)
    wanted = f"set {setting} to a file or a folder with {', '.join(KINDS)}"
    if not source.exists():
        raise FileNotFoundError(f"{setting}={source} does not exist (looked in {Path.cwd()} if relative); {wanted}")
    paths = {_encodable(source.name): source} if not source.is_dir() else _walk(source)
    files, ignored = [], []
    for name in sorted(paths):
        kind = kind_of(name)
        num_bytes = _readable_size(paths[name]) if kind is not None else None
        if kind is None or num_bytes is None:
            ignored.append(name)
        else:
            files.append(SourceFile(paths[name], name, kind, num_bytes))
    if not files:
        unreadable = next((name for name in ignored if kind_of(name) is not None), None)
        if unreadable is not None:
            raise PermissionError(
                f"{setting}={source}: {unreadable} may not be read by this user (or is no file); "
                "change its permissions or remove it"
            )
        seen = f"only {', '.join(ignored[:5])}{' ...' if len(ignored) > 5 else ''}" if ignored else "no files"
        raise ValueError(f"{setting}={source} has no file of a known kind ({seen}); {wanted}")
    return files, ignored


def _readable_size(path: Path) -> int | None:
    """Bytes of a regular file that may be read; None for anything else."""
    try:
        if path.is_file() and os.access(path, os.R_OK):
            return path.stat().st_size
    except OSError:  # gone in between, or below a folder that may not be entered
        pass
    return None


def _encodable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _walk(folder: Path) -> dict[str, Path]:
    """Visible files below `folder`: relative name -> path. Follows links, each real folder once."""
    found, seen = {}, set()

    def note_unreadable(error: OSError) -> None:
        path = Path(os.fsdecode(error.filename))
        found[_encodable(path.relative_to(folder).as_posix()) + "/"] = path

    for root, folders, names in os.walk(folder, followlinks=True, onerror=note_unreadable):
        try:
            status = Path(root).stat()
        except OSError:
            folders.clear()
            continue
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in _data_files(Path(root), names):
            if not name.startswith("."):
                path = Path(root, name)
                found[_encodable(path.relative_to(folder).as_posix())] = path
    return found


def _data_files(folder: Path, names: list[str]) -> list[str]:
    """`names` without what `datasets` keeps beside the data of a saved dataset, with the data files it names."""
    arrows = {name for name in names if name.endswith(".arrow")}
    if not arrows and not {"dataset_dict.json", "state.json"} & set(names):
        return names
    others = [name for name in names if name not in arrows and name not in _DATASET_NOTES]
    try:
        state = json.loads((folder / "state.json").read_bytes())
        listed = [entry["filename"] for entry in state["_data_files"]]
        if all(isinstance(name, str) and Path(name).name == name for name in listed):
            return others + sorted(set(listed))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        pass  # not saved by `datasets`, or not readable: then every arrow file that is no cache is data
    return others + sorted(name for name in arrows if not name.startswith(("cache-", "tmp")))


def source_fingerprint(source: Path, *, progress: bool = False, setting: str = "data.source") -> str:
    """sha256 over relative name, size and contents of every file that would be read.

    About 1 GB/s; nothing is cached.
    """
    files, _ = find_source_files(source, setting=setting)
    total = hashlib.sha256()
    bar = tqdm(
        total=sum(file.num_bytes for file in files),
        desc="fingerprint of the source",
        unit="B",
        unit_scale=True,
        disable=not progress,
    )
    with bar:
        for file in files:
            contents = hashlib.sha256()
            with file.path.open("rb") as handle:
                while block := handle.read(1 << 20):
                    contents.update(block)
                    bar.update(len(block))
            total.update(json.dumps([file.name, file.num_bytes, contents.hexdigest()]).encode())
    return total.hexdigest()
