"""Long rows and packed files: memory stays flat, contents decide."""

import gzip
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import ROWS, json_lines, parquet, read, zstd

from ncvc.corpus.reading import compressed, problems, readers

# ---- Long rows, packed files ----


def test_a_row_above_the_limit_is_reported_and_the_rest_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LONGEST_ROW_BYTES", 1_000)
    rows = [{"text": "一" * 300}, {"text": "二" * 600}, {"text": "三" * 300}]
    (tmp_path / "a.jsonl").write_bytes(json_lines(rows))
    for block in (64, 1 << 18):
        monkeypatch.setattr(compressed, "BLOCK_BYTES", block)
        documents, found = read(tmp_path)
        assert [document.text[0] for document in documents] == ["一", "三"]
        assert [(problem.row, problem.reason) for problem in found] == [(2, problems.ROW_TOO_LONG)]


def test_a_long_line_of_a_txt_file_is_cut_between_sentences_and_nothing_is_lost(tmp_path):
    long = "".join(f"{number}番目の文である。" for number in range(60_000))
    text = "題\n" + long + "\n" + "終わり。\n" * 40_000 + "あ" * 700_000
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    documents, found = read(tmp_path / "a.txt")
    assert found == []
    assert all(len(document.text.encode()) <= 3 * readers.TXT_PART_BYTES for document in documents)
    pieces = [document.text for document in documents]
    assert "".join(pieces).replace("\n", "") == text.replace("\n", "")
    inside = [document for document in documents if document.metadata["row"] == 2]
    assert len(inside) > 5 and all(document.text.endswith("。") for document in inside)
    rows = [document.metadata["row"] for document in documents]
    assert rows == sorted(rows) and rows[-1] == 40_003


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "txt", "csv", "parquet"])
def test_a_line_of_100_mb_needs_less_than_1_gib(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    text = "患者は発熱を訴えた。" * 3_400_000
    good = [{"text": "良"}]
    if kind == "parquet":
        path.write_bytes(parquet([*good, {"text": text}, *good]))
    elif kind == "txt":
        path.write_text(text)
    elif kind == "csv":
        path.write_text(f"id,text\n1,良\n2,{text}\n3,良\n")
    else:
        data = json_lines([*good, {"text": text}, *good])
        path.write_bytes(
            gzip.compress(data, 1) if kind.endswith("gz") else zstd(data) if kind.endswith("zst") else data
        )
    del text
    program = (
        "import json, sys; from pathlib import Path; from ncvc.corpus.reading.readers import read_documents\n"
        "found = []; n = sum(1 for _ in read_documents(Path(sys.argv[1]), on_problem=found.append))\n"
        "peak = int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "print(json.dumps([n, [p.reason for p in found], peak]))"
    )
    ran = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    documents, reasons, kibibytes = json.loads(ran.stdout)
    print(kind, documents, kibibytes // 1024, "MiB")
    assert kibibytes < 1 << 20
    assert (documents, reasons) == (2, [problems.ROW_TOO_LONG]) if kind != "txt" else documents > 600 and not reasons


def packed(*codecs):
    def pack(data):
        for codec in codecs:
            data = gzip.compress(data) if codec == "gzip" else zstd(data)
        return data

    return pack


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl", packed("gzip")),
        ("a.jsonl", packed("zstd")),
        ("a.jsonl.gz", packed("gzip", "gzip")),
        ("a.jsonl.gz", packed("zstd", "gzip")),
        ("a.jsonl.gz", packed("zstd")),
        ("a.jsonl.zst", packed("gzip")),
        ("a.jsonl.zst", packed("zstd", "zstd")),
    ],
)
def test_files_are_unpacked_by_what_they_hold(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(json_lines(ROWS)))
    documents, found = read(tmp_path)
    assert [document.text for document in documents] == [row["text"] for row in ROWS]
    assert found == []


def test_what_is_packed_too_often_or_cut_inside_is_reported_by_name(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(packed("gzip", "gzip", "gzip")(json_lines(ROWS)))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(gzip.compress(json_lines(ROWS))[:-4]))
    (tmp_path / "c.txt").write_text("後")
    documents, found = read(tmp_path)
    assert [(problem.file, problem.reason) for problem in found] == [
        ("a.jsonl.gz", problems.DAMAGED_FILE),
        ("b.jsonl.gz", problems.DAMAGED_FILE),
    ]
    assert "more than 2 times" in found[0].detail
    assert documents[-1].id == "c.txt"


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_a_file_that_swells_a_thousandfold_is_unpacked_in_small_pieces(tmp_path, codec):
    data = b"\n" * (1 << 26) + json_lines(ROWS)
    (tmp_path / "a.jsonl").write_bytes(packed(codec)(data))
    sizes = [len(block) for block in compressed.unpacked_blocks(tmp_path / "a.jsonl", lambda _: None, kind=".jsonl")]
    assert sum(sizes) == len(data)
    assert max(sizes) <= 1 << 25 | 1 << 18


@settings(deadline=None, max_examples=40)
@given(data=st.binary(max_size=3_000), cuts=st.lists(st.integers(0, 3_000), max_size=4), unpacked=st.integers(1, 900))
def test_gzip_of_any_bytes_in_any_blocks_is_what_the_standard_library_unpacks(data, cuts, unpacked):
    whole = gzip.compress(data) + gzip.compress(data[::-1]) + b"\0" * 5
    places = sorted({0, len(whole), *(cut % len(whole) for cut in cuts)})
    blocks = [whole[start:end] for start, end in itertools.pairwise(places)]
    original, compressed._UNPACKED_BYTES = compressed._UNPACKED_BYTES, unpacked
    try:
        assert b"".join(compressed._gunzip(iter(blocks))) == gzip.decompress(whole)
    finally:
        compressed._UNPACKED_BYTES = original
