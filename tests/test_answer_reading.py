"""What outputs say: letters, numbers and lists in every dress, refusals, hostile text in bounded time."""

import json
import signal
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncvc.evaluation.answer_reading import LONGEST, read_choice, read_letters, read_number, read_spans_answer
from ncvc.evaluation.spans import read_spans, write_spans

LETTERS = "ABCDEF"
EXAM = "abcde"
BOTH = ["発熱", "咳嗽"]

READ = {
    "ADEの可能性は低いため、答えはD": "D",
    "CTで腫瘤を認めるため B": "B",
    "Final answer: C": "C",
    "Ａ": "A",
    "a": "A",
    "Ⓑ": "B",
    "B.": "B",
    "(C)": "C",
    "「A」": "A",
    "**D**": "D",
    "B B B": "B",
    "B. 顆": "B",
    "A: 無関係": "A",
    "A（無関係）": "A",
    "B、なぜならAは": "B",
    "答え：Ａ": "A",
    "答えは D 。": "D",
    "回答：「C」": "C",
    "回答: A. 無関係（ADEでない）": "A",
    "Answer: **B**": "B",
    "Answer\nB": "B",
    "Answer: A patient should": "A",
    "Option D": "D",
    "\\boxed{C}": "C",
    "$\\boxed{\\text{C}}$": "C",
    "最終的な答えは\n\nE": "E",
    "最も適切な選択肢はDである": "D",
    "選択肢Bです": "B",
    "正解は選択肢Bです。": "B",
    "I would choose C.": "C",
    "C is correct": "C",
    "この症例ではAが最も適切です": "A",
    "Aである": "A",
    "よってF": "F",
    "答えはAではなくBです": "B",
    "The answer is not A but B.": "B",
    "The correct answer is (B) because A is wrong": "B",
    "Bが正しい。CはCTの所見と異なる": "B",
    "Aは誤り、Bが正しい": "B",
    "Bではないかと考える": "B",
    "答え: A\n答え: B": "B",
    "A. 無関係\nB. 低い\n答え: B": "B",
    "B\n理由: ビタミン D が不足": "B",
    "B\n\n問題: 次は?\n答え: C": "B",
    "<think>AかBか。答えはAだろう</think>\nB": "B",
}
REFUSED = [
    "", " \n", "None", "わかりません", "である", "38.5℃の発熱", "ビタミンDの欠乏である", "正解はB型肝炎です",
    "D-dimer上昇", "E. coli 感染症", "A patient with fever", "BBBB", "A,B", "A or B", "正解: A、B", "Bではない",
    "答え:G", "答えは無関係", "AかBで迷うが、Bと考える", "答えはA〜Cのうち、B", "A. 無関係\nB. 低い\nC. 高い",
    "A\nB", "<think>答えはA", "\0", "\ud800", "HLA-B27陽性", "COVID-19", "「ADE」", "IgA腎症", "C反応性蛋白",
    "該当するものはない",
]  # fmt: skip


@pytest.mark.parametrize("output", READ)
def test_a_stated_letter_is_read(output):
    assert read_choice(output, LETTERS) == READ[output]


@pytest.mark.parametrize("output", REFUSED)
def test_what_states_no_single_letter_is_a_refusal(output):
    assert read_choice(output, LETTERS) is None


@pytest.mark.parametrize(
    ("output", "wanted", "read"),
    [
        ("a,d", 2, "ad"), ("d, a", 2, "ad"), ("ad", 2, "ad"), ("ａ、ｄ", 2, "ad"), ("A・D", 2, "ad"), ("a d", 2, "ad"),
        ("(a)(d)", 2, "ad"), ("a and d", 2, "ad"), ("a\nd", 2, "ad"), ("a. 発熱\nd. 頭痛", 2, "ad"),
        ("答え: a,d", 2, "ad"), ("答えはaとd", 2, "ad"), ("正解は a と d です。", 2, "ad"), ("aとdが正しい", 2, "ad"),
        ("答え：a, c, e", 3, "ace"), ("a b c d e", 2, "abcde"), ("a,b,c", 2, "abc"), ("a", 2, "a"), ("a,b", 1, "ab"),
        ("aまたはd", 2, None), ("a or d", 2, None), ("a. あ\nb. い\nc. う", 2, None), ("bed", 1, None), ("", 2, None),
    ],
)  # fmt: skip
def test_several_letters_are_read_in_any_order_and_a_wrong_number_is_an_answer(output, wanted, read):
    assert read_letters(output, EXAM, wanted) == (None if read is None else tuple(read))


def test_letters_come_back_as_they_are_given():
    assert read_choice("Ａ", "ab") == "a"
    assert read_choice("a", ("Ａ", "Ｂ")) == "Ａ"
    assert read_choice("答えは2", "12345") == "2" and read_choice("12", "12345") is None
    assert read_choice("正解はイです", "アイウ") == "イ" and read_choice("アレルギー", "アイウ") is None
    assert (read_choice("a", "aA"), read_choice("答えはA", "aA")) == ("a", "A")
    with pytest.raises(ValueError, match="each another one"):
        read_choice("A", ("A", "A"))
    with pytest.raises(ValueError, match="option letters"):
        read_choice("A", ())


def test_an_options_text_is_its_letter_only_where_it_is_known_and_the_whole_output():
    options = ("無関係（ADEでない）", "ある", "ある")
    assert read_choice("無関係(ADEでない)。", "ABC") is None
    assert read_choice("無関係(ADEでない)。", "ABC", options=options) == "A"
    assert read_choice("ある", "ABC", options=options) is None
    assert read_choice("ある", "AB", options=("ない", "ある")) == "B"
    assert read_choice("無関係とは言えない", "ABC", options=options) is None


@settings(deadline=None)
@given(st.sampled_from(LETTERS), st.sampled_from(["答え: {}", "{}", "（{}）", "Answer: {}.", "よって、答えは{}です。"]))
def test_full_width_and_half_width_read_alike(letter, form):
    wide = unicodedata.normalize("NFKC", letter).translate({code: code + 0xFEE0 for code in range(0x21, 0x7F)})
    assert read_choice(form.format(letter), LETTERS) == read_choice(form.format(wide), LETTERS) == letter


@pytest.mark.parametrize(
    ("output", "read"),
    [
        ("21", "21"), ("２１", "21"), ("04", "04"), ("0.4", "0.4"), ("答え: 21", "21"), ("解答は-1.5", "-1.5"),
        ("約100%", "100"),
        ("答えは 1,200 mL です", "1200"), ("計算すると 3×7=21\n21", "21"), ("答え: 2\n答え: 3", "3"), ("5 mg/kg", "5"),
        ("答え: \\boxed{42}", "42"), ("21。", "21"), ("3×7で21", None), ("CO2は", None), ("", None), ("二十一", None),
        ("9" * 5000, "9" * 5000), ("<think>7</think>8", "8"),
    ],
)  # fmt: skip
def test_numbers_are_read_as_written(output, read):
    assert read_number(output) == read


LISTS = {
    '["発熱", "咳嗽"]': BOTH,
    "['発熱', '咳嗽',]": BOTH,
    "['発熱', '咳嗽']。": BOTH,
    '```json\n["発熱", "咳嗽"]\n```': BOTH,
    "```python\n['発熱', '咳嗽']": BOTH,
    "回答: ['発熱', '咳嗽']。": BOTH,
    "**回答**\n['発熱', '咳嗽']": BOTH,
    "result = ['発熱', '咳嗽']\nprint(result)": BOTH,
    "［「発熱」、「咳嗽」］": BOTH,
    "[“発熱”， ＂咳嗽＂]": BOTH,
    "[発熱, 咳嗽]": BOTH,
    "「発熱」「咳嗽」": BOTH,
    "「発熱」、「咳嗽」です。": BOTH,
    "回答は「発熱」と「咳嗽」です。": BOTH,
    "('発熱', '咳嗽')": BOTH,
    '{"発熱", "咳嗽"}': BOTH,
    "- 発熱\n- 咳嗽": BOTH,
    "1. 発熱\n2. 咳嗽": BOTH,
    "以下の通りです:\n・発熱\n・咳嗽": BOTH,
    "発熱\n咳嗽": BOTH,
    "発熱、咳嗽。": BOTH,
    '["発熱", "咳嗽", "頭': BOTH,
    "['発熱', '咳嗽'": BOTH,
    "[\"\\u767a\\u71b1\", '咳嗽']": BOTH,
    '[["発熱"], ["咳嗽"]]': BOTH,
    '{"d": ["発熱", "咳嗽"]}': BOTH,
    "['発熱', '咳嗽']\n\n問題: 以下の\n['x']": BOTH,
    "<think>['頭痛']</think>['発熱', '咳嗽']": BOTH,
    "候補: ['a', '発熱', '咳嗽']\n最終回答: ['発熱', '咳嗽']": BOTH,
    "['発熱', '咳嗽']\n['発熱', '咳嗽']": BOTH,
    '["頭が"重い"と訴え", "咳嗽"]': ['頭が"重い"と訴え', "咳嗽"],
    "['１５ｍｇ／日', '２０㎎／日（１㎎／㎏）']": ["１５ｍｇ／日", "２０㎎／日（１㎎／㎏）"],
    "検査結果は正常、歩行できない": ["検査結果は正常", "歩行できない"],
    "よって、抽出結果は次の通り: ['発熱', '咳嗽']": BOTH,
    "10.5mg\n2.5mg": ["10.5mg", "2.5mg"],
    '["<think>", "発熱"]': ["<think>", "発熱"],
    "<think>長考</think>\n```json\n['発熱', '咳嗽']\n```": BOTH,
    "発熱": ["発熱"],
    "[1, 2.50, NaN]": ["1", "2.50", "NaN"],
    "[]": [],
    "[null]": [],
    "なし": [],
    "該当する表現はありません。": [],
    "None": [],
}
NO_LISTS = [
    "", "[", "['発", "申し訳ありませんが、お答えできません。", "この患者は発熱していた。咳嗽もある。",
    "__import__('os').system('x')", "[__import__('os').system('touch canary')]", '[{"text": "発熱"}]',
    "{'a': '発熱'}", "['a']\n['b']", "長" * 101, '[["発熱"], {"a": 1}]', "<think>['a']", "\0" * 3 + "{}",
    "globals().update(eval=None)",
]  # fmt: skip


@pytest.mark.parametrize("output", LISTS)
def test_a_list_is_read_in_every_dress(output):
    assert read_spans_answer(output) == LISTS[output]


@pytest.mark.parametrize("output", NO_LISTS)
def test_what_is_no_list_is_a_refusal(output):
    assert read_spans_answer(output) is None


SPAN = st.text(min_size=1, max_size=20).map(str.strip).filter(bool)


@settings(deadline=None)
@given(st.lists(SPAN.filter(lambda text: not (text[0] == text[-1] and text[0] in "\"'`")), min_size=1, max_size=6))
def test_json_and_python_lists_come_back_as_they_were(spans):
    quoted = [span for span in spans if not any(mark in span for mark in "“”‘’「」『』＂＇„")]
    assert read_spans_answer(json.dumps(quoted, ensure_ascii=False)) == quoted
    assert read_spans_answer(repr(quoted)) == quoted


@settings(deadline=None)
@given(st.lists(st.text("発熱咳嗽0-9ｍｇ（）", min_size=1, max_size=9), max_size=6))
def test_what_tuning_writes_is_read_as_the_strict_reader_reads_it(spans):
    assert read_spans_answer(write_spans(spans)) == read_spans(write_spans(spans))


@settings(deadline=None)
@given(st.lists(st.text("発熱咳嗽。", min_size=2, max_size=9), min_size=1, max_size=5), st.data())
def test_a_list_cut_anywhere_loses_only_what_is_incomplete(spans, data):
    text = write_spans(spans)
    kept = read_spans_answer(text[: data.draw(st.integers(2, len(text) - 1))]) or []
    assert kept == read_spans(text)[: len(kept)]


@settings(max_examples=300, deadline=None)
@given(
    st.text(
        alphabet=st.sampled_from(list("AaBｂ答えはが回正解:：,、 \n.。()[]{}「」'\"\\-0１<>`*ーand or型")), max_size=60
    )
)
def test_reading_never_raises_and_says_only_what_is_there(output):
    assert read_choice(output, "AB") in {"A", "B", None}
    assert set(read_letters(output, "ab", 2) or ()) <= {"a", "b"}
    number = read_number(output)
    assert number is None or float(number) is not None
    spans = read_spans_answer(output)
    assert spans is None or all(span.strip() for span in spans)
    letter = read_choice(output, "AB")
    assert letter is None or letter in unicodedata.normalize("NFKC", output).upper()


HOSTILE = [
    "A", "A ", "A,", "(A", "A or ", "a、", "AかB", "答え: ", "答えはAではなく", "not A but ", "[", "]", '["a",',
    "['", "「", "[[],", "{", "\\", '"', "'a'", '["a" "b" ', "- a\n", "1,", "1,000", "答え: 1,", "\n\n問題", "```",
    "<think>", "\u200b", "\ufdfa", " ", "\n", "選択肢", "\\boxed{", "『a", "[a(' ",
]  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE)
def test_a_megabyte_of_anything_is_read_in_bounded_time(unit):
    def stop(*_):
        raise TimeoutError(f"reading {unit!r} takes more than 10 s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    try:
        output = unit * (1_000_000 // len(unit))
        start = time.process_time()
        read_choice(output, LETTERS), read_letters(output, EXAM, 2), read_number(output), read_spans_answer(output)
        assert time.process_time() - start < 5
    finally:
        signal.alarm(0)


def test_of_a_long_output_the_end_is_read_for_the_letter_and_the_complete_items_for_a_list():
    assert read_choice("考察。" * LONGEST + "答えはB", LETTERS) == "B"
    spans = read_spans_answer(json.dumps([f"第{number}" for number in range(2 * LONGEST)], ensure_ascii=False))
    assert spans and spans == [f"第{number}" for number in range(len(spans))] and len(spans) < LONGEST
