"""Finder of person names, on folded text.

What it does: a name stands behind a label (氏名：, 患者名, 依頼医), before or behind a title (佐藤様, 渡辺先生,
Dr. Smith), or before its reading (山田太郎（やまだたろう）). Behind a strong label any value is one; elsewhere the run
of kanji must begin with a surname: one of the list, one by its shape (two characters that end like a surname), or, with
a `SurnameDictionary`, one that Sudachi knows. Honorifics (様, さん, 先生, Dr.) are part of the span, professions (医師)
are not. お客様, 皆さん, 患者様, スリガラス様 are no names.

Costs a scan for titles and labels and a look at each. Does not find a bare name in running text (本田が来た).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ncvc.corpus.personal.kinds import HIRAGANA, IDEOGRAPH, KATAKANA, at_most_before
from ncvc.corpus.personal.name_lists import (
    BEFORE_NAMES,
    KANA_SURNAMES,
    NOT_NAME_ENDINGS,
    NOT_NAMES,
    ORDINARY_WORDS,
    READINGS,
    SURNAME_ENDINGS,
    SURNAMES,
)

Found = Iterator[tuple[int, int]]

_K, _H, _T = f"[{IDEOGRAPH}ヶケノ]", f"[{HIRAGANA}]", f"[{KATAKANA}]"
_ROMAN_WORD = "[A-ZÀ-Þ][A-Za-zÀ-ÿ'’-]{1,20}"
_ROMAN = rf"(?:{_ROMAN_WORD}|[A-Z]\.)(?:(?:, ?| )(?:{_ROMAN_WORD}|[A-Z]\.)){{0,3}}"
_LONGEST_SURNAME = 5


class SurnameDictionary:
    """Asks Sudachi's dictionary whether a word is a surname, or a given name; opened at the first question."""

    def __init__(self, *, dictionary: str = "core") -> None:
        from ncvc.morphology import sudachi_identity

        try:
            self.identity = sudachi_identity(dictionary=dictionary)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"privacy.analyzer_names=true looks surnames up: {error}") from error
        self._known: dict[str, frozenset[str]] = {}
        self._opened: Any = None

    def __contains__(self, word: str) -> bool:
        return "姓" in self._uses(word)

    def is_given_name(self, word: str) -> bool:
        """Whether `word` is a given name (花子) and no common word."""
        return "名" in self._uses(word)

    def _uses(self, word: str) -> frozenset[str]:
        if word not in self._known:
            if len(self._known) >= 100_000:  # a corpus has no end of words
                self._known.clear()
            self._known[word] = self._ask(word)
        return self._known[word]

    def _ask(self, word: str) -> frozenset[str]:
        if self._opened is None:
            from sudachipy import Dictionary

            self._opened = Dictionary(dict=self.identity["dictionary"])
        parts = [entry.part_of_speech() for entry in self._opened.lookup(word)]
        if any(part[1] == "普通名詞" for part in parts):
            return frozenset()
        return frozenset(part[3] for part in parts if part[2] == "人名")

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuilt, (self.identity["dictionary"],))


def _rebuilt(dictionary: str) -> SurnameDictionary:
    return SurnameDictionary(dictionary=dictionary)


# --- what is a name ---
_ALL_KANJI = re.compile(f"{_K}+\\Z")
_PARTICLES = frozenset("はがをにのとでもへやかなねよわ")


def _listed_length(run: str) -> int:
    return next((n for n in range(min(_LONGEST_SURNAME, len(run)), 0, -1) if run[:n] in SURNAMES), 0)


def surname_length(run: str, known: SurnameDictionary | None = None) -> int:
    """The length of the surname that `run` begins with, 0 when it begins with none."""
    if length := _listed_length(run):
        return length
    head = run[:2]
    if len(head) == 2 and head[1] in SURNAME_ENDINGS and head not in ORDINARY_WORDS and head not in NOT_NAMES:
        return 2
    if known is not None:
        for length in range(min(_LONGEST_SURNAME, len(run)), 1, -1):
            if run[:length] not in NOT_NAMES and run[:length] in known:
                return length
    return 0


def is_name(run: str, known: SurnameDictionary | None = None) -> bool:
    """Whether a run of kanji is a surname, alone or with a given name of one to three characters."""
    if run in NOT_NAMES:
        return False
    length = surname_length(run, known)
    rest = run[length:]
    if length == 0 or len(rest) > 3:
        return False
    return not rest or not (rest[0] in "県市区町村駅" or rest.endswith(tuple(NOT_NAME_ENDINGS)))


_LONGEST_WORD = max(map(len, BEFORE_NAMES))


def _after_a_word(run: str, start: int) -> bool:
    """Whether `run[:start]` ends with a word that may stand directly before a name."""
    return any(run[start - length : start] in BEFORE_NAMES for length in range(1, min(start, _LONGEST_WORD) + 1))


def _name_start(run: str, known: SurnameDictionary | None) -> int:
    """Where in a run of kanji that ends before a title the name begins; -1 for nowhere.

    A listed surname may follow anything (昨日来院山本先生), one known by its shape or to the dictionary only the run's
    beginning or a word of `BEFORE_NAMES`."""
    starts = range(max(0, len(run) - 8), len(run))
    free = [start for start in starts if start == 0 or _after_a_word(run, start)]
    for start in [*free, *starts]:
        length = _listed_length(run[start:])
        if length and (start in free or length >= 2) and is_name(run[start:]):
            return start
    return next((start for start in free if is_name(run[start:], known)), -1)


# --- before a title ---
_PROFESSIONS = (
    "医師|看護師|教授|准教授|講師|院長|師長|技師|薬剤師|医員|理学療法士|作業療法士|言語聴覚士|"
    "ドクター|Dr[.]?|Ns|PT|OT|ST"
)
_TITLE = re.compile(  # every branch opens with a literal, so that `re` skips the rest of the text fast
    "様(?<!お様)(?![子式相態々変])|さま(?!ざま|々)|さん(?!ざん|ぷ|ご)|ちゃん|くん|"
    f"君(?!{_K})|氏(?![名族神子])|殿(?![下様堂])|先生|"
    + "|".join(f"{profession}(?![A-Za-z会長])" for profession in _PROFESSIONS.split("|"))
)
_HONORIFICS = ("様", "さま", "さん", "ちゃん", "くん", "君", "氏", "殿", "先生", "Dr", "Dr.")
# Read backwards from the title, so that it is tried at one place only
_BEFORE_TITLE = re.compile(
    rf" ?(?P<given>(?:{_K}{{1,4}}|{_H}{{1,5}}|{_T}{{1,6}}) |{_T}{{2,6}}|{_H}{{2,4}})?"
    rf"(?P<surname>{_K}{{0,11}}[{IDEOGRAPH}])"
)
_KANA_BEFORE = re.compile(rf"(?<!{_T})({_T}{{2,12}}[・ =]{_T}{{1,12}}|{_T}{{2,8}}) ?\Z")
_HIRAGANA_BEFORE = re.compile(rf"(?:(?<![{HIRAGANA}])|(?<=[はがをにのとでもお]))({_H}{{3,7}}) ?\Z")
_ROMAN_BEFORE = re.compile(rf"(?<![A-Za-z])({_ROMAN}) ?\Z")
_INITIALS = re.compile(r"(?<![A-Za-z0-9])[A-Z][.・] ?[A-Z][.・]? ?\Z")
_SYLLABLES = re.compile(
    "(?:(?:[kgsztdnhbpmr]y?|sh|ch|ts|j|f|w|y|kk|tt|pp|ss|tch)?[aeiou]h?|n(?![aeiouy])|m(?=[bp]))+\\Z", re.IGNORECASE
)
_TO_HIRAGANA = {code: code - 0x60 for code in range(ord("ァ"), ord("ヶ"))}


def _before(text: str, start: int, title: str, known: SurnameDictionary | None) -> int:
    """Where the name that ends before the title at `start` begins; -1 when none does."""
    line = at_most_before(text, start, 28)
    last = text[start - 1 : start]
    if (last.isupper() or last in (".", "・", " ")) and (match := _INITIALS.search(text, line, start)):
        return match.start()
    if match := _BEFORE_TITLE.match(text[line:start][::-1]):
        return _kanji_before(text, start - match.end(), match["surname"][::-1], (match["given"] or "")[::-1], known)
    if match := _KANA_BEFORE.search(text, line, start):
        kana = match[1].translate(_TO_HIRAGANA)
        parts = re.split("[・ =]", kana)
        return match.start() if (len(parts) > 1 and len(title) < 3) or parts[0] in KANA_SURNAMES else -1
    if match := _HIRAGANA_BEFORE.search(text, line, start):
        kana = match[1]
        longest = (n for n in range(len(kana)) if kana[n:] in KANA_SURNAMES and (n == 0 or kana[n - 1] in _PARTICLES))
        return next((match.start(1) + n for n in longest), -1)
    if match := _ROMAN_BEFORE.search(text, line, start):
        words = re.split("[, ]+", match[1])
        single = len(words) == 1 and len(words[0]) >= 3 and not words[0].isupper() and _SYLLABLES.match(words[0])
        return match.start() if single or (len(words) > 1 and not match[1].isupper()) else -1
    return -1


def _kanji_before(text: str, start: int, run: str, given: str, known: SurnameDictionary | None) -> int:
    if given and given[0] == " " and not is_name(run, known):
        begin = _name_start(run, known)
        if begin < 0 and _ALL_KANJI.match(given[1:]):  # the space belongs to the text before: "診察 佐藤先生"
            begin = _name_start(given[1:], known)
            start += len(run) + 1
        return start + begin if begin >= 0 else -1
    if given and (given[0] in _PARTICLES or (len(run) < 2 and "ぁ" <= given[0] <= "ゖ")):
        return -1
    if text[start - 1 : start] in ("お", "ご", "御"):
        return -1
    begin = _name_start(run, known)
    if begin < 0 and known is not None and not given and len(run) >= 2 and run not in NOT_NAMES:
        begin = 0 if known.is_given_name(run) else -1
    return start + begin if begin >= 0 else -1


def _titled(text: str, known: SurnameDictionary | None) -> Found:
    for title in _TITLE.finditer(text):
        start = _before(text, title.start(), title[0], known)
        if start >= 0:
            end = title.end() if title[0] in _HONORIFICS else title.start()
            yield start, start + len(text[start:end].rstrip(" "))


# --- behind a title ---
_NO_DOCTOR = "ヘリ|カー|コール|ショッピング|コンサルト|ストップ"
_DOCTOR = re.compile(
    rf"[DMPド](?<![A-Za-z].)(?:(?<=D)[Rr]|(?<=M)(?:rs?|s|iss|RS?)|(?<=P)rof|(?<=ド)クター(?=[ {IDEOGRAPH}]))"
    r"(?![A-Za-z])\.?[ :]{0,2}"
    rf"(?:(?P<kanji>{_K}{{1,6}})(?P<given>(?: {_K}{{1,4}}| {_H}{{1,5}}| ?{_T}{{2,6}})(?!{_K}|{_T}))?"
    rf"|(?P<kana>(?!{_NO_DOCTOR}){_T}{{2,10}}(?:[・ ]{_T}{{1,10}})?)|(?P<roman>{_ROMAN}))"
    "(?:先生|様|さん|氏)?"
)


def _behind_title(text: str) -> Found:
    for match in _DOCTOR.finditer(text):
        kanji, given = match["kanji"], match["given"] or ""
        after_name = match.start() > 0 and _ALL_KANJI.match(text[match.start() - 1])  # 山田Drコンサルト
        if kanji is None:
            if not (after_name and match["kana"]):
                yield match.span()
            continue
        if kanji in NOT_NAMES or kanji.endswith(("科", "部", "病院", "医師会", "依頼", "説明")):
            continue
        if given and given.strip().endswith(tuple(NOT_NAME_ENDINGS)):
            yield match.start(), match.end("kanji")
        else:
            yield match.span()


# --- behind a label ---
_STRONG = (
    "(?:患者(?:様)?|受診者|被検者|被験者|利用者|入所者|本人|家族|保護者|世帯主|被保険者|対象者)?(?:氏名|姓名)|"
    "患者(?:様)?(?:名|さん名)|受診者名?|被検者名?|お名前|フリガナ|ふりがな|ﾌﾘｶﾞﾅ|カナ氏名|"
    "(?:検査)?(?:依頼|読影|承認|報告|執刀|紹介|署名|記載|指示|処方|診断|確認|撮影|施行|検査)"
    "(?:医師?|者|技師)(?:名|氏名)?|(?:主治医|担当医|担当医師|医師|看護師|技師|担当者|責任者|記録者|記載者|術者|助手|"
    "介護者|キーパーソン)(?:名|氏名)|(?:緊急)?連絡先(?:氏名|名)?|保証人(?:名)?|身元引受人|代理人(?:名)?|"
    "Patient ?(?:'s )?[Nn]ame|PATIENT ?NAME|Patient|(?<![A-Za-z] )(?<![A-Za-z])(?:Full )?(?:Name|NAME)|"
    "Physician|Referring (?:Physician|Doctor)|Radiologist"
)
_WEAK = (
    "患者|患児|主治医|担当医師?|当直医?|執刀医|指導医|研修医|術者|助手|麻酔医|医師|薬剤師|"
    "理学療法士|作業療法士|言語聴覚士|栄養士|相談員|ケアマネ|Pt(?=[: ])|Ns(?=[: ])|看護師|受持(?:ち)?|"
    "担当(?:看護師|技師|者|Ns)?|検査技師|技師|記録者|記載者|キーパーソン|家族|夫|妻|長男|次男|長女|次女|"
    "息子|娘|父|母|兄|姉|弟|妹|名前|署名|サイン"
)
# A label's last letter is searched for together with its sign; the label is then read backwards from there.
_STRONG_LABEL = re.compile(rf"(?:{_STRONG})\Z")
_STRONG_SIGN = (
    r"(?:様)?(?:\((?:漢字|カナ|かな|ふりがな|フリガナ|ローマ字|自署|本人)\))?[\"'」』】\])]{0,2}"
    r"(?: ?[:=|] ?|_{1,8}|(?<=[】\]\"']) ?| )[\"'「『]{0,2}"
)
_STRONG_END = re.compile(rf"[名医師者技ナな先人引etnrｅﾅ]{_STRONG_SIGN}(?=[{IDEOGRAPH}{HIRAGANA}{KATAKANA}A-Z])")
_WEAK_SIGN = r"[】\]\"'*]{0,2}(?: ?[:=|] ?| |は|の|、|・|である)?[\"'「『(]{0,2}"
_WEAK_LABEL = re.compile(rf"(?:{_WEAK})(?P<sign>{_WEAK_SIGN})(?=[{IDEOGRAPH}{HIRAGANA}{KATAKANA}])")
_ROLE = re.compile(
    "(?:(?:臨床検査|診療放射線|放射線)?技師|医師|看護師|医長|部長|(?:消化器|呼吸器|循環器|脳神経|整形)?[内外]科|"
    "[一-龥]{1,6}科) "
)
_KANJI_VALUE = re.compile(rf"({_K}{{1,7}})(?:( ?・? {{0,2}})({_K}{{1,5}}|{_T}{{1,8}}|{_H}{{1,6}}))?")
_KANA_VALUE = re.compile(rf"{_T}{{2,12}}(?:[・ =]{_T}{{1,12}}){{0,3}}|{_H}{{2,7}}(?: {_H}{{1,8}})?(?!{_K})")
_ROMAN_VALUE = re.compile(rf"{_ROMAN}|[A-Z]{{2,15}}(?:,? [A-Z]{{2,15}}){{0,2}}(?![A-Za-z0-9-])")
_NAME_CHARACTER = re.compile(f"{_K}|{_H}|{_T}")
_AFTER_VALUE = re.compile(" ?(?:先生|様|さん|さま|氏|殿|くん|ちゃん)")
_READING = re.compile(
    rf" ?\((?:{_H}[{HIRAGANA}ー・ ]{{1,18}}|{_T}[{KATAKANA}・ ]{{2,18}}|[A-Z][A-Za-z ,.'’-]{{3,30}})\)"
)


def _labelled(text: str, known: SurnameDictionary | None) -> Found:
    for end in _STRONG_END.finditer(text):
        if _STRONG_LABEL.search(text, at_most_before(text, end.start(), 24), end.start() + 1):
            sign = end[0][1:]
            sure = bool(set(":|=_") & set(sign)) or sign[:1] in "】]"
            yield from _value(text, end.end(), sure, True, known)
    for label in _WEAK_LABEL.finditer(text):
        start = label.end()
        if label["sign"] or _listed_length(text[start : start + _LONGEST_SURNAME]) >= 2:
            yield from _value(text, start, False, False, known)


def _value(text: str, start: int, sure: bool, strong: bool, known: SurnameDictionary | None) -> Found:
    while role := _ROLE.match(text, start):
        start = role.end()
    end = _value_end(text, start, sure, strong, known)
    if end > start:
        honorific = _AFTER_VALUE.match(text, end)
        end = honorific.end() if honorific else end
        if reading := _READING.match(text, end):
            honorific = _AFTER_VALUE.match(text, reading.end())
            end = honorific.end() if honorific else reading.end()
        yield start, end


def _value_end(text: str, start: int, sure: bool, strong: bool, known: SurnameDictionary | None) -> int:
    """Where the name at `start` ends; `start` when none begins there. A `sure` place takes any name-like value."""
    if match := _KANJI_VALUE.match(text, start):
        return _kanji_value_end(text, match, sure, known)
    if match := _KANA_VALUE.match(text, start):
        first = re.split("[・ =]", match[0].translate(_TO_HIRAGANA))[0]
        ends = _AFTER_VALUE.match(text, match.end()) or not text[match.end() : match.end() + 1].isalnum()
        return match.end() if sure or (first in KANA_SURNAMES and ends) else start
    match = _ROMAN_VALUE.match(text, start) if strong else None
    return match.end() if match and (sure or len(re.split("[ ,]+", match[0])) > 1) else start


def _kanji_value_end(text: str, match: re.Match[str], sure: bool, known: SurnameDictionary | None) -> int:
    run, given = match[1], match[3] or ""
    parted = match[2].strip("・ ") == "" and match[2] != "" if given else False
    inner = _NAME_CHARACTER.match(text, match.end()) is not None
    if given and (inner or given in NOT_NAMES or given.endswith(tuple(NOT_NAME_ENDINGS))):
        given = ""
    elif given and not parted and "ぁ" <= given[0] <= "ゖ":  # 高橋とみ, but not 佐藤が
        given = given if len(given) > 1 and (sure or given[0] not in _PARTICLES) else ""
    if sure:
        word = run.endswith(tuple(NOT_NAME_ENDINGS)) and not is_name(run, known)
        found = not word and (run not in NOT_NAMES or bool(given))
    else:
        found = is_name(run, known) or (bool(given) and parted and surname_length(run, known) == len(run))
    return match.start() if not found else match.end() if given else match.end(1)


# --- before its reading ---
_WITH_READING = re.compile(
    rf"({_K}{{1,5}} ?(?:{_K}{{1,4}}|{_H}{{1,4}}|{_T}{{1,6}})) ?"
    rf"\(({_H}{{2,7}}[ ・]?{_H}{{1,8}}|{_T}{{2,7}}[ ・]?{_T}{{1,8}})(?P<end>\)|[、,])"
)
_OPENING = re.compile(rf"\((?=[{HIRAGANA}{KATAKANA}]{{2}})")


def _read_names(text: str, known: SurnameDictionary | None) -> Found:
    for bracket in _OPENING.finditer(text):
        match = _WITH_READING.search(text, at_most_before(text, bracket.start(), 16), bracket.end() + 50)
        if match is None or match.end() <= bracket.start():
            continue
        run, kana = match[1].replace(" ", ""), match[2].translate(_TO_HIRAGANA)
        length = surname_length(run, known)
        reading = READINGS.get(run[:length])
        parted = " " in match[1] or " " in kana
        if 0 < length < len(run) and (kana.startswith(reading) and (parted or length > 1) if reading else parted):
            if match["end"] == ")":
                yield match.span()
            else:
                yield match.span(1)
                yield match.span(2)


def names(text: str, *, known: SurnameDictionary | None = None) -> Found:
    """Yield person names; `known` judges surnames that the list and the shape do not show."""
    yield from _titled(text, known)
    yield from _behind_title(text)
    yield from _labelled(text, known)
    yield from _read_names(text, known)
