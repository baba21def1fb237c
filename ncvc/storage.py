"""Folders that appear whole or not at all, disk space, and hashes of files: what every product on disk shares.

A product is written into a folder beside its place, synced, and renamed when complete; its manifest.json carries the
sha256 of every file. Killed runs leave only leftovers that the next run removes. Costs one read of a file to hash it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

_EDGE_BYTES = 1 << 20


@contextlib.contextmanager
def atomic_directory(output: Path, *, manifest_format: str) -> Iterator[Path]:
    """Give an empty folder `<output>.partial-<pid>` to fill; on success it is renamed to `output`.

    Its files are synced to disk first. On an exception it is removed and `output` stays as it was. A killed
    run leaves its folder behind for the next run to remove (a lock that dies with the process tells the dead
    from the living). Replaces only folders of `manifest_format`.
    """
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        try:
            read_manifest(output, manifest_format=manifest_format, version=None)
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:
            raise FileExistsError(
                f"{output} is in the way and will not be replaced, for it was not made by ncvc: {error}. "
                "Move it, or set another output folder"
            ) from error
    partial = output.with_name(f"{output.name}.partial-{os.getpid()}")
    partial.mkdir()
    lock = (partial / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield partial
        for path in [*partial.rglob("*"), partial]:
            sync(path)
        old = output.with_name(f"{output.name}.old-{os.getpid()}")
        if output.exists():
            output.rename(old)
        partial.rename(output)
        (output / ".lock").unlink()
        sync(output.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        free = shutil.disk_usage(output.parent).free
        raise OSError(
            error.errno,
            f"writing {output} failed: {error.strerror} ({free:,} bytes free on that disk). The unfinished "
            "part is removed and what was there before is untouched. Free some space, lift the limit, or "
            "set NCVC_HOME to a folder on a larger disk",
        ) from error
    finally:
        lock.close()
        shutil.rmtree(partial, ignore_errors=True)


def _remove_leftovers(output: Path) -> None:
    """Undo what killed runs left: restore an old folder that was moved aside, remove unfinished ones."""
    for path in sorted(output.parent.iterdir()):
        if path.name.startswith(f"{output.name}.old-"):
            if output.exists():
                shutil.rmtree(path)
            else:
                path.rename(output)
        elif path.name.startswith(f"{output.name}.partial-"):
            try:
                with (path / ".lock").open("r+") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # another run is writing it
            except FileNotFoundError:
                pass
            shutil.rmtree(path, ignore_errors=True)


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which appears as ``path``, synced, when the block ends; after an exception there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as handle:
            yield handle
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def require_free_space(output: Path, num_bytes: int, *, what: str) -> None:
    """Raise OSError (ENOSPC) before any work if the disk of `output` has fewer than `num_bytes` free."""
    folder = Path(output).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OSError(
            errno.ENOSPC,
            f"{what} needs about {num_bytes:,} bytes in {output}, but that disk has {free:,} free. Free "
            "some space, or set NCVC_HOME to a folder on a larger disk",
        )


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write `record` as indented UTF-8 JSON, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.write_text(json.dumps(record, ensure_ascii=False, indent=2, default=str) + "\n", encoding="utf-8")
    partial.replace(path)


def hash_json(value: object) -> str:
    """sha256 of the canonical JSON of `value`."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_record(path: Path) -> dict[str, Any]:
    """Size, sha256, and the sha256 of the first and last MiB alone: what `check_file` compares."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest(), "edges_sha256": edges_sha256(path)}


def edges_sha256(path: Path) -> str:
    """sha256 of the first and the last MiB of a file: enough to notice a torn or foreign one without reading it."""
    with path.open("rb") as handle:
        data = handle.read(_EDGE_BYTES)
        handle.seek(max(0, path.stat().st_size - _EDGE_BYTES))
        return hashlib.sha256(data + handle.read()).hexdigest()


def check_file(
    path: Path,
    record: Mapping[str, Any],
    *,
    verify: bool,
    cure: str = "remove its folder and prepare the data again",
) -> None:
    """Raise if the file is missing, of another size, or altered (at its edges; with `verify` anywhere)."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, though the manifest beside it lists it; {cure}")
    size = path.stat().st_size
    if size != record["bytes"]:
        what = "truncated" if size < record["bytes"] else "longer than it was written"
        raise ValueError(f"{path} is {what}: {size:,} bytes, the manifest says {record['bytes']:,}; {cure}")
    if edges_sha256(path) != record["edges_sha256"] or (verify and file_record(path)["sha256"] != record["sha256"]):
        raise ValueError(f"{path} was altered after it was written (its sha256 is not the manifest's); {cure}")


def write_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Write manifest.json, readable and the same bytes for the same content."""
    text = json.dumps(manifest, ensure_ascii=False, indent=1)
    (directory / "manifest.json").write_text(text + "\n", encoding="utf-8")


def read_manifest(directory: Path, *, manifest_format: str, version: int | None) -> dict[str, Any]:
    """Read manifest.json and check that it is of this format and version (None: any version)."""
    path = directory / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{directory} is not a finished folder of format {manifest_format}: it has no manifest.json; "
            "set the folder that ncvc wrote, or prepare the data again"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found, found_version = manifest["format"], manifest["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a manifest of ncvc ({type(error).__name__}: {error}); set another folder"
        ) from error
    if found != manifest_format or (version is not None and found_version != version):
        raise ValueError(
            f"{path} is of format {found!r} version {found_version}, but {manifest_format!r} version "
            f"{version} is read here; set another folder, or prepare the data again with this version of "
            "ncvc"
        )
    return manifest
