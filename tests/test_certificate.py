"""The certificate: a shared run is always found, strangers pass at the stated rate, its bytes depend on the texts."""

import gzip
import json
import math
import pickle
import random
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from multiprocessing import get_context

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from ncvc.corpus.cleaning import Cleaner
from ncvc.corpus.contamination import array_file, winnowing
from ncvc.corpus.contamination.certificate import FILTER, Certificate, merge_certificate
from ncvc.corpus.contamination.condensed import condense, fold, mix, window_hashes
from ncvc.corpus.contamination.index import ContaminationSettings
from ncvc.corpus.contamination.winnowing import (
    CertificateSettings,
    FingerprintWriter,
    as_keys,
    different,
    smallest,
    write_fingerprints,
)

KANA = "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろ"
PASSAGE = (
    "夜半に目を覚ました少年は、窓の外を横切る灯りを三つまで数えてから、"
    "古い地図に鉛筆で印をつけ、父の残した羅針盤を布袋へしまった。"
)


def words_of(seed, number):
    draw = random.Random(seed)
    return " ".join("".join(draw.choices(KANA, k=draw.randint(1, 4))) for _ in range(number))


def documents(count, *, seed=0):
    return [words_of(seed * 1_000_003 + number, 60) + " 。" for number in range(count)]


def certify(folder, texts, **options):
    chosen = CertificateSettings(**options)
    write_fingerprints(texts, output=folder / "all.fingerprints", settings=chosen)
    return merge_certificate(
        [folder / "all.fingerprints"], directory=folder / "certificate", corpus="corpus", settings=chosen
    )


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificate")
    return certify(folder, [*documents(300), " ".join(PASSAGE), *documents(300, seed=1)])


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


# --- finding
@pytest.mark.parametrize("form", ["as it is", "full width", "line breaks", "no punctuation", "in a long text"])
def test_a_passage_of_the_corpus_is_found_whatever_its_form(certificate, form):
    text = {
        "as it is": PASSAGE,
        "full width": PASSAGE.replace("、", "，").replace("。", "．"),
        "line breaks": "\n".join(PASSAGE[n : n + 7] for n in range(0, len(PASSAGE), 7)),
        "no punctuation": PASSAGE.replace("、", ""),
        "in a long text": "問い1 " + PASSAGE + "この少年の年齢を答えよ。",
    }[form]
    answer = certificate.was_seen(text)
    assert answer.verdict == "seen"
    assert answer.longest_run >= 40
    assert answer.chance < 1e-12
    assert answer.share == 1 or form == "in a long text"


@pytest.mark.parametrize("start", range(0, 27, 3))
def test_every_thirty_characters_of_the_corpus_are_found(certificate, start):
    letters = "".join(fold(character) for character in PASSAGE)
    assert certificate.was_seen(letters[start : start + 30]).verdict == "seen"


def test_what_shares_nothing_is_not_seen_and_what_is_short_is_said_to_be(certificate):
    answer = certificate.was_seen("港の倉庫では積み荷の木箱が朝までに運び出され、番人は古い帳面を書き写していた。")
    assert (answer.verdict, answer.share, answer.longest_run, answer.chance) == ("not seen", 0, 0, 1)
    for short in ("", "。。。", PASSAGE[:25], "\ud800" * 50, "😀" * 100):
        assert certificate.was_seen(short).verdict == "too short to tell"


@settings(max_examples=4, deadline=None)
@given(
    runs=st.lists(st.text("abcdefghijklmnopqrstuvwxyz", min_size=30, max_size=60), min_size=5, max_size=20),
    around=st.lists(st.text("abcdefghij。 \n", max_size=50), min_size=4, max_size=4),
)
def test_a_shared_run_of_thirty_characters_is_always_found(tmp_path_factory, runs, around):
    made = certify(tmp_path_factory.mktemp("shared"), [around[0] + run + around[1] for run in runs])
    for run in runs:
        assert made.was_seen(around[2] + run + around[3]).verdict == "seen"


def test_the_end_of_one_document_and_the_start_of_the_next_are_not_one_text(tmp_path):
    halves = [PASSAGE[:30], PASSAGE[30:]]
    joined = "".join(fold(character) for character in PASSAGE)
    across = joined[15:45]
    made = certify(tmp_path, halves)
    assert made.was_seen(across).verdict == "not seen"
    assert certify(tmp_path, ["".join(halves)]).was_seen(across).verdict == "seen"


def test_a_document_longer_than_a_block_is_known_at_every_place(tmp_path):
    text = words_of(5, 40_000)
    made = certify(tmp_path, [text])
    letters = text.replace(" ", "")
    assert len(letters) > 1 << 16
    for start in [*range(0, len(letters) - 30, 997), len(letters) - 30]:
        assert made.was_seen(letters[start : start + 30]).verdict == "seen"


# --- fingerprints, independently
@settings(max_examples=60, deadline=None)
@given(text=st.text("abcdefgh", min_size=0, max_size=90), length=st.integers(4, 20), extra=st.integers(0, 12))
def test_the_fingerprints_are_those_of_a_naive_winnowing(tmp_path_factory, text, length, extra):
    chosen = CertificateSettings(fingerprint_characters=length, guaranteed_characters=length + extra)
    folder = tmp_path_factory.mktemp("naive")
    count = write_fingerprints([text], output=folder / "a", settings=chosen)

    def hash_of(run):  # each run alone, so that its place cannot matter
        return int(mix(window_hashes(condense(run).prefix(), length=length))[0])

    runs = [hash_of(text[n : n + length]) for n in range(len(text) - length + 1)]
    naive = {min(runs[n : n + extra + 1]) for n in range(len(runs) - extra)}
    arrays, _ = array_file.open_arrays(folder / "a", file_format=winnowing.FORMAT, version=winnowing.VERSION)
    assert arrays["fingerprints"].tolist() == sorted(as_keys(np.array([*naive], np.uint64)).tolist())
    assert count == len(naive)


@given(st.lists(st.integers(0, 99), min_size=12, max_size=40), st.integers(1, 12))
def test_the_smallest_of_every_window_is_found(numbers, window):
    found = smallest(np.array(numbers, np.uint64), window=window)
    assert found.tolist() == [min(numbers[n : n + window]) for n in range(len(numbers) - window + 1)]


def test_about_one_position_in_six_gives_a_fingerprint(tmp_path):
    text = words_of(1, 40_000).replace(" ", "")
    count = write_fingerprints([text], output=tmp_path / "a")
    assert count / len(text) == pytest.approx(2 / 12, rel=0.03)  # 2 / (window + 1), Schleimer et al. 2003


# --- the stated rates
@pytest.mark.parametrize("rate", [1e-2, 1e-3])
def test_strangers_are_taken_for_known_at_the_stated_rate(tmp_path, rate):
    made = certify(tmp_path, documents(2_000), false_positive_rate=rate)
    asked = known = 0
    for text in documents(1_500, seed=7):
        answer = made.was_seen(text)
        asked += answer.fingerprints
        known += round(answer.share * answer.fingerprints)
    assert asked > 20_000
    # As full as the last part of the filter is: at most the stated rate, but for chance.
    assert known / asked < rate + 4 * math.sqrt(rate / asked)
    assert made.measured_false_positive_rate < 1.1 * rate


def test_a_filter_of_full_parts_meets_its_rate_from_both_sides(tmp_path):
    keys = different(mix(np.arange(1, 400_001, dtype=np.uint64) * np.uint64(0x632BE59BD9B4E019)))
    chosen = CertificateSettings(false_positive_rate=1e-2)
    header = {"guaranteed_characters": 30, "fingerprint_characters": 20, "false_positive_rate": 1e-2}
    array_file.write(
        tmp_path / "a", {"fingerprints": keys}, file_format=winnowing.FORMAT, version=winnowing.VERSION, header=header
    )
    made = merge_certificate([tmp_path / "a"], directory=tmp_path / "c", corpus="x", settings=chosen)
    assert made.manifest["parts"] == math.ceil(400_000 * chosen.bits_per_fingerprint / 2**20) == 4
    expected = 1e-2 * 2 ** -((4 * 2**20 / 400_000 - chosen.bits_per_fingerprint) * math.log(2))
    assert made.measured_false_positive_rate == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("rate", [1e-2, 1e-4, 1e-6])
def test_a_fingerprint_costs_what_the_theory_of_bloom_filters_says(rate):
    chosen = CertificateSettings(false_positive_rate=rate)
    assert chosen.bits_per_fingerprint == pytest.approx(math.log2(1 / rate) / math.log(2), rel=0.01)


def test_the_chance_is_the_binomial_tail(tmp_path):
    made = certify(tmp_path, documents(50), false_positive_rate=0.1)
    known = [words_of(3, 40) + words_of(number, 10) for number in range(20)]
    for text in known:
        answer = made.was_seen(text)
        present, rate = round(answer.share * answer.fingerprints), Fraction(1, 10)
        tail = sum(
            math.comb(answer.fingerprints, n) * rate**n * (1 - rate) ** (answer.fingerprints - n)
            for n in range(present, answer.fingerprints + 1)
        )
        assert answer.chance == pytest.approx(float(tail))
        assert (answer.verdict == "seen") == (present > 0)


# --- the same bytes
def write_shard(job):
    path, texts = job
    write_fingerprints(texts, output=path)
    return path


def test_the_bytes_are_the_same_for_any_number_of_shards_workers_and_any_order(tmp_path):
    texts = documents(400)
    write_fingerprints(texts, output=tmp_path / "one" / "all")
    whole = merge_certificate([tmp_path / "one" / "all"], directory=tmp_path / "a", corpus="corpus")
    random.Random(1).shuffle(texts)
    jobs = [(tmp_path / "five" / f"{9 - number}", texts[number::5] + texts[:3]) for number in range(5)]
    with ProcessPoolExecutor(2, mp_context=get_context("forkserver")) as pool:
        paths = list(pool.map(write_shard, jobs))
    merge_certificate(paths, directory=tmp_path / "b", corpus="corpus")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert whole.manifest["corpus"] == "corpus"


def test_a_writer_inside_a_pipeline_writes_what_a_list_of_texts_gives(tmp_path):
    writer = FingerprintWriter(tmp_path / "a")
    for text in documents(50):
        writer.add(text)
    assert not (tmp_path / "a").exists()
    assert writer.close() == write_fingerprints(documents(50), output=tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_corpus_of_short_documents_has_an_empty_certificate(tmp_path):
    made = certify(tmp_path, ["短い 文", "", "もう 一つ の 文"])
    assert made.manifest["fingerprints"] == 0
    assert made.was_seen(PASSAGE).verdict == "not seen"


def test_segmented_and_cleaned_text_give_the_same_fingerprints(tmp_path):
    cleaned = Cleaner()(PASSAGE * 3)
    write_fingerprints([" ".join(cleaned)], output=tmp_path / "a")
    write_fingerprints([cleaned], output=tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# --- the folder
def test_a_certificate_opens_again_and_travels_to_another_process(certificate):
    opened = Certificate.open(certificate.directory, verify=True)
    sent = pickle.loads(pickle.dumps(opened))
    for one in (opened, sent):
        assert one.was_seen(PASSAGE) == certificate.was_seen(PASSAGE)
        assert one.corpus == "corpus"
    assert "measured" in str(opened)
    assert "seen" in str(opened.was_seen(PASSAGE))


def test_no_part_of_the_text_stands_in_the_certificate(certificate):
    for data in contents(certificate.directory).values():
        for encoding in ("utf-8", "utf-16-le", "utf-32-le"):
            for start in range(0, len(PASSAGE) - 4):
                assert PASSAGE[start : start + 4].encode(encoding) not in data


def test_an_altered_or_foreign_certificate_is_refused(tmp_path):
    made = certify(tmp_path, documents(5))
    filled = made.directory / FILTER
    whole = filled.read_bytes()
    for data, reason in ((whole[:-1], "truncated"), (b"x" + whole[1:], "altered")):
        filled.write_bytes(data)
        with pytest.raises(ValueError, match=reason):
            Certificate.open(made.directory)
    filled.write_bytes(whole)
    manifest = json.loads((made.directory / "manifest.json").read_text())
    manifest["cleaner"]["sha256"] = "0" * 64
    (made.directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="another version of the cleaning rules"):
        Certificate.open(made.directory)
    with pytest.raises(FileNotFoundError, match="not a finished folder"):
        Certificate.open(tmp_path / "none")


def test_damaged_shards_and_those_of_other_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one shard"):
        merge_certificate([], directory=tmp_path / "c", corpus="x")
    path = tmp_path / "a"
    write_fingerprints(documents(3), output=path, settings=CertificateSettings(fingerprint_characters=16))
    with pytest.raises(ValueError, match="other settings"):
        merge_certificate([path], directory=tmp_path / "c", corpus="x")
    write_fingerprints(documents(3), output=path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="truncated"):
        merge_certificate([path], directory=tmp_path / "c", corpus="x")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"fingerprint_characters": 31}, r"certificate\.fingerprint_characters=31"),
        ({"fingerprint_characters": 2}, r"certificate\.fingerprint_characters=2"),
        ({"false_positive_rate": 0.0}, r"certificate\.false_positive_rate=0.0"),
        ({"false_positive_rate": float("nan")}, r"certificate\.false_positive_rate=nan"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(values, reason):
    with pytest.raises(ValueError, match=reason):
        CertificateSettings(**values)


def test_keys_spread_evenly_though_the_smallest_of_many_are_small():
    hashes = mix(np.arange(1, 100_001, dtype=np.uint64))
    keys = as_keys(smallest(hashes, window=11))
    assert np.mean(keys >= np.uint64(1 << 63)) == pytest.approx(0.5, abs=0.03)


@pytest.mark.slow
def test_benchmark_questions_are_not_seen_in_real_medical_text_but_for_chance(tmp_path):
    shared = REPOSITORY.parent / "shared" / "data"
    if not shared.is_dir():
        pytest.skip("needs the shared data beside the repository")
    cleaner, texts = Cleaner(), []
    for path in sorted((shared / "medical_text").glob("*.gz")):
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")
        texts += [cleaner(json.loads(line)["text"]) for line in lines if line]
    made = certify(tmp_path, texts)
    items = ContaminationSettings(sources=(str(shared / "igakuqa" / "data"),)).read_items()
    answers = [made.was_seen(item.text) for item in items]
    fingerprints = sum(answer.fingerprints for answer in answers)
    known = sum(round(answer.share * answer.fingerprints) for answer in answers)
    assert fingerprints > 30_000
    assert known <= 1e-4 * fingerprints + 4 * math.sqrt(1e-4 * fingerprints) + 1
    for text in texts:
        if condense(text).num_characters >= 30:
            assert made.was_seen(text).share == 1
