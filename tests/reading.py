"""What the tests of readers share: rows, files of every kind, documents and problems of a source."""

import io
import json

import pytest

from ncvc.corpus.reading.readers import read_documents

LATIN_1 = "".join(map(chr, range(0x80, 0x100)))

ROWS = [
    {"id": "a", "text": "患者は発熱を訴えた。\n翌日に解熱した。"},
    {"id": 7, "text": "心電図に異常はない。"},
    {"text": "名前のない行。"},
]


def read(source, **options):
    """Documents and problems of a source."""
    found = []
    documents = list(read_documents(source, on_problem=found.append, **options))
    return documents, found


def json_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def zstd(data):
    zstandard = pytest.importorskip("zstandard")
    return zstandard.ZstdCompressor().compress(data)


def parquet(rows):
    pyarrow, pyarrow_parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    columns = {name: [row.get(name) for row in rows] for name in {key: None for row in rows for key in row}}
    buffer = io.BytesIO()
    pyarrow_parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()
