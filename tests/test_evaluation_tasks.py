"""Tasks by name and the files they come from: what is asked, what is right, and what bad files are told."""

import csv
import hashlib
import json
import logging
import math
from pathlib import Path

import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from igakuqa_world import write_igakuqa, write_jsonl
from jmed_world import full_sets, write_jmed, write_rows

from ncvc.chat import Message
from ncvc.evaluation.benchmark_rows import read_records
from ncvc.evaluation.igakuqa_files import igakuqa_tasks
from ncvc.evaluation.item import Item, Task
from ncvc.evaluation.jmed_llm import TASKS as JMED_TASKS
from ncvc.evaluation.jmed_llm import training_conversations
from ncvc.evaluation.own_tasks import own_task, own_task_settings
from ncvc.evaluation.tasks import load_tasks

JMMLU_ROWS = [["「顔」は何か？", "甲,乙", " 丙", "丁", "戊", "B"], ["骨は\nどれか。", "一", "二", "三", "四", "D"]]
MEDICAL = ("anatomy", "clinical_knowledge", "college_medicine", "medical_genetics", "professional_medicine")


@pytest.fixture(scope="module")
def shared() -> Path:
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the benchmarks are not here")
    return folder


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory) -> Path:
    """A folder with all three benchmarks, made up."""
    folder = tmp_path_factory.mktemp("benchmarks")
    write_igakuqa(folder / "igakuqa")
    write_jmed(folder / "jmed_llm")
    for subject in (*MEDICAL, "virology"):
        write_rows(folder / "jmmlu" / f"{subject}.csv", JMMLU_ROWS)
    return folder


def own(path: Path, **settings) -> Task:
    return own_task(own_task_settings({"mine": {"path": str(path), **settings}})[0])


def told(path: Path, **settings) -> str:
    with pytest.raises((ValueError, OSError)) as error:
        own(path, **settings)
    return str(error.value)


# IgakuQA


def test_a_question_of_igakuqa_is_asked_in_the_published_words(benchmarks):
    (task,) = load_tasks(["igakuqa_2018_B"], directory=benchmarks, shots=3)
    item = task.items[2]
    problem = "問題: 112B32について正しいのはどれか。\na: 甲\nb: 乙\nc: 丙\nd: 丁\ne: 戊\n"
    assert item.messages[0] == Message("system", "医師国家試験を解きます。")
    assert item.messages[-1] == Message("user", f"{problem}必ずa,b,c,d,eの中からちょうど2個選んでください。\n答え:")
    assert item.messages[2::2] == (Message("assistant", "a,b"),) * 3
    assert [message.role for message in item.messages] == ["system", *["user", "assistant"] * 3, "user"]
    assert task.source["shots"] == 3
    (zero,) = load_tasks(["igakuqa_2018_B"], directory=benchmarks)
    assert [message.role for message in zero.items[2].messages] == ["system", "user"]
    assert zero.items[2].prompt_sha256 != item.prompt_sha256


def test_igakuqa_keeps_kinds_golds_and_what_is_known_of_each_question(benchmarks):
    tasks = load_tasks(["igakuqa"], directory=benchmarks)
    assert [task.name for task in tasks] == ["igakuqa_2018", "igakuqa_2022"]
    items = {item.id: item for task in tasks for item in task.items}
    either, eight, boxes, several = items["112B30"], items["112A9"], items["112A14"], items["112A20"]
    assert (either.kind, either.gold, either.alternatives) == ("choice", ("a",), (("d",),))
    assert (either.points, either.text_only, either.group) == (3, False, "112B")
    assert (eight.letters, eight.gold, eight.options[6]) == (tuple("abcdefgh"), ("g",), "ｇ")
    assert "必ずa,b,c,d,e,f,g,hの中から" in eight.messages[-1].content
    assert (boxes.kind, boxes.gold, boxes.alternatives, boxes.letters) == ("number", ("130",), (("1130",),), ())
    assert boxes.messages[-1].content == "問題: 求めよ。解答：1, ①②③ kcal"
    assert (several.kind, several.gold, several.wanted) == ("letters", ("a", "c", "e"), 3)
    assert sorted((items["116A71"].gold, *items["116A71"].alternatives)) == [(letter,) for letter in "abcde"]
    assert items["112B31"].metadata["kinki"] == ("c", "d", "e")
    assert (several.metadata["human_accuracy"], several.tag) == (39.3, "小児科")
    data = (benchmarks / "igakuqa" / "data" / "2022" / "116-A.jsonl").read_bytes()
    assert tasks[1].source["files"]["data/2022/116-A.jsonl"] == hashlib.sha256(data).hexdigest()


def test_years_without_metadata_or_worked_questions_are_asked_and_told(tmp_path, caplog):
    write_igakuqa(tmp_path, metadata=False, demonstrations=0)
    with caplog.at_level(logging.WARNING):
        (task,) = igakuqa_tasks(tmp_path, name="igakuqa_2018", shots=3)
    assert task.source["shots"] == 0 and task.source["shots_asked"] == 3
    assert "zero-shot" in caplog.text and "lacks the blocks C, D, E, F" in caplog.text
    assert task.items[0].metadata == {"question": "112A1について正しいのはどれか。", "published_answer": ("e",)}


def test_more_shots_than_worked_questions_are_refused(benchmarks):
    with pytest.raises(ValueError, match="holds 3 worked questions"):
        load_tasks(["igakuqa_2018"], directory=benchmarks, shots=4)
    with pytest.raises(ValueError, match="shots=-1"):
        load_tasks(["igakuqa_2018"], directory=benchmarks, shots=-1)


def test_a_year_or_block_that_is_not_there_is_told_with_those_that_are(benchmarks):
    with pytest.raises(FileNotFoundError, match="no year 2019; it holds 2018, 2022"):
        load_tasks(["igakuqa_2019"], directory=benchmarks)
    with pytest.raises(FileNotFoundError, match="no block C of 2018; it holds A, B"):
        load_tasks(["igakuqa_2018_C"], directory=benchmarks)


SOUND = {"problem_id": "112A1", "problem_text": "どれか。", "choices": list("甲乙丙丁戊"), "text_only": True,
         "answer": ["a"], "points": "1"}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": []}, "answer is empty"),
        ({"answer": "a"}, "has to be a list"),
        ({"answer": [["a"]]}, "has to be a list of texts"),
        ({"answer": ["f"]}, "answer names 'f'"),
        ({"answer": ["a", "a"]}, "a letter twice"),
        ({"answer": ["a or f"]}, "answer names 'f'"),
        ({"choices": [], "answer": ["a"]}, "one number in digits"),
        ({"choices": ["甲"]}, "has 1 choices"),
        ({"points": "many"}, "points is 'many'"),
        ({"points": None}, "points is None"),
        ({"points": True}, "points is True"),
        ({"text_only": "no"}, "text_only is 'no'"),
        ({"problem_text": " "}, "problem_text"),
        ({"problem_id": 7}, "problem_id is 7"),
    ],
)
def test_a_bad_question_is_told_by_file_and_line(tmp_path, change, message):
    other = {**SOUND, "problem_id": "112A2"}
    path = write_jsonl(tmp_path / "data" / "2018" / "112-A.jsonl", [SOUND, {**other, **change}])
    with pytest.raises(ValueError, match=r"112-A\.jsonl, line 2") as error:
        igakuqa_tasks(tmp_path)
    assert message in str(error.value)
    assert "line 1 " not in str(error.value)
    assert path.is_file()


def test_all_bad_questions_of_a_year_are_told_at_once(tmp_path):
    folder = tmp_path / "data" / "2018"
    write_jsonl(folder / "112-A.jsonl", [SOUND, SOUND, {**SOUND, "problem_id": "112A3", "answer": []}])
    (folder / "112-B.jsonl").write_text('{"problem_id": "112B1"\n[1]\n{"a": NaN}\n' + "[" * 100_000, encoding="utf-8")
    with pytest.raises(ValueError) as error:
        igakuqa_tasks(tmp_path)
    lines = str(error.value).splitlines()
    for number, (place, reason) in enumerate(
        [("A.jsonl, line 2", "stands in"), ("A.jsonl, line 3", "empty"), ("B.jsonl, line 1", "no JSON"),
         ("B.jsonl, line 2", "object"), ("B.jsonl, line 3", "NaN"), ("B.jsonl, line 4", "no JSON")]
    ):  # fmt: skip
        assert any(place in line and reason in line for line in lines), (number, lines)


def test_the_real_examinations_have_the_known_questions(shared):
    tasks = load_tasks(["igakuqa_2018", "igakuqa_2019", "igakuqa_2020"], directory=shared, shots=3)
    assert [len(task.items) for task in tasks] == [400] * 3
    assert [sum(item.points for item in task.items) for task in tasks] == [499, 496, 496]
    assert [sum(not item.points for item in task.items) for task in tasks] == [1, 4, 2]
    assert [sum(item.kind == "number" for item in task.items) for task in tasks] == [2, 2, 3]
    assert [sum(not item.text_only for item in task.items) for task in tasks] == [114, 104, 113]
    for task, points in zip(
        tasks, (93.6, 92.9, 93.0), strict=True
    ):  # by a uniform choice of the right number of letters
        lettered = [item for item in task.items if item.letters]
        chances = [(1 + len(i.alternatives)) / math.comb(len(i.letters), i.wanted) * i.points for i in lettered]
        assert sum(chances) == pytest.approx(points, abs=0.05)
    either = next(item for item in tasks[0].items if item.alternatives)
    assert (either.id, either.gold, either.alternatives) == ("112B30", ("a",), (("d",),))
    last = {item.id: item.alternatives for item in tasks[2].items if item.alternatives}
    assert last == {"114C75": (("10.0",),), "114F75": (("1130",),)}


# JMED-LLM


def test_jmed_llm_is_asked_as_it_was_tuned_on_and_scored_by_its_kappa(benchmarks):
    tasks = load_tasks(["jmed_llm"], directory=benchmarks)
    assert [task.name for task in tasks] == list(JMED_TASKS)
    kappas = {task.name: task.kappa for task in tasks}
    assert [name for name, kappa in kappas.items() if kappa == "linear"] == ["crade", "jcsts"]
    assert [name for name, kappa in kappas.items() if kappa is None] == ["mrner_disease", "mrner_medicine", "nrner"]
    crade, nrner = tasks[1].items[1], tasks[7].items[0]
    row = full_sets()["CRADE"][4]
    assert (crade.id, crade.tag, crade.gold, crade.options) == ("crade:1", row[0], (row[-1],), tuple(row[2:6]))
    assert crade.messages[-1].content.endswith("\n".join(f"{a}. {b}" for a, b in zip("ABCD", row[2:6], strict=True)))
    assert nrner.kind == "spans" and nrner.gold == ("#頭痛", '“眠い”, 頭が"重い"', "\\")
    assert all(span in nrner.passage for span in nrner.gold)
    assert [len(item.messages) for task in tasks for item in task.items] == [1] * sum(len(t.items) for t in tasks)


def test_a_fold_of_one_task_shares_no_document_with_what_tuning_trains_on(benchmarks):
    tested = 0
    for fold in range(5):
        trained = {e.document for e in training_conversations(benchmarks / "jmed_llm", split="grouped", fold=fold)}
        for name in JMED_TASKS:
            try:
                (task,) = load_tasks([name], directory=benchmarks, split="grouped", fold=fold)
            except ValueError as error:
                assert "no row to be tested" in str(error)
                continue
            assert not trained & {item.group for item in task.items}
            tested += len(task.items)
    assert tested == sum(len(rows) - 1 for rows in full_sets().values())


def test_one_task_can_be_scored_without_the_files_of_the_others_but_not_in_folds(tmp_path):
    write_jmed(tmp_path)
    for path in tmp_path.rglob("*.csv"):
        if path.stem.lower() != "crade":
            path.unlink()
    (task,) = load_tasks(["crade"], directory=tmp_path)
    assert len(task.items) == 2
    with pytest.raises(FileNotFoundError, match="SMDIS"):
        load_tasks(["crade"], directory=tmp_path, split="grouped", fold=0)
    with pytest.raises(FileNotFoundError, match="rrtnm"):
        load_tasks(["jmed_llm"], directory=tmp_path)


def test_the_real_test_sets_have_100_rows_each(shared):
    tasks = load_tasks(["jmed_llm"], directory=shared)
    assert [len(task.items) for task in tasks] == [100] * 8
    for task in tasks:
        with (shared / "jmed_llm" / "test" / f"{task.name}.csv").open(encoding="utf-8", newline="") as handle:
            rows = list(csv.DictReader(handle))
        for item, row in zip(task.items, rows, strict=True):
            assert item.tag == row.get("tag", "") and row["question"] in item.messages[-1].content
            assert (item.gold[0] if item.kind == "choice" else str(list(item.gold))) == row["answer"]


# JMMLU


def test_jmmlu_reads_the_first_line_as_a_question(benchmarks):
    (task,) = load_tasks(["jmmlu"], directory=benchmarks)
    assert len(task.items) == 10 and {item.tag for item in task.items} == set(MEDICAL)
    item = task.items[0]
    assert (item.id, item.gold, item.options[:2]) == ("anatomy:0", ("B",), ("甲,乙", " 丙"))
    assert item.messages[-1].content.endswith("「顔」は何か？\nA. 甲,乙\nB.  丙\nC. 丁\nD. 戊")
    assert task.source["jmed_llm_rows"] == list(MEDICAL)
    (other,) = load_tasks(["jmmlu_virology"], directory=benchmarks)
    assert len(other.items) == 2 and other.source["jmed_llm_rows"] == []
    with pytest.raises(FileNotFoundError, match=r"lacks law .* it holds anatomy"):
        load_tasks(["jmmlu_law"], directory=benchmarks)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["問", "一", "二", "三", "四", "E"], "one of A, B, C, D"),
        (["問", "一", "二", "三", "四", ""], "one of A, B, C, D"),
        (["問", "一", "", "三", "四", "A"], "option is empty"),
        (["問", "一", "二", "三", "A"], "has 5 cells"),
    ],
)
def test_a_bad_row_of_jmmlu_is_told(tmp_path, row, message):
    write_rows(tmp_path / "jmmlu" / "virology.csv", [*JMMLU_ROWS, row])
    with pytest.raises(ValueError, match="line 4") as error:  # the second row has two lines
        load_tasks(["jmmlu_virology"], directory=tmp_path)
    assert message in str(error.value)


def test_the_five_real_medical_subjects_are_jmed_llms_jmmlu_med(shared):
    (task,) = load_tasks(["jmmlu"], directory=shared)
    with (shared / "jmed_llm" / "all" / "JMMLU-Med.csv").open(encoding="utf-8", newline="") as handle:
        rows = sorted((row["question"], row["answer"], row["optionA"]) for row in csv.DictReader(handle))
    found = sorted((item.messages[-1].content.split("\n", 1)[1].rsplit("\nA. ", 1)[0], item.gold[0], item.options[0])
                   for item in task.items)  # fmt: skip
    assert found == rows and len(rows) == 681


# Names


def test_unknown_names_are_told_together_with_the_nearest_known(benchmarks):
    with pytest.raises(ValueError) as error:
        load_tasks(["crad", "igakuqa2018", "smdis", 7], directory=benchmarks)
    assert "did you mean crade?" in str(error.value) and "did you mean igakuqa_2018?" in str(error.value)
    assert "7 is no name" in str(error.value)
    with pytest.raises(ValueError, match=r"known: .*jmed_llm"):
        load_tasks(["完全"], directory=benchmarks)
    with pytest.raises(ValueError, match="tasks is empty"):
        load_tasks([], directory=benchmarks)


def test_a_task_named_twice_is_loaded_once(benchmarks):
    names = [task.name for task in load_tasks(["crade", "jmed_llm", "crade", "igakuqa_2018"], directory=benchmarks)]
    assert names == ["crade", *(name for name in JMED_TASKS if name != "crade"), "igakuqa_2018"]
    tasks = load_tasks(["igakuqa", "igakuqa_2018"], directory=benchmarks)
    assert [task.name for task in tasks] == ["igakuqa_2018", "igakuqa_2022"]


def test_a_missing_folder_and_an_empty_one_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"benchmarks\.dir="):
        load_tasks(["crade"], directory=tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no IgakuQA"):
        load_tasks(["igakuqa"], directory=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"anatomy.*it holds no \.csv"):
        load_tasks(["jmmlu"], directory=tmp_path)


def test_loading_twice_gives_equal_tasks(benchmarks):
    first, second = (load_tasks(["jmed_llm", "igakuqa", "jmmlu"], directory=benchmarks) for _ in range(2))
    assert first == second


# Files of one's own


def test_own_rows_of_every_kind_are_asked_and_scored(tmp_path):
    rows = [
        ["nr", "frage", "x", "y", "z", "right", "doc"],
        ["7", "骨は\nどれか。", "一", "二", "", "Ｂ", "d1"],
        ["8", "指は？", "一", "二", "三", "c", "d2"],
    ]
    path = write_rows(tmp_path / "mine.csv", rows)
    columns = {"question": "frage", "answer": "right", "options": ["x", "y", "z"]}
    task = own(path, kind="choice", id="nr", group="doc", kappa="linear", **columns)
    assert [(item.id, item.gold, item.options, item.group) for item in task.items] == [
        ("7", ("B",), ("一", "二"), "d1"), ("8", ("C",), ("一", "二", "三"), "d2"),
    ]  # fmt: skip
    assert (task.family, task.kappa) == ("own", "linear")
    assert task.source == {"files": {"mine.csv": hashlib.sha256(path.read_bytes()).hexdigest()}}

    path = write_jsonl(tmp_path / "l.jsonl", [{"question": "選べ", "choices": ["一", "二", 3], "answer": ["C", "A"]}])
    item = own(path, kind="letters").items[0]
    assert (item.gold, item.wanted, item.options, item.id) == (("A", "C"), 2, ("一", "二", "3"), "0")
    assert "ちょうど2個" in item.messages[-1].content

    path = write_jsonl(tmp_path / "n.jsonl", [{"question": "何か", "answer": v} for v in (12, 0.5, "１，２００", 1e-7)])
    assert [item.gold[0] for item in own(path, kind="number").items] == ["12", "0.5", "1200", "0.0000001"]

    rows = [{"question": "症状は？", "text": "発熱とＣＴ 像。", "answer": "['発熱', 'CT像']"}]
    item = own(write_jsonl(tmp_path / "s.jsonl", rows), kind="spans", passage="text", instruction="抜き出せ").items[0]
    assert (item.gold, item.passage) == (("発熱", "CT像"), "発熱とＣＴ 像。")
    assert item.messages[-1].content == "抜き出せ\n症状は？\n「発熱とＣＴ 像。」"

    path = write_rows(tmp_path / "t.csv", [["question", "answer"], ["病名は？\n「頭痛あり」", '["頭痛"]']])
    assert own(path, kind="spans").items[0].passage == "頭痛あり"


def test_missing_columns_are_told_with_those_found(tmp_path):
    path = write_rows(tmp_path / "mine.csv", [["Frage", "optionA", "optionB", "answer"], ["何か", "一", "二", "A"]])
    message = told(path, kind="choice", passage="text")
    assert "'question' (benchmarks.own.mine.question), 'text' (benchmarks.own.mine.passage)" in message
    assert "its columns are 'Frage', 'optionA', 'optionB', 'answer'" in message
    path = write_rows(tmp_path / "none.csv", [["question", "answer"], ["何か", "A"]])
    assert "no columns optionA" in told(path, kind="choice")


CHOICE_FAULTS = [
    ({"answer": ""}, "is empty"),
    ({"answer": None}, "is empty"),
    ({"answer": []}, "is empty"),
    ({"answer": 1}, "has to name letters"),
    ({"answer": "D"}, "letters out of A, B, C"),
    ({"answer": ["A", "B"]}, "takes one letter"),
    ({"answer": [["A"]]}, "has to name letters"),
    ({"answer": {"A": 1}}, "has to name letters"),
    ({"question": ""}, "'question' is empty"),
    ({"question": ["x"]}, "has to be text"),
    ({"options": ["一"]}, "2 to 26"),
    ({"options": ["一", "", "三"]}, "none empty in between"),
    ({"options": ["一", ["二"]]}, "have to be texts"),
    ({"options": "一、二"}, "have to be a list"),
    ({"options": [str(n) for n in range(27)]}, "2 to 26"),
    ({"question": "\ud800"}, "surrogate"),
]


@pytest.mark.parametrize(("change", "message"), CHOICE_FAULTS)
def test_bad_choice_rows_are_told_by_file_and_row(tmp_path, change, message):
    sound = {"question": "何か", "options": ["一", "二", "三"], "answer": "A"}
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (sound, {**sound, **change})), encoding="utf-8")
    assert f"{path}, line 2 (row 1)" in (found := told(path, kind="choice")) and message in found


@pytest.mark.parametrize(
    ("kind", "answer", "message"),
    [
        ("spans", "[]", "empty list"),
        ("spans", [], "is empty"),
        ("spans", '["頭痛", ""]', "none empty"),
        ("spans", "[['頭痛']]", "list of texts"),
        ("spans", "[__import__('os').getcwd()]", "list of texts"),
        ("spans", "頭痛", "list of texts"),
        ("spans", ["腹痛"], "does not stand in the passage"),
        ("number", "約3", "number in digits"),
        ("number", "", "is empty"),
        ("number", True, "has to be a number"),
        ("number", "9" * 100, "number in digits"),
    ],
)
def test_bad_spans_and_numbers_are_told(tmp_path, kind, answer, message):
    path = write_jsonl(tmp_path / "mine.jsonl", [{"question": "何か\n「頭痛あり」", "answer": answer}])
    assert "line 1 (row 0)" in (found := told(path, kind=kind)) and message in found


def test_all_bad_rows_are_told_at_once_up_to_twenty(tmp_path):
    path = write_jsonl(tmp_path / "mine.jsonl", [{"question": "何か", "answer": "?"}] * 50)
    lines = told(path, kind="number").splitlines()
    assert len(lines) == 21 and lines[0].startswith(f"{path}, line 1 ") and lines[-1] == "... and 30 more."


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("question,answer\n何か,1\n".encode("utf-16"), "UTF-16"),
        ("question,answer\n何か,1\n".encode("cp932"), "line 2: is not UTF-8"),
        (b"question,answer\na,1\n\0\0", "line 3: holds a NUL"),
        (b"", "holds no row"),
        (b"question,answer\n", "holds no row"),
        (b"question,answer,answer\na,1,2\n", "'answer' twice"),
        (b"question,answer\na,1,2\nb,2\n", "line 2 (row 0): has 3 cells"),
        (b'question,answer\n"a,1\n', "line 2: is no csv row"),
    ],
)
def test_damaged_csv_files_are_told(tmp_path, data, message):
    path = tmp_path / "mine.csv"
    path.write_bytes(data)
    assert str(path) in (found := told(path, kind="number")) and message in found


def test_a_file_of_another_kind_or_none_is_told(tmp_path):
    (tmp_path / "mine.xlsx").write_bytes(b"PK")
    assert "kind is .xlsx" in told(tmp_path / "mine.xlsx", kind="number")
    assert "is no file" in told(tmp_path / "nothing.csv", kind="number")
    assert "is no file" in told(tmp_path, kind="number")


def test_bom_and_carriage_returns_change_nothing(tmp_path):
    rows = [["question", "answer"], ["何\nか", "1"]]
    plain = own(write_rows(tmp_path / "a" / "mine.csv", rows), kind="number")
    other = write_rows(tmp_path / "b" / "mine.csv", rows, line_end="\r\n")
    other.write_bytes(b"\xef\xbb\xbf" + other.read_bytes())
    assert own(other, kind="number").items == plain.items
    tabs = tmp_path / "mine.tsv"
    tabs.write_text("question\tanswer\n何か, 一つ\t1\n", encoding="utf-8")
    assert own(tabs, kind="number").items[0].messages[-1].content.endswith("何か, 一つ")


def test_ids_that_repeat_or_are_no_text_are_told(tmp_path):
    path = write_jsonl(tmp_path / "mine.jsonl", [{"question": "何か", "answer": 1, "n": n} for n in ("x", "x", None)])
    found = told(path, kind="number", id="n")
    assert "line 2 (row 1): the id 'x' stands in" in found and "line 3 (row 2): the id (column 'n') is 'None'" in found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "choise"}, "benchmarks.own.mine.kind='choise'"),
        ({"kind": "choice", "colour": 1}, "benchmarks.own.mine.colour: no such setting"),
        ({}, "benchmarks.own.mine.kind: needed"),
        ({"kind": "spans", "options": ["a"]}, "kind spans has no options"),
        ({"kind": "letters", "kappa": "linear"}, "kappa is for kind choice"),
        ({"kind": "choice", "kappa": "quadratic"}, "benchmarks.own.mine.kappa"),
    ],
)
def test_wrong_settings_of_an_own_task_are_told_by_their_path(settings, message):
    with pytest.raises(ValueError) as error:
        own_task_settings({"mine": {"path": "x.csv", **settings}})
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["crade", "jmed_llm", "igakuqa_2030", "jmmlu", "jmmlu_law"])
def test_an_own_task_may_not_take_a_published_name(tmp_path, name):
    with pytest.raises(ValueError, match="name of a published task"):
        load_tasks([name], directory=tmp_path, own={name: {"path": "x.csv", "kind": "choice"}})


def test_own_tasks_need_no_benchmarks(tmp_path):
    path = write_jsonl(tmp_path / "mine.jsonl", [{"question": "何か", "answer": 1}])
    settings = {"mine": {"path": str(path), "kind": "number"}}
    (task,) = load_tasks(["mine"], directory=tmp_path / "nothing", own=settings)
    assert task.name == "mine"
    with pytest.raises(ValueError, match="did you mean mine"):
        load_tasks(["min"], directory=tmp_path / "nothing", own=settings)


words = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(words, st.lists(words, min_size=2, max_size=26), st.integers(0, 25)), min_size=1, max_size=4))
def test_what_is_written_comes_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("own") / "mine.jsonl"
    golds = ["ABCDEFGHIJKLMNOPQRSTUVWXYZ"[place % len(options)] for _, options, place in rows]
    write_jsonl(path, [{"question": q, "options": o, "answer": a} for (q, o, _), a in zip(rows, golds, strict=True)])
    items = own(path, kind="choice").items
    assert [item.gold for item in items] == [(gold,) for gold in golds]
    assert [list(item.options) for item in items] == [options for _, options, _ in rows]
    assert all(question in item.messages[-1].content for item, (question, _, _) in zip(items, rows, strict=True))


# Items


def test_items_that_cannot_be_scored_are_refused():
    messages = (Message("user", "何か"),)
    sound = {"id": "1", "task": "t", "kind": "choice", "messages": messages, "gold": ("A",), "letters": ("A", "B"),
             "options": ("一", "二")}  # fmt: skip
    assert Item(**sound).prompt_sha256 == Item(**sound).prompt_sha256
    faults = [
        ({"gold": ()}, "empty"), ({"gold": ("C",)}, "none of its letters"), ({"gold": ("A", "B")}, "one right answer"),
        ({"options": ("一",)}, "2 letters for 1 options"), ({"alternatives": (("C",),)}, "none of its letters"),
        ({"messages": (*messages, Message("assistant", "x"))}, "last message"),
    ]  # fmt: skip
    for change, message in faults:
        with pytest.raises(ValueError, match=message):
            Item(**{**sound, **change})
    with pytest.raises(ValueError, match="twice"):
        Task(name="t", family="own", items=(Item(**sound), Item(**sound)))
    with pytest.raises(ValueError, match="no item"):
        Task(name="t", family="own", items=())


def test_a_cell_of_a_megabyte_is_read(tmp_path):
    path = write_rows(tmp_path / "mine.csv", [["question", "answer"], ["頭" * 1_000_000, "1"]])
    limit = csv.field_size_limit()
    assert len(read_records(path).rows[0].cells["question"]) == 1_000_000
    assert csv.field_size_limit() == limit
