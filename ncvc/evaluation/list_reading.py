"""Lists of texts as models write them: strict JSON, Python, and what stands between those and no list at all.

Read, in this order: a JSON or Python list; a list within other text (code fences, 回答:, an object around one list)
with quotation marks of any kind and width or none, also one that is cut: its complete items count; texts in 「」 or
quotation marks one after the other; one item a line, bullets or not; items in one line between 、 and commas. A list
in a list is read as one list, since it names the same texts; an object in a list is not read, since which of its
strings are meant would be a guess, nor are several different lists of which none is called the answer. "なし" is an
empty list. None is everything else: excuses, sentences, code, nothing.

Costs: time in proportion to the length, up to ``LONGEST`` characters, where the text counts as cut. Does not: run
anything of the text, clean the items, or look whether they stand in the passage.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from ncvc.evaluation.spans import LONGEST_LIST, parse_python_strings

LONGEST = 100_000
"""Characters of an output that are read."""
LONGEST_ITEM = 100
"""Characters of an item without marks around it; what is longer is a sentence. JMED-LLM's longest span has 76."""

_RUN_ON = re.compile(r"(?<=\S)\s*\n\s*(?:(?:問題|質問|設問|Question|User|ユーザー|Human)\s*\d*\s*[:：]|###|<\|)")
_FENCE = re.compile(r"```[A-Za-z0-9]*")
_CUE = re.compile(
    r"(?:答え|回答|解答|抽出結果|結果|出力|リスト|answer|output|result)[^\n\[［「」:：=]{0,20}(?:[:：=]|は(?=\s*[\[［「『\"']))\s*",
    re.IGNORECASE,
)
_PREFACE = re.compile(r"\A[^\n\[［「『\"'、,]{0,40}(?:[:：]|通りです。|ます。)\s*(?=\S)")
_NOTHING = re.compile(
    r"(?:特に|該当(?:する)?(?:もの|表現|語句|箇所|項目)?(?:は|が)?|抽出(?:すべき|する|できる)(?:もの|表現)(?:は|が)?)?"
    r"(?:なし|無し|無い|ない|ありません|存在しません|ございません|見当たりません)(?:です)?|none|nothing|null|n/?a",
    re.IGNORECASE,
)
_EXCUSE = re.compile(
    r"申し訳|すみません|わかりません|分かりません|できません|お答え|答えられ|不明です|"
    r"(?:回答|判断|抽出|特定)(?:は|が|することは|することが)?できない|"
    r"\b(?:sorry|cannot|can't|unable|I am|I'm|As an)\b",
    re.IGNORECASE,
)
_MARKS = {'"': '"', "'": "'", "“": "”", "‘": "’", "「": "」", "『": "』", "＂": "＂", "＇": "＇", "`": "`", "„": "“"}
_OPEN, _CLOSED, _COMMAS, _NOTHINGS = "[［", "]］", ",，、;；\n", {"", "none", "null"}
_AFTER = r"(?=\s*(?:[,，、;；\]］)}]|\Z)|\s+[\"'“‘「『])"
_QUOTED = {
    mark: re.compile((r"((?:[^\\]|\\.)*?)" if end in "\"'`" else r"(.*?)") + f"{re.escape(end)}{_AFTER}", re.DOTALL)
    for mark, end in _MARKS.items()
}
_UNQUOTED = re.compile(r"[^,，、;；\n\[\]［］{}]*")
_SEQUENCE = re.compile(r"「([^「」]*)」|『([^『』]*)』|\"([^\"\n]*)\"|'([^'\n]*)'|“([^“”]*)”|‘([^‘’]*)’|＂([^＂]*)＂")
_BETWEEN = re.compile(r"[\s,，、・/;；:：.．。()（）{}\-*•0-9]|と|および|及び|です")
_BULLET = re.compile(r"\s*(?:[-*•・●○◦▪–—]\s*|\(?\d{1,2}[.)．）:：、](?!\d)\s*|[①-⑳]\s*)(?=\S)")
_CODE = re.compile(r"[A-Za-z_]\([\"')]")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


class _List(NamedTuple):
    """A list found in a text: its items (None: objects among them), where it ends, whether any item had marks."""

    items: tuple[str, ...] | None
    end: int
    marked: bool
    whole: bool


def bounded(text: str, limit: int) -> str:
    """``text``, of one longer than ``limit`` characters the first and the last half of so many."""
    return text if len(text) <= limit else f"{text[: limit // 2]}\n{text[-limit // 2 :]}"


def own_words(output: str) -> str:
    """What of ``output`` is the answer: without <think>...</think>, and up to a next question that it asks itself."""
    output = bounded(output, LONGEST)
    if "<think>" in output or "</think>" in output:
        _, closed, rest = output.rpartition("</think>")
        output = rest if closed else output.partition("<think>")[0]
    if "\n" in output and (run_on := _RUN_ON.search(output)):
        output = output[: run_on.start()]
    return output


def read_spans_answer(output: str) -> list[str] | None:
    """The texts that ``output`` lists, raw and in order, ``[]`` where it says there is none, None where it is no list.

    Never raises. Blank items are left out.
    """
    output = output[:LONGEST].strip()
    strict = _strict(output)
    if strict is not None:
        return _tidy(strict)
    text = _FENCE.sub("\n", own_words(output)).strip()
    if not text:
        return None
    if any(mark in text for mark in _OPEN):
        found = _chosen(text)
        if found is not None:
            return None if found.items is None else _tidy(found.items)
    return _plain(text)


def _strict(text: str) -> list[str] | None:
    """A JSON list of scalars or lists, or a Python list of strings."""
    if not text.startswith("[") or not text.endswith("]"):
        return None
    try:
        value = json.loads(text, parse_int=str, parse_float=str, parse_constant=str, strict=False)
    except (ValueError, RecursionError):
        return parse_python_strings(text) if len(text) <= LONGEST_LIST else None
    return _flat(value)


def _flat(value: Any) -> list[str] | None:
    """The strings of nested lists in order, None if there is an object among them."""
    strings: list[str] = []
    waiting = [iter(value)]
    while waiting:
        for item in waiting[-1]:
            if isinstance(item, dict):
                return None
            if isinstance(item, list):
                waiting.append(iter(item))
                break
            if item is not None:
                strings.append(item if isinstance(item, str) else str(item))
        else:
            waiting.pop()
    return strings


def _chosen(text: str) -> _List | None:
    """The list that answers: the first after the last cue, else the only one of its kind; None for no list at all."""
    lists = list(_lists(text))
    if any(one.marked for one in lists):
        lists = [one for one in lists if one.marked]
    cues = [match.end() for match in _CUE.finditer(text)]
    if cues and (after := [one for one in lists if one.end > cues[-1]]):
        return after[0]
    whole = [one for one in lists if one.whole] or lists
    if len({one.items for one in whole}) > 1:
        return whole[0]._replace(items=None)
    return whole[0] if whole else None


def _lists(text: str) -> Iterator[_List]:
    place = 0
    while (start := min((at for mark in _OPEN if (at := text.find(mark, place)) >= 0), default=-1)) >= 0:
        found = _list_at(text, start)
        if found.items or found.items is None or found.whole:
            yield found
        place = max(found.end, start + 1)


def _list_at(text: str, start: int) -> _List:
    """The list that opens at ``start``, read to its end or to that of the text."""
    items: list[str] = []
    place, depth, marked = start + 1, 1, False
    while place < len(text):
        character = text[place]
        if character in _OPEN or character in _CLOSED:
            depth += 1 if character in _OPEN else -1
            place += 1
            if not depth:
                return _List(tuple(items), place, marked, True)
        elif character in "{}":
            return _List(None, len(text), True, False)
        elif character.isspace() or character in _COMMAS:
            place += 1
        elif character in _MARKS:
            match = _QUOTED[character].match(text, place + 1)
            if match is None:
                break
            items.append(_unescaped(match[1]) if character in "\"'`" else match[1])
            place, marked = match.end(), True
        else:
            match = _UNQUOTED.match(text, place)
            assert match is not None  # it matches anything
            if match.end() == len(text):
                break  # cut
            if _CODE.search(match[0]):
                return _List(None, len(text), False, False)
            if match[0].strip().casefold() not in _NOTHINGS:
                items.append(match[0])
            place = max(match.end(), place + 1)
    return _List(tuple(items), len(text), marked, False)


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda m: chr(int(m[1][1:], 16)) if len(m[1]) == 5 else _ESCAPED.get(m[1], m[1]), text)


def _plain(text: str) -> list[str] | None:
    """Items without a list around them."""
    if _CODE.search(text) or ("{" in text and ":" in text):
        return None
    if cues := list(_CUE.finditer(text)):
        text = text[cues[-1].end() :]
    text = _PREFACE.sub("", text).strip()
    if _NOTHING.fullmatch(text.strip("「」[]［］()（）{}\"'。. 　")):
        return []
    if _EXCUSE.search(text):
        return None
    quoted = [next(part for part in match if part is not None) for match in _groups(text)]
    if quoted and not _BETWEEN.sub("", _SEQUENCE.sub("", text)):
        return _tidy(quoted)
    lines = [line for line in text.split("\n") if line.strip()]
    if any(map(_BULLET.match, lines)):
        lines = [_BULLET.sub("", line, count=1) for line in lines if _BULLET.match(line)]
    elif len(lines) > 1:
        lines = [line for line in lines if not line.rstrip().endswith((":", "："))]
    else:
        lines = re.split("[、，,]", text)
    items = [line.strip().removesuffix("。") for line in lines]
    sentences = any(len(item) > LONGEST_ITEM or "。" in item or set(item) & set("{}[]［］") for item in items)
    return None if sentences else _tidy(items) or None


def _groups(text: str) -> Iterator[tuple[str | None, ...]]:
    return (match.groups() for match in _SEQUENCE.finditer(text))


def _tidy(items: list[str] | tuple[str, ...]) -> list[str]:
    """The items without white space around them and without marks around the whole of one, blank ones left out."""
    tidy = []
    for item in items:
        text = item.strip()
        while len(text) > 1 and _MARKS.get(text[0]) == text[-1] and text[-1] not in text[1:-1]:
            text = text[1:-1].strip()
        if text:
            tidy.append(text)
    return tidy
