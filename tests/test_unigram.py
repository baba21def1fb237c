"""Learning pieces: what is counted, what is bounded, and what is the same from one training to the next."""

import functools
import hashlib
import math
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncvc import unigram
from ncvc.unigram import Learned, NotEnoughRoomError, learn_pieces
from ncvc.unigram_scores import ITERATIONS, LEAST_EXPECTED, piece_scores

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
def test_the_same_texts_in_any_order_give_the_same_pieces_and_scores_in_the_order_of_their_text(coverage):
    source = texts()
    first, second, third = (
        learned(order, character_coverage=coverage) for order in (source, source[::-1], iter(source))
    )
    names = [text for text, _ in first.pieces]
    assert names == sorted(names)
    assert first == second == third


def test_the_same_text_gives_the_same_bytes_in_another_process():
    program = (
        "from test_unigram import learned, texts; import hashlib; "
        "print(hashlib.sha256(repr(learned(texts()).pieces).encode()).hexdigest())"
    )
    run = functools.partial(subprocess.run, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    hashes = {
        run([sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}).stdout for seed in ("1", "2")
    }
    assert hashes == {hashlib.sha256(repr(learned(texts()).pieces).encode()).hexdigest() + "\n"}


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


def test_only_the_most_frequent_words_reach_the_training(monkeypatch):
    monkeypatch.setattr(unigram, "TRAINED_WORDS", 0)
    counts = unigram._WordCounts()
    counts.add("心不全 心不全 心不全 肝炎 肝炎 腎炎 胃癌")
    assert counts.trained(left_out="", most=3) == {"心不全": 3, "肝炎": 2, "胃癌": 1}
    assert counts.trained(left_out="肝癌", most=9) == {"心不全": 3, "炎": 2, "胃": 1, "腎炎": 1}
    few = learned([*texts(), "鬱血 鬱血"], most_pieces=60)
    assert len(few.pieces) <= 60


def test_the_training_reads_every_word_as_often_as_it_was_seen():
    words = {"心不全": 2500, "肝炎": 2, "癌": 1}
    shown = list(unigram._shown(words, most_paired=0, max_piece_length=16))
    assert Counter(word for text in shown for word in text.split()) == words
    assert max(map(len, shown)) <= 4_000
    paired = list(unigram._shown({"心不全": 6, "肝炎": 3, "腎炎": 3, "癌": 99}, most_paired=9, max_piece_length=16))
    pairs = [text for text in paired if " " not in text]
    assert pairs and all(
        text in {a + b for a in ("心不全", "肝炎", "腎炎") for b in ("心不全", "肝炎", "腎炎")} for text in pairs
    )


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


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(st.text("あいうえ", min_size=1, max_size=5), st.integers(1, 50), min_size=1, max_size=8),
    st.sets(st.text("あいうえ", min_size=2, max_size=3), max_size=8),
)
def test_scores_are_those_of_summing_over_every_segmentation(words, longer):
    pieces = sorted({*"あいうえ", *longer})
    found = piece_scores(pieces, words)
    assert found == pytest.approx(plain_scores(pieces, words), abs=1e-9)


def test_scores_are_a_probability_and_words_of_any_kind_do_no_harm():
    pieces = ["あ", "い", "あい", "never"]
    scores = piece_scores(pieces, {"あい": 5, "あ": 1, "か": 3, "": 2, "い" * 500: 9, "い" * 24: 2})
    assert sum(map(math.exp, scores)) == pytest.approx(1)
    assert min(scores) == scores[3]
    assert piece_scores([], {"あ": 1}) == []
    assert len(piece_scores(["あ"], {})) == 1


def segmentations(word: str, pieces: list[str]) -> list[list[str]]:
    """Every way to write `word` as pieces."""
    if not word:
        return [[]]
    firsts = [piece for piece in pieces if word.startswith(piece)]
    return [[first, *rest] for first in firsts for rest in segmentations(word[len(first) :], pieces)]


def plain_scores(pieces: list[str], words: dict[str, int]) -> list[float]:
    """Expectation maximisation as the textbook has it: every segmentation of every word by its probability."""
    ways = {word: segmentations(word, pieces) for word in words}
    start = {p: sum(n * word.startswith(p, k) for word, n in words.items() for k in range(len(word))) for p in pieces}
    chance = {piece: max(count / sum(start.values()), 1e-12) for piece, count in start.items()}
    for _ in range(ITERATIONS):
        expected = dict.fromkeys(pieces, 0.0)
        for word, count in words.items():
            weights = [math.prod(chance[piece] for piece in way) for way in ways[word]]
            for way, weight in zip(ways[word], weights, strict=True):
                for piece in way:
                    expected[piece] += count * weight / sum(weights)
        kept = {piece: max(value, LEAST_EXPECTED) for piece, value in expected.items()}
        chance = {piece: value / sum(kept.values()) for piece, value in kept.items()}
    return [math.log(chance[piece]) for piece in pieces]
