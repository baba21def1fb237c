"""Checks of synthesized text: every reason on texts that show it, questions however they are laid out."""

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthesis_world import WORDS, exercise, settings, textbook

from ncvc.corpus.synthesis.checks import (
    LETTERS,
    REASONS,
    BadExercise,
    Duplicates,
    Exercise,
    Rejection,
    check,
    mentions,
    parse_exercise,
    repetition,
    tidy,
)

TEXTBOOK, EXERCISE = settings("textbook").check_settings, settings("exercise").check_settings
PASSAGE = textbook("肺炎", WORDS)
QUESTION = exercise("肺炎", WORDS)


def checked(text: str, *, topic: str = "肺炎", finish: str | None = "stop", question: bool = False):
    chosen = EXERCISE if question else TEXTBOOK
    return check(text, finish_reason=finish, topic=topic, exercise=question, settings=chosen)


def reason(text: str, **changes) -> str | None:
    found = checked(text, **changes)
    return found.reason if isinstance(found, Rejection) else None


def test_good_answers_come_through_tidied():
    assert checked(f"```\n{PASSAGE}  \r\n\r\n\r\n\r\n追記である。\n```\n") == PASSAGE + "\n\n追記である。"
    assert checked(QUESTION, question=True).text == QUESTION
    assert checked(PASSAGE, finish=None) == PASSAGE


CHINESE = (
    "肺炎是指终末气道肺泡和肺间质的炎症可由病原微生物理化因素免疫损伤过敏及药物所致"
    "细菌性肺炎是最常见的肺炎也是最常见的感染性疾病之一"
) * 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        ("  \n\u3000 ```\n", "empty"),
        (PASSAGE.replace("疾患", "疾\ufffd"), "broken characters"),
        (PASSAGE.replace("疾患", "疾\x00患"), "broken characters"),
        ("申し訳ありませんが、" + PASSAGE, "refusal"),
        (PASSAGE + "詳しいことはお答えできません。", "refusal"),
        ("私はAIアシスタントとして、" + PASSAGE, "refusal"),
        ("I'm sorry, but I cannot write about 肺炎.", "refusal"),
        (PASSAGE + "<|eot_id|>", "chat marks"),
        (PASSAGE + "\n### 指示: 次の質問に答えよ。", "chat marks"),
        (PASSAGE + " [INST] 続き [/INST]", "chat marks"),
        ("<think>まず定義を考える。</think>" + PASSAGE, "chat marks"),
        ("Pneumonia (肺炎) is an infection of the lung tissue. " * 10, "answered in English"),
        (CHINESE, "not Japanese"),
        ("폐렴은 폐의 염증이다 " * 30 + "肺炎", "not Japanese"),
        ("肺炎は肺の病気である。", "too short"),
        (PASSAGE + "あ" * 6000, "too long"),
        (PASSAGE[:150] + "肺炎の治療は安静である。" * 40, "repetition"),
        (PASSAGE.replace("肺炎", "痛風"), "topic not mentioned"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_every_fault_has_its_reason(text, expected):
    assert reason(text) == expected
    assert expected in REASONS


@pytest.mark.parametrize("finish", ["length", "content_filter", "tool_calls"])
def test_answers_that_did_not_end_by_themselves_are_cut_off(finish):
    assert reason(PASSAGE, finish=finish) == "cut off"


def test_words_of_a_refusal_inside_the_matter_are_no_refusal():
    filling = "".join(f"第{n}の要点は{word}の評価である。" for n, word in enumerate(WORDS))
    assert reason(PASSAGE + filling + "「申し訳ありません」と述べて謝罪する。" + filling) is None


@pytest.mark.parametrize(
    ("topic", "text", "mentioned"),
    [
        ("ＭＥＬＡＳ症候群", "MELAS症候群は", True),
        ("COVID-19", "covid-19では", True),
        ("急性 心筋梗塞", "急性心筋梗塞では", True),
        ("アムロジピン錠５ｍｇ「サワイ」", "アムロジピン錠は", True),
        ("ムコスタ（後発）", "ムコスタは", True),
        ("アムロジピン錠５ｍｇ「サワイ」", "ニフェジピン錠は", False),
        ("２型糖尿病", "1型糖尿病は", False),
        ("Ｂ６", "ビタミンである", False),
        ("1", "何もない", False),
    ],
)
def test_a_topic_is_mentioned_by_its_name_or_its_core(topic, text, mentioned):
    assert mentions(text, topic=topic) is mentioned


def test_repetition_is_the_share_of_windows_seen_before():
    assert repetition("あいうえお") == 0.0
    plain = "".join(chr(0x4E00 + n) for n in range(100))
    assert repetition(plain) == 0.0
    windows = 200 - 12 + 1
    assert repetition(plain + plain) == pytest.approx(1 - (100 + 11) / windows - 0 * windows, abs=0.06)
    assert repetition("肺炎である。" * 200) > 0.99


# --- questions ---

LAYOUTS = {
    "as asked": "問題: {q}\na: {0}\nb: {1}\nc: {2}\nd: {3}\ne: {4}\n答え: b\n解説: {r}",
    "full width": "問題：{q}\nａ．{0}\nｂ．{1}\nｃ．{2}\nｄ．{3}\nｅ．{4}\n答え：ｂ\n解説：{r}",
    "brackets": "【問題】\n{q}\n\n(a) {0}\n(b) {1}\n(c) {2}\n(d) {3}\n(e) {4}\n\n【正解】 (b)\n\n【解説】\n{r}",
    "bold": "**問題1**\n{q}\n**a.** {0}\n**b.** {1}\n**c.** {2}\n**d.** {3}\n**e.** {4}\n**正解：** b\n**解説：** {r}",
    "capitals": "問1. {q}\nA) {0}\nB) {1}\nC) {2}\nD) {3}\nE) {4}\n正解はBです。\n解説\n{r}",
    "list": "設問: {q}\n- a {0}\n- b {1}\n- c {2}\n- d {3}\n- e {4}\n解答: b. {1}\n理由: {r}",
    "preamble": "はい、作成しました。\n\n問題: {q}\na：{0}\nb：{1}\nc：{2}\nd：{3}\ne：{4}\n答え\nb\n解説\n{r}",
    "indented": "  問題: {q}\n  a、{0}\n  b、{1}\n  c、{2}\n  d、{3}\n  e、{4}\n  答: b\n  説明: {r}",
}
PARTS = (
    "65歳の男性。E. coliによる肺炎である。投与すべきものはどれか。",
    "セファゾリン",
    "アンピシリン",
    "バンコマイシン",
    "E型肝炎ワクチン",
    "生理食塩水",
)
BECAUSE = "a以外の薬もあるが、感受性からbが選ばれる。\n答え合わせの際は耐性に注意する。"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_question_is_read_however_it_is_laid_out(layout):
    text = LAYOUTS[layout].format(*PARTS[1:], q=PARTS[0], r=BECAUSE)
    assert parse_exercise(tidy(text)) == Exercise(PARTS[0], PARTS[1:], ("b",), BECAUSE)


@pytest.mark.parametrize(
    ("key", "letters"),
    [
        ("b, d", "bd"), ("ｂとｄ", "bd"), ("d・a", "ad"), ("bd", "bd"), ("c、e の2つ", "ce"), ("(a)(c)", "ac"),
        ("a および e", "ae"), ("b daily", "b"), ("a. b型肝炎", "a"), ("c and d", "cd"), ("「e」", "e"),
        ("dである。", "d"), ("a と c です", "ac"), ("b. Ca拮抗薬", "b"), ("c/e", "ce"), ("A. B. D.", "abd"),
    ],
)  # fmt: skip
def test_answers_name_one_or_more_letters(key, letters):
    assert parse_exercise(QUESTION.replace("答え: b", f"答え: {key}")).answer == tuple(letters)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("e: ", "f: "), "4 options"),
        (("c: ", "d: "), "2 options"),
        (("答え: b", "答え: 2"), "names no option"),
        (("答え: b", "答え: どれも正しい"), "names no option"),
        (("答え: b", "答え: a,b,c,d,e"), "every option"),
        (("答え: b\n", ""), "names no option"),
        (("b: 咳嗽を行う", "b: 発熱を 行う"), "two options are the same"),
        (("b: 咳嗽を行う", "b: "), "option b is empty"),
        (("解説: ", "解説: はい。\n問題2: 次の"), "more than one question"),
        ((QUESTION[: QUESTION.index("\n")], "問題: どれか。"), "no question"),
        ((QUESTION[QUESTION.index("解説") :], "解説: 略。"), "no explanation"),
        ((QUESTION[QUESTION.index("\n解説") :], ""), "no explanation"),
        ((QUESTION, "問題は難しいので作れませんでした。"), "0 options"),
    ],
)
def test_questions_that_are_incomplete_are_refused_with_what_is_missing(change, message):
    text = QUESTION.replace(*change)
    with pytest.raises(BadExercise, match=message):
        parse_exercise(text)
    padded = text.replace("問題: 60", "問題: 肺炎の60")
    if len(padded) >= EXERCISE.minimum_characters and "肺炎" in padded:
        assert reason(padded, question=True) == "format"


def test_a_question_with_several_headings_keeps_its_case():
    text = QUESTION.replace("まず行うべき", "\n設問1 まず行うべき")
    assert parse_exercise(text).question.startswith("60歳の女性。") and "まず行うべき" in parse_exercise(text).question


plain_part = (
    st.text("発熱咳嗽疼痛の治療を行う。2型α-()「」 ", min_size=10, max_size=60)
    .map(str.strip)
    .filter(lambda t: len(t) > 9)
)


@given(plain_part, st.lists(plain_part, min_size=5, max_size=5, unique_by=lambda text: text.replace(" ", "")),
       st.sets(st.sampled_from(LETTERS), min_size=1, max_size=4), plain_part)  # fmt: skip
def test_what_is_written_is_read_back(question, options, letters, explanation):
    asked = Exercise("第一に、" + question, tuple(options), tuple(sorted(letters)), "すなわち、" + explanation)
    assert parse_exercise(asked.text) == asked
    assert asked.record["options"][asked.answer[0]] == options[LETTERS.index(asked.answer[0])]


pieces = st.sampled_from(
    ["問題: ", "a: ", "b. ", "c ", "d) ", "e: ", "答え: ", "解説: ", "b", "\n", "**", "（", " ", "and", "\ud800", "🩺"]
)  # fmt: skip


@given(st.text(max_size=400) | st.lists(pieces, max_size=60).map("".join))
def test_no_answer_is_too_odd_for_a_verdict(text):
    for question in (False, True):
        found = checked(text, question=question)
        assert isinstance(found, Rejection | Exercise | str)
        if isinstance(found, Rejection):
            assert found.reason in REASONS


@pytest.mark.parametrize(
    "piece", ["*", " ", "a ", "a and ", "(", "「", "問題", "答え: a ", "a: \n", "あ", "<|", "#", "\n", "- ", "申し訳"]
)
def test_long_answers_take_time_in_proportion(piece):
    lead = "問題: 肺炎について正しいのはどれか。\na: ア\nb: イ\nc: ウ\nd: エ\ne: オ\n答え: a"
    text = lead + piece * (100_000 // len(piece))
    begun = time.process_time()
    checked(text, question=True)
    for line in (text, piece * (100_000 // len(piece))):
        with contextlib.suppress(BadExercise):
            parse_exercise(line)
    assert time.process_time() - begun < 5.0  # quadratic work on 100,000 characters takes minutes


# --- duplicates ---


def jaccard(a: str, b: str) -> float:
    first, second = ({text[n : n + 5] for n in range(len(text) - 4)} for text in (a, b))
    return len(first & second) / len(first | second)


@given(st.text("肺炎痛風発熱", min_size=6, max_size=40), st.text("肺炎痛風発熱", min_size=6, max_size=40))
def test_near_duplicates_are_those_that_share_five_grams(a, b):
    seen = Duplicates(near=0.5)
    seen.add(a, name="a")
    found = seen.find(b)
    assert (found is not None) is (a == b or jaccard(a, b) >= 0.5)
    if found is not None:
        assert found.reason == ("duplicate" if a == b else "near duplicate") and found.detail.endswith("of a")


def test_width_case_and_space_make_no_difference():
    seen = Duplicates(near=0.9)
    seen.add("ＣＯＶＩＤ－19の治療", name="first")
    assert seen.find("covid-19 の\n治療").reason == "duplicate"
