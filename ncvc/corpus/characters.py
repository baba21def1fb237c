"""The characters of cleaned text: the allowed set, what is unified into what, normalisation that keeps
figures.

What it does: the tables and the character-by-character steps of `cleaning` (R19-R21, R25, R26, R28), which
the rules there name and hash.

Allowed set (R26): printable ASCII, Latin-1 and Latin Extended-A letters (Ménière, Sjögren; other accented
letters lose the accent), Greek, kana, ideographs U+3400-4DBF and U+4E00-9FFF, extension B (𠮷, 𣘺, 𩸽 and 𠮟
are in daily use in names and in the jōyō list), and `SYMBOLS`. Hangul, Cyrillic, Arabic, emoji and
private-use characters are removed. Superscripts, subscripts, fractions and ①-㊿ keep their own characters,
because 10⁵ is not 105 and "①2錠" is not "12錠"; Ⅳ becomes IV.

What it costs: one scan of the text per table. What it does not do: normalise blocks outside `REPERTOIRE`.
Those inside are frozen, so that every Python version from 3.11 gives the same text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

SPACE = "\u2581"


def members(ranges: str) -> list[str]:
    """Expand the ranges of a character class that holds no escapes."""
    pairs = re.findall("(.)-(.)|(.)", ranges, re.DOTALL)
    return [chr(c) for low, high, one in pairs for c in range(ord(low or one), ord(high or one) + 1)]


# What NFKC would turn into plain digits
SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ"
SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉₊₋"
FRACTIONS = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
CIRCLED = "⓪①②③④⑤⑥⑦⑧⑨⑩⑪⑫⑬⑭⑮⑯⑰⑱⑲⑳㉑㉒㉓㉔㉕㉖㉗㉘㉙㉚㉛㉜㉝㉞㉟㊱㊲㊳㊴㊵㊶㊷㊸㊹㊺㊻㊼㊽㊾㊿"
KEPT_FROM_NFKC = SUPERSCRIPTS + SUBSCRIPTS + FRACTIONS + CIRCLED

SYMBOLS = (
    "、。〃々〆〇〈〉《》「」『』【】〒〜・ー…—°℃‰±×÷§¶¥£¢¬※†‡←↑→↓↔↕↖↗↘↙⇒⇔⇐⇑⇓"
    "∀∂∃∇∈∋∏∑√∝∞∠∥∧∨∩∪∫∴∵≒≠≡≦≧≪≫⊂⊃⊆⊇⊥⊿○●◎△▲▽▼□■◇◆☆★♀♂✓" + KEPT_FROM_NFKC
)
_LATIN = "".join(c for c in members("\u00c0-\u017f") if c not in "×÷\u0149\u017f\u013f\u0140\u0132\u0133")
_KANA = "\u3031-\u3035\u3041-\u3096\u309d\u309e\u30a1-\u30fe\u31f0-\u31ff"
_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\ufa0e\ufa0f\ufa11\ufa13\ufa14\ufa1f\ufa21\ufa23\ufa24\ufa27-\ufa29"
ALLOWED = "!-}\u0391-\u03a1\u03a3-\u03a9\u03b1-\u03c9" + _KANA + _IDEOGRAPHS + _LATIN + SYMBOLS
ALLOWED_ASTRAL = "\U00020000-\U0002a6d6"

INVISIBLE = (
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff"
)
INVISIBLE_ASTRAL = "\U000e0000-\U000e0fff"
BLANKS = members("\t\x1c-\x1f\xa0\u1680\u2000-\u200a\u202f\u205f\u3000" + SPACE)
BREAKS = "\x0b\x0c\r\x85\u2028\u2029"

# Blocks whose compatibility forms become Japanese text; what NFKC could change elsewhere is removed by R26
# anyway.
REPERTOIRE = (
    "\u00a0-\u024f\u02b0-\u03ff\u1d2c-\u1dbf\u1e00-\u1fff\u2000-\u20cf\u2100-\u23ff\u2460-\u24ff\u2e80-\u2fdf"
    "\u3000-\u3029\u3030-\u30ff\u3190-\u319f\u3200-\u33ff\uf900-\ufaff\ufb00-\ufb06\ufe10-\ufe1f\ufe30-\ufe6f\uff00-\uffef"
    "\U0001d400-\U0001d7ff\U0001f110-\U0001f2ff\U0002f800-\U0002fa1f"
)
COMBINING = "\u0300-\u036f\u3099\u309a"  # the marks that can join a letter of the allowed set

_SQUARED = {
    "㎡": "m²",
    "㎥": "m³",
    "㎠": "cm²",
    "㎤": "cm³",
    "㎟": "mm²",
    "㎣": "mm³",
    "㎢": "km²",
    "㎦": "km³",
}
BEFORE_NFKC = {
    **_SQUARED,
    **{
        "㎨": "m/s²",
        "㏗": "pH",
        "º": "°",
        "˚": "°",
        "´": "'",
        "″": '"',
        "‥": "...",
        "⋯": "...",
        "™": "",
        "℠": "",
    },
    **{"゛": "\u3099", "゜": "\u309a"},
    **dict(zip(members("\u2488-\u249b"), CIRCLED[1:21], strict=True)),  # ⒈ would become 1. and "⒈5mg" 1.5mg
}
HYPHENS = "\u2010\u2012\u2013\u2212\u2043\u02d7\u058a\u2796"
BARS = "\u2014\u2015\u2500\u2501\u23af\u23e4\u2e3a\u2e3b"
TILDES = "~\u223c\u223e\u3030"


def _spread(groups: str) -> dict[str, str]:
    """Read "abc>x def>y" as a map of a, b, c to x and d, e, f to y."""
    pairs = (group.split(">") for group in groups.split())
    return {source: target for sources, target in pairs for source in sources}


def _without_accent() -> dict[str, str]:
    """Map the accented Latin and Greek letters outside the allowed set to their plain letter."""
    outside = sorted(set(members("\u0180-\u024f\u0370-\u03ff\u1e00-\u1fff")) - set(members(ALLOWED)))
    plain = {c: unicodedata.normalize("NFD", c)[0] for c in outside if unicodedata.decomposition(c)}
    return {c: letter for c, letter in plain.items() if re.match("[A-Za-z\u0391-\u03a9\u03b1-\u03c9]", letter)}


UNIFIED = {
    **_spread("“”„‟〝〞〟❝❞>\" ‘’‚‛′ʼʹ❛❜>' •◦‧∙⋅·⸱∘>・ ∶꞉>: ∕⁄>/ ≤⩽>≦ ≥⩾>≧ ≈≃≅≑>≒ ∗⁎>* ∆>Δ │┃┆┊>|"),
    **_spread("⟨❬>〈 ⟩❭>〉 ⟪«>《 ⟫»>》 〔〘⟦>[ 〕〙⟧>] 〖>【 〗>】 ⟶➡➔➜>→ ⟵⬅>← ⬆>↑ ⬇>↓"),
    **_spread("✕✖╳⨯❌>× ➕>+ ➗>÷ ✔☑✅>✓ ❗❕>! ❓❔>? ◯⚪⭕>○ ⚫>● ◻⬜▢>□ ◼⬛>■"),
    **dict(zip(members("\u2776-\u277f\u24eb-\u24f4"), CIRCLED[1:21], strict=True)),
    **dict(zip(members("\u2780-\u2793"), CIRCLED[1:11] * 2, strict=True)),
    **_without_accent(),
}
UNIFIED_LITERAL = {c: unicodedata.normalize("NFKC", target) for c, target in UNIFIED.items()}  # ❶ to 1, not ①


def class_of(characters: str, *, negated: bool = False) -> str:
    """Write `characters` (ranges allowed) as a class for `re`.

    Code points above U+FFFF beside others in one class make `re` 15 times slower: give them a class of their
    own."""
    escaped = re.sub(r"([\\\]\[^])", r"\\\1", characters)
    return f"[{'^' if negated else ''}{escaped}]"


def runs_of(character_class: str) -> re.Pattern[str]:
    """Compile runs of a class; written twice because `re` scans fast only where a pattern opens with a plain
    class."""
    return re.compile(f"{character_class}{character_class}*")


def one_to_one(table: dict[str, str]) -> Callable[[str], str]:
    """Return the step that replaces single characters by `table`."""
    pattern, lookup = re.compile(class_of("".join(sorted(table)))), table.__getitem__
    return lambda text: pattern.sub(lambda match: lookup(match[0]), text)


_UNSEEN = re.compile(class_of(INVISIBLE + "".join(BLANKS) + BREAKS))
_UNSEEN_ASTRAL = re.compile(class_of(INVISIBLE_ASTRAL))
_PLAIN = dict.fromkeys(BLANKS, " ") | dict.fromkeys(BREAKS, "\n")


def make_white_space_plain(text: str) -> str:
    """Turn white space into spaces and newlines, and drop what has no shape: controls, zero widths, lone
    surrogates."""
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    text = _UNSEEN.sub(lambda match: _PLAIN.get(match[0], ""), text)
    return _UNSEEN_ASTRAL.sub("", text)


def unstable(kept: str) -> str:
    """List the characters of the repertoire that NFKC changes, but for `kept`."""
    return "".join(c for c in members(REPERTOIRE) if c not in kept and unicodedata.normalize("NFKC", c) != c)


def _bases() -> str:
    """List the characters of the repertoire's canonical compositions that a following mark can change."""
    parts = (unicodedata.decomposition(c).split() for c in members(REPERTOIRE))
    first = {chr(int(pair[0], 16)) for pair in parts if len(pair) == 2 and not pair[0].startswith("<")}
    return "".join(sorted(first))


def normalizer(kept: str) -> tuple[Callable[[str], str], list[str]]:
    """Return NFKC over the repertoire but for `kept`, applied only to what it changes, and all its output
    depends on.

    Combining marks that found no letter are dropped with it. Text without marks is normalised run by run;
    with marks (files of some systems hold か and ゛ apart), each run is taken together with the letter before
    it."""
    changed = unstable(kept)
    plain = "".join(c for c in changed if c <= "\uffff")
    astral = frozenset(changed) - frozenset(plain)
    high = re.compile(f"[{min(astral)}-{max(astral)}]")
    runs = runs_of(class_of(plain))
    marks = re.compile(class_of(COMBINING + "\uff9e\uff9f"))
    with_base = re.compile(f"{class_of(_bases())}?{class_of(COMBINING + plain)}+")
    alone = re.compile(class_of(COMBINING))

    def flat(match: re.Match[str]) -> str:
        return unicodedata.normalize("NFKC", match[0]) if match[0] in astral else match[0]

    def composed(match: re.Match[str]) -> str:
        return alone.sub("", unicodedata.normalize("NFKC", match[0]))

    def apply(text: str) -> str:
        if high.search(text):
            text = high.sub(flat, text)
        if marks.search(text):
            return with_base.sub(composed, text)
        return runs.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)

    return apply, [changed, unicodedata.normalize("NFKC", "\n".join(changed)), with_base.pattern]
