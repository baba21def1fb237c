"""Quality rules: each rule's own examples, figures against plain counting, hostile and real texts."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ncvc.config import CONF_DIRECTORY
from ncvc.corpus.cleaning import Cleaner
from ncvc.corpus.quality.figures import NGRAM, SHORT_LINE, measure
from ncvc.corpus.quality.rules import RULES, QualityRules, QualitySettings
from ncvc.corpus.quality.word_lists import ADULT_WORDS, WordFinder

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
PRESETS = ("none", "web", "clinical")
CLEANER = Cleaner()
relaxed = settings(deadline=None, max_examples=80)
PROSE = (
    "患者は六十二歳の男性で、三日前からの発熱と咳を主訴に来院した。\n既往に高血圧症と2型糖尿病があり、内服薬で治療を受けている。"
    "胸部X線では右の下肺野に浸潤影を認め、肺炎と診断して抗菌薬を始めた。\n入院三日目には熱が下がり、食事もとれるようになった。"
    "「もう苦しくない」と話し、一週間後に退院した。外来では胸の影が消えたことを確かめ、禁煙の相談を続けている。"
)
_CHARACTERS = "患は。、.…?!」』)】「(・-●○■*#|é縺繝筝ゅ▁\nカー々𠮷★=%℃～\ud800\0"
FRAGMENTS = [
    *_CHARACTERS,
    *("12", "3.5", "ABC", "\n", "▁", "、ウ、ホ、ヒ、ハ", "…続きを読む", "同じ文が続きます。", "同じ文が続きます。\n"),
    *("人妻専門", "デリヘル", "パチンコ", "エロい"),
]
messy = st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join)


def preset(name: str) -> QualitySettings:
    return QualitySettings(**OmegaConf.to_container(OmegaConf.load(CONF_DIRECTORY / "quality" / f"{name}.yaml")))


WEB, CLINICAL = QualityRules(preset("web")), QualityRules(preset("clinical"))


# --- the rules
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.setting)
def test_every_rule_passes_and_fails_its_examples(rule):
    rules = QualityRules(QualitySettings(**{rule.setting: rule.example_bound}))
    assert rule.passes and rule.fails and rule.reason
    for text in rule.passes:
        assert rules(text).reason is None, text
    for text in rule.fails:
        verdict = rules(text)
        assert verdict.reason == rule.name, text
        assert rule.figure.replace("_", " ") in verdict.detail
        assert f"{rule.example_bound:g}" in verdict.detail


def test_rules_and_settings_are_the_same_set_in_the_same_order():
    names = [rule.setting for rule in RULES]
    assert list(QualitySettings.__dataclass_fields__) == names
    assert len({rule.name for rule in RULES}) == len(RULES)
    for name in PRESETS:
        assert list(OmegaConf.load(CONF_DIRECTORY / "quality" / f"{name}.yaml")) == names
    assert set(measure("")) == {rule.figure for rule in RULES}


def test_the_first_broken_rule_is_the_reason():
    text = "12▁34▁56"
    both = QualityRules(QualitySettings(min_characters=50, max_digits=0.1))
    assert both(text).reason == "too short"
    assert QualityRules(QualitySettings(max_digits=0.1))(text).reason == "many digits"


@relaxed
@given(messy)
def test_no_rules_drop_nothing(text):
    verdict = QualityRules(preset("none"))(text)
    assert (verdict.reason, verdict.detail) == (None, "")


def test_ordinary_prose_passes_every_preset():
    assert [QualityRules(preset(name))(PROSE).reason for name in PRESETS] == [None] * 3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_digits": 30}, r"quality\.max_digits=30: is a share.*0\.3"),
        ({"min_hiragana": -0.1}, r"quality\.min_hiragana=-0\.1"),
        ({"max_latin": float("nan")}, r"quality\.max_latin=nan"),
        ({"max_spaces": True}, r"quality\.max_spaces=True"),
        ({"min_characters": 9, "max_characters": 8}, "nothing would pass"),
    ],
)
def test_settings_that_cannot_be_are_named(values, words):
    with pytest.raises(ValueError, match=words):
        QualitySettings(**values)


def test_the_identity_is_plain_and_follows_the_bounds():
    assert json.loads(json.dumps(WEB.settings.identity)) == WEB.settings.identity
    assert WEB.settings.identity != CLINICAL.settings.identity
    assert pickle.loads(pickle.dumps(WEB))(PROSE) == WEB(PROSE)
    assert pickle.loads(pickle.dumps(WEB.settings)) == WEB.settings


# --- the figures, counted plainly
def plain_figures(text: str) -> dict[str, float]:
    seen = [character for character in text if character not in "▁\n"]
    n = max(len(seen), 1)

    def share(pattern: str) -> float:
        return sum(re.fullmatch(pattern, character) is not None for character in seen) / n

    lines = [line for line in text.split("\n") if line]
    length = max(sum(map(len, lines)), 1)
    ended = [re.search(r"([。!?」』….]|[。!?」』….][)》〉】])$", line) is not None for line in lines]
    in_sentences = [
        len(line) if end else max((line.rfind(mark) for mark in "。!?」』…"), default=-1) + 1
        for line, end in zip(lines, ended, strict=True)
    ]
    grams = Counter(text[place : place + NGRAM] for place in range(len(text) - NGRAM + 1))
    most = max(grams.values(), default=0)
    commas = len(re.findall("、(?=[ァ-ヺー]、)", text))
    tails = sum(text.count(tail) for tail in ("…続きを読む", "…[続きを読む]"))
    found = plain_adult_words(text)
    per_line = [ended[i] and line[-1] == "…" for i, line in enumerate(lines)]
    return {
        "characters": len(seen),
        "unreadable": min(1.0, share("[縺繧繝筝À-ÖØ-öø-ſ]") + 2 * commas / n),
        "japanese": share("[ぁ-ゖァ-ヺー々〆〇一-鿿\U00020000-\U0002a6d6]"),
        "hiragana": share("[ぁ-ゖ]"),
        "digits": share("[0-9]"),
        "latin": share("[A-Za-zÀ-ÖØ-öø-ſ]"),
        "symbols": share("[●○■*#|★=]"),
        "spaces": text.count("▁") / max(len(text) - text.count("\n"), 1),
        "duplicate_lines": (length - sum(map(len, set(lines)))) / length if lines else 0.0,
        "repeated_ngrams": 1 - len(grams) / grams.total() if grams else 0.0,
        "top_ngram": min(1.0, most * NGRAM / n) if most >= 3 else 0.0,
        "sentences": sum(in_sentences) / length,
        "ellipsis_lines": min(1.0, (sum(per_line) + tails) / max(len(lines), 1)),
        "bullet_lines": sum(line[0] in "●○■★*#|・-" and not end for line, end in zip(lines, ended, strict=True))
        / max(len(lines), 1),
        "short_lines": sum(
            len(line) for line, end in zip(lines, ended, strict=True) if len(line) <= SHORT_LINE and not end
        )
        / length,
        "adult_words": len(found) * 1000 / n if len(set(found)) > 1 else 0.0,
    }


def plain_adult_words(text: str) -> list[str]:
    """One alternation, longest first; a katakana or Latin edge must not go on."""
    parts = []
    for word in sorted(ADULT_WORDS, key=len, reverse=True):
        left = edge(word[0], "(?<![{}])")
        right = edge(word[-1], "(?![{}])")
        parts.append(left + re.escape(word) + right)
    return re.findall("|".join(parts), text)


def edge(character: str, pattern: str) -> str:
    for script in ("ァ-ヺー", "A-Za-z0-9"):
        if re.match(f"[{script}]", character):
            return pattern.format(script)
    return ""


@relaxed
@given(messy)
def test_figures_are_those_of_plain_counting(text):
    assert measure(text) == pytest.approx(plain_figures(text), abs=1e-9)


def test_figures_of_a_text_longer_than_a_window_are_those_of_plain_counting():
    generator = random.Random(0)
    text = "".join(generator.choices([*FRAGMENTS[:-11], PROSE[:90], PROSE[100:170]], k=40_000))
    text = text[:65_530] + "人妻専門デリヘル" + text[65_538:]  # across the border of two windows
    assert len(text) > 2 * 65_536
    expected = plain_figures(text)
    found = measure(text)
    # counted within windows: what stood before in another is not seen, and each has its own most frequent passage
    assert 0.5 * expected["repeated_ngrams"] < found.pop("repeated_ngrams") < expected.pop("repeated_ngrams")
    assert 0.99 * expected["top_ngram"] < found.pop("top_ngram") < 1.2 * expected.pop("top_ngram")
    commas = {name: figures.pop("unreadable") for name, figures in (("plain", expected), ("found", found))}
    assert commas["found"] == pytest.approx(commas["plain"], abs=1e-3)  # "、ウ、" across a border is not seen
    assert found == pytest.approx(expected, abs=1e-9)


@relaxed
@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=80))
def test_any_text_has_figures_and_shares_stay_shares(text):
    figures = measure(text)
    for rule in RULES:
        assert figures[rule.figure] >= 0
        if rule.share:
            assert figures[rule.figure] <= 1
    assert WEB(text) == WEB(text)


# --- words
@relaxed
@given(
    st.lists(st.sampled_from([*ADULT_WORDS, "パ", "カ", "ー", "の", "A", "1", "動画", "\n", "エロ"]), max_size=12).map(
        "".join
    )
)
def test_words_are_found_as_one_alternation_finds_them(text):
    assert WordFinder(ADULT_WORDS)(text) == plain_adult_words(text)


def test_words_that_cannot_be_searched_are_refused():
    with pytest.raises(ValueError, match="two or more"):
        WordFinder(["字"])


MEDICAL = (
    "性器ヘルペスの皮疹は外陰部と肛門の周囲に多い。性交痛、射精障害、勃起不全についても問診する。",
    "乳房の触診では乳頭からの分泌と腋窩のリンパ節を確かめ、マンモグラフィを行う。",
    "エロモナスによる腸炎、アナルトリア、クンニ以外のパチンコ依存、オナーの法則、フェライト、セフレックス。",
    "HIV感染症の予防にはコンドームの使用と曝露前予防がある。性感染症の検査は保健所で受けられる。",
    "小児の性的虐待が疑われるときは児童相談所へ通告する。援助交際の聞き取りには配慮が要る。",
    "3pの欠失と正常位置の子宮。膣内の細菌叢と帯下の性状を記載する。チンコネ甲状腺腫。",
)


@pytest.mark.parametrize("text", MEDICAL)
def test_words_of_medicine_are_no_adult_words(text):
    assert measure(text)["adult_words"] == 0


# --- wrong encodings
@pytest.mark.parametrize("preset_name", ["web", "clinical"])
@pytest.mark.parametrize(
    ("written", "read"),
    [("utf-8", "cp932"), ("utf-8", "latin-1"), ("utf-8", "cp1252"), ("utf-8", "euc_jp"), ("euc_jp", "cp932"),
     ("euc_jp", "latin-1"), ("cp932", "latin-1"), ("cp932", "euc_jp")],
)  # fmt: skip
def test_text_read_in_a_wrong_encoding_is_dropped(written, read, preset_name):
    misread = PROSE.encode(written).decode(read, errors="ignore")
    rules = QualityRules(preset(preset_name))
    assert rules(CLEANER(misread)).reason is not None
    assert rules(CLEANER(PROSE)).reason is None


# --- hostile documents
@pytest.mark.parametrize("text", ["", "\n", "\n\n\n", "▁", "\ud800", "\0" * 50, "。" * 10_000, "\n".join("ab" * 5_000)])
def test_odd_documents_are_judged_and_not_refused(text):
    assert WEB(text).reason is not None


def test_keyword_spam_and_menus_are_dropped_by_the_web_preset():
    spam = "".join(f"{town}の格安エアコン修理なら当店へ。" for town in "東西南北上下中外") * 12
    menu = "\n".join(
        f"・{name}" for name in ["ホーム", "会社案内", "採用情報", "お問い合わせ", "地図", "よくある質問"] * 5
    )
    chinese = "患者因发热咳嗽入院，诊断为肺炎，给予抗生素治疗后好转出院。" * 5
    for text in (spam, menu, chinese, "Lorem ipsum dolor sit amet, consectetur. " * 10):
        assert WEB(CLEANER(text)).reason is not None
    assert WEB(CLEANER(chinese)).reason == "few hiragana"


def test_notes_and_reports_pass_the_clinical_preset():
    notes = (
        "右手の動かしにくさ残ってます。",
        "BT37.8 BP120/70 HR88 SpO2 98%(RA) 咳嗽(+) 喀痰(-)",
        "#1 肺炎 #2 2型糖尿病 #3 心房細動 抗凝固薬内服中",
        "【画像所見】\n- 右下葉に浸潤影\n- 胸水なし\n【診断】\n1. 肺炎",
        "声をかけるが反応なし",
    )
    assert [CLINICAL(CLEANER(note)).reason for note in notes] == [None] * len(notes)


# --- real text
def shared_texts(name: str) -> list[str]:
    path = SHARED / name
    if not path.is_file():
        pytest.skip("needs ../shared/data")
    if path.suffix == ".zst":
        zstandard = pytest.importorskip("zstandard")
        with path.open("rb") as raw:
            text = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(raw), encoding="utf-8").read()
    else:
        text = gzip.decompress(path.read_bytes()).decode()
    return [CLEANER(json.loads(line)["text"]) for line in text.splitlines()]


def drop_share(rules: QualityRules, texts: list[str]) -> float:
    return sum(rules(text).reason is not None for text in texts) / len(texts)


def test_the_web_preset_keeps_the_encyclopaedia_and_drops_unstripped_pages():
    wiki, noisy = (drop_share(WEB, shared_texts(f"{name}")) for name in
                   ("general_text/wiki_ja.jsonl.gz", "noisy/web_noisy.jsonl.zst"))  # fmt: skip
    assert wiki < 0.02
    assert 10 * wiki < noisy < 0.8


def test_the_clinical_preset_keeps_reports_and_nursing_records():
    for name in ("synthetic_radiology_phi", "nursing_records_S", "wiki_medical"):
        assert drop_share(CLINICAL, shared_texts(f"medical_text/{name}.jsonl.gz")) < 0.05
