"""What an output of a model says: the letters, the number or the spans it answers with, or None where it says none.

Nothing is run, nothing raises, and what can be read in two ways is not read: None is a refusal, which the scores count.

Letters, in this order: the whole output is the letter; the last stated answer ("答えはD", "Answer: C", "Bが正解",
\\boxed{A}); a line or sentence that is only the letter, or an output that begins with it ("B. 顆"); the only letter
that stands for itself in the text and ends a statement ("CTで腫瘤を認めるため B"). A letter in a word (CT, B型,
ビタミンD, D-dimer, E. coli, "A patient") stands for none, a rejected one ("Aではなく") neither, and different letters
with equal right are no answer. Width and case do not matter, unless two options differ only by case. Thinking in
<think> is left out, and so is what a base model goes on to ask itself ("問題: ..." on a new line). For spans see
``list_reading``.

Costs: 3 µs for a bare letter, some 30 for a sentence; of an output longer than ``LONGEST`` the first and the last
10,000 characters are read. Does not: judge whether the answer is right, or understand an argument.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from ncvc.evaluation.list_reading import bounded, own_words, read_spans_answer

__all__ = ["LONGEST", "read_choice", "read_letters", "read_number", "read_spans_answer"]

LONGEST = 20_000
"""Characters of an output in which a letter or a number is looked for."""

_DROPPED = dict.fromkeys(map(ord, "*`$\u200b\u200c\u200d\u2060\ufeff\u00ad"))
_EDGE = " \t\n\r　()（）「」『』【】[]<>〈〉《》{}\"'“”‘’.。,、:：;!！_#-"
_KANA_KANJI = "ァ-ヺーｦ-ﾟ一-鿿々"
_JAPANESE_CUE = (
    r"(?:最終的?な?)?(?:答え|答|回答|解答|正解|正答|結論|判定)"
    r"(?:の?(?:選択肢|記号|番号|アルファベット|文字))?|選択肢(?=\s*[は:=])|選(?:ぶ|択する)(?:の|もの|選択肢)(?=は)"
)
_ENGLISH_CUE = (
    r"\b(?:answers?|choices?|options?|solution)(?=\s*(?:is|are|would|should|:|=|-|→))|\\boxed\b"
    r"|\b(?:choose|pick|select|go with)(?=\s)"
)
_JOINT = (
    r"(?:[\s:=→⇒>–—―~…、|「『【〔(\[\"'“‘<{]|-(?!\d)|としては|として|とは|は|が|も|を|選択肢|記号"
    r"|\b(?:is|are|would be|should be|option|choice|letter|the|correct)\b|\\text\b|\\mathrm\b|\\textbf\b){0,12}"
)
_NUMBER = re.compile(r"(?<![\d.A-Za-z])[-+−]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
_NUMBER_CUE = re.compile(
    f"(?:{_JAPANESE_CUE}|{_ENGLISH_CUE}){_JOINT}(?:約|およそ|about )?\\s*({_NUMBER.pattern})", re.I
)
_ALTERNATIVE = re.compile(r"または|もしくは|あるいは|か|\bor\b", re.I)
_SPECIES = re.compile(  # of a genus shortened to one of the letters A to H
    r"\b[A-H]\.\s?(?:baumannii|cereus|fragilis|pertussis|anthracis|subtilis|henselae|burgdorferi|abortus|difficile|albicans"
    r"|perfringens|botulinum|tetani|trachomatis|diphtheriae|jejuni|neoformans|coli|cloacae|faecalis|faecium"
    r"|histolytica|granulosus|multilocularis|tularensis|vaginalis|lamblia|pylori|influenzae|ducreyi|fumigatus)\b"
)
_SENTENCE_END = re.compile(r"[\n。.!！]+")
_NUMBER_ONLY = re.compile(rf"\D{{0,3}}({_NUMBER.pattern})(?:[^\d\s]{{0,12}})\Z")


class _Patterns(NamedTuple):
    """The regular expressions of one set of letters."""

    by_text: dict[str, str]  # letter as given, by its folded form
    fold: bool
    stated: re.Pattern[str]
    bare: re.Pattern[str]
    head: re.Pattern[str]
    mention: re.Pattern[str]
    one: re.Pattern[str]
    conclusion: re.Pattern[str]


def read_choice(output: str, letters: Sequence[str], *, options: Sequence[str] = ()) -> str | None:
    """The one letter of ``letters`` that ``output`` answers with, as it stands in ``letters``, or None.

    With ``options``, their texts, an output that is exactly one option's text reads as its letter.
    """
    found = read_letters(output, letters, 1)
    if found is None and options:
        text = _cleaned(output).strip(_EDGE)
        same = [
            letter for letter, option in zip(letters, options, strict=True) if _cleaned(option).strip(_EDGE) == text
        ]
        found = (same[0],) if text and len(same) == 1 else None
    return found[0] if found and len(found) == 1 else None


def read_letters(output: str, letters: Sequence[str], wanted: int) -> tuple[str, ...] | None:
    """The letters that ``output`` answers with, each once, in the order of ``letters``, or None.

    ``wanted`` is how many the question asks for. A list of another number is returned as it is, since it is an answer,
    if a wrong one; letters strewn over a text are read only where they are ``wanted`` many. Where more than one is
    wanted "ad" is a list, too. "aまたはd" is no answer.
    """
    patterns = _patterns(tuple(letters), wanted > 1)
    bare = output.strip()
    if bare in patterns.by_text and len(bare) <= 2:
        return (patterns.by_text[bare],)
    text = _SPECIES.sub(" ", _cleaned(own_words(output)))
    found = _answer(text, patterns, wanted)
    if not found:
        return None
    return tuple(letter for letter in letters if letter in found)


def read_number(output: str) -> str | None:
    """The number that ``output`` answers with, in ASCII digits as written ("04", "-1.5"), without thousands commas.

    The last stated one ("答えは21"), else a last line that is only a number and its unit, else the only number there.
    """
    text = _cleaned(own_words(output)).replace("\\", " ")
    stated = [match[1] for match in _NUMBER_CUE.finditer(text)]
    if not stated:
        lines = [line for line in (part.strip(_EDGE.replace("-", "")) for part in text.split("\n")) if line]
        last = _NUMBER_ONLY.match(lines[-1]) if lines else None
        everywhere = {match[0].replace(",", "").lstrip("+") for match in _NUMBER.finditer(text)}
        stated = [last[1]] if last else list(everywhere) if len(everywhere) == 1 else []
    return stated[-1].replace(",", "").replace("−", "-").lstrip("+") if stated else None


def _cleaned(text: str) -> str:
    """NFKC, without marks of emphasis and characters of no width."""
    text = unicodedata.normalize("NFKC", bounded(text, LONGEST)).translate(_DROPPED)
    return bounded(text, LONGEST)  # again, for a character may become 18


def _answer(text: str, patterns: _Patterns, wanted: int) -> set[str] | None:
    whole = patterns.bare.fullmatch(text.strip(_EDGE))
    if whole:
        return _members(whole[0], patterns)
    if stated := list(patterns.stated.finditer(text)):
        return _members(next(group for group in stated[-1].groups() if group), patterns)
    parts = [part.strip(_EDGE) for part in _SENTENCE_END.split(text)]
    alone = [_members(match[0], patterns) for part in parts if (match := patterns.bare.fullmatch(part))]
    heads = [match[1] for line in text.split("\n") if (match := patterns.head.match(line))]
    if heads and patterns.head.match(text.lstrip()):
        alone += [_members(head, patterns) for head in heads]
    if alone:
        if all(found == alone[0] for found in alone):
            return alone[0]
        together = set().union(*(found or () for found in alone))
        return together if len(together) == wanted > 1 else None
    mentions = list(patterns.mention.finditer(text))
    named = {patterns.by_text[_folded(match[1], patterns)] for match in mentions}
    if len(named) != wanted:
        return None
    return named if any(patterns.conclusion.match(text, match.end()) for match in mentions) else None


def _members(group: str, patterns: _Patterns) -> set[str] | None:
    """The letters of a list, None where they are alternatives."""
    between = patterns.one.sub(" ", group)
    found = {patterns.by_text[_folded(match[0], patterns)] for match in patterns.one.finditer(group)}
    return None if len(found) > 1 and _ALTERNATIVE.search(between) else found


def _folded(text: str, patterns: _Patterns) -> str:
    return text.casefold() if patterns.fold else text


@functools.lru_cache(maxsize=256)
def _patterns(letters: tuple[str, ...], several: bool) -> _Patterns:
    """The patterns for ``letters``; ``ValueError`` for letters that are none."""
    plain = [_cleaned(letter).strip() for letter in letters]
    fold = len({letter.casefold() for letter in plain}) == len(plain)
    names = [letter.casefold() if fold else letter for letter in plain]
    if not names or not all(names) or len(set(names)) < len(names):
        raise ValueError(f"option letters {', '.join(map(repr, letters)) or '(none)'}: give letters, each another one.")
    by_text = dict(zip(names, letters, strict=True)) | {letter: letter for letter in letters}
    flags = re.IGNORECASE if fold else 0
    any_of = "|".join(re.escape(letter) for letter in sorted(plain, key=len, reverse=True))
    kana = "ぁ-ゖ" if any("ぁ" <= character <= "ゖ" for character in "".join(plain)) else ""
    right = rf"(?![A-Za-z0-9_{_KANA_KANJI}{kana}]|-[A-Za-z0-9]|'[a-z]|\.[A-Za-z])"
    left = rf"(?<![A-Za-z0-9_°{_KANA_KANJI}{kana}])(?<![A-Za-z0-9]-)(?<![A-Za-z]['.])"
    noun = r"[ \t](?!(?:or|and|is|are|was|because|since)\b)[A-Za-z]{2}"
    letter = rf"(?:{any_of}){right}(?!(?<=(?-i:a)){noun})"  # not "a patient"
    opened, closed = r"[(「『【\[<\"']?", r"[)」』】\]>\"']?"
    between = r"[ \t]*(?:[,、・/&+;]|と|及び|および|ならびに|または|もしくは|あるいは|か|\band\b|\bor\b)?[ \t]*"
    run = rf"|(?:{any_of}){{2,{len(plain)}}}{right}" if several else ""
    group = rf"(?>{opened}{letter}{closed}(?:{between}{opened}{letter}{closed}){{0,16}})(?:と|、)?{run}"
    rejected = r"(?!\s*(?:[~〜]|(?:では|で|じゃ|でも)な(?:い(?!か)|く|し)|以外|は(?:誤|間違|不|違|除)|を除))"
    skipped = rf"(?:(?:not\s)?\s*{letter}\s*(?:では?なく|じゃなく|でもなく?|以外の|,?\s*but\b)[、,\s]{{0,4}}){{0,4}}"
    cue = f"(?:{_JAPANESE_CUE}|{_ENGLISH_CUE})"
    settled = (
        r"(?:が(?:正解|正しい|正答|答え|最も|最適|適切|妥当|該当|当てはま)"
        r"|is (?:the )?(?:correct|right|best|most|answer))"
    )
    spot = rf"(?:{left}|(?<=肢)){letter}(?!(?<=A){noun})"
    return _Patterns(
        by_text=by_text,
        fold=fold,
        stated=re.compile(
            rf"{cue}{_JOINT}{skipped}{opened}({group}){rejected}|{left}({group})\s*{settled}(?!とは|わけ|ない|くな)",
            flags,
        ),
        bare=re.compile(rf"({group})\s*(?:です|である|だ|になる|となる|を選択|を選ぶ)?", flags),
        head=re.compile(
            rf"\s*[(「【\[]?({letter})(?!(?<=A){noun})(?:[)」】\]]|[.,:、。)](?!\d)|\s|(?=[(「『]))", flags
        ),
        mention=re.compile(rf"({spot}){rejected}(?!\s(?:型|群|細胞|is (?:not|wrong|incorrect)))", flags),
        one=re.compile(any_of, flags),
        conclusion=re.compile(
            r"[)」』】\]>\"']*\s*(?:\Z|\n|[。.!]|です|では?ないか|である|だ(?!が)|でしょう|になる|となる|と(?:考|思|判|な|答|言|い)|を(?:選|回答)|が(?:正|最|適|妥|該))"
        ),
    )
