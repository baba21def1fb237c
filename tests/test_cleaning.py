"""Cleaning: every rule's own examples, the whole cleaner, and the same rules stated plainly and slowly.

The plain statement (`plainly`) shares tables of characters with the code under test, no step and no pattern.
"""

from __future__ import annotations

import gzip
import json
import pickle
import re
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ncvc.corpus import characters
from ncvc.corpus.cleaning import SEAM, Cleaner

GUARDED, LITERAL = Cleaner(), Cleaner("literal")
ALLOWED = set(characters.members(characters.ALLOWED)) | set(characters.members(characters.ALLOWED_ASTRAL))
INVISIBLE = set(characters.members(characters.INVISIBLE)) | set(characters.members(characters.INVISIBLE_ASTRAL))
REPERTOIRE = set(characters.members(characters.REPERTOIRE)) | set(map(chr, range(0x80)))
NUMBERED = "".join(  # ㋀ ㍘ ㏠: not circled, not superscript, not digits of another width, yet digits after NFKC
    c
    for c in characters.members("\u3200-\u33ff")
    if c not in characters.CIRCLED and unicodedata.normalize("NFKC", c)[0].isdecimal()
)
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck))

# Pieces that meet in noisy text; joined at random they hit the places where rules touch each other.
_FRAGMENTS = (
    "患者は 。 、 ． ， ３ 8 12 ．５ ，000 ℃ °C ゜C ﾟ º ㎡ ① ❶ Ⅳ Ⅲ I ⁵ ₂ ½ ㏠ ㋀ ⒈ ㍘ ㌘ ㈱ № ㋿ ⅟ ∬ "
    "- ― — ─ – − ー ｰ 〜 ～ ~ … ‥ ... .. ・・・ ・ ／ ： ∶ // ！！ ？ （ ） () 「 」 “ ” • ≤ ➡ "
    "@ @taro_1 %@3L # #1 #肺炎 ## ＃ http:// https://a.jp/x (http://b.jp) ttp:// www. www.a.jp "
    "a@b.co.jp a.b@c 090 090-1234 -5678 -1234-5678 03-1234-5678 (03) 0120-444-444 +81 "
    "+81-3-1234-5678 090-100-1100 2024-01-15 120/80mmHg A z 5mg SpO2 & &# サ ス イ ン か が "
    "😀 👨‍⚕️ 한 Ж ㍿ ﷺ 𠮷 𝟛 🄰 ﾞ ｶ ﾊﾟ é ạ Å = 〳 ゟ --- === ## ww www wwww 笑笑笑 ああああ っっ ーー !! "
    "e\u0301 e\u0331 \u3099 ゛ =\u0338 \u0591 \u20e3 \u200b \ufeff \u200f \ud800 \udfff \0 \x07 "
    "\U000e0100 \U000e0041 \U00020bb7 \U0001d7d9 \u2028 \r\n \r \n \t \u3000 ▁ \xa0"
)
FRAGMENTS = [*_FRAGMENTS.split(" "), " ", "  "]
messy = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)
anything = st.text(st.characters(codec=None, exclude_categories=()), max_size=60)


# --- the same rules, plainly ---
def plainly(text: str, *, guarded: bool = True) -> str:
    """Clean by the rules one after the other, without any shortcut, until nothing changes."""
    text = one_pass(text, guarded=guarded)
    while SEAM in text:
        joint = " " if guarded else ""
        after = "0-9A-Za-z%℃" + characters.SUPERSCRIPTS + characters.SUBSCRIPTS + characters.FRACTIONS
        text = re.sub(f"(?<=[{after}])\0+(?=[0-9A-Za-z])", joint, text).replace(SEAM, "")
        text = one_pass(text, guarded=guarded)
    return text


def one_pass(text: str, *, guarded: bool) -> str:
    text = plain_white_space(text)
    text = plain_characters(text, guarded=guarded)
    unified = characters.UNIFIED if guarded else characters.UNIFIED_LITERAL
    text = "".join(unified.get(c, c) for c in text)
    text = re.sub(r"\.\.\.+", "…", text)
    text = re.sub("・・・+", "…", text)
    text = re.sub(r"[.…]*…[.…]*", lambda match: "…" if "." in match[0] else match[0], text)
    text = text.replace("°C", "℃")
    text = plain_removals(text, guarded=guarded)
    text = "".join(c if c in ALLOWED or c in " \n\0" else SEAM for c in text)
    text = re.sub(r"([ー〜—…、。・!?ぁぃぅぇぉっゃゅょァィゥェォッャュョ])\1+", r"\1", text)
    text = re.sub(r"([あいうえおアイウエオ])\1\1\1+", r"\1\1\1", text)
    text = re.sub(r"(?<![A-Za-z0-9_./@-])www+(?![A-Za-z0-9_./@-])", "w", text)
    text = re.sub("笑笑笑+", "笑", text)
    text = re.sub(r"([-=_*#])\1\1+", "\\1\0", text)
    text = re.sub(" +", " ", text)
    lines = [line.strip(" ") for line in text.split("\n")]
    return "\n".join(line for line in lines if line).replace(" ", "\u2581")


def plain_white_space(text: str) -> str:
    text = text.replace("\r\n", "\n")
    kept = []
    for c in text:
        if c in characters.BLANKS:
            kept.append(" ")
        elif c in characters.BREAKS:
            kept.append("\n")
        elif c not in INVISIBLE:
            kept.append(c)
    return "".join(kept)


def plain_characters(text: str, *, guarded: bool) -> str:
    d = "[0-9０-９]"
    if guarded:
        text = re.sub(f"(?<={d})．(?={d})", ".", text)
        text = re.sub("(?<=[a-zａ-ｚ])．(?=[a-zａ-ｚ])", ".", text)
        text = re.sub(f"(?<=[NＮ][oｏ])．(?={d})", ".", text)
        thousands = f"(?<!{d}){d}{d}?{d}?(，{d}{d}{d})+(?!{d})"
        text = re.sub(thousands, lambda match: match.group().replace("，", ","), text)
    text = text.replace("．", "。").replace("，", "、")
    if guarded:
        text = re.sub(f"(?<={d})[゜ﾟ]", "°", text)
        text = re.sub(f"(?<={d})(?=[{NUMBERED}])", " ", text)
        text = re.sub("(?<=[Ⅰ-ⅿ])(?=[Ⅰ-ⅿIVXLivxl])", " ", text)
        text = re.sub("(?<=[IVXivx])(?=[Ⅰ-ⅿ])", " ", text)
        text = "".join(characters.BEFORE_NFKC.get(c, c) for c in text)
    text = plain_nfkc(text, characters.KEPT_FROM_NFKC if guarded else "")
    if guarded:
        text = re.sub("(?<=[ァ-マャ-ヲヴ-ヺ])[―─━](?=[ァ-ヺ])", "ー", text)
    for c in characters.HYPHENS:
        text = text.replace(c, "-")
    for c in characters.BARS:
        text = text.replace(c, "—" if guarded else "ー")
    for c in characters.TILDES:
        text = text.replace(c, "〜")
    return re.sub("(?<=[0-9])[—ー]+(?=[0-9])", "-", text) if guarded else text


def plain_nfkc(text: str, kept: str) -> str:
    """NFKC within the repertoire but for the kept characters, then no loose marks."""
    outside = [c in kept or c not in REPERTOIRE for c in text]
    parts, run = [], ""
    for c, fixed in zip(text, outside, strict=True):
        if fixed:
            parts += [unicodedata.normalize("NFKC", run), c]
            run = ""
        else:
            run += c
    text = "".join([*parts, unicodedata.normalize("NFKC", run)])
    marks = characters.members(characters.COMBINING)
    return "".join(c for c in text if c not in marks)


def plain_removals(text: str, *, guarded: bool) -> str:
    tail = r"[A-Za-z0-9\-._〜:/?#@!$&'*+=%]*[A-Za-z0-9/_〜=&#%+\-]"
    text = re.sub(r"[HhFfTt](ttps?|TTPS?|tps?|TPS?)://" + tail, SEAM, text)
    text = re.sub(r"(?<![A-Za-z0-9.\-])www\.[A-Za-z0-9\-]+\." + tail, SEAM, text)
    mail = r"[A-Za-z0-9._%+\-]{1,64}@[A-Za-z0-9\-]{1,63}(\.[A-Za-z0-9\-]{1,63}){0,8}\.[A-Za-z]{2,24}(?![A-Za-z])"
    text = re.sub(r"(?<![A-Za-z0-9._%+\-])" + mail, SEAM, text)
    if not guarded:
        text = re.sub("(?<![A-Za-z0-9])@[A-Za-z0-9_]+", SEAM, text)
        text = re.sub(r"(?<![A-Za-z0-9&])#[^\s#、。]+", SEAM, text)
        return re.sub("0[0-9]{1,4}-[0-9]{1,4}-[0-9]{3,4}", SEAM, text)
    text = re.sub("(?<![A-Za-z0-9%℃])(?<![%℃] )@[A-Za-z_][A-Za-z0-9_]{3,}", SEAM, text)
    text = "\n".join(plain_tags(line) for line in text.split("\n"))
    end = r"(?![0-9]|[-.][0-9])"
    for area, middle in ((2, 4), (3, 3), (4, 2), (5, 1)):
        zone = {2: "0[1-9]", 3: "0[1-9][1-9]"}.get(area, f"0[1-9][0-9]{{{area - 2}}}")
        text = re.sub(rf"\({zone}\)[ -]?[0-9]{{{middle}}}-[0-9]{{4}}{end}", SEAM, text)
    text = re.sub(rf"\(0[5-9]0\)[ -]?[0-9]{{4}}-[0-9]{{4}}{end}", SEAM, text)
    text = re.sub(rf"\+81[- ]?(\(0\))?[1-9][0-9]{{0,3}}[- ][0-9]{{1,4}}[- ][0-9]{{4}}{end}", SEAM, text)
    text = re.sub(rf"\+81[- ]?[5-9]0[0-9]{{8}}{end}", SEAM, text)
    shapes = [
        "0[5-9]0-[0-9]{4}-[0-9]{4}",
        "0[5-9]0 [0-9]{4} [0-9]{4}",
        "0[5-9]0[0-9]{8}",
        r"0[5-9]0\([0-9]{4}\)-?[0-9]{4}",
    ]
    shapes += ["0(120|570)-[0-9]{3}-[0-9]{3}", "0(120|570)-[0-9]{2}-[0-9]{4}", "0800-[0-9]{3}-[0-9]{4}"]
    for area, middle in ((2, 4), (3, 3), (4, 2), (5, 1)):
        zone = {2: "0[1-9]", 3: "0[1-9][1-9]"}.get(area, f"0[1-9][0-9]{{{area - 2}}}")
        shapes.append(rf"{zone}[-(][0-9]{{{middle}}}(-|\)-?)[0-9]{{4}}")
    return re.sub(rf"(?<![0-9.])(?<![0-9]-)({'|'.join(shapes)}){end}", SEAM, text)


def plain_tags(line: str) -> str:
    tag = re.compile(r"(?<![A-Za-z0-9&])#(?![0-9])\w{1,30}(?!\w)")
    found = list(tag.finditer(line))
    if len(found) == 1 and not line[: found[0].start()].strip(" "):
        return line
    if found and not line[: found[-1].start()].strip(" "):
        return line
    return tag.sub(SEAM, line)


# --- rules and examples ---
@pytest.mark.parametrize(
    ("cleaner", "rule"),
    [pytest.param(c, r, id=f"{c.identity['rules']}: {r.name}") for c in (GUARDED, LITERAL) for r in c.ordered_rules],
)
def test_every_rule_does_what_its_examples_say(cleaner, rule):
    assert rule.examples
    for before, after in rule.examples:
        assert cleaner.close_seams(rule.apply(before)) == after
        assert cleaner(cleaner(before)) == cleaner(before) == plainly(before, guarded=cleaner is GUARDED)


def test_every_requirement_of_the_report_has_a_rule():
    for cleaner in (GUARDED, LITERAL):
        assert {rule.requirement for rule in cleaner.ordered_rules} == {f"R{n}" for n in range(19, 29)}


@pytest.mark.parametrize(
    ("text", "guarded", "literal"),
    [
        ("血圧１２０／８０ｍｍＨｇ", "血圧120/80mmHg", "血圧120/80mmHg"),
        ("体温37.5℃", "体温37.5℃", "体温37.5℃"),
        ("体温３８．５℃．", "体温38.5℃。", "体温38。5℃。"),
        ("1，234円", "1,234円", "1、234円"),
        ("白血球 10⁵/μL", "白血球▁10⁵/μL", "白血球▁105/μL"),
        ("CO₂とH₂O", "CO₂とH₂O", "CO2とH2O"),
        ("2024-01-15に", "2024-01-15に", "2024-01-15に"),
        ("①2錠", "①2錠", "12錠"),
        ("Ⅳ期、ⅡⅢaVF", "IV期、II▁IIIaVF", "IV期、IIIIIaVF"),
        ("HR 090-100-1100", "HR▁090-100-1100", "HR"),
        ("2024-01-15 090-1234-5678", "2024-01-15", "2024-01-15"),
        ("電話０３－１２３４－５６７８、", "電話、", "電話、"),
        ("06(6170)1070", "", "06(6170)1070"),
        ("(03)1234-5678", "", "(03)1234-5678"),
        ("０１２０‐４４４‐４４４", "", ""),
        ("SpO₂ 98%＠3L", "SpO₂▁98%@3L", "SpO2▁98%"),
        ("#1 肺炎\n#2 喘息", "#1▁肺炎\n#2▁喘息", "肺炎\n喘息"),
        ("37.5😀38.2", "37.5▁38.2", "37.538.2"),
        ("体表面積1.7㎡、尿㏗7", "体表面積1.7m²、尿pH7", "体表面積1.7m2、尿PH7"),
        ("10―20mg", "10-20mg", "10ー20mg"),
    ],
)
def test_guarded_rules_keep_what_literal_rules_lose(text, guarded, literal):
    assert GUARDED(text) == guarded
    assert LITERAL(text) == literal


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        (" \n\t\u3000\n ", ""),
        ("\u3000明日から。\r\n\r\n　次の行 です ", "明日から。\n次の行▁です"),
        ("詳しくは https://example.com/a?b=1 をご覧ください。", "詳しくは▁をご覧ください。"),
        ("連絡先：taro@example.co.jp（@taro_y）まで!!!", "連絡先:()まで!"),
        ("すご〜〜い！！！😀😀 #楽しい です", "すご〜い!▁です"),
        ("ﾃﾞｰﾀ・・・ｵﾜﾘ", "データ…オワリ"),
        ("テ\u3099ータ", "データ"),
        ("Ménière病とSjögren症候群", "Ménière病とSjögren症候群"),
        ("𠮷田さんは葛\U000e0100城市", "𠮷田さんは葛城市"),
        ("a\u200bb\ud800c\0d", "abcd"),
        ("090-\u20e31234-5678 090-한1234-5678", ""),
        ("03---1234-5678", ""),
        ("12@34 @3L", "12@34▁@3L"),
        ("尿蛋白(++) 糖(-)", "尿蛋白(++)▁糖(-)"),
        ("─────\n本文\n=====", "—\n本文\n="),
        ("http://a.jp/ http∶//b.jp/x", ""),
    ],
)
def test_whole_texts_come_out_as_expected(text, expected):
    assert GUARDED(text) == expected


# --- properties over all of Unicode ---
def assert_clean(text: str) -> None:
    assert not set(text) - ALLOWED - {"\n", "\u2581"}
    assert not re.search("^\u2581|\u2581$|\u2581\u2581", text, re.MULTILINE)
    assert "\n\n" not in text and text == text.strip("\n")


@relaxed
@given(st.one_of(anything, messy))
def test_cleaning_is_idempotent_and_stays_in_the_allowed_set(text):
    for cleaner in (GUARDED, LITERAL):
        cleaned = cleaner(text)
        assert_clean(cleaned)
        assert cleaner(cleaned) == cleaned


@relaxed
@given(st.one_of(anything, messy))
def test_fast_steps_equal_the_plain_statement_of_the_rules(text):
    assert GUARDED(text) == plainly(text, guarded=True)
    assert LITERAL(text) == plainly(text, guarded=False)


@pytest.mark.parametrize("frame", ["か{}き", "5{}5", "a{}\u0301b", "３{}．５", "{}"])
def test_every_code_point_equals_the_plain_statement(frame):
    points = [
        *range(0x10000),
        *range(0x1D400, 0x1D800),
        *range(0x1F000, 0x1F700),
        *range(0x20000, 0x110000, 997),
    ]
    points += [*range(0x2F800, 0x2FA20), *range(0xE0000, 0xE0200)]
    for start in range(0, len(points), 512):
        lines = [frame.format(chr(point)) for point in points[start : start + 512]]
        whole = "\n".join(lines)
        for cleaner in (GUARDED, LITERAL):
            cleaned = cleaner(whole)
            assert cleaned == plainly(whole, guarded=cleaner is GUARDED), f"from U+{points[start]:04X}"
            assert cleaner(cleaned) == cleaned


@relaxed
@given(st.lists(messy, max_size=6))
def test_lines_are_cleaned_independently(texts):
    texts = [text.translate(dict.fromkeys(map(ord, characters.BREAKS + "\n"), " ")) for text in texts]
    one_by_one = [GUARDED(text) for text in texts]
    assert GUARDED("\n".join(texts)) == "\n".join(line for line in one_by_one if line)


# --- measurements ---
WIDE = str.maketrans({chr(c): chr(c + 0xFEE0) for c in range(0x21, 0x7F)})
number = st.one_of(
    st.integers(0, 99_999).map(str),
    st.tuples(st.integers(0, 999), st.integers(0, 99)).map("{0[0]}.{0[1]}".format),
    st.integers(1000, 9_999_999).map("{:,}".format),
)
unit = st.sampled_from(
    ["mg", "mmHg", "g/dL", "%", "mL/min", "U/L", "mEq/L", "cm", "kg", "bpm", "mg/kg", "L", "℃", "度", "回/分"]
)
measurement = st.one_of(
    st.tuples(number, unit).map("".join),
    st.tuples(st.integers(40, 250), st.integers(20, 150)).map("{0[0]}/{0[1]}mmHg".format),
    st.tuples(number, number, unit).map("{0[0]}-{0[1]}{0[2]}".format),
    st.dates().map(str),
    st.tuples(number, number).map("{0[0]}±{0[1]}".format),
    st.tuples(st.integers(1, 99), st.integers(0, 9), unit).map(lambda v: f"{v[0]}×10{'⁰¹²³⁴⁵⁶⁷⁸⁹'[v[1]]}/μL"),
    st.tuples(st.sampled_from("①②③⑩"), number, unit).map("".join),
    st.times().map("{:%H:%M}".format),
)
before = st.sampled_from(
    [
        "血圧は",
        "体温",
        "CRP ",
        "投与量：",
        "😀",
        "(",
        "、",
        "HR ",
        "@taro_yama ",
        "https://a.jp/ ",
        "電話03-1234-5678、",
        "\n",
    ]
)
after = st.sampled_from(
    [
        "であった。",
        "、",
        " ",
        "😀",
        ")",
        "まで",
        "。電話090-1234-5678",
        "（a@b.co.jp）",
        "\n",
        "！！",
        " #痛い ",
    ]
)


@relaxed
@given(before, measurement, after, st.booleans())
def test_no_measurement_is_lost_or_joined_to_another(opening, figure, closing, wide):
    shown = figure.translate(WIDE) if wide else figure
    cleaned = GUARDED(f"{opening}{shown}{closing}").replace("\u2581", " ")
    assert re.search(rf"(?<![0-9.,]){re.escape(figure)}(?![0-9])", cleaned), cleaned


@relaxed
@given(
    st.lists(st.tuples(number, st.sampled_from(["mg", "%", "mL", "℃", ""])).map("".join), min_size=2, max_size=4),
    st.sampled_from(["😀", "한", "😀한😀", " https://a.jp/ ", " a@b.co.jp ", "\ue000", "\ufffd", " "]),
)
def test_neighbouring_measurements_stay_apart(figures, between):
    assert GUARDED(between.join(figures)).split("\u2581") == figures


@pytest.mark.parametrize(
    "shape",
    [
        "090-{b}-{c}",
        "080 {b} {c}",
        "03-{b}-{c}",
        "090({b}){c}",
        "045-123-{c}",
        "0466-12-{c}",
        "(03){b}-{c}",
        "06({b}){c}",
    ],
)
@pytest.mark.parametrize("wide", [False, True])
def test_whole_phone_numbers_go_and_nothing_else(shape, wide):
    phone = shape.format(b="1234", c="5678")
    shown = phone.translate(WIDE) if wide else phone
    assert GUARDED(f"血圧120/80、電話{shown}、体温37.5") == "血圧120/80、電話、体温37.5"


# --- hard inputs, identity, speed ---
def test_hard_input_is_cleaned_in_linear_time():
    for text in (
        "@" * 200_000,
        "#" * 200_000,
        "a" * 300_000 + "@b",
        "0" * 300_000,
        "0-" * 150_000,
        "www." * 60_000,
    ):
        started = time.perf_counter()
        cleaned = GUARDED(text)
        assert time.perf_counter() - started < 5
        assert GUARDED(cleaned) == cleaned


def test_unknown_rules_are_refused_by_name():
    with pytest.raises(ValueError, match=r"cleaner\.rules='strict'.*guarded"):
        Cleaner("strict")


def test_identity_names_the_rules_and_survives_pickling_and_a_new_process():
    assert GUARDED.identity["sha256"] != LITERAL.identity["sha256"]
    copy = pickle.loads(pickle.dumps(LITERAL))
    assert copy.identity == LITERAL.identity and copy("３８．５") == "38。5"
    code = "from ncvc.corpus.cleaning import Cleaner; print(Cleaner().identity['sha256'])"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert fresh == GUARDED.identity["sha256"]


def test_rules_are_those_of_this_version():
    """A changed rule needs a new VERSION and new hashes: tokenizers made with the old rules refuse it."""
    assert GUARDED.identity == {"rules": "guarded", "version": "1", "sha256": GUARDED_SHA256}
    assert LITERAL.identity == {"rules": "literal", "version": "1", "sha256": LITERAL_SHA256}


GUARDED_SHA256 = "65e761da807fb33a7b91ee99129484144accfe818d82064496a8eb598543e8fa"
LITERAL_SHA256 = "0c5dd98a7c0e2ce384649591301a78302759a33664405983d045cb15e5e4ef3a"


def test_cleaning_is_several_times_faster_than_the_plain_statement():
    text = "患者は７２歳、男性（既往に高血圧）。体温３８．５℃、血圧１２０／８０ｍｍＨｇであった。\n" * 200
    started = time.process_time()
    slow = plainly(text)
    middle = time.process_time()
    assert GUARDED(text) == slow
    assert (middle - started) > 3 * (time.process_time() - middle)


@pytest.mark.parametrize("name", ["medical_text/synthetic_radiology_phi", "medical_text/wiki_medical"])
def test_real_text_equals_the_plain_statement(name):
    path = SHARED / f"{name}.jsonl.gz"
    if not path.is_file():
        pytest.skip("the sample corpora beside this project are absent")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines][:100]
    for text in texts:
        assert GUARDED(text[:20_000]) == plainly(text[:20_000])
