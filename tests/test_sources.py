"""Sources: which files are read, what is refused at the call, files that cannot be opened, the fingerprint."""

import gzip
import os
import sys
from collections import Counter
from pathlib import Path

import pytest
from reading import ROWS, json_lines, read

from ncvc.corpus.reading import problems
from ncvc.corpus.reading.readers import read_documents, source_fingerprint

# ---- Nothing to read is an error that names the source and the cure ----


def test_a_source_that_does_not_exist_is_refused_at_the_call(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.source=.*nowhere does not exist.*\.jsonl\.zst"):
        read_documents(tmp_path / "nowhere", on_problem=print)


def test_an_empty_folder_is_refused_at_the_call(tmp_path):
    with pytest.raises(ValueError, match=r"no file of a known kind \(no files\); set data.source"):
        read_documents(tmp_path, on_problem=print)


def test_a_folder_of_other_files_is_refused_and_says_what_it_saw(tmp_path):
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(ValueError, match=r"only a\.pdf"):
        read_documents(tmp_path, on_problem=print)
    with pytest.raises(ValueError, match=r"only a\.pdf"):
        read_documents(tmp_path / "a.pdf", on_problem=print)


def test_a_source_without_one_document_is_refused_with_the_reasons(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines([{"title": "x", "body": "y"}] * 3))
    found = []
    with pytest.raises(ValueError, match=r"3 x no text field, first a.jsonl:1.*'title', 'body'.*data.text_field"):
        list(read_documents(tmp_path, on_problem=found.append))
    assert Counter(problem.reason for problem in found) == {problems.NO_TEXT_FIELD: 3}


def test_a_source_of_empty_files_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match="all files are empty"):
        read(tmp_path)


def test_a_source_of_unreadable_files_is_refused_at_the_call(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("本文")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root, who runs many CIs, may read everything
    with pytest.raises(PermissionError, match=r"a\.txt may not be read"):
        read_documents(tmp_path, on_problem=print)


@pytest.mark.parametrize(
    ("kind", "package"),
    [
        (".jsonl.zst", "zstandard"),
        (".parquet", "pyarrow.parquet"),
        (".arrow", "pyarrow"),
        (".html", "trafilatura"),
        (".warc.gz", "warcio"),
    ],
)
def test_a_missing_package_is_named_before_any_document(tmp_path, monkeypatch, kind, package):
    (tmp_path / "a.txt").write_text("本文")
    (tmp_path / f"b{kind}").write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=r"b\.\S+ is a .*pip install 'ncvc\[corpus\]'"):
        read_documents(tmp_path, on_problem=print)


def test_optional_packages_are_not_needed_for_plain_files(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json_lines(ROWS)))
    for package in ("zstandard", "pyarrow", "pyarrow.parquet", "trafilatura", "lxml", "warcio", "datasets"):
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


# ---- Files that cannot be opened ----


def test_links_to_nothing_to_themselves_and_pipes_are_reported(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "nowhere.txt")
    (tmp_path / "b.txt").symlink_to(tmp_path / "b.txt")
    os.mkfifo(tmp_path / "c.jsonl")
    (tmp_path / "d.txt").write_text("本文")
    documents, found = read(tmp_path)
    assert [document.id for document in documents] == ["d.txt"]
    assert [(problem.file, problem.reason) for problem in found] == [
        (name, problems.UNREADABLE_FILE) for name in ("a.txt", "b.txt", "c.jsonl")
    ]


@pytest.mark.parametrize("kind", [".txt", ".jsonl.gz", ".csv", ".parquet", ".arrow", ".html", ".warc"])
def test_a_file_that_vanishes_is_reported_and_the_rest_goes_on(tmp_path, kind):
    for package in ("pyarrow.parquet", "trafilatura", "warcio"):
        pytest.importorskip(package)
    (tmp_path / f"b{kind}").write_bytes(b"")
    (tmp_path / "a.txt").write_text("前")
    (tmp_path / "c.txt").write_text("後")
    found = []
    reading = read_documents(tmp_path, on_problem=found.append)
    first = next(reading)
    (tmp_path / f"b{kind}").unlink()
    assert [document.id for document in [first, *reading]] == ["a.txt", "c.txt"]
    assert [(problem.file, problem.row, problem.reason) for problem in found] == [
        (f"b{kind}", None, problems.UNREADABLE_FILE)
    ]


def test_errors_of_the_caller_are_not_taken_for_bad_files(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"broken\n" + json_lines(ROWS))

    def full_disk(problem):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        list(read_documents(tmp_path, on_problem=full_disk))


def test_a_folder_that_may_not_be_entered_is_reported(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b.txt").write_text("本文")
    listed = os.scandir

    def refuse(path):
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root, who runs many CIs, may enter everything
    documents, found = read(tmp_path)
    assert [document.id for document in documents] == ["b.txt"]
    assert [(problem.file, problem.reason) for problem in found] == [("a/", problems.UNREADABLE_FILE)]
