"""Privacy: every format that is meant to be found, every figure that is not, and laws over all of Unicode.

The marked places of `privacy_notes` are the reference: written by hand, as invented notes, not made from the rules.
"""

from __future__ import annotations

import itertools
import pickle
import re
import subprocess
import sys
import time

import pytest
import yaml
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from privacy_notes import FOUND, UNTOUCHED

from ncvc.corpus.cleaning import Cleaner
from ncvc.corpus.personal import contacts as personal_contacts
from ncvc.corpus.personal.kinds import KINDS, MASKS, fold
from ncvc.corpus.personal.masking import Masker, PrivacySettings, Span, find_personal_data
from ncvc.corpus.personal.name_lists import CITIES, PREFECTURES, SURNAMES

ALL = PrivacySettings(kinds=KINDS)
MASK, REMOVE = Masker(ALL), Masker(PrivacySettings(kinds=KINDS, action="remove"))


def lines_of(text: str) -> list[str]:
    return text.strip("\n").split("\n")


def unmarked(line: str) -> tuple[str, list[tuple[int, int]]]:
    """The line without ⟦ ⟧, and the places that they marked."""
    text, places = "", []
    for part in re.split("([⟦⟧])", line):
        if part in ("⟦", "⟧"):
            places.append(len(text))
        else:
            text += part
    return text, list(zip(places[::2], places[1::2], strict=True))


def wrongly_found(kind: str, *, blank: str) -> list[tuple[str, list[str]]]:
    """The lines of `FOUND[kind]` in which other places than the marked ones are found, written with `blank`."""
    wrong = []
    for line in lines_of(FOUND[kind]):
        text, places = unmarked(line)
        text = text.replace(" ", blank or " ").replace("\u3000", blank or "\u3000")
        found = [(span.start, span.end) for span in find_personal_data(text) if span.kind == kind]
        if found != places:
            wrong.append((line, [text[start:end] for start, end in found]))
    return wrong


@pytest.mark.parametrize("kind", FOUND)
def test_every_format_is_found_exactly_in_raw_text(kind):
    assert wrongly_found(kind, blank="") == []


@pytest.mark.parametrize("kind", FOUND)
def test_every_format_is_found_exactly_with_the_blanks_of_cleaned_text(kind):
    assert wrongly_found(kind, blank="▁") == []


def test_what_names_nobody_is_untouched_raw_and_cleaned():
    assert [line for line in lines_of(UNTOUCHED) if MASK(line).text != line] == []
    cleaned = list(map(Cleaner(), lines_of(UNTOUCHED)))
    assert [line for line in cleaned if MASK(line).text != line] == []


def test_nothing_personal_is_left_when_masking_goes_before_and_after_the_cleaner():
    cleaner = Cleaner()
    for kind, text in FOUND.items():
        for line in lines_of(text):
            raw, places = unmarked(line)
            end = MASK(cleaner(MASK(raw).text)).text
            assert MASKS[kind] in end, line
            assert not any(raw[start:stop] in end for start, stop in places), line


# --- generated formats ---
WIDE = {code: code + 0xFEE0 for code in range(0x21, 0x7F)} | {0x20: 0x3000}
NUMBERS = ["03-1234-5678", "045-123-4567", "0422-12-3456", "09912-3-4567", "090-1234-5678", "070-1234-5678"]
NUMBERS += ["050-1234-5678", "0120-123-456", "0120-12-3456", "0800-123-4567", "0570-012-345"]


def phone_forms(number: str) -> list[str]:
    first, second, third = number.split("-")
    forms = [number, f"{first}.{second}.{third}", f"{first}・{second}・{third}", f"{first}ー{second}ー{third}"]
    forms += [f"{first}−{second}−{third}", f"{first} - {second} - {third}", f"{first}{second}{third}"]
    return [*forms, f"({first}){second}-{third}", f"({first}) {second}-{third}"]


@pytest.mark.parametrize("number", NUMBERS)
def test_phone_numbers_of_every_separator_bracket_and_width_are_found_whole(number):
    for form, wide in itertools.product(phone_forms(number), (False, True)):
        written = form.translate(WIDE) if wide else form
        for before, after in (("連絡は", "まで"), ("", ""), ("（", "）"), ("TEL:", "\n"), ("\n", "、")):
            text = before + written + after
            spans = find_personal_data(text, kinds=["phone"])
            assert [text[span.start : span.end] for span in spans] == [written], text


@given(
    local=st.from_regex(r"[a-z][a-z0-9_.+-]{0,20}[a-z0-9]", fullmatch=True),
    domain=st.from_regex(r"[a-z][a-z0-9-]{0,10}[a-z0-9](\.[a-z]{2,6}){1,3}", fullmatch=True),
    at=st.sampled_from(["@", "＠", "(at)", "[at]", "（at）", " [at] ", "(アット)"]),
    wide=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_mail_addresses_are_found_whole(local, domain, at, wide):
    address = local + at + domain
    address = address.translate(WIDE) if wide else address
    text = f"メールは{address}へ"
    assert [text[span.start : span.end] for span in find_personal_data(text, kinds=["email"])] == [address]


@given(
    place=st.sampled_from([prefecture + "中央市" for prefecture in PREFECTURES] + [city + "市" for city in CITIES]),
    town=st.sampled_from(["本町", "栄", "宇田川町", "大字長倉", "つつじが丘", "西区南町"]),
    block=st.sampled_from(["1-2-3", "15-1", "3丁目15番33号", "１２－３", "十丁目2番1号", "2381番地", "４丁目"]),
    building=st.sampled_from(["", " 第一ビル5F", "メゾン青葉201号室", "\u3000コーポ山田102"]),
    partial=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_addresses_with_a_block_number_are_found_whole(place, town, block, building, partial):
    address = place + town + block + building
    text = f"自宅は{address}です。"
    found = find_personal_data(text, kinds=["address"], partial_addresses=partial)
    assert [text[span.start : span.end] for span in found] == [address]


def test_cities_alone_count_only_when_asked_for():
    text = "大阪市阿倍野区にある施設。北海道札幌市。つくば市在住。"
    assert len(find_personal_data(text)) == 3
    assert find_personal_data(text, partial_addresses=False) == []
    figures = "横浜市戸塚区の人口3700、大阪市北区 2024-01-15 受診、福岡市東区箱崎町2024-01-15、松阪市川井町で120/80mmHg"
    assert find_personal_data(figures, partial_addresses=False) == []


@pytest.mark.parametrize("action", ["mask", "remove"])
def test_a_measurement_beside_personal_data_stays(action):
    masker = Masker(PrivacySettings(kinds=KINDS, action=action))
    note = (
        "氏名：山田太郎 生年月日：1950-03-03 電話03-1234-5678 住所：東京都港区赤坂1-2-3 体温37.5℃ 120/80mmHg 2024-01-15"
    )
    masked = masker(note)
    assert masked.text.endswith(" 体温37.5℃ 120/80mmHg 2024-01-15")
    assert masked.counts == {"phone": 1, "address": 1, "birth_date": 1, "name": 1}


# --- what stands again elsewhere ---
def test_values_are_masked_wherever_they_stand_again():
    note = (
        "患者ID：CT-ONC-5501\n氏名：鈴木 一郎\n生年月日：昭和29年11月1日\n連絡先：045-9876-5432\n"
        "CT-ONC-5501の肝臓。鈴木一郎は安定。体積は19541101mm3、1954/11/01。番号04598765432。CT-ONC-55012は別。"
    )
    masked = MASK(note).text
    last = (
        "〈患者番号〉の肝臓。〈氏名〉は安定。体積は〈生年月日〉mm3、〈生年月日〉。番号〈電話番号〉。CT-ONC-55012は別。"
    )
    assert masked.split("\n")[-1] == last


@pytest.mark.parametrize(
    ("date", "western"),
    [
        ("昭和29年11月1日", "19541101"),
        ("S29.11.1", "19541101"),
        ("令和元年5月1日", "20190501"),
        ("平成 2 年 12 月 3 日", "19901203"),
    ],
)
def test_japanese_years_are_counted_right(date, western):
    assert personal_contacts.notations(date)[0] == western


def test_the_my_number_check_digit_follows_the_ordinance():
    weights = (6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2)  # Q of the ordinance, from the first digit
    for number in range(10_000_000_000, 10_000_000_400, 7):
        digits = f"{number:011}"
        rest = sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=True)) % 11
        right = 0 if rest <= 1 else 11 - rest
        accepted = [last for last in range(10) if personal_contacts.has_my_number_check_digit(f"{digits}{last}")]
        assert accepted == [right]


def test_a_bare_my_number_is_found_by_its_check_digit_only():
    assert MASK("本人確認 1234 5678 9018").counts == {"patient_id": 1}
    assert MASK("本人確認 1234 5678 9012").counts == {}


# --- laws ---
PIECES = [
    *"0123 　\n@-ー（）(),:：、。・▁〈〉",
    "090-1234-5678",
    "a@b.jp",
    "氏名：",
    "患者",
    "様",
    "さん",
    "先生",
    "山田太郎",
    "佐藤",
]
PIECES += [
    "Dr.",
    "Sato",
    "患者ID:",
    "A-12345",
    "生年月日",
    "昭和38年",
    "11月15日",
    "生まれ",
    "〒150-0042",
    "東京都",
    "渋谷区",
    "大阪市",
]
PIECES += [
    "1-2-3",
    "ビル",
    "305号室",
    "電話",
    "〈氏名〉",
    "(at)",
    "ｻﾄｳ",
    "サトウ",
    "\ud800",
    "\x00",
    "か\u3099",
    "𠮷田",
    "の",
    "は",
    "123456789018",
]
TEXTS = st.one_of(st.text(st.characters(), max_size=40), st.lists(st.sampled_from(PIECES), max_size=20).map("".join))


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_spans_are_sorted_disjoint_inside_and_never_cross_a_line(text):
    spans = find_personal_data(text)
    edges = [edge for span in spans for edge in (span.start, span.end)]
    assert edges == sorted(edges)
    assert all(0 <= span.start < span.end <= len(text) and "\n" not in text[span.start : span.end] for span in spans)
    assert all(span.kind in KINDS for span in spans)


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_masking_and_removing_are_idempotent(text):
    for masker in (MASK, REMOVE):
        once = masker(text)
        again = masker(once.text)
        assert again.text == once.text
        assert again.counts == {}


@given(TEXTS)
@settings(max_examples=200, deadline=None)
def test_folding_keeps_every_place_and_all_widths_are_masked_alike(text):
    folded = fold(text)
    assert len(folded) == len(text)
    assert fold(folded) == folded
    assert find_personal_data(folded) == find_personal_data(text)


@given(st.sampled_from([unmarked(line)[0] for text in FOUND.values() for line in lines_of(text)]))
@settings(max_examples=100, deadline=None)
def test_full_width_variants_are_masked_alike(text):
    wide = text.translate(WIDE)
    assert find_personal_data(wide) == find_personal_data(fold(wide))
    assert MASK(wide).counts == MASK(fold(wide)).counts


def test_a_hostile_chain_of_masks_ends_and_stays():
    text = "".join(f"a{n}@b.jp090-1234-{n:04}山田様19{n % 90 + 10}年生まれ〒150-0042" for n in range(300))
    for masker in (MASK, REMOVE):
        once = masker(text)
        assert masker(once.text).text == once.text
        assert not re.search("[0-9]{4}-[0-9]{4}|@b", once.text)


def test_lines_whose_masks_make_new_ones_without_end_go_whole(monkeypatch):
    monkeypatch.setattr("ncvc.corpus.personal.masking.ROUNDS", 0)
    text = "体温37度\n電話03-1234-5678 体温38度\n体温39度"
    assert MASK(text).text == "体温37度\n〈電話番号〉\n体温39度"
    assert REMOVE(text).text == "体温37度\n\n体温39度"


def test_masks_pass_the_cleaner_as_one_label():
    cleaner = Cleaner()
    for mask in MASKS.values():
        assert cleaner(f"Ａ{mask}3、{mask}{mask}です") == f"A{mask}3、{mask}{mask}です"
    assert len(set(MASKS.values())) == len(KINDS)


def test_removal_never_fuses_two_numbers_or_words():
    assert REMOVE("120a@b.jp5").text == "5"
    assert REMOVE("SpO2〒150-0042 98").text == "SpO2 98"
    assert REMOVE("値12〒150-0042a").text == "値12 a"


HOSTILE = ["市", "様", "0-1", "a@a.", "(at)", "山田(や", "氏名：", "1年1月", "一丁目", "ID:A-", "患者の", "東京都港"]


@pytest.mark.parametrize("piece", HOSTILE)
def test_time_grows_with_the_length_of_a_hostile_line_and_no_faster(piece):
    def seconds(characters: int) -> float:
        text = (piece * characters)[:characters]
        begun = time.process_time()
        MASK(text)
        return time.process_time() - begun

    seconds(1_000)
    short, long = min(seconds(2_000) for _ in range(3)), min(seconds(16_000) for _ in range(2))
    assert long < 24 * max(short, 0.001)  # 8 times the text; the square would take 64 times


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece", [*HOSTILE, "医師", "0", "090-", "(at)a", "山田様", "患者", "昭和", "漢", "Dr. A", "内科 ", "𠮷"]
)
def test_a_megabyte_of_any_one_piece_takes_seconds(piece):
    text = piece * (1_000_000 // len(piece.encode()))
    begun = time.process_time()
    MASK(text)
    assert time.process_time() - begun < 60


# --- names ---
def test_the_dictionary_finds_rare_surnames_and_keeps_ordinary_words():
    with_dictionary = Masker(PrivacySettings(kinds=["name"], analyzer_names=True))
    without = Masker(PrivacySettings(kinds=["name"]))
    rare = "勘解由小路様、瓜生さん、薬袋先生"
    assert sum(with_dictionary(rare).counts.values()) > sum(without(rare).counts.values())
    for line in lines_of(UNTOUCHED):
        assert with_dictionary(line).text == line


def test_every_listed_surname_is_found_before_a_title():
    for surname in sorted(SURNAMES):
        assert find_personal_data(f"昨日、{surname}さんが来た。", kinds=["name"]) == [Span(3, 5 + len(surname), "name")]


# --- settings, identity ---
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"kinds": ["phone", "fax"]}, "privacy.kinds"),
        ({"kinds": ["phone", "phone"]}, "privacy.kinds"),
        ({"kinds": ["phone"], "action": "hide"}, "privacy.action='hide'"),
        ({"kinds": ["name"], "analyzer_dictionary": "huge"}, "privacy.analyzer_dictionary='huge'"),
    ],
)
def test_wrong_settings_are_named(wrong, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        PrivacySettings(**wrong)


@pytest.mark.parametrize("name", ["none", "contacts", "clinical"])
def test_the_configurations_are_settings(name):
    values = yaml.safe_load((REPOSITORY / "conf" / "privacy" / f"{name}.yaml").read_text(encoding="utf-8"))
    made = PrivacySettings(**values)
    masked = Masker(made)("氏名：山田太郎、電話03-1234-5678、大阪市在住")
    assert (
        masked.counts
        == {
            "none": {},
            "contacts": {"phone": 1},
            "clinical": {"phone": 1, "address": 1, "name": 1},
        }[name]
    )


def test_the_identity_names_what_decides_and_is_the_same_in_every_process():
    others = [
        Masker(PrivacySettings(kinds=KINDS[:3])),
        REMOVE,
        Masker(PrivacySettings(kinds=KINDS, partial_addresses=False)),
    ]
    digests = {masker.identity["sha256"] for masker in [MASK, *others]}
    assert len(digests) == 4
    assert Masker(PrivacySettings(kinds=KINDS[::-1])).identity == MASK.identity
    code = (
        "from ncvc.corpus.personal.masking import *; m = Masker(PrivacySettings(kinds=KINDS)); "
        "print(m.identity['sha256'], m('患者の山田様、東京都港区赤坂1-2-3').text)"
    )
    run = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"}, cwd=REPOSITORY,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert run[0] == run[1] == f"{MASK.identity['sha256']} 患者の〈氏名〉、〈住所〉\n"


def test_a_masker_travels_to_another_process():
    masker = Masker(PrivacySettings(kinds=KINDS, analyzer_names=True))
    masker("瓜生様")
    sent = pickle.loads(pickle.dumps(masker))
    assert sent.identity == masker.identity
    assert sent("瓜生様") == masker("瓜生様")
