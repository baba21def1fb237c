"""Finders of postal addresses, on folded text.

What they do: an address is a prefecture or city, ward and town with a block number and its building; or whatever
follows 住所 and looks like one; or, only when `partial`, a prefecture with its city, a known city, or a ward of Tokyo
without a number. A city that opens the name of an authority, hospital or school (横浜市立大学, 渋谷区役所) is no
address. Costs a scan for the place signs (市, 区, 県 ...) and a look around each. Does not know towns without their
city, or places outside Japan.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ncvc.corpus.personal.kinds import HIRAGANA, IDEOGRAPH, KATAKANA, any_of, at_most_before
from ncvc.corpus.personal.name_lists import CITIES, KANA_CITIES, PREFECTURES, TOKYO_WARDS

Found = Iterator[tuple[int, int]]

_K = f"[{IDEOGRAPH}]"
_P = f"[{IDEOGRAPH}ヶケヵガノツ之]"
_NO_PLACE = "(?![立民長営議役制政史場街庁警消選])"  # 市立, 市民, 区役所, 市街 ...
_ORGANISATION = (
    f"(?!{_P}{{0,8}}(?:病院|医院|診療所|大学|学校|高校|クリニック|センター|医師会|保健所|委員会|協会|新聞|銀行|空港|駅|"
    "球場|美術館|博物館|バス|線))"
)
_NOT_CITY = "(?!(?:政令|特別|中核|同|本|当|各|全|都|朝|見本|即売|株式|為替|金融|米|新|旧|自由|闇)[市区])"
_CITY = rf"{_NOT_CITY}(?:(?:{any_of(KANA_CITIES)})|{_P}{{1,5}}?)市{_NO_PLACE}"
_WARD = rf"(?:{_P}{{1,4}}?区{_NO_PLACE})"
_COUNTY = rf"{_P}{{1,5}}?郡{_P}{{1,5}}?[町村]{_NO_PLACE}"
_PREFECTURE = any_of(PREFECTURES)
_IN_PREFECTURE = (
    rf"(?:{_COUNTY}|{_CITY} ?{_WARD}?|{_NOT_CITY}{_P}{{1,4}}?区{_NO_PLACE}|"
    rf"(?:{any_of(KANA_CITIES)}|{_P}{{1,4}}?)[町村]{_NO_PLACE})"
)
_KNOWN_CITY = rf"(?:{any_of(CITIES)})市{_NO_PLACE} ?{_WARD}?"
_KNOWN_WARD = rf"(?:{any_of(TOKYO_WARDS)})区{_NO_PLACE}"

# A town, and the block number that makes an address of it
_NO_PARTICLE = "(?!は|が|を|に|の|と|で|も|へ|や|から|まで|より|だ|な)"
_KANA_TOWN = rf"(?:みなとみらい|{_NO_PARTICLE}[{HIRAGANA}]{{2,7}}(?=[{IDEOGRAPH}])|[{KATAKANA}]{{2,10}})"
_HILL = f"{_P}{{1,4}}(?:が(?=[丘関崎浜野原谷森台島岡峰池浦根沢岳])|の(?=[内丸手森門宮]))"  # 霞が関, 丸の内
_KYOTO = f"(?:{_P}{{1,8}}(?:[上下]る|[上下]ル|[東西]入(?:る|ル)?))"  # 寺町通御池上る
_TOWN = rf"(?:{_KYOTO} ?)?(?:字|大字)?(?:(?:{_HILL}|{_KANA_TOWN})?{_P}{{0,10}}?(?:[{KATAKANA}]{{2,8}})?)"
_DIGITS, _KANJI_NUMBER = "[0-9]{1,4}", "[〇一二三四五六七八九十百]{1,4}"
_NOT_DATE = "(?!(?:19|20)[0-9]{2} ?[-/.年] ?(?:0?[1-9]|1[0-2])(?:[-/.月]|(?![0-9])))"
_NEXT = "(?:丁目|番地の?|番町?|号|条|線|の|-|ー|[東西南北])"
_NO_UNIT = "(?![0-9]| ?(?:m[mglLE]|[%℃/:]|\\.[0-9]|歳|回|人|名|年|月|時|分|週|ヶ月|kg|cm|bpm))"
_NUMBER = rf"(?:{_DIGITS}|{_KANJI_NUMBER}(?=丁目|番|条|号|-))"
_BLOCK = rf"(?:{_NOT_DATE}{_NUMBER}(?:(?:{_NEXT} ?){{1,3}}{_NUMBER}){{0,5}}(?:丁目|番地|番|号室?)?{_NO_UNIT}|無番地)"
_STRUCTURED = re.compile("[0-9〇一二三四五六七八九十百](?:丁目|番|号|条|-|ー)")
_NO_FIGURE = f"(?!{_P}{{0,4}}(?:人口|患者|体温|血圧|面積|身長|体重|年齢|平成|昭和|令和|午前|午後|第|約|計|数|脈))"
_PLAIN_NUMBER = re.compile(
    rf"[町村](?:大?字)?{_NO_FIGURE}{_P}{{1,7}}{_DIGITS}|[町村通字]{_DIGITS}|無番地|^ ?(?:大?字){_P}{{1,10}}{_DIGITS}"
)
_KYOTO_STREET = re.compile(_KYOTO)
_BUILDING_WORD = (
    "ビルディング|ビル|マンション|ハイツ|コーポ|アパート|荘|タワー|レジデンス|メゾン|ハウス|館|団地|住宅|寮|ヒルズ|"
    "パレス|プラザ|コート|ガーデン|テラス|ハイム|シティ|スクエア|ヴィラ|カーサ|プレイス|フラット|キャッスル|パーク|"
    "ホームズ|号棟|(?<!病)棟"
)
_ROOM = "(?:[A-Za-z]?[0-9]{1,4}(?:-[0-9]{1,4})?(?:号室?|室|階|F)?)"
_BUILDING = (
    rf"(?: ?[A-Za-z{KATAKANA}{IDEOGRAPH}・'&]{{0,15}}?(?:{_BUILDING_WORD})"  # no hiragana: with it, text would go along
    rf"(?:[A-Za-z{KATAKANA}{IDEOGRAPH}]{{0,8}}? ?{_ROOM}{_NO_UNIT}"
    rf"|[A-Za-z{KATAKANA}{IDEOGRAPH}]{{1,8}}(?=[ 、。\n)]|\Z))?)?(?: ?[0-9A-Z]{{1,5}}号室)?"
)
_STREET = rf"(?: ?{_TOWN} ?{_BLOCK}{_BUILDING}|{_KYOTO})"

_BEGINNING = rf"(?:(?:{_PREFECTURE}) ?{_IN_PREFECTURE}|{_KNOWN_CITY}|{_KNOWN_WARD}|{_CITY} ?{_WARD}?|{_COUNTY})"
_WITH_STREET = re.compile(rf"({_BEGINNING})({_STREET})")
_SURE = re.compile(
    rf"(?:(?:{_PREFECTURE}) ?{_IN_PREFECTURE}|{_KNOWN_CITY}|(?<!{_K}){_KNOWN_WARD})"
    rf"{_ORGANISATION}(?:内(?![{IDEOGRAPH}]))?"
)
_LIVES = (
    rf"(?=内(?!{_K})|在住|在勤|出身|の(?:御|ご)?(?:自宅|実家|勤務先|職場|会社|施設)|"
    "(?:に|へ)(?:お?住|転居|引越|引っ越|在住|居住)|より|から(?:転居|来院|紹介|通院))"
)
_RESIDENCE = re.compile(rf"(?:{_CITY} ?{_WARD}?|{_COUNTY}){_LIVES}(?:内)?")
_SIGNS = re.compile(f"[市区郡]|[県府道都](?={_P}{{1,5}}[町村])")
_LABEL = re.compile(
    r"(?:住所|居所|所在地|本籍地?|転居先|帰省先|実家|Address|ADDRESS|address)"
    r"(?:[\"'」』】\])]{0,2} ?[:=は|]| |[】\])])[\"'「『 ]{0,3}"
    r"(?:〒? ?[0-9]{3}[-ー]?[0-9]{4} ?)?"
)
_KANA_BUILDING = (
    rf"(?: (?=[{HIRAGANA}]{{2,8}}[A-Za-z{KATAKANA}{IDEOGRAPH}]{{0,8}}(?:{_BUILDING_WORD}))[{HIRAGANA}]{{2,8}})"
)
_CHUNK = r"[^ \n、。,;:\"'「」()〈〉*|]"
_LABELLED = re.compile(
    rf"({_CHUNK}{{2,40}})"
    rf"((?: (?=[0-9]{{1,4}}(?:-|丁目|番)){_BLOCK}| [0-9]{{3,4}}(?=[\n、。,;\"'」)|]|\Z))?{_KANA_BUILDING}?{_BUILDING})"
)
_LOOKS_LIKE_PLACE = re.compile(rf"[都道府県市区町村郡]|{_K}[0-9]{{1,4}}(?:-|丁目|番)")
_NO_PLACE_WORDS = re.compile("不明|同上|不定|変更|なし|施設入所|電話|記載|確認")
_BEFORE = 12  # characters of a prefecture and city before the sign that was found


def addresses(text: str, *, partial: bool) -> Found:
    """Yield addresses; with `partial` also prefecture and city, city, or ward alone."""
    yield from _labelled(text)
    tried = 0  # no place begins before it: each beginning is tried once, however many signs follow it
    for sign in _SIGNS.finditer(text):
        start = max(tried, at_most_before(text, sign.start(), _BEFORE))
        found = _begins_in(text, start, sign.end() - 1, partial)
        if found:
            yield found
        tried = max(tried, found[1] if found else sign.end() - 1)


def _begins_in(text: str, start: int, end: int, partial: bool) -> tuple[int, int] | None:
    """The first address with a street, else the first without, that begins between `start` and `end`."""
    for at in range(start, end):
        street = _WITH_STREET.match(text, at)
        if street and _is_street(street[2]):
            return street.span()
    if partial:
        for pattern in (_SURE, _RESIDENCE):
            for at in range(start, end):
                if match := pattern.match(text, at):
                    return match.span()
    return None


def _is_street(street: str) -> bool:
    """Whether what follows a city is a town with a block number, and no figure: 横浜市人口370万 is none."""
    structured = _STRUCTURED.search(street) or _PLAIN_NUMBER.search(street) or _KYOTO_STREET.search(street)
    return bool(structured) and not re.match(f" ?{_DIGITS}(?!-|丁目|番)", street)


def _labelled(text: str) -> Found:
    for label in _LABEL.finditer(text):
        value = _LABELLED.match(text, label.end())
        if value and _LOOKS_LIKE_PLACE.search(value[1]) and not _NO_PLACE_WORDS.search(value[1]):
            yield value.span()
