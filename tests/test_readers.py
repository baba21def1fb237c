"""Readers: every kind of file, every kind of bad row, real text."""

import gzip
import json
import os

import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import LATIN_1, ROWS, json_lines, parquet, read, zstd

from ncvc.corpus.documents import Document
from ncvc.corpus.reading import compressed, problems, readers
from ncvc.corpus.reading.readers import read_documents

EXPECTED = [("a", ROWS[0]["text"]), ("7", ROWS[1]["text"]), ("{name}:3", ROWS[2]["text"])]


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
    documents, found = read(tmp_path)
    assert [(document.id, document.text) for document in documents] == [
        (document_id.format(name=name), text) for document_id, text in EXPECTED
    ]
    assert found == []


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
    documents, found = read(tmp_path)
    assert [document.id for document in documents] == ["B.txt", "a.txt", "a/z.txt", "b.txt", "b/a/c.txt"]
    assert [(problem.file, problem.reason) for problem in found] == [("notes.md", problems.UNKNOWN_KIND)]


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
    documents, found = read(tmp_path)
    assert [document.text for document in documents] == 2 * [row["text"] for row in ROWS]
    assert found == []


@settings(deadline=None, max_examples=50)
@given(
    # without NUL, U+FFFD and what mojibake is made of
    texts=st.lists(
        st.text(
            st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=LATIN_1 + "ƒ‚縺繧繝\ufffd"), min_size=1
        ),
        min_size=1,
        max_size=8,
    ),
    block=st.integers(1, 40),
)
def test_any_text_comes_back_whatever_the_size_of_the_blocks(tmp_path_factory, texts, block):
    texts = [text + "。" for text in texts]
    path = tmp_path_factory.mktemp("rows") / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json_lines([{"text": text} for text in texts])))
    original = compressed.BLOCK_BYTES
    compressed.BLOCK_BYTES = block
    try:
        documents, found = read(path)
    finally:
        compressed.BLOCK_BYTES = original
    assert [document.text for document in documents] == texts
    assert found == []


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
        (b'{"text": "\xff\xfe"}', problems.UNDECODABLE),
        ('{"text": "カルテ"}'.encode("cp932"), problems.UNDECODABLE),
        (b'{"text": "cut', problems.BROKEN_JSON),
        (b"not json", problems.BROKEN_JSON),
        (b"[1, 2]", problems.BROKEN_JSON),
        (b'"text"', problems.BROKEN_JSON),
        (b"[" * 100_000, problems.BROKEN_JSON),
        (b'{"text": ' + b"9" * 5_000 + b"}", problems.BROKEN_JSON),
        (b'{"body": "x"}', problems.NO_TEXT_FIELD),
        (b'{"text": null}', problems.NO_TEXT_FIELD),
        (b'{"text": 3}', problems.NOT_A_STRING),
        (b'{"text": ["x"]}', problems.NOT_A_STRING),
        (b'{"text": ""}', problems.EMPTY_TEXT),
        ('{"text": " \\n\u3000"}'.encode(), problems.EMPTY_TEXT),
        (b'{"text": "\\ud83d half"}', problems.LONE_SURROGATE),
        (b'{"text": "\xed\xa0\xbd half"}', problems.UNDECODABLE),
        (b'{"text": "a\\u0000b"}', problems.NUL_CHARACTERS),
        (b'{"text": "a\0b"}', problems.NUL_CHARACTERS),
        ('{"text": "血圧は良好" }'.encode("utf-16-le"), problems.UNDECODABLE),
        (json.dumps({"text": "患者は発熱".encode().decode("latin-1")}).encode(), problems.MOJIBAKE),
        (json.dumps({"text": "患者は発熱".encode().decode("latin-1")}, ensure_ascii=False).encode(), problems.MOJIBAKE),
    ],
)
def test_a_bad_row_is_reported_with_file_and_row_and_the_rest_goes_on(tmp_path, line, reason):
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"\n\n" + line + b"\n" + GOOD + b"\n")
    documents, found = read(tmp_path)
    assert documents == [Document(text="良", id="good")] * 2
    assert [(problem.file, problem.row, problem.reason) for problem in found] == [("a.jsonl", 3, reason)]
    assert reason in readers.REASONS
    assert str(found[0]).startswith(f"a.jsonl:3: {reason} (")


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
    documents, found = read(tmp_path)
    assert [document.id for document in documents] == ["e.txt"]
    assert [(problem.file, problem.row, problem.reason) for problem in found] == [
        ("a.txt", None, problems.UNDECODABLE),
        ("b.txt", None, problems.EMPTY_TEXT),
        ("c.txt", None, problems.EMPTY_TEXT),
        ("d.txt.gz", None, problems.DAMAGED_FILE),
    ]


def test_bad_parquet_rows_and_files_are_reported_and_the_rest_read(tmp_path):
    pyarrow, pyarrow_parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    (tmp_path / "a.parquet").write_bytes(parquet([{"text": "一"}, {"text": None}, {"text": ""}, {"text": "二"}]))
    (tmp_path / "b.parquet").write_bytes(parquet([{"body": "x"}]))
    (tmp_path / "c.parquet").write_bytes(parquet([{"text": "三"}])[:-10])
    (tmp_path / "d.parquet").write_bytes(parquet([{"text": 5}]))
    undecodable = pyarrow.array([b"\xff", "四".encode()]).view(pyarrow.string())
    pyarrow_parquet.write_table(pyarrow.table({"text": undecodable}), tmp_path / "e.parquet")
    documents, found = read(tmp_path)
    assert [document.text for document in documents] == ["一", "二", "四"]
    assert [(problem.file, problem.row, problem.reason) for problem in found] == [
        ("a.parquet", 2, problems.NO_TEXT_FIELD),
        ("a.parquet", 3, problems.EMPTY_TEXT),
        ("b.parquet", None, problems.NO_TEXT_FIELD),
        ("c.parquet", 1, problems.DAMAGED_FILE),
        ("d.parquet", 1, problems.NOT_A_STRING),
        ("e.parquet", 1, problems.UNDECODABLE),
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
        documents, found = read(tmp_path)
        texts = [document.text for document in documents[1:]]
        assert texts == whole[: len(texts)]
        assert [problem.reason for problem in found] == [problems.DAMAGED_FILE]
        assert found[0].row == len(texts) + 1
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
    documents, found = read(tmp_path)
    assert documents[-1].id == "b.txt"
    assert problems.DAMAGED_FILE in {problem.reason for problem in found}


def test_a_plain_file_named_gz_is_reported(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(json_lines(ROWS))
    (tmp_path / "b.txt").write_text("後のファイル")
    documents, found = read(tmp_path)
    assert [document.id for document in documents] == ["b.txt"]
    assert [problem.reason for problem in found] == [problems.DAMAGED_FILE]


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
    found = []
    documents = list(read_documents(tmp_path / "corpus.txt", on_problem=found.append))
    assert [problem.reason for problem in found] == [problems.UNDECODABLE]
    assert found[0].row is not None
    kept = sum(document.text.count("発熱") for document in documents)
    assert 4_000 <= kept < 8_000


# ---- Metadata, one file alone ----


def test_metadata_name_the_place_and_keep_small_well_known_fields(tmp_path):
    long, broken = "x" * 2_000, "\ud800"
    rows = [
        {
            "text": "一",
            "title": "題",
            "license": "MIT",
            "url": long,
            "source": broken,
            "language": float("nan"),
            "author": "a",
        },
        {"text": "二", "title": ["no", "string"], "file": "b", "row": 9},
    ]
    (tmp_path / "a.jsonl").write_text("\n" + "".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.txt").write_text("三")
    assert [document.metadata for document in read(tmp_path)[0]] == [
        {"file": "a.jsonl", "row": 2, "title": "題", "license": "MIT"},
        {"file": "a.jsonl", "row": 3},
        {"file": "b.txt", "row": None},
    ]


def test_ids_that_occur_twice_stay_and_places_differ(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines([{"id": "same", "text": "一"}, {"id": "same", "text": "二"}]))
    documents, _ = read(tmp_path)
    assert [(document.id, document.metadata["row"]) for document in documents] == [("same", 1), ("same", 2)]


def test_files_read_alone_give_the_documents_of_the_source(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json_lines(ROWS)))
    (tmp_path / "b.txt").write_text("本文")
    (tmp_path / "c.jsonl").write_bytes(b"")
    files, ignored = readers.find_source_files(tmp_path)
    alone = [document for file in files for document in readers.read_file(file, on_problem=pytest.fail)]
    together = read(tmp_path)[0]
    assert [(d.id, d.text, d.metadata) for d in alone] == [(d.id, d.text, d.metadata) for d in together]
    assert ignored == []


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        ("wiki", {}, r"layout='wiki' is not known; set one of plain, wiki40b"),
        ("wiki40b", {"keep_title": True}, r"options.keep_title is no option of layout=wiki40b; set one of keep_titles"),
        ("wiki40b", {"keep_titles": "yes"}, r"options.keep_titles='yes' is neither true nor false"),
        ("oscar2301", {"min_language_probability": 80}, r"options.min_language_probability=80 is no probability"),
        ("oscar2301", {"min_language_probability": "0.8"}, r"options.min_language_probability='0.8' is no number"),
        ("oscar2301", {"drop_categories": "adult"}, r"options.drop_categories='adult' is no list of labels"),
        ("oscar2301", {"min_harmful_perplexity": 9, "max_harmful_perplexity": 5}, r"=9 is above .*=5"),
        ("oscar2301", {"language": ""}, r"options.language='' is no language code"),
        ("html", {"min_characters": 0}, r"options.min_characters=0 is no number of characters"),
        ("plain", {"tables": 1}, r"options.tables=1 is neither true nor false"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_the_call(tmp_path, layout, options, message):
    (tmp_path / "a.jsonl").write_bytes(json_lines(ROWS))
    with pytest.raises(ValueError, match=message):
        read_documents(tmp_path, layout=layout, options=options, on_problem=print)


# ---- Real text ----


@pytest.mark.parametrize(
    ("name", "documents"),
    [
        ("general_text/aozora.jsonl.gz", 1_003),
        ("general_text/wiki_ja.jsonl.gz", 784),
        ("general_text/techdocs_ja.jsonl.gz", 152),
        ("noisy/web_noisy.jsonl.zst", 250),
        ("medical_text/nursing_records_S.jsonl.gz", 840),
    ],
)
def test_no_document_of_real_text_is_left_out(name, documents):
    source = REPOSITORY.parent / "shared" / "data" / name
    if not source.is_file():
        pytest.skip("the shared data are not beside this repository")
    read_ones, found = read(source)
    assert len(read_ones) == documents
    assert all(document.metadata["license"] for document in read_ones)
    assert found == []
