"""Tables: csv, parquet and arrow rows, good and bad."""

import csv
import gzip
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import ROWS, read, zstd

from ncvc.corpus.reading import problems

# ---- csv ----


def csv_bytes(rows, delimiter=","):
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=delimiter).writerows(rows)
    return buffer.getvalue().encode()


@pytest.mark.parametrize(
    ("name", "delimiter", "pack"),
    [("a.csv", ",", bytes), ("a.tsv", "\t", bytes), ("a.csv.gz", ",", gzip.compress), ("a.CSV.zst", ",", zstd)],
)
def test_csv_rows_with_commas_quotes_and_line_ends_are_read(tmp_path, name, delimiter, pack):
    texts = ["普通", "発熱,咳", '"咳"と言う', "一行目\n二行目", "a\tb", ' "']
    table = csv_bytes([["id", "text", "title"], *([f"r{n}", text, "題"] for n, text in enumerate(texts))], delimiter)
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + pack(table) if pack is bytes else pack(table))
    documents, found = read(tmp_path)
    assert [(document.id, document.text) for document in documents] == [(f"r{n}", text) for n, text in enumerate(texts)]
    assert found == []
    assert documents[0].metadata == {"file": name, "row": 2, "title": "題"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("8,発熱,咳".encode(), problems.WRONG_COLUMNS),
        (b"8", problems.WRONG_COLUMNS),
        ('8,"発熱'.encode(), problems.BROKEN_CSV),
        ('8,"発熱"咳'.encode(), problems.BROKEN_CSV),
        ("8,カルテ".encode("cp932"), problems.UNDECODABLE),
        (b"8,", problems.EMPTY_TEXT),
        (b"8,a\0b", problems.NUL_CHARACTERS),
    ],
)
@pytest.mark.parametrize("after", [b'9,"\xe8\x89\xaf"\n', b"9,\xe8\x89\xaf\n"])
def test_a_bad_csv_row_is_reported_with_its_line_and_the_rest_goes_on(tmp_path, line, reason, after):
    (tmp_path / "a.csv").write_bytes("id,text\n7,良\n\n".encode() + line + b"\n" + after * 3)
    documents, found = read(tmp_path)
    assert [document.text for document in documents] == ["良"] * 4
    assert [(problem.file, problem.row, problem.reason) for problem in found] == [("a.csv", 4, reason)]


@pytest.mark.parametrize(
    ("header", "reason"),
    [("id,body", problems.NO_TEXT_FIELD), ("text,text", problems.WRONG_COLUMNS), ('"id,text', problems.BROKEN_CSV)],
)
def test_a_csv_whose_header_cannot_serve_is_reported_as_a_whole(tmp_path, header, reason):
    (tmp_path / "a.csv").write_text(f"{header}\n1,本文\n")
    (tmp_path / "b.txt").write_text("後")
    documents, found = read(tmp_path)
    assert [(problem.file, problem.row, problem.reason) for problem in found] == [("a.csv", None, reason)]
    assert [document.id for document in documents] == ["b.txt"]


CELL = st.text(st.sampled_from('ab患,"\n\t 。'), min_size=1).map(lambda text: text + "。")


@settings(deadline=None, max_examples=100)
@given(rows=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=6))
def test_whatever_the_csv_module_writes_comes_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(csv_bytes([["title", "text"], *rows]))
    documents, found = read(path)
    assert [document.text for document in documents] == [text for _, text in rows]
    assert found == []


# ---- parquet columns, Hugging Face datasets on disk ----


def test_parquet_text_may_be_of_any_string_like_type(tmp_path):
    pyarrow, pyarrow_parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    texts = ["一", "二", "一"]
    for name, kind in [("a", pyarrow.large_string()), ("b", pyarrow.binary()), ("c", pyarrow.string())]:
        column = pyarrow.array([text.encode() if name == "b" else text for text in texts], kind)
        column = column.dictionary_encode() if name == "c" else column
        pyarrow_parquet.write_table(pyarrow.table({"text": column}), tmp_path / f"{name}.parquet")
    documents, found = read(tmp_path)
    assert [document.text for document in documents] == texts * 3
    assert found == []


def test_unfit_parquet_columns_are_reported(tmp_path):
    pyarrow, pyarrow_parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    tables = {
        "a": pyarrow.table({"text": [{"body": "x"}]}),
        "b": pyarrow.table({"text": [["x"]]}),
        "c": pyarrow.table({"text": pyarrow.array([b"\xff", "四".encode()], pyarrow.binary())}),
        "d": pyarrow.table({"text": pyarrow.nulls(1)}),
        "e": pyarrow.Table.from_arrays([pyarrow.array(["x"])] * 2, ["text", "text"]),
    }
    for name, table in tables.items():
        pyarrow_parquet.write_table(table, tmp_path / f"{name}.parquet")
    (tmp_path / "f.parquet").write_bytes(b"PAR1 and nothing else")
    documents, found = read(tmp_path)
    assert [document.text for document in documents] == ["四"]
    assert [(problem.file[0], problem.row, problem.reason) for problem in found] == [
        ("a", 1, problems.NOT_A_STRING),
        ("b", 1, problems.NOT_A_STRING),
        ("c", 1, problems.UNDECODABLE),
        ("d", 1, problems.NO_TEXT_FIELD),
        ("e", None, problems.WRONG_COLUMNS),
        ("f", 1, problems.DAMAGED_FILE),
    ]


def arrow_stream(rows, *, batch=1_000):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist(rows)
    buffer = io.BytesIO()
    with pyarrow.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)
    return buffer.getvalue()


def write_dataset(folder, shards, *, cached=()):
    """A folder as `datasets` saves one."""
    folder.mkdir(parents=True)
    for name, rows in [*shards.items(), *cached]:
        (folder / name).write_bytes(arrow_stream(rows))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in shards]}))
    (folder / "dataset_info.json").write_text("{}")


def test_a_dataset_with_splits_is_read_without_caches_and_notes(tmp_path):
    write_dataset(
        tmp_path / "test",
        {"data-00000-of-00002.arrow": ROWS[:1], "data-00001-of-00002.arrow": ROWS[1:2]},
        cached=[("cache-1.arrow", ROWS[:1])],
    )
    write_dataset(tmp_path / "train", {"data-00000-of-00001.arrow": ROWS[2:]})
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    documents, found = read(tmp_path)
    assert [document.text for document in documents] == [row["text"] for row in ROWS]
    assert documents[-1].metadata == {"file": "train/data-00000-of-00001.arrow", "row": 1}
    assert found == []


def test_missing_cut_and_foreign_arrow_files_are_reported(tmp_path):
    write_dataset(tmp_path / "a", {"data-0.arrow": ROWS[:1]})
    (tmp_path / "a" / "state.json").write_text(
        '{"_data_files": [{"filename": "data-0.arrow"}, {"filename": "data-1.arrow"}]}'
    )
    rows = [{"text": f"行{number}"} for number in range(100)]
    (tmp_path / "b.arrow").write_bytes(arrow_stream(rows, batch=10)[:-1_500])
    (tmp_path / "c.arrow").write_bytes(b"no arrow at all")
    documents, found = read(tmp_path)
    kept = [document.text for document in documents if document.metadata["file"] == "b.arrow"]
    assert 0 < len(kept) < 100 and kept == [row["text"] for row in rows[: len(kept)]]
    assert [(problem.file, problem.row, problem.reason) for problem in found] == [
        ("a/data-1.arrow", None, problems.UNREADABLE_FILE),
        ("b.arrow", len(kept) + 1, problems.DAMAGED_FILE),
        ("c.arrow", 1, problems.DAMAGED_FILE),
    ]


@pytest.mark.slow
def test_what_datasets_saves_is_what_it_loads(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"text": f"{number}番の文。", "id": f"d{number}"} for number in range(2_500)]
    whole = datasets.Dataset.from_list(rows)
    chosen = whole.filter(lambda row: row["id"] != "d7").shuffle(seed=1)
    splits = datasets.DatasetDict({"test": whole.select(range(10)), "train": chosen})
    splits.save_to_disk(tmp_path / "saved", num_shards={"test": 1, "train": 3})
    loaded = datasets.load_from_disk(tmp_path / "saved")
    documents, found = read(tmp_path / "saved")
    expected = [(row["id"], row["text"]) for split in ("test", "train") for row in loaded[split]]
    assert [(document.id, document.text) for document in documents] == expected
    assert found == []
