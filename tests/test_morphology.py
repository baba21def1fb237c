"""Morphology: nothing of a line is lost, and another analyser than the recorded one is refused."""

from __future__ import annotations

import importlib.metadata
import pickle
import re
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sudachipy import Dictionary

import ncvc.morphology
from ncvc.corpus.cleaning import Cleaner
from ncvc.morphology import (
    Analyzer,
    analyzer_from_identity,
    build_analyzer,
    check_identity,
    sudachi_identity,
)

relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck))
anything = st.text(st.characters(codec=None, exclude_categories=()), max_size=80).filter(lambda text: "\n" not in text)
LINE = "患者は急性心筋梗塞で入院した。血圧120/80mmHg、体温37.5℃であった!翌日…退院。"


@pytest.fixture(scope="module")
def analyzer() -> Analyzer:
    return build_analyzer()


def bare(line: str, mode: str = "C") -> list[str]:
    """Sudachi as its documentation shows it, one sentence at a time, all fields loaded."""
    tokenizer = Dictionary(dict="core").tokenizer(mode=mode)
    sentences = re.findall("[^。！？!?]*[。！？!?]+|[^。！？!?]+", line)
    return [m.surface() for sentence in sentences for m in tokenizer.tokenize(sentence) if m.surface()]


def test_words_are_those_of_sudachi_with_all_fields(analyzer):
    assert analyzer.segment(LINE) == bare(LINE)
    assert "1528" in analyzer.segment("合計1528人")  # joined digits: lost when Sudachi loads no fields


@pytest.mark.parametrize("mode", ["A", "B", "C"])
def test_the_split_mode_is_the_one_asked_for(mode):
    assert build_analyzer(mode=mode).segment("選挙管理委員会と医薬品安全管理責任者") == bare(
        "選挙管理委員会と医薬品安全管理責任者", mode
    )


def test_longer_modes_give_longer_words():
    counts = [len(build_analyzer(mode=mode).segment("選挙管理委員会と国家公務員")) for mode in "ABC"]
    assert counts[0] > counts[2] and counts == sorted(counts, reverse=True)


def test_sentences_are_cut_after_their_end_marks(analyzer):
    words = analyzer.segment("痛い!?はい。。いいえ")
    assert words == [*analyzer.segment("痛い!?"), *analyzer.segment("はい。。"), *analyzer.segment("いいえ")]


@relaxed
@given(anything)
def test_words_of_any_line_join_to_the_line(analyzer, line):
    words = analyzer.segment(line)
    assert "".join(words) == line and all(words)


@relaxed
@given(anything)
def test_words_of_a_cleaned_line_join_to_the_line_and_hold_no_space(analyzer, text):
    for line in Cleaner()(text).split("\n"):
        words = analyzer.segment(line)
        assert "".join(words) == line and all(words)
        assert not any(" " in word for word in words)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "…",
        "痛い…。",
        "あ" * 17_000,  # over 49,149 bytes
        "㍿" * 12_000,  # over 65,535 bytes only after Sudachi's own normalisation
        "ﷺ" * 9_000,  # one character becomes 33 bytes
        "🧠" * 40_000,
        "\ud800" * 3 + "患者" + "\udfff" + "は" * 20_000 + "\ud834",
        "患者は、" * 20_000,
        "a\0b\u202ec\u200d",
        "か\u3099" * 9_000,
    ],
    ids=lambda line: f"{line[:2]!a} x {len(line)}",
)
def test_long_and_broken_lines_are_segmented_without_loss(analyzer, line):
    words = analyzer.segment(line)
    assert "".join(words) == line and all(words)


def test_long_text_is_cut_after_a_mark_where_there_is_one(analyzer):
    line = "患者は入院した、" * 4_000
    assert analyzer.segment(line) == analyzer.segment("患者は入院した、") * 4_000


def test_a_lone_surrogate_is_a_word_of_its_own(analyzer):
    assert analyzer.segment("患者\ud800入院") == ["患者", "\ud800", "入院"]


def test_other_errors_of_sudachi_are_not_hidden(analyzer, monkeypatch):
    def broken(_):
        raise RuntimeError("Tokenizer is already in use")

    monkeypatch.setattr(analyzer, "_tokenize", broken)
    with pytest.raises(RuntimeError, match="already in use"):
        analyzer.segment("患者")


def test_a_very_long_sentence_does_not_slow_later_ones():
    """Sudachi clears the largest lattice it ever built at each call; long sentences have their own."""
    analyzer = build_analyzer()
    lines = [LINE] * 300

    def seconds() -> float:
        return min(timed(lambda: [analyzer.segment(line) for line in lines]) for _ in range(5))

    fresh = seconds()
    analyzer.segment("🧠" * 12_000)
    assert seconds() < 1.5 * fresh


def test_segmenting_costs_no_more_than_a_bare_loop(analyzer):
    tokenizer = Dictionary(dict="core").tokenizer(mode="C")
    sentences = re.findall("[^。！？!?]*[。！？!?]+", LINE)
    own, loop = [], []
    for _ in range(7):
        own.append(timed(lambda: [analyzer.segment(LINE) for _ in range(200)]))
        loop.append(
            timed(lambda: [[m.surface() for s in sentences for m in tokenizer.tokenize(s)] for _ in range(200)])
        )
    assert min(own) < 1.25 * min(loop)


def timed(action) -> float:
    started = time.process_time()
    action()
    return time.process_time() - started


def test_identity_names_the_installed_versions(analyzer):
    assert analyzer.identity == {
        "name": "sudachi",
        "mode": "C",
        "dictionary": "core",
        "dictionary_version": importlib.metadata.version("sudachidict-core"),
        "version": importlib.metadata.version("sudachipy"),
    }
    assert sudachi_identity() == analyzer.identity
    assert isinstance(analyzer, Analyzer)


def test_an_analyzer_is_rebuilt_from_its_identity_and_not_pickled(analyzer):
    assert analyzer_from_identity(analyzer.identity).segment(LINE) == analyzer.segment(LINE)
    with pytest.raises(TypeError, match="analyzer_from_identity"):
        pickle.dumps(analyzer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "juman"}, r"analyzer\.name='juman'.*sudachi, mecab or vibrato"),
        ({"mode": "D"}, r"analyzer\.mode='D'.*A, B or C"),
        ({"mode": "c"}, r"analyzer\.mode='c'"),
        ({"dictionary": "neologd"}, r"analyzer\.dictionary='neologd'.*core, small or full"),
    ],
)
def test_unknown_settings_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_analyzer(**arguments)


def test_a_missing_dictionary_package_is_named_with_its_cure(monkeypatch):
    def absent(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(ncvc.morphology.importlib.metadata, "version", absent)
    with pytest.raises(ModuleNotFoundError, match=r"pip install sudachidict-full"):
        build_analyzer(dictionary="full")


def test_another_recorded_version_is_refused_with_both_versions_and_the_cure(analyzer):
    recorded = {**analyzer.identity, "dictionary_version": "20200101"}
    installed = analyzer.identity["dictionary_version"]
    with pytest.raises(ValueError, match=f"20200101 is recorded, {installed} is installed.*sudachidict-core==20200101"):
        check_identity(recorded)
    with pytest.raises(ValueError, match=r"pip install sudachipy==0\.1"):
        analyzer_from_identity({**analyzer.identity, "version": "0.1"})


def test_a_broken_identity_is_refused(analyzer):
    with pytest.raises(ValueError, match="'juman'"):
        check_identity({"name": "juman"})
    with pytest.raises(ValueError, match="lacks dictionary_version, version"):
        check_identity({"name": "sudachi", "mode": "C", "dictionary": "core"})
    with pytest.raises(ValueError, match="differs"):
        check_identity({**analyzer.identity, "user_dictionary": "names"})
