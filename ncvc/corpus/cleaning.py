"""Text cleaning R18-R28: ordered rules, each with its R-number, its reason and the examples that test it.

What it does: `Cleaner()(text)` returns lines separated by "\\n" in which U+2581 stands for white space; no
other white space or control character is left. `Cleaner("guarded")`, the default, follows the report except
where a rule taken literally loses a measurement or a meaning (３８．５ to 38。5, 10⁵ to 105, "#1 肺炎" to
nothing); `Cleaner("literal")` takes the rules literally. Cleaning is idempotent over all of Unicode: lone
surrogates, NUL and unassigned code points are removed, never an error. The characters that stay are listed in
`characters`.

Order: as in the report, except that symbols are unified (R25) before anything is searched for (R22-R24), so
that no odd colon or dash hides an address, and that URLs go before mail addresses and these before @accounts,
because each contains the next. A removal leaves a seam, and its line is cleaned again until none is left:
what a removal brings together is thus cleaned too. A removal between two ASCII letters or digits leaves a
space: two numbers never fuse.

What it costs: about 40 MB of UTF-8 per second on one core of ordinary Japanese text, 20 where most lines lose
something. What it does not do: de-identify (names, addresses, dates of birth), judge quality, strip markup.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from ncvc.corpus import characters
from ncvc.corpus.characters import FRACTIONS, KEPT_FROM_NFKC, SPACE, SUBSCRIPTS, SUPERSCRIPTS

VERSION = "1"
SEAM = "\0"  # left where a rule removed something, never in the output
Step = Callable[[str], str]


@dataclass(frozen=True)
class Rule:
    """One step: `apply` leaves `SEAM` for what it removed; `law` is all its output depends on, hashed."""

    name: str
    requirement: str
    reason: str
    law: str
    apply: Step
    examples: tuple[tuple[str, str], ...]


def _law(*parts: object) -> str:
    return json.dumps([part.pattern if isinstance(part, re.Pattern) else part for part in parts], sort_keys=True)


# --- R19: full-width period and comma ---
_DIGIT, _LOWER = "[0-9０-９]", "[a-zａ-ｚ]"
_POINT = re.compile(f"．(?<={_DIGIT}．)(?={_DIGIT})|．(?<={_LOWER}．)(?={_LOWER})|．(?<=[NＮ][oｏ]．)(?={_DIGIT})")
_THOUSANDS = re.compile(f"{_DIGIT}(?<!{_DIGIT}.){_DIGIT}{{0,2}}(?:，{_DIGIT}{{3}})+(?!{_DIGIT})")


def _points_and_commas_guarded(text: str) -> str:
    if "．" in text:
        text = _POINT.sub(".", text).replace("．", "。")
    if "，" in text:
        text = _THOUSANDS.sub(lambda match: match[0].replace("，", ","), text).replace("，", "、")
    return text


def _points_and_commas_literal(text: str) -> str:
    return text.replace("．", "。").replace("，", "、")


# --- R20: what NFKC would corrupt ---
_NUMBERED = "\u32c0-\u32cb\u3358-\u3370\u33e0-\u33fe"  # ㋀ ㍘ ㏠: NFKC writes them with plain digits in front
_ROMAN = "\u2160-\u217f"
_KANA_DEGREE = re.compile("[゜ﾟ](?<=[0-9０-９].)")
_FUSING = re.compile(
    f"(?<={_DIGIT})(?=[{_NUMBERED}])|(?<=[{_ROMAN}])(?=[{_ROMAN}IVXLivxl])|(?<=[IVXivx])(?=[{_ROMAN}])"
)
_MAY_FUSE = re.compile(f"[゜ﾟ{_NUMBERED}{_ROMAN}]")
_protect = characters.one_to_one(characters.BEFORE_NFKC)


def _protect_measurements(text: str) -> str:
    if _MAY_FUSE.search(text):
        text = _FUSING.sub(" ", _KANA_DEGREE.sub("°", text))
    return _protect(text)


# --- R21, R22: hyphens, dots ---
_LINES = dict.fromkeys(characters.HYPHENS, "-") | dict.fromkeys(characters.TILDES, "〜")
_KANA_BAR = re.compile("[\u2015\u2500\u2501](?<=[ァ-マャ-ヲヴ-ヺ].)(?=[ァ-ヺ])")
_NUMBER_BAR = re.compile("([0-9])[—ー]+(?=[0-9])")
_bars_to_dash = characters.one_to_one(_LINES | dict.fromkeys(characters.BARS, "—"))
_bars_to_choon = characters.one_to_one(_LINES | dict.fromkeys(characters.BARS, "ー"))
_DOTS, _MIDDLE_DOTS = re.compile(r"\.\.\.+"), re.compile("・・・+")
_MORE_DOTS = re.compile(r"\.{1,2}…[.…]*|…\.[.…]*")  # NFKC would make one run of them the next time


def _unify_bars_guarded(text: str) -> str:
    return _NUMBER_BAR.sub(r"\1-", _bars_to_dash(_KANA_BAR.sub("ー", text)))


def _restore_dots_and_celsius(text: str) -> str:
    text = _MIDDLE_DOTS.sub("…", _DOTS.sub("…", text))
    if ".…" in text or "…." in text:
        text = _MORE_DOTS.sub("…", text)
    return text.replace("°C", "℃")


# --- R23, R24: addresses ---
# No comma or bracket in an address: a measurement after one belongs to the text.
_TAIL = r"[A-Za-z0-9\-._〜:/?#@!$&'*+=%]*[A-Za-z0-9/_〜=&#%+\-]"
_URL = re.compile(rf"[HhFfTt](?:ttps?|TTPS?|tps?|TPS?)://{_TAIL}")
_WWW = re.compile(rf"www\.(?<![A-Za-z0-9.\-]www\.)[A-Za-z0-9\-]+\.{_TAIL}")
_LOCAL, _LABEL = r"[A-Za-z0-9._%+\-]", r"[A-Za-z0-9\-]{1,63}"
_DOMAIN = rf"{_LABEL}(?:\.{_LABEL}){{0,8}}\.[A-Za-z]{{2,24}}(?![A-Za-z])"
_MAIL = re.compile(rf"{_LOCAL}(?<!{_LOCAL}.){_LOCAL}{{0,63}}@{_DOMAIN}")
_ACCOUNT = re.compile(r"@(?<![A-Za-z0-9%℃]@)(?<![%℃] @)[A-Za-z_][A-Za-z0-9_]{3,}")
_ACCOUNT_LITERAL = re.compile(r"@(?<![A-Za-z0-9]@)[A-Za-z0-9_]+")
_TAG = re.compile(r"#(?<![A-Za-z0-9&]#)(?![0-9])\w{1,30}(?!\w)")
_TAG_LITERAL = re.compile(r"#(?<![A-Za-z0-9&]#)[^\s#、。]+")


def _remove_urls(text: str) -> str:
    if "://" in text:
        text = _URL.sub(SEAM, text)
    return _WWW.sub(SEAM, text) if "www." in text else text


def _remove(pattern: re.Pattern[str], sign: str) -> Step:
    return lambda text: pattern.sub(SEAM, text) if sign in text else text


def _remove_tags_guarded(text: str) -> str:
    """Remove #tags, but not a problem list: "#1 肺炎", or a line opened by the only tag it has ("#肺炎")."""

    def replace(match: re.Match[str]) -> str:
        before = match.start() - 1
        while before >= 0 and text[before] == " ":
            before -= 1
        if before >= 0 and text[before] != "\n":
            return SEAM
        line_end = text.find("\n", match.end())
        return SEAM if _TAG.search(text, match.end(), line_end if line_end >= 0 else len(text)) else match[0]

    return _TAG.sub(replace, text) if "#" in text else text


# --- R23: phone numbers ---
def _phone_pattern(area_end: str, middle_start: str) -> str:
    """The landline shapes 0A-BBBB-CCCC to 0AAAA-B-CCCC: area code and middle part have five digits
    together."""
    areas = (("[1-9]", 4), ("[1-9][1-9]", 3), ("[1-9][0-9]{2}", 2), ("[1-9][0-9]{3}", 1))
    return "|".join(f"{area}{area_end}{middle_start}[0-9]{{{digits}}}" for area, digits in areas)


_END = r"(?![0-9]|[-.][0-9])"
_MOBILE = r"[5-9]0-[0-9]{4}-[0-9]{4}|[5-9]0 [0-9]{4} [0-9]{4}|[5-9]0\([0-9]{4}\)-?[0-9]{4}|[5-9]0[0-9]{8}"
_FREE = r"(?:120|570)-[0-9]{3}-[0-9]{3}|(?:120|570)-[0-9]{2}-[0-9]{4}|800-[0-9]{3}-[0-9]{4}"
_LANDLINE = rf"(?:{_phone_pattern('[-(]', '')})(?:-|\)-?)[0-9]{{4}}"
_PHONE = re.compile(rf"0(?<![0-9.]0)(?<![0-9]-0)(?:{_MOBILE}|{_FREE}|{_LANDLINE}){_END}")
_BRACKETED_AREA = _phone_pattern(r"\)", "[ -]?")
_PHONE_BRACKETED = re.compile(rf"\(0(?:[5-9]0\)[ -]?[0-9]{{4}}|{_BRACKETED_AREA})-[0-9]{{4}}{_END}")
_PHONE_ABROAD = re.compile(
    r"\+81(?:[- ]?(?:\(0\))?[1-9][0-9]{0,3}[- ][0-9]{1,4}[- ][0-9]{4}|[- ]?[5-9]0[0-9]{8})" + _END
)
_PHONE_LITERAL = re.compile(r"0[0-9]{1,4}-[0-9]{1,4}-[0-9]{3,4}")


def _remove_phones_guarded(text: str) -> str:
    if "(0" in text:
        text = _PHONE_BRACKETED.sub(SEAM, text)
    if "+81" in text:
        text = _PHONE_ABROAD.sub(SEAM, text)
    return _PHONE.sub(SEAM, text)


# --- R26-R28 ---
_FOREIGN = characters.runs_of(characters.class_of(characters.ALLOWED + " \n" + SEAM, negated=True))
_FIRST_ASTRAL, _LAST_ASTRAL = characters.ALLOWED_ASTRAL.split("-")
_DOUBLED = re.compile("([ー〜—…、。・!?ぁぃぅぇぉっゃゅょァィゥェォッャュョ])\\1+")
_VOWELS = re.compile("([あいうえおアイウエオ])\\1{3,}")
_LAUGHTER = re.compile(r"w(?<![A-Za-z0-9_./@\-]w)w{2,}(?![A-Za-z0-9_./@\-])|笑{3,}")
_RULER = re.compile(r"([-=_*#])\1{2,}([0-9]?)")
_SPACES = re.compile("  +")
_AFTER_BREAK = re.compile("\n[ \n]+")


def _delete_foreign(text: str) -> str:
    def kept(match: re.Match[str]) -> str:
        return "".join(c if _FIRST_ASTRAL <= c <= _LAST_ASTRAL else SEAM for c in match[0])

    return _FOREIGN.sub(kept, text)


def _collapse_repeats(text: str) -> str:
    """Collapse repeats; "090---1234-5678" becomes a phone number by it, so such a ruler leaves a seam."""
    text = _VOWELS.sub(r"\1\1\1", _DOUBLED.sub(r"\1", text))
    if "www" in text or "笑笑笑" in text:
        text = _LAUGHTER.sub(lambda match: match[0][0], text)
    return _RULER.sub(lambda match: match[1] + SEAM * (match[1] == "-" and match[2] != "") + match[2], text)


def _mark_white_space(text: str) -> str:
    if "  " in text:
        text = _SPACES.sub(" ", text)
    text = _AFTER_BREAK.sub("\n", text.replace(" \n", "\n"))
    return text.strip(" \n").replace(" ", SPACE)


def _character_rules(guarded: bool) -> list[Rule]:
    """R19-R21: one form for each character."""
    normalize, normal_law = characters.normalizer(KEPT_FROM_NFKC if guarded else "")
    rules = [
        Rule(
            name="plain white space, nothing invisible",
            requirement="R26",
            reason="odd spaces and line ends hide words; zero widths, controls, lone surrogates are no text",
            law=_law(characters.INVISIBLE, characters.INVISIBLE_ASTRAL, characters.BLANKS, characters.BREAKS),
            apply=characters.make_white_space_plain,
            examples=(
                ("血圧\u3000120\tmm", "血圧 120 mm"),
                ("a\r\nb\u2028c\u2581d", "a\nb\nc d"),
                ("0\u200b9\x000\ud800", "090"),
                ("葛\U000e0100城", "葛城"),
            ),
        ),
        Rule(
            name="full-width period and comma",
            requirement="R19",
            reason="NFKC would make them half-width; a decimal point and a thousands comma stay (guarded)",
            law=_law("．。，、", *([_POINT, _THOUSANDS] if guarded else [])),
            apply=_points_and_commas_guarded if guarded else _points_and_commas_literal,
            examples=(
                ("痛い．熱は３８．５度，咳", "痛い。熱は３８.５度、咳"),
                ("1，234円、５，６日", "1,234円、５、６日"),
                ("Ｎｏ．５ ｗｗｗ．ａ", "Ｎｏ.５ ｗｗｗ.ａ"),
            )
            if guarded
            else (("３８．５、はい．", "３８。５、はい。"), ("1，234", "1、234")),
        ),
        Rule(
            name="NFKC",
            requirement="R20",
            reason="one form for each character; 10⁵ is not 105, ①2 is not 12 (guarded)",
            law=_law(*normal_law),
            apply=normalize,
            examples=(
                ("１２０／８０ｍｍＨｇ", "120/80mmHg"),
                ("10⁵/㎕ CO₂ ①½", "10⁵/μl CO₂ ①½"),
                ("ｶﾞﾝ か\u3099 e\u0301", "ガン が é"),
                ("Ⅳ期㌘", "IV期グラム"),
            )
            if guarded
            else (("１０⁵①½", "10511⁄2"), ("ｶﾞﾝ", "ガン")),
        ),
        Rule(
            name="hyphens, choonpu, tildes",
            requirement="R21",
            reason="one hyphen, one tilde; a bar is a choonpu (guarded: only between katakana)",
            law=_law(characters.HYPHENS, characters.TILDES, characters.BARS, _KANA_BAR, _NUMBER_BAR, guarded),
            apply=_unify_bars_guarded if guarded else _bars_to_choon,
            examples=(
                ("サ―ビス", "サービス"),
                ("10―20 10ー20 −2.5–3", "10-20 10-20 -2.5-3"),
                ("彼は――と~", "彼は——と〜"),
                ("ビタミン―", "ビタミン—"),
            )
            if guarded
            else (("サ―ビス−3~", "サービス-3〜"),),
        ),
    ]
    if guarded:
        rules.insert(2, _MEASUREMENT_RULE)
    return rules


_MEASUREMENT_RULE = Rule(
    name="measurements NFKC would corrupt",
    requirement="R20",
    reason="㎡ would become m2, ㏗ PH, 37゜C lose its degree, ⒈5mg become 1.5mg, ⅡⅢ become IIIII",
    law=_law(characters.BEFORE_NFKC, _KANA_DEGREE, _FUSING),
    apply=_protect_measurements,
    examples=(
        ("1.7㎡ ㏗7", "1.7m² pH7"),
        ("37゜C 37ﾟC 37ºC", "37°C 37°C 37°C"),
        ("ⅡⅢaVF", "Ⅱ ⅢaVF"),
        ("2㏠", "2 ㏠"),
        ("⒈5mg", "①5mg"),
    ),
)


def _symbol_rules(guarded: bool) -> list[Rule]:
    """R25, R22: one symbol for one meaning."""
    unified = characters.UNIFIED if guarded else characters.UNIFIED_LITERAL
    return [
        Rule(
            name="symbols of one meaning",
            requirement="R25",
            reason="one quotation mark, bullet, ≦, arrow; letters outside Latin Extended-A lose their accent",
            law=_law(unified),
            apply=characters.one_to_one(unified),
            examples=(("“はい” •≤3∶", '"はい" ・≦3:'), ("➡✖ạ", "→×a"), ("❶", "①" if guarded else "1")),
        ),
        Rule(
            name="three dots and degrees Celsius",
            requirement="R22",
            reason="NFKC took … and ℃ apart",
            law=_law(_DOTS, _MIDDLE_DOTS, _MORE_DOTS, "°C"),
            apply=_restore_dots_and_celsius,
            examples=(("37.5°C...", "37.5℃…"), ("え・・・..", "え…"), ("1..2", "1..2")),
        ),
    ]


def _address_rules(guarded: bool) -> list[Rule]:
    """R23, R24: what names a person or a place on the net."""
    return [
        Rule(
            name="URLs",
            requirement="R24",
            reason="addresses are no language",
            law=_law(_URL, _WWW),
            apply=_remove_urls,
            examples=(
                ("詳細https://a.jp/x?y=1。", "詳細。"),
                ("(http://a.jp/〜b/),120/80", "(),120/80"),
                ("www.a-b.co.jpへ", "へ"),
            ),
        ),
        Rule(
            name="e-mail addresses",
            requirement="R23",
            reason="they name a person",
            law=_law(_MAIL),
            apply=_remove(_MAIL, "@"),
            examples=(("連絡はa.b+c@x-y.ac.jpまで", "連絡はまで"), ("5@3", "5@3")),
        ),
        Rule(
            name="@accounts",
            requirement="R24",
            reason="they name a person; an oxygen flow (98%@3L) does not (guarded)",
            law=_law(_ACCOUNT if guarded else _ACCOUNT_LITERAL),
            apply=_remove(_ACCOUNT if guarded else _ACCOUNT_LITERAL, "@"),
            examples=(("@taro_12さん", "さん"), ("98%@3L 98% @room 10mg@眠前", "98%@3L 98% @room 10mg@眠前"))
            if guarded
            else (("@taro_12さん", "さん"), ("98%@3L", "98%")),
        ),
        Rule(
            name="#tags",
            requirement="R24",
            reason="they are no sentence; a numbered or opening problem (#1 肺炎) is one (guarded)",
            law=_law(_TAG if guarded else _TAG_LITERAL, guarded),
            apply=_remove_tags_guarded if guarded else _remove(_TAG_LITERAL, "#"),
            examples=(
                ("痛い #糖尿病 です", "痛い  です"),
                ("#1 肺炎 #2 喘息", "#1 肺炎 #2 喘息"),
                ("#肺炎\n咳", "#肺炎\n咳"),
                ("#肺炎 #喘息", " "),
            )
            if guarded
            else (("#1 肺炎", " 肺炎"),),
        ),
        Rule(
            name="phone numbers",
            requirement="R23",
            reason="they name a person; only whole shapes of the numbering plan are phone numbers (guarded)",
            law=_law(*([_PHONE, _PHONE_BRACKETED, _PHONE_ABROAD] if guarded else [_PHONE_LITERAL])),
            apply=_remove_phones_guarded if guarded else _remove(_PHONE_LITERAL, "0"),
            examples=(
                ("電話090-1234-5678へ", "電話へ"),
                ("03-1234-5678 06(6170)1070 (03)1234-5678 0120-444-444", "   "),
                ("+81-3-1234-5678 09012345678", " "),
                ("HR 090-100-1100 2024-01-15 0.5-1.0", "HR 090-100-1100 2024-01-15 0.5-1.0"),
            )
            if guarded
            else (("HR 090-100-1100", "HR "),),
        ),
    ]


def _last_rules() -> list[Rule]:
    """R26-R28: the allowed set, repeats, white space."""
    return [
        Rule(
            name="characters outside the allowed set",
            requirement="R26",
            reason="what Japanese clinical text does not use",
            law=_law(characters.ALLOWED, characters.ALLOWED_ASTRAL),
            apply=_delete_foreign,
            examples=(("熱😀です한", "熱です"), ("𠮷田 Ménière", "𠮷田 Ménière")),
        ),
        Rule(
            name="repeated characters",
            requirement="R27",
            reason="emphasis and rulers are needless; digits, letters and (++) are never touched",
            law=_law(_DOUBLED, _VOWELS, _LAUGHTER, _RULER),
            apply=_collapse_repeats,
            examples=(
                ("すごーーい!!。。", "すごーい!。"),
                ("=====", "="),
                ("あああああ っっ", "あああ っ"),
                ("嘘でしょwww 笑笑笑", "嘘でしょw 笑"),
                ("(++) 1000 --", "(++) 1000 --"),
            ),
        ),
        Rule(
            name="white space to U+2581",
            requirement="R28",
            reason="white space separates words for the pre-tokenizer; lines are stripped, empty lines go",
            law=_law(SPACE),
            apply=_mark_white_space,
            examples=((" a  b \n\n c ", "a▁b\nc"),),
        ),
    ]


_RULES: dict[str, tuple[Rule, ...]] = {}  # built once per process: 30 ms
_JOIN = re.compile(f"(?<=[0-9A-Za-z%℃{SUPERSCRIPTS}{SUBSCRIPTS}{FRACTIONS}]){SEAM}+(?=[0-9A-Za-z])")


class Cleaner:
    """The rules as one callable, `Cleaner()(text) -> str`; `rules` is "guarded" (default) or "literal".

    `identity` names the rules and hashes everything their output depends on. `ordered_rules` are the rules in
    order."""

    def __init__(self, rules: str = "guarded") -> None:
        if rules not in ("guarded", "literal"):
            raise ValueError(
                f"cleaner.rules={rules!r} is not known; "
                "set guarded (keeps measurements) or literal (the report's words)"
            )
        guarded = rules == "guarded"
        if rules not in _RULES:
            parts = (
                _character_rules(guarded),
                _symbol_rules(guarded),
                _address_rules(guarded),
                _last_rules(),
            )
            _RULES[rules] = tuple(rule for part in parts for rule in part)
        self.ordered_rules = _RULES[rules]
        self._steps = tuple(rule.apply for rule in self.ordered_rules)
        self._joint = " " if guarded else ""
        law = [[rule.name, rule.requirement, rule.law] for rule in self.ordered_rules]
        whole_law = json.dumps([VERSION, self._joint, _JOIN.pattern, law])
        digest = hashlib.sha256(whole_law.encode("utf-8")).hexdigest()
        self.identity: dict[str, str] = {"rules": rules, "version": VERSION, "sha256": digest}

    def __reduce__(self) -> tuple[type[Cleaner], tuple[str]]:
        return (Cleaner, (self.identity["rules"],))

    def __call__(self, text: str) -> str:
        """Return `text` cleaned; the empty string when nothing is left."""
        cleaned = self._once(text)
        if SEAM not in cleaned:
            return cleaned
        lines = (self._settled(line) if SEAM in line else line for line in cleaned.split("\n"))
        return "\n".join(line for line in lines if line)

    def _once(self, text: str) -> str:
        for step in self._steps:
            text = step(text)
        return text

    def _settled(self, line: str) -> str:
        """Clean one line until nothing more is removed; each round has fewer visible characters than the
        last."""
        while SEAM in line:
            line = self._once(self.close_seams(line))
        return line

    def close_seams(self, text: str) -> str:
        """Join what removals left apart: with a space where two ASCII letters or digits would meet
        (guarded)."""
        return _JOIN.sub(self._joint, text).replace(SEAM, "")
