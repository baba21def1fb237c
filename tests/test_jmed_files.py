"""Faults in JMED-LLM's files are told by file and line, and no part of a damaged benchmark is used."""

import shutil

import pytest
from jmed_world import full_sets, write_jmed, write_rows

from ncvc.evaluation.jmed_files import find_files, read_set
from ncvc.evaluation.jmed_llm import training_conversations


@pytest.fixture
def folder(tmp_path):
    return write_jmed(tmp_path / "jmed")


def with_row(name, row):
    return [*full_sets()[name], row]


def change(folder, name, rows):
    write_rows(folder / "all" / f"{name}.csv", rows)


NO_PASSAGE = ["d", "所見は？", "['a']"]
FAULTS = {
    "a letter that is no option": (
        "SMDIS",
        ["cold", "Q\n「x」", "である", "でない", "C"],
        r"line 18 \(row 8\).*'C'.*A, B",
    ),
    "two letters": ("SMDIS", ["cold", "Q\n「x」", "である", "でない", "AB"], "'AB'"),
    "an empty answer": ("SMDIS", ["cold", "Q\n「x」", "である", "でない", ""], "one of the letters"),
    "a full-width letter": ("SMDIS", ["cold", "Q\n「x」", "である", "でない", "Ａ"], "'Ａ'"),
    "a hole in the options": ("CRADE", ["d", "Q\n「x」", "甲", "", "丙", "", "A"], "options with a text are A, C"),
    "one option": ("SMDIS", ["cold", "Q\n「x」", "である", " ", "A"], "options with a text are A;"),
    "a list that is code": ("NRNER", ["d", "Q\n「x」", "[open('y')]"], "no list of texts"),
    "a nested list": ("NRNER", ["d", "Q\n「x」", "[['a']]"], "no list of texts"),
    "a cut list": ("NRNER", ["d", "Q\n「x」", "['a', 'b"], r"line 14 \(row 4\)"),
    "a blank span": ("NRNER", ["d", "Q\n「x」", "['a', ' ']"], "no list of texts"),
    "a list far too long": ("NRNER", ["d", "Q\n「x」", str(["あ"] * 25_000)], "no list of texts"),
    "no passage": ("NRNER", NO_PASSAGE, "no passage in 「…」"),
    "an empty passage": ("CRADE", ["d", "Q\n「」", "甲", "乙", "", "", "A"], "no passage"),
    "no sentences": ("JCSTS", ["類似度は？", "a", "b", "c", "d", "e", "f", "A"], "S1: and S2:"),
    "an unknown tag": ("CRNER", ["x-val", "Q\n「x」", "['a']"], "'x-val'.*d, m-key, m-val"),
    "a medicine of radiology": ("RRNER", ["m-key", "Q\n「x」", "['a']"], "RRNER knows d"),
    "an empty question": ("JMMLU-Med", ["anatomy", " ", "甲", "乙", "丙", "丁", "A"], "question is empty"),
    "a cell too many": ("SMDIS", ["cold", "Q\n「x」", "である", "でない", "A", "x"], "6 cells and the header 5"),
    "a cell too few": ("SMDIS", ["cold", "Q\n「x」", "である", "A"], "4 cells"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_row_is_told_with_file_and_line(folder, fault):
    name, row, told = FAULTS[fault]
    change(folder, name, with_row(name, row))
    with pytest.raises(ValueError, match=rf"(?s){name}\.csv.*{told}"):
        training_conversations(folder, split="paper")


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (["tag", "question", "optionA", "optionB", "label"], "lacks answer, has the unknown column 'label'"),
        (["tag", "question", "question", "optionB", "answer"], "question twice"),
        (["", "question", "optionA", "optionB", "answer"], "unknown column ''"),
    ],
)
def test_wrong_columns_are_told(folder, header, told):
    change(folder, "SMDIS", [header, *full_sets()["SMDIS"][1:]])
    with pytest.raises(ValueError, match=rf"SMDIS\.csv.*{told}"):
        training_conversations(folder, split="paper")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda data: data.decode().encode("utf-16"), "is UTF-16"),
        (lambda data: data.replace("風邪".encode(), "風邪".encode("cp932"), 1), r"line 15: is not UTF-8 \(byte 0x95\)"),
        (lambda data: data + b"cold,\0", "line 18: holds a NUL byte"),
        (lambda data: data + b'cold,"Q,a,b,A\n', "line 18: is no csv row"),
        (lambda data: data + b'cold,"Q"x,a,b,A\n', "line 18: is no csv row"),
        (lambda data: b"", "is empty"),
        (lambda data: data.split(b"\n")[0], "no row below its header"),
    ],
)
def test_damaged_files_are_told(folder, damage, told):
    path = folder / "all" / "SMDIS.csv"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"SMDIS\.csv.*{told}"):
        training_conversations(folder, split="paper")


def test_a_byte_order_mark_and_blank_lines_change_nothing(folder):
    wanted = read_set(folder / "all" / "NRNER.csv", name="NRNER")
    path = folder / "all" / "NRNER.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\n\n")
    assert read_set(path, name="NRNER") == wanted


def test_missing_files_are_named_and_needed_only_by_their_tasks(folder):
    (folder / "all" / "RRNER.csv").unlink()
    (folder / "test" / "nrner.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks RRNER\.csv, nrner\.csv"):
        training_conversations(folder, split="paper")
    found = training_conversations(folder, split="document", tasks=["crade", "mrner_medicine"])
    assert {e.task for e in found} == {"crade"}
    assert [e.row for e in found] == [8, 9, 10, 11]  # the tests of all tasks still count


def test_a_test_row_that_is_in_no_full_set_is_refused(folder):
    path = folder / "test" / "smdis.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("らしい", "らしい!"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"smdis\.csv, row 0: this test row is in no full set"):
        training_conversations(folder, split="paper")


def test_two_files_of_one_set_are_refused(folder):
    shutil.copytree(folder / "all", folder / "all_copy")
    with pytest.raises(ValueError, match=r"all/\w+\.csv and all_copy/"):
        find_files(folder)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"split": "random"}, "'random' is no split.*paper, document, grouped"),
        ({"split": "grouped"}, "fold=None: set fold"),
        ({"split": "grouped", "fold": 5}, "fold=5"),
        ({"split": "paper", "fold": 0}, "has no folds"),
        ({"split": "paper", "tasks": ["igakuqa"]}, "no task 'igakuqa'"),
    ],
)
def test_impossible_splits_are_told(folder, settings, told):
    with pytest.raises(ValueError, match=told):
        training_conversations(folder, **settings)


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        training_conversations(tmp_path / "nowhere", split="paper")
