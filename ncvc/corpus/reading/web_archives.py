"""The HTML responses of a WARC file, as web crawls store them, plain or gzip (one stream a record or one for all).

Records are cut here and each is parsed by warcio (extra `corpus`), which undoes chunked and compressed transfer. A
damaged record (cut short, a wrong length, broken gzip) is reported under its number and reading goes on at the next
record that can be found. Records count from 1; requests, metadata, and responses that are no HTML are passed over.
Cost: one record in memory; unpacking for what is passed over, 2 to 10 ms for a page.
Does not: check digests, read .arc files, extracted text (WET) or revisit records.
"""

from __future__ import annotations

import importlib
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ncvc.corpus.reading.problems import (
    DAMAGED_RECORD,
    ERROR_PAGE,
    LONGEST_ROW_BYTES,
    ROW_TOO_LONG,
    BadRowError,
    is_small,
)
from ncvc.corpus.reading.web_pages import LONGEST_PAGE_BYTES

_LONGEST_HEADER = 1 << 16
_GZIP_MAGIC = b"\x1f\x8b\x08"
_UNPACKED_BYTES = 1 << 24
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_LENGTH = re.compile(rb"\ncontent-length:[ \t]*(\d{1,15})[ \t]*\r?\n", re.IGNORECASE)
_RESPONSE = re.compile(rb"\nwarc-type:[ \t]*response[ \t]*\r?\n", re.IGNORECASE)
_NEXT = re.compile(rb"WARC/1\.[01]\r?\n[\w-]{1,100}:")
_HTML_TYPE = re.compile(rb"\ncontent-type:[^\r\n]{0,99}html", re.IGNORECASE)
_HTML = re.compile(r"text/html|application/xhtml\+xml", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Response:
    """An HTML page as it came over the wire."""

    body: bytes
    url: str | None
    date: str | None
    content_type: str

    @property
    def metadata(self) -> dict[str, str]:
        """What the archive says of the page."""
        return {"date": self.date} if self.date is not None and is_small(self.date) else {}


def read_responses(blocks: Iterator[bytes], *, is_gzip: bool) -> Iterator[tuple[int, Response | BadRowError]]:
    """(record number, page or why there is none) for every HTML response of a stored file's bytes.

    `is_gzip`: it should be gzip (a file that begins with a whole record or a gzip stream is told by that).
    """
    for number, record in enumerate(_Cutter(_members(blocks, is_gzip=is_gzip)).records(), start=1):
        if isinstance(record, BadRowError):
            yield number, record
            continue
        try:
            response = _response(record)
        except BadRowError as bad:
            yield number, bad
            continue
        except Exception as error:  # warcio's parsers raise errors of several families
            yield number, BadRowError(DAMAGED_RECORD, f"{type(error).__name__}: {error}")
            continue
        if response is not None:
            yield number, response


def warcio() -> Any:
    """The package that parses records; ModuleNotFoundError with the cure."""
    try:
        return importlib.import_module("warcio")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "web archives are read with the package warcio, which is not installed; run pip install 'ncvc[corpus]'",
            name=error.name,
        ) from error


def _response(record: bytes) -> Response | None:
    """The page in a record; None if it is something else. BadRowError for an error page or a page too long."""
    start = _header_end(record)
    if not _RESPONSE.search(record, 0, start) or not _HTML_TYPE.search(record, start, start + _LONGEST_HEADER):
        return None  # the second look is quick; warcio decides
    parsed = next(iter(warcio().ArchiveIterator(io.BytesIO(record))))
    headers = parsed.http_headers
    content_type = (headers.get_header("content-type") if headers is not None else None) or ""
    if not _HTML.search(content_type):
        return None
    status = headers.get_statuscode()
    if not status.startswith("2"):
        raise BadRowError(ERROR_PAGE, f"HTTP status {status[:20]}")
    body = parsed.content_stream().read(LONGEST_PAGE_BYTES + 1)
    names = ("WARC-Target-URI", "WARC-Date")
    url, date = (parsed.rec_headers.get_header(name) for name in names)
    return Response(body, url.strip("<>") if url else None, date, content_type)


def _header_end(data: bytes | bytearray) -> int:
    match = _HEADER_END.search(data, 0, _LONGEST_HEADER)
    return match.end() if match else -1


def _members(blocks: Iterator[bytes], *, is_gzip: bool) -> Iterator[bytes | None]:
    """Unpacked bytes; None where some are missing because a gzip stream is damaged or ends early."""
    data = b""
    while len(data) < 5 and (block := next(blocks, b"")):
        data += block
    if not data.startswith(_GZIP_MAGIC) and (not is_gzip or data.startswith(b"WARC/")):
        yield data
        yield from blocks
        return
    if not data.startswith(_GZIP_MAGIC):
        yield None
        data = _next_member(data, blocks)
    stream = None
    while data or (data := next(blocks, b"")):
        if stream is None:
            data = data.lstrip(b"\0")
            stream = zlib.decompressobj(wbits=31) if data else None
            continue
        try:
            unpacked = stream.decompress(data, _UNPACKED_BYTES)
            while len(unpacked) == _UNPACKED_BYTES and not stream.eof:
                yield unpacked
                unpacked = stream.decompress(stream.unconsumed_tail, _UNPACKED_BYTES)
        except zlib.error:
            yield None
            data, stream = _next_member(data[1:], blocks), None
            continue
        yield unpacked
        data = b""
        if stream.eof:
            data, stream = stream.unused_data, None
    if stream is not None:
        yield None


def _next_member(data: bytes, blocks: Iterator[bytes]) -> bytes:
    """What follows from the next beginning of a gzip stream on; nothing if there is none."""
    while (start := data.find(_GZIP_MAGIC)) < 0:
        if not (block := next(blocks, b"")):
            return b""
        data = data[-2:] + block
    return data[start:]


class _Cutter:
    """Cuts unpacked bytes (None: a gap) into records; one error for each damaged place."""

    def __init__(self, chunks: Iterator[bytes | None]) -> None:
        self._chunks = chunks
        self._data = bytearray()
        self._gap = self._ended = False

    def records(self) -> Iterator[bytes | BadRowError]:
        """Every record from its first line to the end of its content."""
        while True:
            while self._have(1) and self._data[0] in b"\r\n":
                del self._data[0]
            if self._data:
                yield self._record()
            elif self._gap:
                self._gap = False
                yield BadRowError(DAMAGED_RECORD, "a damaged or cut gzip stream")
            else:
                return

    def _have(self, num_bytes: int) -> bool:
        while len(self._data) < num_bytes and not self._gap and not self._ended:
            try:
                chunk = next(self._chunks)
            except StopIteration:
                self._ended = True
            else:
                self._gap = chunk is None
                self._data += chunk or b""
        return len(self._data) >= num_bytes

    def _record(self) -> bytes | BadRowError:
        data = self._data
        while (start := _header_end(data)) < 0 and len(data) < _LONGEST_HEADER and self._have(len(data) + 1):
            pass
        length = _LENGTH.search(data, 0, start) if start > 0 else None
        if not data.startswith(b"WARC/") or length is None:
            return self._damaged("no record header with a Content-Length")
        end = start + int(length[1])
        if int(length[1]) > LONGEST_ROW_BYTES:
            is_page = _RESPONSE.search(data, 0, start) and _HTML_TYPE.search(data, start, start + _LONGEST_HEADER)
            self._seek()
            return BadRowError(ROW_TOO_LONG, f"a record of {end - start} bytes") if is_page else b""
        self._have(end + 9)
        if len(data) < end:
            return self._damaged(f"{len(data) - start} of {end - start} bytes are there")
        after = bytes(data[end : end + 9])  # an empty line, then the next record; some writers leave out the line
        if not after.startswith(b"\r\n\r\n") and not b"WARC/".startswith(after.lstrip(b"\r\n")[:5]):
            return self._damaged(f"its length {end - start} does not lead to the next record")
        record = bytes(data[:end])
        del data[:end]
        return record

    def _damaged(self, detail: str) -> BadRowError:
        self._seek()
        return BadRowError(DAMAGED_RECORD, detail)

    def _seek(self) -> None:
        """Go to where the next record seems to begin, or behind the gap."""
        data = self._data
        del data[:5]
        while (match := _NEXT.search(data)) is None:
            del data[:-120]
            if not self._have(len(data) + 1):
                data.clear()
                self._gap = False
                return
        del data[: match.start()]
