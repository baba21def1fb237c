"""Arrays in one file with a JSON header, mapped into memory by any number of processes.

Layout: a line with the magic word, a line with the JSON header (format, version, sha256 of what follows, name, type,
shape and offset of each array, and the caller's own header), then the arrays, each at a multiple of 64 bytes.
Costs: opening reads the file once to check its sha256 (1 GB/s). Does not: hold arrays of objects, or compress.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ncvc.storage import whole_file

_MAGIC = b"ncvc-arrays 1\n"
_ALIGNMENT = 64
_LONGEST_HEADER = 1 << 28


def write(
    path: Path, arrays: Mapping[str, np.ndarray], *, file_format: str, version: int, header: Mapping[str, Any]
) -> None:
    """Write `path`, complete or not at all, the same bytes for the same content."""
    path = Path(path)
    arrays = dict(sorted(arrays.items()))
    listed, offset, digest = {}, 0, hashlib.sha256()
    for name, array in arrays.items():
        offset += _padding(offset)
        listed[name] = {"type": array.dtype.str, "shape": list(array.shape), "offset": offset}
        offset += array.nbytes
    for data in _contents(arrays):
        digest.update(data)
    record = {
        "format": file_format,
        "version": version,
        "bytes": offset,
        "sha256": digest.hexdigest(),
        "arrays": listed,
        "header": dict(header),
    }
    line = json.dumps(record, ensure_ascii=True, sort_keys=True).encode() + b"\n"
    line = line[:-1] + b" " * _padding(len(_MAGIC) + len(line)) + b"\n"
    with whole_file(path) as handle:
        handle.write(_MAGIC + line)
        for data in _contents(arrays):
            handle.write(data)


def _padding(size: int) -> int:
    return -size % _ALIGNMENT


def _contents(arrays: Mapping[str, np.ndarray]) -> Any:
    offset = 0
    for array in arrays.values():
        yield bytes(_padding(offset))
        offset += _padding(offset) + array.nbytes
        yield np.ascontiguousarray(array).view(np.uint8).reshape(-1).data


def open_arrays(path: Path, *, file_format: str, version: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Map the arrays of `path` (read only) and return its header.

    Raises FileNotFoundError, or ValueError for a file that is foreign, of another version, truncated or altered.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; build it again")
    with path.open("rb") as handle:
        magic = handle.readline(len(_MAGIC))
        line = handle.readline(_LONGEST_HEADER) if magic == _MAGIC else b""
        start = handle.tell()
    try:
        record = json.loads(line)
        found = (record["format"], record["version"])
        size, listed = record["bytes"], record["arrays"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} was not written by ncvc, or its beginning is damaged; build it again") from error
    if found != (file_format, version):
        raise ValueError(
            f"{path} is of format {found[0]!r} version {found[1]}, but {file_format!r} version {version} is read here; "
            "name another file, or build it again"
        )
    if path.stat().st_size != start + size:
        raise ValueError(
            f"{path} is truncated or longer than it was written: {path.stat().st_size:,} bytes, {start + size:,} "
            "were written; build it again"
        )
    data = np.memmap(path, np.uint8, mode="r", offset=start, shape=(size,)) if size else np.empty(0, np.uint8)
    if hashlib.sha256(data.data).hexdigest() != record["sha256"]:
        raise ValueError(f"{path} was altered after it was written (its sha256 is another); build it again")
    arrays = {}
    for name, entry in listed.items():
        kind, shape = np.dtype(entry["type"]), tuple(entry["shape"])
        length = kind.itemsize * int(np.prod(shape, dtype=np.int64))
        part = np.asarray(data)[entry["offset"] : entry["offset"] + length]
        arrays[name] = part.view(kind).reshape(shape)
    return arrays, record["header"]
