"""What scores are held against: guessing and constants counted by hand, trained baselines on made and real rows."""

import itertools
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from ncvc.chat import Message
from ncvc.evaluation import jmed_llm
from ncvc.evaluation import trained_baselines as trained
from ncvc.evaluation.as_published import score_choices, score_spans
from ncvc.evaluation.baselines import (
    constant_answer,
    guessed_spans,
    guessing,
    guessing_probability,
    longest_options,
    trained_baselines,
)
from ncvc.evaluation.item import Item, Task
from ncvc.evaluation.jmed_llm import Example, training_conversations
from ncvc.evaluation.spans import read_spans
from ncvc.evaluation.tasks import load_tasks

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def real_data():
    if not (DATA / "jmed_llm").is_dir():
        pytest.skip("the shared data are not here")
    return DATA


def item(number=0, *, gold="a", letters="abcde", kind="choice", wanted=1, **more):
    return Item(
        id=more.pop("id", f"q{number}"),
        task="made",
        kind=kind,
        messages=(Message("user", more.pop("turn", f"問{number}")),),
        gold=tuple(gold),
        letters=tuple(letters),
        options=more.pop("options", tuple(f"選択肢{letter}" for letter in letters)),
        wanted=wanted,
        **more,
    )


def task(items, *, family="own", kappa=None):
    return Task(name="made", family=family, items=tuple(items), kappa=kappa)


# --- guessing
def test_guessing_is_a_share_of_all_answers_with_the_right_number_of_letters():
    letters = [item(kind="letters", gold="bd", wanted=2), item(kind="letters", gold="abc", wanted=3, letters="abcdef")]
    assert [guessing_probability(each, family="igakuqa") for each in letters] == [1 / 10, 1 / 20]
    either = item(gold="a", alternatives=(("d",),))
    assert guessing_probability(either, family="igakuqa") == 2 / 5
    assert guessing_probability(item(id="116A71"), family="igakuqa") == 1.0
    assert guessing_probability(item(id="116A71"), family="own") == 1 / 5
    assert guessing_probability(item(kind="number", gold=["12"], letters="", options=()), family="igakuqa") == 0.0
    with pytest.raises(ValueError, match="spans"):
        guessing_probability(item(kind="spans", gold=["熱"], letters="", options=(), passage="熱"), family="own")


def test_guessings_range_is_that_of_every_possible_outcome_weighed_by_its_probability():
    items = [item(n, letters="abcde"[: 2 + n], points=worth) for n, worth in enumerate([1, 3, 0, 1])]
    chances = [1 / 2, 1 / 3, 1 / 4, 1 / 5]
    outcomes = {}
    for hits in itertools.product([0, 1], repeat=4):
        weight = np.prod([c if hit else 1 - c for c, hit in zip(chances, hits, strict=True)])
        points = sum(hit * each.points for hit, each in zip(hits, items, strict=True))
        outcomes[points] = outcomes.get(points, 0) + weight
    below = 0.0
    low = high = None
    for points in sorted(outcomes):
        below += outcomes[points]
        low = points if low is None and below >= 0.025 else low
        high = points if high is None and below >= 0.975 else high
    found = guessing(task(items), items)
    assert found.points == pytest.approx(sum(points * weight for points, weight in outcomes.items()))
    assert found.points_range == (low, high)
    assert found.total == 5
    assert found.accuracy == pytest.approx(np.mean(chances))


def test_the_range_of_very_many_items_is_the_normal_one_and_agrees_with_the_exact_one():
    exact = guessing(task([item()]), [item(n) for n in range(10_000)])
    normal = guessing(task([item()]), [item(n) for n in range(10_001)])
    assert normal.points_range == pytest.approx(exact.points_range, abs=2)


@pytest.mark.parametrize(("year", "points"), [("2018", 93.6), ("2019", 92.9), ("2020", 93.0)])
def test_guessing_igakuqa_scores_the_known_points(real_data, year, points):
    (examination,) = load_tasks([f"igakuqa_{year}"], directory=real_data)
    found = guessing(examination, examination.items)
    assert found.points == pytest.approx(points, abs=0.05)
    assert 0.187 <= found.points / found.total <= 0.188


def test_guessed_spans_have_the_right_number_and_lengths_and_depend_on_the_seed_alone():
    items = [
        item(
            n,
            kind="spans",
            gold=["発熱", "右肺炎"],
            letters="",
            options=(),
            passage="".join(chr(0x4E00 + i) for i in range(80)),
        )
        for n in range(20)
    ]
    first = guessed_spans(items, seed=1)
    assert first == guessed_spans(items, seed=1) != guessed_spans(items, seed=2)
    assert {tuple(map(len, read_spans(answer))) for answer in first} == {(2, 3)}
    assert all(span in items[0].passage for answer in first for span in read_spans(answer))


# --- constants
def test_the_majority_is_the_training_rows_and_without_any_the_best_constant_of_the_test_in_hindsight():
    rows = [Example((), "made", "X", n, "d", letter) for n, letter in enumerate("BBCA")]
    items = [
        item(0, gold="a", points=3),
        item(1, gold="c"),
        item(2, gold="c"),
        item(3, kind="letters", gold="de", wanted=2),
    ]
    assert constant_answer(items, rows) == ("majority", ("B", "B", "B", ""))
    assert constant_answer(items, []) == ("best constant, in hindsight", ("a", "a", "a", "d,e"))
    spans = [Example((), "made", "X", 0, "d", ["熱", "咳", "熱"]), Example((), "made", "X", 1, "d", ["熱", "痛"])]
    asked = [item(kind="spans", gold=["痛"], letters="", options=(), passage="痛")]
    assert read_spans(constant_answer(asked, spans)[1][0]) == ["熱"]


def test_the_longest_options_are_as_many_as_are_asked_for():
    options = ("一", "一二三", "一二", "一二三", "")
    assert longest_options([item(options=options), item(1, options=options, wanted=2, kind="letters", gold="ab")]) == (
        "b",
        "b,d",
    )
    assert longest_options([item(kind="spans", gold=["痛"], letters="", options=(), passage="痛")]) is None
    assert longest_options([item(kind="number", gold=["1"], letters="", options=())]) is None


# --- trained
def turn(passage, wording="以下の記録において、症状は？", options=""):
    return f"指示。\n{wording}\n「{passage}」{options}"


def test_n_grams_learn_what_a_fixed_wording_asks_and_each_wording_for_itself():
    draw = random.Random(0)
    train = []
    for number in range(80):
        word = draw.choice(["発熱が続く", "咳嗽が続く"])
        passage = f"第{number}例は{word}という。"
        train.append((turn(passage, "熱は？", "\nA. はい\nB. いいえ"), "A" if "熱" in passage else "B"))
        train.append((turn(passage, "咳は？", "\nA. はい\nB. いいえ"), "B" if "熱" in passage else "A"))
    asked = [
        turn(f"別の例は{word}。", wording) for word in ("発熱が続く", "咳嗽が続く") for wording in ("熱は？", "咳は？")
    ]
    assert trained.ngram_baseline(train, asked) == ["A", "B", "B", "A"]
    assert trained.ngram_baseline(train, asked) == trained.ngram_baseline(train, asked)


def test_training_rows_of_one_class_or_without_a_common_gram_are_answered_all_the_same():
    assert trained.ngram_baseline([(turn("甲"), "B")] * 3, [turn("乙")] * 2) == ["B", "B"]
    assert set(trained.ngram_baseline([("い", "A"), ("ろ", "B"), ("は", "C")], ["に", ""])) <= {"A", "B", "C"}
    with pytest.raises(ValueError, match="needs training rows"):
        trained.ngram_baseline([], [turn("乙")])


def test_sentence_overlap_tells_equal_pairs_from_different_ones():
    words = ["発熱", "咳嗽", "疼痛", "浮腫", "頭痛", "倦怠感", "安静", "輸液", "手術"]
    draw = random.Random(1)
    train = []
    for _ in range(60):
        first = "、".join(draw.sample(words, 5))
        train.append((f"指示。\n類似度は？\nS1: {first}\nS2: {first}。\nA. 同じ\nB. 違う", "A"))
        train.append((f"指示。\n類似度は？\nS1: {first}\nS2: 転院した\nA. 同じ\nB. 違う", "B"))
    asked = [
        "指示。\n類似度は？\nS1: 腫瘤を認めた\nS2: 腫瘤を認めた。",
        "指示。\n類似度は？\nS1: 腫瘤を認めた\nS2: 経過は良好",
    ]
    assert trained.overlap_baseline(train, asked) == ["A", "B"]
    assert trained.is_pair(asked[0])
    assert not trained.is_pair(turn("甲"))


def test_the_dictionary_finds_the_longest_trained_spans_of_the_same_question_and_trusts_none_that_is_rarely_right():
    other = "以下の報告において、薬品名は？"
    train = [(turn("右肺炎と肺炎と発熱"), ["右肺炎", "肺炎", "発熱"]), (turn("輸液を開始", other), ["輸液"])]
    train += [(turn(f"発熱なし{n}、の"), ["の"] if n == 0 else []) for n in range(10)]
    found = trained.dictionary_baseline(
        train,
        [
            turn("輸液中に右肺炎、肺炎、右肺炎の発熱"),
            turn("輸液", "以下の記録において、薬品名は？"),
            turn("肺炎", "別の、問？"),
        ],
    )
    assert [read_spans(answer) for answer in found] == [["右肺炎", "肺炎"], ["輸液"], []]


def test_trained_answers_are_kept_by_a_hash_of_all_that_decides_them_and_a_damaged_file_is_made_anew(
    tmp_path, monkeypatch
):
    rows = [Example((Message("user", turn(f"例{n}の発熱")),), "made", "X", n, "d", ["発熱"]) for n in range(3)]
    asked = task([item(kind="spans", gold=["発熱"], letters="", options=(), passage="発熱", turn=turn("発熱した"))])
    first = trained_baselines(asked, rows, home=tmp_path)
    assert {name: list(map(read_spans, answers)) for name, answers in first.items()} == {"dictionary": [["発熱"]]}
    (path,) = (tmp_path / "baselines").iterdir()
    kept = json.loads(path.read_text(encoding="utf-8"))
    kept["answers"]["dictionary"] = ['["咳"]']
    path.write_text(json.dumps(kept), encoding="utf-8")
    assert trained_baselines(asked, rows, home=tmp_path) == {"dictionary": ('["咳"]',)}
    for damaged in ("{", "[]", '{"answers": {"dictionary": [1]}}', '{"answers": {"dictionary": []}}'):
        path.write_text(damaged, encoding="utf-8")
        assert trained_baselines(asked, rows, home=tmp_path) == first
    assert trained_baselines(asked, rows[:2], home=tmp_path) == first
    assert len(list((tmp_path / "baselines").iterdir())) == 2
    assert trained_baselines(asked, [], home=tmp_path) == {}
    assert trained_baselines(asked, rows, home=None) == first


def test_without_scikit_learn_the_cure_is_named(monkeypatch):
    for name in [name for name in sys.modules if name == "sklearn" or name.startswith("sklearn.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ncvc\[quality\]'"):
        trained.ngram_baseline([(turn("甲"), "A"), (turn("乙"), "B")], [turn("丙")])


# --- on the real rows
def choices(folder, name, *, split, baseline=trained.ngram_baseline):
    rows = training_conversations(folder, split=split, tasks=[name])
    asked = jmed_llm.test_examples(folder, split=split, task=name)
    answers = baseline([(r.messages[0].content, r.answer) for r in rows], [a.messages[0].content for a in asked])
    return score_choices(
        [a.answer for a in asked], answers, kappa={"crade": "linear", "jcsts": "linear"}.get(name, "unweighted")
    )


@pytest.mark.slow
def test_staging_by_n_grams_scores_what_the_reports_model_scores(real_data):
    assert choices(real_data / "jmed_llm", "rrtnm", split="paper")["kappa"] == pytest.approx(0.45, abs=0.06)
    assert choices(real_data / "jmed_llm", "rrtnm", split="document")["kappa"] == pytest.approx(0.33, abs=0.05)


@pytest.mark.slow
def test_a_bag_of_n_grams_scores_high_where_the_split_leaks_and_at_chance_where_it_does_not(real_data):
    folder = real_data / "jmed_llm"
    assert choices(folder, "crade", split="paper") == pytest.approx({"accuracy": 0.75, "kappa": 0.70}, abs=0.03)
    assert choices(folder, "smdis", split="paper") == pytest.approx({"accuracy": 0.96, "kappa": 0.92}, abs=0.03)
    overlap = choices(folder, "jcsts", split="paper", baseline=trained.overlap_baseline)
    assert overlap == pytest.approx({"accuracy": 0.45, "kappa": 0.60}, abs=0.05)
    assert choices(folder, "crade", split="document") == {"accuracy": 0.25, "kappa": 0.0}


@pytest.mark.slow
def test_a_dictionary_of_training_spans_scores_what_the_reports_models_score(real_data):
    folder = real_data / "jmed_llm"
    rows = [row for row in training_conversations(folder, split="paper") if row.passage]
    asked = jmed_llm.test_examples(folder, split="paper", task="mrner_disease")
    answers = trained.dictionary_baseline(
        [(r.messages[0].content, r.answer) for r in rows], [a.messages[0].content for a in asked]
    )
    assert score_spans([a.answer for a in asked], answers)["exact_f1"] == pytest.approx(0.37, abs=0.03)
