"""The published scorer of JMED-LLM, faults included, against its rules stated anew, the metrics' own packages, gold."""

import ast
import json
import math
import string
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ncvc.evaluation.as_published import (
    UNREADABLE,
    kappa_of_table,
    letter_of,
    list_of,
    score_choices,
    score_spans,
    span_row_scores,
    stops_the_evaluator,
)
from ncvc.evaluation.jmed_llm import test_examples as examples_of
from ncvc.evaluation.spans import LONGEST_LIST

GOLDEN = json.loads((Path(__file__).parent / "golden" / "jmed_llm.json").read_text(encoding="utf-8"))
OUTPUTS = st.text(alphabet=st.sampled_from(list("ABCDEFGa Ａ答え:。")), max_size=8)
LETTERS = st.sampled_from("ABCDEF")
ROWS = st.lists(st.tuples(LETTERS, OUTPUTS), min_size=1, max_size=30)


def stated_letter(output):
    """The rule in other words: of the places where the six letters first stand, the foremost."""
    first = {output.find(letter): letter for letter in string.ascii_uppercase[:6] if letter in output}
    return first[min(first)] if first else "None"


def stated_kappa(golds, labels, *, linear):
    """Cohen's kappa from its definition: mean disagreement over the pairs, over that of all pairings."""
    scale = sorted(set(golds) | set(labels))

    def apart(one, other):
        return abs(scale.index(one) - scale.index(other)) if linear else float(one != other)

    observed = sum(map(apart, golds, labels)) / len(golds)
    expected = sum(apart(one, other) for one in golds for other in labels) / len(golds) ** 2
    return 1 - observed / expected if expected else math.nan


def stated_f1(gold, given, *, partial):
    """The rule in other words: every right item counts once any given item is right."""
    right = [item for item in gold if item in given]
    found = len(gold) if partial and right else len(right)
    if not found:
        return 0.0
    recall, precision = found / len(gold), found / len(given)
    return 2 / (1 / recall + 1 / precision)


@settings(deadline=None)
@given(OUTPUTS)
def test_the_answer_is_the_first_of_the_six_letters(output):
    assert letter_of(output) == stated_letter(output)


@settings(deadline=None)
@given(ROWS, st.booleans())
def test_choices_score_as_the_rule_says(rows, linear):
    golds, outputs = zip(*rows, strict=True)
    scores = score_choices(golds, outputs, kappa="linear" if linear else "unweighted")
    labels = [stated_letter(output) for output in outputs]
    assert scores["accuracy"] == sum(map(str.__eq__, golds, labels)) / len(golds)
    assert scores["kappa"] == pytest.approx(stated_kappa(golds, labels, linear=linear), abs=1e-9, nan_ok=True)


@settings(max_examples=40, deadline=None)  # the packages take seconds to import
@given(ROWS, st.sampled_from(["unweighted", "linear"]))
def test_kappa_is_that_of_scikit_learn_and_of_torchmetrics(rows, kappa):
    metrics = pytest.importorskip("sklearn.metrics")
    import torch
    from torchmetrics.functional.classification import multiclass_cohen_kappa

    golds, outputs = zip(*rows, strict=True)
    labels = [letter_of(output) for output in outputs]
    scale = sorted({*golds, *labels})
    assume(len(scale) > 1)
    ours = score_choices(golds, outputs, kappa=kappa)["kappa"]
    weights = "linear" if kappa == "linear" else None
    assert ours == pytest.approx(metrics.cohen_kappa_score(golds, labels, weights=weights), abs=1e-9)
    numbers = [torch.tensor([scale.index(label) for label in row]) for row in (labels, golds)]
    torchs = multiclass_cohen_kappa(*numbers, num_classes=len(scale), weights=weights)
    assert ours == pytest.approx(float(torchs), abs=1e-5)


@settings(deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=4), st.sampled_from(["unweighted", "linear"]))
def test_kappa_of_many_tables_at_once_is_that_of_each(samples, kappa):
    labels = [*"ABCDEF", UNREADABLE]
    tables = np.zeros((len(samples), 7, 7))
    for table, rows in zip(tables, samples, strict=True):
        for gold, output in rows:
            table[labels.index(gold), labels.index(letter_of(output))] += 1
    singles = [score_choices(*zip(*rows, strict=True), kappa=kappa)["kappa"] for rows in samples]
    assert kappa_of_table(tables, kappa=kappa) == pytest.approx(np.array(singles), abs=1e-9, nan_ok=True)


SPANS = st.lists(st.sampled_from("あいうえお"), min_size=1, max_size=5)


@settings(deadline=None)
@given(st.lists(st.tuples(SPANS, st.lists(st.sampled_from("あいうえおか"), max_size=6)), min_size=1, max_size=9))
def test_spans_score_as_the_rule_says(rows):
    golds, lists = zip(*rows, strict=True)
    scores = score_spans(golds, [repr(items) for items in lists])
    for name, partial in (("exact_f1", False), ("partial_f1", True)):
        expected = [stated_f1(set(a), set(b), partial=partial) for a, b in zip(golds, lists, strict=True)]
        assert scores[name] == pytest.approx(sum(expected) / len(rows), abs=1e-12)


def test_one_safe_item_scores_above_finding_all():
    gold = [["発熱", "咳嗽", "頭痛", "嘔気"]]
    assert score_spans(gold, ["['発熱']"]) == pytest.approx({"exact_f1": 0.4, "partial_f1": 1.6})
    assert score_spans(gold, ["['発熱', 'a', 'b', 'c']"]) == pytest.approx({"exact_f1": 0.25, "partial_f1": 1.0})
    assert score_spans([["右肺炎"]], ["['肺炎']"]) == {"exact_f1": 0.0, "partial_f1": 0.0}


def test_under_linear_weights_an_unreadable_answer_costs_by_its_gold_letter():
    golds, outputs = list("ABCDEF" * 10), list("ABCDEF" * 5 + "BCDEFA" * 5)
    before = score_choices(golds, outputs, kappa="linear")["kappa"]

    def without(letter):
        changed = [
            "?" if gold == letter and gold != output else output for gold, output in zip(golds, outputs, strict=True)
        ]
        return score_choices(golds, changed, kappa="linear")["kappa"]

    assert without("F") > before > without("A")  # refusing to answer raises the score


class Pasted:
    """What ``eval`` would have done to an output, for outputs that are harmless."""

    @staticmethod
    def list_of(output):
        try:
            value = eval(output, {"__builtins__": {}})  # literals made by the test itself
        except Exception:
            return []
        return value if isinstance(value, list) else []


LITERALS = st.recursive(
    st.one_of(
        st.text(alphabet="あa'\"\\\n", max_size=4), st.integers(), st.none(), st.booleans(), st.binary(max_size=2)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.tuples(inner), st.dictionaries(st.text(max_size=2), inner)),
    max_leaves=6,
)
DRESS = st.sampled_from(
    ["{}", " {}", "{}。", "回答: {}", "({})", "{} # おわり", "```{}```", "[{}", "{}]", "\n{}\n", "{},"]
)


@settings(deadline=None)
@given(LITERALS, DRESS)
def test_literals_are_read_as_eval_reads_them(value, dress):
    output = dress.format(repr(value))
    assert list_of(output) == Pasted.list_of(output)
    assert all(isinstance(item, str) for item in list_of(repr([str(value)])))


@pytest.mark.parametrize(
    "output",
    [
        "__import__('os').system('touch canary')", "[__import__('os').environ]", "globals().update(eval=None)",
        "[str('発熱')]", "['発熱'] * 2", "[f'発熱']", "[x for x in 'ab']", "[text]", "exit()", "", "[", "['発",
        "'発熱'", "('発熱',)", "{'発熱'}", "['\0']", "['\ud800']", "[" * 5000, "(" * 5000, "[" + "-" * 50_000 + "1]",
        "[" + "9" * 5000 + "]",
    ],
)  # fmt: skip
def test_code_and_what_is_no_list_count_as_the_empty_list(output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert list_of(output) == [] and not stops_the_evaluator(output)
    assert not list(tmp_path.iterdir())
    assert score_spans([["発熱"]], [output]) == {"exact_f1": 0.0, "partial_f1": 0.0}


def test_a_list_beyond_the_length_that_is_read_counts_as_the_empty_list():
    items = ["発熱"] * (LONGEST_LIST // 6)
    assert list_of(repr(items)) == items
    assert list_of(repr(items * 2)) == []


@pytest.mark.parametrize("output", ["[['発熱']]", "[{'a': 1}]", "['発熱', ['咳嗽']]", "[{1, 2}]"])
def test_a_list_that_stops_the_published_evaluator_is_told_and_counts_as_empty(output):
    with pytest.raises(TypeError):
        set(ast.literal_eval(output))
    assert stops_the_evaluator(output)
    assert score_spans([["発熱"]], [output]) == {"exact_f1": 0.0, "partial_f1": 0.0}


def test_what_has_no_score_is_refused():
    with pytest.raises(ValueError, match="row 1 has no gold span"):
        score_spans([["発熱"], []], ["[]", "[]"])
    with pytest.raises(ValueError, match="at least one"):
        score_choices([], [], kappa=None)
    with pytest.raises(ValueError, match="2 right answers do not match 1"):
        span_row_scores([["a"], ["b"]], ["[]"])
    assert math.isnan(score_choices("AA", ["A", "A"], kappa="unweighted")["kappa"])
    assert score_choices("AB", ["A", "A"], kappa=None) == {"accuracy": 0.5}


def test_the_golden_answers_score_as_the_published_code_scored_them():
    """The golden figures come from the published ``src/utils.py``, run unchanged, and scikit-learn."""
    rows, figures = GOLDEN["choices"]["rows"], GOLDEN["choices"]["as_published"]
    assert [letter_of(row["output"]) for row in rows] == [row["published_letter"] for row in rows]
    golds, outputs = [row["gold"] for row in rows], [row["output"] for row in rows]
    for kappa in ("unweighted", "linear"):
        expected = {"accuracy": figures["accuracy"], "kappa": figures[kappa]}
        assert score_choices(golds, outputs, kappa=kappa) == pytest.approx(expected, abs=1e-12)
    rows = GOLDEN["spans"]["rows"]
    scores = score_spans([row["gold"] for row in rows], [row["output"] for row in rows])
    assert scores == pytest.approx(GOLDEN["spans"]["as_published"], abs=1e-12)


@pytest.fixture(scope="module")
def gold_lists():
    folder = REPOSITORY.parent / "shared" / "data" / "jmed_llm"
    if not folder.is_dir():
        pytest.skip("needs the shared data beside the repository")
    tasks = ("mrner_disease", "mrner_medicine", "nrner")
    return {task: [one.answer for one in examples_of(folder, split="paper", task=task)] for task in tasks}


MADE_UP = {  # predictions from a gold list: (exact, "partial") of mrner_disease, mrner_medicine, nrner, as measured
    "all": (lambda gold: gold, [(1.00, 1.00), (1.00, 1.00), (1.00, 1.00)]),
    "one": (lambda gold: gold[:1], [(0.29, 1.71), (0.71, 1.29), (0.70, 1.30)]),
    "one and nine wrong": (lambda gold: gold[:1] + [f"誤{n}" for n in range(9)], [(0.12, 0.83)]),
    "first two": (lambda gold: gold[:2], [(0.48, 1.52)]),
    "first three": (lambda gold: gold[:3], [(0.61, 1.39)]),
    "half": (lambda gold: gold[: max(1, len(gold) // 2)], [(0.65, 1.35), (0.78, 1.22), (0.78, 1.22)]),
    "without the last character": (lambda gold: [span[:-1] for span in gold], [(0.00, 0.03)]),
}


@pytest.mark.parametrize("name", MADE_UP)
def test_made_up_predictions_on_the_real_gold_lists_score_what_was_measured(name, gold_lists):
    change, expected = MADE_UP[name]
    for golds, (exact, partial) in zip(gold_lists.values(), expected, strict=False):
        distinct = [list(dict.fromkeys(gold)) for gold in golds]
        scores = score_spans(golds, [repr(change(gold)) for gold in distinct])
        assert (scores["exact_f1"], scores["partial_f1"]) == pytest.approx((exact, partial), abs=0.0051)
