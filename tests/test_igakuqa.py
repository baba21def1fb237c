"""IgakuQA's two scorers: the published one against the published points, the corrected one against a golden file."""

import json
from pathlib import Path

import pytest
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st
from igakuqa_world import golden_rows, write_igakuqa

from ncvc.chat import Message
from ncvc.evaluation.igakuqa import (
    by_block,
    corrected_points,
    folded,
    igakuqa_points,
    igakuqa_scores,
    is_right_as_published,
    question_score,
)
from ncvc.evaluation.igakuqa_files import block_files, igakuqa_tasks
from ncvc.evaluation.item import Item

MODELS = ("gpt4", "chatgpt", "gpt3", "student-majority")
STUDENTS = {"2018": 472, "2019": 470, "2020": 471, "2021": 477, "2022": 482}  # in no table of the report
TEXT_ONLY_TOTALS = {"2018": 362, "2019": 375, "2020": 365, "2021": 383, "2022": 379}


@pytest.fixture(scope="module")
def published() -> Path:
    folder = REPOSITORY.parent / "shared" / "data" / "igakuqa"
    if not folder.is_dir():
        pytest.skip("the published predictions of IgakuQA are not here")
    return folder


@pytest.fixture(scope="module")
def exam(tmp_path_factory) -> dict[str, Item]:
    folder = write_igakuqa(tmp_path_factory.mktemp("igakuqa"))
    return {item.id: item for task in igakuqa_tasks(folder) for item in task.items}


OUTPUTS = {row["question"]["problem_id"]: row["output"] for row in golden_rows()}


def predictions_of(folder: Path, *, year: str, block: str, model: str) -> dict[str, str]:
    exam = int(year) - 1906
    lines = (folder / "baseline_results" / year / f"{exam}-{block}_{model}.jsonl").read_text(encoding="utf-8")
    rows = map(json.loads, lines.splitlines())
    return {row["problem_id"]: row["prediction"] for row in rows}


def points_of_files(folder: Path, *, year: str, block: str, predictions: dict[str, str]) -> int:
    """The published rule stated anew over the raw file: multisets of what stands between commas."""
    points = 0
    path = folder / "data" / year / f"{int(year) - 1906}-{block}.jsonl"
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        name, parts = row["problem_id"], predictions[row["problem_id"]].split(",")
        same = all(parts.count(part) == row["answer"].count(part) for part in {*parts, *row["answer"]})
        if same or name == "116A71" or (name == "112B30" and parts in (["a"], ["d"])):
            points += int(row["points"])
    return points


@pytest.mark.parametrize("model", MODELS)
def test_published_points_are_reproduced_from_published_predictions(published, model):
    expected = json.loads((published / "expected_scores.json").read_text(encoding="utf-8"))["scores"]
    years = block_files(published)
    assert years
    for year in years:
        (task,) = igakuqa_tasks(published, name=f"igakuqa_{year}")
        block_points, predictions = 0, {}
        for name, items in by_block(task.items).items():
            of_block = predictions_of(published, year=year, block=name[-1], model=model)
            found = igakuqa_points(items, of_block)["points"]
            assert found == points_of_files(published, year=year, block=name[-1], predictions=of_block), name
            block_points += found
            predictions |= of_block
        score = igakuqa_points(task.items, predictions)
        assert score["points"] == block_points == {**expected, "student-majority": STUDENTS}[model][year]
        assert score["total"] == expected["total_points"][year]
        assert (score["questions"], score["missing"]) == (400, 0)
        assert igakuqa_scores(task.items, predictions)["as_published"] == score  # they are folded already


def test_the_text_only_questions_are_worth_the_published_sums(published):
    for task in igakuqa_tasks(published):
        score = corrected_points(task.items, {})
        assert score["text_only"]["total"] == TEXT_ONLY_TOTALS[task.source["year"]]
        assert (score["answered"], score["refusal_rate"], score["missing"]) == (0, None, 400)


def test_the_corrected_score_takes_no_points_and_counts_what_says_nothing(published):
    """What is right as published stays so; GPT-4's refusals to answer without pictures are counted."""
    for task in igakuqa_tasks(published):
        year = task.source["year"]
        for model in MODELS:
            predictions = {}
            for block in task.source["blocks"]:
                predictions |= predictions_of(published, year=year, block=block, model=model)
            scores = igakuqa_scores(task.items, predictions)
            assert scores["corrected"]["points"] >= scores["as_published"]["points"], (year, model)
            if model == "gpt4":
                assert scores["corrected"]["refused"] > 0
            if model == "student-majority":  # its predictions are letters or nothing
                assert scores["corrected"]["refused"] == sum(not text for text in predictions.values())


@pytest.mark.parametrize("row", golden_rows(), ids=lambda row: row["question"]["problem_id"])
def test_every_trap_is_scored_as_the_golden_file_says(exam, row):
    item, output = exam[row["question"]["problem_id"]], row["output"]
    assert (output is not None and is_right_as_published(item, output)) == row["as_published"], row["why"]
    assert (output is not None and is_right_as_published(item, folded(output))) == row["as_published_folded"]
    score = question_score(item, output)
    found = "missing" if score.missing else "refused" if score.refused else "right" if score.right else "wrong"
    assert found == row["corrected"], (row["why"], score)


def test_the_sums_of_the_golden_file(exam):
    """Counted by hand."""
    items = list(exam.values())
    assert igakuqa_points(items, OUTPUTS) == {
        "points": 13, "total": 32, "percent": 40.625, "correct": 10, "questions": 25, "accuracy": 0.4, "missing": 1,
    }  # fmt: skip
    scores = igakuqa_scores(items, OUTPUTS)
    assert scores["as_published"]["points"] == 16
    assert scores["corrected"] == {
        "points": 23, "total": 32, "percent": 71.875, "correct": 17, "questions": 24, "accuracy": 17 / 24,
        "answered": 24, "missing": 1, "refused": 2, "refusal_rate": 2 / 24, "kinki_options": 2, "kinki_questions": 2,
        "text_only": {
            "points": 19, "total": 27, "percent": 100 * 19 / 27, "correct": 15, "questions": 21, "accuracy": 15 / 21,
        },
    }  # fmt: skip


def test_chosen_options_that_fail_a_candidate_are_named(exam):
    assert question_score(exam["112A2"], "c").kinki == ("c",)
    assert question_score(exam["112B31"], "e").kinki == ("e",)
    assert question_score(exam["112B32"], "b,c").kinki == ()
    assert question_score(exam["112B32"], "c, a").kinki == ("a",)


def test_what_was_not_answered_earns_nothing_even_where_every_answer_is_right(exam):
    for score in (igakuqa_points([exam["116A71"]], {}), corrected_points([exam["116A71"]], {"116A71": None})):
        assert (score["points"], score["correct"], score["missing"]) == (0, 0, 1)


def test_questions_without_points_have_no_percentage(exam):
    score = igakuqa_points([exam["112A5"]], {"112A5": "d"})
    assert (score["points"], score["total"], score["percent"], score["correct"]) == (0, 0, None, 1)
    assert corrected_points([exam["112A5"]], {"112A5": "d"})["accuracy"] is None


def test_no_question_at_all_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        igakuqa_points([], {})
    with pytest.raises(ValueError, match="at least one"):
        corrected_points(iter([]), {})


@given(st.permutations(["a", "b", "c", "d", "e"]), st.integers(1, 5))
def test_the_order_of_letters_never_matters_and_a_blank_always_does_as_published(letters, count):
    answer = tuple(letters[:count])
    item = lettered(answer)
    prediction = ",".join(reversed(answer))
    assert is_right_as_published(item, prediction)
    assert not is_right_as_published(item, prediction + " ")
    assert not is_right_as_published(item, f"{prediction},{answer[0]}")


@given(st.text(alphabet="abc, \n", max_size=8))
def test_the_published_rule_equals_its_statement_as_multisets(prediction):
    item = lettered(("a", "c"))
    parts = prediction.split(",")
    assert is_right_as_published(item, prediction) == (len(parts) == 2 and {*parts} == {"a", "c"})


@given(st.text(max_size=30))
def test_any_output_can_be_scored_and_a_refusal_is_never_right(output):
    for item in (lettered(("a",)), lettered(("a", "c")), numbered("04", "0.4")):
        score = question_score(item, output)
        assert not (score.refused and score.right)
        assert score.value == score.right


@pytest.mark.parametrize("output", ["__import__('os').system('true')", "[" * 10_000, "b" * 1_000_000, "9" * 1_000_000])
def test_hostile_outputs_are_answers_like_any_other(output):
    assert not question_score(numbered("04", "0.4"), output).right
    assert not question_score(lettered(("a", "c")), output).right


def lettered(answer: tuple[str, ...]) -> Item:
    letters = ("a", "b", "c", "d", "e")
    return made(
        "letters" if len(answer) > 1 else "choice", answer, letters=letters, options=letters, wanted=len(answer)
    )


def numbered(stored: str, number: str) -> Item:
    return made("number", (stored,), alternatives=((number,),))


def made(kind, gold, **more) -> Item:
    return Item(id="112A99", task="exam", kind=kind, messages=(Message("user", "？"),), gold=gold, **more)
