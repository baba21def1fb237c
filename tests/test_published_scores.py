"""The report's tables as data: against the report's text, against each other, and against what can be computed."""

import json
import re

import pytest
from conftest import REPOSITORY

from ncvc.analysis.published_scores import PLACE, published_scores, read_published_scores
from ncvc.evaluation.baselines import guessing
from ncvc.evaluation.igakuqa import igakuqa_points
from ncvc.evaluation.igakuqa_files import igakuqa_tasks
from ncvc.evaluation.tasks import load_tasks

SHARED = REPOSITORY.parent / "shared"
SCORES = published_scores()


def values(number, start):
    return next(row.values for row in SCORES.table(number).rows if row.model.startswith(start))


@pytest.fixture
def paper():
    """The lines of the report's text, by the table they stand in."""
    place = SHARED / "paper" / "ncvc-slm-1.txt"
    if not place.is_file():
        pytest.skip("the report's text is not at hand")
    text = place.read_text(encoding="utf-8")
    places = {
        "2": "Table 2:",
        "3": "JMMLU-Med\tCRADE",
        "4": "Table 4:",
        "5": "Table 5:",
        "6": "Table 6:",
        "7": "Table 7:",
    }
    found = {}
    for number, mark in places.items():
        rows = []
        for line in text[text.index(mark) :].splitlines()[1:]:
            cells = line.split("\t")
            if len(cells) > 3 and re.match(r"-?[\d.]+ ?\(", cells[1]):
                rows.append([tuple(map(float, re.findall(r"-?[\d.]+", cell))) for cell in cells[1:]])
            elif rows and line.strip():
                break
        found[int(number)] = rows
    return found


def test_every_figure_is_that_of_the_reports_text(paper):
    for table in SCORES.tables:
        printed = paper[table.number]
        assert len(printed) == len(table.rows)
        for row, cells in zip(table.rows, printed, strict=True):
            if table.form == "points":
                assert [value[0] for value in row.values] == [points for points, _ in cells], row.model
                computed = [100 * value[0] / total for value, total in zip(row.values, table.totals, strict=True)]
                assert computed == pytest.approx([percent for _, percent in cells], abs=0.0501), row.model
            else:
                assert list(row.values) == cells, row.model


def test_the_tables_are_as_large_as_the_reports():
    assert [(table.number, len(table.rows), len(table.tasks)) for table in SCORES.tables] == [
        (2, 15, 5), (3, 14, 5), (4, 14, 3), (5, 4, 5), (6, 4, 5), (7, 4, 3),
    ]  # fmt: skip


@pytest.mark.parametrize(("main", "ablation"), [(2, 5), (3, 6), (4, 7)])
def test_both_tables_print_the_same_of_one_model_but_for_the_marked_cell(main, ablation):
    differing = [
        (tokens, SCORES.table(main).tasks[place])
        for tokens in ("20B", "50B")
        for place, (one, other) in enumerate(
            zip(
                values(main, f"NCVC-slm-1-instruct ({tokens}"),
                values(ablation, f"base {tokens}, JMED-LLM only"),
                strict=True,
            )
        )
        if one != other
    ]
    assert differing == ([("50B", "mrner_disease")] if main == 4 else [])
    if main == 4:
        for number, model in ((4, "NCVC-slm-1-instruct (50B tokens)"), (7, "base 50B, JMED-LLM only")):
            assert SCORES.marks(number, model=model, task="mrner_disease") == ("R126",)


def test_the_cells_above_20_percent_are_those_that_are_marked():
    table = SCORES.table(2)
    above = {
        (2, row.model, task)
        for row in table.rows
        if row.is_the_reports
        for task, (points,), total in zip(table.tasks, row.values, table.totals, strict=True)
        if points / total > 0.2
    }
    assert above == next(each.cells for each in SCORES.contradictions if each.id == "R128")


def test_the_contradictions_are_facts_of_the_tables():
    instruct, gemma = values(4, "NCVC-slm-1-instruct (20B"), values(4, "gemma-2-9b")
    assert instruct[1][0] == gemma[1][0] == 0.65
    assert instruct[1][1] < gemma[1][1]
    for tokens in ("20B", "50B"):
        assert values(6, f"base {tokens}, with")[0][0] > values(6, f"base {tokens}, JMED")[0][0]
    assert {f"R{number}" for number in range(126, 134)} <= {each.id for each in SCORES.contradictions}


def test_rows_of_other_models_name_a_source_and_none_claims_to_be_measured_here():
    for table in SCORES.tables:
        for row in table.rows:
            assert row.is_the_reports == row.model.startswith(("NCVC", "base "))
            assert SCORES.sources[row.source]


@pytest.mark.parametrize(
    "names",
    [["igakuqa"], pytest.param(["jmmlu_med", "crade", "rrtnm", "smdis", "jcsts"], marks=pytest.mark.slow)],
    ids=["igakuqa", "jmed_llm"],
)
def test_what_guessing_scores_is_what_the_questions_give(names):
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("the benchmarks are not at hand")
    for task in load_tasks(names, directory=folder):
        found, guess, exam = guessing(task, task.items), SCORES.guessing[task.name], names == ["igakuqa"]
        expected, ends = (found.points, found.points_range) if exam else (found.accuracy, found.accuracy_range)
        assert guess.expected == pytest.approx(expected, abs=0.05 if exam else 1e-4)
        assert guess.range == pytest.approx(ends)


def test_the_points_of_three_models_are_those_their_published_predictions_give():
    folder = SHARED / "data" / "igakuqa"
    if not folder.is_dir():
        pytest.skip("the published predictions of IgakuQA are not at hand")
    for task in igakuqa_tasks(folder):
        place = SCORES.table(2).tasks.index(task.name)
        for model, start in (("gpt4", "GPT-4"), ("chatgpt", "ChatGPT"), ("gpt3", "GPT-3")):
            predictions = {}
            for path in (folder / "baseline_results" / task.name.removeprefix("igakuqa_")).glob(f"*_{model}.jsonl"):
                rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
                predictions |= {row["problem_id"]: row["prediction"] for row in rows}
            score = igakuqa_points(task.items, predictions)
            assert (score["points"], score["total"]) == (values(2, start)[place][0], SCORES.table(2).totals[place])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[382, 385, 387, 398, 392]", "[382, 385, 387, 398]", "Table 2, GPT-4: not 1 figures for each of 5 tasks"),
        ("[0.17, 0.38]", "0.17", "Table 3, gemma-2-2b-it: not 2 figures"),
        ("source: igakuqa,", "source: nobody,", "no source 'nobody'"),
        ("form: partial_exact", "form: other", "form 'other' is none of"),
        ("totals: [499, ", "totals: [", "4 totals for 5 tasks"),
        ("task: rrtnm}", "task: rrtmn}", "R92: there is no cell"),
        ("tables:", "others:", "not the form of published scores"),
    ],
)
def test_a_file_that_cannot_be_is_refused_by_name(tmp_path, old, new, message):
    text = PLACE.read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "scores.yaml").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)):
        read_published_scores(tmp_path / "scores.yaml")
