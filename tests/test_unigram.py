"""Learning pieces: what is counted, what is bounded, and what is the same from one training to the next."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncvc import unigram
from ncvc.unigram import Learned, NotEnoughRoomError, learn_pieces

WORDS = [f"{a}{b}{c}" for a in "心肝腎肺胃" for b in "不全炎癌" for c in ("", "症", "患者", "の治療")]
SETTINGS = {
    "most_pieces": 300,
    "alphabet": "あいう。",
    "shrinking_factor": 0.75,
    "max_piece_length": 16,
    "n_sub_iterations": 2,
    "character_coverage": 1.0,
    "progress": False,
}


def texts(number: int = 60, *, seed: int = 0) -> list[str]:
    chance = random.Random(seed)
    return ["\n".join(" ".join(chance.choices(WORDS, k=12)) for _ in range(3)) for _ in range(number)]


def learned(source, **changes) -> Learned:
    return learn_pieces(source, **{**SETTINGS, **changes})


def test_texts_characters_and_distinct_words_are_counted():
    source = texts()
    result = learned(source)
    assert result.texts == 60
    assert result.characters == sum(map(len, source))
    assert result.distinct_words == len(Counter(word for text in source for word in text.split()))


@pytest.mark.parametrize("coverage", [1.0, 0.999])
def test_the_same_text_gives_the_same_pieces_in_the_order_of_their_text(coverage):
    first, second = (learned(texts(), character_coverage=coverage) for _ in range(2))
    names = [text for text, _ in first.pieces]
    assert names == sorted(names) == [text for text, _ in second.pieces]
    assert first.distinct_words == second.distinct_words


def test_coverage_leaves_the_rarest_characters_without_a_piece():
    source = [*texts(), "麒麟 の治療"]
    whole, most = learned(source), learned(source, character_coverage=0.999)
    assert {"麒", "麟"} <= {text for text, _ in whole.pieces}
    characters = {c for text, _ in most.pieces for c in text}
    assert not {"麒", "麟"} & characters and set("治療あいう。") <= characters
    assert most.characters == whole.characters and most.distinct_words == whole.distinct_words


def test_characters_in_white_space_or_in_no_text_change_nothing():
    plain, padded = learned(texts()), learned([*texts(), " \n", ""])
    assert [text for text, _ in plain.pieces] == [text for text, _ in padded.pieces]


@pytest.mark.parametrize("coverage", [1.0, 0.99])
def test_text_without_a_word_is_refused(coverage):
    with pytest.raises(ValueError, match="empty"):
        learned(["", " \n "], character_coverage=coverage)


def test_too_many_characters_are_counted_for_the_message():
    with pytest.raises(NotEnoughRoomError) as told:
        learned(texts(), most_pieces=10)
    assert told.value.distinct == len(set("".join(WORDS)) | set("あいう。"))


@pytest.mark.parametrize("coverage", [0.0, -1.0, 1.5, float("nan")])
def test_an_impossible_coverage_is_refused(coverage):
    with pytest.raises(ValueError, match="character_coverage"):
        learned(texts(), character_coverage=coverage)


def test_an_iterator_cannot_be_read_twice():
    with pytest.raises(ValueError, match="read once"):
        learned(iter(texts()), character_coverage=0.99)
    assert learned(iter(texts())).texts == 60


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text("心肝 \n腎肺炎", max_size=30), max_size=30), st.integers(2, 40))
def test_counts_stay_bounded_and_no_character_is_lost_by_forgetting(source, most):
    previous, unigram.MOST_WORDS = unigram.MOST_WORDS, most
    try:
        counts = unigram._WordCounts()
        for text in source:
            counts.add(text)
            assert len(counts.words) <= most
    finally:
        unigram.MOST_WORDS = previous
    assert counts.characters() == Counter(c for text in source for c in text if not c.isspace())
    everything = {word for text in source for word in text.split()}
    counts.frequent(most=5, max_length=16)
    assert counts.distinct <= len(everything) and (counts.distinct == len(everything) or len(everything) > most // 2)


def test_forgetting_is_rare_though_every_word_is_seen_often(monkeypatch):
    monkeypatch.setattr(unigram, "MOST_WORDS", 100)
    calls = []
    real = unigram._WordCounts._forget
    monkeypatch.setattr(unigram._WordCounts, "_forget", lambda self: (calls.append(1), real(self)))
    counts = unigram._WordCounts()
    for number in range(1000):
        counts.add(f"w{number} " * 5)
    assert len(calls) <= 1000 // 50


def test_words_are_let_go_before_the_training_itself():
    counts = unigram._WordCounts()
    counts.add("心不全 心不全 心不全 肝炎")
    assert counts.frequent(most=5, max_length=16) == [("心不全", 3)]
    assert not counts.words and counts.distinct == 2
