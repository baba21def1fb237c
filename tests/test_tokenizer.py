"""Tokenizer: lossless for every text, bounded and refusing what would make other ids.

The reference for ids is the `tokenizers` package reading the saved file, for texts it is the cleaner.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import math
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ncvc.morphology
import ncvc.unigram
import ncvc.word_ids
from ncvc.corpus.cleaning import Cleaner
from ncvc.morphology import Analyzer, build_analyzer
from ncvc.tokenizer import (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    INITIAL_ALPHABET,
    METADATA_FILE,
    MODEL_FILE,
    SMALLEST_VOCABULARY,
    Tokenizer,
    segment_text,
)

relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck))
anything = st.text(st.characters(codec=None, exclude_categories=()), max_size=60)
typed = st.lists(
    st.sampled_from(
        [
            BEGIN_OF_TEXT,
            END_OF_TEXT,
            "<unk>",
            "<0x41>",
            "<0xE3>",
            "<|unused_0|>",
            "\n",
            " ",
            "患者は",
            "𠮷",
            "﨑",
            "é",
            "<",
            "|",
            "0x",
        ]
    ),
    max_size=12,
).map("".join)
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
TEXTS = [
    "患者は72歳の男性。急性心筋梗塞の診断で入院した。\n血圧120/80 mmHg、体温37.5℃であった。",
    "脳梗塞の既往があり、アスピリンを内服している。糖尿病と高血圧の治療中である。",
    "胸部CTで右肺に結節影を認め、肺癌が疑われた。気管支鏡検査を予定している。",
    "大腸癌の術後、肝転移に対して化学療法を開始した。副作用として悪心と下痢を認めた。",
    "Patient was treated with aspirin 100 mg daily. <|end_of_text|> <0x41>",
]


@pytest.fixture(scope="module")
def cleaner() -> Cleaner:
    return Cleaner()


@pytest.fixture(scope="module")
def analyzer() -> Analyzer:
    return build_analyzer()


@pytest.fixture(scope="module")
def segmented(cleaner, analyzer) -> list[str]:
    return [segment_text(cleaner(text), analyzer=analyzer) for text in TEXTS * 20]


def trained(segmented, cleaner, analyzer, *, vocab_size=700, **arguments) -> Tokenizer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Tokenizer.train(
            iter(segmented),
            vocab_size=vocab_size,
            cleaner=cleaner,
            analyzer=analyzer,
            progress=False,
            **arguments,
        )


@pytest.fixture(scope="module")
def tokenizer(segmented, cleaner, analyzer) -> Tokenizer:
    return trained(segmented, cleaner, analyzer)


@pytest.fixture
def saved(tokenizer, tmp_path) -> Path:
    tokenizer.save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


# --- text and ids ---
def test_segmented_text_has_one_space_between_words_and_keeps_lines(cleaner, analyzer):
    segmented = segment_text(cleaner("血圧120/80 mmHg。\n体温37.5℃"), analyzer=analyzer)
    assert segmented == "血圧 120 / 80 ▁ mmHg 。\n体温 37.5 ℃"


@relaxed
@given(st.one_of(anything, typed))
def test_decoding_gives_the_cleaned_text_of_any_text_back(tokenizer, cleaner, text):
    ids = tokenizer.encode(text)
    cleaned = cleaner(text)
    assert tokenizer.decode(ids) == cleaned.replace("▁", " ")
    assert tokenizer.decode(ids, skip_special_tokens=False) == cleaned.replace("▁", " ")
    assert tokenizer.character_counts[ids].sum() == len(cleaned)


@relaxed
@given(st.one_of(anything, typed))
def test_no_text_gives_a_special_or_unused_id(tokenizer, text):
    ids = tokenizer.encode(text)
    inert = {0, 1, 3} | {id for id, piece in enumerate(tokenizer.pieces) if piece.startswith("<|unused_")}
    assert not inert & set(ids)


def test_special_tokens_typed_in_a_text_are_ordinary_characters(tokenizer, segmented):
    text = "おわり<|end_of_text|>と<0x41>と<|begin_of_text|>と<unk>と<|unused_0|>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert min(ids) >= 260


def test_every_character_the_alphabet_has_is_one_step(tokenizer):
    for character in INITIAL_ALPHABET:
        assert len(tokenizer.encode_segmented(character)) == 1
    assert tokenizer.encode("7") == [tokenizer.pieces.index("7")]


def test_a_character_without_a_piece_becomes_its_utf8_bytes(tokenizer):
    ids = tokenizer.encode_segmented("𠮷")
    assert ids == [4 + byte for byte in "𠮷".encode()]
    assert list(tokenizer.character_counts[ids]) == [1, 0, 0, 0]


def test_lines_are_joined_by_the_newline_id(tokenizer):
    assert tokenizer.newline_id == 2
    first, second = tokenizer.encode("急性心筋梗塞"), tokenizer.encode("体温")
    assert tokenizer.encode("急性心筋梗塞\n\n体温") == [*first, 2, *second]
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""


def test_decoding_names_or_skips_special_tokens_and_survives_broken_bytes(tokenizer):
    ids = [0, *tokenizer.encode("体温"), 1]
    assert tokenizer.decode(ids) == "体温"
    assert tokenizer.decode(ids, skip_special_tokens=False) == f"{BEGIN_OF_TEXT}体温{END_OF_TEXT}"
    assert tokenizer.decode([4 + 0xE3, *tokenizer.encode("熱")]) == "\ufffd熱"
    assert tokenizer.decode(np.array(ids)) == "体温"
    for id in (tokenizer.vocab_size, -1):
        with pytest.raises(ValueError, match=f"vocabulary of {tokenizer.vocab_size}"):
            tokenizer.decode([id])


def test_text_that_was_not_cleaned_is_refused(tokenizer):
    with pytest.raises(ValueError, match="not cleaned"):
        tokenizer.encode_segmented("患者 \ud800")


# --- vocabulary ---
def test_the_vocabulary_has_the_promised_layout_and_size(tokenizer):
    assert tokenizer.vocab_size == len(tokenizer.pieces) == len(set(tokenizer.pieces)) == 700
    assert tokenizer.pieces[:4] == (BEGIN_OF_TEXT, END_OF_TEXT, "\n", "<unk>")
    assert (tokenizer.begin_id, tokenizer.end_id, tokenizer.newline_id) == (0, 1, 2)
    assert tokenizer.pieces[4:260] == tuple(f"<0x{byte:02X}>" for byte in range(256))
    learned = [piece for piece in tokenizer.pieces[260:] if not piece.startswith("<|unused_")]
    assert learned == sorted(learned) and set(INITIAL_ALPHABET) < set(learned)
    assert len(tokenizer.character_counts) == 700 and not tokenizer.character_counts[[0, 1, 3]].any()


def test_frequent_words_become_one_piece_though_part_of_no_other_word(segmented, cleaner, analyzer, monkeypatch):
    words = {word for text in segmented for word in text.split() if 2 <= len(word) <= 16}

    def share_of_whole_words() -> float:
        pieces = trained(segmented, cleaner, analyzer, vocab_size=1000).pieces[260:]
        assert max(len(piece) for piece in pieces if not piece.startswith("<|")) <= 16
        return len(words & set(pieces)) / len(words)

    assert share_of_whole_words() > 0.8
    monkeypatch.setattr(ncvc.unigram, "LEAST_COUNT", 10**9)  # the training of the package alone
    assert share_of_whole_words() < 0.4


def test_the_count_of_words_is_bounded(segmented, tokenizer, cleaner, analyzer, monkeypatch):
    monkeypatch.setattr(ncvc.unigram, "MOST_WORDS", 40)
    assert trained(segmented, cleaner, analyzer).vocab_size == tokenizer.vocab_size


def test_too_little_text_leaves_unused_entries_and_a_warning_that_counts_them(segmented, cleaner, analyzer):
    with pytest.warns(UserWarning, match=r"gave (\d+) pieces .*so (\d+) of the 3000 .*vocab_size to (\d+)") as caught:
        small = Tokenizer.train(segmented, vocab_size=3000, cleaner=cleaner, analyzer=analyzer, progress=False)
    unused = sum(piece.startswith("<|unused_") for piece in small.pieces)
    assert small.vocab_size == 3000 and unused == small.training["unused"] > 0
    assert f"so {unused} of" in str(caught[0].message) and f"to {3000 - unused}" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        full = Tokenizer.train(segmented, vocab_size=3000 - unused, cleaner=cleaner, analyzer=analyzer, progress=False)
    assert full.training["unused"] == 0


@pytest.mark.parametrize("vocab_size", [0, 260, SMALLEST_VOCABULARY - 1])
def test_a_vocabulary_without_room_for_the_alphabet_is_refused(vocab_size, segmented, cleaner, analyzer):
    with pytest.raises(ValueError, match=rf"vocab_size={vocab_size} is too small.*at least {SMALLEST_VOCABULARY}"):
        trained(segmented, cleaner, analyzer, vocab_size=vocab_size)


def test_a_vocabulary_without_room_for_the_characters_of_the_text_names_what_it_needs(segmented, cleaner, analyzer):
    needed = 260 + len(set("".join(segmented)) - {" ", "\n"} | set(INITIAL_ALPHABET))
    with pytest.raises(ValueError, match=f"vocab_size={needed - 1} is too small.*at least {needed} "):
        trained(segmented, cleaner, analyzer, vocab_size=needed - 1)
    assert trained(segmented, cleaner, analyzer, vocab_size=needed).vocab_size == needed


@pytest.mark.parametrize("texts", [[], [""], ["", " \n "]])
def test_an_empty_training_text_is_refused(texts, cleaner, analyzer):
    with pytest.raises(ValueError, match="training text of the tokenizer is empty"):
        trained(texts, cleaner, analyzer)


def test_the_settings_of_the_report_are_the_defaults_and_reach_the_trainer(segmented, cleaner, analyzer, monkeypatch):
    seen = {}
    real = ncvc.unigram.trainers.UnigramTrainer

    def spy(**arguments):
        seen.update(arguments)
        return real(**arguments)

    monkeypatch.setattr(ncvc.unigram.trainers, "UnigramTrainer", spy)
    trained(segmented, cleaner, analyzer)
    assert (seen["shrinking_factor"], seen["max_piece_length"], seen["n_sub_iterations"]) == (
        0.75,
        16,
        8,
    )  # R34
    short = trained(segmented, cleaner, analyzer, max_piece_length=2)
    assert max(map(len, [p for p in short.pieces[260:] if not p.startswith("<|")])) == 2


def test_two_trainings_give_the_same_pieces_and_the_same_ids(segmented, tokenizer, cleaner, analyzer):
    again = trained(segmented, cleaner, analyzer)
    assert again.pieces == tokenizer.pieces
    assert [again.encode_segmented(s) for s in segmented[:5]] == [tokenizer.encode_segmented(s) for s in segmented[:5]]


def test_special_names_in_the_training_text_do_not_shift_the_ids(cleaner, analyzer):
    texts = ["<|end_of_text|> <0x41> <unk> <|unused_0|> <|unused_1|>"] * 50
    odd = trained(texts, cleaner, analyzer, vocab_size=900)
    assert len(set(odd.pieces)) == odd.vocab_size == 900
    assert odd.decode(odd.encode_segmented(texts[0])) == texts[0].replace(" ", "")
    assert min(odd.encode_segmented(texts[0])) >= 260


# --- the fast path ---
@relaxed
@given(st.one_of(anything, typed, st.text("あア心臓。！? \u2581…㍿a1\ud800\n", max_size=80)))
def test_words_written_by_the_analyser_are_the_words_of_its_list(analyzer, text):
    for line in text.split("\n"):
        assert analyzer.segment_joined(line) == " ".join(analyzer.segment(line))
        assert analyzer.segment_joined(line) == " ".join(analyzer.segment(line)), "remembered"


def test_long_and_refused_lines_are_the_same_too_and_remembered_sentences_bounded(analyzer, monkeypatch):
    for line in ("㍿" * 12_000, "心不全の" * 9_000, "\ud800" + "あ" * 1_200 + "。" + "…" * 50, " 患者 は "):
        assert analyzer.segment_joined(line) == " ".join(analyzer.segment(line))
    monkeypatch.setattr(ncvc.morphology, "KEPT_SENTENCES", 5)
    fresh = build_analyzer()
    for number in range(50):
        assert fresh.segment_joined(f"{number}例。") == " ".join(fresh.segment(f"{number}例。"))
        assert len(fresh._joined) <= 5


@relaxed
@given(st.lists(st.one_of(anything, typed), max_size=6))
def test_a_batch_gives_the_ids_of_each_text(tokenizer, texts):
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


# --- the cache ---
def test_the_word_cache_is_bounded_and_changes_no_id(tokenizer, segmented, monkeypatch):
    expected = [tokenizer.encode_segmented(text) for text in segmented[:5]]
    monkeypatch.setattr(ncvc.word_ids, "CACHE_WORDS", 7)
    small = pickle.loads(pickle.dumps(tokenizer))
    for _ in range(3):
        assert [small.encode_segmented(text) for text in segmented[:5]] == expected
        assert len(small._word_ids) <= 7
    long_word = "あ" * 5_000
    assert small.decode(small.encode_segmented(long_word)) == long_word
    assert long_word not in small._word_ids


# --- files ---
def test_a_saved_tokenizer_gives_the_same_ids(saved, tokenizer):
    loaded = Tokenizer.load(saved)
    assert loaded.fingerprint == tokenizer.fingerprint and loaded.pieces == tokenizer.pieces
    assert np.array_equal(loaded.character_counts, tokenizer.character_counts)
    assert loaded.training == tokenizer.training
    for text in TEXTS:
        assert loaded.encode(text) == tokenizer.encode(text)
    assert sorted(path.name for path in saved.iterdir()) == sorted([MODEL_FILE, METADATA_FILE])


def test_the_tokenizers_package_reads_the_file_and_gives_the_same_ids(saved, tokenizer, segmented):
    reference = tokenizers.Tokenizer.from_file(str(saved / MODEL_FILE))
    for text in segmented[:4]:
        ids = reference.encode(text).ids
        assert ids == tokenizer.encode_segmented(text)
        assert reference.decode(ids) == tokenizer.decode(ids)
    assert reference.get_vocab_size() == tokenizer.vocab_size
    assert [reference.token_to_id(token) for token in (BEGIN_OF_TEXT, END_OF_TEXT, "\n")] == [0, 1, 2]
    scores = [score for _, score in json.loads((saved / MODEL_FILE).read_text("utf-8"))["model"]["vocab"]]
    assert all(math.isfinite(score) and score == round(score, 3) for score in scores)


@relaxed
@given(text=anything)
def test_ids_equal_those_of_the_tokenizers_package_on_any_text(tokenizer, cleaner, analyzer, text):
    reference = tokenizers.Tokenizer.from_str(tokenizer._model_json())
    segmented = segment_text(cleaner(text), analyzer=analyzer)
    assert tokenizer.encode_segmented(segmented) == reference.encode(segmented).ids


def test_saving_again_replaces_both_files_and_leaves_nothing_behind(saved, segmented, cleaner, analyzer):
    other = trained(segmented, cleaner, analyzer, vocab_size=800)
    other.save(saved)
    assert Tokenizer.load(saved).fingerprint == other.fingerprint
    assert len(list(saved.iterdir())) == 2


def test_an_interrupted_save_leaves_the_old_tokenizer_or_a_refusal(saved, segmented, cleaner, analyzer, monkeypatch):
    old = Tokenizer.load(saved).fingerprint
    other = trained(segmented, cleaner, analyzer, vocab_size=800)
    written = []
    real = ncvc.tokenizer._write_whole

    def stop_before(name):
        def write(path, text):
            if path.name == name:
                raise OSError("no space left on device")
            written.append(path.name)
            real(path, text)

        return write

    monkeypatch.setattr(ncvc.tokenizer, "_write_whole", stop_before(MODEL_FILE))
    with pytest.raises(OSError, match="no space"):
        other.save(saved)
    assert Tokenizer.load(saved).fingerprint == old
    monkeypatch.setattr(ncvc.tokenizer, "_write_whole", stop_before(METADATA_FILE))
    with pytest.raises(OSError, match="no space"):
        other.save(saved)
    assert written == [MODEL_FILE]
    with pytest.raises(ValueError, match="was changed"):
        Tokenizer.load(saved)


def test_a_failed_write_leaves_no_half_file(tmp_path, monkeypatch):
    target = tmp_path / "file"
    target.write_text("old")

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(ncvc.tokenizer.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        ncvc.tokenizer._write_whole(target, "new")
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def change(directory: Path, **changes) -> None:
    path = directory / METADATA_FILE
    facts = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**facts, **changes}), "utf-8")


@pytest.mark.parametrize("name", [MODEL_FILE, METADATA_FILE])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        Tokenizer.load(saved)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*is missing"):
        Tokenizer.load(tmp_path / "nowhere")


def test_a_changed_vocabulary_is_refused(saved):
    path = saved / MODEL_FILE
    path.write_text(path.read_text("utf-8").replace("患", "恩", 1), "utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json was changed"):
        Tokenizer.load(saved)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_broken_metadata_is_refused_by_name(saved, content):
    (saved / METADATA_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"ncvc_tokenizer\.json.*(JSON|UTF-8|object)"):
        Tokenizer.load(saved)


def test_another_format_version_is_refused(saved):
    change(saved, format_version=99)
    with pytest.raises(ValueError, match="format version 99"):
        Tokenizer.load(saved)


def test_lacking_facts_are_named(saved):
    facts = json.loads((saved / METADATA_FILE).read_text("utf-8"))
    del facts["analyzer"]
    (saved / METADATA_FILE).write_text(json.dumps(facts), "utf-8")
    with pytest.raises(ValueError, match="lacks analyzer"):
        Tokenizer.load(saved)


def test_cleaning_rules_this_version_does_not_have_are_refused(saved, cleaner):
    change(saved, cleaner={**cleaner.identity, "sha256": "0" * 64})
    with pytest.raises(ValueError, match=rf"0{{64}}.*{cleaner.identity['sha256']}.*train it again"):
        Tokenizer.load(saved)
    change(saved, cleaner={"rules": "strict"})
    with pytest.raises(ValueError, match="'strict'"):
        Tokenizer.load(saved)


def test_another_dictionary_version_is_refused_with_the_package_to_install(saved, analyzer):
    installed = importlib.metadata.version("sudachidict-core")
    change(saved, analyzer={**analyzer.identity, "dictionary_version": "20200101"})
    message = rf"20200101 is recorded, {installed} is installed.*pip install sudachidict-core==20200101"
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(saved)


def test_facts_that_contradict_the_files_are_refused(saved, analyzer):
    change(saved, fingerprint="0" * 64)
    with pytest.raises(ValueError, match=r"was changed.*fingerprint"):
        Tokenizer.load(saved)


def test_the_fingerprint_covers_pieces_cleaner_and_analyzer(tokenizer, segmented, cleaner, analyzer):
    others = [
        trained(segmented, cleaner, analyzer, vocab_size=701),
        trained(segmented, Cleaner("literal"), analyzer),
        trained(segmented, cleaner, build_analyzer(mode="A")),
    ]
    assert len({tokenizer.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_a_literal_tokenizer_remembers_its_rules(segmented, analyzer, tmp_path):
    trained(segmented, Cleaner("literal"), analyzer).save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.cleaner.identity["rules"] == "literal"
    assert loaded.decode(loaded.encode("３８．５℃")) == "38。5℃"


def test_loading_does_not_open_the_dictionary_and_pickling_keeps_everything(saved, tokenizer):
    loaded = Tokenizer.load(saved)
    assert loaded._analyzer is None
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.fingerprint == tokenizer.fingerprint and copy.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


def test_real_text_survives_and_repeated_trainings_agree(cleaner, analyzer):
    path = SHARED / "medical_text" / "wiki_medical.jsonl.gz"
    if not path.is_file():
        pytest.skip("the sample corpora beside this project are absent")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    segmented = [segment_text(cleaner(text), analyzer=analyzer) for text in texts]
    first, second = (trained(segmented, cleaner, analyzer, vocab_size=4096) for _ in range(2))
    assert first.pieces == second.pieces
    for text, words in zip(texts, segmented, strict=True):
        assert first.encode_segmented(words) == second.encode_segmented(words) == first.encode(text)
        assert first.decode(first.encode(text)) == cleaner(text).replace("▁", " ")


def test_with_coverage_below_one_rare_characters_are_bytes_and_still_lossless(cleaner, analyzer):
    texts = [
        segment_text(cleaner(text), analyzer=analyzer)
        for text in ["患者は発熱を主訴に来院した。"] * 400 + ["鬱蒼とした麒麟。"]
    ]
    with pytest.warns(UserWarning, match="unused"):
        whole = Tokenizer.train(texts, vocab_size=700, cleaner=cleaner, analyzer=analyzer, progress=False)
        cut = Tokenizer.train(
            texts, vocab_size=700, cleaner=cleaner, analyzer=analyzer, character_coverage=0.995, progress=False
        )
    assert len(whole.encode("麒麟")) < len(cut.encode("麒麟")) == 6  # three bytes each
    assert cut.decode(cut.encode("患者の麒麟。")) == "患者の麒麟。"
    assert len(cut.encode("患者は発熱")) == len(whole.encode("患者は発熱"))


@pytest.mark.parametrize("coverage", [0.0, -1.0, 1.01])
def test_a_coverage_outside_its_range_is_refused(cleaner, analyzer, coverage):
    with pytest.raises(ValueError, match=rf"tokenizer\.character_coverage={coverage}"):
        Tokenizer.train(["患者"], vocab_size=700, cleaner=cleaner, analyzer=analyzer, character_coverage=coverage)


def test_text_is_read_once_and_gives_the_same_tokenizer_to_the_last_digit(segmented, cleaner, analyzer):
    once, listed = (
        trained(texts, cleaner, analyzer, character_coverage=0.999) for texts in (iter(segmented), segmented[::-1])
    )
    assert once.fingerprint == listed.fingerprint
