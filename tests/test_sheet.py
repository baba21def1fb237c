"""From saved answers to the sheet: scores equal the scorers', every verdict rule is met, "better" only where earned."""

import json
import math
import random
import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jmed_world import write_jmed

from ncvc.chat import Message
from ncvc.corpus.contamination.certificate import merge_certificate
from ncvc.corpus.contamination.winnowing import CertificateSettings, write_fingerprints
from ncvc.evaluation import as_published, corrected
from ncvc.evaluation.answer_reading import read_choice, read_spans_answer
from ncvc.evaluation.answers import Answer
from ncvc.evaluation.igakuqa import igakuqa_scores
from ncvc.evaluation.item import Item, Task
from ncvc.evaluation.leaks import Seen, leak_status
from ncvc.evaluation.measures import measures_of
from ncvc.evaluation.scoring import ScoreSettings, compare_scores, score_answers
from ncvc.evaluation.sheet import read_scores, sheet_text, write_scores
from ncvc.evaluation.statistics import PairedTest
from ncvc.evaluation.tasks import load_tasks
from ncvc.evaluation.verdicts import RULES, Facts, Rival, comparison, rule_of, verdict

PASSAGE = "発熱と咳嗽を主訴に来院し、右下肺野に浸潤影を認めた。"
UNREADABLE = ["", "わかりません", "__import__('os').system('true')", "[[]]", "A" * 3000, '{"a": 1}']


def choice_task(number=40, *, kappa="linear", family="own", letters="ABCDE", groups=None):
    draw = random.Random(number)
    items = [
        Item(
            id=f"q{place}",
            task="made",
            kind="choice",
            messages=(Message("user", f"問{place}"),),
            gold=(draw.choice(letters),),
            letters=tuple(letters),
            options=tuple(f"文{letter}" for letter in letters),
            group="" if groups is None else groups[place],
        )
        for place in range(number)
    ]
    return Task(name="made", family=family, items=tuple(items), kappa=kappa)


def span_task(number=30):
    draw = random.Random(number)
    golds = [
        tuple(draw.sample(["発熱", "咳嗽", "右下肺野", "浸潤影", "肺野"], draw.randint(1, 3))) for _ in range(number)
    ]
    items = [
        Item(
            id=f"s{place}",
            task="spans",
            kind="spans",
            messages=(Message("user", f"{place}{PASSAGE}"),),
            gold=gold,
            passage=PASSAGE,
        )
        for place, gold in enumerate(golds)
    ]
    return Task(name="spans", family="jmed_llm", items=tuple(items))


def answered(task, outputs):
    return {
        (task.name, item.id): Answer(
            task=task.name,
            id=item.id,
            prompt_sha256=item.prompt_sha256,
            answer=output,
            failed="the server did not answer" if output is None else None,
        )
        for item, output in zip(task.items, outputs, strict=True)
    }


def golds(task):
    return [",".join(item.gold) for item in task.items]


def one(task, outputs, **more):
    (record,) = score_answers([task], answered(task, outputs), **more)["tasks"]
    return record


# --- measures are the scorers' scores
@given(st.data(), st.sampled_from(["linear", "unweighted"]))
@settings(max_examples=60, deadline=None)
def test_choices_measure_what_both_scorers_say(data, kappa):
    task = choice_task(12, kappa=kappa)
    outputs = data.draw(st.lists(st.sampled_from([*"ABCDE", "答えはC", *UNREADABLE]), min_size=12, max_size=12))
    right = golds(task)
    found = measures_of(task, task.items, outputs)
    published = as_published.score_choices(right, outputs, kappa=kappa)
    read = [read_choice(output, "ABCDE") for output in outputs]
    mended = corrected.choice_summary(right, read, letters="ABCDE", kappa=kappa)
    assert sum(found.refused) == mended.pop("refused")
    for scorer, scores in (("as_published", published), ("corrected", mended)):
        assert found.scores(scorer).keys() == scores.keys()
        for name, value in scores.items():
            ours = found.by_scorer[scorer][name].value
            assert ours == pytest.approx(value, abs=1e-12, nan_ok=True)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_spans_measure_what_both_scorers_say(data):
    task = span_task(8)
    outputs = data.draw(
        st.lists(
            st.sampled_from(['["発熱"]', "['発熱', '浸潤影', '肺']", "回答: 「右下肺野」「咳嗽」", *UNREADABLE]),
            min_size=8,
            max_size=8,
        )
    )
    right = [item.gold for item in task.items]
    found = measures_of(task, task.items, outputs)
    assert found.scores("as_published") == pytest.approx(as_published.score_spans(right, outputs))
    mended = corrected.span_summary(corrected.span_scores(right, [read_spans_answer(output) for output in outputs]))
    assert sum(found.refused) == mended.pop("refused")
    assert found.scores("corrected") == pytest.approx(mended)


def test_an_examination_measures_its_points_and_its_interval_is_of_points():
    made = choice_task(30, kappa=None, family="igakuqa", letters="abcde")
    task = Task(
        name="made",
        family="igakuqa",
        items=tuple(
            Item(**{**{name: getattr(item, name) for name in item.__dataclass_fields__}, "points": place % 4})
            for place, item in enumerate(made.items)
        ),
    )
    outputs = [gold if place % 3 else f"答え: {gold.upper()}" for place, gold in enumerate(golds(task))]
    outputs[1] = "わかりません"
    record = one(task, outputs)
    expected = igakuqa_scores(task.items, {item.id: output for item, output in zip(task.items, outputs, strict=True)})
    assert {name: record["as_published"][name] for name in expected["as_published"]} == expected["as_published"]
    assert {name: record["corrected"][name] for name in expected["corrected"]} == expected["corrected"]
    assert record["metric"] == "percent"
    low, high = record["interval"]["corrected"]["percent"]
    assert low < record["corrected"]["percent"] <= high <= 100
    assert record["chance"]["percent"] == pytest.approx(20)
    assert record["majority"]["name"] == "best constant, in hindsight"
    assert "longest option" in record["baselines"]
    assert record["interval"]["documents"] is None


# --- answers that failed, are missing, or belong to another prompt
def test_a_failed_answer_is_neither_right_nor_wrong_and_withholds_the_verdict():
    task = choice_task()
    right = golds(task)
    whole = one(task, right)
    part = one(task, [None, None, *right[2:]])
    assert part["corrected"]["accuracy"] == whole["corrected"]["accuracy"] == 1.0
    assert (part["answered"], part["failed"], part["missing"], part["refused"]) == (38, 2, 0, 0)
    assert part["verdict"] == "no verdict: 2 of 40 items have no answer yet"
    scores = score_answers([task], dict(list(answered(task, right).items())[:30]))
    assert (scores["tasks"][0]["missing"], scores["tasks"][0]["answered"]) == (10, 30)
    assert "30/40" in sheet_text(scores)
    assert "10 not asked yet: the scores are of the 30 answered ones" in sheet_text(scores)


def test_without_any_answer_there_is_no_score():
    task = choice_task(3)
    scores = score_answers([task], {})
    assert scores["tasks"][0]["verdict"] == "no score: no item was answered"
    assert scores["tasks"][0]["corrected"] == {}
    assert "no score" in sheet_text(scores)
    assert one(task, [None] * 3)["failed"] == 3


def test_refusals_are_wrong_and_counted():
    task = choice_task()
    outputs = [*["わかりません"] * 10, *golds(task)[10:]]
    record = one(task, outputs)
    assert record["refused"] == 10
    assert record["corrected"]["accuracy"] == 0.75
    assert "25%" in sheet_text(score_answers([task], answered(task, outputs)))


def test_answers_to_another_prompt_are_refused_by_name():
    task, other = choice_task(5), choice_task(5)
    answers = answered(task, golds(task))
    key = ("made", "q3")
    answers[key] = Answer(task="made", id="q3", prompt_sha256="0" * 64, answer="A")
    with pytest.raises(ValueError, match=r"made: 1 of the saved answers are to another prompt .*q3"):
        score_answers([other], answers)
    with pytest.raises(ValueError, match="named twice"):
        score_answers([task, other], {})


def test_scoring_can_be_repeated_and_the_order_of_answers_does_not_matter():
    task = choice_task(groups=[f"d{place // 4}" for place in range(40)])
    draw = random.Random(3)
    outputs = [draw.choice(["A", "B", "答えはC", "わかりません"]) for _ in task.items]
    answers = answered(task, outputs)
    first = score_answers([task], answers)["tasks"]
    again = score_answers([task], dict(reversed(answers.items())))["tasks"]
    assert json.dumps(first) == json.dumps(again)
    assert first[0]["interval"]["documents"]["units"] == 10
    assert (
        score_answers([task], answers, settings=ScoreSettings(seed=1))["tasks"][0]["interval"] != first[0]["interval"]
    )


# --- verdicts
UNREAD = {
    "chance": {"low": 0.1},
    "baseline": {"baselines": (Rival(name="b", value=0.59, p_value=0.4),)},
    "better": {},
}


def facts(**changes):
    base = {
        "items": 100,
        "answered": 100,
        "value": 0.6,
        "low": 0.5,
        "high": 0.7,
        "chance": 0.25,
        "constant": Rival(name="constant answer", value=0.3, p_value=0.001),
        "baselines": (Rival(name="weak", value=0.4, p_value=0.001),),
        "trained_share": 0.0,
    }
    if "unread" in changes:
        changes["unread"] = Facts(**{**base, "items": 30, "answered": 30, **UNREAD[changes["unread"]]})
    return Facts(**{**base, **changes})


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("better", {}),
        ("nothing answered", {"answered": 0}),
        ("incomplete", {"answered": 99}),
        ("undefined", {"value": math.nan}),
        ("below chance", {"value": 0.1, "low": 0.05, "high": 0.2}),
        ("chance", {"low": 0.24}),
        ("chance", {"low": 0.25}),
        ("constant", {"constant": Rival(name="c", value=0.3, p_value=0.06)}),
        ("constant", {"constant": Rival(name="c", value=0.9, p_value=0.001)}),
        ("baseline", {"baselines": (Rival(name="b", value=0.59, p_value=0.4),)}),
        ("baseline", {"baselines": (Rival(name="b", value=0.9, p_value=0.001),)}),
        ("baseline", {"baselines": (Rival(name="b", value=0.1, p_value=math.nan),)}),
        ("memory", {"trained_share": 0.01}),
        ("memory", {"trained_share": 1.0, "at_least": True}),
        ("memory", {"trained_share": 0.5, "unread": "chance"}),
        ("memory", {"trained_share": 0.5, "unread": "baseline"}),
        ("better", {"trained_share": 0.5, "unread": "better"}),
        ("baselines not run", {"trained_share": 0.5, "unread": "better", "not_run": "no scikit-learn"}),
        ("training unknown", {"trained_share": 0.5, "unread": "better", "at_least": True}),
        ("baselines not run", {"not_run": "scikit-learn is missing"}),
        ("training unknown", {"trained_share": None}),
    ],
)
def test_every_rule_is_met_by_the_facts_it_is_for(name, changes):
    assert rule_of(facts(**changes)).name == name


def test_the_parametrized_facts_meet_all_rules():
    (mark,) = test_every_rule_is_met_by_the_facts_it_is_for.pytestmark
    assert {name for name, _ in mark.args[1]} == {rule.name for rule in RULES}


rivals = st.builds(Rival, name=st.just("b"), value=st.floats(-1, 1), p_value=st.floats(0, 1) | st.just(math.nan))


@given(
    st.builds(
        Facts,
        items=st.just(100),
        answered=st.sampled_from([0, 99, 100]),
        value=st.floats(-1, 1) | st.just(math.nan),
        low=st.floats(-1, 1),
        high=st.floats(-1, 1),
        chance=st.floats(-1, 1),
        constant=st.none() | rivals,
        baselines=st.lists(rivals, max_size=3).map(tuple),
        not_run=st.none() | st.just("no scikit-learn"),
        trained_share=st.none() | st.floats(0, 1),
        at_least=st.booleans(),
    )
)
@settings(max_examples=400, deadline=None)
def test_better_is_said_only_where_nothing_else_explains_the_score(made):
    told = verdict(made)
    explained = (
        made.answered < 100
        or math.isnan(made.value)
        or made.low <= made.chance
        or any(r.value >= made.value or not r.p_value < 0.05 for r in (*made.baselines, *filter(None, [made.constant])))
        or made.not_run is not None
        or made.trained_share != 0
        or made.at_least
    )
    assert ("better" in told) <= (not explained)
    if not explained and made.high >= made.chance:
        assert "better" in told


def test_words_name_what_explains_a_score():
    assert verdict(facts(low=0.2)) == "not told apart from chance (0.25)"
    strong = Rival(name="character n-grams", value=0.7, p_value=0.003)
    assert verdict(facts(baselines=(strong,))).startswith("below character n-grams (0.70, p 0.003)")
    assert "at least 40% of the items are about texts it was trained on" in verdict(
        facts(trained_share=0.4, at_least=True)
    )


def test_two_models_are_compared_in_the_same_words():
    test = PairedTest(difference=0.2, p_value=0.01, method="swaps, sampled", units=100, differing=40)
    close = PairedTest(difference=0.2, p_value=0.2, method="swaps, sampled", units=100, differing=40)
    assert (
        comparison("a", "b", test, first_share=0.0, second_share=0.0)
        == "b scores 0.20 above a (p 0.01) and is better on these items"
    )
    for share in (None, 0.5):
        assert "better" not in comparison("a", "b", test, first_share=0.0, second_share=share)
    assert "cannot be told apart" in comparison("a", "b", close, first_share=0.0, second_share=0.0)
    assert "better" not in comparison("a", "b", close, first_share=0.0, second_share=0.0)


def test_a_paired_test_of_two_models_is_over_the_items_that_both_answered():
    task = choice_task(60)
    right = golds(task)
    good, poor = [None, *right[1:]], ["わかりません"] * 60
    found = compare_scores(task, answered(task, poor), answered(task, good), names=("poor", "good"))
    assert (found["items"], found["metric"], found["second"]) == (59, "kappa", 1.0)
    assert found["words"].startswith("good scores")
    assert "not known" in found["words"]
    same = compare_scores(task, answered(task, right), answered(task, right))
    assert same["test"]["p_value"] == 1.0
    with pytest.raises(ValueError, match="answered by both"):
        compare_scores(task, answered(task, [None] * 60), answered(task, right))


def test_a_guesser_is_not_told_apart_from_chance_and_a_knower_is_above_it():
    task = choice_task(100)
    draw = random.Random(5)
    assert one(task, [draw.choice("ABCDE") for _ in range(100)])["verdict"].startswith("not told apart from chance")
    assert one(task, ["C"] * 100)["verdict"].startswith("not told apart from chance")
    known = {"made": Seen(complete=True, why="its record names all that it was trained on")}
    record = one(task, golds(task), seen=known)
    assert record["verdict"].startswith("better than chance")
    assert record["leak"]["status"] == "none"
    assert "not known" in one(task, golds(task))["verdict"]


# --- leaks
def test_an_item_trained_on_is_counted_and_the_others_are_scored_apart():
    task = choice_task(50)
    right = golds(task)
    wrong = ["A" if gold != "A" else "B" for gold in right]
    seen = {"made": Seen(items=frozenset(f"q{n}" for n in range(30)), complete=True, why="its data.json")}
    record = one(task, [*right[:30], *wrong[30:]], seen=seen)
    assert record["leak"]["share"] == 0.6
    assert record["leak"]["status"] == "some"
    assert record["unread"]["items"] == 20
    assert record["unread"]["value"] < 0 < record["corrected"]["kappa"]
    told = sheet_text(score_answers([task], answered(task, [*right[:30], *wrong[30:]]), seen=seen))
    assert "60%" in told
    assert "on the 20 items not known to be trained on" in told


def test_a_certificate_tells_which_items_the_corpus_holds(tmp_path):
    held = "六十八歳の男性が発熱と咳嗽を主訴に来院し、胸部単純写真で右下肺野に浸潤影を認めたため入院となった。"
    other = "術後の経過は良好であり、第五病日から食事を再開し、第十病日に発熱なく自宅へ退院することができた。"
    passages = [held, other, "発熱した"]
    items = [
        Item(id=str(n), task="spans", kind="spans", messages=(Message("user", text),), gold=("発熱",), passage=text)
        for n, text in enumerate(passages)
    ]
    task = Task(name="spans", family="own", items=tuple(items))
    write_fingerprints(
        [f"前置きである。{held}後書きである。"], output=tmp_path / "shard", settings=CertificateSettings()
    )
    merge_certificate([tmp_path / "shard"], directory=tmp_path / "certificate", corpus="c" * 16)
    chosen = ScoreSettings(certificate=tmp_path / "certificate")
    leak = one(task, ['["発熱"]'] * 3, settings=chosen)["leak"]
    assert leak["certificate"] == {"seen": 1, "not seen": 1, "too short to tell": 1, "corpus": "c" * 16}
    assert (leak["status"], leak["trained_on"], leak["at_least"]) == ("some", 1, True)
    assert leak["share"] == pytest.approx(1 / 3)
    found = leak_status(task)
    assert (found.status, found.share) == ("unknown", None)


def test_training_rows_of_the_split_leak_their_documents(tmp_path):
    folder = write_jmed(tmp_path / "jmed_llm")
    (crade,) = load_tasks(["crade"], directory=tmp_path)
    scores = {}
    for split in ("paper", "document"):
        settings_ = ScoreSettings(benchmarks=tmp_path, baselines=False)
        scores[split] = score_answers([crade], answered(crade, golds(crade)), split=split, settings=settings_)
    assert scores["paper"]["tasks"][0]["leak"]["split"] == {
        "split": "paper", "fold": None, "rows": 2, "seen": 2, "share": 1.0
    }  # fmt: skip
    assert scores["document"]["tasks"][0]["leak"]["split"]["seen"] == 0
    assert "tuning on split paper reads the documents of 2 of 2 test rows" in sheet_text(scores["paper"])
    assert folder.is_dir()


def test_baselines_run_on_the_training_rows_and_are_told_when_they_did_not(tmp_path, monkeypatch):
    write_jmed(tmp_path / "jmed_llm")
    tasks = load_tasks(["crade", "nrner", "jcsts"], directory=tmp_path)
    answers = {}
    for task in tasks:
        answers |= answered(task, ['["頭痛"]' if item.kind == "spans" else item.gold[0] for item in task.items])
    told = []
    chosen = ScoreSettings(benchmarks=tmp_path, home=tmp_path / "home")
    scores = score_answers(tasks, answers, settings=chosen, tell=told.append)
    assert [sorted(task["baselines"]) for task in scores["tasks"]] == [
        ["character n-grams"],
        ["dictionary"],
        ["character n-grams", "sentence overlap"],
    ]
    assert len(told) == 3
    score_answers(tasks, answers, settings=chosen, tell=told.append)
    assert len(told) == 3  # kept from before

    for name in [name for name in sys.modules if name == "sklearn" or name.startswith("sklearn.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    first, second = (each for each in load_tasks(["smdis", "rrtnm"], directory=tmp_path))
    rows = answered(first, golds(first)) | answered(second, golds(second))
    records = score_answers([first, second], rows, settings=ScoreSettings(benchmarks=tmp_path))["tasks"]
    assert [record["baselines"] for record in records] == [{}, {}]
    facts_ = facts(not_run="trained baselines need scikit-learn")
    assert verdict(facts_) == "above chance; no verdict on baselines: trained baselines need scikit-learn"


# --- the file and the table
def test_scores_are_read_as_they_were_written_and_foreign_files_are_refused(tmp_path):
    task = choice_task(10)
    scores = score_answers(
        [task], answered(task, golds(task)), model={"name": "模型"}, command="python -m ncvc.evaluate"
    )
    write_scores(tmp_path / "scores.json", scores)
    assert read_scores(tmp_path) == read_scores(tmp_path / "scores.json") == scores
    for text, told in (
        ("{", "no file of scores"),
        ("[]", "no file of scores"),
        ('{"tasks": [], "format": 9}', "format 9"),
    ):
        (tmp_path / "scores.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=told):
            read_scores(tmp_path)
    with pytest.raises(FileNotFoundError, match="there are no scores"):
        read_scores(tmp_path / "nothing")


def test_scores_hold_nothing_that_json_has_not():
    task = choice_task(4, letters="AB")
    same = Task(
        name="made",
        family="own",
        items=tuple(i for i in task.items if i.gold == task.items[0].gold),
        kappa="unweighted",
    )
    record = one(same, [same.items[0].gold[0]] * len(same.items))
    assert record["corrected"]["kappa"] is None
    assert record["verdict"] == "no verdict: the score is undefined"
    json.dumps(record, allow_nan=False)
    assert " - " in sheet_text({"tasks": [record], "model": {}, "split": "paper", "shots": 0, "method": "generation"})


def test_the_sheet_stands_in_columns_and_says_what_the_record_says():
    task, spans = choice_task(40), span_task()
    answers = answered(task, ["A"] * 40) | answered(spans, [str([item.gold[0]]) for item in spans.items])
    scores = score_answers([task, spans], answers, model={"name": "model-1"}, shots=3, method="log_likelihood")
    text = sheet_text(scores)
    lines = text.split("\n")
    assert lines[0] == "model-1, method log_likelihood, split paper, 3 worked questions"
    rule = next(line for line in lines if line.startswith("---"))
    ends = [match.end() for match in re.finditer("-+", rule)]
    rows = [line for line in lines if re.match(r"(made|spans) ", line)]
    assert len(rows) == 2
    assert all(row[end : end + 1] in ("", " ") for row in rows for end in ends)
    record = scores["tasks"][1]
    assert f"{record['as_published']['partial_f1']:.2f} ({record['as_published']['exact_f1']:.2f})" in text
    assert f"overlap F1 {record['corrected']['overlap_f1']:.2f}" in text
    assert all(f"    {each['verdict']}" in lines for each in scores["tasks"])
    assert "better" not in text
    assert np.isclose(record["as_published"]["exact_f1"], record["corrected"]["exact_f1"])


def test_the_interval_shown_is_over_documents_where_several_items_are_about_one():
    task = choice_task(groups=[f"d{place // 8}" for place in range(40)])
    right = golds(task)
    outputs = [gold if place < 16 else "A" for place, gold in enumerate(right)]
    record = one(task, outputs)
    low, high = record["interval"]["documents"]["corrected"]["kappa"]
    text = sheet_text(score_answers([task], answered(task, outputs)))
    assert f"[{low:.2f}, {high:.2f}]" in text
    assert "over documents where several items are about one" in text
