"""Constrained answers: whatever walk a model takes over the allowed tokens, the answer has the promised form."""

import itertools
import json
import random

import pytest
from conftest import REPOSITORY, SENTENCES
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ncvc.constraints import OneOf, option_letters, spans_of
from ncvc.corpus.cleaning import Cleaner
from ncvc.evaluation.spans import read_spans, write_spans
from ncvc.morphology import build_analyzer
from ncvc.token_text import TextStream, token_bytes
from ncvc.tokenizer import FIRST_BYTE_ID, SMALLEST_VOCABULARY, Tokenizer, segment_text

PASSAGES = st.one_of(
    st.text(alphabet='肺炎咳a1 "\\\n]、,[éα𠮷😀', min_size=1, max_size=25),
    st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=3).map("\n".join),
    st.text(min_size=1, max_size=30),
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A small vocabulary: many characters of a passage have no piece and are written as bytes."""
    cleaner, analyzer = Cleaner(), build_analyzer()
    segmented = [segment_text(cleaner(text), analyzer=analyzer) for text in SENTENCES * 5]
    with pytest.warns(UserWarning, match="unused"):
        return Tokenizer.train(
            segmented, vocab_size=SMALLEST_VOCABULARY + 160, cleaner=cleaner, analyzer=analyzer, progress=False
        )


def walk(constraint, *, end_id: int, seed: int, end_early: float = 0.2, most: int = 4000) -> list[int]:
    """A model without sense: any allowed token, for at most ``most`` steps; the end where it may, now and then."""
    chooser, state, ids = random.Random(seed), constraint.start(), []
    for _ in range(most):
        allowed = constraint.allowed(state)
        assert allowed, "no token may come, not even the end"
        token = end_id if end_id in allowed and chooser.random() < end_early else chooser.choice(allowed)
        if token == end_id:
            return ids
        state = constraint.advance(state, token)
        hash(state)
        ids.append(token)
    return ids


def spans_possible(text: str) -> bool:
    return bool(text.translate({ord(c): None for c in '"\\\n '}))


# --- lists of spans


@settings(max_examples=150, deadline=None)
@given(passage=PASSAGES, seed=st.integers(0, 2**32), budget=st.one_of(st.none(), st.integers(5, 40)))
@example(passage="肺 炎", seed=0, budget=None)
@example(passage="𠮷𠮷𠮷", seed=1, budget=9)
@example(passage='咳"咳', seed=2, budget=None)
@example(passage="a a a", seed=3, budget=None)
def test_any_walk_is_a_list_that_parses_of_different_spans_of_the_passage(tokenizer, passage, seed, budget):
    cleaned = tokenizer.decode(tokenizer.encode(passage))
    try:
        constraint = spans_of(passage, tokenizer=tokenizer, max_new_tokens=budget)
    except ValueError as error:
        assert not spans_possible(cleaned) or "max_new_tokens" in str(error)
        return
    text = tokenizer.decode(walk(constraint, end_id=tokenizer.end_id, seed=seed, most=budget or 4000))
    spans = json.loads(text)
    assert spans and all(isinstance(span, str) and span and span == span.strip() for span in spans)
    assert len(set(spans)) == len(spans)
    assert all(span in cleaned for span in spans)
    assert read_spans(text) == spans


@settings(max_examples=60, deadline=None)
@given(data=st.data(), passage=PASSAGES)
def test_every_list_of_spans_can_be_written_as_training_writes_it(tokenizer, data, passage):
    cleaned = tokenizer.decode(tokenizer.encode(passage))
    pieces = [piece for piece in cleaned.replace('"', "\n").replace("\\", "\n").split("\n") if piece.strip()]
    if not pieces:
        return
    chosen = []
    for _ in range(data.draw(st.integers(1, 4))):
        piece = data.draw(st.sampled_from(pieces))
        start = data.draw(st.integers(0, len(piece) - 1))
        span = piece[start : data.draw(st.integers(start + 1, len(piece)))].strip()
        if span and span not in chosen:
            chosen.append(span)
    ids = tokenizer.encode(write_spans(chosen))
    if not chosen or json.loads(tokenizer.decode(ids)) != chosen:  # cleaned apart from its text, a span may change
        return
    constraint = spans_of(passage, tokenizer=tokenizer, max_new_tokens=len(ids) + 4)
    state = constraint.start()
    for token in ids:
        assert token in constraint.allowed(state), (passage, chosen, tokenizer.decode([token]))
        state = constraint.advance(state, token)
    assert constraint.allowed(state) == (tokenizer.end_id,)


def test_allowed_is_exactly_what_trying_every_token_allows(tokenizer):
    passage = "肺炎と肺癌、é𠮷 é"
    constraint, table = spans_of(passage, tokenizer=tokenizer), token_bytes(tokenizer)
    lists = set()  # every list of up to two spans, as bytes
    spans = {passage[i:j] for i, j in itertools.combinations(range(len(passage) + 1), 2)}
    spans = [span for span in spans if span == span.strip()]
    for number in (1, 2):
        lists |= {json.dumps(list(some), ensure_ascii=False).encode() for some in itertools.permutations(spans, number)}
    beginnings = {text[:end] for text in lists for end in range(len(text) + 1)}
    for seed in range(6):
        chooser, state, written = random.Random(seed), constraint.start(), b""
        while constraint.allowed(state) != (tokenizer.end_id,) and written.count(b'"') < 3:
            expected = [id for id, text in enumerate(table) if text and written + text in beginnings]
            assert list(constraint.allowed(state)) == expected
            token = chooser.choice(expected)
            state, written = constraint.advance(state, token), written + table[token]


def test_a_span_is_not_named_twice_and_the_list_ends_when_all_are_named(tokenizer):
    constraint = spans_of("咳", tokenizer=tokenizer)
    for seed in range(5):
        assert tokenizer.decode(walk(constraint, end_id=tokenizer.end_id, seed=seed, end_early=0)) == '["咳"]'


def test_limits_on_spans_and_their_length_hold(tokenizer):
    for seed in range(10):
        constraint = spans_of(SENTENCES[0], tokenizer=tokenizer, max_spans=2, max_characters=3)
        spans = json.loads(tokenizer.decode(walk(constraint, end_id=tokenizer.end_id, seed=seed)))
        assert len(spans) <= 2 and max(map(len, spans)) <= 3


@pytest.mark.parametrize(
    ("passage", "limits", "told"),
    [
        ("", {}, "no text"),
        ('" "\n\\', {}, "no text"),
        ("😀", {}, "no text"),
        ("咳", {"max_new_tokens": 4}, "max_new_tokens=4"),
        ("咳", {"max_spans": 0}, "max_spans=0"),
        ("咳", {"max_characters": 0}, "max_characters=0"),
    ],
)
def test_a_passage_or_limit_that_no_list_fits_is_refused(tokenizer, passage, limits, told):
    with pytest.raises(ValueError, match=told):
        spans_of(passage, tokenizer=tokenizer, **limits)


def test_a_token_that_may_not_come_is_refused_not_passed_over(tokenizer):
    constraint = spans_of("咳", tokenizer=tokenizer)
    for token in (tokenizer.begin_id, tokenizer.newline_id, FIRST_BYTE_ID + ord('"'), -1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match="may come here"):
            constraint.advance(constraint.start(), token)


def test_every_gold_list_of_jmed_llm_can_be_generated(tokenizer):
    folder = REPOSITORY.parent / "shared" / "data" / "jmed_llm" / "test"
    if not folder.is_dir():
        pytest.skip("the JMED-LLM files are not beside the repository")
    from ncvc.evaluation.jmed_files import read_set

    for row in read_set(folder / "mrner_medicine.csv", name="mrner_medicine")[:40]:
        gold = [tokenizer.decode(tokenizer.encode(span)) for span in dict.fromkeys(row.gold)]
        constraint = spans_of(row.texts[0], tokenizer=tokenizer)
        state = constraint.start()
        for token in tokenizer.encode(write_spans(gold)):
            state = constraint.advance(state, token)
        assert constraint.allowed(state) == (tokenizer.end_id,)


# --- closed sets


@given(
    sequences=st.lists(st.lists(st.integers(2, 5), min_size=1, max_size=4), min_size=1, max_size=6),
    seed=st.integers(0, 2**32),
)
def test_walks_of_one_of_end_in_its_sequences_and_reach_each(sequences, seed):
    constraint = OneOf(sequences, end_id=1)
    assert walk(constraint, end_id=1, seed=seed) in sequences
    for sequence in sequences:
        state = constraint.start()
        for token in sequence:
            assert token in constraint.allowed(state)
            state = constraint.advance(state, token)
        assert 1 in constraint.allowed(state)


@pytest.mark.parametrize("sequences", [[], [[]], [[3], []], [[3, 1]]])
def test_a_closed_set_without_answers_is_refused(sequences):
    with pytest.raises(ValueError, match="answer"):
        OneOf(sequences, end_id=1)


def test_a_token_outside_the_set_is_refused():
    constraint = OneOf([[3]], end_id=1)
    for state, token in ((0, 4), (0, 1), (1, 1), (1, 3)):
        with pytest.raises(ValueError, match="may come here"):
            constraint.advance(state, token)


def all_answers(constraint: OneOf, tokenizer: Tokenizer) -> set[str]:
    found, waiting = set(), [(constraint.start(), [])]
    while waiting:
        state, ids = waiting.pop()
        for token in constraint.allowed(state):
            if token == tokenizer.end_id:
                found.add(tokenizer.decode(ids))
            else:
                waiting.append((constraint.advance(state, token), [*ids, token]))
    return found


def test_option_letters_admit_exactly_the_asked_number_in_order(tokenizer):
    assert all_answers(option_letters("ABCD", tokenizer=tokenizer), tokenizer) == set("ABCD")
    pairs = {"a,b", "a,c", "a,d", "b,c", "b,d", "c,d"}
    assert all_answers(option_letters("abcd", tokenizer=tokenizer, count=2), tokenizer) == pairs
    some = all_answers(option_letters("abcde", tokenizer=tokenizer, count=None), tokenizer)
    assert len(some) == 2**5 - 1 and {"a", "a,b,c,d,e"} <= some


def test_option_letters_have_the_ids_that_training_gives_them(tokenizer):
    constraint, state = option_letters("abcde", tokenizer=tokenizer, count=2), 0
    for token in tokenizer.encode("b,d"):
        state = constraint.advance(state, token)
    assert constraint.allowed(state) == (tokenizer.end_id,)


@pytest.mark.parametrize(
    ("letters", "count"),
    [([], 1), (["A", ""], 1), (["A", "Ａ"], 1), (["A,B"], 1), ("AB", 3), ("AB", 0), ("abcdefghijklmnopq", 2)],
)
def test_letters_that_cannot_be_told_apart_or_chosen_are_refused(tokenizer, letters, count):
    with pytest.raises(ValueError, match="option letters"):
        option_letters(letters, tokenizer=tokenizer, count=count)


# --- text of tokens


@given(ids=st.lists(st.integers(0, SMALLEST_VOCABULARY + 159), max_size=40))
@example(ids=[FIRST_BYTE_ID + 0xE8, FIRST_BYTE_ID + 0x82])
@example(ids=[FIRST_BYTE_ID + 0xF0, FIRST_BYTE_ID + 0xA0, 300, FIRST_BYTE_ID + 0x80])
def test_the_streamed_text_is_the_decoded_text_whatever_the_ids(tokenizer, ids):
    stream = TextStream(tokenizer)
    assert "".join([*map(stream.feed, ids), stream.end()]) == tokenizer.decode(ids)


@given(text=st.text(max_size=30))
def test_a_stream_of_real_text_never_shows_half_a_character(tokenizer, text):
    stream = TextStream(tokenizer)
    assert not any("\ufffd" in stream.feed(token) for token in tokenizer.encode(text))
    assert stream.end() == ""
