"""Tables 2 to 7 and the sheets: own scores beside the published ones, told as they are."""

import pytest
from report_world import VERDICT, choice_record, exam_record, own, row_of, score_file, span_record

from ncvc.analysis.own_scores import find_scores
from ncvc.analysis.published_scores import published_scores
from ncvc.analysis.score_figures import checkpoints_of
from ncvc.analysis.score_tables import report_table, sheet_table
from ncvc.chat import Message
from ncvc.evaluation.answers import Answer
from ncvc.evaluation.item import Item, Task
from ncvc.evaluation.scoring import score_answers
from ncvc.evaluation.sheet import write_scores


def test_own_scores_stand_beside_the_published_ones_in_the_same_form(tmp_path):
    score_file(tmp_path, choice_record(), span_record(), exam_record(2019, points=97))
    tables = {
        table.number: report_table(table, published_scores(), own(tmp_path)) for table in published_scores().tables
    }
    assert row_of(tables[3], "tiny").cells == ("–", "0.31 (0.44)", "–", "–", "–")
    assert row_of(tables[4], "tiny").cells == ("–", "–", "1.30 (0.70)")
    assert row_of(tables[2], "tiny").cells == ("–", "97 (19.6%)", "–", "–", "–")
    assert row_of(tables[2], "GPT-4").cells[0] == "382 (76.6%)"
    assert row_of(tables[3], "character n-grams").cells[1] == "0.71 (0.75)"
    assert row_of(tables[3], "character n-grams").detail == "split paper"
    assert row_of(tables[2], "guessing").cells[:2] == ("93.6 (18.8%)", "92.9 (18.7%)")
    for number in (5, 6, 7):
        assert row_of(tables[number], "tiny").cells == row_of(tables[number - 3], "tiny").cells


def test_blocks_of_an_examination_add_up_and_a_part_of_it_says_so(tmp_path):
    blocks = [exam_record(2018, points=10, block=f"_{letter}", total=50) for letter in "AB"]
    score_file(tmp_path, *blocks)
    table = report_table(published_scores().table(2), published_scores(), own(tmp_path))
    assert row_of(table, "tiny").cells[0] == "20 of 100 (20.0%)"


def test_unanswered_items_are_told_in_the_table_and_the_sheet(tmp_path):
    score_file(tmp_path, choice_record(answered=93, missing=7))
    [scores] = own(tmp_path)
    assert (
        row_of(report_table(published_scores().table(3), published_scores(), [scores]), "tiny")
        .cells[1]
        .endswith(", 7 not answered")
    )
    assert sheet_table(scores, place=1).rows[0].cells[0] == "93 of 100"


def test_another_number_of_items_than_the_published_tests_is_told(tmp_path):
    score_file(tmp_path, choice_record(items=326), split="grouped", fold=2)
    row = row_of(report_table(published_scores().table(3), published_scores(), own(tmp_path)), "tiny")
    assert row.cells[1] == "0.31 (0.44), 326 items"
    assert row.detail == "split grouped 2, 0-shot, generation"


def test_a_baseline_of_unanswered_items_is_no_row_of_the_table(tmp_path):
    score_file(tmp_path, choice_record(answered=93, missing=7))
    table = report_table(published_scores().table(3), published_scores(), own(tmp_path))
    assert not any("n-grams" in row.label for row in table.rows)


def test_the_sheet_holds_interval_chance_baseline_refusals_leak_and_verdict(tmp_path):
    score_file(tmp_path, choice_record())
    [row] = sheet_table(own(tmp_path)[0], place=1).rows
    assert row.cells == (
        "100", "0.31 (0.44)", "kappa 0.30 [0.11, 0.51]", "0.00", "0.00", "character n-grams 0.71", "7%", "94%", VERDICT,
    )  # fmt: skip


def examination_task(number=40):
    return Task(
        name="igakuqa_2018", family="igakuqa",
        items=tuple(
            Item(id=f"112A{place}", task="igakuqa_2018", kind="choice", messages=(Message("user", f"問{place}"),),
                 gold=("abcde"[place % 5],), letters=tuple("abcde"), options=tuple("あいうえお"), group="112A")
            for place in range(number)
        ),
    )  # fmt: skip


def test_what_the_scorer_writes_is_what_the_report_reads(tmp_path):
    task = examination_task()
    answers = {
        (task.name, item.id): Answer(task=task.name, id=item.id, prompt_sha256=item.prompt_sha256, answer="a")
        for item in task.items
    }
    scores = score_answers([task], answers, model={"name": "constant", "training": {"tokens_seen": 7}})
    write_scores(tmp_path / "scores" / "a" / "scores.json", scores)
    [row] = sheet_table(own(tmp_path)[0], place=1).rows
    record = scores["tasks"][0]
    low, high = record["interval"]["corrected"]["percent"]
    assert row.cells[:4] == ("40", "8 of 40", f"% of points 20.0 [{low:.1f}, {high:.1f}]", "20.0")
    assert row.cells[4:] == ("20.0, in hindsight", "longest option 20.0", "0%", "unknown", record["verdict"])
    [point], _ = checkpoints_of(own(tmp_path))
    assert (point.percent, point.low, point.high) == pytest.approx((20.0, low, high))
    assert point.chance == pytest.approx(20.0)


def test_the_wider_interval_of_items_and_documents_is_shown(tmp_path):
    ends = {"corrected": {"kappa": [0.2, 0.4]}, "documents": {"corrected": {"kappa": [0.25, 0.6]}}}
    score_file(tmp_path, choice_record(interval=ends))
    assert sheet_table(own(tmp_path)[0], place=1).rows[0].cells[2] == "kappa 0.30 [0.20, 0.60]"


def test_a_score_that_is_undefined_is_a_dash_and_never_a_number(tmp_path):
    empty = {name: {} for name in ("as_published", "corrected", "interval", "chance", "majority", "baselines", "leak")}
    score_file(
        tmp_path,
        choice_record(answered=0, **empty),
        choice_record("smdis", kappa=0.0, interval=None, leak=None),
        choice_record("jcsts", corrected={"kappa": 10**400}, as_published={"kappa": "1", "accuracy": True}),
    )
    first, second, third = sheet_table(own(tmp_path)[0], place=1).rows
    assert first.cells[1] == "–" and "–" in first.cells[2] and first.cells[6] == "–"
    assert second.cells[2] == "kappa -0.01"
    assert third.cells[1] == "–" and third.cells[2].startswith("kappa –")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no file of scores"),
        ("[1]", "no file of scores"),
        ('{"tasks": [], "format": 7}', "format 7"),
        ('{"tasks": [{"items": 3}], "format": 1}', "a task without a name"),
        ('{"tasks": [3], "format": 1}', "a task without a name"),
    ],
)
def test_a_file_that_is_not_of_scores_is_refused_by_name(tmp_path, content, message):
    path = score_file(tmp_path) / "scores.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as refused:
        own(tmp_path)
    assert str(path) in str(refused.value)


def test_scores_are_found_by_folder_file_and_name_and_not_twice(tmp_path):
    folder = score_file(tmp_path, choice_record(), where="tiny/a")
    other = score_file(tmp_path, choice_record(), where="tiny/b")
    both = [place / "scores.json" for place in (folder, other)]
    assert find_scores(["all"], home=tmp_path) == both
    assert find_scores(["tiny"], home=tmp_path) == both
    assert find_scores([str(folder), str(both[0]), "all"], home=tmp_path) == both
    with pytest.raises(FileNotFoundError, match=r"scores=nothing: there is no scores\.json"):
        find_scores(["nothing"], home=tmp_path)
