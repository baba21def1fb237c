"""The tokenizer report: every figure recomputed by hand or by counting on a small text."""

import json
import random
import warnings

import pytest
from conftest import SENTENCES
from hypothesis import given, settings
from hypothesis import strategies as st

from ncvc.corpus.cleaning import Cleaner
from ncvc.morphology import build_analyzer
from ncvc.tokenizer import Tokenizer, segment_text
from ncvc.tokenizer_report import ANALOGY_WORDS, NoMorphology, measure, report_on

NAMES = {"disease": ["肺炎", "高血圧症", "２型糖尿病", " ", "一\n二"], "drug": ["抗菌薬"]}


def text_number(number: int) -> str:
    chosen = random.Random(number).sample(SENTENCES, 4)
    return f"症例{number}。" + "".join(chosen)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    cleaner, analyzer = Cleaner(), build_analyzer()
    words = [segment_text(cleaner(text_number(number)), analyzer=analyzer) for number in range(300)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Tokenizer.train(words, vocab_size=800, cleaner=cleaner, analyzer=analyzer, progress=False)


@pytest.fixture(scope="module")
def report(tokenizer):
    return report_on(tokenizer, map(text_number, range(300)), names=NAMES, progress=False)


def test_the_figures_are_those_of_counting_by_hand(tokenizer):
    texts = ["肺炎と診断した。\n血圧は120/80 mmHg。", "", "𠮷野は肺炎。"]
    measured = measure(tokenizer, texts, names=NAMES)
    ids = [tokenizer.encode(text) for text in texts]
    cleaned = ["肺炎と診断した。\n血圧は120/80▁mmHg。", "𠮷野は肺炎。"]
    every = [id for of_text in ids for id in of_text]
    tokens = len(every)
    assert (measured.documents, measured.tokens) == (2, tokens)
    assert measured.characters_per_token == pytest.approx(sum(map(len, cleaned)) / tokens)
    assert measured.bytes_per_token == pytest.approx(sum(len(text.encode()) for text in cleaned) / tokens)
    single = [id for id in every if 4 <= id < 260]
    assert bytes(id - 4 for id in single).decode().count("𠮷") == 1
    assert measured.byte_share == pytest.approx(len(single) / tokens)
    written = len(bytes(id - 4 for id in single).decode())
    assert measured.byte_character_share == pytest.approx(written / sum(map(len, cleaned)))
    assert measured.unknown_share == 0 and measured.altered_documents == 0
    learned = {id for id in range(260, 800) if not tokenizer.pieces[id].startswith("<|unused")}
    assert measured.pieces == len(learned) == tokenizer.training["pieces"]
    assert measured.pieces_used_share == pytest.approx(len(learned & set(every)) / len(learned))


def test_names_are_cleaned_counted_alone_and_the_unusable_left_out(tokenizer):
    diseases = measure(tokenizer, ["肺炎"], names=NAMES).names["disease"]
    lengths = [len(tokenizer.encode(name)) for name in ("肺炎", "高血圧症", "2型糖尿病")]
    assert (diseases.names, diseases.unusable) == (3, 2)
    assert diseases.tokens_per_name == pytest.approx(sum(lengths) / 3)
    assert diseases.one_token_share == pytest.approx(lengths.count(1) / 3) and 1 in lengths
    assert diseases.characters_per_name == pytest.approx((2 + 4 + 5) / 3)


def test_a_name_that_is_one_piece_is_one_token_and_the_words_of_the_analogies_are_told(tokenizer):
    measured = measure(tokenizer, ["肺炎"], names={})
    whole = [word for word in ANALOGY_WORDS if len(tokenizer.encode(word)) == 1]
    assert measured.analogy_words == len(whole) < len(ANALOGY_WORDS)
    assert set(measured.analogy_words_split) == set(ANALOGY_WORDS) - set(whole)


def test_unknown_tokens_and_lost_text_would_be_seen(tokenizer):
    class Lossy(Tokenizer):
        def encode_segmented(self, segmented):
            return [3, *super().encode_segmented(segmented)[1:]]

    broken = Lossy(tokenizer._scored, cleaner=tokenizer.cleaner, analyzer_identity=tokenizer.analyzer_identity)
    measured = measure(broken, ["肺炎と診断した。", "発熱。"], names={})
    assert measured.unknown_share == pytest.approx(2 / measured.tokens)
    assert measured.altered_documents == 2


def test_the_peers_learn_from_other_documents_than_are_measured_and_keep_their_promises(tokenizer, report):
    ours, same, bare, characters = report.measures
    assert [m.tokenizer for m in report.measures] == ["this tokenizer", "same training", "no morphology", "characters"]
    assert len({(m.documents, m.characters, m.bytes) for m in report.measures}) == 1
    assert ours.documents == 30 and report.training_documents == 270
    assert all(m.unknown_share == 0 and m.altered_documents == 0 and m.entries == 800 for m in report.measures)
    assert characters.characters_per_token <= 1.0 < same.characters_per_token < bare.characters_per_token
    assert characters.names["disease"].tokens_per_name == pytest.approx((2 + 4 + 5) / 3)
    assert characters.names["disease"].one_token_share == 0


def test_a_sample_does_not_depend_on_order_or_repetition_and_is_bounded(tokenizer, report):
    texts = [text_number(number) for number in range(300)]
    random.Random(1).shuffle(texts)
    again = report_on(tokenizer, texts + texts[:50], names=NAMES, peers=False, progress=False).measures[0]
    assert again.documents == 300
    small = [
        report_on(tokenizer, order, peers=False, sample_megabytes=0.01, progress=False).measures[0]
        for order in (texts, texts[::-1])
    ]
    assert small[0] == small[1] and 5_000 < small[0].bytes <= 10_000


def test_the_table_prints_the_figures_and_the_json_holds_them(report):
    table, plain = report.as_table(), json.loads(json.dumps(report.as_dict()))
    for m in report.measures:
        assert f"{m.characters_per_token:.3f}" in table and f"{m.names['disease'].tokens_per_name:.2f}" in table
    assert [m["tokens"] for m in plain["measures"]] == [m.tokens for m in report.measures]
    assert "3 disease names: one token" in table and len({len(line) for line in table.splitlines()[:9]}) == 1


@pytest.mark.parametrize(
    ("texts", "settings_", "words"),
    [
        ([], {"peers": False}, "no text to measure"),
        (["\x00", "\ud800"], {}, "no text to measure|cannot be divided"),
        (["肺炎。"], {}, "1 document.* cannot be divided"),
        (["肺炎。"], {"held_out_share": 1.0}, "held_out_share=1.0"),
        (["肺炎。"], {"sample_megabytes": 0}, "sample_megabytes=0"),
    ],
)
def test_what_cannot_be_measured_is_refused(tokenizer, texts, settings_, words):
    with pytest.raises(ValueError, match=words):
        report_on(tokenizer, texts, progress=False, **settings_)


@settings(deadline=None)
@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=80))
def test_without_morphology_words_end_at_spaces_and_punctuation_and_nothing_is_lost(line):
    words = NoMorphology().segment(line)
    assert "".join(words) == line and all(words)
    assert all(len(word) == 1 or all(c.isalnum() for c in word) for word in words)


def test_without_morphology_a_clause_is_one_word():
    words = NoMorphology().segment("体温は38.5℃、血圧▁120/80mmHg")
    assert words == ["体温は38", ".", "5", "℃", "、", "血圧", "▁", "120", "/", "80mmHg"]
