"""User dictionaries: names of a lexicon stay one word, the same names give the same bytes, and misfits are refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ncvc.analyzers.files import VARIABLE, analyzer_files, sha256_of
from ncvc.analyzers.lexicon import Entry, LexiconSettings, read_lexicon
from ncvc.analyzers.lexicon_report import as_table, whole_names_report
from ncvc.analyzers.user_dictionary import (
    CONTEXT,
    UserDictionary,
    build_user_dictionary,
    dictionary_names,
    user_dictionary_file,
    whole_names,
)
from ncvc.config import CONF_DIRECTORY
from ncvc.corpus.cleaning import Cleaner
from ncvc.morphology import analyzer_from_identity, build_analyzer, check_identity
from ncvc.tokenizer import METADATA_FILE, Tokenizer, segment_text

NAMES = [
    *("急性心筋梗塞後", "慢性心不全", "非小細胞肺癌", "COVID-19", "HBV既感染", "右中大脳動脈閉塞症", "糖尿病"),
    *(
        "Euthyroid▁Sick症候群",
        "ⅡA型高リポ蛋白血症",
        "2,4-ジクロロ中毒",
        '抗毒素"化血研"',
        "アーチスト錠2.5mg",
        "肺炎(疑い)",
    ),
    *("covid-19", "㌔病変部"),
]


def entry(surface: str) -> Entry:
    return Entry(surface=surface, reading=None, kind="disease", code=None, source="test", frequency=None)


ENTRIES = [entry(name) for name in NAMES]


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> UserDictionary:
    return build_user_dictionary(ENTRIES, directory=tmp_path_factory.mktemp("lexicon"))


BEFORE_AND_AFTER = {
    "急性心筋梗塞後の慢性心不全": ["急性心筋梗塞後", "の", "慢性心不全"],
    "右下葉の非小細胞肺癌と診断された。": ["右", "下葉", "の", "非小細胞肺癌", "と", "診断", "さ", "れ", "た", "。"],
    "ＨＢＶ既感染でCOVID-19の罹患歴がある。": ["HBV既感染", "で", "COVID-19", "の", "罹患", "歴", "が", "ある", "。"],
    "右中大脳動脈閉塞症を認めた。": ["右中大脳動脈閉塞症", "を", "認め", "た", "。"],
}


@pytest.mark.parametrize("text", BEFORE_AND_AFTER)
def test_compound_names_of_real_sentences_are_split_before_and_whole_after(built, text):
    line = Cleaner()(text)
    before, after = build_analyzer().segment(line), build_analyzer(user_dictionary=built.folder).segment(line)
    assert after == BEFORE_AND_AFTER[text]
    assert len(before) > len(after) and "".join(before) == "".join(after) == line
    assert any(name in after and name not in before for name in NAMES)


@pytest.mark.parametrize("mode", ["A", "B", "C"])
def test_every_name_stays_whole_in_every_mode(built, mode):
    names, _ = dictionary_names(ENTRIES)
    count, broken = whole_names(names, analyzer=build_analyzer(mode=mode, user_dictionary=str(built.file)))
    assert broken == [] and count == len(names)


def test_whole_names_counts_as_a_plain_look_at_the_words_does(built):
    analyzer = build_analyzer()
    names = [*NAMES[:7], "は"]
    count, broken = whole_names(names, analyzer=analyzer, context="患者は{}である。")
    plain = [name for name in names if name in analyzer.segment(f"患者は{name}である。")[2:]]
    assert count == len(plain) and broken == [name for name in names if name not in plain] and broken
    with pytest.raises(ValueError, match=r"has no \{\}"):
        whole_names(names, analyzer=analyzer, context="患者")


def test_short_everyday_names_get_no_word_of_their_own():
    names, left_out = dictionary_names([entry(name) for name in ("不安", "痛み", "だるさ", "めまい", "肺癌", *NAMES)])
    assert not {"不安", "痛み", "だるさ", "めまい", "肺癌"} & set(names)
    assert left_out == {"short": 3, "short hiragana": 2, "too long": 0, "unusable": 0}
    assert names == sorted(set(NAMES))


def test_names_that_would_break_a_compiler_are_left_out_and_the_rest_is_built(tmp_path):
    hostile = [
        "急性\n心筋",
        "急性 心筋",
        "急性\0心筋",
        "急性\ud800心筋",
        "\\u6025性心筋",
        "心" * 256,
        "",
        "#病名",
        "//病名",
        "%m病名",
    ]
    entries = [entry(name) for name in [*hostile, '"', '","病', "病名,", "心" * 255, "急性心筋梗塞後"]]
    names, left_out = dictionary_names(entries)
    assert left_out == {"short": 2, "short hiragana": 0, "too long": 1, "unusable": 5} and len(names) == 7
    for analyzer in ("mecab", "vibrato"):
        assert build_user_dictionary(entries, directory=tmp_path, analyzer=analyzer).manifest["names"] == 7
    mecab = build_analyzer("mecab", user_dictionary=next(tmp_path.glob("mecab-*")))
    assert whole_names(names, analyzer=mecab)[1] == []


def test_the_report_counts_whole_names_before_and_after(tmp_path):
    records = whole_names_report(
        ENTRIES, analyzers={"MeCab": {"name": "mecab"}}, directory=tmp_path, contexts=["は{}と"]
    )
    names = [name for name in NAMES if len(name) >= 3]
    bare = build_analyzer("mecab")
    before = sum(bare.segment(f"は{name}と")[1] == name for name in names)
    assert [(r["names"], r["whole_before"], r["whole_after"]) for r in records] == [(len(names), before, len(names))]
    assert f"| MeCab | は＿と | {len(names)} | {before / len(names):.2%} | 100.00% |" in as_table(records)
    with pytest.raises(ValueError, match="no name of 3 characters"):
        whole_names_report([entry("肺癌")], analyzers={}, directory=tmp_path)


@pytest.mark.slow
def test_at_least_995_of_1000_names_of_the_public_lists_stay_whole(tmp_path):
    lists = CONF_DIRECTORY.parent.parent / "shared" / "data" / "disease_names"
    if not lists.is_dir():
        pytest.skip("the name lists beside this project are absent")
    files = {
        "manbyo": {"path": str(lists / "manbyo_surface_forms.csv.gz"), "format": "manbyo"},
        "ssk": {"path": str(lists / "ssk_disease_master_20240601.csv.gz"), "format": "ssk_disease"},
    }
    entries = read_lexicon(LexiconSettings(files=files)).entries
    analyzers = {"A": {"mode": "A"}, "B": {"mode": "B"}, "C": {"mode": "C"}, "MeCab": {"name": "mecab"}}
    for record in whole_names_report(entries, analyzers=analyzers, directory=tmp_path, contexts=[CONTEXT]):
        assert record["names"] > 55_000 and record["whole_before"] < 0.1 * record["names"]
        assert record["whole_after"] >= 0.995 * record["names"], (record["analyzer"], record["broken"])


def test_ordinary_text_is_cut_as_before(built):
    line = "今日は天気が良いので、妻と二人で近くの公園へ散歩に行った。"
    assert build_analyzer(user_dictionary=built.folder).segment(line) == build_analyzer().segment(line)


def test_the_same_names_in_any_order_and_often_give_the_same_bytes_and_are_built_once(built, tmp_path):
    again = build_user_dictionary([*reversed(ENTRIES), *ENTRIES], directory=tmp_path)
    assert again.file.read_bytes() == built.file.read_bytes() and again.folder.name == built.folder.name
    assert again.manifest == built.manifest
    changed = again.file.stat().st_mtime_ns
    assert build_user_dictionary(ENTRIES, directory=tmp_path).file.stat().st_mtime_ns == changed
    assert [path.name for path in tmp_path.iterdir()] == [built.folder.name]


def test_mecab_and_vibrato_take_the_same_names_and_other_costs_make_other_folders(tmp_path):
    folders = {
        build_user_dictionary(ENTRIES, directory=tmp_path, analyzer=name, cost=cost).folder
        for name in ("mecab", "vibrato")
        for cost in (3000, 4000)
    }
    assert len(folders) == 4
    mecab = build_user_dictionary(ENTRIES, directory=tmp_path, analyzer="mecab")
    analyzer = build_analyzer("mecab", user_dictionary=mecab.folder)
    assert analyzer.segment("急性心筋梗塞後の慢性心不全") == ["急性心筋梗塞後", "の", "慢性心不全"]
    assert build_analyzer("mecab").segment("急性心筋梗塞後の慢性心不全") != ["急性心筋梗塞後", "の", "慢性心不全"]
    names, _ = dictionary_names(ENTRIES)
    assert whole_names(names, analyzer=analyzer)[1] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"entries": []}, "no name for a user dictionary"),
        ({"entries": [entry("不安")]}, r"no name.*'short': 1"),
        ({"cost": 40_000}, r"lexicon\.cost=40000"),
        ({"analyzer": "juman"}, r"analyzer\.name='juman'"),
        ({"dictionary": "neologd"}, r"analyzer\.dictionary='neologd'"),
        ({"analyzer": "mecab", "dictionary": "/nowhere"}, r"is no MeCab dictionary"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name_and_leaves_nothing(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_user_dictionary(arguments.pop("entries", ENTRIES), directory=tmp_path / "lexicon", **arguments)
    assert not (tmp_path / "lexicon").exists()


def copied(built: UserDictionary, tmp_path: Path) -> UserDictionary:
    folder = Path(shutil.copytree(built.folder, tmp_path / built.folder.name))
    return UserDictionary(folder, folder / built.file.name, built.manifest)


def test_a_damaged_or_truncated_dictionary_is_refused(built, tmp_path):
    copy = copied(built, tmp_path)
    whole = copy.file.read_bytes()
    copy.file.write_bytes(whole[:-5000])
    with pytest.raises(ValueError, match=r"truncated.*build it again"):
        build_analyzer(user_dictionary=copy.folder)
    with pytest.raises(ValueError, match=r"analyzer\.user_dictionary=.*not a Sudachi user dictionary, or truncated"):
        build_analyzer(user_dictionary=copy.file)
    middle = len(whole) // 2
    copy.file.write_bytes(whole[:middle] + bytes(byte ^ 1 for byte in whole[middle:]))
    with pytest.raises(ValueError, match="altered after it was written"):
        build_analyzer(user_dictionary=copy.folder)
    for content in (b"", b"SudachiBinaryDic", "急性心筋梗塞\n".encode(), os.urandom(4096)):
        copy.file.write_bytes(content)
        with pytest.raises(ValueError, match=r"analyzer\.user_dictionary"):
            build_analyzer(user_dictionary=copy.file)


@pytest.mark.parametrize("name", ["mecab", "vibrato"])
def test_a_damaged_folder_is_built_again_and_one_that_is_not_ours_is_left_alone(tmp_path, name):
    first = build_user_dictionary(ENTRIES, directory=tmp_path, analyzer=name)
    whole = first.file.read_bytes()
    for damage in (
        lambda: first.file.write_bytes(whole[:-1]),
        first.file.unlink,
        (first.folder / "manifest.json").unlink,
    ):
        damage()
        if not (first.folder / "manifest.json").exists():
            with pytest.raises(FileExistsError, match="will not be replaced"):
                build_user_dictionary(ENTRIES, directory=tmp_path, analyzer=name)
        else:
            assert build_user_dictionary(ENTRIES, directory=tmp_path, analyzer=name).file.read_bytes() == whole


def test_a_dictionary_of_another_system_version_is_refused_with_both_versions_and_the_cure(built, tmp_path):
    copy = copied(built, tmp_path)
    version = built.manifest["dictionary_version"].encode()
    data = copy.file.read_bytes()
    assert data.count(version) == 1
    copy.file.write_bytes(data.replace(version, b"20200101"))
    with pytest.raises(ValueError, match=rf"built on 20200101.*installed is {version.decode()}.*build it again"):
        build_analyzer(user_dictionary=copy.file)
    manifest = json.loads((copy.folder / "manifest.json").read_text())
    (copy.folder / "manifest.json").write_text(json.dumps({**manifest, "dictionary_version": "20200101"}))
    with pytest.raises(ValueError, match="pip install sudachidict-core==20200101"):
        build_analyzer(user_dictionary=copy.folder)


def test_a_dictionary_for_another_analyser_or_a_missing_one_is_refused(built, tmp_path):
    with pytest.raises(ValueError, match=r"is for sudachi, and analyzer\.name=mecab"):
        build_analyzer("mecab", user_dictionary=built.folder)
    with pytest.raises(ValueError, match="MeCab cannot use"):
        build_analyzer("mecab", user_dictionary=built.file)
    mecab = build_user_dictionary(ENTRIES, directory=tmp_path, analyzer="mecab")
    with pytest.raises(ValueError, match="MeCab cannot use"):
        build_analyzer("mecab", dictionary="unidic-lite", user_dictionary=mecab.file)
    with pytest.raises(FileNotFoundError, match=r"analyzer\.user_dictionary=.*nowhere.*does not exist"):
        build_analyzer(user_dictionary=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        user_dictionary_file(tmp_path, analyzer="sudachi")


def test_fourteen_user_dictionaries_open_and_fifteen_are_refused(built):
    words = build_analyzer(user_dictionary=[str(built.file)] * 14).segment("急性心筋梗塞後の慢性心不全")
    assert words == ["急性心筋梗塞後", "の", "慢性心不全"]
    with pytest.raises(ValueError, match="names 15 files; Sudachi takes at most 14"):
        build_analyzer(user_dictionary=[str(built.file)] * 15)


def test_the_identity_names_the_dictionary_by_hash_and_is_found_again_here_and_in_programs_started_later(built):
    bare, analyzer = build_analyzer(), build_analyzer(user_dictionary=built.folder)
    assert analyzer.identity == {**bare.identity, "user_dictionary": sha256_of(built.file)}
    assert analyzer_from_identity(analyzer.identity).segment("慢性心不全") == ["慢性心不全"]
    assert list(analyzer_files(analyzer.identity).values()) == [built.file]
    code = "import json, sys; from ncvc.morphology import analyzer_from_identity as rebuilt\n"
    code += "print(rebuilt(json.loads(sys.argv[1])).segment('急性心筋梗塞後の慢性心不全'))"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(analyzer.identity)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['急性心筋梗塞後', 'の', '慢性心不全']"


def test_an_identity_whose_dictionary_is_nowhere_is_refused_with_the_cure(built, tmp_path):
    identity = {**build_analyzer().identity, "user_dictionary": sha256_of(built.file)}
    with pytest.raises(ValueError, match=rf"{identity['user_dictionary']} was not found; set analyzer.user_dictionary"):
        check_identity(identity)
    with pytest.raises(ValueError, match="holds no user_dictionary-"):
        analyzer_from_identity(identity, files_folder=tmp_path)


@pytest.mark.filterwarnings("ignore:the text gave")
def test_a_tokenizer_carries_its_user_dictionary(built, tmp_path, monkeypatch):
    copy = copied(built, tmp_path)
    analyzer, cleaner = build_analyzer(user_dictionary=copy.folder), Cleaner()
    text = "患者は急性心筋梗塞後の慢性心不全である。"
    words = [segment_text(text, analyzer=analyzer)] * 5
    tokenizer = Tokenizer.train(words, vocab_size=700, cleaner=cleaner, analyzer=analyzer, progress=False)
    tokenizer.save(tmp_path / "tokenizer")
    shutil.rmtree(copy.folder)
    monkeypatch.setenv(VARIABLE, "")
    moved = (tmp_path / "tokenizer").rename(tmp_path / "moved")
    loaded = Tokenizer.load(moved)
    assert loaded.fingerprint == tokenizer.fingerprint and loaded.encode(text) == tokenizer.encode(text)
    assert "慢性心不全" in loaded.analyzer.segment(text)
    assert pickle.loads(pickle.dumps(loaded)).encode(text) == loaded.encode(text)
    loaded.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").encode(text) == loaded.encode(text)
    (dictionary,) = moved.glob("user_dictionary-*")
    dictionary.write_bytes(dictionary.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{METADATA_FILE}.*was altered"):
        Tokenizer.load(moved)
    dictionary.unlink()
    with pytest.raises(ValueError, match=rf"{METADATA_FILE}.*holds no user_dictionary-"):
        Tokenizer.load(moved)
