"""Finders of phone numbers, mail addresses, post codes, patient numbers and dates of birth, on folded text.

What they do: a number is a phone number when it has a whole shape of the Japanese numbering plan, or a loose shape
behind a label (電話, TEL, 連絡先); a patient number or date of birth needs its label (患者ID, MRN, 生年月日, DOB), a
birth word (昭和15年生まれ), or, for a My Number, its check digit. Measurements, visit dates and page numbers have none
of these. Costs a few scans that begin with a literal. Does not know spelled-out numbers (ゼロキュウゼロ).
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator

from ncvc.corpus.personal.kinds import BAR, IDEOGRAPH, SEPARATOR, at_most_before

Found = Iterator[tuple[int, int]]

# --- phone ---
_S = SEPARATOR
_END = r"(?![0-9]|[-.][0-9])"


def _landline(separator: str) -> str:
    """0A BBBB CCCC to 0AAAA B CCCC: area code and exchange have five digits together."""
    areas = (("[1-9]", 4), ("[1-9][1-9]", 3), ("[1-9][0-9]{2}", 2), ("[1-9][0-9]{3}", 1))
    return "|".join(f"{area}{separator}[0-9]{{{digits}}}" for area, digits in areas)


_MOBILE = (
    rf"[5-9]0(?:{_S}[0-9]{{4}}{_S}[0-9]{{4}}| [0-9]{{4}} [0-9]{{4}}| ?\([0-9]{{4}}\) ?{BAR}?[0-9]{{4}}|[0-9]{{8}})"
)
_FREE = (
    rf"(?:120|570|800|990|180)(?:{_S}| |\))"
    rf"(?:[0-9]{{3}}(?:{_S}| )[0-9]{{3,4}}|[0-9]{{2}}(?:{_S}| )[0-9]{{4}}|[0-9]{{6}})"
    r"|(?:120|570)[0-9]{6}|800[0-9]{7}"
)
_OPENED = rf"(?:{_S}| ?\()"
_LINE = rf"(?:{_landline(_OPENED)})(?:{_S}|\) ?{BAR}?)[0-9]{{4}}"
_BARE = r"(?<![A-Za-z_]0)[1-9][0-9]{8}(?![A-Za-z_])"
_PHONE = re.compile(rf"0(?<![0-9.,]0)(?<![0-9][-ー]0)(?:{_MOBILE}|{_FREE}|{_LINE}|{_BARE}){_END}")
_CLOSED = r"\) ?"
_BRACKETED = re.compile(
    rf"\(0(?:[5-9]0\) ?[0-9]{{4}}|(?:120|570|800)\) ?[0-9]{{2,3}}|{_landline(_CLOSED)})(?:{_S}| )[0-9]{{3,4}}{_END}"
)
_ABROAD = re.compile(
    rf"\+ ?81(?:(?:{_S}| )?(?:\(0\) ?)?[1-9][0-9]{{0,3}}(?:{_S}| )[0-9]{{1,4}}(?:{_S}| )[0-9]{{3,4}}"
    rf"|(?:{_S}| )?(?:\(0\) ?)?[5-9]0[0-9]{{8}}|(?:{_S}| )?[1-9][0-9]{{8}}){_END}"
)
_PHONE_LABEL = (
    "電話|携帯|ケータイ|TEL|Tel|tel|℡|☎|☏|📞|📱|FAX|Fax|fax|ファックス|ファクス|ファクシミリ|連絡先|PHS|Phone|phone|"
    "PHONE|Mobile|内線"
)
_LABELLED_PHONE = re.compile(
    rf"(?:{_PHONE_LABEL})(?:番号|No\.?)?[\"'」』】\])]{{0,2}} ?[:=は]? ?[\"'「『(]{{0,2}}"
    rf"(\+?[0-9](?:[-ー.・()]{{0,2}}[0-9]){{8,13}}|0[0-9]{{1,4}} [0-9]{{1,4}} [0-9]{{4}}"
    rf"|[1-9][0-9]{{1,3}}{BAR}[0-9]{{4}}){_END}"
)
_EXTENSION = re.compile(r"内線(?:番号)? ?[:=]? ?([0-9]{2,5}(?:-[0-9]{2,5})?)(?![0-9])")
_OTHER_NUMBER = re.compile(r"(?:ISBN|ISSN|JAN|doi|DOI|PMID|arXiv|NCT|jRCT|UMIN|EAN|JPO|特開)[-0-9:. ]{0,8}\Z")


def phones(text: str) -> Found:
    """Yield phone and fax numbers and extensions."""
    if "0" in text:
        for match in _PHONE.finditer(text):
            if not _OTHER_NUMBER.search(text, max(0, match.start() - 16), match.start()):
                yield match.span()
        if "(0" in text:
            yield from (match.span() for match in _BRACKETED.finditer(text))
    if "81" in text and "+" in text:
        yield from (match.span() for match in _ABROAD.finditer(text))
    for match in _LABELLED_PHONE.finditer(text):
        digits = sum(character.isdigit() for character in match[1])
        whole = match[1][0] in "0+" and 9 <= digits <= (11 if match[1][0] == "0" else 14)
        local = "-" in match[1][2:5] and digits <= 8  # without its area code
        if whole or local:
            yield match.span(1)
    if "内線" in text:
        yield from (match.span(1) for match in _EXTENSION.finditer(text))


# --- mail ---
_NAME = r"[A-Za-z0-9\-]{1,63}"
_DOMAIN = rf"{_NAME}(?:\.{_NAME}){{0,8}}\.[A-Za-z]{{2,24}}(?![A-Za-z])"
_MAIL_AT = re.compile(rf"@{_DOMAIN}")
_WRITTEN_AT = re.compile(
    rf" ?(?:[(\[{{<〈《【_] ?(?:at|AT|At|アット|アットマーク|@|a) ?[)\]}}>〉》】_] ?|@ |☆|★|◎)"
    rf"{_NAME}(?: ?(?:\.|[(\[{{<] ?(?:dot|DOT|ドット|\.) ?[)\]}}>]|ドット) ?{_NAME}){{1,6}}(?![A-Za-z])"
)
_LOCAL_CHARACTERS = frozenset(string.ascii_letters + string.digits + "._%+-")
_TOP = re.compile(r"[A-Za-z]{2,24}\Z")


def mails(text: str) -> Found:
    """Yield mail addresses, also those written with (at) or [at] and (dot)."""
    patterns = [_MAIL_AT] if "@" in text else []
    if _MAY_BE_WRITTEN.search(text):
        patterns.append(_WRITTEN_AT)
    for pattern in patterns:
        for match in pattern.finditer(text):
            start, earliest = match.start(), max(0, match.start() - 64)
            while start > earliest and text[start - 1] in _LOCAL_CHARACTERS:
                start -= 1
            if start < match.start() and _TOP.search(text, max(start, match.end() - 26), match.end()):
                yield start, match.end()


_MAY_BE_WRITTEN = re.compile("[(\\[{<〈《【_] ?[aA@ア]|@ |[☆★◎]")

# --- post code ---
_POST_CODE = re.compile(rf"(?:〒|郵便番号) ?[:=]? ?([0-9]{{3}} ?{BAR}? ?[0-9]{{4}})(?![0-9])")
_BEFORE_PLACE = re.compile(
    rf"[0-9]{{3}}(?<![0-9]...)(?<![0-9][-ー.]...){BAR}[0-9]{{4}} ?"
    rf"(?=[{IDEOGRAPH}]{{1,3}}[都道府県]|[{IDEOGRAPH}]{{1,5}}市[^民立])"
)


def post_codes(text: str) -> Found:
    """Yield post codes with their mark: behind 〒 or 郵便番号, or directly before a prefecture or city."""
    if "〒" in text or "郵便番号" in text:
        for match in _POST_CODE.finditer(text):
            yield (match.start() if match[0][0] == "〒" else match.start(1)), match.end()
    if "-" in text or "ー" in text:
        for match in _BEFORE_PLACE.finditer(text):
            yield match.start(), match.start() + len(match[0].rstrip(" "))


# --- patient numbers ---
_QUOTE = r"[\"'」』】\])]{0,2}"
_IS = rf"{_QUOTE} ?(?:[:=]|は|が|→)? ?[\"'「『\[(]{{0,2}}(?:No\.? ?|#)?"
# The label's last part is searched for, because it opens with a literal; what must stand before it is checked after.
_ID_TAIL = (
    "I[Dd]|id|番号|コード|No|#|カルテ|診察券|マイナンバー(?:カード)?(?:番号)?|保険証|パスポート|MRN|M\\.R\\.N|HN|umber"
)
_VALUE = r"[A-Za-z0-9](?:[-ー_ ]?[A-Za-z0-9]){2,31}"
_LABELLED_ID = re.compile(rf"(?:{_ID_TAIL})\.?{_IS}({_VALUE})")
_ID_LABEL = re.compile(
    "(?:(?:患者(?:様)?|受診者|被検者|被験者|症例|登録|入院|外来|受付|整理|会計|予約|検査|オーダー?|依頼|検体|病歴|台帳|"
    "処方箋?|住民票?|会員|利用者)(?:識別)? ?(?:ID|Id|id|番号|コード|No)|(?:カルテ|診察券|パスポート) ?(?:ID|番号|No)?|"
    "(?:診療録|個人|マイナ|免許証?|旅券|年金|年金手帳)番号|マイナンバー(?:カード)?(?:番号)?|保険証|"
    "(?:被保険者|保険者|受給者|負担者|保険)(?:証)?(?:の)?(?:記号)?・?(?:番号|No)|"
    "MRN|M\\.R\\.N|(?<![A-Za-z])HN|(?<![A-Za-z])I[Dd]|"
    "(?:[Pp]atient|PATIENT|Pt\\.?|[Cc]hart|[Rr]ecord|[Hh]ospital|[Aa]ccession|[Ss]tudy) ?(?:ID|Id|No|[Nn]umber|#))\\Z"
)
_MY_NUMBER = re.compile(
    r"[0-9](?<![0-9A-Za-z.]\d)(?<![0-9]-\d)[0-9]{3}([- ]?)[0-9]{4}\1[0-9]{4}(?![0-9A-Za-z]|[-.][0-9])"
)
_TIME_STAMP = re.compile(
    r"(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])(?:[01][0-9]|2[0-3])[0-5][0-9]\Z"
)
_OTHER_REGISTER = re.compile("(?:CAS|法人|特許|商標|文化財|遺産|ISO|薬事|承認|試験)[ の]?\\Z")
_FOUR_BY_FOUR = re.compile("[0-9]{4} [0-9]{4} [0-9]{4}(?![0-9])")
_ID_TAIL_ONLY = re.compile(_ID_TAIL)
_MEASURED = re.compile(r"[0-9.]{1,5}(?:mg|g|ml|mL|kg|cm|mm|Hz|kV|HU|s|ms|T|V|ch|bit|px)\Z")


def has_my_number_check_digit(digits: str) -> bool:
    """Whether the last of 12 digits is the check digit of a My Number (ordinance of MIC 2014 No. 85, article 5)."""
    weighted = sum(int(digit) * (n + 1 if n <= 6 else n - 5) for n, digit in enumerate(reversed(digits[:11]), start=1))
    remainder = weighted % 11
    return int(digits[11]) == (0 if remainder <= 1 else 11 - remainder)


def _trimmed_value(value: str) -> str:
    """Cut a labelled value where another word or figure begins: "12345 72" is 12345; "CT 12345" stays whole."""
    if _FOUR_BY_FOUR.match(value):
        return value[:14]
    parts = value.split(" ")
    kept = parts[:1]
    for part in parts[1:]:
        before = kept[-1]
        if not (before.isalpha() and before.isupper() and len(before) <= 4):
            break
        kept.append(part)
    return " ".join(kept)


def patient_ids(text: str) -> Found:
    """Yield numbers of a patient, chart, insurance or test behind their label, and My Numbers."""
    for match in _LABELLED_ID.finditer(text):
        tail = _ID_TAIL_ONLY.match(text, match.start())
        label = tail and _ID_LABEL.search(text, at_most_before(text, match.start(), 12), tail.end())
        if not label or _OTHER_REGISTER.search(text, at_most_before(text, label.start(), 8), label.start()):
            continue
        value = _trimmed_value(match[1])
        capital = value.isupper() and re.search("[-_]", value) and len(value) >= 6
        if (any(map(str.isdigit, value)) or capital) and not _MEASURED.match(value):
            start = match.start() if label.start() == match.start() and match[0][0] == "I" else match.start(1)
            yield start, match.start(1) + len(value)
    for match in _MY_NUMBER.finditer(text):
        digits = re.sub("[^0-9]", "", match[0])
        if has_my_number_check_digit(digits) and not (match[1] == "" and _TIME_STAMP.match(digits)):
            yield match.span()


# --- dates of birth ---
_ERA = "明治|大正|昭和|平成|令和|[MTSHR]\\.?|[明大昭平令]|[㍾㍽㍼㍻㋿]"
_YEAR = rf"(?:(?:西暦)?(?:18|19|20)[0-9]{{2}}|(?:{_ERA}) ?(?:[0-9]{{1,2}}|元|[一二三四五六七八九十]{{1,3}}))"
_NUMBER = "(?:[0-9]{1,2}|[一二三四五六七八九十]{1,3})"
_MONTHS = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}"
_BRACKET = r"(?:\([^()\n]{1,8}\) ?)?"  # 昭和38年（1963年）11月15日
_DATE = (
    rf"{_YEAR} ?{_BRACKET}年 ?{_BRACKET}{_NUMBER} ?月 ?{_NUMBER} ?日"
    rf"|{_YEAR} ?[-/.・ー] ?[0-9]{{1,2}} ?[-/.・ー] ?[0-9]{{1,2}}(?![0-9])"
    r"|(?:18|19|20)[0-9]{6}(?![0-9])|[0-9]{1,2}[-/.][0-9]{1,2}[-/.](?:18|19|20)[0-9]{2}(?![0-9])"
    rf"|[0-9]{{1,2}}[- ]{_MONTHS}[-., ]{{1,2}}[0-9]{{4}}|{_MONTHS} ?[0-9]{{1,2}}(?:st|nd|rd|th)?,? ?[0-9]{{4}}"
)
_PART = rf"{_YEAR} ?年(?: ?{_NUMBER} ?月)?|{_YEAR}[-/.][0-9]{{1,2}}(?![0-9])"
_BIRTH_LABEL = (
    "生年月日|誕生日|出生年月日|出生日|生まれた日|生年|DOB|D\\.O\\.B\\.?|Date of [Bb]irth|Date Of Birth|date of birth|"
    "DATE OF BIRTH|Birth ?[Dd]ate|birth ?date|Birthday|birthday"
)
_LABELLED_BIRTH = re.compile(
    rf"(?:{_BIRTH_LABEL})(?:\((?:西暦|和暦)\))?{_QUOTE} ?(?:[:=]|は)? ?[\"'「『(]{{0,2}}({_DATE}|{_PART})"
)
_BIRTH_WORD = re.compile("生|誕|irth|DOB|D\\.O\\.B|BIRTH")
_AFTER_DATE = "[0-9年月日)元十 ]"
_BORN_WORD = re.compile(
    rf"生(?<={_AFTER_DATE}生)(?:まれ|れ|(?![{IDEOGRAPH}ぁ-ゖァ-ヺ]))|"
    rf"出生(?<={_AFTER_DATE}出生)|誕生(?<={_AFTER_DATE}誕生)"
)
_BORN_TAIL = re.compile(rf"(?:{_DATE}|{_PART}) ?(?:\([^()\n]{{1,12}}\) ?)?\Z")


def birth_dates(text: str) -> Found:
    """Yield dates behind 生年月日 or DOB, and dates or years before 生まれ (which is taken with them)."""
    if not _BIRTH_WORD.search(text):
        return
    yield from (match.span(1) for match in _LABELLED_BIRTH.finditer(text))
    for match in _BORN_WORD.finditer(text):
        date = _BORN_TAIL.search(text, at_most_before(text, match.start(), 40), match.start())
        if date:
            yield date.start(), match.end()


_ERA_BEGAN = {"明治": 1867, "大正": 1911, "昭和": 1925, "平成": 1988, "令和": 2018}
_ERA_SIGNS = dict(zip("MTSHR明大昭平令㍾㍽㍼㍻㋿", [*_ERA_BEGAN] * 3, strict=True))
_PARSED = re.compile(
    rf"(?P<era>{_ERA})? ?(?P<year>[0-9]{{1,4}}|元) ?{_BRACKET}[-/.・ー年] ?{_BRACKET}"
    r"(?P<month>[0-9]{1,2}) ?[-/.・ー月] ?(?P<day>[0-9]{1,2})"
)
_COMPACT = re.compile(r"((?:18|19|20)[0-9]{2})([0-9]{2})([0-9]{2})\b")


def notations(date: str) -> list[str]:
    """The other notations of a date of birth, western and Japanese, digits folded; none when it is no whole date."""
    if match := _COMPACT.search(date):
        year, month, day = map(int, match.groups())
    elif match := _PARSED.search(date):
        year = 1 if match["year"] == "元" else int(match["year"])
        sign = (match["era"] or "").rstrip(".")
        year += _ERA_BEGAN.get(_ERA_SIGNS.get(sign, sign), 0)
        month, day = int(match["month"]), int(match["day"])
    else:
        return []
    if not (1850 <= year <= 2100 and 1 <= month <= 12 and 1 <= day <= 31):
        return []
    forms = [f"{year}{month:02}{day:02}"]
    for m, d in dict.fromkeys([(f"{month}", f"{day}"), (f"{month:02}", f"{day:02}")]):
        forms += [f"{year}{sign}{m}{sign}{d}" for sign in "-/."] + [f"{year}年{m}月{d}日"]
        for era, began in _ERA_BEGAN.items():
            if 1 <= year - began <= 64:
                forms.append(f"{era}{year - began}年{m}月{d}日")
    return forms
