"""Readers: every kind of file, every kind of bad row, and sources with nothing to read."""

import gzip
import io
import json
import os
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncvc.corpus import readers
from ncvc.corpus.documents import Document
from ncvc.corpus.readers import read_documents, source_fingerprint

ROWS = [
    {"id": "a", "text": "患者は発熱を訴えた。\n翌日に解熱した。"},
    {"id": 7, "text": "心電図に異常はない。"},
    {"text": "名前のない行。"},
]
EXPECTED = [("a", ROWS[0]["text"]), ("7", ROWS[1]["text"]), ("{name}:3", ROWS[2]["text"])]


def read(source, **options):
    """Documents and problems of a source."""
    problems = []
    documents = list(read_documents(source, on_problem=problems.append, **options))
    return documents, problems


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


# ---- Every kind of file ----


@pytest.mark.parametrize(
    ("name", "encode"),
    [
        ("rows.jsonl", lambda rows: json_lines(rows)),
        ("rows.JSONL", lambda rows: json_lines(rows)),
        ("rows.jsonl.gz", lambda rows: gzip.compress(json_lines(rows))),
        ("rows.jsonl.zst", lambda rows: zstd(json_lines(rows))),
        ("rows.parquet", lambda rows: parquet([{**row, "id": str(row.get("id", ""))} for row in rows])),
    ],
)
def test_rows_of_every_kind_give_the_same_documents(tmp_path, name, encode):
    (tmp_path / name).write_bytes(encode(ROWS))
    documents, problems = read(tmp_path)
    assert [(document.id, document.text) for document in documents] == [
        (document_id.format(name=name), text) for document_id, text in EXPECTED
    ]
    assert problems == []


@pytest.mark.parametrize(("name", "encode"), [("one.txt", bytes), ("one.txt.gz", gzip.compress)])
def test_a_txt_file_is_one_document_named_by_its_path(tmp_path, name, encode):
    text = "一行目。\n\n段落の後。"
    (tmp_path / "ward").mkdir()
    (tmp_path / "ward" / name).write_bytes(encode(text.encode()))
    assert read(tmp_path) == ([Document(text=text, id=f"ward/{name}")], [])
    assert read(tmp_path / "ward" / name) == ([Document(text=text, id=name)], [])


def test_a_folder_is_read_in_order_of_relative_paths_without_hidden_files(tmp_path):
    for name in [
        "b.txt",
        "a/z.txt",
        "a.txt",
        "a/.hidden.txt",
        ".git/x.txt",
        "b/a/c.txt",
        "B.txt",
        "notes.md",
    ]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    documents, problems = read(tmp_path)
    assert [document.id for document in documents] == ["B.txt", "a.txt", "a/z.txt", "b.txt", "b/a/c.txt"]
    assert [(problem.file, problem.reason) for problem in problems] == [("notes.md", readers.UNKNOWN_KIND)]


def test_a_folder_linked_into_itself_is_read_once(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.txt").write_text("本文")
    (tmp_path / "inner" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "elsewhere").symlink_to(tmp_path / "inner", target_is_directory=True)
    assert len(read(tmp_path)[0]) == 1


def test_another_text_field_can_be_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines([{"body": "本文", "text": 5}]))
    assert read(tmp_path, text_field="body")[0] == [Document(text="本文", id="a.jsonl:1")]


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    data = "\r\n".join(json.dumps(row) for row in ROWS)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + data.encode())
    assert [document.text for document in read(tmp_path)[0]] == [row["text"] for row in ROWS]


def test_several_compressed_streams_in_one_file_are_all_read(tmp_path):
    halves = [json_lines(ROWS[:1]), json_lines(ROWS[1:])]
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(map(gzip.compress, halves)) + b"\0" * 512)
    (tmp_path / "b.jsonl.zst").write_bytes(b"".join(map(zstd, halves)))
    documents, problems = read(tmp_path)
    assert [document.text for document in documents] == 2 * [row["text"] for row in ROWS]
    assert problems == []


@settings(deadline=None, max_examples=50)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=8),
    block=st.integers(1, 40),
)
def test_any_text_comes_back_whatever_the_size_of_the_blocks(tmp_path_factory, texts, block):
    texts = [text + "。" for text in texts]
    path = tmp_path_factory.mktemp("rows") / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json_lines([{"text": text} for text in texts])))
    original = readers._BLOCK_BYTES
    readers._BLOCK_BYTES = block
    try:
        documents, problems = read(path)
    finally:
        readers._BLOCK_BYTES = original
    assert [document.text for document in documents] == texts
    assert problems == []


def test_progress_ends_at_the_stored_size_and_never_falls(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json_lines(ROWS * 2_000)))
    (tmp_path / "b.txt").write_text("本文")
    (tmp_path / "c.parquet").write_bytes(parquet([{"text": "行"}] * 1_000))
    seen = []
    read(tmp_path, on_progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == sum(path.stat().st_size for path in tmp_path.iterdir())


# ---- Bad rows are named and the rest goes on ----

GOOD = b'{"id": "good", "text": "\xe8\x89\xaf"}'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "\xff\xfe"}', readers.UNDECODABLE),
        ('{"text": "カルテ"}'.encode("cp932"), readers.UNDECODABLE),
        (b'{"text": "cut', readers.BROKEN_JSON),
        (b"not json", readers.BROKEN_JSON),
        (b"[1, 2]", readers.BROKEN_JSON),
        (b'"text"', readers.BROKEN_JSON),
        (b"[" * 100_000, readers.BROKEN_JSON),
        (b'{"text": ' + b"9" * 5_000 + b"}", readers.BROKEN_JSON),
        (b'{"body": "x"}', readers.NO_TEXT_FIELD),
        (b'{"text": null}', readers.NO_TEXT_FIELD),
        (b'{"text": 3}', readers.NOT_A_STRING),
        (b'{"text": ["x"]}', readers.NOT_A_STRING),
        (b'{"text": ""}', readers.EMPTY_TEXT),
        ('{"text": " \\n\u3000"}'.encode(), readers.EMPTY_TEXT),
        (b'{"text": "\\ud83d half"}', readers.LONE_SURROGATE),
    ],
)
def test_a_bad_row_is_reported_with_file_and_row_and_the_rest_goes_on(tmp_path, line, reason):
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"\n\n" + line + b"\n" + GOOD + b"\n")
    documents, problems = read(tmp_path)
    assert documents == [Document(text="良", id="good")] * 2
    assert [(problem.file, problem.row, problem.reason) for problem in problems] == [("a.jsonl", 3, reason)]
    assert reason in readers.REASONS
    assert str(problems[0]).startswith(f"a.jsonl:3: {reason} (")


@pytest.mark.parametrize("bad_id", ["null", "true", '""', "[1]", '"\\udc00"', "1.5"])
def test_an_unusable_id_is_replaced_by_the_place_of_the_row(tmp_path, bad_id):
    (tmp_path / "a.jsonl").write_text(f'{{"id": {bad_id}, "text": "良"}}\n')
    assert read(tmp_path) == ([Document(text="良", id="a.jsonl:1")], [])


def test_bad_txt_files_are_reported_and_the_others_read(tmp_path):
    (tmp_path / "a.txt").write_bytes("カルテ".encode("cp932"))
    (tmp_path / "b.txt").write_bytes(b" \n")
    (tmp_path / "c.txt").write_bytes(b"")
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress("本文".encode())[:-6])
    (tmp_path / "e.txt").write_text("本文")
    documents, problems = read(tmp_path)
    assert [document.id for document in documents] == ["e.txt"]
    assert [(problem.file, problem.row, problem.reason) for problem in problems] == [
        ("a.txt", None, readers.UNDECODABLE),
        ("b.txt", None, readers.EMPTY_TEXT),
        ("c.txt", None, readers.EMPTY_TEXT),
        ("d.txt.gz", None, readers.DAMAGED_FILE),
    ]


def test_bad_parquet_rows_and_files_are_reported_and_the_rest_read(tmp_path):
    pyarrow, pyarrow_parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    (tmp_path / "a.parquet").write_bytes(parquet([{"text": "一"}, {"text": None}, {"text": ""}, {"text": "二"}]))
    (tmp_path / "b.parquet").write_bytes(parquet([{"body": "x"}]))
    (tmp_path / "c.parquet").write_bytes(parquet([{"text": "三"}])[:-10])
    (tmp_path / "d.parquet").write_bytes(parquet([{"text": 5}]))
    undecodable = pyarrow.array([b"\xff", "四".encode()]).view(pyarrow.string())
    pyarrow_parquet.write_table(pyarrow.table({"text": undecodable}), tmp_path / "e.parquet")
    documents, problems = read(tmp_path)
    assert [document.text for document in documents] == ["一", "二", "四"]
    assert [(problem.file, problem.row, problem.reason) for problem in problems] == [
        ("a.parquet", 2, readers.NO_TEXT_FIELD),
        ("a.parquet", 3, readers.EMPTY_TEXT),
        ("b.parquet", None, readers.NO_TEXT_FIELD),
        ("c.parquet", 1, readers.DAMAGED_FILE),
        ("d.parquet", 1, readers.NOT_A_STRING),
        ("e.parquet", 1, readers.UNDECODABLE),
    ]


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_a_compressed_file_cut_anywhere_keeps_a_prefix_of_its_rows(tmp_path, kind):
    rows = [{"text": f"行{number}。" + os.urandom(40).hex()} for number in range(60)]
    data = gzip.compress(json_lines(rows)) if kind == "gz" else zstd(json_lines(rows))
    whole = [row["text"] for row in rows]
    path = tmp_path / f"b.jsonl.{kind}"
    (tmp_path / "a.txt").write_text("前のファイル")
    kept = []
    for cut in [1, 9, len(data) // 3, len(data) // 2, len(data) - 9, len(data) - 1]:
        path.write_bytes(data[:cut])
        documents, problems = read(tmp_path)
        texts = [document.text for document in documents[1:]]
        assert texts == whole[: len(texts)]
        assert [problem.reason for problem in problems] == [readers.DAMAGED_FILE]
        assert problems[0].row == len(texts) + 1
        kept.append(len(texts))
    assert kept == sorted(kept)
    if kind == "gz":  # one byte of the check sum is missing, every row is there
        assert kept[-1] == 60 and 0 < kept[3] < 60


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_flipped_bytes_in_a_compressed_file_are_reported(tmp_path, kind):
    data = json_lines([{"text": os.urandom(100).hex()} for _ in range(100)])
    packed = bytearray(gzip.compress(data))
    if kind == "zst":
        zstandard = pytest.importorskip("zstandard")
        packed = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(data))
    packed[len(packed) // 2] ^= 0xFF
    (tmp_path / f"a.jsonl.{kind}").write_bytes(packed)
    (tmp_path / "b.txt").write_text("後のファイル")
    documents, problems = read(tmp_path)
    assert documents[-1].id == "b.txt"
    assert readers.DAMAGED_FILE in {problem.reason for problem in problems}


def test_a_plain_file_named_gz_is_reported(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(json_lines(ROWS))
    (tmp_path / "b.txt").write_text("後のファイル")
    documents, problems = read(tmp_path)
    assert [document.id for document in documents] == ["b.txt"]
    assert [problem.reason for problem in problems] == [readers.DAMAGED_FILE]


# ---- Nothing to read is an error that names the source and the cure ----


def test_a_source_that_does_not_exist_is_refused_at_the_call(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.source=.*nowhere does not exist.*\.jsonl\.zst"):
        read_documents(tmp_path / "nowhere", on_problem=print)


def test_an_empty_folder_is_refused_at_the_call(tmp_path):
    with pytest.raises(ValueError, match=r"no file of a known kind \(no files\); set data.source"):
        read_documents(tmp_path, on_problem=print)


def test_a_folder_of_other_files_is_refused_and_says_what_it_saw(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(ValueError, match=r"only a\.csv"):
        read_documents(tmp_path, on_problem=print)
    with pytest.raises(ValueError, match=r"only a\.csv"):
        read_documents(tmp_path / "a.csv", on_problem=print)


def test_a_source_without_one_document_is_refused_with_the_reasons(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines([{"title": "x", "body": "y"}] * 3))
    problems = []
    with pytest.raises(ValueError, match=r"3 x no text field, first a.jsonl:1.*'title', 'body'.*data.text_field"):
        list(read_documents(tmp_path, on_problem=problems.append))
    assert Counter(problem.reason for problem in problems) == {readers.NO_TEXT_FIELD: 3}


def test_a_source_of_empty_files_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match="all files are empty"):
        read(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused_at_the_call(tmp_path):
    (tmp_path / "a.txt").write_text("本文")
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(PermissionError, match=r"a\.txt may not be read"):
        read_documents(tmp_path, on_problem=print)


@pytest.mark.parametrize(("kind", "package"), [(".jsonl.zst", "zstandard"), (".parquet", "pyarrow.parquet")])
def test_a_missing_package_is_named_before_any_document(tmp_path, monkeypatch, kind, package):
    (tmp_path / "a.txt").write_text("本文")
    (tmp_path / f"b{kind}").write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=r"b\.\S+ is a .*pip install 'ncvc\[corpus\]'"):
        read_documents(tmp_path, on_problem=print)


def test_optional_packages_are_not_needed_for_plain_files(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json_lines(ROWS)))
    for package in ("zstandard", "pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, package, None)
    assert len(read(tmp_path)[0]) == 3


# ---- The fingerprint ----


def test_the_fingerprint_changes_with_names_and_contents_and_with_nothing_else(tmp_path):
    def fingerprint_of(files):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, contents in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(contents)
        return source_fingerprint(folder)

    base = fingerprint_of({"a.txt": "xy", "b.txt": "z"})
    assert base == fingerprint_of({"b.txt": "z", "a.txt": "xy"})
    assert base == fingerprint_of({"a.txt": "xy", "b.txt": "z", "README.md": "not read", ".hidden.txt": "h"})
    others = [{"a.txt": "xy", "c.txt": "z"}, {"a.txt": "x", "b.txt": "yz"}, {"a.txt": "yx", "b.txt": "z"}]
    assert len({base, *map(fingerprint_of, others)}) == 4


def test_a_large_txt_file_is_cut_at_line_ends_and_nothing_is_lost(tmp_path):
    lines = [f"{number}行目。患者は発熱を主訴に来院した。" for number in range(12_000)]
    text = "\n".join(lines)
    (tmp_path / "corpus.txt").write_text(text, encoding="utf-8")
    documents = list(read_documents(tmp_path / "corpus.txt", on_problem=pytest.fail))
    assert len(documents) == -(-len(text.encode()) // readers.TXT_PART_BYTES)
    assert "\n".join(document.text for document in documents) == text
    assert [document.id for document in documents] == [f"corpus.txt#{n + 1}" for n in range(len(documents))]


def test_a_bad_part_of_a_large_txt_file_is_reported_with_its_row_and_the_rest_is_read(tmp_path):
    good = ("患者は発熱を主訴に来院した。\n" * 4_000).encode()
    (tmp_path / "corpus.txt").write_bytes(good + b"\xff\xfe\n" + good)
    problems = []
    documents = list(read_documents(tmp_path / "corpus.txt", on_problem=problems.append))
    assert [problem.reason for problem in problems] == [readers.UNDECODABLE]
    assert problems[0].row is not None
    kept = sum(document.text.count("発熱") for document in documents)
    assert 4_000 <= kept < 8_000
