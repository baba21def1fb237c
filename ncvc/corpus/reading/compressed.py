"""Bytes and lines out of stored files, unpacked by what they hold rather than by their name.

gzip and zstd are told by their first bytes, so a .jsonl that is really gzip is read, and so is gzip within gzip; what
is compressed more than twice is reported. A file may hold several streams one after the other.
Cost: a block of 256 KiB, at most 16 MiB unpacked at a time (gzip; 32 MiB of a zstd that is made to swell), and
the line in hand. zstandard (extra `corpus`) is imported only for zstd.
"""

from __future__ import annotations

import importlib
import itertools
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from ncvc.corpus.reading.problems import DAMAGED_FILE, UNREADABLE_FILE, BadFileError

BLOCK_BYTES = 1 << 18
_UNPACKED_BYTES = 1 << 24
_ZSTD_SLICE = 1 << 10  # a zstd block of a few bytes may unpack to 128 KiB
_MOST_LEVELS = 2


class LongLine(int):
    """Stands for a line with more bytes than allowed; its value is how many."""


def stored_blocks(path: Path, advance: Callable[[int], None]) -> Iterator[bytes]:
    """The file's bytes block by block; BadFileError when it cannot be read (it vanished, the disk fails)."""
    try:
        with path.open("rb", buffering=0) as handle:
            while block := handle.read(BLOCK_BYTES):
                advance(handle.tell())
                yield block
    except OSError as error:
        raise BadFileError(UNREADABLE_FILE, f"{error.strerror or error}") from None


def unpacked_blocks(path: Path, advance: Callable[[int], None], *, kind: str) -> Iterator[bytes]:
    """Blocks of the contents; BadFileError if a stream stops early or is damaged, after all whole blocks."""
    declared = {".gz": "gzip", ".zst": "zstd"}.get(Path(kind).suffix)
    return _unpacked(stored_blocks(path, advance), declared, 0)


def _unpacked(blocks: Iterator[bytes], declared: str | None, level: int) -> Iterator[bytes]:
    first = b""
    for block in blocks:
        first += block
        if len(first) >= 4:
            break
    whole = itertools.chain([first] if first else [], blocks)
    found = "gzip" if first.startswith(b"\x1f\x8b") else "zstd" if first.startswith(b"\x28\xb5\x2f\xfd") else declared
    if found is None or not first:
        yield from whole
    elif level == _MOST_LEVELS:
        raise BadFileError(DAMAGED_FILE, f"compressed more than {_MOST_LEVELS} times")
    else:
        yield from _unpacked((_gunzip if found == "gzip" else _unzstd)(whole), None, level + 1)


def _gunzip(blocks: Iterator[bytes]) -> Iterator[bytes]:
    stream, started = None, False
    for block in blocks:
        while block:
            if stream is None:
                # A file may hold several streams one after the other; gzip may pad the end with zero bytes.
                block = block.lstrip(b"\0") if started else block
                if not block:
                    break
                stream, started = zlib.decompressobj(wbits=31), True
            try:
                data = stream.decompress(block, _UNPACKED_BYTES)
                while len(data) == _UNPACKED_BYTES and not stream.eof:
                    yield data
                    data = stream.decompress(stream.unconsumed_tail, _UNPACKED_BYTES)
            except zlib.error as error:
                raise BadFileError(DAMAGED_FILE, str(error)) from None
            if data:
                yield data
            block = b""
            if stream.eof:
                block, stream = stream.unused_data, None
    if stream is not None:
        raise BadFileError(DAMAGED_FILE, "the compressed stream ends before its end mark")


def zstandard() -> ModuleType:
    """The package that unpacks zstd; ModuleNotFoundError with the cure."""
    return importlib.import_module("zstandard")


def _unzstd(blocks: Iterator[bytes]) -> Iterator[bytes]:
    try:
        package = zstandard()
    except ModuleNotFoundError:
        raise BadFileError(UNREADABLE_FILE, "it holds zstd: run pip install 'ncvc[corpus]'") from None
    decompressor, stream = package.ZstdDecompressor(max_window_size=1 << 31), None
    gathered: list[bytes] = []
    for block in blocks:
        for start in range(0, len(block), _ZSTD_SLICE):
            part = block[start : start + _ZSTD_SLICE]
            while part:
                if stream is None:
                    stream = decompressor.decompressobj()
                try:
                    gathered.append(stream.decompress(part))
                except package.ZstdError as error:
                    yield b"".join(gathered)
                    raise BadFileError(DAMAGED_FILE, str(error)) from None
                part = b""
                if stream.eof:
                    part, stream = stream.unused_data, None
            if sum(map(len, gathered)) >= BLOCK_BYTES:
                yield b"".join(gathered)
                gathered.clear()
    yield b"".join(gathered)
    if stream is not None:
        raise BadFileError(DAMAGED_FILE, "the compressed stream ends before its end mark")


def lines(blocks: Iterator[bytes], *, longest: int) -> Iterator[bytes | LongLine]:
    """Lines without newlines; a last line without one counts, half a line before an exception does not.

    Of a line with more than `longest` bytes only a `LongLine` is given.
    """
    pieces: list[bytes] = []
    size = 0
    for block in blocks:
        first, *others = block.split(b"\n")
        size += len(first)
        if size <= longest:
            pieces.append(first)
        else:
            pieces.clear()
        if others:
            yield b"".join(pieces) if size <= longest else LongLine(size)
            if len(block) <= longest:
                yield from others[:-1]
            else:
                yield from (line if len(line) <= longest else LongLine(len(line)) for line in others[:-1])
            pieces, size = [others[-1]], len(others[-1])
    if size > longest:
        yield LongLine(size)
    elif last := b"".join(pieces):
        yield last
