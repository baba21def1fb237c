"""The rows of one .jsonl file (also .gz, .zst) as plain values, what cannot be read told by row.

For files whose rows are no documents (conversations, exercises); documents come by `ncvc.corpus.reading.readers`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ncvc.corpus.reading.compressed import LongLine, lines, unpacked_blocks
from ncvc.corpus.reading.problems import (
    BROKEN_JSON,
    LONGEST_ROW_BYTES,
    ROW_TOO_LONG,
    BadFileError,
    BadRowError,
    ReadProblem,
    decode_utf8,
)
from ncvc.corpus.reading.sources import SourceFile


def json_rows(file: SourceFile) -> Iterator[tuple[int, Any] | ReadProblem]:
    """(row from 1, value) of every line that is not blank, a problem for one that cannot be read.

    A file that breaks off ends in a problem that says how many rows came before.
    """
    number = 0
    blocks = unpacked_blocks(file.path, lambda num_bytes: None, kind=file.kind)
    try:
        for number, line in enumerate(lines(blocks, longest=LONGEST_ROW_BYTES), start=1):
            if not isinstance(line, LongLine) and not line.strip():
                continue
            try:
                yield number, _value(line)
            except BadRowError as bad:
                yield ReadProblem(file.name, number, bad.reason, bad.detail)
    except BadFileError as bad:
        kept = f"{bad.detail}; the {number} rows before are kept"
        yield ReadProblem(file.name, number + 1, bad.reason, kept)


def _value(line: bytes | LongLine) -> Any:
    if isinstance(line, LongLine):
        raise BadRowError(ROW_TOO_LONG, f"a line of {int(line)} bytes, more than {LONGEST_ROW_BYTES}")
    try:
        return json.loads(decode_utf8(line))
    except (ValueError, RecursionError) as error:
        raise BadRowError(BROKEN_JSON, str(error)) from None
