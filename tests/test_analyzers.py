"""MeCab and vibrato: nothing of a line is lost, identities are exact, and dictionaries that cannot be used are told."""

from __future__ import annotations

import importlib.metadata
import pickle
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ncvc.morphology
from ncvc.analyzers.files import VARIABLE, remember_files, sha256_of
from ncvc.analyzers.lexicon import Entry
from ncvc.analyzers.user_dictionary import build_user_dictionary
from ncvc.corpus.cleaning import Cleaner
from ncvc.morphology import Analyzer, analyzer_from_identity, build_analyzer, check_identity
from ncvc.tokenizer import Tokenizer, segment_text

fugashi, ipadic, vibrato = (pytest.importorskip(name) for name in ("fugashi", "ipadic", "vibrato"))
relaxed = settings(deadline=None, max_examples=80, suppress_health_check=list(HealthCheck))
anything = st.text(st.characters(codec=None, exclude_categories=()), max_size=60)
LINE = "患者は急性心筋梗塞で入院した。血圧120/80mmHg、体温37.5℃であった!翌日…退院。"
ENTRY = Entry(surface="急性心筋梗塞後", reading=None, kind="disease", code=None, source="test", frequency=None)

LEXICON = {
    "Noun.csv": "患者,1,1,100,名詞\n心筋,1,1,300,名詞\n梗塞,1,1,300,名詞\n急性,1,1,300,名詞\n",
    "Postp.csv": "は,1,1,10,助詞\nの,1,1,10,助詞\n後,1,1,200,接尾",  # no newline at the end
}
RULES = {
    "matrix.def": "2 2\n0 0 0\n0 1 10\n1 0 10\n1 1 50\n",
    "char.def": "DEFAULT 0 1 0\nSPACE 0 1 0\nNUMERIC 1 1 0\n0x0020 SPACE\n0x0030..0x0039 NUMERIC\n",
    "unk.def": "DEFAULT,1,1,4000,未知語\nSPACE,1,1,4000,空白\nNUMERIC,1,1,3000,数\n",
}


def text_dictionary(folder: Path, *, encoding: str = "utf-8", without: str = "") -> Path:
    folder.mkdir()
    for name, content in {**LEXICON, **RULES}.items():
        if name != without:
            (folder / name).write_bytes(content.encode(encoding))
    return folder


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return text_dictionary(tmp_path_factory.mktemp("vibrato") / "text")


@pytest.fixture(scope="module")
def analyzers(tiny) -> dict[str, Analyzer]:
    found = {"mecab": build_analyzer("mecab"), "vibrato": build_analyzer("vibrato", dictionary=str(tiny))}
    if importlib.util.find_spec("unidic_lite"):
        found["unidic"] = build_analyzer("mecab", dictionary="unidic-lite")
    return found


@relaxed
@given(anything)
def test_words_of_any_line_join_to_the_line(analyzers, line):
    for analyzer in analyzers.values():
        words = analyzer.segment(line)
        assert "".join(words) == line and all(words)


@relaxed
@given(anything)
def test_words_of_a_cleaned_line_hold_no_white_space(analyzers, text):
    for line in Cleaner()(text).split("\n"):
        for analyzer in analyzers.values():
            words = analyzer.segment(line)
            assert "".join(words) == line and not any(re.search(r"\s", word) for word in words)


HOSTILE = [
    *("", "…", " ", "\0", "a\0b", "\ud800患者\udfff", "患者\u3000は  急性\t心筋\n梗塞\r\x1c\u2028後", "EOS", "\\n%m"),
    *("a" * 70_000, "あ" * 70_000, "🧠" * 20_000, "患者は、" * 20_000, "1" * 30_000, "か\u3099" * 9_000, "▁" * 9_000),
]


@pytest.mark.parametrize("line", HOSTILE, ids=lambda line: f"{line[:3]!a} x {len(line)}")
def test_long_and_broken_lines_are_segmented_without_loss(analyzers, line):
    for analyzer in analyzers.values():
        words = analyzer.segment(line)
        assert "".join(words) == line and all(words)


def test_words_are_those_of_mecab_by_the_sentence(analyzers):
    plain = fugashi.GenericTagger(ipadic.MECAB_ARGS)
    sentences = re.findall("[^。！？!?]+[。！？!?]*", LINE)
    assert analyzers["mecab"].segment(LINE) == [word.surface for s in sentences for word in plain(s)]


def test_words_are_those_of_vibrato_and_of_the_costs_in_its_text(analyzers):
    words = analyzers["vibrato"].segment("患者は急性心筋梗塞後の123")
    assert words == ["患者", "は", "急性", "心筋", "梗塞", "後", "の", "123"]
    bare = vibrato.Vibrato.from_textdict(
        LEXICON["Noun.csv"] + LEXICON["Postp.csv"] + "\n",
        *(RULES[name] for name in ("matrix.def", "char.def", "unk.def")),
        max_grouping_len=24,
    )
    sentences = re.findall("[^。！？!?]+[。！？!?]*", LINE)
    assert analyzers["vibrato"].segment(LINE) == [word for s in sentences for word in bare.tokenize_to_surfaces(s)]


def test_a_text_dictionary_in_euc_jp_cuts_the_same_words(tiny, tmp_path, analyzers):
    other = build_analyzer("vibrato", dictionary=str(text_dictionary(tmp_path / "euc", encoding="euc_jp")))
    assert other.segment(LINE) == analyzers["vibrato"].segment(LINE)
    assert other.identity != analyzers["vibrato"].identity  # other bytes


def test_identities_name_versions_or_the_sha256_of_files(analyzers, tiny):
    version = importlib.metadata.version
    assert analyzers["mecab"].identity == {
        "name": "mecab",
        "dictionary": "ipadic",
        "dictionary_version": version("ipadic"),
        "version": version("fugashi"),
    }
    assert analyzers["vibrato"].identity == {
        "name": "vibrato",
        "dictionary": "files",
        "dictionary_sha256": sha256_of(tiny),
        "version": version("vibrato"),
    }


def test_analysers_are_rebuilt_from_their_identity_and_not_pickled(analyzers, tiny):
    remember_files([tiny])
    for analyzer in analyzers.values():
        assert analyzer_from_identity(analyzer.identity).segment(LINE) == analyzer.segment(LINE)
        with pytest.raises(TypeError, match="analyzer_from_identity"):
            pickle.dumps(analyzer)


@pytest.mark.parametrize("name", ["mecab", "vibrato"])
def test_other_versions_are_refused_with_the_cure(analyzers, name):
    identity = analyzers[name].identity
    package = {"mecab": "fugashi", "vibrato": "vibrato"}[name]
    with pytest.raises(ValueError, match=rf"pip install {package}==0\.1"):
        check_identity({**identity, "version": "0.1"})
    with pytest.raises(ValueError, match=r"differs|lacks|names no"):
        check_identity({**identity, "mode": "C"})
    with pytest.raises(ValueError, match=r"names no|lacks"):
        check_identity({"name": name, "dictionary": "none", "version": identity["version"]})


def test_files_that_changed_or_are_gone_are_refused(tmp_path):
    folder = text_dictionary(tmp_path / "text")
    identity = build_analyzer("vibrato", dictionary=str(folder)).identity
    (folder / "Noun.csv").write_text(LEXICON["Noun.csv"].replace("300", "299"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"dictionary with sha256 \w+ was not found.*NCVC_ANALYZER_FILES"):
        analyzer_from_identity(identity)


@pytest.mark.parametrize("name", ["mecab", "vibrato"])
def test_a_tokenizer_carries_dictionaries_that_no_package_brings(name, tmp_path, monkeypatch):
    if name == "mecab":
        folder = Path(shutil.copytree(ipadic.DICDIR, tmp_path / "own, dictionary"))
    else:
        folder = text_dictionary(tmp_path / "own dictionary")
        for side in ("left", "right"):
            (folder / f"{side}-id.def").write_text("0 BOS/EOS,*,*\n1 名詞,固有名詞,一般,*\n", encoding="utf-8")
    user = build_user_dictionary([ENTRY], directory=tmp_path, analyzer=name, dictionary=str(folder), cost=-500)
    analyzer = build_analyzer(name, dictionary=str(folder), user_dictionary=[str(user.folder)])
    assert analyzer.segment("患者は急性心筋梗塞後")[-1] == "急性心筋梗塞後"
    words = [segment_text("患者は急性心筋梗塞後の心筋", analyzer=analyzer)] * 9
    with pytest.warns(UserWarning, match="unused"):
        tokenizer = Tokenizer.train(words, vocab_size=700, cleaner=Cleaner(), analyzer=analyzer, progress=False)
    tokenizer.save(tmp_path / "tokenizer")
    shutil.rmtree(folder)
    shutil.rmtree(user.folder)
    monkeypatch.setenv(VARIABLE, "")
    loaded = Tokenizer.load(tmp_path / "tokenizer")
    assert loaded.encode(LINE) == tokenizer.encode(LINE) and loaded.fingerprint == tokenizer.fingerprint
    loaded.save(tmp_path / "tokenizer")  # onto itself
    assert Tokenizer.load(tmp_path / "tokenizer").analyzer.segment(LINE) == analyzer.segment(LINE)


def test_a_vibrato_user_dictionary_keeps_names_whole(tiny, tmp_path):
    user = build_user_dictionary([ENTRY], directory=tmp_path, analyzer="vibrato", cost=-500)
    with pytest.raises(ValueError, match="connection ids"):  # ipadic's 1288 does not fit a dictionary of two contexts
        build_analyzer("vibrato", dictionary=str(tiny), user_dictionary=user.file)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "mecab", "mode": "C"}, ValueError, r"analyzer\.mode='C'.*only sudachi"),
        ({"name": "mecab", "dictionary": "neologd"}, ValueError, r"analyzer\.dictionary='neologd' is no MeCab"),
        ({"name": "vibrato"}, ValueError, r"analyzer\.dictionary is not set"),
        ({"name": "vibrato", "mode": "A"}, ValueError, r"analyzer\.mode='A'"),
        ({"name": "vibrato", "dictionary": "/nowhere"}, FileNotFoundError, r"analyzer\.dictionary=/nowhere"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        build_analyzer(**arguments)


@pytest.mark.parametrize("missing", [*RULES])
def test_an_incomplete_text_dictionary_is_refused_by_the_file_it_lacks(tmp_path, missing):
    with pytest.raises(ValueError, match=rf"lacks {missing}"):
        build_analyzer("vibrato", dictionary=str(text_dictionary(tmp_path / "text", without=missing)))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("Noun.csv", b"a,1\n"),
        ("matrix.def", b"x"),
        ("Noun.csv", b"\xff\xff,1,1,1,x\n"),
        ("unk.def", b"DEFAULT,9,9,1,x\n"),
    ],
)
def test_a_broken_text_dictionary_is_refused(tmp_path, name, content):
    folder = text_dictionary(tmp_path / "text")
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"analyzer\.dictionary=.*vibrato cannot use it"):
        build_analyzer("vibrato", dictionary=str(folder))


def test_a_broken_compiled_dictionary_is_refused(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    for number, content in enumerate((b"", b"garbage", zstandard.compress(b"garbage"), b"\x28\xb5\x2f\xfdxx")):
        path = tmp_path / f"{number}.dic"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"analyzer\.dictionary=.*{number}\.dic: vibrato cannot use it"):
            build_analyzer("vibrato", dictionary=str(path))
        with pytest.raises(ValueError, match="cannot be added to a compiled dictionary"):
            user = build_user_dictionary([ENTRY], directory=tmp_path, analyzer="vibrato")
            build_analyzer("vibrato", dictionary=str(path), user_dictionary=user.folder)


@pytest.mark.parametrize("name", ["sys.dic", "matrix.bin", "char.bin", "unk.dic"])
def test_a_truncated_mecab_dictionary_is_refused(tmp_path, name):
    folder = Path(shutil.copytree(ipadic.DICDIR, tmp_path / "copy"))
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="MeCab cannot use the dictionary"):
        build_analyzer("mecab", dictionary=str(folder))


@pytest.mark.parametrize(
    ("arguments", "package"),
    [
        ({"name": "mecab"}, "fugashi"),
        ({"name": "mecab", "dictionary": "unidic-lite"}, "unidic-lite"),
        ({"name": "vibrato", "dictionary": "x"}, "vibrato"),
    ],
)
def test_a_missing_package_is_named_with_its_cure(monkeypatch, arguments, package):
    found = importlib.metadata.version

    def absent(name):
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(ncvc.morphology.importlib.metadata, "version", absent)
    with pytest.raises(ModuleNotFoundError, match=f"pip install {package}$"):
        build_analyzer(**arguments)
