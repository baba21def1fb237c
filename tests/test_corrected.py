"""The corrected scores: kappa with refusals, spans paired one to one, against definitions, brute force and gold."""

import csv
import itertools
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ncvc.evaluation import as_published
from ncvc.evaluation.answer_reading import read_choice, read_spans_answer
from ncvc.evaluation.corrected import (
    SpanScore,
    choice_scores,
    choice_summary,
    choice_table,
    kappa_of_table,
    normalized_span,
    overlaps,
    span_scores,
    span_summary,
)
from ncvc.evaluation.jmed_llm import test_examples as examples_of
from ncvc.evaluation.spans import clean_span

GOLDEN = json.loads((Path(__file__).parent / "golden" / "jmed_llm.json").read_text(encoding="utf-8"))
LETTERS = "ABCDEF"
KAPPA = st.sampled_from(["unweighted", "linear"])
ANSWERED = st.lists(st.tuples(st.sampled_from(LETTERS), st.sampled_from(LETTERS)), min_size=1, max_size=25)
ROWS = st.lists(
    st.tuples(st.sampled_from(LETTERS), st.one_of(st.none(), st.sampled_from(LETTERS))), min_size=1, max_size=25
)


def kappa_of(rows, kappa):
    return choice_summary(*zip(*rows, strict=True), letters=LETTERS, kappa=kappa)["kappa"]


def stated_kappa(rows, kappa):
    """The formula of the module's docstring, item by item."""

    def apart(one, other):
        steps = abs(LETTERS.index(one) - LETTERS.index(other))
        return steps / 5 if kappa == "linear" else float(steps > 0)

    by_chance = {letter: sum(apart(gold, letter) for gold, _ in rows) / len(rows) for letter in LETTERS}
    observed = sum(1.0 if answer is None else apart(gold, answer) for gold, answer in rows)
    expected = sum(min(by_chance.values()) if answer is None else by_chance[answer] for _, answer in rows)
    if expected == 0:
        return math.nan if observed == 0 else -1.0
    return max(-1.0, 1 - observed / expected)


@settings(deadline=None)
@given(ROWS, KAPPA)
def test_kappa_is_the_stated_formula(rows, kappa):
    assert kappa_of(rows, kappa) == pytest.approx(stated_kappa(rows, kappa), abs=1e-9, nan_ok=True)


@settings(deadline=None)
@given(ANSWERED, KAPPA)
def test_without_refusals_kappa_is_cohens_over_all_letters(rows, kappa):
    metrics = pytest.importorskip("sklearn.metrics")
    golds, answers = zip(*rows, strict=True)
    assume(len({*golds, *answers}) > 1)
    weights = "linear" if kappa == "linear" else None
    expected = metrics.cohen_kappa_score(golds, answers, labels=list(LETTERS), weights=weights)
    assert kappa_of(rows, kappa) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=300, deadline=None)
@given(ROWS, KAPPA, st.data())
def test_an_answer_that_becomes_unreadable_never_raises_a_score(rows, kappa, data):
    place = data.draw(st.integers(0, len(rows) - 1))
    fewer = [(gold, None if number == place else answer) for number, (gold, answer) in enumerate(rows)]
    before, after = kappa_of(rows, kappa), kappa_of(fewer, kappa)
    assert math.isnan(before) or after <= before + 1e-12
    accuracies = [
        choice_summary(*zip(*each, strict=True), letters=LETTERS, kappa=None)["accuracy"] for each in (fewer, rows)
    ]
    assert accuracies[0] <= accuracies[1]


def test_under_linear_weights_a_refusal_costs_the_same_by_any_wrong_answer_to_any_letter():
    golds, answers = list("ABCDEF" * 10), list("ABCDEF" * 5 + "BCDEFA" * 5)
    before = choice_summary(golds, answers, letters=LETTERS, kappa="linear")["kappa"]
    for letter in LETTERS:
        refused = [None if gold == letter and gold != a else a for gold, a in zip(golds, answers, strict=True)]
        assert choice_summary(golds, refused, letters=LETTERS, kappa="linear")["kappa"] < before
        outputs = ["?" if a is None else a for a in refused]
        if letter == "F":
            assert as_published.score_choices(golds, outputs, kappa="linear")["kappa"] > before


def test_refusing_all_is_worse_than_one_letter_throughout_which_is_chance():
    golds = list("ABCD" * 25)
    assert choice_summary(golds, ["B"] * 100, letters="ABCD", kappa="unweighted")["kappa"] == pytest.approx(0)
    assert choice_summary(golds, [None] * 100, letters="ABCD", kappa="unweighted") == {
        "accuracy": 0.0, "refused": 100, "kappa": pytest.approx(-1 / 3),
    }  # fmt: skip
    assert choice_summary(golds, [None] * 100, letters="ABCD", kappa="linear")["kappa"] == -1
    assert math.isnan(choice_summary("AA", "AA", letters="AB", kappa="linear")["kappa"])
    assert choice_summary("AA", ["A", None], letters="AB", kappa="linear")["kappa"] == -1


@settings(deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=4), KAPPA)
def test_kappa_of_many_tables_at_once_is_that_of_each(samples, kappa):
    tables = np.stack([choice_table(*zip(*rows, strict=True), letters=LETTERS) for rows in samples])
    singles = np.array([kappa_of(rows, kappa) for rows in samples])
    assert kappa_of_table(tables, kappa=kappa) == pytest.approx(singles, abs=1e-12, nan_ok=True)


def test_choices_that_have_no_score_are_refused():
    with pytest.raises(ValueError, match="'G' is none of the letters"):
        choice_summary(["A"], ["G"], letters=LETTERS, kappa="linear")
    with pytest.raises(ValueError, match="kappa over 1 letter"):
        choice_summary(["A"], ["A"], letters="A", kappa="linear")
    with pytest.raises(ValueError, match="at least one"):
        choice_scores([], [])
    with pytest.raises(ValueError, match="do not match"):
        choice_scores(["A"], [])


def run_in_common(one, other):
    """Length of the longest run of characters in both: every substring tried."""
    runs = (one[a:b] for a, b in itertools.combinations(range(len(one) + 1), 2))
    return max((len(run) for run in runs if run in other), default=0)


def stated_pairing(gold, given, minimum):
    """The largest pairing, every assignment tried."""
    few, many = sorted((sorted(set(gold)), sorted(set(given))), key=len)
    if not few:
        return 0
    fits = {
        (a, b): run_in_common(a, b) > 0 and run_in_common(a, b) >= minimum * max(len(a), len(b)) - 1e-9
        for a in few for b in many
    }  # fmt: skip
    return max(
        sum(fits[pair] for pair in zip(few, chosen, strict=True)) for chosen in itertools.permutations(many, len(few))
    )


SPAN = st.text(alphabet="肺炎右下発", min_size=1, max_size=5)
SPANS = st.lists(SPAN, min_size=1, max_size=5)


@settings(max_examples=200, deadline=None)
@given(SPANS, st.lists(SPAN, max_size=5), st.sampled_from([0.3, 0.5, 2 / 3, 0.8, 1.0]))
def test_overlap_pairs_one_to_one_and_as_many_as_can_be(gold, given_spans, minimum):
    (score,) = span_scores([gold], [given_spans], minimum_overlap=minimum)
    assert score.overlap_hits == stated_pairing(gold, given_spans, minimum)
    assert score.exact_hits == len(set(gold) & set(given_spans))
    assert (score.gold, score.given) == (len(set(gold)), len(set(given_spans)))
    assert score.exact_hits <= score.overlap_hits <= min(score.gold, score.given)
    if minimum == 1.0:
        assert score.overlap_hits == score.exact_hits


@settings(deadline=None)
@given(SPAN, SPAN, st.floats(0.01, 1.0))
def test_overlap_does_not_depend_on_the_order_of_two_spans(one, other, minimum):
    assert overlaps(one, other, minimum_overlap=minimum) == overlaps(other, one, minimum_overlap=minimum)
    assert overlaps(one, one, minimum_overlap=minimum)


@settings(deadline=None)
@given(st.lists(st.tuples(SPANS, st.one_of(st.none(), st.lists(SPAN, max_size=4))), min_size=1, max_size=6), st.data())
def test_macro_f1_is_the_mean_of_f1_and_no_refusal_raises_it(rows, data):
    golds, answers = map(list, zip(*rows, strict=True))
    summary = span_summary(span_scores(golds, answers))
    exact = [2 * len({*a} & {*b}) / (len({*a}) + len({*b})) for a, b in ((g, a or []) for g, a in rows)]
    assert summary["exact_f1"] == pytest.approx(sum(exact) / len(rows))
    hits = sum(len({*gold} & {*(answer or [])}) for gold, answer in rows)
    named = sum(len({*gold}) + len({*(answer or [])}) for gold, answer in rows)
    assert summary["exact_f1_micro"] == pytest.approx(2 * hits / named)
    assert summary["refused"] == sum(answer is None for answer in answers)
    answers[data.draw(st.integers(0, len(rows) - 1))] = None
    after = span_summary(span_scores(golds, answers))
    assert all(after[name] <= summary[name] + 1e-12 for name in ("exact_f1", "overlap_f1"))
    assert all(0 <= summary[name] <= 1 for name in summary if name != "refused")


def test_one_span_counts_for_one_right_span():
    whole = "右肺炎と発熱と咳嗽"
    (score,) = span_scores([["右肺炎", "発熱", "咳嗽"]], [[whole]])
    assert score == SpanScore(gold=3, given=1, exact_hits=0, overlap_hits=0, refused=False)
    (score,) = span_scores([["右肺炎"]], [["肺炎", "肺炎像"]])
    assert (score.overlap_hits, score.overlap) == (1, pytest.approx(2 / 3))
    (score,) = span_scores([["肺炎像", "右肺炎"]], [["肺炎像か", "肺炎"]])
    assert score.overlap_hits == 2


def test_gold_and_answer_are_cleaned_alike():
    (score,) = span_scores([["５ｍｇ／日", "２０㎎／日（１㎎／㎏）"]], [["5mg/日", "20mg/日(1mg/kg)"]])
    assert (score.exact, score.overlap) == (1.0, 1.0)
    assert span_scores([["#頭痛"]], [["#頭痛"]])[0].exact == 1.0  # cleaning would leave nothing of it
    (raw,) = span_scores([["５ｍｇ"]], [["5mg"]], normalize=str)
    assert raw.exact == 0


@settings(max_examples=400, deadline=None)
@given(
    st.text(
        alphabet=st.characters(min_codepoint=0x3040, max_codepoint=0x9FFF) | st.sampled_from("ーあっッぁ々ゝ80aZN゜ａ ")
    )
)
def test_the_shortcut_past_cleaning_changes_nothing(text):
    assert normalized_span(text) == clean_span(text) or not clean_span(text)


def test_spans_that_have_no_score_are_refused():
    with pytest.raises(ValueError, match="item 1 has no gold span"):
        span_scores([["発熱"], [" "]], [[], []])
    for minimum in (0, 1.5, math.nan):
        with pytest.raises(ValueError, match="minimum_overlap"):
            span_scores([["発熱"]], [[]], minimum_overlap=minimum)
    with pytest.raises(ValueError, match="at least one"):
        span_summary([])


def test_the_golden_answers_are_read_and_scored_as_before():
    rows, figures = GOLDEN["choices"]["rows"], GOLDEN["choices"]["corrected"]
    answers = [read_choice(row["output"], "ABCD") for row in rows]
    assert answers == [row["corrected_letter"] for row in rows]
    for kappa in ("unweighted", "linear"):
        expected = {"accuracy": figures["accuracy"], "refused": figures["refused"], "kappa": figures[kappa]}
        summary = choice_summary([row["gold"] for row in rows], answers, letters="ABCD", kappa=kappa)
        assert summary == pytest.approx(expected, abs=1e-12)
    rows = GOLDEN["spans"]["rows"]
    lists = [read_spans_answer(row["output"]) for row in rows]
    assert lists == [row["corrected_list"] for row in rows]
    summary = span_summary(span_scores([row["gold"] for row in rows], lists))
    assert summary == pytest.approx(GOLDEN["spans"]["corrected"], abs=1e-12)


@pytest.fixture(scope="module")
def gold_lists():
    folder = REPOSITORY.parent / "shared" / "data" / "jmed_llm"
    if not folder.is_dir():
        pytest.skip("needs the shared data beside the repository")
    tasks = ("mrner_disease", "mrner_medicine", "nrner")
    return {task: examples_of(folder, split="paper", task=task) for task in tasks}


def test_on_the_real_gold_lists_the_faults_are_gone(gold_lists):
    """Beside the published 1.71, 1.29, 1.30; 0.00; 0.03 for the same made-up predictions (see test_as_published)."""
    for (task, examples), exact in zip(gold_lists.items(), (0.29, 0.71, 0.70), strict=True):
        golds = [example.answer for example in examples]
        one = span_summary(span_scores(golds, [gold[:1] for gold in golds]))
        assert one["exact_f1"] == pytest.approx(exact, abs=0.0051)
        assert one["exact_f1"] <= one["overlap_f1"] < one["exact_f1"] + 0.05
        full = span_summary(span_scores(golds, golds))
        assert {full[name] for name in full if name != "refused"} == {1.0}
        passages = span_summary(span_scores(golds, [[example.passage] for example in examples]))
        assert passages["overlap_f1"] < 0.05, task
        shortened = [[span[:-1] or span for span in dict.fromkeys(gold)] for gold in golds]
        assert span_summary(span_scores(golds, shortened))["overlap_f1"] > 0.95


@pytest.mark.slow
def test_a_hundred_thousand_saved_answers_are_scored_in_twenty_seconds():
    """Half choices in three dresses, half lists of five spans none of which repeats; both scorers, one core."""
    count = 50_000
    golds = ["ABCDEF"[number % 6] for number in range(count)]
    dresses = ("{}", "答えは{}です。", "CTで腫瘤を認めるため {}")
    outputs = [dresses[number % 3].format("ABCDEF"[number % 5]) for number in range(count)]
    spans = [[f"第{number}群の{n}mg" if n % 2 else f"発熱{number}日" for n in range(5)] for number in range(count)]
    lists = [json.dumps(row, ensure_ascii=False) for row in spans]
    start = time.process_time()
    as_published.score_choices(golds, outputs, kappa="linear")
    choice_summary(golds, [read_choice(output, LETTERS) for output in outputs], letters=LETTERS, kappa="linear")
    as_published.score_spans(spans, lists)
    span_summary(span_scores(spans, [read_spans_answer(output) for output in lists]))
    assert time.process_time() - start < 20


@pytest.mark.parametrize("task", ["crade", "rrtnm", "smdis", "jcsts", "jmmlu_med"])
def test_no_real_option_or_question_is_read_as_another_letter(task):
    """Outputs "letter. text" of every option in the test sets name their letter; bare texts never another one."""
    path = REPOSITORY.parent / "shared" / "data" / "jmed_llm" / "test" / f"{task}.csv"
    if not path.is_file():
        pytest.skip("needs the shared data beside the repository")
    with path.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    for row in rows:
        options = {key[-1]: text for key, text in row.items() if key.startswith("option") and text}
        for letter, text in options.items():
            for form in ("{0}. {1}", "答え: {0}. {1}", "{1}\n答えは{0}です。", "回答：{0}（{1}）"):
                assert read_choice(form.format(letter, text), options) == letter, form.format(letter, text)
            assert read_choice(text, options) is None, text
