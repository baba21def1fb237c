"""The guarded rules of `ncvc.corpus.cleaning` as HojiChar filters, written the way one would write them: a peer.

One filter a rule, in the same order, with plain `str.translate`, `re.sub` and whole-string NFKC. Once through: what a
removal brings together is not cleaned again, which the cleaner does.
"""

import re
import unicodedata
from collections.abc import Callable

import hojichar

from ncvc.corpus import characters

Step = Callable[[str], str]
DIGIT, LOCAL = "[0-9０-９]", r"[A-Za-z0-9._%+\-]"


def translation(table: dict[str, str]) -> Step:
    codes = {ord(source): target for source, target in table.items()}
    return lambda text: text.translate(codes)


def substitution(*pairs: tuple[str, str]) -> Step:
    compiled = [(re.compile(pattern), target) for pattern, target in pairs]

    def apply(text: str) -> str:
        for pattern, target in compiled:
            text = pattern.sub(target, text)
        return text

    return apply


def nfkc_but_for(kept: str) -> Step:
    other = re.compile(characters.class_of(kept, negated=True) + "+")
    return lambda text: other.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)


def both(first: Step, second: Step) -> Step:
    return lambda text: second(first(text))


UNSEEN = (
    dict.fromkeys(characters.members(characters.INVISIBLE), "")
    | dict.fromkeys(characters.BLANKS, " ")
    | dict.fromkeys(characters.BREAKS, "\n")
)
LINES = (
    dict.fromkeys(characters.HYPHENS, "-")
    | dict.fromkeys(characters.TILDES, "〜")
    | dict.fromkeys(characters.BARS, "—")
)
FOREIGN = f"[^{characters.class_of(characters.ALLOWED)[1:-1]}{characters.ALLOWED_ASTRAL} \n]"
STEPS: dict[str, Step] = {
    "WhiteSpace": both(lambda text: text.replace("\r\n", "\n"), translation(UNSEEN)),
    "PointsAndCommas": substitution(
        (f"(?<={DIGIT})．(?={DIGIT})", "."),
        (f"(?<={DIGIT})，(?={DIGIT}{{3}}(?!{DIGIT}))", ","),
        ("．", "。"),
        ("，", "、"),
    ),
    "Measurements": both(substitution((f"(?<={DIGIT})[゜ﾟ]", "°")), translation(characters.BEFORE_NFKC)),
    "Nfkc": nfkc_but_for(characters.KEPT_FROM_NFKC),
    "Hyphens": both(
        substitution(("(?<=[ァ-ヺ])[\u2015\u2500\u2501](?=[ァ-ヺ])", "ー")),
        both(translation(LINES), substitution(("(?<=[0-9])[—ー]+(?=[0-9])", "-"))),
    ),
    "Symbols": translation(characters.UNIFIED),
    "Dots": substitution((r"\.\.\.+", "…"), ("・・・+", "…"), ("°C", "℃")),
    "Urls": substitution(
        (r"(?:https?|ftp)://[A-Za-z0-9\-._〜:/?#@!$&'*+=%]+", ""), (r"(?<![A-Za-z0-9.\-])www\.[A-Za-z0-9\-._/]+", "")
    ),
    "Mail": substitution((rf"{LOCAL}+@[A-Za-z0-9\-]+(?:\.[A-Za-z0-9\-]+)*\.[A-Za-z]{{2,24}}", "")),
    "Accounts": substitution((r"(?<![A-Za-z0-9%℃])@[A-Za-z_][A-Za-z0-9_]{3,}", "")),
    "Tags": substitution((r"(?<![A-Za-z0-9&\n])#(?![0-9])\w{1,30}(?!\w)", "")),
    "Phones": substitution(
        (r"(?<![0-9.\-])0\d{1,4}[-(]\d{1,4}[-)]\d{4}(?![0-9])", ""), (r"(?<![0-9])0[5-9]0\d{8}(?![0-9])", "")
    ),
    "Foreign": substitution((FOREIGN, "")),
    "Repeats": substitution(
        (r"([ー〜—…、。・!?ぁぃぅぇぉっゃゅょァィゥェォッャュョ])\1+", r"\1"),
        (r"([あいうえおアイウエオ])\1{3,}", r"\1\1\1"),
        (r"(?<![A-Za-z0-9])w{3,}(?![A-Za-z0-9])", "w"),
        ("笑{3,}", "笑"),
        (r"([-=_*#])\1{2,}", r"\1"),
    ),
    "Spaces": both(substitution(("  +", " "), (" *\n[ \n]*", "\n")), lambda text: text.strip(" \n").replace(" ", "▁")),
}


def as_filters() -> list[hojichar.Filter]:
    """The rules as filters, in order."""

    def as_filter(name: str, step: Step) -> hojichar.Filter:
        def apply(self: hojichar.Filter, document: hojichar.Document) -> hojichar.Document:
            document.text = step(document.text)
            return document

        return type(name, (hojichar.Filter,), {"apply": apply})()

    return [as_filter(name, step) for name, step in STEPS.items()]
