"""Weights and optimizer states as named flat slices: copied to the host, written as shards, read back by any layout.

A shard is a safetensors file with, for each kind ("weight", "exp_avg", ...) and parameter, the values [start, stop) of
the flattened parameter under the key ``kind:name``; the starts stand in its metadata. Nothing says which strategy or
how many ranks wrote it. Training waits for ``HostCopy`` alone. The format is written by hand, because so the hash takes
no second pass, and because ``save_file`` of safetensors 0.5 and 0.6 stops every other thread while it writes (measured;
0.8 does not). Costs one host copy of the rank's share. Does not decide which rank holds what, when to save, or how a
checkpoint is completed (``ncvc/checkpoints.py``).
"""

import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ncvc import storage

_CHUNK_BYTES = 4 << 20
_TYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}


@dataclass(frozen=True, kw_only=True)
class ParameterSlice:
    """Values [start, stop) of the flattened parameter ``name``: for each kind a flat tensor of stop - start values."""

    name: str
    start: int
    stop: int
    tensors: Mapping[str, torch.Tensor]

    def __post_init__(self) -> None:
        for kind, tensor in self.tensors.items():
            if tensor.dim() != 1 or tensor.numel() != self.stop - self.start:
                raise ValueError(
                    f"{kind} of {self.name}: a tensor of shape {list(tensor.shape)} is not the flat slice "
                    f"[{self.start}, {self.stop}); give a 1-D tensor of {self.stop - self.start} values."
                )


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a contiguous tensor on the host, as bytes (numpy has no bf16)."""
    return tensor.view(torch.uint8).numpy()


class HostCopy:
    """Copies slices into host buffers that are kept: the first copy allocates and touches them, later ones only copy.

    Buffers are pinned for tensors on a CUDA device. What ``copy`` returned is overwritten by the next ``copy``, so wait
    until it is written.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], torch.Tensor] = {}

    @torch.no_grad()
    def copy(self, slices: Iterable[ParameterSlice]) -> list[ParameterSlice]:
        """The same slices on the host, with values that training does not change any more."""
        copied, devices = [], set()
        for part in slices:
            tensors = {}
            for kind, tensor in part.tensors.items():
                tensors[kind] = self._buffer((kind, part.name), tensor)
                if tensor.is_cuda:
                    tensors[kind].copy_(tensor, non_blocking=True)
                    devices.add(tensor.device)
                else:  # one thread: torch's several wait for each other where ranks share a CPU (5 times slower)
                    np.copyto(_bytes(tensors[kind]), _bytes(tensor.detach().contiguous()))
            copied.append(ParameterSlice(name=part.name, start=part.start, stop=part.stop, tensors=tensors))
        for device in devices:
            torch.cuda.synchronize(device)
        return copied

    def _buffer(self, key: tuple[str, str], tensor: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get(key)
        fits = buffer is not None and buffer.shape == tensor.shape and buffer.dtype == tensor.dtype
        if buffer is None or not fits or (tensor.is_cuda and not buffer.is_pinned()):
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[key] = buffer
        return buffer


def write_shard(path: Path, slices: Iterable[ParameterSlice]) -> dict[str, Any]:
    """Write host slices as one safetensors file and sync it; its record for a manifest (as ``storage.file_record``).

    A second thread hashes the same memory while this one writes. ``ValueError`` when a parameter comes twice or has a
    type that no reader here knows.
    """
    path = Path(path)
    header, tensors = _header(list(slices))
    views = [memoryview(header), *(_bytes(tensor).data for tensor in tensors)]
    with path.open("wb") as file, ThreadPoolExecutor(max_workers=1) as pool:
        digest = pool.submit(_sha256, views)
        for view in views:
            for place in range(0, len(view), _CHUNK_BYTES):
                file.write(view[place : place + _CHUNK_BYTES])
        file.flush()
        os.fsync(file.fileno())
        num_bytes = file.tell()
    return {"bytes": num_bytes, "sha256": digest.result(), "edges_sha256": storage.edges_sha256(path)}


def _sha256(views: Sequence[memoryview]) -> str:
    digest = hashlib.sha256()
    for view in views:
        digest.update(view)
    return digest.hexdigest()


def _header(slices: Sequence[ParameterSlice]) -> tuple[bytes, list[torch.Tensor]]:
    """The file's first bytes and the tensors in the order of the file: widest types first, which keeps them aligned."""
    starts: dict[str, str] = {}
    found: dict[str, torch.Tensor] = {}
    for part in slices:
        if part.name in starts:
            raise ValueError(f"{part.name} comes twice in one shard; give each parameter as one slice.")
        starts[part.name] = str(part.start)
        for kind, tensor in part.tensors.items():
            if tensor.dtype not in _TYPES or ":" in kind:
                raise ValueError(
                    f"{kind} of {part.name}: {tensor.dtype} cannot be saved; a kind has no colon and is of "
                    f"{', '.join(str(dtype) for dtype in _TYPES)}."
                )
            found[f"{kind}:{part.name}"] = tensor.detach().contiguous()
    keys = sorted(found, key=lambda key: -found[key].itemsize)
    entries: dict[str, Any] = {"__metadata__": starts}
    place = 0
    for key in keys:
        end = place + found[key].nbytes
        entries[key] = {
            "dtype": _TYPES[found[key].dtype],
            "shape": [found[key].numel()],
            "data_offsets": [place, end],
        }
        place = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, [found[key] for key in keys]


@dataclass(frozen=True)
class _Piece:
    """Where values [start, stop) of one kind of one parameter are."""

    start: int
    stop: int
    shard: str
    dtype: str


class StateReader:
    """Gathers any range of any parameter from the shards in ``folder``, however many ranks wrote them.

    Reads headers only until values are asked for. ``ValueError`` names file and parameter when a shard is torn, or
    when values are held twice or nowhere.
    """

    def __init__(self, folder: Path, shards: Sequence[str]) -> None:
        self.folder = Path(folder)
        self._files = {shard: self._open(shard) for shard in shards}
        self._pieces: dict[tuple[str, str], list[_Piece]] = {}
        for shard, file in self._files.items():
            starts = file.metadata() or {}
            for key in file.keys():  # noqa: SIM118 - not a mapping
                kind, _, name = key.partition(":")
                if name not in starts:
                    raise ValueError(f"{self.folder / shard}: {key} has no start in the metadata; not a shard of ncvc.")
                part = file.get_slice(key)
                start = int(starts[name])
                piece = _Piece(start, start + part.get_shape()[0], shard, part.get_dtype())
                self._pieces.setdefault((kind, name), []).append(piece)
        for (kind, name), pieces in self._pieces.items():
            pieces.sort(key=lambda piece: (piece.start, piece.stop))
            self._check(kind, name, pieces)
        self.kinds = list(dict.fromkeys(kind for kind, _ in self._pieces))
        self.names = list(dict.fromkeys(name for _, name in self._pieces))

    def _open(self, shard: str) -> Any:
        path = self.folder / shard
        if not path.is_file():
            raise ValueError(f"{path} is missing; take another checkpoint.")
        try:
            return safe_open(path, framework="pt")
        except SafetensorError as error:
            raise ValueError(f"{path} is torn ({error}); take another checkpoint.") from error

    def _check(self, kind: str, name: str, pieces: Sequence[_Piece]) -> None:
        for before, after in itertools.pairwise(pieces):
            if after.start < before.stop:
                raise ValueError(
                    f"{self.folder}: values {after.start} to {min(before.stop, after.stop)} of {kind} of {name} are "
                    f"held twice, by {before.shard} and {after.shard}; take another checkpoint."
                )
            if after.dtype != before.dtype:
                raise ValueError(
                    f"{self.folder}: {kind} of {name} is {before.dtype} in {before.shard} and {after.dtype} in "
                    f"{after.shard}; take another checkpoint."
                )

    def read(self, kind: str, name: str, start: int, stop: int) -> torch.Tensor:
        """Values [start, stop) of the flattened parameter, shape (stop - start,), in the type they were saved in."""
        held = self._pieces.get((kind, name))
        if held is None:
            raise ValueError(
                f"{self.folder}: no shard holds {kind} of {name} (kinds: {', '.join(self.kinds)}; shards: "
                f"{', '.join(self._files)}); take another checkpoint, or the model that it was saved from."
            )
        parts, place = [], start
        for piece in held:
            if piece.start <= place < min(stop, piece.stop):
                end = min(stop, piece.stop)
                values = self._files[piece.shard].get_slice(f"{kind}:{name}")
                parts.append(values[place - piece.start : end - piece.start])
                place = end
        if place < stop:
            raise ValueError(
                f"{self.folder}: value {place} of {kind} of {name} is in no shard (held: "
                f"{', '.join(f'{piece.start} to {piece.stop} in {piece.shard}' for piece in held)}); take another "
                "checkpoint, or the model that it was saved from."
            )
        if not parts:
            return self._files[held[0].shard].get_slice(f"{kind}:{name}")[0:0]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def read_full(self, kind: str, name: str, shape: Sequence[int]) -> torch.Tensor:
        """The whole parameter in ``shape``; ``ValueError`` when the checkpoint holds more or fewer values of it."""
        held = self._pieces.get((kind, name), [])
        size = math.prod(shape)
        if held and held[-1].stop > size:
            raise ValueError(
                f"{self.folder}: {kind} of {name} has {held[-1].stop:,} values (last in {held[-1].shard}), but shape "
                f"{list(shape)} has {size:,}; set model to the model that it was saved from."
            )
        return self.read(kind, name, 0, size).view(*shape)


def even_slices(sizes: Mapping[str, int], *, rank: int, world_size: int) -> list[tuple[str, int, int]]:
    """(name, start, stop) of the share of one rank when every rank has everything: contiguous, equal to one value.

    ``sizes`` gives each parameter's number of values, in the same order on every rank.
    """
    total = sum(sizes.values())
    first, last = total * rank // world_size, total * (rank + 1) // world_size
    share, place = [], 0
    for name, size in sizes.items():
        start, stop = max(first, place), min(last, place + size)
        if start < stop:
            share.append((name, start - place, stop - place))
        place += size
    return share
