"""Lists of spans as text: what is written survives cleaning, what a model writes is read without running it."""

import ast
import json
import time
import unicodedata
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncvc.corpus.cleaning import Cleaner
from ncvc.evaluation.spans import LONGEST_LIST, clean_span, parse_python_strings, read_spans, write_spans

MARKS = list("\"\\#@[],“”'.:/-ー笑w0９（％\n ぁ")
TRAPS = [
    "#頭痛",
    "@tarou_1",
    "www.a.jp/x",
    "090-1234-5678",
    "a@b.co.jp",
    '"',
    "\\",
    '", "',
    "\\u0041",
    "笑笑笑",
    "𠮷#𠮷",
]
AWKWARD = st.text(st.one_of(st.characters(), st.sampled_from(MARKS))) | st.sampled_from(TRAPS)


@given(st.lists(AWKWARD, max_size=5))
def test_written_spans_are_read_back_after_cleaning(spans):
    written = write_spans(spans)
    assert Cleaner()(written).replace("\u2581", " ") == written
    expected = [cleaned for span in spans if (cleaned := Cleaner()(span).replace("\u2581", " "))]
    assert read_spans(written) == expected == json.loads(written)


@pytest.mark.parametrize(
    ("span", "written"),
    [
        ("食欲低下（＋）", '["食欲低下(+)"]'),
        ("“眠い”\\", '["\\"眠い\\"\\\\"]'),
        ("#頭痛", '["\\u0023頭痛"]'),  # a #tag in mid-line would go
        ("#ー5", '["\\u0023\\u30fc\\u0035"]'),  # and here the escape's digit would make a hyphen of the bar
        ("@tarou_12", "[]"),
    ],
)
def test_spans_are_escaped_no_more_than_cleaning_asks_for(span, written):
    assert write_spans([span]) == written == clean_span(written)
    assert read_spans(written) == [clean_span(span)] * (written != "[]")


@given(st.lists(AWKWARD, max_size=5))
def test_a_python_list_of_strings_is_read_as_python_reads_it(spans):
    assert parse_python_strings(repr(spans)) == ast.literal_eval(repr(spans)) == spans
    assert read_spans(repr(spans)) == [span for span in spans if span.strip()]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "text", [r"['\{', '\d\\', '\\\'']", r"['\101\0\777', '\x41\u0041\N{DIGIT ONE}']", "['a\\\nb',]"]
)
def test_odd_escapes_are_read_as_python_reads_them_without_its_warnings(text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = ast.literal_eval(text)
    assert parse_python_strings(text) == wanted == read_spans(text)


@pytest.mark.filterwarnings("ignore:invalid (escape|octal)")  # of Python, which is the reference here
@given(st.text() | st.text("[]\"',\\ a{}1xu\n"))
def test_whatever_a_model_writes_is_a_list_of_spans(text):
    found = read_spans(text)
    assert all(isinstance(span, str) and span.strip() for span in found)
    try:
        wanted = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return
    if isinstance(wanted, list) and parse_python_strings(text) is not None:
        assert parse_python_strings(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "", "発熱", "[", '["a"', "['a' 'b'", "[1, 2]", '["a", ["b"]]', '{"a": 1}', "['a'] and more", '["a"]["b"]',
        "null", "__import__('os').remove('x')", "[__import__('os').getcwd()]", "[" * 90_000, "-" * 90_000 + "1",
        "['a'," * 20_000,
        "[" + "9" * 50_000 + "]", "['" + "\\" * 99_000, "[" + " " * 99_000, '["' + "a" * LONGEST_LIST + '"]',
        "['\\x']", "['\\N{no such name}']", "\ud800", "[\0]", "```json\n[]",
    ],
)  # fmt: skip
def test_what_is_no_list_of_strings_is_the_empty_list_and_never_run(text):
    started = time.monotonic()
    assert read_spans(text) == []
    assert time.monotonic() - started < 2


def test_nfkc_alone_does_not_give_the_cleaned_spans():
    assert unicodedata.normalize("NFKC", "１～６，７１８Ｊ／ｃｍ２") == "1~6,718J/cm2"
    assert clean_span("１～６，７１８Ｊ／ｃｍ２") == "1〜6,718J/cm2"
